package gateway

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// Packets to peered networks, and from them:
//
//	sandbox -> Forwarder.Write -> policy: peering -> peered table -> site tunnel -> other side
//	sandbox <- Forwarder.Read  <- returned queue  <- peered table <- site tunnel <- other side
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
	// ranges finds the peering connection of an address; nil: there is none.
	ranges *bart.Fast[*peeringCounters]
	// device leads to the site tunnel or, on the other host, to the relay tunnel. It is
	// nil while that is not up.
	device *siteDevice
	// table tracks the flows; nil on a host that has not the site.
	table *peeredTable
}

// find returns the peering connection of an address of another side, or nil.
func (w *peered) find(a netip.Addr) *peeringCounters {
	if w.ranges == nil {
		return nil
	}
	c, _ := w.ranges.Lookup(a)
	return c
}

// peeringCounters count what passed of one peering connection, by [Direction].
type peeringCounters struct {
	packets, bytes [2]atomic.Uint64
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
