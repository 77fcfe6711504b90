package nat

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// A hairpin is a packet from one sandbox to another by external addresses: the table of
// the sender has translated it, and it turns to the table of the address that it
// is for, which may be the same one. It never leaves the host (U-9, T-8, I-7).

// Hairpin is [Table.Ingress] for a packet that a table of the same network let pass:
// its source may be a dedicated address, that of this table included. Filtering is as
// ever, so that the receiver must have sent to that source first. A packet whose source
// and destination are one endpoint is a Martian.
func (t *Table) Hairpin(p *packet.Packet, now packet.Instant) packet.Outcome {
	t.clock(now)
	o := t.screenTurned(p)
	if o == packet.Pass {
		var l lookup
		t.aimIn(&l, p)
		l.hash = t.hashOf(&l)
		o = t.actIn(p, &l)
	}
	t.stats.Ingress[o&(countersSize-1)] += uint64(p.Segments)
	return o
}

// screenTurned is screenOut of a packet between two inner addresses.
func (t *Table) screenTurned(p *packet.Packet) packet.Outcome {
	switch {
	case p.Kind == packet.KindUnknown || !p.Src.Is4() || !p.Dst.Is4():
		return packet.Malformed
	case t.config.Identity || p.Dst != t.config.External:
		return packet.NoMapping
	case p.Src == p.Dst && p.SrcPort == p.DstPort && (p.Kind == packet.KindTCP || p.Kind == packet.KindUDP):
		return packet.Martian
	case p.Kind == packet.KindICMPQuery && p.ICMPType != packet.ICMPEchoReply:
		return packet.NoMapping
	}
	return packet.Pass
}

// Holds reports whether a packet from inside belongs to what the table holds already:
// Egress would make no new mapping for it. It changes nothing but the clock.
func (t *Table) Holds(p *packet.Packet, now packet.Instant) bool {
	t.clock(now)
	if !p.Src.Is4() || !p.Dst.Is4() {
		return false
	}
	from, to := makeEndpoint(number(p.Src), p.SrcPort), makeEndpoint(number(p.Dst), p.DstPort)
	switch p.Kind {
	case packet.KindTCP:
		i := t.findOutbound(t.flowHash(p.Proto, from, to), p.Proto, from, to)
		return i != 0 && !due(t.sessions.at(i).deadline, t.tick) ||
			t.config.TCPMapping == EndpointIndependent && t.findMapping(t.innerHash(p.Proto, from), p.Proto, from) != 0
	case packet.KindUDP, packet.KindICMPQuery:
		if t.config.Identity {
			i := t.findOutbound(t.flowHash(p.Proto, from, to), p.Proto, from, to)
			return i != 0 && !due(t.sessions.at(i).deadline, t.tick)
		}
		i := t.findMapping(t.innerHash(p.Proto, from), p.Proto, from)
		return i != 0 && !due(t.mappings.at(i).deadline, t.tick)
	case packet.KindICMPError:
		i, _ := t.quotedByInside(p)
		return i != 0
	}
	return false
}

// HoldsFor reports whether the table holds anything for an inner address.
func (t *Table) HoldsFor(inner netip.Addr) bool {
	if !inner.Is4() {
		return false
	}
	addr := number(inner)
	i := t.findHost(t.key.sum(uint64(addr), 0), addr)
	return i != 0 && t.hosts.at(i).sessions > 0
}
