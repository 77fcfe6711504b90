package sidecar

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// A sandbox whose environment has a passive network is attached there, too, so that
// it can go there without asking anybody when its own region is unavailable. It is
// not worth waiting for: a sandbox runs without, and the sidecar tries on.

// The states of a sandbox's attachment to its passive network.
const (
	// passiveNone: the environment has no passive network.
	passiveNone = "none"
	// passivePending: the passive region's control plane has not answered yet.
	passivePending = "pending"
	// passiveReady: the passive network takes over when the active one is unavailable.
	passiveReady = "ready"
	// passiveFailed: the last try failed. It is tried again as long as the sandbox lives,
	// unless the reason is that there is no way to ask that region.
	passiveFailed = "failed"
)

const (
	// passiveWait is how long a sandbox's attach, or its end, waits for the passive region.
	passiveWait = 250 * time.Millisecond
	// A try that the passive region refused is repeated after passiveRetry, and after
	// twice as long each time up to passiveRetryMax.
	passiveRetry    = 2 * time.Second
	passiveRetryMax = 30 * time.Second
)

// PassiveStatus is what a sandbox may expect while its own region is unavailable.
type PassiveStatus struct {
	// Region and Network are the passive ones; empty where there are none.
	Region  string `json:"region,omitempty"`
	Network string `json:"network,omitempty"`
	// State is none, pending, ready or failed.
	State string `json:"state"`
	// Reason says why it is failed.
	Reason string `json:"reason,omitempty"`
}

// passive is a sandbox's second attachment. It is guarded by the sidecar's lock,
// but for there, which does not change once the sandbox has routes with it.
type passive struct {
	region     api.PassiveRegion
	plane      *controlPlane // nil: there is no way to ask that region
	state      string
	reason     string
	warned     bool // that it failed; not again before it was ready
	trying     bool // a call is under way
	due        time.Time
	retry      time.Duration
	attachment spec.Attachment    // while it is ready
	joined     *network           // while it is ready
	host       string             // that is preferred there
	there      packet.Renumbering // the sandbox's addresses here and there
}

// status describes it. It may be nil. The caller holds the lock.
func (p *passive) status() PassiveStatus {
	if p == nil {
		return PassiveStatus{State: passiveNone}
	}
	return PassiveStatus{Region: p.region.Region, Network: p.region.Network, State: p.state, Reason: p.reason}
}

// fail takes note of a failure.
func (p *passive) fail(reason string) { p.state, p.reason = passiveFailed, reason }

// wantPassive begins an attachment to a passive network. The caller holds the lock.
func (s *Sidecar) wantPassive(e *entry, region api.PassiveRegion) {
	p := &passive{region: region, state: passivePending}
	e.passive = p
	var err error
	if p.plane, err = s.planeOf(region); err != nil {
		p.fail(err.Error())
	}
}

// planeOf finds or makes the control plane of another region. The caller holds the lock.
func (s *Sidecar) planeOf(region api.PassiveRegion) (*controlPlane, error) {
	if s.cfg.Regions == nil {
		return nil, fmt.Errorf("no way to ask region %s is configured", region.Region)
	}
	control, err := s.cfg.Regions.Control(region.Region, region.API)
	if err != nil {
		return nil, fmt.Errorf("ask the control plane of region %s: %w", region.Region, err)
	}
	p := s.planes[region.Region]
	if p == nil {
		p = newControlPlane(region.Region, control)
		s.planes[region.Region] = p
	}
	p.control, p.used = control, time.Now()
	return p, nil
}

// startPassive makes the first try, beside the caller, and waits for it a little.
func (s *Sidecar) startPassive(e *entry) {
	done := make(chan struct{})
	s.mu.Lock()
	try := s.claimPassive(e, time.Now())
	away := false
	if try != nil {
		if away = try.plane.state.unreachable != ""; away {
			try.fail(noAnswer) // until it is known better
		}
		s.tasks.Go(func() {
			defer close(done)
			s.tryPassive(s.background, e, try)
		})
	}
	s.mu.Unlock()
	if try == nil || away { // it would be in vain
		return
	}
	waitBriefly(done)
}

// claimPassive returns what is to be tried for an attachment now, if anything. The
// caller holds the lock.
func (s *Sidecar) claimPassive(e *entry, now time.Time) *passive {
	p := e.passive
	if p == nil || p.plane == nil || p.trying || p.state == passiveReady || now.Before(p.due) || s.closing {
		return nil
	}
	p.trying = true
	return p
}

// tryPassive asks the passive region for an attachment.
func (s *Sidecar) tryPassive(ctx context.Context, e *entry, p *passive) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	s.mu.Lock()
	a, control := e.attachment, p.plane.control
	s.mu.Unlock()
	resp, err := control.Attach(ctx, api.AttachRequest{
		Project: a.Project, Environment: a.Environment, Kind: a.Kind, Runtime: a.Runtime,
		Region: p.region.Region, Passive: true, PublicKey: s.key.Public().String(),
	})
	var said *api.Error
	away := err != nil && !errors.As(err, &said)
	s.mu.Lock()
	p.trying = false
	p.plane.used = time.Now()
	wanted := s.entries[e.id] == e && e.passive == p
	if err == nil && wanted {
		err = s.joinPassive(e, p, resp)
	}
	switch {
	case err == nil || !wanted:
	case away:
		s.awayPassive(e, p, err)
	default:
		s.failPassive(e, p, err)
	}
	s.mu.Unlock()
	if got := resp.Attachment.ID; got != "" && (err != nil || !wanted) {
		s.tellDetached(context.WithoutCancel(ctx), p.plane, got)
	}
}

// failPassive takes note that the passive region refused, or that what it gave is of
// no use, and of when the next try is due. The caller holds the lock.
func (s *Sidecar) failPassive(e *entry, p *passive, err error) {
	p.retry = min(max(2*p.retry, passiveRetry), passiveRetryMax)
	p.due = time.Now().Add(p.retry)
	if !p.warned {
		p.warned = true
		s.cfg.Log.Warn("a sandbox is not attached to its passive network; trying on",
			"sandbox", e.id, "region", p.region.Region, "network", p.region.Network, "error", err)
	}
	p.fail(err.Error())
}

// awayPassive takes note that nobody answered in the passive region. That is said
// once for the whole region, and it is tried again as soon as somebody does. The
// caller holds the lock.
func (s *Sidecar) awayPassive(e *entry, p *passive, err error) {
	s.cfg.Log.Debug("a sandbox is not attached to its passive network, as nobody answers there; trying on",
		"sandbox", e.id, "region", p.region.Region, "network", p.region.Network, "error", err)
	p.fail(noAnswer)
}

// noAnswer is the reason why a whole region is away; status has the error.
const noAnswer = "its control plane does not answer"

// joinPassive takes a second attachment in. The caller holds the lock.
func (s *Sidecar) joinPassive(e *entry, p *passive, resp api.AttachResponse) error {
	a := resp.Attachment
	if a.Bypass != "" || !a.Inner.Is4() || a.ID == "" {
		return fmt.Errorf("the control plane of region %s gave no address in its network: bypass %q, address %v", p.region.Region, a.Bypass, a.Inner)
	}
	n, err := s.join(p.plane, resp)
	if err != nil {
		return err
	}
	active := e.network
	p.there = packet.Renumbering{
		Local:  [2][4]byte{e.attachment.Inner.As4(), a.Inner.As4()},
		Remote: [2][4]byte{active.info.Gateway.As4(), n.info.Gateway.As4()},
	}
	p.attachment, p.joined, p.state, p.reason, p.retry, p.warned = a, n, passiveReady, "", 0, false
	p.host, _ = preferred(resp.Gateways)
	delete(p.plane.owed, a.ID)
	if active.passives[n]++; active.passives[n] == 1 {
		s.arrange(active)
	}
	if e.sw != nil {
		n.sandboxes.add(a.Inner.As4(), resident{sandbox: e.sw, there: &p.there})
		s.reroute(e, active.watch.followed())
	}
	s.regroup(e)
	return nil
}

// partPassive takes a second attachment out, and returns the tunnels to close. The
// caller holds the lock, and closes without it.
func (s *Sidecar) partPassive(e *entry) []*link {
	p := e.passive
	if p == nil || p.joined == nil {
		return nil
	}
	n, active := p.joined, e.network
	p.joined = nil
	if e.sw != nil {
		n.sandboxes.remove(p.attachment.Inner.As4(), e.sw)
	}
	if s.entries[e.id] == e { // it lives on without
		s.regroup(e)
		tracks := active.watch.followed()
		for _, t := range tracks {
			if t.link.network == n && e.sw != nil {
				active.watch.abandon(e.group, t, e.sw)
			}
		}
		if e.sw != nil {
			s.reroute(e, tracks)
		}
	}
	gone := s.part(n)
	if active.passives[n]--; active.passives[n] == 0 {
		delete(active.passives, n)
		if active.attached > 0 {
			s.arrange(active)
		}
	}
	return gone
}

// tellPassive tells a passive region of the end of a sandbox, which waits for that no
// longer than its begin did.
func (s *Sidecar) tellPassive(ctx context.Context, o owedID) {
	done := make(chan struct{})
	s.mu.Lock()
	beside := !s.closing
	if beside {
		s.tasks.Go(func() {
			defer close(done)
			s.tellDetached(s.background, o.plane, o.id)
		})
	}
	s.mu.Unlock()
	if !beside {
		s.tellDetached(ctx, o.plane, o.id)
		return
	}
	waitBriefly(done)
}

// waitBriefly waits for something that a passive region is asked for.
func waitBriefly(done <-chan struct{}) {
	wait := time.NewTimer(passiveWait)
	defer wait.Stop()
	select {
	case <-done:
	case <-wait.C:
	}
}

// renewPassive takes in what a passive region answered about a sandbox that it
// knows, and says whether it is still wanted.
func (s *Sidecar) renewPassive(p *controlPlane, resp api.AttachResponse) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.passiveEntry(p, resp.Attachment.ID)
	if e == nil {
		return false, nil
	}
	e.passive.attachment, e.warned = resp.Attachment, false
	if len(resp.Gateways) == 0 {
		return true, nil
	}
	n := e.passive.joined
	if err := s.connect(n, resp); err != nil {
		return true, err
	}
	e.passive.host, _ = preferred(resp.Gateways)
	s.regroup(e)
	return true, s.greetAgain(n)
}

// passiveEntry finds the sandbox of an attachment in a passive region. The caller
// holds the lock.
func (s *Sidecar) passiveEntry(p *controlPlane, id string) *entry {
	for _, e := range s.entries {
		if v := e.passive; v != nil && v.plane == p && v.joined != nil && v.attachment.ID == id {
			return e
		}
	}
	return nil
}

// losePassive gives up an attachment to which a sandbox has no right any more, and
// has another one made.
func (s *Sidecar) losePassive(p *controlPlane, id, why string) {
	s.mu.Lock()
	e := s.passiveEntry(p, id)
	if e == nil {
		s.mu.Unlock()
		return
	}
	gone := s.partPassive(e)
	region := e.passive.region
	s.wantPassive(e, region)
	e.passive.fail(why)
	s.mu.Unlock()
	closeLinks(gone)
	s.cfg.Log.Warn("a sandbox lost its attachment to its passive network; asking for another", "sandbox", e.id, "region", region.Region, "why", why)
}

// retarget heeds that an environment's passive network is another one now. The
// caller holds the lock; the tunnels to close and the attachments to end are returned.
func (s *Sidecar) retarget(like spec.Attachment, region *api.PassiveRegion) (gone []*link, ended []owedID) {
	for _, e := range s.entries {
		a := e.attachment
		if a.Bypass != "" || a.Project != like.Project || a.Environment != like.Environment || a.Network != like.Network {
			continue
		}
		p := e.passive
		same := region != nil && p != nil && p.region.Region == region.Region && p.region.Network == region.Network
		if region == nil && p == nil || same && p.region.API == region.API {
			continue
		}
		if same && p.joined != nil { // only the way to ask has changed
			p.region = *region
			if _, err := s.planeOf(*region); err == nil {
				continue
			}
		}
		if p != nil && p.joined != nil {
			ended = append(ended, owedID{plane: p.plane, id: p.attachment.ID})
			gone = append(gone, s.partPassive(e)...)
		}
		e.passive = nil
		if region != nil {
			s.wantPassive(e, *region)
		}
	}
	return gone, ended
}

// passiveTry is an attachment that is to be tried.
type passiveTry struct {
	entry   *entry
	passive *passive
}

// duePassive claims all attachments of a region that are to be tried now.
func (s *Sidecar) duePassive(p *controlPlane) []passiveTry {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var due []passiveTry
	for _, e := range s.entries {
		if e.passive == nil || e.passive.plane != p {
			continue
		}
		if try := s.claimPassive(e, now); try != nil {
			due = append(due, passiveTry{e, try})
		}
	}
	return due
}

// passiveAway takes note that a region's control plane does not answer at all: who
// waits for it need not wait any longer once it does. The caller holds the lock.
func (s *Sidecar) passiveAway(p *controlPlane) {
	for _, e := range s.entries {
		if v := e.passive; v != nil && v.plane == p && v.state != passiveReady {
			v.due, v.retry = time.Time{}, 0
			if v.state == passiveFailed {
				v.reason = noAnswer
			}
		}
	}
}
