package nat

import "github.com/sallyport-net/sallyport/internal/packet"

// audit checks that all that a table knows in several places is the same in each.
func audit(tb reporter, t *Table) {
	tb.Helper()
	auditSessions(tb, t)
	perMapping, perHost, ports := map[uint32]uint32{}, map[uint32]*host{}, [spaceCount]int{}
	of := func(i uint32) *host {
		if perHost[i] == nil {
			perHost[i] = &host{}
		}
		return perHost[i]
	}
	for i := uint32(1); i < t.sessions.top; i++ {
		s := t.sessions.at(i)
		if s.state == stateFree {
			continue
		}
		h := of(t.hostOfSession(s))
		h.sessions++
		if s.state == stateOpening {
			h.halfOpen++
		}
		if s.flags&mapped != 0 {
			perMapping[s.owner]++
		} else if !t.config.Identity {
			h.ports++
		}
	}
	mappings := 0
	for i := uint32(1); i < t.mappings.top; i++ {
		m := t.mappings.at(i)
		if m.proto == 0 {
			continue
		}
		mappings++
		of(m.owner).ports++
		ports[spaceOf(m.proto)]++
		if m.sessions != perMapping[i] || m.sessions == 0 {
			tb.Fatalf("mapping %d counts %d sessions, but has %d", i, m.sessions, perMapping[i])
		}
		known := t.findMapping(t.innerHash(m.proto, m.from()), m.proto, m.from()) == i
		if known != (m.doomed == ReasonNone) || t.spaces[spaceOf(m.proto)].owner(m.port) != i {
			tb.Fatalf("mapping %d is not found from inside or from outside", i)
		}
		if t.spaces[spaceOf(m.proto)].set.has(m.port) {
			tb.Fatalf("port %d of mapping %d counts as free", m.port, i)
		}
	}
	if mappings != t.mappings.live {
		tb.Fatalf("%d mappings counted, %d found", t.mappings.live, mappings)
	}
	auditHosts(tb, t, perHost)
	auditBlocks(tb, t)
	auditPorts(tb, t, ports)
	auditMemory(tb, t)
	auditLists(tb, t)
	auditSets(tb, t)
}

// auditSessions checks indexes, lists and totals of the sessions.
func auditSessions(tb reporter, t *Table) {
	tb.Helper()
	count, half, total := [spaceCount]uint64{}, uint32(0), 0
	for i := uint32(1); i < t.sessions.top; i++ {
		s := t.sessions.at(i)
		if s.state == stateFree {
			continue
		}
		total++
		count[spaceOf(s.proto)]++
		if s.state == stateOpening {
			half++
		}
		if t.arriving(s.proto, s.to(), makeEndpoint(s.inner, s.port)) != i {
			tb.Fatalf("session %d is not found from outside", i)
		}
		if (s.proto == packet.TCP || t.config.Identity) && t.findOutbound(t.flowHash(s.proto, s.from(), s.to()), s.proto, s.from(), s.to()) != i {
			tb.Fatalf("session %d is not found from inside", i)
		}
		if s.next != 0 && t.sessions.at(s.next).prev != i || s.prev != 0 && t.sessions.at(s.prev).next != i {
			tb.Fatalf("session %d is not linked as its neighbours are", i)
		}
		if c := t.crowds[s.to()]; c != nil && s.flags&mapped == 0 {
			if uint32(s.port) < c.known && c.set.has(s.port) {
				tb.Fatalf("the crowd of %v takes port %d for free", s.to().addrPort(), s.port)
			}
			closed := c.closed[s.port>>6]>>(s.port&63)&1 != 0
			if uint32(s.port) < c.known && closed != (s.state == stateClosed) {
				tb.Fatalf("the crowd of %v is wrong about port %d being closed", s.to().addrPort(), s.port)
			}
		}
	}
	if total != t.sessions.live || count != [spaceCount]uint64(t.stats.Sessions) || half != t.halfOpen {
		tb.Fatalf("%d sessions %v, %d half-open; counted %d %v, %d", total, count, half, t.sessions.live, t.stats.Sessions, t.halfOpen)
	}
	created, ended := uint64(0), uint64(0)
	for _, n := range t.stats.Created {
		created += n
	}
	for _, n := range t.stats.Ended {
		ended += n
	}
	if created-ended != uint64(total) {
		tb.Fatalf("%d sessions created and %d ended, but %d live", created, ended, total)
	}
}

func auditHosts(tb reporter, t *Table, want map[uint32]*host) {
	tb.Helper()
	ports := uint32(0)
	defer func() {
		if ports != t.network.ports {
			tb.Fatalf("all together hold %d ports, but %d are counted", ports, t.network.ports)
		}
	}()
	for i := uint32(1); i < t.hosts.top; i++ {
		h, w := t.hosts.at(i), want[i]
		ports += h.ports
		if w == nil {
			w = &host{}
		}
		if h.sessions != w.sessions || h.ports != w.ports || h.halfOpen != w.halfOpen {
			tb.Fatalf("host %d counts %d sessions, %d ports, %d half-open; it has %d, %d, %d",
				i, h.sessions, h.ports, h.halfOpen, w.sessions, w.ports, w.halfOpen)
		}
	}
}

// auditPorts checks that every port that isn't free belongs to a mapping or is on hold.
func auditPorts(tb reporter, t *Table, mapped [spaceCount]int) {
	tb.Helper()
	onHold := [spaceCount]int{}
	for i := t.heldPorts.head; i != 0; i = t.heldPorts.at(i).next {
		onHold[t.heldPorts.at(i).key>>16]++
	}
	for i, sp := range t.spaces {
		if sp != nil && sp.set.free+mapped[i]+onHold[i] != sp.set.total {
			tb.Fatalf("space %d: %d free, %d mapped, %d on hold of %d", i, sp.set.free, mapped[i], onHold[i], sp.set.total)
		}
	}
	n, last := 0, t.tuples.head
	for i := t.tuples.head; i != 0; i = t.tuples.at(i).next {
		h := t.tuples.at(i)
		if n++; !due(t.tuples.at(last).until, h.until) {
			tb.Fatal("holds are out of order")
		}
		last = i
		tp := tuple(h.key)
		if inUse, held := t.tupleTaken(tp); inUse != 0 || !held {
			tb.Fatalf("tuple %x is on hold and in use, or not found", tp)
		}
		if c := t.crowds[tp.remote()]; c != nil && uint32(tp.port()) < c.known && c.set.has(tp.port()) {
			tb.Fatalf("the crowd of %v takes port %d for free, which is on hold", tp.remote().addrPort(), tp.port())
		}
	}
	if n != t.tuples.len() {
		tb.Fatalf("%d tuples on hold, %d counted", n, t.tuples.len())
	}
}
