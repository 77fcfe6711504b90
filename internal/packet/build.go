package packet

import (
	"encoding/binary"
	"net/netip"
)

// The builders write a whole IPv4 packet into the caller's buffer and return
// its length, or 0 where the buffer is too short or the packet must not be. They
// allocate nothing. A buffer must not overlap the packet that it answers.

// errorMax is the most that an ICMP error may be long (RFC 1812 section 4.3.2.3).
const errorMax = 576

// builtTTL is the TTL of packets that answer others (RFC 1812 section 4.2.2.9).
const builtTTL = 64

// internetControl is the type of service of ICMP errors (RFC 1812 section
// 4.3.2.5: precedence 6).
const internetControl = 0xc0

// ipv4 is what the builders choose in an IP header.
type ipv4 struct {
	src, dst netip.Addr
	proto    Proto
	tos, ttl uint8
	id       uint16 // 0: atomic, sent with DF (RFC 6864 section 4.1)
}

// put writes the header of a packet of total bytes over b[:20].
func (h ipv4) put(b []byte, total int) {
	src, dst := h.src.As4(), h.dst.As4()
	b[0], b[1] = 0x45, h.tos
	binary.BigEndian.PutUint16(b[2:], uint16(total))
	binary.BigEndian.PutUint16(b[4:], h.id)
	flags := uint16(0)
	if h.id == 0 {
		flags = flagDF
	}
	binary.BigEndian.PutUint16(b[6:], flags)
	b[8], b[9], b[10], b[11] = h.ttl, uint8(h.proto), 0, 0
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[offChecksum:], checksum(b[:ipv4Len], 0))
}

// fits says whether a packet of n bytes may be built in dst.
func fits(dst []byte, n int) bool { return n <= len(dst) && n <= 0xffff }

// BuildICMPError builds the ICMP error typ/code about a packet that Parse let
// pass, from the gateway's address towards the packet's source. info is the
// second word of the message: the next hop's MTU of 3/4 (RFC 1191), the pointer
// << 24 of 12/0, else 0. As much is quoted as fits in 576 bytes, from the bytes
// as they stand now: build the error before the packet is rewritten.
//
// An error to the far side about a packet that was translated on its way in must
// quote it as the far side sent it, with the external address. The setters undo
// each other, so whoever has kept the destination puts it back first:
//
//	was := netip.AddrPortFrom(p.Dst, p.DstPort)
//	if table.Ingress(p, now) == packet.Pass && p.DF && len(p.B) > mtu {
//		p.SetDestination(was)
//		n = packet.BuildICMPError(buf, packet.ICMPUnreachable, 4, mtu, was.Addr(), p)
//	}
//
// It returns 0 for other types than 3, 11 and 12, redirects among them, and
// where RFC 1812 section 4.3.2.7 forbids an error: about an ICMP error, a
// fragment other than the first, a packet to or from an address that is not
// one host's.
func BuildICMPError(dst []byte, typ, code uint8, info uint32, from netip.Addr, about *Packet) int {
	switch typ {
	case ICMPUnreachable, ICMPTimeExceeded, ICMPParameter:
	default:
		return 0
	}
	if !mayCauseError(about) || !answerable(about) {
		return 0
	}
	quote := min(len(about.B), errorMax-ipv4Len-icmpLen)
	n := ipv4Len + icmpLen + quote
	if !fits(dst, n) {
		return 0
	}
	h := ipv4{src: from, dst: about.Src, proto: ICMP, tos: internetControl, ttl: builtTTL}
	h.put(dst, n)
	m := dst[ipv4Len:n]
	m[0], m[1], m[2], m[3] = typ, code, 0, 0
	binary.BigEndian.PutUint32(m[4:], info)
	copy(m[icmpLen:], about.B[:quote])
	binary.BigEndian.PutUint16(m[2:], checksum(m, 0))
	return n
}

// mayCauseError says whether p is neither an ICMP error, whole or in part, nor
// a fragment other than the first.
func mayCauseError(p *Packet) bool {
	switch p.Kind {
	case KindUnknown, KindICMPError:
		return false
	case KindFragment:
		if binary.BigEndian.Uint16(p.B[6:])&offsetMask != 0 {
			return false
		}
		if p.Proto == ICMP { // the one field of it that Parse has not looked at
			return len(p.B) > p.L4 && (p.B[p.L4] == ICMPEchoRequest || p.B[p.L4] == ICMPEchoReply)
		}
	}
	return true
}

// answerable says whether p came from one host and went to one.
func answerable(p *Packet) bool {
	src, dst := ClassOf(p.Src), ClassOf(p.Dst)
	return src.Host() && (dst.Host() || dst == ClassLoopback || dst == ClassLinkLocal)
}

// BuildRST builds the reset that answers the TCP segment about as though its
// destination had no such connection (RFC 9293 section 3.5.2). It returns 0
// where about is itself a reset, no TCP segment, or not between two hosts.
func BuildRST(dst []byte, about *Packet) int {
	if about.Kind != KindTCP || about.Flags&RST != 0 || !answerable(about) {
		return 0
	}
	h := TCPHeader{
		Src: netip.AddrPortFrom(about.Dst, about.DstPort),
		Dst: netip.AddrPortFrom(about.Src, about.SrcPort),
		TTL: builtTTL,
	}
	if about.Flags&ACK != 0 {
		h.Flags, h.Seq = RST, about.Ack
	} else {
		h.Flags, h.Ack = RST|ACK, about.End()
	}
	return BuildTCP(dst, h, nil)
}

// End returns the sequence number behind the segment: SEG.SEQ + SEG.LEN of RFC
// 9293, where SYN and FIN count one each. Valid for KindTCP.
func (p *Packet) End() uint32 {
	n := p.Seq + uint32(p.Payload)
	if p.Flags&SYN != 0 {
		n++
	}
	if p.Flags&FIN != 0 {
		n++
	}
	return n
}

// TCPHeader is what BuildTCP writes into the headers.
type TCPHeader struct {
	Src, Dst netip.AddrPort
	Seq, Ack uint32
	Flags    TCPFlags
	Window   uint16
	MSS      uint16 // 0: no such option
	TTL      uint8
	ID       uint16 // identification; 0 sends DF
}

// BuildTCP builds a TCP segment.
func BuildTCP(dst []byte, h TCPHeader, payload []byte) int {
	head := tcpLen
	if h.MSS != 0 {
		head += 4
	}
	n := ipv4Len + head + len(payload)
	if !fits(dst, n) {
		return 0
	}
	t := dst[ipv4Len:n]
	copy(t[head:], payload)
	clear(t[:head])
	binary.BigEndian.PutUint16(t, h.Src.Port())
	binary.BigEndian.PutUint16(t[2:], h.Dst.Port())
	binary.BigEndian.PutUint32(t[4:], h.Seq)
	binary.BigEndian.PutUint32(t[8:], h.Ack)
	t[12] = uint8(head / 4 << 4)
	t[13] = uint8(h.Flags)
	binary.BigEndian.PutUint16(t[14:], h.Window)
	if h.MSS != 0 {
		t[20], t[21] = 2, 4
		binary.BigEndian.PutUint16(t[22:], h.MSS)
	}
	ip := ipv4{src: h.Src.Addr(), dst: h.Dst.Addr(), proto: TCP, ttl: h.TTL, id: h.ID}
	ip.put(dst, n)
	binary.BigEndian.PutUint16(t[16:], checksum(t, pseudo(dst, len(t))))
	return n
}

// BuildUDP builds a UDP datagram. With id 0 it is sent with DF; another id is
// that of a datagram that may be fragmented. The payload may already stand in
// its place, dst[28:].
func BuildUDP(dst []byte, src, to netip.AddrPort, payload []byte, ttl uint8, id uint16) int {
	n := ipv4Len + udpLen + len(payload)
	if !fits(dst, n) {
		return 0
	}
	u := dst[ipv4Len:n]
	copy(u[udpLen:], payload)
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	u[6], u[7] = 0, 0
	ip := ipv4{src: src.Addr(), dst: to.Addr(), proto: UDP, ttl: ttl, id: id}
	ip.put(dst, n)
	c := checksum(u, pseudo(dst, len(u)))
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(u[6:], c)
	return n
}

// Echo is what BuildICMPEcho writes into the headers.
type Echo struct {
	Src, Dst netip.Addr
	Reply    bool   // an echo reply rather than a request
	Ident    uint16 // identifier
	Seq      uint16
	TTL      uint8
	ID       uint16 // identification; 0 sends DF
}

// BuildICMPEcho builds an echo request or reply. The payload may already stand
// in its place, dst[28:].
func BuildICMPEcho(dst []byte, e Echo, payload []byte) int {
	n := ipv4Len + icmpLen + len(payload)
	if !fits(dst, n) {
		return 0
	}
	m := dst[ipv4Len:n]
	copy(m[icmpLen:], payload)
	m[0], m[1], m[2], m[3] = ICMPEchoRequest, 0, 0, 0
	if e.Reply {
		m[0] = ICMPEchoReply
	}
	binary.BigEndian.PutUint16(m[4:], e.Ident)
	binary.BigEndian.PutUint16(m[6:], e.Seq)
	ip := ipv4{src: e.Src, dst: e.Dst, proto: ICMP, ttl: e.TTL, id: e.ID}
	ip.put(dst, n)
	binary.BigEndian.PutUint16(m[2:], checksum(m, 0))
	return n
}
