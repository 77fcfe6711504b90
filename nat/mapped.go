package nat

import "github.com/sallyport-net/sallyport/internal/packet"

// The protocols' numbers as indexes of what a table has per protocol.
const (
	tcpSpace = iota
	udpSpace
	icmpSpace
	spaceCount
)

func spaceOf(p packet.Proto) int {
	switch p {
	case packet.TCP:
		return tcpSpace
	case packet.UDP:
		return udpSpace
	}
	return icmpSpace
}

// egressMapped translates a packet whose mapping does not depend on where it
// goes: UDP, and echo requests, whose identifier stands for the port (U-1, I-1).
func (t *Table) egressMapped(p *packet.Packet, l *lookup) packet.Outcome {
	f := flow{p.Proto, l.from, l.to, 0}
	i := t.binding(l)
	if i != 0 && due(t.mappings.at(i).deadline, t.tick) {
		t.removeMapping(i, ReasonExpired)
		i = 0
	}
	deadline := t.datagramDeadline(f.proto)
	if i != 0 {
		port := t.mappings.at(i).port
		if k := t.bound(l, port); k != 0 {
			t.refresh(t.sessions.at(k), t.mappings.at(i), deadline)
			p.SetSource(t.externalPort(port))
			return packet.Pass
		}
	}
	i, o := t.open(f, i, deadline)
	if o != packet.Pass {
		return o
	}
	p.SetSource(t.externalPort(t.mappings.at(i).port))
	return packet.Pass
}

// datagramDeadline is when a session goes that is heard of now, of UDP or echo.
func (t *Table) datagramDeadline(p packet.Proto) uint32 {
	if p == packet.ICMP {
		return t.tick + 1 + t.ticks.icmp
	}
	return t.tick + 1 + t.ticks.udp
}

// refresh sets the timers of a session and its mapping, without touching their
// cache lines more than once per tick. A session whose time was over, but not
// its mapping's, begins anew.
func (t *Table) refresh(s *session, m *mapping, deadline uint32) {
	if due(s.deadline, t.tick) {
		s.created = t.tick
	}
	if s.deadline != deadline {
		s.deadline = deadline
	}
	if m.deadline != deadline {
		m.deadline = deadline
	}
}

// open lets mapping m (0: a new one) of a flow hear from where the flow goes.
func (t *Table) open(f flow, m, deadline uint32) (uint32, packet.Outcome) {
	hi := t.hostOf(f.from.addr())
	if hi == 0 {
		return 0, t.full(f)
	}
	h := t.hosts.at(hi)
	if o := t.admit(h, f, m == 0, false); o != packet.Pass {
		return 0, o
	}
	if m == 0 {
		var o packet.Outcome
		if m, o = t.bind(f, hi); o != packet.Pass {
			return 0, o
		}
		t.tellMapping(Created, t.mappings.at(m), ReasonNone)
	}
	b := t.mappings.at(m)
	i, s := t.addSession(f, b.port, hi, m)
	if i == 0 {
		return 0, t.full(f)
	}
	t.charge(h)
	s.state = stateLive
	s.deadline, b.deadline = deadline, deadline
	return m, packet.Pass
}

// ingressMapped restores the inner destination of a UDP datagram or an echo
// reply. It passes only from an address and port that the mapping has sent to
// (U-8, C-7: filtering depends on address and port), and refreshes nothing
// (U-6a, X-8).
func (t *Table) ingressMapped(p *packet.Packet, l *lookup) packet.Outcome {
	i := t.incoming(l)
	if i == 0 || due(t.sessions.at(i).deadline, t.tick) {
		return t.missed(p.Proto, p.DstPort)
	}
	t.last = i
	if !t.config.Identity {
		p.SetDestination(t.sessions.at(i).from().addrPort())
	}
	return packet.Pass
}

// missed says why a packet from outside has no session: nobody has the port,
// or its owner has not sent to where the packet comes from.
func (t *Table) missed(p packet.Proto, port uint16) packet.Outcome {
	i := t.spaces[spaceOf(p)].owner(port)
	if i == 0 || p != packet.TCP && due(t.mappings.at(i).deadline, t.tick) {
		return packet.NoMapping
	}
	return packet.Filtered
}

// bind makes a mapping with a port of its own for a flow of host hi. It has no
// session yet: the caller adds one.
func (t *Table) bind(f flow, hi uint32) (uint32, packet.Outcome) {
	t.releaseHolds(holdStep)
	port, ok := t.pickPort(hi, t.space(spaceOf(f.proto)))
	if !ok {
		return 0, t.exhausted(f)
	}
	m := t.own(f, hi, port)
	if m == 0 {
		return 0, t.full(f)
	}
	return m, packet.Pass
}

// space returns a protocol's port space, made where there is none.
func (t *Table) space(which int) *space {
	sp := t.spaces[which]
	if sp == nil {
		sp = &space{set: *t.blank}
		t.spaces[which] = sp
	}
	return sp
}

// own makes the mapping that owns a free port, as bind, or returns 0 where there
// is no memory for it and its first session.
func (t *Table) own(f flow, hi uint32, port uint16) uint32 {
	sp := t.space(spaceOf(f.proto))
	if !sp.room(t.config.Memory, port) || !t.mappings.room() || !t.inner.room(t.innerHash(f.proto, f.from)) ||
		!t.sessions.room() || !t.inbound.room(t.inboundHash(f.proto, port, f.to)) ||
		f.proto == packet.TCP && !t.outbound.room(t.flowHash(f.proto, f.from, f.to)) {
		return 0
	}
	sp.set.take(port)
	i, m := t.mappings.take()
	sp.assign(port, i)
	m.inner, m.innerPort, m.port, m.proto = f.from.addr(), f.from.port(), port, f.proto
	m.owner = hi
	h := t.hosts.at(hi)
	if m.next = h.mappings; m.next != 0 {
		t.mappings.at(m.next).prev = i
	}
	h.mappings = i
	h.ports++
	t.network.ports++
	t.useBlock(port)
	t.inner.insert(t.innerHash(f.proto, f.from), i)
	return i
}

// atOnce is how many sessions a mapping that ends takes along at once: some tens of
// microseconds. Those of a larger one are removed by Expire.
const atOnce = 256

// removeMapping ends a mapping and its sessions. Where they are more than atOnce, the
// mapping is doomed: its inner endpoint gets another one with its next packet, and
// what is left of it keeps its port and counts towards quotas until Expire comes.
func (t *Table) removeMapping(i uint32, why Reason) {
	m := t.mappings.at(i)
	for left := min(m.sessions, atOnce); left > 0; left-- {
		if m.sessions == 1 {
			t.removeSession(m.first, why) // unbinds the mapping
			return
		}
		t.removeSession(m.first, why)
	}
	if m.doomed == ReasonNone {
		t.inner.remove(t.innerHash(m.proto, m.from()), i)
		t.doomed = append(t.doomed, i)
	}
	m.doomed = why
}

// removeDoomed goes on with the ends of doomed mappings, n sessions at most, and
// returns how many it removed.
func (t *Table) removeDoomed(n int) int {
	done := 0
	for len(t.doomed) > 0 && done < n {
		last := len(t.doomed) - 1
		m := t.mappings.at(t.doomed[last])
		if m.doomed == ReasonNone { // gone meanwhile
			t.doomed = t.doomed[:last]
			continue
		}
		t.removeSession(m.first, m.doomed)
		done++
	}
	return done
}

// unbind removes a mapping that has no session left. Its port goes on hold.
func (t *Table) unbind(i uint32, why Reason) {
	m := t.mappings.at(i)
	t.tellMapping(Closed, m, why)
	h := t.hosts.at(m.owner)
	if m.next != 0 {
		t.mappings.at(m.next).prev = m.prev
	}
	if m.prev != 0 {
		t.mappings.at(m.prev).next = m.next
	} else {
		h.mappings = m.next
	}
	h.ports--
	t.network.ports--
	t.leaveBlock(m.port)
	if m.doomed == ReasonNone {
		t.inner.remove(t.innerHash(m.proto, m.from()), i)
	}
	which := spaceOf(m.proto)
	t.spaces[which].assign(m.port, 0)
	t.holdPort(which, m.port)
	t.mappings.give(i)
}
