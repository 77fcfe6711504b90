package gateway

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// Packets to peered networks, and from them:
//
//	sandbox -> Forwarder.Write -> policy: peering -> peered table -> lane -> other side
//	sandbox <- Forwarder.Read  <- returned queue  <- peered table <- lane <- other side
//
// A lane is the site tunnel, which all connections by WireGuard share, or a link that
// one connection has for itself (site_link.go): to an interface of the host, or to
// another network here. There the other network's Forwarder is the other side: it
// hands to its sandboxes what comes, and its sandboxes answer (peered_accept.go):
//
//	other Forwarder.Read  <- returned queue <- link <- lane (as above)
//	other Forwarder.Write -> policy: private, but accepted -> link -> peered table (as above)
//
// The site tunnel is on one host of the network. The other host has a relay tunnel to
// it in the same place, and no table: packets cross it as they are, in both
// directions, and the host with the site asks its own policy again. So the state of
// all such flows is in one place, whichever host a sandbox sends by.
//
// Nothing is translated: the table is one that tracks only.

// peered is how a network's peered destinations are reached at one moment. It does not
// change, but for what it points to. The zero value is a network without peerings.
type peered struct {
	// ranges finds the peering connection by which sandboxes reach an address; nil:
	// there is none.
	ranges *bart.Fast[*lane]
	// accepts finds the connection of an address that may begin towards sandboxes:
	// one of another network's sandboxes; nil: there is none.
	accepts *bart.Fast[*lane]
	// device leads to the site tunnel or, on the other host, to the relay tunnel. It is
	// nil while that is not up.
	device *siteDevice
	// relayed says that the network has another host, which relays to this one.
	relayed bool
	// links are the connections that have a device for themselves.
	links map[*siteDevice]*lane
	// table tracks the flows; nil on a host that has not the site.
	table *peeredTable
}

// find returns the peering connection by which sandboxes reach an address, or nil.
func (w *peered) find(a netip.Addr) *lane { return look(w.ranges, a) }

// accepted returns the connection of an address that may begin towards sandboxes, or nil.
func (w *peered) accepted(a netip.Addr) *lane { return look(w.accepts, a) }

func look(ranges *bart.Fast[*lane], a netip.Addr) *lane {
	if ranges == nil {
		return nil
	}
	l, _ := ranges.Lookup(a)
	return l
}

// lane is one peering connection as packets see it. It does not change, but for what it
// counts.
type lane struct {
	*peeringCounters
	// device leads to the other side; nil while there is no way. On the host without the
	// site it is the relay tunnel's.
	device *siteDevice
	// mtu is that of the way to the other side, in bytes; at most the tunnel's.
	mtu int
	// accepts says that the other side begins, and sandboxes answer.
	accepts bool
	// junction and side are where the other side is a network here; nil: it is not.
	junction *junction
	side     int
	// own are addresses among the other side's that this machine takes for itself.
	own []netip.Addr
}

// state says whether packets to an address of the other side can go there now.
func (l *lane) state(to netip.Addr) packet.Outcome {
	switch {
	case l == nil || l.device == nil, l.junction != nil && l.junction.far(l.side) == nil:
		return packet.SiteDown
	case len(l.own) > 0 && slices.Contains(l.own, to):
		return packet.OwnAddress
	}
	return packet.Pass
}

// peeringCounters count what passed of one peering connection, by [Direction], and what
// its own device brought whose source is in none of its ranges.
type peeringCounters struct {
	packets, bytes [2]atomic.Uint64
	foreign        atomic.Uint64
}

func (c *peeringCounters) passed(d Direction, bytes int) {
	c.packets[d].Add(1)
	c.bytes[d].Add(uint64(bytes))
}

// siteFragmentMemory bounds the fragments of a network that come by its site tunnel,
// in bytes.
const siteFragmentMemory = 1 << 20

// peeredTable tracks the flows of one network to its peerings. The locks are never
// held together.
type peeredTable struct {
	mu sync.Mutex
	// nat marks sessions whose packets came by way of the network's other host the last
	// time, so that the answers go there. A sandbox may have flows on both hosts.
	nat *nat.Table

	fragMu    sync.Mutex
	fragments *packet.Reassembler
}

// newPeeredTable returns a table with no flows; c.Identity is set.
func newPeeredTable(c nat.Config) (*peeredTable, error) {
	t, err := nat.New(c)
	if err != nil {
		return nil, fmt.Errorf("table of peered flows: %w", err)
	}
	fragments, err := packet.NewReassembler(packet.ReassemblyConfig{MaxBytes: siteFragmentMemory})
	if err != nil {
		return nil, fmt.Errorf("fragments of peered networks: %w", err)
	}
	return &peeredTable{nat: t, fragments: fragments}, nil
}

// expireFragments drops datagrams whose missing fragments did not come in time.
func (t *peeredTable) expireFragments(now packet.Instant) int {
	t.fragMu.Lock()
	defer t.fragMu.Unlock()
	return t.fragments.Expire(now)
}

// returnedSlots is how many packets of peered networks wait for Read at most.
const returnedSlots = 1024

// setPeered puts in force how peered destinations are reached. What the policy says
// of them is SetPolicy's.
func (f *Forwarder) setPeered(w *peered) {
	if w.device != nil && f.returned.Load() == nil {
		q := &frameQueue{}
		q.init(returnedSlots)
		f.returned.Store(q)
	}
	f.peered.Store(w)
}

// withPeered runs do on the table of peered flows, under its lock; it does nothing
// where there is none.
func (f *Forwarder) withPeered(do func(*nat.Table)) {
	if t := f.peered.Load().table; t != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		do(t.nat)
	}
}

// revokePeered ends all flows to a range. Where the policy refuses the range before,
// nothing makes new ones. Packets go on meanwhile.
func (f *Forwarder) revokePeered(remote netip.Prefix) (n int) {
	now, from := f.clock.Now(), uint32(0)
	for {
		ended, next := 0, uint32(0)
		f.withPeered(func(t *nat.Table) { ended, next = t.RevokeRemote(remote, now, from, sweepBudget) })
		if n += ended; next == 0 {
			return n
		}
		from = next
	}
}
