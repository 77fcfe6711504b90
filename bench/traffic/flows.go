package traffic

import (
	"encoding/binary"
	"net/netip"
)

// A flow is a port of a sandbox and a remote. Flows are numbered end by end. On the wire
// 16 bits name a flow; where there are more flows than that, those of an end share the
// end's numbers, and the sequence of a number is counted over all flows that have it.
// Both sides find out by flow number and sequence which flow is meant.
//
// Packets go by turns, each of which has one packet of every flow. In a turn the flows
// of one group after the other get theirs, a group having each of the end's numbers at
// most once, so that the sequences of a number grow. Within a group flows are visited by
// a stride that differs from turn to turn: neighbours on the wire are no neighbours in
// anybody's table, and two packets of one flow are never sent together.

const (
	wireFlows = 1 << 16
	// firstPort is the lowest source port of a load.
	firstPort = 10000
	ports     = 1<<16 - firstPort
	strides   = 4
)

// flowSet are an end's flows.
type flowSet struct {
	first     int // its first one's number over all ends
	count     int // flows
	wireFirst int // its first number on the wire
	wires     int // numbers on the wire
	groups    int // of flows of different numbers
	last      int // flows of the last group

	sandboxes []uint32 // IPv4 addresses
	remotes   []remote
	full      [strides]int // strides of a group
	rest      [strides]int // of the last group
}

// remote is an address and port as the wire has them.
type remote struct {
	addr uint32
	port uint16
}

// endpoints are a flow's.
type endpoints struct {
	inner uint32
	port  uint16
	to    remote
}

// spread gives flows to ends in proportion to their sandboxes, and so much of the numbers.
// There must be a number for each sandbox, or an end could be left without.
func spread(flows, numbers int, sandboxes [][]uint32, remotes []remote) []flowSet {
	all := 0
	for _, s := range sandboxes {
		all += len(s)
	}
	sets := make([]flowSet, len(sandboxes))
	numbers = min(flows, numbers)
	before := 0
	for i, s := range sandboxes {
		f := &sets[i]
		f.first, f.wireFirst = flows*before/all, numbers*before/all
		before += len(s)
		f.count, f.wires = flows*before/all-f.first, numbers*before/all-f.wireFirst
		if f.count == 0 {
			continue
		}
		f.sandboxes, f.remotes = s, remotes
		f.groups = (f.count + f.wires - 1) / f.wires
		f.last = f.count - (f.groups-1)*f.wires
		f.full, f.rest = stridesOf(f.wires), stridesOf(f.last)
	}
	return sets
}

// stridesOf are steps by which n places are all visited.
func stridesOf(n int) (s [strides]int) {
	for i, part := range [strides]float64{0.618, 0.382, 0.724, 0.276} {
		s[i] = max(1, int(part*float64(n)))
		for gcd(s[i], n) != 1 {
			s[i]++
		}
	}
	return s
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// sharing is how many flows have a number, counted from the end's first.
func (f *flowSet) sharing(wire int) int {
	if wire < f.last {
		return f.groups
	}
	return f.groups - 1
}

// find is the flow, counted from the end's first, that a number on the wire and a
// sequence mean. False if the number is none of the end's.
func (f *flowSet) find(number uint16, sequence uint64) (flow int, ok bool) {
	wire := int(number) - f.wireFirst
	if wire < 0 || wire >= f.wires {
		return 0, false
	}
	return int(sequence%uint64(f.sharing(wire)))*f.wires + wire, true
}

// endpoints are those of a flow, counted from the end's first.
func (f *flowSet) endpoints(flow int) endpoints {
	n, s, r := uint32(flow), uint32(len(f.sandboxes)), uint32(len(f.remotes))
	return endpoints{inner: f.sandboxes[n%s], to: f.remotes[n/s%r], port: uint16(firstPort + n/(s*r))}
}

// cursor walks the flows of a set.
type cursor struct {
	set         *flowSet
	turn        uint64
	group, at   int
	place, step int // in the group, and to the next
	size        int // of the group
}

// visit is one packet of a flow.
type visit struct {
	flow     int // counted from the end's first
	number   uint16
	sequence uint64
}

// newCursor begins with the first turn. The set must have flows.
func newCursor(f *flowSet) cursor {
	c := cursor{set: f}
	c.enter()
	return c
}

// enter begins the group.
func (c *cursor) enter() {
	c.at, c.place = 0, 0
	c.size, c.step = c.set.wires, c.set.full[c.turn%strides]
	if c.group == c.set.groups-1 {
		c.size, c.step = c.set.last, c.set.rest[c.turn%strides]
	}
}

// next is whose packet is next.
func (c *cursor) next() visit {
	f := c.set
	v := visit{
		flow: c.group*f.wires + c.place, number: uint16(f.wireFirst + c.place),
		sequence: c.turn*uint64(f.sharing(c.place)) + uint64(c.group),
	}
	if c.place += c.step; c.place >= c.size {
		c.place -= c.size
	}
	if c.at++; c.at == c.size {
		if c.group++; c.group == f.groups {
			c.group = 0
			c.turn++
		}
		c.enter()
	}
	return v
}

// addressNumber is an IPv4 address as the wire has it.
func addressNumber(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// addressOf is the address of such a number.
func addressOf(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
