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
	"github.com/sallyport-net/sallyport/internal/config"
)

const (
	// reportInterval is how often the host tells the control plane its counters,
	// where nothing else happens.
	reportInterval = time.Second
	// retryInterval is the pause after the source failed.
	retryInterval = time.Second
	// reopenInterval is the pause between attempts to open networks that failed.
	reopenInterval = 2 * time.Second
	// startTimeout bounds the wait for the first desired state.
	startTimeout = 30 * time.Second
)

// HostConfig is what a Host is made of. Fields are needed unless they say otherwise.
type HostConfig struct {
	// Daemon holds the validated settings of the daemon.
	Daemon config.Daemon
	// Secret is the host's own 32 bytes, from which the networks' keys derive.
	Secret []byte
	// RegionSecret is the 32 bytes that all hosts of the region share, from which
	// the keys of site tunnels derive; nil: there is none.
	RegionSecret []byte
	// Source is followed until Run ends.
	Source Source
	// Wires opens the interfaces of peerings that have one; nil: this machine's.
	Wires Wires
	// Clock is read once per batch of packets.
	Clock Clock
	// Log gets what an operator needs to know; nothing of the packet path.
	Log *slog.Logger
}

// Host is one gateway host: the networks that it serves. They stand and fall
// each for itself: one that cannot be opened, or ends by itself, is opened again
// after a while, and the others go on.
type Host struct {
	cfg HostConfig

	// What follows is OpenHost's, and then the follower's, who alone changes it and
	// holds known for that. The keeper of the state file reads it.
	known     sync.Mutex
	state     spec.State
	ports     map[string]uint16
	relays    map[string]uint16    // ports of tunnels to hosts with a site, by network
	junctions map[string]*junction // where networks meet, by peering
	roster    roster
	at        spec.Cursor // what is in force; the zero value asks for everything

	machine []netip.Addr // this machine's addresses, by the policies; the follower's
	looked  time.Time    // when they were looked up; the follower's
	retried time.Time    // when failed networks were last opened again; the follower's
	trouble string       // what the log was told last; the follower's
	away    bool         // the control plane is lost; the follower's
	swept   bool         // what a former life left for peerings by interface is gone; the follower's

	reported     time.Time // when the control plane was last told what this host has; the follower's
	saidDraining bool      // whether that was said then; the follower's
	unreported   bool      // it may have to be told anew before that; the follower's

	keeper   *keeper
	checks   *checks
	hostSide *hostSide

	changed chan struct{} // poked when networks came or went

	mu       sync.Mutex // guards what follows; never taken on the packet path
	networks map[string]*network
	address  netip.Addr // where sidecars find the WireGuard devices

	// failures counts networks that could not be opened or ended by
	// themselves; settled is how many of them everything was applied after.
	failures, settled atomic.Uint64
	ready             atomic.Bool
	reading           atomic.Bool // an operator reads a table out
	draining          atomic.Bool
}

// OpenHost brings up every network that this host serves.
//
// Where there is a state file, networks, members and the way to their tunnels are
// what it says, at once; what the control plane says otherwise is Run's business,
// and what cannot be brought up so is tried again. A file that is damaged or
// another's is passed over, and the log says so.
//
// Else OpenHost waits for the desired state. When one of the networks cannot come
// up then, none stays, and the error says which and why.
func OpenHost(ctx context.Context, cfg HostConfig) (*Host, error) {
	if cfg.Wires == nil {
		cfg.Wires = machine{}
	}
	side, err := newHostSide(cfg.Daemon, cfg.Log)
	if err != nil {
		return nil, err
	}
	h := &Host{
		cfg: cfg, hostSide: side, networks: map[string]*network{}, ports: map[string]uint16{}, roster: newRoster(), junctions: map[string]*junction{},
		keeper: newKeeper(), checks: newChecks(cfg.Daemon), changed: make(chan struct{}, 1),
	}
	if h.restore() {
		return h, nil
	}
	first, err := h.first(ctx)
	if err != nil {
		h.Close()
		return nil, err
	}
	if err := h.apply(first); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// first waits for the control plane's first word.
func (h *Host) first(ctx context.Context) (spec.Update, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for told := false; ; told = true {
		u, err := h.cfg.Source.Next(ctx, spec.Cursor{})
		if err == nil {
			return u, h.expected(u)
		}
		if !told && ctx.Err() == nil {
			h.cfg.Log.Warn("waiting for the control plane; nothing is known that could be served without it", "for", startTimeout, "error", err)
		}
		if pause(ctx, retryInterval) != nil {
			return u, fmt.Errorf("wait for the desired state: %w", err)
		}
	}
}

// expected reports an error where the desired state does not have this host.
func (h *Host) expected(u spec.Update) error {
	d := h.cfg.Daemon
	region, ok := u.State.Region(d.Region)
	if !ok {
		return fmt.Errorf("the desired state has no region %q: correct region in the configuration, or add it", d.Region)
	}
	if !slices.ContainsFunc(region.Hosts, func(s spec.Host) bool { return s.Name == d.Host }) {
		return fmt.Errorf("region %s of the desired state has no host %q: correct host in the configuration, or add it", d.Region, d.Host)
	}
	return nil
}

// Run follows the source and reports until ctx ends. Then it drains: for the
// configured time probes are answered with that, while all else goes on. At last
// it closes every network, and returns nil.
func (h *Host) Run(ctx context.Context) error {
	defer h.Close()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g, life := errgroup.WithContext(life)
	leaving, leave := context.WithCancel(life)
	defer leave()
	g.Go(func() error { return h.follow(life, leaving) })
	g.Go(func() error { return h.supervise(life, g) })
	g.Go(func() error { return h.remember(life) })
	g.Go(func() error { return h.hostSide.tend(life) })
	g.Go(func() error {
		defer end()
		select {
		case <-ctx.Done():
		case <-life.Done():
		}
		h.draining.Store(true)
		leave()
		return h.drain(life)
	})
	h.poke()
	h.ready.Store(true)
	defer h.ready.Store(false)
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("gateway host %s: %w", h.cfg.Daemon.Host, err)
	}
	return nil
}

// drain goes on for the configured time, so that whoever probes hears of it and
// goes elsewhere. At its end the peers' whereabouts are noted, while they can be.
func (h *Host) drain(ctx context.Context) error {
	if d := h.cfg.Daemon.Drain; d > 0 {
		h.cfg.Log.Info("draining", "for", d)
		if err := pause(ctx, d); err != nil {
			return err
		}
	}
	h.sample()
	return nil
}

// supervise starts the tasks of networks that came up.
func (h *Host) supervise(ctx context.Context, g *errgroup.Group) error {
	told := make(map[offloads]struct{})
	for {
		for _, n := range h.list() {
			if n.started {
				continue
			}
			n.started = true
			g.Go(func() error {
				h.tend(ctx, n)
				return nil
			})
		}
		h.tellOffloads(told)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-h.changed:
		}
	}
}

// tend runs a network to its end. One that ends by itself makes room for its
// successor.
func (h *Host) tend(ctx context.Context, n *network) {
	err := n.run(ctx)
	if err == nil || ctx.Err() != nil {
		return
	}
	n.log.Error("network failed; it is closed, and opened again soon", "error", err)
	h.forget(n)
	h.failures.Add(1)
}

func (h *Host) poke() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// Ready reports whether the host serves all that the desired state asks of it.
func (h *Host) Ready() bool { return h.ready.Load() && !h.unsettled() && !h.draining.Load() }

// unsettled reports whether a network that should be open may not be.
func (h *Host) unsettled() bool { return h.failures.Load() != h.settled.Load() }

// Close closes every network and takes back what the host was given for them. It may be
// called more than once.
func (h *Host) Close() {
	h.draining.Store(true)
	for _, n := range h.list() {
		n.close()
	}
	h.hostSide.close()
}

// list returns the networks in the order of their ids.
func (h *Host) list() []*network {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*network, 0, len(h.networks))
	for _, n := range h.networks {
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b *network) int { return strings.Compare(a.id, b.id) })
	return all
}

// forget takes a network out of the list, unless its successor is there.
func (h *Host) forget(n *network) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.networks[n.id] == n {
		delete(h.networks, n.id)
	}
}

// report says what the host's networks are and have done.
func (h *Host) report() spec.HostReport {
	h.mu.Lock()
	address := h.address
	h.mu.Unlock()
	r := spec.HostReport{Host: h.cfg.Daemon.Host, Region: h.cfg.Daemon.Region, Draining: h.draining.Load()}
	for _, n := range h.list() {
		report := n.report(netip.AddrPortFrom(address, n.tun.ListenPort()))
		report.Uplink, report.UplinkChecked = h.cfg.Daemon.Uplink, len(h.cfg.Daemon.Health.Targets) > 0
		r.Networks = append(r.Networks, report)
	}
	return r
}
