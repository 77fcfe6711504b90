package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
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
	host       string          // the gateway host that it prefers
	listed     string          // the one that the control plane named first
	group      *group          // of those that prefer the same
	passive    *passive        // nil: it has no passive network
	timer      *time.Timer     // ends a waiting one
	claimed    bool
	sw         *sandbox
	proxied    *proxied      // its device, where it asked for proxies
	warned     bool          // that it could not be attached again
	place      *placed       // the namespace that it was attached in; nil: it brought its device
	gone       chan struct{} // closed by detach
}

// attach asks the control plane to attach a sandbox and makes its tunnels. An
// error that is no [*api.Error] is a failure here.
func (s *Sidecar) attach(ctx context.Context, req sandboxRequest) (Attached, error) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	resp, err := s.cfg.Control.Attach(ctx, api.AttachRequest{
		Project: req.Project, Environment: req.Environment, Kind: req.Kind, Runtime: req.Runtime,
		Region: s.cfg.Region, PublicKey: s.key.Public().String(),
	})
	if err != nil {
		return Attached{}, controlError(err)
	}
	a := resp.Attachment
	e, err := s.admit(resp)
	if err != nil {
		s.tellDetached(context.WithoutCancel(ctx), s.home, a.ID)
		return Attached{}, err
	}
	s.cfg.Log.Info("sandbox attached", "sandbox", a.ID, "project", req.Project, "environment", req.Environment, "network", a.Network, "bypass", string(a.Bypass))
	if a.Bypass != "" {
		return Attached{ID: a.ID, Bypass: a.Bypass}, nil
	}
	s.startPassive(e)
	s.mu.Lock()
	second := e.passive.status()
	s.mu.Unlock()
	dns := resp.Network.DNS[:min(len(resp.Network.DNS), maxNameServers)]
	out := Attached{
		ID: a.ID, Network: a.Network, Inner: a.Inner, DNS: dns, MTU: e.network.info.MTU, Hide: s.hidden(resp.Passive),
		Passive: second,
	}
	if !req.Proxy {
		return out, nil
	}
	if out.Proxies, err = s.offer(e, out); err != nil {
		s.detach(context.WithoutCancel(ctx), a.ID, "it could not have proxies")
		return Attached{}, err
	}
	return out, nil
}

// hidden lists what a sandbox must not find: a passive region's control plane may be
// at a socket of this machine, too.
func (s *Sidecar) hidden(passive *api.PassiveRegion) []string {
	if passive == nil {
		return s.cfg.Hide
	}
	socket, ok := strings.CutPrefix(passive.API, "unix://")
	if !ok || !filepath.IsAbs(socket) || slices.Contains(s.cfg.Hide, socket) {
		return s.cfg.Hide
	}
	return append(slices.Clone(s.cfg.Hide), socket)
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
		n, err := s.join(s.home, resp)
		if err != nil {
			return nil, err
		}
		e.network = n
		e.host, e.listed = preferred(resp.Gateways)
		s.regroup(e)
		if resp.Passive != nil {
			s.wantPassive(e, *resp.Passive)
		}
	} else {
		s.bypassTotal[a.Bypass]++
	}
	delete(s.home.owed, a.ID)
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
		inner: e.attachment.Inner.As4(), dev: dev,
		clock: s.clock, pool: e.network.pool, count: &s.count, log: s.cfg.Log.With("sandbox", e.attachment.ID),
	})
	s.settle(e)
	e.sw.start()
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	if gateways, err := s.prove(ctx, e); err != nil {
		return fmt.Errorf("no answer through the tunnels to gateway hosts %s within %v; check that UDP reaches these addresses and that a gateway runs: %w",
			strings.Join(gateways, ", "), proofTimeout, err)
	}
	return nil
}

// settle gives a sandbox its routes and makes it known in its networks. The caller
// holds the lock.
func (s *Sidecar) settle(e *entry) {
	s.reroute(e, e.network.watch.followed())
	e.network.watch.join(e.group, e.sw)
	e.network.sandboxes.add(e.sw.inner, resident{sandbox: e.sw})
	if p := e.passive; p != nil && p.joined != nil {
		p.joined.sandboxes.add(p.attachment.Inner.As4(), resident{sandbox: e.sw, there: &p.there})
	}
}

// unsettle is the opposite: no packet finds the sandbox any more. The caller holds
// the lock.
func (s *Sidecar) unsettle(e *entry) {
	e.network.watch.leave(e.group, e.sw)
	if e.sw == nil {
		return
	}
	e.network.sandboxes.remove(e.sw.inner, e.sw)
	if p := e.passive; p != nil && p.joined != nil {
		p.joined.sandboxes.remove(p.attachment.Inner.As4(), e.sw)
	}
}

// prove waits until a probe through any of a sandbox's tunnels was answered: a
// gateway that is dead keeps no sandbox from running as long as another lives. It
// returns who was asked. WireGuard itself repeats a handshake that was lost only
// after 5 s; a gateway also ignores one that follows the last within 20 ms, as
// when a worker's last sandbox of a network ends and the next begins.
func (s *Sidecar) prove(ctx context.Context, e *entry) ([]string, error) {
	for {
		s.mu.Lock()
		links, names := s.linksOf(e)
		s.mu.Unlock()
		attempt, cancel := context.WithTimeout(ctx, greetInterval)
		err := proveAny(attempt, links)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return names, err
		}
		if err := s.greetAll(links); err != nil {
			return names, err
		}
	}
}

// greetAll shakes hands anew through tunnels that are silent. Its error is that this
// cannot be done for any.
func (s *Sidecar) greetAll(links []*link) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, l := range links {
		if l.silent(time.Now(), greetInterval) {
			if err := l.greet(); err != nil {
				errs = append(errs, err)
			}
		}
	}
	if len(errs) < len(links) {
		return nil
	}
	return errors.Join(errs...)
}

// linksOf lists a sandbox's tunnels and says where they lead. The caller holds the lock.
func (s *Sidecar) linksOf(e *entry) (links []*link, names []string) {
	networks := []*network{e.network}
	if p := e.passive; p != nil && p.joined != nil {
		networks = append(networks, p.joined)
	}
	for _, n := range networks {
		for _, l := range n.links {
			links = append(links, l)
			names = append(names, fmt.Sprintf("%s (%v)", l.gateway.Host, l.gateway.Endpoint))
		}
	}
	slices.Sort(names)
	return links, names
}

// proveAny waits until one of some tunnels has proven that it works.
func proveAny(ctx context.Context, links []*link) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan error, len(links))
	for _, l := range links {
		go func() { results <- l.path.prove(ctx) }()
	}
	proven := false
	errs := make([]error, 0, len(links))
	for range links {
		err := <-results
		if err == nil {
			proven = true
			cancel() // nobody asks any longer when this returns
		}
		errs = append(errs, err)
	}
	if proven {
		return nil
	}
	return errors.Join(errs...)
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
	if e.place != nil {
		delete(s.places, e.place.id)
	}
	leaving = make(chan struct{})
	s.leaving[id] = leaving
	e.timer.Stop()
	close(e.gone)
	sw, proxied := e.sw, e.proxied
	if sw != nil {
		s.retire(sw)
	}
	if e.network != nil {
		s.unsettle(e)
	}
	s.mu.Unlock()

	s.cfg.Log.Info("sandbox detached", "sandbox", id, "why", why)
	if sw != nil {
		sw.stop()
	} else if proxied != nil {
		_ = proxied.Close()
	}
	second := s.partEntry(e)
	s.tellDetached(ctx, s.home, id)
	if second.id != "" {
		s.tellPassive(ctx, second)
	}
	s.mu.Lock()
	delete(s.leaving, id)
	s.mu.Unlock()
	close(leaving)
	return true
}

// partEntry takes a sandbox that has ended out of its networks and ends their
// tunnels if it was the last. It returns its attachment in a passive region.
func (s *Sidecar) partEntry(e *entry) owedID {
	if e.network == nil {
		return owedID{}
	}
	var second owedID
	s.mu.Lock()
	if p := e.passive; p != nil && p.joined != nil {
		second = owedID{plane: p.plane, id: p.attachment.ID}
	}
	gone := s.partPassive(e)
	own := s.part(e.network)
	s.mu.Unlock()
	if own != nil {
		e.network.watch.end()
	}
	closeLinks(append(gone, own...))
	return second
}
