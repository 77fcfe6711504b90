package sidecar

import (
	"context"
	"errors"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
)

// controlPlane is the control plane of one region, as the sidecar knows it. Its fields are
// guarded by the sidecar's lock.
type controlPlane struct {
	region  string
	control Control
	owed    map[string]struct{}  // detached here, and it has not heard it
	orphans map[string]time.Time // it knows them, and nobody here does; first seen
	state   controlState
	round   uint64        // number of the comparison with it
	used    time.Time     // when it was last asked for an attachment
	due     time.Time     // when the next comparison is
	busy    bool          // one is under way
	hearing time.Duration // how long it may take to hear of an end: closeTimeout, but in tests
	silent  bool          // while the sidecar ends it let a call wait in vain, and is asked nothing more
}

// controlState is how a control plane answered last.
type controlState struct {
	asked       bool // at least once
	unreachable string
	since       time.Time // of the present state
}

func newControlPlane(region string, control Control) *controlPlane {
	return &controlPlane{region: region, control: control, owed: make(map[string]struct{}), orphans: make(map[string]time.Time), hearing: closeTimeout}
}

// owedID is an attachment that a control plane is to be told the end of.
type owedID struct {
	plane *controlPlane
	id    string
}

// tellDetached tells the control plane. What it does not hear now it is told
// again by reconcile, unless the sidecar ends. So while it is known not to answer, it
// is not even tried; when the sidecar ends it is, until one call has waited in vain, so
// that others hear of all their sandboxes.
func (s *Sidecar) tellDetached(ctx context.Context, p *controlPlane, id string) {
	s.mu.Lock()
	hearing := p.hearing
	later := p.silent || p.state.unreachable != "" && !s.closing
	if later {
		p.owed[id] = struct{}{}
	}
	s.mu.Unlock()
	if later {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, hearing)
	defer cancel()
	if err := s.forget(ctx, p, id); err != nil {
		s.cfg.Log.Debug("the control plane was not told of a detached sandbox", "region", p.region, "attachment", id, "error", err)
		s.mu.Lock()
		p.owed[id] = struct{}{}
		p.silent = p.silent || s.closing && ctx.Err() != nil
		s.mu.Unlock()
	}
}

// forget ends an attachment at the control plane. One that it does not know is no error.
func (s *Sidecar) forget(ctx context.Context, p *controlPlane, id string) error {
	s.mu.Lock()
	control := p.control
	s.mu.Unlock()
	err := control.Detach(ctx, id)
	var said *api.Error
	if errors.As(err, &said) && said.Code == api.CodeNotFound {
		return nil
	}
	return err
}
