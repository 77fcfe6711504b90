package nat

import (
	"encoding/binary"
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// An ICMP error is translated where the packet that it quotes belongs to a
// live session (RFC 5508 section 4), with its type and code as they are. It
// refreshes and removes nothing (I-6, U-12, T-10); where it came from does not matter (U-12 a),
// as long as somebody may send from there at all.

// minMTU is the least next-hop MTU that is believed. Lower ones serve to
// tell hosts apart or to slow them down; every host must be able to take 576
// bytes (RFC 791).
const minMTU = 576

// needFragmentation is the code of destination unreachable that carries an MTU (RFC 1191).
const needFragmentation = 4

// ingressError restores an error from outside about a packet that left here (I-4).
func (t *Table) ingressError(p *packet.Packet) packet.Outcome {
	e := &p.Inner
	if !e.Dst.Is4() || e.Src != p.Dst {
		return packet.NoMapping
	}
	if c := packet.ClassOf(p.Src); c.MartianSource() && (c != packet.ClassLoopback || packet.ClassOf(t.config.External) != c) {
		return packet.Martian
	}
	if e.Proto == packet.ICMP && p.B[e.L4] != packet.ICMPEchoRequest {
		return packet.NoMapping // no reply to an echo ever leaves
	}
	to := makeEndpoint(number(e.Dst), e.DstPort)
	i := t.arriving(e.Proto, to, makeEndpoint(number(e.Src), e.SrcPort))
	if i == 0 || due(t.sessions.at(i).deadline, t.tick) {
		return t.missed(e.Proto, e.SrcPort)
	}
	s := t.sessions.at(i)
	if e.Proto == packet.TCP && !s.inFlight(e.Seq) {
		return packet.Filtered // whoever quotes it has not seen it (RFC 5927 section 4)
	}
	if p.ICMPType == packet.ICMPUnreachable && p.ICMPCode == needFragmentation &&
		binary.BigEndian.Uint16(p.B[p.L4+6:]) < minMTU {
		return packet.Filtered
	}
	if t.config.Identity {
		t.last = i
		return packet.Pass
	}
	inner := s.from().addrPort()
	p.SetEmbeddedSource(inner)
	p.SetDestination(inner)
	return packet.Pass
}

// inFlight says whether a segment that begins at seq may still be on its way outwards:
// not acknowledged, and sent.
func (s *session) inFlight(seq uint32) bool {
	return !after(s.ack[inward], seq) && !after(seq, s.end[outward])
}

// egressError translates an error from inside about a packet that came in (I-5).
// No inner address stays in it, neither outside nor in what it quotes, but in an
// identity table, where it passes as it is.
func (t *Table) egressError(p *packet.Packet) packet.Outcome {
	i, o := t.quotedByInside(p)
	if o != packet.Pass {
		return o
	}
	if t.config.Identity {
		t.last = i
		return packet.Pass
	}
	external := netip.AddrPortFrom(t.config.External, t.sessions.at(i).port)
	p.SetEmbeddedDestination(external)
	p.SetSource(external)
	return packet.Pass
}

// quotedByInside returns the live session of the packet that an error from inside is
// about; 0 with any outcome but Pass.
func (t *Table) quotedByInside(p *packet.Packet) (uint32, packet.Outcome) {
	e := &p.Inner
	if !e.Dst.Is4() || e.Dst != p.Src || e.Src != p.Dst {
		return 0, packet.NoMapping // only a host that the packet reached tells its sender
	}
	inner, remote := makeEndpoint(number(e.Dst), e.DstPort), makeEndpoint(number(e.Src), e.SrcPort)
	if e.Proto == packet.ICMP && p.B[e.L4] != packet.ICMPEchoReply {
		return 0, packet.NoMapping // no request ever comes in
	}
	i := uint32(0)
	switch {
	case t.config.Identity || e.Proto == packet.TCP:
		i = t.findOutbound(t.flowHash(e.Proto, inner, remote), e.Proto, inner, remote)
	default:
		if m := t.findMapping(t.innerHash(e.Proto, inner), e.Proto, inner); m != 0 {
			port := t.mappings.at(m).port
			i = t.findInbound(t.inboundHash(e.Proto, port, remote), e.Proto, port, remote)
		}
	}
	if i == 0 || due(t.sessions.at(i).deadline, t.tick) {
		return 0, packet.NoMapping
	}
	return i, packet.Pass
}
