package packet

import (
	"encoding/binary"
	"net/netip"
)

// Offsets, sizes and bits of the headers (RFC 791, 9293, 768, 792).
const (
	ipv4Len    = 20
	ipv4MaxLen = 60
	tcpLen     = 20
	udpLen     = 8
	icmpLen    = 8

	flagDF     = 0x4000
	flagMF     = 0x2000
	offsetMask = 0x1fff

	optionEnd         = 0
	optionNOP         = 1
	optionRecordRoute = 7
	optionTimestamp   = 68
	optionLSRR        = 131
	optionSSRR        = 137
)

// The ICMP types that are translated (RFC 5508 REQ-10 a), and those that the
// gateway makes itself.
const (
	ICMPEchoReply    uint8 = 0
	ICMPUnreachable  uint8 = 3
	ICMPEchoRequest  uint8 = 8
	ICMPTimeExceeded uint8 = 11
	ICMPParameter    uint8 = 12
)

// Parse fills in p from the frame b, which p then views. Bytes of b beyond the
// IP header's total length are left out of p.B. It returns Pass or the reason
// why the packet must be dropped; in that case p.Kind is KindUnknown and only
// p.B is meaningful.
//
// Parse checks the IP header whole (RFC 1812 section 5.2.2), walks its options,
// and checks the lengths of the transport header. It does not verify the
// checksum of TCP, UDP and ICMP queries, which rewriting preserves as it is;
// it does verify that of ICMP errors and of the IP header they quote (RFC 5508
// REQ-3). A fragment passes as KindFragment with no look at its payload.
//
// p may be reused from packet to packet: fields that are not valid for its Kind
// keep values of the past.
func Parse(p *Packet, b []byte) Outcome {
	p.Kind, p.Segments = KindUnknown, 1
	p.B = b
	if len(b) > 0 && b[0]>>4 != 4 {
		return NotIPv4
	}
	if len(b) < ipv4Len {
		return Malformed
	}
	head := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if head < ipv4Len || total < head || total > len(b) || !soundHeader(b, head) {
		return Malformed
	}
	if head > ipv4Len {
		if o := walkOptions(b[ipv4Len:head]); o != Pass {
			return o
		}
	}
	b = b[:total:total]
	p.B = b
	p.L4 = head
	p.Proto = Proto(b[9])
	p.TTL = b[8]
	p.Src = netip.AddrFrom4([4]byte(b[12:16]))
	p.Dst = netip.AddrFrom4([4]byte(b[16:20]))
	frag := binary.BigEndian.Uint16(b[6:])
	p.DF = frag&flagDF != 0
	if frag&(flagMF|offsetMask) != 0 {
		return p.parseFragment()
	}
	switch p.Proto {
	case TCP:
		return p.parseTCP()
	case UDP:
		return p.parseUDP()
	case ICMP:
		return p.parseICMP()
	}
	return BadProtocol
}

// soundHeader verifies the checksum of the IP header b[:head].
func soundHeader(b []byte, head int) bool {
	if head == ipv4Len { // nearly every packet
		acc := binary.BigEndian.Uint64(b)
		s := acc>>32 + acc&0xffffffff
		acc = binary.BigEndian.Uint64(b[8:])
		s += acc>>32 + acc&0xffffffff + uint64(binary.BigEndian.Uint32(b[16:]))
		return fold(s) == 0xffff
	}
	return sound(b[:head], 0)
}

// walkOptions checks that the options are well-formed (RFC 791 section 3.1),
// that none is a source route (RFC 7126 sections 4.3 and 4.4), and that none
// records addresses (sections 4.5 and 4.7): a sandbox's own stands in the first
// slot before the packet comes here, and no translator would find it. All
// others pass as they are.
func walkOptions(o []byte) Outcome {
	for len(o) > 0 {
		switch o[0] {
		case optionEnd:
			return Pass
		case optionNOP:
			o = o[1:]
			continue
		case optionLSRR, optionSSRR:
			return SourceRoute
		case optionRecordRoute, optionTimestamp:
			return AddressOption
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return Malformed
		}
		o = o[o[1]:]
	}
	return Pass
}

func (p *Packet) parseFragment() Outcome {
	switch p.Proto {
	case TCP, UDP, ICMP:
		p.SrcPort, p.DstPort = 0, 0
		p.Kind = KindFragment
		return Pass
	}
	return BadProtocol
}

// parseTCP refuses combinations of control bits that no connection has: SYN
// with FIN or RST, FIN with RST, and segments with none of SYN, RST and ACK.
// Port 0 cannot be bound by anyone.
func (p *Packet) parseTCP() Outcome {
	t := p.B[p.L4:]
	if len(t) < tcpLen {
		return MalformedL4
	}
	head := int(t[12]>>4) * 4
	if head < tcpLen || head > len(t) {
		return MalformedL4
	}
	p.Flags = TCPFlags(t[13] & 0x3f)
	switch p.Flags & (SYN | FIN | RST | ACK) {
	case SYN, SYN | ACK, RST, RST | ACK, ACK, FIN | ACK:
	default:
		return MalformedL4
	}
	p.SrcPort = binary.BigEndian.Uint16(t)
	p.DstPort = binary.BigEndian.Uint16(t[2:])
	if p.SrcPort == 0 || p.DstPort == 0 {
		return MalformedL4
	}
	p.Seq = binary.BigEndian.Uint32(t[4:])
	p.Ack = binary.BigEndian.Uint32(t[8:])
	p.Window = binary.BigEndian.Uint16(t[14:])
	p.Payload = len(t) - head
	p.Kind = KindTCP
	return Pass
}

// parseUDP lets a datagram end before its IP packet does (RFC 9868 calls the
// rest the surplus area). Source port 0 says that no answer is wanted (RFC 768).
func (p *Packet) parseUDP() Outcome {
	u := p.B[p.L4:]
	if len(u) < udpLen {
		return MalformedL4
	}
	n := int(binary.BigEndian.Uint16(u[4:]))
	if n < udpLen || n > len(u) {
		return MalformedL4
	}
	p.SrcPort = binary.BigEndian.Uint16(u)
	p.DstPort = binary.BigEndian.Uint16(u[2:])
	if p.DstPort == 0 {
		return MalformedL4
	}
	p.Payload = n - udpLen
	p.Kind = KindUDP
	return Pass
}

func (p *Packet) parseICMP() Outcome {
	m := p.B[p.L4:]
	if len(m) < icmpLen {
		return MalformedL4
	}
	p.ICMPType, p.ICMPCode = m[0], m[1]
	switch p.ICMPType {
	case ICMPEchoRequest, ICMPEchoReply:
		if p.ICMPCode != 0 {
			return ICMPType
		}
		p.SrcPort, p.DstPort = identifier(m)
		p.Payload = len(m) - icmpLen
		p.Kind = KindICMPQuery
		return Pass
	case ICMPUnreachable, ICMPTimeExceeded, ICMPParameter:
		return p.parseICMPError(m)
	}
	return ICMPType
}

// identifier returns the identifier of an echo as the port of the side that
// asked, and 0 as that of the other.
func identifier(m []byte) (src, dst uint16) {
	id := binary.BigEndian.Uint16(m[4:])
	if m[0] == ICMPEchoRequest {
		return id, 0
	}
	return 0, id
}

// parseICMPError parses the packet quoted in the error message m (RFC 792).
// The quotation is often cut short, so its total length may exceed what is
// there; eight bytes of its transport header must be.
func (p *Packet) parseICMPError(m []byte) Outcome {
	if !sound(m, 0) {
		return ICMPChecksum
	}
	q := quoted(m)
	if len(q) < ipv4Len+8 || q[0]>>4 != 4 {
		return MalformedL4
	}
	head := int(q[0]&15) * 4
	total := int(binary.BigEndian.Uint16(q[2:]))
	if head < ipv4Len || len(q) < head+8 || total < head+8 {
		return MalformedL4
	}
	if !soundHeader(q, head) {
		return ICMPChecksum
	}
	if head > ipv4Len && walkOptions(q[ipv4Len:head]) != Pass {
		return MalformedL4
	}
	if binary.BigEndian.Uint16(q[6:])&offsetMask != 0 {
		return Fragment // no transport header: nobody can tell whose it was
	}
	e := &p.Inner
	e.Off = p.L4 + icmpLen
	e.L4 = e.Off + head
	e.End = e.Off + min(total, len(q))
	e.Proto = Proto(q[9])
	e.Src = netip.AddrFrom4([4]byte(q[12:16]))
	e.Dst = netip.AddrFrom4([4]byte(q[16:20]))
	e.Seq = 0
	t := q[head:]
	switch e.Proto {
	case TCP:
		e.Seq = binary.BigEndian.Uint32(t[4:])
		fallthrough
	case UDP:
		e.SrcPort = binary.BigEndian.Uint16(t)
		e.DstPort = binary.BigEndian.Uint16(t[2:])
	case ICMP:
		if t[0] != ICMPEchoRequest && t[0] != ICMPEchoReply {
			return ICMPType
		}
		e.SrcPort, e.DstPort = identifier(t)
	default:
		return BadProtocol
	}
	p.SrcPort, p.DstPort = 0, 0
	p.Kind = KindICMPError
	return Pass
}

// quoted returns the part of the error message m that quotes a packet. Its
// length stands in the message where extensions follow (RFC 4884 section 4);
// a length that makes no sense is the unused field of an older sender.
func quoted(m []byte) []byte {
	q := m[icmpLen:]
	if n := int(m[5]) * 4; n >= ipv4Len+8 && n < len(q) {
		return q[:n]
	}
	return q
}

// Data returns the payload of a TCP segment, a UDP datagram or an echo as a
// part of p.B, and nil for other kinds.
func (p *Packet) Data() []byte {
	switch p.Kind {
	case KindTCP:
		return p.B[len(p.B)-p.Payload:]
	case KindUDP:
		return p.B[p.L4+udpLen : p.L4+udpLen+p.Payload]
	case KindICMPQuery:
		return p.B[p.L4+icmpLen:]
	}
	return nil
}

// ChecksumOK verifies the checksum of the transport. Whoever ends the transport
// and writes a new one (a socket, a stack) must ask, because Parse doesn't. A
// UDP datagram without a checksum is sound; a fragment has none to verify.
func (p *Packet) ChecksumOK() bool {
	t := p.B[p.L4:]
	switch p.Kind {
	case KindTCP:
		return sound(t, pseudo(p.B, len(t)))
	case KindUDP:
		t = t[:udpLen+p.Payload]
		return t[6] == 0 && t[7] == 0 || sound(t, pseudo(p.B, len(t)))
	case KindICMPQuery, KindICMPError:
		return sound(t, 0)
	}
	return false
}
