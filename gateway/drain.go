package gateway

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// drainState is what becomes of new flows of one dedicated IP.
type drainState = uint32

const (
	// flowing: its inner addresses leave from it, and from nowhere else: when it is
	// exhausted they are refused.
	flowing drainState = iota
	// draining: it gives out no ports. What it holds goes on; all else of its
	// inner addresses leaves from the other IP, where that is held here.
	draining
	// returning: it was draining. New flows leave from it again, and those that began
	// on the other IP meanwhile go on there. It ends when there are none.
	returning
)

// SetDraining says whether a dedicated IP that this host holds is drained: it takes no
// new flows, and those that it has go on until they end by themselves. New flows of its
// inner addresses leave from the other IP of the pair where this host holds it,
// and are refused otherwise. It reports an error for an IP that is not held here.
func (f *Forwarder) SetDraining(ip netip.Addr, on bool) error {
	side := f.sideOf(ip)
	if side < 0 {
		return fmt.Errorf("drain %v: this host does not hold that IP of %v", ip, f.name)
	}
	next := flowing
	switch before := f.drains[side].Load(); {
	case on:
		next = draining
	case before != flowing && f.tables[1-side].nat != nil:
		next = returning
	}
	// Whoever sees the table drain must see the other one take over.
	f.drains[side].Store(next)
	f.withTable(ip, func(t *nat.Table) { t.SetDraining(on) })
	return nil
}

// Draining reports whether a dedicated IP is drained.
func (f *Forwarder) Draining(ip netip.Addr) bool {
	side := f.sideOf(ip)
	return side >= 0 && f.drains[side].Load() == draining
}

// share settles for each packet of IPs that drain, or did, which table it goes to: the
// one that holds its flow. It returns the table that goes first: one that drains, because
// it may still give packets to the other.
func (f *Forwarder) share(b *egressBatch, now packet.Instant) (first int8) {
	states := [2]drainState{f.drains[0].Load(), f.drains[1].Load()}
	if states == [2]drainState{} || f.tables[0].nat == nil || f.tables[1].nat == nil {
		return 0
	}
	var settled [batchSize]bool
	for side, state := range states {
		switch state {
		case draining:
			f.keepHeld(b, &settled, int8(side), int8(side), now)
		case returning:
			f.keepHeld(b, &settled, int8(side), int8(1-side), now)
		}
	}
	if states[1] == draining {
		return 1
	}
	return 0
}

// keepHeld gives those packets of a side to the table of holder that belong to what it
// holds, and the others to the other table.
func (f *Forwarder) keepHeld(b *egressBatch, settled *[batchSize]bool, side, holder int8, now packet.Instant) {
	t := &f.tables[holder]
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range b.n {
		if b.side[i] != side || settled[i] {
			continue
		}
		settled[i] = true
		if t.nat.Holds(&b.packets[i], now) {
			b.side[i] = holder
		} else {
			b.side[i] = 1 - holder
		}
	}
}

// yields reports whether a packet for which a drained table holds nothing goes to the
// other table instead of being refused.
func (f *Forwarder) yields(side int8) bool {
	return f.tables[1-side].nat != nil && f.drains[side].Load() == draining && f.drains[1-side].Load() != draining
}

// returnStep is how many inner addresses are looked at under a table's lock at a time.
const returnStep = 256

// settleReturns ends the returning state of IPs whose inner addresses have nothing left
// on the other IP.
func (f *Forwarder) settleReturns() {
	for side := range f.drains {
		if f.drains[side].Load() == returning && !f.strays(side) {
			f.drains[side].CompareAndSwap(returning, flowing)
		}
	}
}

// strays reports whether inner addresses of a side hold something on the other IP.
func (f *Forwarder) strays(side int) bool {
	r, t := f.rules.Load(), &f.tables[1-side]
	step := make([]netip.Addr, 0, returnStep)
	look := func() (found bool) {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, a := range step {
			found = found || t.nat.HoldsFor(a)
		}
		step = step[:0]
		return found
	}
	if r.side(f.gateway) == side {
		step = append(step, f.gateway)
	}
	for a := range r.policy.Subjects() {
		if r.side(a) != side {
			continue
		}
		if step = append(step, a); len(step) == returnStep && look() {
			return true
		}
	}
	return look()
}

// setDraining drains those IPs of the pair that are named and held here, and no others.
// Where that is all of them probes are answered with it, so that sidecars begin new
// flows at the sibling host.
func (n *network) setDraining(ips []netip.Addr) {
	all := true
	// What ends goes first: when one IP takes the other's place there is always one that
	// takes new flows.
	for _, on := range [2]bool{false, true} {
		for side, ip := range n.pair {
			if n.held[side] && slices.Contains(ips, ip) == on {
				all = all && on
				n.drain(ip, on)
			}
		}
	}
	n.health.drained.Store(all)
}

// drain is setDraining for one IP that is held here.
func (n *network) drain(ip netip.Addr, on bool) {
	if n.fwd.Draining(ip) == on {
		return
	}
	if err := n.fwd.SetDraining(ip, on); err != nil {
		n.log.Error("dedicated IP not drained", "ip", ip, "error", err)
		return
	}
	n.log.Info("dedicated IP drained or back", "ip", ip, "draining", on)
}
