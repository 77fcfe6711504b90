package nat

import "github.com/sallyport-net/sallyport/internal/packet"

// A table of a million sessions lies in memory, not in a cache: a lookup waits
// for a slot of an index, and then for a record. A batch waits for all of its
// packets at once. Three stages, in short loops, so that the processor runs ahead
// of what it waits for:
//
//  1. aim: the key of each packet, its hash, and the slot where that falls;
//  2. reach: the record that the slot names. A mapped flow goes on from its
//     mapping to its session in the same two stages;
//  3. act: each packet in turn, as though it had come alone.
//
// What the first two stages find is a hint. A packet may end or begin sessions that
// a later one of the batch relies on, so the third stage takes a hint only
// where the record still is of the packet's endpoints, and looks again otherwise.

// batchMax is how many packets go through the stages together: their scratch
// stays in the first-level cache.
const batchMax = 128

// lookup is what is known of one packet before anything is done about it.
type lookup struct {
	from, to endpoint
	hash     uint64 // of the key in the index that via names
	answer   uint64 // hash of the session in the inbound index, where port is not 0
	slot     uint64 // read to bring it near
	hint     uint32 // a mapping where via is viaInner, else a session; 0: not known
	session  uint32 // where via is viaInner: a session; 0: not known
	port     uint16 // where via is viaInner: the mapping's port, if it is known
	proto    packet.Proto
	via      via
	again    bool // the packet before has the same key
}

// via names the index that a packet is looked up in first.
type via uint8

const (
	viaNone via = iota
	viaOutbound
	viaInner
	viaInbound
)

// EgressBatch is Egress of each packet in turn: out[i] becomes the outcome of
// ps[i]. out must be as long as ps, and no packet may be in ps twice. A packet that stands
// for several segments is one call, and counts as those. It takes less
// time than the calls would, the more so the more sessions there are.
func (t *Table) EgressBatch(ps []*packet.Packet, out []packet.Outcome, now packet.Instant) {
	t.clock(now)
	for len(ps) > 0 {
		n := min(len(ps), batchMax)
		ls := t.scratch[:n]
		for i, p := range ps[:n] {
			if out[i] = t.screenOut(p); out[i] == packet.Pass {
				t.aimOut(&ls[i], p)
			} else {
				ls[i] = lookup{}
			}
		}
		t.hashAll(ls)
		t.reach(ls)
		for i, p := range ps[:n] {
			if out[i] == packet.Pass {
				if ls[i].again {
					ls[i].follow(&ls[i-1])
				}
				if out[i] = t.actOut(p, &ls[i]); out[i] == packet.Pass {
					t.identify(p)
				}
			}
			t.stats.Egress[out[i]&(countersSize-1)] += uint64(p.Segments)
		}
		ps, out = ps[n:], out[n:]
	}
}

// IngressBatch is Ingress of each packet in turn, as EgressBatch.
func (t *Table) IngressBatch(ps []*packet.Packet, out []packet.Outcome, now packet.Instant) {
	t.clock(now)
	for len(ps) > 0 {
		n := min(len(ps), batchMax)
		ls := t.scratch[:n]
		for i, p := range ps[:n] {
			if out[i] = t.screenIn(p); out[i] == packet.Pass {
				t.aimIn(&ls[i], p)
			} else {
				ls[i] = lookup{}
			}
		}
		t.hashAll(ls)
		t.reach(ls)
		for i, p := range ps[:n] {
			if out[i] == packet.Pass {
				if ls[i].again {
					ls[i].follow(&ls[i-1])
				}
				out[i] = t.actIn(p, &ls[i])
			}
			t.stats.Ingress[out[i]&(countersSize-1)] += uint64(p.Segments)
		}
		ps, out = ps[n:], out[n:]
	}
}

// alike says whether the packet of l is looked up as the one of the lookup before.
func (l *lookup) alike(before *lookup) bool {
	return l.via == before.via && l.from == before.from && l.to == before.to && l.proto == before.proto
}

// follow takes over where the packet before, whose key is the same, has arrived.
func (l *lookup) follow(before *lookup) {
	l.hint, l.session, l.port, l.answer = before.hint, before.session, before.port, before.answer
}

// aimOut says under which key a packet from inside is looked up that screenOut
// let pass. The hash is left to hashOf.
func (t *Table) aimOut(l *lookup, p *packet.Packet) {
	l.from, l.to = makeEndpoint(number(p.Src), p.SrcPort), makeEndpoint(number(p.Dst), p.DstPort)
	l.proto, l.hint, l.session, l.port = p.Proto, 0, 0, 0
	switch {
	case p.Kind == packet.KindICMPError || p.Kind == packet.KindFragment:
		l.via = viaNone // an error has the endpoints of another packet
	case t.config.Identity || p.Kind == packet.KindTCP:
		l.via = viaOutbound
	default:
		l.via = viaInner
	}
}

// aimIn is aimOut of a packet from outside. The endpoints are as the packet says, but
// in an identity table, where the inner one comes first in both directions.
func (t *Table) aimIn(l *lookup, p *packet.Packet) {
	l.from, l.to = makeEndpoint(number(p.Src), p.SrcPort), makeEndpoint(number(p.Dst), p.DstPort)
	l.proto, l.hint = p.Proto, 0
	switch {
	case p.Kind == packet.KindICMPError || p.Kind == packet.KindFragment:
		l.via = viaNone
	case t.config.Identity:
		l.via = viaOutbound
		l.from, l.to = l.to, l.from
	default:
		l.via = viaInbound
	}
}

// hashOf returns the hash of the key that l is looked up under.
func (t *Table) hashOf(l *lookup) uint64 {
	switch l.via {
	case viaOutbound:
		return t.flowHash(l.proto, l.from, l.to)
	case viaInner:
		return t.innerHash(l.proto, l.from)
	case viaInbound:
		return t.inboundHash(l.proto, l.to.port(), l.from)
	}
	return 0
}

// hashAll is hashOf for each lookup of a batch; one like that before it has the same.
func (t *Table) hashAll(ls []lookup) {
	for i := range ls {
		l := &ls[i]
		if l.again = i > 0 && l.alike(&ls[i-1]); l.again {
			l.hash = ls[i-1].hash
		} else {
			l.hash = t.hashOf(l)
		}
	}
}

// reach brings near what the packets will need, and leaves hints.
func (t *Table) reach(ls []lookup) {
	mapped := false
	for i := range ls {
		l := &ls[i]
		if l.again {
			continue // it follows the packet before
		}
		switch l.via {
		case viaOutbound:
			l.slot = t.outbound.home(l.hash)
		case viaInner:
			l.slot = t.inner.home(l.hash)
			mapped = true
		case viaInbound:
			l.slot = t.inbound.home(l.hash)
		}
	}
	for i := range ls {
		l := &ls[i]
		if l.again {
			continue
		}
		switch l.via {
		case viaOutbound:
			l.hint = t.outbound.first(l.hash)
		case viaInner:
			l.hint = t.inner.first(l.hash)
		case viaInbound:
			l.hint = t.inbound.first(l.hash)
		}
	}
	for i := range ls {
		switch l := &ls[i]; {
		case l.hint == 0:
		case l.via == viaInner:
			l.slot = uint64(t.mappings.at(l.hint).inner)
		default:
			l.slot = uint64(t.sessions.at(l.hint).inner)
		}
	}
	if mapped {
		t.reachSessions(ls)
	}
}

// reachSessions goes on from mappings to sessions.
func (t *Table) reachSessions(ls []lookup) {
	for i := range ls {
		l := &ls[i]
		if l.via != viaInner || l.hint == 0 || l.again {
			continue
		}
		if m := t.mappings.at(l.hint); m.of(l.proto, l.from) {
			l.port = m.port
			l.answer = t.inboundHash(l.proto, l.port, l.to)
		}
	}
	for i := range ls {
		if l := &ls[i]; l.port != 0 {
			l.slot = t.inbound.home(l.answer)
		}
	}
	for i := range ls {
		if l := &ls[i]; l.port != 0 {
			l.session = t.inbound.first(l.answer)
		}
	}
	for i := range ls {
		if l := &ls[i]; l.session != 0 {
			l.slot = uint64(t.sessions.at(l.session).inner)
		}
	}
}

// outgoing returns the session of a packet that is looked up by both endpoints,
// or 0. It may be one whose deadline has come.
func (t *Table) outgoing(l *lookup) uint32 {
	if l.hint == 0 || !t.sessions.at(l.hint).between(l.proto, l.from, l.to) {
		l.hint = t.findOutbound(l.hash, l.proto, l.from, l.to)
	}
	return l.hint
}

// incoming returns the session that a packet from outside belongs to, or 0. It
// may be one whose deadline has come.
func (t *Table) incoming(l *lookup) uint32 {
	if l.via == viaOutbound {
		return t.outgoing(l)
	}
	if l.hint == 0 || !t.sessions.at(l.hint).answers(l.proto, l.to.port(), l.from) {
		l.hint = t.findInbound(l.hash, l.proto, l.to.port(), l.from)
	}
	return l.hint
}

// binding returns the mapping of a packet from inside, or 0. It may be one
// whose deadline has come.
func (t *Table) binding(l *lookup) uint32 {
	if l.hint == 0 || !t.mappings.at(l.hint).of(l.proto, l.from) {
		l.hint = t.findMapping(l.hash, l.proto, l.from)
	}
	return l.hint
}

// bound returns the session of a packet from inside whose mapping has a port, or 0.
func (t *Table) bound(l *lookup, port uint16) uint32 {
	if l.port != port {
		l.port, l.answer, l.session = port, t.inboundHash(l.proto, port, l.to), 0
	}
	if l.session == 0 || !t.sessions.at(l.session).answers(l.proto, port, l.to) {
		l.session = t.findInbound(l.answer, l.proto, port, l.to)
	}
	return l.session
}
