package sidecar

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
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
	// greetSilence is the same for a gateway that has just been asked about.
	greetSilence = time.Second
	// askInterval is how often the control plane is asked which gateways a network
	// has, besides when one of them is silent.
	askInterval = 10 * time.Second
	// reconcileStep is how often it is looked whether a comparison is due.
	reconcileStep = 100 * time.Millisecond
	// leavingInterval is how often it is looked whether tunnels to hosts that the
	// control plane names no more are still needed.
	leavingInterval = 5 * time.Second
	// orphanLimit is how long the control plane may list an attachment of this
	// worker's key that is not known here: it is longer than any call, so that
	// the answer to an attach was lost.
	orphanLimit = 2 * controlTimeout
)

// reconcile keeps the control planes' view and the sidecar's alike until ctx ends:
// that of its own region, and those of the regions where its sandboxes have passive
// attachments, each in its own time. Packets flow on whatever it finds.
func (s *Sidecar) reconcile(ctx context.Context) error {
	var rounds sync.WaitGroup
	defer rounds.Wait()
	step := time.NewTicker(reconcileStep)
	defer step.Stop()
	var swept time.Time // when tunnels were last looked at that may not be needed
	for {
		for _, p := range s.duePlanes(time.Now()) {
			rounds.Go(func() {
				interval := reconcileInterval
				if err := s.compare(ctx, p); err != nil {
					interval = reconcileAway
				}
				s.mu.Lock()
				p.busy, p.due = false, time.Now().Add(interval*3/4+rand.N(interval/2))
				s.mu.Unlock()
			})
		}
		if now := time.Now(); now.Sub(swept) >= leavingInterval {
			swept = now
			s.dropLeaving()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-step.C:
		}
	}
}

// duePlanes returns the control planes with which a comparison shall begin now.
func (s *Sidecar) duePlanes(now time.Time) []*controlPlane {
	s.mu.Lock()
	defer s.mu.Unlock()
	var due []*controlPlane
	for _, p := range append(slices.Collect(maps.Values(s.planes)), s.home) {
		if p.busy || now.Before(p.due) || p != s.home && !s.inUse(p, now) {
			continue
		}
		p.busy = true
		due = append(due, p)
	}
	return due
}

// inUse says whether there is something to compare with another region's control
// plane: what is attached there, is to be, or may be without our knowledge. The
// caller holds the lock.
func (s *Sidecar) inUse(p *controlPlane, now time.Time) bool {
	if len(p.owed) > 0 || now.Sub(p.used) < 2*orphanLimit {
		return true
	}
	for _, e := range s.entries {
		if e.passive != nil && e.passive.plane == p {
			return true
		}
	}
	return false
}

// compare makes one comparison and mends what differs. Its error is that the
// control plane could not be asked.
func (s *Sidecar) compare(ctx context.Context, p *controlPlane) error {
	// What is here before the question must be in the answer.
	here, control := s.attachments(p)
	asking, cancel := context.WithTimeout(ctx, controlTimeout)
	list, err := control.Attachments(asking)
	cancel()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.noteControl(p, err)
	if err != nil {
		s.greetSilent(p, nil)
		return err
	}
	there := make(map[string]spec.Attachment, len(list))
	for _, a := range list {
		there[a.ID] = a
	}
	var group errgroup.Group
	group.SetLimit(controlCalls)
	again := s.greetSilent(p, here)
	for id, a := range here {
		if now, ok := there[id]; !ok || now.PublicKey != a.PublicKey {
			again[id] = a
		}
	}
	for _, a := range again {
		group.Go(func() error { s.resume(ctx, p, a); return nil })
	}
	for _, id := range s.unwanted(p, list) {
		group.Go(func() error { s.release(ctx, p, id); return nil })
	}
	for _, try := range s.duePassive(p) {
		group.Go(func() error { s.tryPassive(ctx, try.entry, try.passive); return nil })
	}
	return group.Wait()
}

// attachments are those of a region that are held here, by ID, and who is to be
// asked about them.
func (s *Sidecar) attachments(p *controlPlane) (map[string]spec.Attachment, Control) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]spec.Attachment, len(s.entries))
	for id, e := range s.entries {
		switch {
		case p == s.home:
			out[id] = e.attachment
		case e.passive != nil && e.passive.plane == p && e.passive.joined != nil:
			out[e.passive.attachment.ID] = e.passive.attachment
		}
	}
	return out, p.control
}

// noteControl remembers whether a control plane answers and says so when that changes.
func (s *Sidecar) noteControl(p *controlPlane, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	s.mu.Lock()
	was := p.state
	p.state.unreachable, p.state.asked = text, true
	changed := (text == "") != (was.unreachable == "") || !was.asked
	if changed {
		p.state.since = time.Now()
	}
	if err != nil {
		s.passiveAway(p)
	}
	s.mu.Unlock()
	switch {
	case changed && err != nil:
		s.cfg.Log.Warn("a control plane does not answer; running sandboxes go on, new ones cannot be attached there", "region", p.region, "error", err)
	case changed && was.asked:
		s.cfg.Log.Info("the control plane answers again", "region", p.region, "after", time.Since(was.since).Round(time.Millisecond).String())
	}
}

// greetSilent shakes hands anew through every tunnel into a region that has been
// silent, and returns one attachment of each of its networks among those given,
// and of each that was not asked about for a while: asking for it again tells
// whether its gateways have moved, or are others.
func (s *Sidecar) greetSilent(p *controlPlane, here map[string]spec.Attachment) map[string]spec.Attachment {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p.round++
	wanted := make(map[string]bool) // networks to ask about, by ID
	for _, n := range s.networks {
		if n.plane != p {
			continue
		}
		if now.Sub(n.asked) >= askInterval {
			wanted[n.info.ID] = true
		}
		for _, l := range n.links {
			if !l.silent(now, silentLimit) {
				continue
			}
			l.heard, l.greeted = now, p.round // the next greeting is due after the same time again
			if err := l.greet(); err != nil {
				s.cfg.Log.Debug("greet a silent gateway", "network", n.info.ID, "gateway", l.gateway.Host, "error", err)
			}
			wanted[n.info.ID] = true
		}
	}
	again := make(map[string]spec.Attachment)
	for id, a := range here {
		if wanted[a.Network] {
			delete(wanted, a.Network)
			again[id] = a
		}
	}
	return again
}

// resume attaches a sandbox again that the control plane does not know any
// more, or whose gateways may have moved. Its addresses stay.
func (s *Sidecar) resume(ctx context.Context, p *controlPlane, a spec.Attachment) {
	calling, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	s.mu.Lock()
	control := p.control
	s.mu.Unlock()
	resp, err := control.Attach(calling, api.AttachRequest{
		Project: a.Project, Environment: a.Environment, Kind: a.Kind, Runtime: a.Runtime,
		Region: p.region, Passive: p != s.home, PublicKey: s.key.Public().String(),
		Resume: &api.Resume{ID: a.ID, Network: a.Network, InnerAddress: a.Inner, WorkerAddress: a.Worker},
	})
	if err != nil {
		s.notResumed(ctx, p, a, err)
		return
	}
	if got := resp.Attachment; got.ID != a.ID || got.Inner != a.Inner || got.Network != a.Network {
		s.tellDetached(ctx, p, got.ID)
		s.lose(ctx, p, a.ID, "it could not have its addresses again")
		return
	}
	known, err := s.renew(ctx, p, resp)
	if !known { // it was detached meanwhile, and the control plane heard that first
		s.tellDetached(ctx, p, a.ID)
	} else if err != nil {
		s.cfg.Log.Warn("bring a sandbox's tunnels up to date", "sandbox", a.ID, "error", err)
	}
}

// notResumed decides what an error means for a running sandbox.
func (s *Sidecar) notResumed(ctx context.Context, p *controlPlane, a spec.Attachment, err error) {
	var said *api.Error
	if errors.As(err, &said) && said.Code == api.CodeConflict {
		s.lose(ctx, p, a.ID, said.Message)
		return
	}
	s.mu.Lock()
	e := s.entries[a.ID]
	if p != s.home {
		e = s.passiveEntry(p, a.ID)
	}
	first := e != nil && !e.warned && ctx.Err() == nil
	if first {
		e.warned = true
	}
	s.mu.Unlock()
	if first {
		s.cfg.Log.Warn("a running sandbox could not be attached again at its control plane; trying on", "region", p.region, "attachment", a.ID, "error", err)
	}
}

// lose gives up an attachment to which a running sandbox has no right any more. One
// that loses its active network has none at all.
func (s *Sidecar) lose(ctx context.Context, p *controlPlane, id, why string) {
	if p != s.home {
		s.losePassive(p, id, why)
		return
	}
	if s.detach(ctx, id, why) {
		s.cfg.Log.Warn("a running sandbox lost its attachment and has no network any more", "sandbox", id, "why", why)
	}
}

// renew takes in what a control plane answered about a running sandbox, and says
// whether it still runs.
func (s *Sidecar) renew(ctx context.Context, p *controlPlane, resp api.AttachResponse) (bool, error) {
	if p != s.home {
		return s.renewPassive(p, resp)
	}
	s.mu.Lock()
	e := s.entries[resp.Attachment.ID]
	if e == nil {
		s.mu.Unlock()
		return false, nil
	}
	e.warned = false
	e.attachment = resp.Attachment
	if e.network == nil || len(resp.Gateways) == 0 {
		s.mu.Unlock()
		return true, nil
	}
	gone, ended := s.retarget(e.attachment, resp.Passive)
	err := s.connect(e.network, resp)
	if err == nil {
		e.host, e.listed = preferred(resp.Gateways)
		s.regroup(e)
		err = s.greetAgain(e.network)
	}
	s.mu.Unlock()
	closeLinks(gone)
	for _, o := range ended {
		s.tellDetached(ctx, o.plane, o.id)
	}
	return true, err
}

// greetAgain shakes hands anew with the gateways of a network: one that did not know
// the worker has no session with it either. Once in a comparison is enough for
// all sandboxes of a tunnel, and gateways that answer need no greeting. Neither does
// one that was silent for a moment only: a greeting that is lost takes the session
// along until it is repeated. The caller holds the lock.
func (s *Sidecar) greetAgain(n *network) error {
	var errs []error
	now := time.Now()
	for _, l := range n.links {
		if l.greeted == n.plane.round || l.greeted != neverGreeted && (s.wellIn(l) || !l.silent(now, greetSilence)) {
			continue
		}
		l.greeted = n.plane.round
		errs = append(errs, l.greet())
	}
	return errors.Join(errs...)
}

// wellIn says whether a tunnel's gateway answers everybody here who watches it. The
// caller holds the lock.
func (s *Sidecar) wellIn(l *link) bool {
	for _, n := range s.networks {
		if n.watch != nil && !n.watch.well(l) {
			return false
		}
	}
	return true
}

// unwanted lists what the control plane has and should not: what was detached
// while it did not answer, and attachments of this worker's key that are not
// known here for long.
func (s *Sidecar) unwanted(p *controlPlane, list []spec.Attachment) []string {
	held, _ := s.attachments(p)
	now, key := time.Now(), s.key.Public().String()
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	seen := make(map[string]struct{}, len(list))
	for _, a := range list {
		seen[a.ID] = struct{}{}
		_, owed := p.owed[a.ID]
		if _, here := held[a.ID]; here || a.PublicKey != key && !owed {
			continue
		}
		if first, ok := p.orphans[a.ID]; !ok {
			p.orphans[a.ID] = now
		} else if now.Sub(first) >= orphanLimit {
			owed = true
		}
		if owed {
			ids = append(ids, a.ID)
		}
	}
	for id := range p.orphans {
		if _, ok := seen[id]; !ok {
			delete(p.orphans, id)
		}
	}
	for id := range p.owed {
		if _, ok := seen[id]; !ok {
			delete(p.owed, id) // the control plane does not know it either
		}
	}
	return ids
}

// release detaches at the control plane what does not exist here.
func (s *Sidecar) release(ctx context.Context, p *controlPlane, id string) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	if err := s.forget(ctx, p, id); err != nil {
		s.cfg.Log.Debug("detach what is gone", "sandbox", id, "error", err)
		return
	}
	s.mu.Lock()
	delete(p.owed, id)
	delete(p.orphans, id)
	s.mu.Unlock()
}
