package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/policy"
)

// batchSize is the largest number of packets that one Read or Write carries. It is twice
// wireguard-go's own: what arrives together at high rates is of many flows, and the more of it
// is looked at together the more of it is joined to trains.
const batchSize = 256

// revokeStep is how many sessions are revoked under a table's lock at a time: some
// hundred microseconds.
const revokeStep = 1024

// Clock reads a monotonic clock. It must be safe for concurrent use.
type Clock interface {
	Now() packet.Instant
}

// LocalServices is the far side of packets that are addressed to the network's
// first address. Write takes packets in; the answers come back by
// [Forwarder.WriteLocal].
type LocalServices interface {
	Write(bufs [][]byte, offset int) (int, error)
}

// ForwarderConfig is what a Forwarder is made of. All fields but Resolvers are
// needed. The Forwarder closes none of them.
type ForwarderConfig struct {
	// Name is the device's name in wireguard-go's log.
	Name string
	// Network is the network's CIDR: the inner addresses.
	Network netip.Prefix
	// Gateway is the network's first address: source of the gateway's own
	// errors, address of its services.
	Gateway netip.Addr
	// Tables are the tables of the dedicated IPs that this host holds; index
	// is the IP's place in the pair, nil where another host holds it.
	Tables [2]*nat.Table
	// External are the dedicated IPs, in the order of Tables.
	External [2]netip.Addr
	// Uplink carries translated packets.
	Uplink uplink.Uplink
	// Local answers on Gateway.
	Local LocalServices
	// Policy is the first snapshot; SetPolicy replaces it.
	Policy *policy.Snapshot
	// Resolvers are the only destinations that the gateway's own services may
	// reach through the pair (DNS upstreams).
	Resolvers []netip.AddrPort
	// MTU is the tunnel's, in bytes.
	MTU int
	// Reassembly bounds the memory of fragments.
	Reassembly packet.ReassemblyConfig
	// Clock is read once per batch.
	Clock Clock
}

func (c *ForwarderConfig) validate() error {
	switch {
	case !c.Gateway.Is4() || !c.Network.Contains(c.Gateway):
		return fmt.Errorf("forwarder %s: gateway address %v is not an IPv4 address of %v", c.Name, c.Gateway, c.Network)
	case c.Tables[0] == nil && c.Tables[1] == nil:
		return fmt.Errorf("forwarder %s: this host holds neither IP of the pair %v", c.Name, c.External)
	case c.Uplink == nil || c.Local == nil || c.Policy == nil || c.Clock == nil:
		return fmt.Errorf("forwarder %s: uplink, local services, policy and clock are all needed", c.Name)
	case c.MTU < 576 || c.MTU > 65535:
		return fmt.Errorf("forwarder %s: MTU %d is outside 576..65535", c.Name, c.MTU)
	}
	return nil
}

// lockedTable is the table of one dedicated IP and its lock. No two locks are
// ever held together.
type lockedTable struct {
	mu       sync.Mutex
	nat      *nat.Table // nil where another host holds the IP
	external netip.Addr
}

// endpoint is a port of the dedicated IP.
func (t *lockedTable) endpoint(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(t.external, port)
}

// rules are what is in force at one moment. They do not change.
type rules struct {
	policy *policy.Snapshot
	// workers are the inner addresses of sidecars: they may use the local
	// services and nothing else.
	workers map[netip.Addr]struct{}
	// pinned are the inner addresses whose attachment names another IP of the pair than
	// spec.EgressIndex does, with its index; nil as a rule.
	pinned map[netip.Addr]int
}

// side says which IP of the pair an inner address leaves from.
func (r *rules) side(inner netip.Addr) int {
	if r != nil && r.pinned != nil {
		if side, ok := r.pinned[inner]; ok {
			return side
		}
	}
	return spec.EgressIndex(inner)
}

// Forwarder carries the packets of one network between its WireGuard device and its
// uplink, those of peered networks between that device and a site tunnel, and those that
// sandboxes send each other by external addresses. It is the tun.Device that wireguard-go
// reads and writes: Write is egress, Read is ingress, both named from the sandbox's side.
//
// Write may be called by many goroutines at once (one per peer), Read by one.
type Forwarder struct {
	name      string
	network   netip.Prefix
	gateway   netip.Addr
	mtu       int
	mss       uint16
	uplink    uplink.Uplink
	trains    uplink.Trains // the uplink, where it carries trains; else nil
	local     LocalServices
	resolvers map[netip.AddrPort]struct{}
	clock     Clock

	rules  atomic.Pointer[rules]
	tables [2]lockedTable
	peered atomic.Pointer[peered]
	// elsewhere holds the inner addresses that only the network's other host reaches; nil
	// where nobody asks for it.
	elsewhere atomic.Pointer[map[netip.Addr]struct{}]

	fragMu    sync.Mutex
	fragments *packet.Reassembler

	batches sync.Pool // *egressBatch
	rx      ingressBatch
	replies *replyQueue
	// returned holds what comes back from peered networks; nil before there are any.
	returned atomic.Pointer[frameQueue]
	// hairpins holds what sandboxes of the network send each other by external
	// addresses; nil before there is any.
	hairpins atomic.Pointer[frameQueue]

	drains      [2]atomic.Uint32 // drainState of each IP of the pair
	remoteError remoteBudget

	// revoked tells Read whose state ended between two calls.
	revoked revocations

	counters Counters
	events   chan tun.Event
	closed   atomic.Bool
}

var _ tun.Device = (*Forwarder)(nil)

// NewForwarder returns a Forwarder that is up. Its error names what is missing.
func NewForwarder(cfg ForwarderConfig) (*Forwarder, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	fragments, err := packet.NewReassembler(cfg.Reassembly)
	if err != nil {
		return nil, fmt.Errorf("forwarder %s: %w", cfg.Name, err)
	}
	f := &Forwarder{
		name:      cfg.Name,
		network:   cfg.Network,
		gateway:   cfg.Gateway,
		mtu:       cfg.MTU,
		mss:       uint16(cfg.MTU - 40), // RFC 6691: headers without options
		uplink:    cfg.Uplink,
		local:     cfg.Local,
		resolvers: make(map[netip.AddrPort]struct{}, len(cfg.Resolvers)),
		clock:     cfg.Clock,
		fragments: fragments,
		replies:   newReplyQueue(),
		events:    make(chan tun.Event, 1),
	}
	for _, r := range cfg.Resolvers {
		f.resolvers[r] = struct{}{}
	}
	for i := range f.tables {
		f.tables[i].nat, f.tables[i].external = cfg.Tables[i], cfg.External[i]
	}
	f.SetPolicy(cfg.Policy, nil)
	f.setPeered(&peered{})
	f.trains, _ = cfg.Uplink.(uplink.Trains)
	f.batches.New = func() any { return f.newBatch() }
	f.events <- tun.EventUp
	return f, nil
}

// Policy returns the snapshot in force and the inner addresses of sidecars. The
// caller must not change the map.
func (f *Forwarder) Policy() (*policy.Snapshot, map[netip.Addr]struct{}) {
	r := f.rules.Load()
	return r.policy, r.workers
}

// SetPolicy puts a new snapshot in force, together with the inner addresses that
// belong to sidecars themselves; the caller must not change the map afterwards.
// Flows that exist keep their state; a packet of theirs that the new snapshot
// refuses is dropped.
func (f *Forwarder) SetPolicy(s *policy.Snapshot, workers map[netip.Addr]struct{}) {
	r := &rules{policy: s, workers: workers}
	if before := f.rules.Load(); before != nil {
		r.pinned = before.pinned
	}
	f.rules.Store(r)
}

// Pin says which inner addresses leave from another IP of the pair than
// spec.EgressIndex says, by index; it holds until the next call. The caller must not
// change the map afterwards. Flows that exist are not moved.
func (f *Forwarder) Pin(pinned map[netip.Addr]int) {
	r := *f.rules.Load()
	r.pinned = pinned
	f.rules.Store(&r)
}

// Revoke removes all state of one inner address, and what waits for Read to be sent
// there, which counts as dropped, and returns how many sessions ended. When the policy
// refuses the address before, nothing makes new state for it: a batch that was decided
// earlier asks again under the table's lock.
//
// Packets of others go on meanwhile: no lock is held for longer than a step.
func (f *Forwarder) Revoke(inner netip.Addr) int {
	now, n := f.clock.Now(), 0
	more := false
	step := func(t *nat.Table) {
		ended := 0
		ended, more = t.Revoke(inner, now, revokeStep)
		n += ended
	}
	for i := range f.tables {
		t := &f.tables[i]
		for more = t.nat != nil; more; {
			t.mu.Lock()
			step(t.nat)
			t.mu.Unlock()
		}
	}
	for more = true; more; {
		more = false // where there is no such table
		f.withPeered(step)
	}
	f.revoked.add(inner)
	forgotten := f.replies.forget(inner)
	for _, q := range [...]*frameQueue{f.returned.Load(), f.hairpins.Load()} {
		if q != nil {
			forgotten += q.forget(inner)
		}
	}
	f.counters.dropMany(Ingress, packet.Unattached, forgotten)
	return n
}

// table returns the table for an inner address: the one that side names, or
// the other where this host does not hold that IP.
func (f *Forwarder) table(side int) int {
	if f.tables[side].nat == nil {
		return 1 - side
	}
	return side
}

// MTU returns the tunnel's MTU in bytes.
func (f *Forwarder) MTU() (int, error) { return f.mtu, nil }

// Name returns the device's name.
func (f *Forwarder) Name() (string, error) { return f.name, nil }

// File returns nil: there is no descriptor behind the device.
func (f *Forwarder) File() *os.File { return nil }

// Events returns the channel that wireguard-go learns from that the device is up.
func (f *Forwarder) Events() <-chan tun.Event { return f.events }

// BatchSize returns how many packets one Read or Write carries at most.
func (f *Forwarder) BatchSize() int { return batchSize }

// Close ends Read and makes Write drop. wireguard-go calls it when its device
// closes; it closes the uplink, so that a blocked Read returns.
func (f *Forwarder) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	close(f.events)
	if err := f.uplink.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close the uplink of %s: %w", f.name, err)
	}
	return nil
}

// withTable runs do on the table of one dedicated IP, under its lock; it does
// nothing where this host does not hold the IP.
func (f *Forwarder) withTable(external netip.Addr, do func(*nat.Table)) {
	side := f.sideOf(external)
	if side < 0 {
		return
	}
	t := &f.tables[side]
	t.mu.Lock()
	defer t.mu.Unlock()
	do(t.nat)
}

// fragmentBytes is the memory of datagrams from sandboxes that are not whole yet.
func (f *Forwarder) fragmentBytes() int {
	f.fragMu.Lock()
	defer f.fragMu.Unlock()
	return f.fragments.Used()
}

// expireFragments drops datagrams whose missing fragments did not come in time;
// each counts once.
func (f *Forwarder) expireFragments(now packet.Instant) {
	f.fragMu.Lock()
	n := f.fragments.Expire(now)
	f.fragMu.Unlock()
	f.counters.dropMany(Egress, packet.FragmentLimit, n)
	if t := f.peered.Load().table; t != nil {
		f.counters.dropMany(Ingress, packet.FragmentLimit, t.expireFragments(now))
	}
}
