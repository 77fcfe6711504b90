package sidecar

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

const (
	// reconcileInterval is how often the control plane's attachments are compared
	// with those here, give or take a quarter.
	reconcileInterval = 2 * time.Second
	// reconcileAway is the same while the control plane cannot be reached.
	reconcileAway = 500 * time.Millisecond
	// silentLimit is how long nothing may come through a tunnel, probes among it,
	// before its gateway is looked up again and greeted anew.
	silentLimit = 3 * time.Second
	// orphanLimit is how long the control plane may list an attachment of this
	// worker's key that is not known here: it is longer than any call, so that
	// the answer to an attach was lost.
	orphanLimit = 2 * controlTimeout
)

// reconcile keeps the control plane's view and the sidecar's alike until ctx
// ends. Packets flow on whatever it finds.
func (s *Sidecar) reconcile(ctx context.Context) error {
	orphans := make(map[string]time.Time) // first seen
	for {
		interval := reconcileInterval
		if err := s.compare(ctx, orphans); err != nil {
			interval = reconcileAway
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(interval*3/4 + rand.N(interval/2)):
		}
	}
}

// compare makes one comparison and mends what differs. Its error is that the
// control plane could not be asked.
func (s *Sidecar) compare(ctx context.Context, orphans map[string]time.Time) error {
	// What is here before the question must be in the answer.
	here := s.attachments()
	asking, cancel := context.WithTimeout(ctx, controlTimeout)
	list, err := s.cfg.Control.Attachments(asking)
	cancel()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.noteControl(err)
	if err != nil {
		s.greetSilent(nil)
		return err
	}
	there := make(map[string]spec.Attachment, len(list))
	for _, a := range list {
		there[a.ID] = a
	}
	var group errgroup.Group
	group.SetLimit(controlCalls)
	again := s.greetSilent(here)
	for id, a := range here {
		if now, ok := there[id]; !ok || now.PublicKey != a.PublicKey {
			again[id] = a
		}
	}
	for _, a := range again {
		group.Go(func() error { s.resume(ctx, a); return nil })
	}
	for _, id := range s.unwanted(list, orphans) {
		group.Go(func() error { s.release(ctx, id); return nil })
	}
	return group.Wait()
}

// attachments are those that are held here, by ID.
func (s *Sidecar) attachments() map[string]spec.Attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]spec.Attachment, len(s.entries))
	for id, e := range s.entries {
		out[id] = e.attachment
	}
	return out
}

// noteControl remembers whether the control plane answers and says so when that changes.
func (s *Sidecar) noteControl(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	s.mu.Lock()
	was := s.control
	s.control.unreachable, s.control.asked = text, true
	changed := (text == "") != (was.unreachable == "") || !was.asked
	if changed {
		s.control.since = time.Now()
	}
	s.mu.Unlock()
	switch {
	case changed && err != nil:
		s.cfg.Log.Warn("the control plane does not answer; running sandboxes go on, new ones cannot be attached", "error", err)
	case changed && was.asked:
		s.cfg.Log.Info("the control plane answers again", "after", time.Since(was.since).Round(time.Millisecond).String())
	}
}

// greetSilent shakes hands anew through every tunnel that has been silent, and
// returns one attachment of each among those given: asking for it again tells
// whether its gateway has moved.
func (s *Sidecar) greetSilent(here map[string]spec.Attachment) map[string]spec.Attachment {
	again := make(map[string]spec.Attachment)
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.round++
	for _, n := range s.networks {
		for _, l := range n.links {
			if !l.silent(now, silentLimit) {
				continue
			}
			l.heard, l.greeted = now, s.round // the next greeting is due after the same time again
			if err := l.greet(); err != nil {
				s.cfg.Log.Debug("greet a silent gateway", "network", n.info.ID, "gateway", l.gateway.Host, "error", err)
			}
			for id, e := range s.entries {
				if a, ok := here[id]; ok && e.link == l {
					again[id] = a
					break
				}
			}
		}
	}
	return again
}

// resume attaches a sandbox again that the control plane does not know any
// more, or whose gateway may have moved. Its addresses stay.
func (s *Sidecar) resume(ctx context.Context, a spec.Attachment) {
	calling, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	resp, err := s.cfg.Control.Attach(calling, api.AttachRequest{
		Project: a.Project, Environment: a.Environment, Kind: a.Kind, Runtime: a.Runtime,
		Region: s.cfg.Region, PublicKey: s.key.Public().String(),
		Resume: &api.Resume{ID: a.ID, Network: a.Network, InnerAddress: a.Inner, WorkerAddress: a.Worker},
	})
	if err != nil {
		s.notResumed(ctx, a, err)
		return
	}
	if got := resp.Attachment; got.ID != a.ID || got.Inner != a.Inner || got.Network != a.Network {
		s.tellDetached(ctx, got.ID)
		s.lose(ctx, a.ID, "it could not have its addresses again")
		return
	}
	known, err := s.renew(resp)
	if !known { // it was detached meanwhile, and the control plane heard that first
		s.tellDetached(ctx, a.ID)
	} else if err != nil {
		s.cfg.Log.Warn("bring a sandbox's tunnel up to date", "sandbox", a.ID, "error", err)
	}
}

// notResumed decides what an error means for a running sandbox.
func (s *Sidecar) notResumed(ctx context.Context, a spec.Attachment, err error) {
	var said *api.Error
	if errors.As(err, &said) && said.Code == api.CodeConflict {
		s.lose(ctx, a.ID, said.Message)
		return
	}
	s.mu.Lock()
	e := s.entries[a.ID]
	first := e != nil && !e.warned && ctx.Err() == nil
	if first {
		e.warned = true
	}
	s.mu.Unlock()
	if first {
		s.cfg.Log.Warn("a running sandbox is not attached at the control plane any more; trying on", "sandbox", a.ID, "error", err)
	}
}

// lose detaches a running sandbox that has no right to its address any more.
func (s *Sidecar) lose(ctx context.Context, id, why string) {
	if s.detach(ctx, id, why) {
		s.cfg.Log.Warn("a running sandbox lost its attachment and has no network any more", "sandbox", id, "why", why)
	}
}

// renew takes in what the control plane answered about a running sandbox, and
// says whether it still runs.
func (s *Sidecar) renew(resp api.AttachResponse) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[resp.Attachment.ID]
	if e == nil {
		return false, nil
	}
	e.warned = false
	e.attachment = resp.Attachment
	if e.network == nil {
		return true, nil
	}
	if len(resp.Gateways) == 0 || resp.Gateways[0].Host != e.link.gateway.Host {
		// The sandbox stays with the gateway that it has; new ones go to the other.
		return true, nil
	}
	if _, err := s.connect(e.network, resp); err != nil {
		return true, err
	}
	// A gateway that did not know the worker has no session with it either. Once
	// is enough for all sandboxes of a tunnel.
	if e.link.greeted == s.round {
		return true, nil
	}
	e.link.greeted = s.round
	return true, e.link.greet()
}

// unwanted lists what the control plane has and should not: what was detached
// while it did not answer, and attachments of this worker's key that are not
// known here for long.
func (s *Sidecar) unwanted(list []spec.Attachment, orphans map[string]time.Time) []string {
	now, key := time.Now(), s.key.Public().String()
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	seen := make(map[string]struct{}, len(list))
	for _, a := range list {
		seen[a.ID] = struct{}{}
		_, owed := s.owed[a.ID]
		if s.entries[a.ID] != nil || a.PublicKey != key && !owed {
			continue
		}
		if first, ok := orphans[a.ID]; !ok {
			orphans[a.ID] = now
		} else if now.Sub(first) >= orphanLimit {
			owed = true
		}
		if owed {
			ids = append(ids, a.ID)
		}
	}
	for id := range orphans {
		if _, ok := seen[id]; !ok {
			delete(orphans, id)
		}
	}
	for id := range s.owed {
		if _, ok := seen[id]; !ok {
			delete(s.owed, id) // the control plane does not know it either
		}
	}
	return ids
}

// release detaches at the control plane what does not exist here.
func (s *Sidecar) release(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	if err := s.forget(ctx, id); err != nil {
		s.cfg.Log.Debug("detach what is gone", "sandbox", id, "error", err)
		return
	}
	s.mu.Lock()
	delete(s.owed, id)
	s.mu.Unlock()
}
