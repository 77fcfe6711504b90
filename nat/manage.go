package nat

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Flow names a session, or a mapping of UDP or ICMP, as the far side sees it.
type Flow struct {
	Proto            packet.Proto
	External, Remote netip.AddrPort // Remote is not valid where a whole mapping is meant
}

// endpointOf converts an address and port; false where it is not IPv4.
func endpointOf(a netip.AddrPort) (endpoint, bool) {
	if !a.Addr().Is4() {
		return 0, false
	}
	return makeEndpoint(number(a.Addr()), a.Port()), true
}

// PortRefused tells that the kernel does not let the external port be used. Of
// TCP the connection goes and its tuple is on hold as though it had just been
// freed; of UDP and ICMP the whole mapping goes and its port is on hold. The
// next packet gets another port. A flow that the table no longer knows is held
// all the same. An identity table has no such ports and does nothing.
func (t *Table) PortRefused(f Flow, now packet.Instant) {
	t.clock(now)
	port := f.External.Port()
	if t.config.Identity || f.External.Addr() != t.config.External || !t.blank.has(port) {
		return
	}
	which := spaceOf(f.Proto)
	if f.Proto == packet.TCP {
		remote, ok := endpointOf(f.Remote)
		if !ok {
			return
		}
		if i := t.findInbound(t.inboundHash(f.Proto, port, remote), f.Proto, port, remote); i != 0 {
			t.removeSession(i, ReasonPortRefused)
		} else if t.config.TCPMapping == AddressAndPortDependent {
			t.holdTuple(makeTuple(port, remote))
		}
		return
	}
	if i := t.spaces[which].owner(port); i != 0 {
		t.removeMapping(i, ReasonPortRefused)
	} else if sp := t.spaces[which]; sp != nil && sp.set.take(port) {
		t.holdPort(which, port)
	}
}

// Close tells that the uplink has ended a session, or a whole mapping of UDP
// or ICMP where f.Remote is not valid. It is removed, and what it frees is on hold.
// An identity table has single sessions only, whose External is the inner endpoint.
func (t *Table) Close(f Flow, now packet.Instant) {
	t.clock(now)
	port := f.External.Port()
	if t.config.Identity {
		t.closeTracked(f)
		return
	}
	if f.External.Addr() != t.config.External {
		return
	}
	if remote, ok := endpointOf(f.Remote); ok {
		if i := t.findInbound(t.inboundHash(f.Proto, port, remote), f.Proto, port, remote); i != 0 {
			t.removeSession(i, ReasonUplinkClosed)
		}
		return
	}
	if i := t.spaces[spaceOf(f.Proto)].owner(port); i != 0 && f.Proto != packet.TCP {
		t.removeMapping(i, ReasonUplinkClosed)
	}
}

// Revoke removes what an inner address holds, no more than most sessions at a time,
// and returns how many they were and whether there are more. Some hundred
// nanoseconds each: whoever holds a lock lets go of it between the steps.
func (t *Table) Revoke(inner netip.Addr, now packet.Instant, most int) (ended int, more bool) {
	t.clock(now)
	if !inner.Is4() {
		return 0, false
	}
	addr := number(inner)
	i := t.findHost(t.key.sum(uint64(addr), 0), addr)
	if i == 0 {
		return 0, false
	}
	h := t.hosts.at(i)
	for ; h.sessions > 0; ended++ {
		if ended >= max(most, 1) {
			return ended, true
		}
		k := h.conns
		if k == 0 {
			k = t.mappings.at(h.mappings).first // the last one unbinds the mapping
		}
		t.removeSession(k, ReasonRevoked)
	}
	return ended, false
}

// RevokeRemote removes sessions with remotes of a prefix, and returns how many they were
// and where to go on: it begins at from, 0 at first, and has come to the end when it
// returns 0. The budget's unit is as for Expire, 1 at least.
func (t *Table) RevokeRemote(remote netip.Prefix, now packet.Instant, from uint32, budget int) (ended int, next uint32) {
	t.clock(now)
	if !remote.IsValid() || !remote.Addr().Is4() {
		return 0, 0
	}
	shift := 32 - remote.Bits()
	network := uint64(number(remote.Addr())) >> shift
	for i := max(from, 1); i < t.sessions.top; i++ {
		if budget <= 0 && i > from {
			return ended, i
		}
		budget--
		if s := t.sessions.at(i); s.state != stateFree && uint64(s.remote)>>shift == network {
			t.removeSession(i, ReasonRevoked)
			ended++
			budget -= removalCost - 1
		}
	}
	return ended, 0
}

// removalCost is what the removal of one session takes of a budget whose unit
// is a look at a record.
const removalCost = 8

// movesPerUnit is how many slots of an index that grows are moved for a unit.
const movesPerUnit = 4

// Expire goes on with the round over all records from where it stopped, takes
// away what is over, and returns the number of sessions removed. It ends after one
// round or when the budget is used up: a unit is a look at one record (some
// nanoseconds), a removal takes eight. A budget of 8192 takes a few hundred
// microseconds at most; call it so often that a round takes a few seconds.
func (t *Table) Expire(now packet.Instant, budget int) int {
	t.clock(now)
	hosts := budget/8 + 1
	budget -= t.releaseHolds(max(budget/4, 1))
	removed := t.removeDoomed(budget / removalCost)
	budget -= removed * removalCost
	moved := t.holdIndex.moved
	for left := int(t.sessions.top) - 1; left > 0 && budget > 0; left-- {
		if t.sweep++; t.sweep >= t.sessions.top {
			t.sweep = 1
		}
		budget--
		s := t.sessions.at(t.sweep)
		if s.state != stateFree && due(s.deadline, t.tick) {
			t.removeSession(t.sweep, ReasonExpired)
			removed++
			budget -= removalCost - 1 + (t.holdIndex.moved-moved)/movesPerUnit
			moved = t.holdIndex.moved
		}
	}
	t.releaseBlocks()
	t.tendCrowds(hosts/128 + 1)
	t.tendHosts(hosts)
	return removed
}

// tendHosts goes on with the round over the inner addresses, n at most.
func (t *Table) tendHosts(n int) {
	for n = min(n, int(t.hosts.top)-1); n > 0; n-- {
		if t.hostSweep++; t.hostSweep >= t.hosts.top {
			t.hostSweep = 1
		}
		t.forget(t.hostSweep)
	}
}

// countersSize is a power of two above the number of outcomes.
const countersSize = 64

// Counters count packets by outcome.
type Counters [countersSize]uint64

// Of returns the number of packets with outcome o.
func (c Counters) Of(o packet.Outcome) uint64 { return c[o&(countersSize-1)] }

// PerProtocol is a number for each protocol.
type PerProtocol [spaceCount]uint64

// Of returns the number of protocol p.
func (n PerProtocol) Of(p packet.Proto) uint64 { return n[spaceOf(p)] }

// PerReason is a number for each Reason.
type PerReason [numReasons]uint64

// Of returns the number of reason r.
func (n PerReason) Of(r Reason) uint64 {
	if r >= numReasons {
		return 0
	}
	return n[r]
}

// Stats are the counts of a table. Those of the first group go up and down,
// the others only up.
type Stats struct {
	Sessions   PerProtocol // sessions, including those whose time is over but that Expire has not met
	Mappings   int         // endpoint-independent mappings
	HalfOpen   int         // TCP connections whose handshake is not complete
	Ports      int         // external ports, as Limits.Ports counts them
	Hosts      int         // inner addresses known
	HeldTuples int         // TCP tuples on hold
	HeldPorts  int         // ports and identifiers on hold
	Blocks     int         // port blocks given out, those at rest included
	FreeBlocks int         // port blocks that are free; both are 0 without [Config.PortBlock]
	FreePorts  PerProtocol // free ports; of TCP where it is mapped endpoint-independently; 0 in an identity table
	Crowded    int         // remote endpoints towards which TCP ports are much used

	Egress, Ingress Counters    // packets by outcome
	Created         PerProtocol // sessions made
	Ended           PerReason   // sessions gone
	Refused         PerReason   // new flows refused
	HoldsShortened  uint64      // holds of tuples and ports ended early, for want of records or memory
	EventsLost      uint64      // events that found the buffer full
}

// Stats returns all counts.
func (t *Table) Stats() Stats {
	s := t.stats
	s.Mappings = t.mappings.live
	s.HalfOpen = int(t.halfOpen)
	s.Ports = int(t.network.ports)
	s.Hosts = t.hosts.live
	if t.blocks != nil {
		s.Blocks, s.FreeBlocks = t.blocks.total-t.blocks.free, t.blocks.free
	}
	s.HeldTuples, s.HeldPorts = t.tuples.len(), t.heldPorts.len()
	s.Crowded = len(t.crowds)
	s.EventsLost = t.events.lost
	for i, sp := range t.spaces {
		if sp != nil {
			s.FreePorts[i] = uint64(sp.set.free)
		} else if t.blank != nil {
			s.FreePorts[i] = uint64(t.blank.total)
		}
	}
	return s
}

// Session is a copy of what the table knows of one session.
type Session struct {
	Proto                   packet.Proto
	Inner, External, Remote netip.AddrPort // of an echo the ports are identifiers, and 0 of the remote; Inner is External in an identity table
	State                   string         // live, opening, established, closing, closed, reset
	Created, Expires        packet.Instant // to a tick; Expires is when it goes if nothing more is heard
}

// AppendSessions appends to dst the sessions among n records from number from on,
// whose time is not over, and returns that with the number to go on from, which is 0
// after the last one. A read-out begins with 0; a record takes some 100 ns. Between
// the steps of a read-out packets may go on: what comes or goes meanwhile may or may
// not be told.
func (t *Table) AppendSessions(dst []Session, from uint32, n int) ([]Session, uint32) {
	from = max(from, 1)
	end := min(int64(from)+int64(max(n, 1)), int64(t.sessions.top))
	i := from
	for ; int64(i) < end; i++ {
		s := t.sessions.at(i)
		if s.state == stateFree || due(s.deadline, t.tick) {
			continue
		}
		dst = append(dst, Session{
			Proto: s.proto,
			Inner: s.from().addrPort(), External: t.seenFrom(s), Remote: s.to().addrPort(),
			State:   stateNames[s.state],
			Created: t.instantOf(s.created), Expires: t.instantOf(s.deadline),
		})
	}
	if i >= t.sessions.top {
		i = 0
	}
	return dst, i
}

// instantOf converts a tick near the present one.
func (t *Table) instantOf(tick uint32) packet.Instant {
	return (t.now/packet.Instant(tickLength) + packet.Instant(int32(tick-t.tick))) * packet.Instant(tickLength)
}
