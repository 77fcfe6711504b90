package packet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Offsets in the IPv4 header.
const (
	offTTL      = 8
	offChecksum = 10
	offSrc      = 12
	offDst      = 16
)

// SetSource rewrites the source address and, for TCP and UDP, the source port;
// for an echo request the port is its identifier. The port of other packets is
// left alone. Checksums are amended, never recomputed. The address must be
// IPv4; p must have passed Parse and must not be a fragment.
func (p *Packet) SetSource(to netip.AddrPort) {
	p.setEndpoint(offSrc, 0, to)
	p.Src = netip.AddrFrom4(to.Addr().As4())
	switch p.Kind {
	case KindTCP, KindUDP:
		p.SrcPort = to.Port()
	case KindICMPQuery:
		if p.ICMPType == ICMPEchoRequest {
			p.SrcPort = to.Port()
		}
	}
}

// SetDestination rewrites the destination as SetSource does the source; the
// port is the identifier of an echo reply.
func (p *Packet) SetDestination(to netip.AddrPort) {
	p.setEndpoint(offDst, 2, to)
	p.Dst = netip.AddrFrom4(to.Addr().As4())
	switch p.Kind {
	case KindTCP, KindUDP:
		p.DstPort = to.Port()
	case KindICMPQuery:
		if p.ICMPType == ICMPEchoReply {
			p.DstPort = to.Port()
		}
	}
}

// setEndpoint rewrites the address at addrOff of the IP header and the port at
// portOff of the transport header.
func (p *Packet) setEndpoint(addrOff, portOff int, to netip.AddrPort) {
	d := putAddr(p.B[addrOff:], to.Addr())
	amendAt(p.B[offChecksum:], d)
	t := p.B[p.L4:]
	switch p.Kind {
	case KindTCP:
		amendAt(t[16:], d+put16(t[portOff:], to.Port()))
	case KindUDP:
		amendUDPAt(t[6:], d+put16(t[portOff:], to.Port()))
	case KindICMPQuery: // no pseudo-header: the address does not count
		if (p.ICMPType == ICMPEchoRequest) == (addrOff == offSrc) {
			amendAt(t[2:], put16(t[4:], to.Port()))
		}
	}
}

// SetEmbeddedSource rewrites the source of the packet that an ICMP error
// quotes: its address and port (or echo identifier), its IP checksum, its
// transport checksum where that is quoted whole, and the ICMP checksum of the error.
// It does nothing to packets of another kind.
func (p *Packet) SetEmbeddedSource(to netip.AddrPort) {
	if p.Kind != KindICMPError {
		return
	}
	p.setEmbedded(offSrc, 0, to)
	e := &p.Inner
	e.Src = netip.AddrFrom4(to.Addr().As4())
	if e.Proto != ICMP || p.B[e.L4] == ICMPEchoRequest {
		e.SrcPort = to.Port()
	}
}

// SetEmbeddedDestination rewrites the destination of the quoted packet as
// SetEmbeddedSource does its source.
func (p *Packet) SetEmbeddedDestination(to netip.AddrPort) {
	if p.Kind != KindICMPError {
		return
	}
	p.setEmbedded(offDst, 2, to)
	e := &p.Inner
	e.Dst = netip.AddrFrom4(to.Addr().As4())
	if e.Proto != ICMP || p.B[e.L4] == ICMPEchoReply {
		e.DstPort = to.Port()
	}
}

func (p *Packet) setEmbedded(addrOff, portOff int, to netip.AddrPort) {
	e := &p.Inner
	h := p.B[e.Off:e.End]
	d := putAddr(h[addrOff:], to.Addr())
	outer := d + amendAt(h[offChecksum:], d)
	t := p.B[e.L4:e.End]
	switch e.Proto {
	case TCP:
		dp := put16(t[portOff:], to.Port())
		outer += dp
		if len(t) >= 18 {
			outer += amendAt(t[16:], d+dp)
		}
	case UDP:
		dp := put16(t[portOff:], to.Port())
		outer += dp + amendUDPAt(t[6:], d+dp)
	case ICMP:
		if (t[0] == ICMPEchoRequest) == (addrOff == offSrc) {
			dp := put16(t[4:], to.Port())
			outer += dp + amendAt(t[2:], dp)
		}
	}
	amendAt(p.B[p.L4+2:], outer)
}

// DecrementTTL lowers the TTL by one, or returns TTLExpired and changes nothing
// where it arrived as 1 or 0 (RFC 1812 section 5.3.1).
func (p *Packet) DecrementTTL() Outcome {
	if p.B[offTTL] <= 1 {
		return TTLExpired
	}
	d := put16(p.B[offTTL:], binary.BigEndian.Uint16(p.B[offTTL:])-0x100)
	amendAt(p.B[offChecksum:], d)
	p.TTL = p.B[offTTL]
	return Pass
}

// ID returns the identification field of the IP header.
func (p *Packet) ID() uint16 { return binary.BigEndian.Uint16(p.B[4:]) }

// SetID rewrites the identification field of the IP header.
func (p *Packet) SetID(id uint16) {
	if p.ID() != id {
		amendAt(p.B[offChecksum:], put16(p.B[4:], id))
	}
}

// ClampMSS lowers the maximum segment size announced in a SYN or SYN-ACK to
// mss bytes and says whether it did. It never raises one and never adds one. Of
// several announcements, of which hosts believe the first or the last, it
// lowers each.
func (p *Packet) ClampMSS(mss uint16) bool {
	if p.Kind != KindTCP || p.Flags&SYN == 0 {
		return false
	}
	lowered := false
	t := p.B[p.L4 : len(p.B)-p.Payload]
	for i := tcpLen; i < len(t) && t[i] != optionEnd; {
		if t[i] == optionNOP {
			i++
			continue
		}
		if i+2 > len(t) || t[i+1] < 2 || i+int(t[i+1]) > len(t) {
			break
		}
		if t[i] == 2 && t[i+1] == 4 && clamp(t, i+2, mss) {
			lowered = true
		}
		i += int(t[i+1])
	}
	return lowered
}

// clamp lowers the word at t[i:], which may stand across two words of the
// checksum: then each of its bytes counts in the other half.
func clamp(t []byte, i int, mss uint16) bool {
	from := binary.BigEndian.Uint16(t[i:])
	if from <= mss {
		return false
	}
	binary.BigEndian.PutUint16(t[i:], mss)
	if i%2 != 0 {
		from, mss = bits.ReverseBytes16(from), bits.ReverseBytes16(mss)
	}
	amendAt(t[16:], diff16(from, mss))
	return true
}

// putAddr writes the IPv4 address a over b[0:4] and returns the diff.
func putAddr(b []byte, a netip.Addr) uint32 {
	v := a.As4()
	from, to := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(v[:])
	binary.BigEndian.PutUint32(b, to)
	return diff32(from, to)
}

// put16 writes v over b[0:2] and returns the diff.
func put16(b []byte, v uint16) uint32 {
	from := binary.BigEndian.Uint16(b)
	binary.BigEndian.PutUint16(b, v)
	return diff16(from, v)
}
