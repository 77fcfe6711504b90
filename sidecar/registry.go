package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

const (
	// deviceTimeout is how long a sandbox may take to hand its device over.
	deviceTimeout = 10 * time.Second
	// proofTimeout is how long the first probe through a tunnel may take.
	proofTimeout = 5 * time.Second
	// greetInterval is how long a tunnel may stay silent meanwhile before the
	// gateway is greeted anew.
	greetInterval = 250 * time.Millisecond
	// controlTimeout bounds a call to the control plane; it gives up by itself
	// when a gateway does not confirm.
	controlTimeout = 15 * time.Second
	// controlCalls is how many of them run at once.
	controlCalls = 16
)

// entry is one sandbox that was attached, or that bypasses.
//
// It is waiting from attach on, claimed when its device's connection is there,
// and switching once the switch is set. It ends by detach from any of these.
type entry struct {
	id         string
	attachment spec.Attachment // guarded by the sidecar's lock, as all below
	network    *network        // nil: it bypasses
	link       *link
	timer      *time.Timer // ends a waiting one
	claimed    bool
	sw         *sandbox
	proxied    *proxied      // its device, where it asked for proxies
	warned     bool          // that it could not be attached again
	gone       chan struct{} // closed by detach
}

// attach asks the control plane to attach a sandbox and makes its tunnel. An
// error that is no [*api.Error] is a failure here.
func (s *Sidecar) attach(ctx context.Context, req sandboxRequest) (sandboxAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	resp, err := s.cfg.Control.Attach(ctx, api.AttachRequest{
		Project: req.Project, Environment: req.Environment, Kind: req.Kind, Runtime: req.Runtime,
		Region: s.cfg.Region, PublicKey: s.key.Public().String(),
	})
	if err != nil {
		return sandboxAnswer{}, controlError(err)
	}
	a := resp.Attachment
	e, err := s.admit(resp)
	if err != nil {
		s.tellDetached(context.WithoutCancel(ctx), a.ID)
		return sandboxAnswer{}, err
	}
	if a.Bypass != "" {
		return sandboxAnswer{ID: a.ID, Bypass: a.Bypass}, nil
	}
	dns := resp.Network.DNS[:min(len(resp.Network.DNS), maxNameServers)]
	out := sandboxAnswer{
		ID: a.ID, Network: a.Network, Inner: a.Inner, DNS: dns, MTU: e.network.info.MTU, Hide: s.cfg.Hide,
		Passive: passiveStatus{State: passiveNone},
	}
	if !req.Proxy {
		return out, nil
	}
	if out.Proxies, err = s.offer(e, out); err != nil {
		s.detach(context.WithoutCancel(ctx), a.ID, "it could not have proxies")
		return sandboxAnswer{}, err
	}
	return out, nil
}

// controlError makes what the control plane, or the way there, answered an
// answer of this API.
func controlError(err error) *api.Error {
	var said *api.Error
	if errors.As(err, &said) {
		return said
	}
	return &api.Error{Status: http.StatusServiceUnavailable, Code: codeControl, Message: err.Error()}
}

// admit writes a new attachment down.
func (s *Sidecar) admit(resp api.AttachResponse) (*entry, error) {
	a := resp.Attachment
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, ending()
	}
	if s.entries[a.ID] != nil {
		return nil, fmt.Errorf("the control plane gave the ID %s twice", a.ID)
	}
	e := &entry{id: a.ID, attachment: a, gone: make(chan struct{})}
	if a.Bypass == "" {
		if !a.Inner.Is4() {
			return nil, fmt.Errorf("the control plane gave the inner address %v, which is not IPv4", a.Inner)
		}
		var err error
		if e.network, e.link, err = s.join(resp); err != nil {
			return nil, err
		}
	} else {
		s.bypassTotal[a.Bypass]++
	}
	delete(s.owed, a.ID)
	s.entries[a.ID] = e
	e.timer = time.AfterFunc(deviceTimeout, func() {
		s.detach(context.Background(), e.id, "its device did not come in time")
	})
	return e, nil
}

// claim reserves a waiting sandbox for the connection that brings its device.
func (s *Sidecar) claim(id string) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[id]
	switch {
	case e == nil:
		return nil, &api.Error{Status: http.StatusNotFound, Code: api.CodeNotFound, Message: fmt.Sprintf("there is no sandbox %q here; it is detached when its device does not come within %v", id, deviceTimeout)}
	case e.claimed:
		return nil, &api.Error{Status: http.StatusConflict, Code: api.CodeConflict, Message: fmt.Sprintf("sandbox %q has a device already", id)}
	}
	e.claimed = true
	e.timer.Stop()
	return e, nil
}

// connectDevice begins to switch for a claimed sandbox and returns when a probe
// was answered. The device belongs to the sandbox from now on; it is closed when
// connectDevice fails.
func (s *Sidecar) connectDevice(ctx context.Context, e *entry, dev tun.Device) error {
	s.mu.Lock()
	select {
	case <-e.gone:
		s.mu.Unlock()
		_ = dev.Close()
		return errors.New("the sandbox was detached")
	default:
	}
	e.sw = newSandbox(sandboxConfig{
		inner: e.attachment.Inner.As4(), dev: dev, paths: []*path{e.link.path},
		clock: s.clock, pool: e.network.pool, count: &s.count, log: s.cfg.Log.With("sandbox", e.attachment.ID),
	})
	e.sw.start()
	l, gw := e.link, e.link.gateway
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	if err := s.prove(ctx, l); err != nil {
		return fmt.Errorf("no answer through the tunnel to gateway host %s (%v) within %v; check that UDP reaches that address and that the gateway runs: %w",
			gw.Host, gw.Endpoint, proofTimeout, err)
	}
	return nil
}

// prove waits until a probe through the tunnel was answered. WireGuard itself
// repeats a handshake that was lost only after 5 s; a gateway also ignores one
// that follows the last within 20 ms, as when a worker's last sandbox of a
// network ends and the next begins.
func (s *Sidecar) prove(ctx context.Context, l *link) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, greetInterval)
		err := l.path.prove(attempt)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		s.mu.Lock()
		if l.silent(time.Now(), greetInterval) {
			err = l.greet()
		}
		s.mu.Unlock()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

// detach ends a sandbox: packets first, then the control plane is told. It says
// whether there was one, and returns when all is done, also where somebody else
// has begun.
func (s *Sidecar) detach(ctx context.Context, id, why string) bool {
	s.mu.Lock()
	e, leaving := s.entries[id], s.leaving[id]
	if e == nil {
		s.mu.Unlock()
		if leaving == nil {
			return false
		}
		select {
		case <-leaving:
		case <-ctx.Done():
		}
		return true
	}
	delete(s.entries, id)
	leaving = make(chan struct{})
	s.leaving[id] = leaving
	e.timer.Stop()
	close(e.gone)
	sw, proxied := e.sw, e.proxied
	if sw != nil {
		s.retire(sw)
	}
	s.mu.Unlock()

	s.cfg.Log.Debug("detach", "sandbox", id, "why", why)
	if sw != nil {
		sw.stop()
	} else if proxied != nil {
		_ = proxied.Close()
	}
	if e.network != nil {
		s.mu.Lock()
		last := s.part(e)
		s.mu.Unlock()
		if last != nil {
			last.Close()
		}
	}
	s.tellDetached(ctx, id)
	s.mu.Lock()
	delete(s.leaving, id)
	s.mu.Unlock()
	close(leaving)
	return true
}

// tellDetached tells the control plane. What it does not hear now it is told
// again by reconcile.
func (s *Sidecar) tellDetached(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if err := s.forget(ctx, id); err != nil {
		s.cfg.Log.Debug("the control plane was not told of a detached sandbox; it will be", "sandbox", id, "error", err)
		s.mu.Lock()
		s.owed[id] = struct{}{}
		s.mu.Unlock()
	}
}

// forget ends an attachment at the control plane. One that it does not know is no error.
func (s *Sidecar) forget(ctx context.Context, id string) error {
	err := s.cfg.Control.Detach(ctx, id)
	var said *api.Error
	if errors.As(err, &said) && said.Code == api.CodeNotFound {
		return nil
	}
	return err
}
