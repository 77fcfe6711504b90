package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/policy"
)

const (
	// reportInterval is how often the host tells the control plane its counters.
	reportInterval = time.Second
	// retryInterval is the pause after the source failed.
	retryInterval = time.Second
	// startTimeout bounds the wait for the first desired state.
	startTimeout = 30 * time.Second
)

// HostConfig is what a Host is made of. All fields are needed.
type HostConfig struct {
	// Daemon holds the validated settings of the daemon.
	Daemon config.Daemon
	// Secret is the host's own 32 bytes, from which the networks' keys derive.
	Secret []byte
	// Source is followed until Run ends.
	Source Source
	// Clock is read once per batch of packets.
	Clock Clock
	// Log gets what an operator needs to know; nothing of the packet path.
	Log *slog.Logger
}

// Host is one gateway host: the networks that it serves.
type Host struct {
	cfg     HostConfig
	state   spec.State
	ports   map[string]uint16
	changed chan struct{} // poked when networks came or went

	mu       sync.Mutex // guards networks; never taken on the packet path
	networks map[string]*network

	revision uint64
	ready    atomic.Bool
	draining atomic.Bool
}

// OpenHost waits for the desired state and brings up every network that this
// host serves. When one of them cannot come up, none stays, and the error says
// which and why.
func OpenHost(ctx context.Context, cfg HostConfig) (*Host, error) {
	h := &Host{cfg: cfg, networks: map[string]*network{}, ports: map[string]uint16{}, changed: make(chan struct{}, 1)}
	wait, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	first, err := cfg.Source.Next(wait, 0)
	if err != nil {
		return nil, fmt.Errorf("wait for the desired state: %w", err)
	}
	if err := h.apply(first); err != nil {
		h.Close()
		return nil, err
	}
	h.announce()
	return h, nil
}

// announce says what is in force, once per network.
func (h *Host) announce() {
	for _, n := range h.list() {
		h.cfg.Log.Info("network up", "network", n.spec.ID, "cidr", n.spec.CIDR, "pair", n.spec.Pair,
			"wireguard_port", n.tun.ListenPort(), "public_key", n.public.String(), "uplink", n.up.String())
	}
}

// Run follows the source and reports until ctx ends, then closes every network.
// It returns an error only when a network fails.
func (h *Host) Run(ctx context.Context) error {
	defer h.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.follow(ctx) })
	g.Go(func() error { return h.reportLoop(ctx) })
	g.Go(func() error { return h.supervise(ctx, g) })
	h.poke()
	h.ready.Store(true)
	defer h.ready.Store(false)
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("gateway host %s: %w", h.cfg.Daemon.Host, err)
	}
	return nil
}

// supervise starts the tasks of networks that came up.
func (h *Host) supervise(ctx context.Context, g *errgroup.Group) error {
	for {
		for _, n := range h.list() {
			if n.started {
				continue
			}
			n.started = true
			g.Go(func() error { return n.run(ctx) })
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-h.changed:
		}
	}
}

func (h *Host) poke() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// Ready reports whether the host serves what the desired state asks of it.
func (h *Host) Ready() bool { return h.ready.Load() }

// Health is what the host answers to probes.
func (h *Host) Health() packet.Health {
	if h.draining.Load() {
		return packet.HealthDraining
	}
	return 0
}

// Close closes every network. It may be called more than once.
func (h *Host) Close() {
	h.draining.Store(true)
	for _, n := range h.list() {
		n.close()
	}
}

// list returns the networks in the order of their ids.
func (h *Host) list() []*network {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*network, 0, len(h.networks))
	for _, n := range h.networks {
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b *network) int { return strings.Compare(a.spec.ID, b.spec.ID) })
	return all
}

// follow applies what the source has, and acknowledges it once it is in force.
func (h *Host) follow(ctx context.Context) error {
	lost := false
	for {
		err := h.acknowledge(ctx)
		var u spec.Update
		if err == nil {
			u, err = h.cfg.Source.Next(ctx, h.revision)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			if !lost {
				lost = true
				h.cfg.Log.Warn("control plane lost; going on with what is known", "error", err)
			}
			if err := pause(ctx, retryInterval); err != nil {
				return err
			}
			continue
		}
		if lost {
			lost = false
			h.cfg.Log.Info("control plane is back", "revision", u.Revision)
		}
		if err := h.apply(u); err != nil {
			h.cfg.Log.Error("change of the desired state not applied in full", "revision", u.Revision, "error", err)
		}
	}
}

func (h *Host) acknowledge(ctx context.Context) error {
	if err := h.cfg.Source.Report(ctx, h.report()); err != nil {
		return fmt.Errorf("report to the control plane: %w", err)
	}
	if err := h.cfg.Source.Acknowledge(ctx, h.cfg.Daemon.Host, h.revision); err != nil {
		return fmt.Errorf("acknowledge revision %d: %w", h.revision, err)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// apply brings the host to an update: networks first, then who is attached.
func (h *Host) apply(u spec.Update) error {
	var err error
	if u.State != nil {
		h.state = *u.State
		err = h.reconcile()
	}
	byNetwork := map[string][]spec.Attachment{}
	for _, a := range u.Attached {
		byNetwork[a.Network] = append(byNetwork[a.Network], a)
	}
	for _, n := range h.list() {
		n.apply(u.Full, byNetwork[n.spec.ID], u.Detached)
	}
	h.revision = u.Revision
	return err
}

// reconcile opens networks that are new and closes those that are gone. A
// network whose addresses changed is closed and opened again.
func (h *Host) reconcile() error {
	wanted := map[string]spec.Network{}
	var ids []string
	for _, n := range h.state.Networks {
		if n.Region == h.cfg.Daemon.Region && slices.Contains(hosts(h.state, n), h.cfg.Daemon.Host) {
			wanted[n.ID] = n
			ids = append(ids, n.ID)
		}
	}
	ports, err := assignPorts(ids, PortRange(h.cfg.Daemon.WireGuard.Ports))
	if err != nil {
		return err
	}
	for _, n := range h.list() {
		w, ok := wanted[n.spec.ID]
		if ok && w.CIDR == n.spec.CIDR && w.Pair == n.spec.Pair && ports[w.ID] == h.ports[w.ID] {
			continue
		}
		n.close()
		h.mu.Lock()
		delete(h.networks, n.spec.ID)
		h.mu.Unlock()
	}
	h.ports = ports
	var failed []error
	for _, id := range ids {
		if err := h.bringUp(wanted[id]); err != nil {
			failed = append(failed, err)
		}
	}
	h.poke()
	return errors.Join(failed...)
}

func hosts(s spec.State, n spec.Network) []string {
	h := s.HostsOf(n)
	return h[:]
}

// bringUp opens a network, or gives one that is open its new policy.
func (h *Host) bringUp(n spec.Network) error {
	snapshot, err := h.compile(n)
	if err != nil {
		return fmt.Errorf("network %s: policy: %w", n.ID, err)
	}
	h.mu.Lock()
	open := h.networks[n.ID]
	h.mu.Unlock()
	if open != nil {
		open.spec = n
		open.setPolicy(snapshot)
		return nil
	}
	opened, err := openNetwork(h, n, snapshot)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.networks[n.ID] = opened
	h.mu.Unlock()
	return nil
}

// compile makes the policy of a network with nobody attached.
func (h *Host) compile(n spec.Network) (*policy.Snapshot, error) {
	mode, rules, err := config.PolicyRules(n.Policy)
	if err != nil {
		return nil, err
	}
	region, _ := h.state.Region(n.Region)
	return policy.Compile(policy.Config{
		Network: n.CIDR, Gateway: n.Gateway(), Own: h.ownAddresses(region),
		Loopback: region.Loopback(), Mode: mode, Rules: rules,
	})
}

// ownAddresses are those that no sandbox of the region may reach: the hosts'
// endpoints and bypass addresses, and every dedicated IP.
func (h *Host) ownAddresses(r spec.Region) []netip.Addr {
	var own []netip.Addr
	for _, host := range r.Hosts {
		own = append(own, host.Endpoint)
		if host.Bypass.IsValid() {
			own = append(own, host.Bypass)
		}
	}
	for _, n := range h.state.Networks {
		if n.Region == r.Name {
			own = append(own, n.Pair[:]...)
		}
	}
	return own
}

// report says what the host's networks are and have done.
func (h *Host) report() spec.HostReport {
	r := spec.HostReport{Host: h.cfg.Daemon.Host, Region: h.cfg.Daemon.Region}
	for _, n := range h.list() {
		r.Networks = append(r.Networks, n.report(h.endpoint(n)))
	}
	return r
}

// endpoint is where sidecars find the network's WireGuard device.
func (h *Host) endpoint(n *network) netip.AddrPort {
	addr := h.cfg.Daemon.WireGuard.Address
	if !addr.IsValid() {
		region, _ := h.state.Region(h.cfg.Daemon.Region)
		for _, host := range region.Hosts {
			if host.Name == h.cfg.Daemon.Host {
				addr = host.Endpoint
			}
		}
	}
	return netip.AddrPortFrom(addr, n.tun.ListenPort())
}

func (h *Host) reportLoop(ctx context.Context) error {
	t := time.NewTicker(reportInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		if err := h.cfg.Source.Report(ctx, h.report()); err != nil && ctx.Err() == nil {
			h.cfg.Log.Debug("report not taken", "error", err)
		}
	}
}

// holds reports whether this host holds pair[i] of a network.
func (h *Host) holds(n spec.Network, i int) bool {
	return h.state.HostsOf(n)[i] == h.cfg.Daemon.Host
}

// socketShare is how many sockets one network may open: an equal share of what
// the process may, so that no network takes another's.
func (h *Host) socketShare() int {
	return max(uplink.DescriptorLimit()/max(len(h.ports), 1), 1)
}
