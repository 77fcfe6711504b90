package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway/service"
	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/policy"
	"github.com/sallyport-net/sallyport/tunnel"
)

const (
	// tunnelMTU is the inner MTU, in bytes.
	tunnelMTU = spec.TunnelMTU
	// tick is how often a network's tables are swept, and their events drained:
	// a table keeps 8192, two for each connection that comes and goes.
	tick = 100 * time.Millisecond
	// sweepBudget is how many records are looked at under a table's lock at a time.
	sweepBudget = 4096
	// sweepRound is within how many ticks all records of a table are looked at.
	sweepRound = 40
	// insistInterval is the pause between attempts to reach the host with the site.
	insistInterval = time.Second
)

// network is one network on this host: its Forwarder, what the Forwarder wraps,
// and the tasks beside the packet path.
//
// It is open from openNetwork until close, which anyone may call, or until its
// tunnel ends by itself, which is a failure. What it was opened for does not
// change: a network that is to be another is closed and opened again. Its site tunnel
// comes, changes and goes while it is open (site.go).
type network struct {
	id     string
	cidr   netip.Prefix
	pair   [2]netip.Addr
	held   [2]bool // which of the pair this host holds
	log    *slog.Logger
	clock  Clock
	fwd    *Forwarder
	up     uplink.Uplink
	svc    *service.Services
	tun    *tunnel.Tunnel
	public tunnel.Key

	translation translation // by which its tables were made
	sessions    int         // as many as one of them may have

	hostSide *hostSide // has led the addresses here, and takes that back
	health   health    // what probes are answered with
	checks   *checks   // how it is found out

	siteMu   sync.Mutex               // guards what follows; never taken on the packet path
	site     *site                    // nil while there is none
	peerings map[string]*peeringState // of active peering connections, by ID
	wires    Wires
	offload  tunnel.Offload // of its tunnels
	// wireDrops are the packets that wires did not carry which are closed, by reason.
	wireDrops [packet.NumOutcomes]uint64

	siteFailure string // what the log was told of the site last; the follower's

	former contacts // of the network's former life, until its members are set; the follower's

	started bool         // its tasks run; the supervisor's
	members members      // the follower's
	peers   atomic.Int64 // how many WireGuard peers there are
	closing atomic.Bool  // somebody asked for its end
	closed  sync.Once
}

// translation is what a network says of its tables. They are made by it, so that a
// network with another one is opened again.
type translation struct {
	mapping spec.TCPMapping
	block   int
	timers  spec.Timers
	limits  spec.Limits
}

func translationOf(n spec.Network) translation {
	return translation{n.TCPMapping, n.PortBlock, n.Timers, n.Limits}
}

// errTunnelEnded says that a network ended though nobody asked for it.
var errTunnelEnded = errors.New("the WireGuard device ended by itself: reading from the uplink failed")

// openNetwork builds everything of one network and brings its WireGuard device
// up on port. On an error nothing is left behind.
func openNetwork(h *Host, n spec.Network, snapshot *policy.Snapshot) (_ *network, err error) {
	cfg := &h.cfg
	net := &network{
		wires: cfg.Wires, offload: tunnelOffload(cfg.Daemon),
		id: n.ID, cidr: n.CIDR, pair: n.Pair, held: h.holds(n), translation: translationOf(n),
		log: cfg.Log.With("network", n.ID), clock: cfg.Clock, members: newMembers(),
		health: health{draining: &h.draining}, checks: h.checks, hostSide: h.hostSide,
	}
	var undo []func()
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
			err = fmt.Errorf("network %s: %w", n.ID, err)
		}
	}()

	gw := n.Gateway()
	fc := ForwarderConfig{
		Name: "sallyport-" + n.ID, Network: n.CIDR, Gateway: gw, External: n.Pair,
		MTU: tunnelMTU, Clock: cfg.Clock, Resolvers: cfg.Daemon.DNS.Upstreams,
		Policy: snapshot,
		Reassembly: packet.ReassemblyConfig{
			MaxBytes: cfg.Daemon.Limits.FragmentBytes, MaxPerSource: cfg.Daemon.Limits.FragmentBytesPerSandbox,
		},
	}
	if err := net.openTables(cfg, n, &fc); err != nil {
		return nil, err
	}
	if err := net.openUplink(h, n, fc.Reassembly); err != nil {
		return nil, err
	}
	undo = append(undo, func() { net.closeUplink() })
	fc.Uplink = net.up

	net.svc, err = service.New(service.Config{
		Address: gw, Network: n.CIDR, MTU: tunnelMTU,
		Upstreams: cfg.Daemon.DNS.Upstreams, Health: &net.health,
	})
	if err != nil {
		return nil, fmt.Errorf("local services on %s: %w", gw, err)
	}
	undo = append(undo, func() { net.svc.Close() })
	fc.Local = net.svc.Device()

	if net.fwd, err = NewForwarder(fc); err != nil {
		return nil, err
	}
	key, err := tunnel.DeriveKey(cfg.Secret, n.ID)
	if err != nil {
		return nil, fmt.Errorf("derive the WireGuard key: %w", err)
	}
	net.public = key.Public()
	net.tun, err = tunnel.New(tunnel.Config{PrivateKey: key, ListenPort: h.ports[n.ID], Device: net.fwd, Batch: batchSize, Offload: net.offload, Log: net.log})
	return net, err
}

// openTables makes a table for each dedicated IP that is held here.
func (n *network) openTables(cfg *HostConfig, w spec.Network, fc *ForwarderConfig) (err error) {
	for i, ip := range n.pair {
		if !n.held[i] {
			continue
		}
		tc := config.NATConfig(cfg.Daemon, w, ip)
		n.sessions = tc.MaxSessions
		if _, err := rand.Read(tc.Seed[:]); err != nil {
			return fmt.Errorf("read 32 random bytes for the table of %s: %w", ip, err)
		}
		if fc.Tables[i], err = nat.New(tc); err != nil {
			return fmt.Errorf("table of %s: %w", ip, err)
		}
	}
	return nil
}

// run does the work beside the packet path until ctx ends or the network is
// closed, then closes everything of it. An error says that it failed.
func (n *network) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.svc.Run(ctx) })
	g.Go(func() error { return n.pumpLocal() })
	g.Go(func() error { return n.keep(ctx) })
	g.Go(func() error { return n.tend(ctx) })
	for side, held := range n.held {
		if held {
			g.Go(func() error { return n.watch(ctx, side) })
		}
	}
	g.Go(func() error {
		defer n.close()
		select {
		case <-ctx.Done():
		case <-n.tun.Done():
			if !n.closing.Load() {
				return errTunnelEnded
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// close ends site tunnel, tunnel, Forwarder, uplink and services. It may be called more than
// once, and returns when all is closed.
func (n *network) close() {
	n.closing.Store(true)
	n.closed.Do(func() {
		n.siteMu.Lock()
		n.closeSite()
		n.siteMu.Unlock()
		restore := n.hostSide.leave(n.id)
		n.tun.Close()
		n.fwd.Close()
		n.svc.Close()
		restore()
	})
}

// pumpLocal carries what the local services send to the Forwarder.
func (n *network) pumpLocal() error {
	dev := n.svc.Device()
	bufs, sizes := make([][]byte, dev.BatchSize()), make([]int, dev.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, tunnelMTU+wholeHeadroom)
	}
	frames := make([][]byte, 0, len(bufs))
	for {
		k, err := dev.Read(bufs, sizes, 0)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read from the local services: %w", err)
		}
		frames = frames[:0]
		for i := range k {
			if sizes[i] > 0 {
				frames = append(frames, bufs[i][:sizes[i]])
			}
		}
		n.fwd.WriteLocal(frames, 0)
	}
}

// keep sweeps the tables, and carries events between tables and uplink.
func (n *network) keep(ctx context.Context) error {
	timer := time.NewTicker(tick)
	defer timer.Stop()
	events := make([]nat.Event, 512)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-n.up.Events():
			if !ok {
				return nil
			}
			n.uplinkEvent(e)
		case <-timer.C:
			n.sweep(events)
			n.noteFull()
		}
	}
}

// tend sees to it that the site is reached and that links lead where they should. It asks
// the kernel for that, which may take long: the tables do not wait for it.
func (n *network) tend(ctx context.Context) error {
	timer := time.NewTicker(insistInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.tun.Done():
			return nil
		case <-timer.C:
			n.insist()
			n.tendLinks()
			n.locatePeers()
			n.fwd.settleReturns()
		}
	}
}

// uplinkEvent tells the table what the uplink has learnt.
func (n *network) uplinkEvent(e uplink.Event) {
	now := n.clock.Now()
	switch e.Kind {
	case uplink.PortRefused:
		n.fwd.withTable(e.Flow.External.Addr(), func(t *nat.Table) {
			t.PortRefused(nat.Flow(e.Flow), now)
		})
	case uplink.SessionClosed:
		n.fwd.withTable(e.Flow.External.Addr(), func(t *nat.Table) {
			t.Close(nat.Flow(e.Flow), now)
		})
	}
}

// sweep is one tick: what is idle expires, and the sockets of what has ended are
// closed.
func (n *network) sweep(events []nat.Event) {
	now := n.clock.Now()
	n.fwd.expireFragments(now)
	n.sweepPeered(events)
	for side, ip := range n.pair {
		steps := 1 + sessions(n.tableStats(side))/(sweepBudget*sweepRound)
		for more := true; more || steps > 0; steps-- {
			k := 0
			n.fwd.withTable(ip, func(t *nat.Table) {
				if steps > 0 {
					t.Expire(now, sweepBudget)
				}
				k = t.Drain(events)
			})
			for _, e := range events[:k] {
				n.release(e)
			}
			more = k == len(events)
		}
	}
}

// release closes the socket of a flow that has ended. Where a new connection took
// over the ports of a closed one, the socket is the new one's by now.
func (n *network) release(e nat.Event) {
	if e.Kind == nat.Closed && e.Reason != nat.ReasonReused {
		n.up.Release(uplink.Flow{Proto: e.Proto, External: e.External, Remote: e.Remote})
	}
}
