package nat

import (
	"math/bits"
)

// auditMemory checks that every record is either in use or in its slab's list of free
// ones, that each index has a slot for each of its records and no other, and that
// events fill the chunks that they have.
func auditMemory(tb reporter, t *Table) {
	tb.Helper()
	auditSlab(tb, "sessions", &t.sessions)
	auditSlab(tb, "mappings", &t.mappings)
	auditSlab(tb, "hosts", &t.hosts)
	auditSlab(tb, "tuples on hold", &t.tuples.records)
	auditSlab(tb, "ports on hold", &t.heldPorts.records)
	doomed, listed := 0, map[uint32]bool{}
	for _, i := range t.doomed {
		listed[i] = true
	}
	for i := uint32(1); i < t.mappings.top; i++ {
		if m := t.mappings.at(i); m.proto != 0 && m.doomed != ReasonNone {
			if doomed++; !listed[i] {
				tb.Fatalf("nobody ends mapping %d, which is doomed", i)
			}
		}
	}
	in, out := t.sessions.live, int(t.stats.Sessions[tcpSpace])
	if t.config.Identity {
		in, out = 0, t.sessions.live
	}
	auditIndex(tb, "inbound", &t.inbound, in)
	auditIndex(tb, "outbound", &t.outbound, out)
	auditIndex(tb, "inner", &t.inner, t.mappings.live-doomed)
	auditIndex(tb, "hosts", &t.hostIndex, t.hosts.live)
	auditIndex(tb, "holds", &t.holdIndex, t.tuples.len())
	e := &t.events
	if room := len(e.chunks) * len(eventChunk{}); e.first+e.used > room || room-e.first-e.used >= 2*len(eventChunk{}) {
		tb.Fatalf("%d events from %d on in %d chunks", e.used, e.first, len(e.chunks))
	}
}

func auditSlab[T any, P interface {
	*T
	link() *uint32
}](tb reporter, what string, s *slab[T, P]) {
	tb.Helper()
	if s.top == 0 {
		return
	}
	n := s.live
	for i := s.free; i != 0 && n <= int(s.top); i = *P(s.at(i)).link() {
		n++
	}
	if n != int(s.top)-1 {
		tb.Fatalf("%s: %d records in use or free, of %d", what, n, s.top-1)
	}
}

func auditIndex(tb reporter, what string, x *index, want int) {
	tb.Helper()
	total := 0
	for i := range x.shards {
		n := 0
		for _, v := range x.shards[i].slots {
			if v != 0 {
				n++
			}
		}
		if n != x.shards[i].used {
			tb.Fatalf("index %s: shard %d counts %d slots, but has %d", what, i, x.shards[i].used, n)
		}
		total += n
	}
	if total != want {
		tb.Fatalf("index %s has %d slots for %d records", what, total, want)
	}
}

// auditLists walks what hosts and mappings have, and queues, from their heads.
func auditLists(tb reporter, t *Table) {
	tb.Helper()
	sessions, mappings := 0, 0
	walk := func(head, owner uint32, flag sessionFlags) (n uint32) {
		for i, prev := head, uint32(0); i != 0; prev, i = i, t.sessions.at(i).next {
			s := t.sessions.at(i)
			if n++; s.state == stateFree || s.owner != owner || s.flags&mapped != flag || s.prev != prev {
				tb.Fatalf("session %d is in the list of %d: %+v", i, owner, s)
			}
		}
		sessions += int(n)
		return n
	}
	for hi := uint32(1); hi < t.hosts.top; hi++ {
		h := t.hosts.at(hi)
		if !h.known {
			continue
		}
		n := walk(h.conns, hi, 0)
		for i, prev := h.mappings, uint32(0); i != 0; prev, i = i, t.mappings.at(i).next {
			m := t.mappings.at(i)
			if mappings++; m.proto == 0 || m.owner != hi || m.prev != prev {
				tb.Fatalf("mapping %d is in the list of host %d: %+v", i, hi, m)
			}
			n += walk(m.first, i, mapped)
		}
		if n != h.sessions {
			tb.Fatalf("host %d counts %d sessions, but lists %d", hi, h.sessions, n)
		}
	}
	if sessions != t.sessions.live || mappings != t.mappings.live {
		tb.Fatalf("hosts list %d sessions and %d mappings of %d and %d", sessions, mappings, t.sessions.live, t.mappings.live)
	}
	for _, q := range []*queue{&t.tuples, &t.heldPorts} {
		n, tail := 0, uint32(0)
		for i := q.head; i != 0; i = q.at(i).next {
			if n++; tail != 0 && !due(q.at(tail).until, q.at(i).until) {
				tb.Fatal("holds are out of order")
			}
			tail = i
		}
		if n != q.len() || tail != q.tail {
			tb.Fatalf("a queue of %d that ends at %d counts %d and ends at %d", n, tail, q.len(), q.tail)
		}
	}
}

// auditSets works out anew which ports are taken in each set, and why.
func auditSets(tb reporter, t *Table) {
	tb.Helper()
	if t.config.Identity {
		if len(t.crowds)+t.tuples.len()+t.heldPorts.len() > 0 {
			tb.Fatal("an identity table holds ports")
		}
		return
	}
	auditSet(tb, "blank", t.blank, t.blank)
	spaces, crowds := [spaceCount]portSet{}, map[endpoint]*crowd{}
	for i := range spaces {
		spaces[i] = *t.blank
	}
	for remote := range t.crowds {
		crowds[remote] = &crowd{set: *t.blank}
	}
	for i := uint32(1); i < t.sessions.top; i++ {
		s := t.sessions.at(i)
		if s.state == stateFree || s.flags&mapped != 0 {
			continue
		}
		if c := crowds[s.to()]; c != nil {
			c.set.take(s.port)
			c.setClosed(s.port, s.state == stateClosed)
		}
	}
	for i := t.tuples.head; i != 0; i = t.tuples.at(i).next {
		tp := tuple(t.tuples.at(i).key)
		if c := crowds[tp.remote()]; c != nil {
			c.set.take(tp.port())
		}
	}
	for i := uint32(1); i < t.mappings.top; i++ {
		if m := t.mappings.at(i); m.proto != 0 {
			spaces[spaceOf(m.proto)].take(m.port)
		}
	}
	for i := t.heldPorts.head; i != 0; i = t.heldPorts.at(i).next {
		k := t.heldPorts.at(i).key
		spaces[k>>16].take(uint16(k))
	}
	for i, sp := range t.spaces {
		if sp != nil {
			auditSet(tb, "space", &sp.set, &spaces[i])
		}
	}
	if len(t.crowds) != len(t.crowdRound) {
		tb.Fatalf("%d crowds, %d in the round", len(t.crowds), len(t.crowdRound))
	}
	for remote, c := range t.crowds {
		if t.crowdRound[c.place] != remote {
			tb.Fatalf("the crowd of %v is not at its place in the round", remote.addrPort())
		}
		auditCrowd(tb, t, c, crowds[remote])
	}
}

// auditCrowd compares a crowd with one that has asked for all ports just now. Of ports
// that it has not asked for it may know less.
func auditCrowd(tb reporter, t *Table, c, want *crowd) {
	tb.Helper()
	closed := 0
	for w := range c.closed {
		asked := c.set.taken[w] // where there are port blocks, ports are asked for as they are drawn
		if t.blocks == nil {
			asked |= 1<<min(max(int(c.known)-w*64, 0), 64) - 1
		}
		is, was, taken, truly := c.closed[w], want.closed[w], c.set.taken[w], want.set.taken[w]
		if is&^was|taken&^truly|asked&(is^was|taken^truly) != 0 {
			tb.Fatalf("a crowd says of the ports from %d on: closed %x, taken %x, asked for %x; but they are %x, %x", w*64, is, taken, asked, was, truly)
		}
		closed += bits.OnesCount64(is)
	}
	if closed != c.closedCount {
		tb.Fatalf("a crowd counts %d closed ports, but has %d", c.closedCount, closed)
	}
	auditSet(tb, "crowd", &c.set, &c.set)
}

// auditSet compares a set of ports with what it should be, and its counts with its bits.
func auditSet(tb reporter, what string, s, want *portSet) {
	tb.Helper()
	if s.taken != want.taken {
		tb.Fatalf("%s: other ports are taken than should be: %d free, want %d", what, s.free, want.free)
	}
	free, spare := 0, [blockCount]uint16{}
	for w, word := range s.taken {
		n := bits.OnesCount64(^word)
		free += n
		spare[w/blockWords] += uint16(n)
	}
	if free != s.free || spare != s.spare {
		tb.Fatalf("%s: %d ports are free, but %d are counted", what, free, s.free)
	}
}
