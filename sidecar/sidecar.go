// Package sidecar is the worker's end of the tunnels: one process for all
// sandboxes of a worker.
//
// # The life of a packet
//
// A sandbox has one interface, whose far end is a descriptor here. One goroutine
// per sandbox reads it in batches (sandbox.go): the source must be exactly the
// sandbox's inner address (inspect.go), the flow's route is looked up or chosen
// (flow.go), and the packets are queued to that route's path (queue.go), with the
// addresses that the sandbox has in the path's network. A path is the packet device
// of one WireGuard tunnel (path.go), which takes them from the queue, encrypts and
// sends. Back: WireGuard hands a batch to the path, which writes each run of one
// destination to the sandbox that has this address, and to no other.
//
// # Gateways
//
// There is one tunnel per network and gateway host (network.go), made with the first
// attachment and closed with the last; its key is made at the start of the
// process and never stored. A sandbox runs only after a probe through one of its
// tunnels was answered (proof.go). Where its environment has a passive network, in
// another region, it is attached there too (passive.go).
//
// One watch per network (watch.go) probes all gateways that its sandboxes may use,
// from an address of the worker's own, and decides with package failover which one
// new flows take. A flow stays where it began. When its gateway is lost, the
// sandbox is told at once (sweep.go): connections are reset, and those that are
// still opening are opened by way of another gateway.
//
// Control planes are told what is attached and asked what has changed by reconcile
// (reconcile.go); none of them is needed for packets to flow, or to switch.
//
// # The local API
//
// JSON over HTTP on a Unix socket that only the sidecar's user can open. An
// error is {"error": {"code": "...", "message": "..."}}, as in the control API.
//
//	POST   /v1/sandboxes             {project, environment, kind, runtime, proxy,
//	                                 namespace: {path, pid, ethernet, link, owner, otherLinks, resolvConf}}
//	                                 -> 201 {id, bypass} or {id, network, inner, dns, mtu, hide, passive,
//	                                 proxies: {socks5, http, user, password},
//	                                 interface: {name, kind, cidr, mac, gateway, gatewayMAC}}
//	POST   /v1/sandboxes/{id}/device Upgrade: sallyport-device -> 101, then as
//	                                 package handover says
//	DELETE /v1/sandboxes/{id}        -> 204
//	GET    /v1/sandboxes             all, with counters
//	GET    /v1/status                the sidecar, its tunnels and the control plane
//
// A sandbox whose device does not come within 10 s is detached, and so is one
// whose connection ends. What bypasses has no device, and is held by a
// connection all the same.
//
// A sandbox that names a network namespace (namespace.go) needs no connection: its
// interface is made there before the answer (package inlet), and it lives until it is
// detached, or until the interface or the process that was named ends. Only root and
// the sidecar's user may ask for that.
//
// A connection also holds a sandbox that asked for proxies: its device is made here, a TCP/IP stack
// whose connections are those of a SOCKS5 and HTTP server on the worker's
// loopback (proxied.go, package proxy). Nothing makes its command use them, so that
// it is said to be proxied wherever it is listed.
package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/tundev"
	"github.com/sallyport-net/sallyport/sidecar/failover"
	"github.com/sallyport-net/sallyport/sidecar/inlet"
	"github.com/sallyport-net/sallyport/tunnel"
)

// Control is what a sidecar asks of the control plane; [*api.Client] is one.
type Control interface {
	// Attach returns when the gateway is ready for the sandbox.
	Attach(ctx context.Context, req api.AttachRequest) (api.AttachResponse, error)
	Detach(ctx context.Context, id string) error
	// Attachments lists those of all workers.
	Attachments(ctx context.Context) ([]spec.Attachment, error)
}

// Config is what a sidecar is made of.
type Config struct {
	// Control is the control plane of the worker's region.
	Control Control
	// Region is the name of that region.
	Region string
	// Socket is the path of the local API's socket. Its folder is made if it does
	// not exist, and must be nobody else's, because sandboxes see it empty.
	Socket string
	// Hide are the absolute paths of what else sandboxes must not find: the file of
	// the control plane's token, and its socket.
	Hide []string
	// Admin is where metrics are served over HTTP; not valid: nowhere.
	Admin netip.AddrPort
	// Regions finds the control planes of other regions. Nil: no sandbox has a
	// passive network.
	Regions Regions
	// Failover is when sandboxes leave a gateway for another. Its Linger is that below.
	Failover failover.Config
	// Linger is how long flows may stay with a gateway that new ones do not take any
	// more; 0 is 10 minutes.
	Linger time.Duration
	// NoOffload has the kernel hand over every packet of a sandbox by itself, and with its
	// checksum, rather than up to 64 KiB at once.
	NoOffload bool
	// Sockets is what the kernel is not asked for the tunnels' UDP sockets.
	Sockets tunnel.Offload
	// Log is where the sidecar says what it does. Nil is silence.
	Log *slog.Logger
}

// Regions finds the control planes of other regions, where passive networks are.
type Regions interface {
	// Control returns that of a region, without calling it. Address is where the
	// desired state says that it is; it may be empty.
	Control(region, address string) (Control, error)
}

// defaultLinger is the Linger of a Config without.
const defaultLinger = 10 * time.Minute

// validate fills defaults in and says what is wrong.
func (c *Config) validate() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Linger == 0 {
		c.Linger = defaultLinger
	}
	c.Failover.Linger = c.Linger
	if err := c.Failover.Validate(); err != nil {
		return fmt.Errorf("failover: %w", err)
	}
	switch {
	case c.Control == nil:
		return errors.New("no control plane was given")
	case c.Region == "":
		return errors.New("no region was given")
	case c.Socket == "":
		return errors.New("no socket was given")
	}
	return nil
}

// Sidecar attaches sandboxes and switches their packets.
type Sidecar struct {
	cfg      Config
	key      tunnel.Key
	clock    clock
	count    counters
	switches *switchMetrics
	home     *controlPlane  // the control plane of the worker's own region
	tasks    sync.WaitGroup // first tries in passive regions, and waits for the ends of sandboxes
	scratch  tundev.Scratch // of the sandboxes' devices
	inlets   inlet.Maker    // of interfaces in namespaces of others
	// background ends when nothing is tried any more.
	background context.Context
	giveUp     context.CancelFunc

	mu          sync.Mutex // guards what follows
	entries     map[string]*entry
	leaving     map[string]chan struct{} // being detached; closed when done
	networks    map[networkKey]*network
	planes      map[string]*controlPlane       // of other regions
	bypassTotal map[string]uint64              // by reason, since the start
	places      map[hostnet.NamespaceID]string // the sandboxes in namespaces of others; empty while being attached
	closing     bool
}

// New makes a sidecar with a fresh key. It does nothing until Run.
func New(cfg Config) (*Sidecar, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("make a sidecar: %w", err)
	}
	background, giveUp := context.WithCancel(context.Background())
	return &Sidecar{
		cfg:         cfg,
		key:         tunnel.NewKey(),
		clock:       clock{base: time.Now()},
		switches:    newSwitchMetrics(),
		home:        newControlPlane(cfg.Region, cfg.Control),
		background:  background,
		giveUp:      giveUp,
		entries:     make(map[string]*entry),
		leaving:     make(map[string]chan struct{}),
		networks:    make(map[networkKey]*network),
		planes:      make(map[string]*controlPlane),
		bypassTotal: make(map[string]uint64),
		places:      make(map[hostnet.NamespaceID]string),
	}, nil
}

// Run serves until ctx ends, then detaches everything. Sandboxes that still run
// have no network from then on.
func (s *Sidecar) Run(ctx context.Context) error {
	local, err := s.listen(ctx)
	if err != nil {
		return err
	}
	admin, err := s.listenAdmin(ctx)
	if err != nil {
		_ = local.listener.Close()
		return err
	}
	s.cfg.Log.Info("the sidecar serves", "socket", s.cfg.Socket, "region", s.cfg.Region, "public_key", s.key.Public().String())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return local.run(ctx) })
	if admin != nil {
		group.Go(func() error { return admin.run(ctx) })
	}
	group.Go(func() error { return s.reconcile(ctx) })
	err = group.Wait()
	s.close()
	local.wait()
	_ = s.inlets.Close()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

const (
	// closeTimeout is how long a control plane may take to hear that a sandbox has ended.
	closeTimeout = 5 * time.Second
	// endTimeout is how long a sidecar that ends tries to tell of all; systemd gives it 15 s.
	endTimeout = 12 * time.Second
)

// close detaches everything. Nothing can be attached any more.
func (s *Sidecar) close() {
	s.mu.Lock()
	s.closing = true
	ids := make([]string, 0, len(s.entries))
	for id := range s.entries {
		ids = append(ids, id)
	}
	for id := range s.leaving {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(controlCalls)
	for _, id := range ids {
		group.Go(func() error {
			s.detach(ctx, id, "the sidecar ends")
			return nil
		})
	}
	_ = group.Wait() // nothing that it runs returns an error
	stop := context.AfterFunc(ctx, s.giveUp)
	defer stop()
	s.tasks.Wait()
	s.giveUp()
	s.tellLeft()
}

// tellLeft logs which attachments stay, because their control plane did not hear that they
// have ended. Nobody else knows it.
func (s *Sidecar) tellLeft() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range append(slices.Collect(maps.Values(s.planes)), s.home) {
		if len(p.owed) == 0 {
			continue
		}
		s.cfg.Log.Warn("the control plane was not told that sandboxes have ended; they stay in `sallyport attachments` until somebody detaches them there (sallyport detach ID ...)",
			"region", p.region, "number", len(p.owed), "attachments", slices.Sorted(maps.Keys(p.owed)))
	}
}
