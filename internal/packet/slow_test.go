package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// slowPacket is a packet told by what it says, and written out whole with sums
// computed word by word: the oracle of everything that amends in place.
type slowPacket struct {
	proto    Proto
	tos, ttl uint8
	id       uint16
	df       bool
	options  []byte // of the IP header, whole words
	src, dst netip.AddrPort
	reply    bool   // of an echo: its identifier is dst's port
	none     bool   // of a datagram: no checksum
	l4       []byte // the transport with its payload; ports and checksum are put in
}

func (s slowPacket) bytes() []byte {
	t := bytes.Clone(s.l4)
	check := map[Proto]int{TCP: 16, UDP: 6, ICMP: 2}[s.proto]
	t[check], t[check+1] = 0, 0
	switch {
	case s.proto != ICMP:
		binary.BigEndian.PutUint16(t, s.src.Port())
		binary.BigEndian.PutUint16(t[2:], s.dst.Port())
	case s.reply:
		t[0] = ICMPEchoReply
		binary.BigEndian.PutUint16(t[4:], s.dst.Port())
	default:
		t[0] = ICMPEchoRequest
		binary.BigEndian.PutUint16(t[4:], s.src.Port())
	}
	src, dst := s.src.Addr().As4(), s.dst.Addr().As4()
	h := slices.Concat([]byte{0x45 + uint8(len(s.options)/4), s.tos, 0, 0, 0, 0, 0, 0, s.ttl, uint8(s.proto), 0, 0}, src[:], dst[:], s.options)
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(t)))
	binary.BigEndian.PutUint16(h[4:], s.id)
	if s.df {
		h[6] = 0x40
	}
	b := fixHeader(append(h, t...))
	t = b[len(h):]
	sum := uint32(0)
	if s.proto != ICMP {
		sum = slowPseudo(b)
	}
	switch c := ^slowSum(t, sum); {
	case s.none:
	case s.proto == UDP && c == 0:
		t[check], t[check+1] = 0xff, 0xff
	default:
		binary.BigEndian.PutUint16(t[check:], c)
	}
	return b
}

// drawSlow draws a sound packet: any service type, options of the IP and of the
// TCP header, payloads that make the sums of both zeros likely.
func drawSlow(t *rapid.T) slowPacket {
	s := slowPacket{
		proto: rapid.SampledFrom([]Proto{TCP, UDP, UDP, ICMP}).Draw(t, "proto"),
		tos:   rapid.Uint8().Draw(t, "tos"),
		ttl:   rapid.Uint8Range(2, 255).Draw(t, "ttl"),
		id:    rapid.Uint16().Draw(t, "id"),
		df:    rapid.Bool().Draw(t, "df"),
		src:   drawAddrPort(t, "src"),
		dst:   drawAddrPort(t, "dst"),
		reply: rapid.Bool().Draw(t, "reply"),
		options: rapid.SampledFrom([][]byte{nil, nil, {148, 4, 0, 0}, {30, 3, 9, 1}, {1, 1, 1, 0},
			{130, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1}, bytes.Repeat([]byte{1}, 40)}).Draw(t, "options"),
	}
	payload := rapid.SliceOfN(rapid.OneOf(rapid.Byte(), rapid.SampledFrom([]byte{0, 0xff})), 0, 40).Draw(t, "payload")
	switch s.proto {
	case TCP:
		options := rapid.SampledFrom([][]byte{nil, {2, 4, 5, 180}, {1, 2, 4, 5, 180, 1, 1, 0}, {1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}}).Draw(t, "TCP options")
		h := make([]byte, tcpLen)
		binary.BigEndian.PutUint32(h[4:], rapid.Uint32().Draw(t, "seq"))
		h[12] = uint8(5+len(options)/4) << 4
		h[13] = uint8(rapid.SampledFrom([]TCPFlags{SYN, SYN | ACK, ACK, FIN | ACK, RST, ACK | 0xc0}).Draw(t, "flags"))
		s.l4 = slices.Concat(h, options, payload)
	case UDP:
		s.none = rapid.Bool().Draw(t, "no checksum")
		s.l4 = append([]byte{0, 0, 0, 0, 0, uint8(udpLen + len(payload)), 0, 0}, payload...)
	default:
		s.l4 = append(make([]byte, icmpLen), payload...)
	}
	return s
}

// U-10, T-6: a rewrite leaves, byte for byte, the packet that would
// have been sent with the other endpoints: every sum right, the service type, the
// options and the payload as they were.
func TestRewriteIsTheOtherPacketByteForByte(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSlow(t)
		b := s.bytes()
		p := mustParseRapid(t, b)
		to := drawAddrPort(t, "to")
		switch rapid.IntRange(0, 3).Draw(t, "what") {
		case 0:
			p.SetSource(to)
			if s.proto == ICMP && s.reply { // no identifier on this side
				to = netip.AddrPortFrom(to.Addr(), 0)
			}
			s.src = to
		case 1:
			p.SetDestination(to)
			if s.proto == ICMP && !s.reply {
				to = netip.AddrPortFrom(to.Addr(), 0)
			}
			s.dst = to
		case 2:
			p.DecrementTTL()
			s.ttl--
		case 3:
			s.id = rapid.Uint16().Draw(t, "new id")
			p.SetID(s.id)
		}
		if want := s.bytes(); !bytes.Equal(b, want) {
			t.Fatalf("\n% x, want\n% x", b, want)
		}
		if want := mustParseRapid(t, s.bytes()); want.Src != p.Src || want.Dst != p.Dst || want.SrcPort != p.SrcPort ||
			want.DstPort != p.DstPort || want.TTL != p.TTL || !p.ChecksumOK() {
			t.Fatalf("the view is %+v", p)
		}
	})
}

// quotation is how a router quotes a packet.
type quotation struct {
	keep       int  // bytes quoted at most
	fragment   int  // the packet was quoted as its first fragment of that many bytes of payload; 0: whole
	extensions bool // followed by what RFC 4884 allows
	options    []byte
}

func drawQuotation(t *rapid.T) quotation {
	return quotation{
		keep:       rapid.SampledFrom([]int{28, 31, 36, 37, 38, 39, 60, 128, 548}).Draw(t, "keep"),
		fragment:   rapid.SampledFrom([]int{0, 0, 8, 24}).Draw(t, "fragment"),
		extensions: rapid.Bool().Draw(t, "extensions"),
		options:    rapid.SampledFrom([][]byte{nil, {148, 4, 0, 0}}).Draw(t, "outer options"),
	}
}

// message returns the ICMP error from one host to another that quotes about.
func (q quotation) message(from, to netip.Addr, about []byte) []byte {
	about = bytes.Clone(about)
	head := int(about[0]&15) * 4
	if n := head + q.fragment; q.fragment > 0 && n < len(about) {
		about = about[:n]
		binary.BigEndian.PutUint16(about[2:], uint16(n))
		about[6] |= flagMF >> 8
		fixHeader(about)
	}
	keep, words := max(q.keep, head+8), 0
	if q.extensions { // then it is 128 bytes at least, if there are as many
		keep = max(keep, 128)
	}
	about = about[:min(len(about), keep)]
	if q.extensions {
		about = append(about, make([]byte, max(0, 128-len(about)))...)
		about = append(about, make([]byte, -len(about)&3)...)
		words = len(about) / 4
		about = append(about, 0x20, 0, 0, 0, 0, 8, 1, 1, 0xaa, 0xbb, 0xcc, 0xdd)
	}
	b := make([]byte, 28+len(about))
	ipv4{src: from, dst: to, proto: ICMP, ttl: 60, id: 9}.put(b, len(b))
	b[20], b[21], b[25] = ICMPTimeExceeded, 0, uint8(words)
	copy(b[28:], about)
	return fixICMP(withOptions(b, q.options...))
}

// I-3 b, I-3 d, I-4, I-5, R-14, A-18: an error that is translated is, byte for
// byte, the one that would have come without a translator in between: about whole
// packets and first fragments, with options, quoted short or long, with
// extensions behind, which stay as they are.
func TestEmbeddedRewriteIsTheOtherErrorByteForByte(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, q := drawSlow(t), drawQuotation(t)
		if s.proto == TCP && q.keep == 20+len(s.options)+17 { // half a checksum cannot be amended
			q.keep++
		}
		router := drawAddr(t, "router")
		out, in := s.src, drawAddrPort(t, "inner")
		if s.proto == ICMP && s.reply {
			in, out = netip.AddrPortFrom(in.Addr(), 0), netip.AddrPortFrom(out.Addr(), 0)
		}
		external := s.bytes()
		s.src = in
		inner := s.bytes()
		b := q.message(router, out.Addr(), external)
		was := bytes.Clone(b)
		p := mustParseRapid(t, b)
		p.SetEmbeddedSource(in)
		p.SetDestination(in)
		if want := q.message(router, in.Addr(), inner); !bytes.Equal(b, want) {
			t.Fatalf("\n% x, want\n% x", b, want)
		}
		if again := mustParseRapid(t, b); again.Inner != p.Inner || again.Dst != p.Dst {
			t.Fatalf("view and bytes differ: %+v, %+v", again, p)
		}
		p.SetEmbeddedSource(out)
		p.SetDestination(out)
		if !bytes.Equal(b, was) {
			t.Fatalf("not undone\n% x, want\n% x", b, was)
		}
		// The other end of the quotation, as an inner host reports on what it was sent.
		far := drawAddrPort(t, "far")
		p.SetEmbeddedDestination(far)
		if s.proto == ICMP && !s.reply {
			far = netip.AddrPortFrom(far.Addr(), 0)
		}
		s.src, s.dst = out, far
		if want := q.message(router, out.Addr(), s.bytes()); !bytes.Equal(b, want) {
			t.Fatalf("destination\n% x, want\n% x", b, want)
		}
	})
}

// put back by SetDestination, a packet is quoted to its sender as it was
// sent, with the external address, and the inner one is nowhere.
func TestTooBigIsToldWithTheExternalAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSlow(t)
		s.df, s.src, s.dst = true, remote, ext
		s.reply = true // no request comes in
		if s.proto != ICMP {
			s.l4 = append(s.l4, make([]byte, 1440)...)
		}
		if s.proto == UDP {
			binary.BigEndian.PutUint16(s.l4[4:], uint16(len(s.l4)))
		}
		b := s.bytes()
		was := bytes.Clone(b)
		p := mustParseRapid(t, b)
		before := netip.AddrPortFrom(p.Dst, p.DstPort)
		p.SetDestination(inner) // as the table does
		p.SetDestination(before)
		buf := make([]byte, 600)
		n := BuildICMPError(buf, ICMPUnreachable, 4, 1420, before.Addr(), p)
		e := mustParseRapid(t, buf[:n])
		if e.Src != extA || e.Dst != remoteA || binary.BigEndian.Uint16(buf[26:]) != 1420 || !bytes.Equal(buf[28:n], was[:n-28]) {
			t.Fatalf("\n% x about\n% x", buf[:n], was)
		}
		if in := innerA.As4(); bytes.Contains(buf[:n], in[:]) && !bytes.Contains(was, in[:]) {
			t.Fatal("the inner address is in the error")
		}
	})
}

// what lies behind a packet's total length neither matters nor is touched.
func TestNothingBehindThePacketMatters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawSlow(t).bytes()
		if rapid.Bool().Draw(t, "error") {
			b = drawQuotation(t).message(remoteA, extA, b)
		}
		tail := rapid.SliceOfN(rapid.Byte(), 1, 60).Draw(t, "tail")
		tight, wide := slices.Clip(bytes.Clone(b)), slices.Concat(b, tail)
		p, q := mustParseRapid(t, tight), mustParseRapid(t, wide)
		for _, v := range []*Packet{p, q} {
			v.SetSource(ext)
			v.SetDestination(remote)
			v.SetEmbeddedSource(remote)
			v.SetEmbeddedDestination(inner)
			v.ClampMSS(1000)
			v.DecrementTTL()
		}
		if !bytes.Equal(tight, wide[:len(tight)]) || !bytes.Equal(wide[len(tight):], tail) || cap(q.B) != len(tight) {
			t.Fatalf("\n% x\n% x", tight, wide)
		}
		p.B, q.B = nil, nil
		if !reflect.DeepEqual(p, q) {
			t.Fatalf("%+v, %+v", p, q)
		}
	})
}

// U-10, T-6, A-1: no payload is read for addresses, on any port: not a byte of it
// changes, whatever it says and however it is cut.
func TestPayloadsOfOtherGatewaysAreLeftAlone(t *testing.T) {
	payloads := []string{
		"PORT 10,0,0,7,156,64\r\n", "EPRT |1|10.0.0.7|40000|\r\n", "227 Entering Passive Mode (10,0,0,7,156,64)\r\n",
		"REGISTER sip:198.51.100.20 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.7:40000\r\nContact: <sip:x@10.0.0.7:40000>\r\nContent-Length: 0\r\n\r\n",
		"SETUP rtsp://198.51.100.20/ RTSP/1.0\r\nTransport: RTP/AVP;unicast;client_port=40000-40001\r\n\r\n",
		"PRIVMSG x :\x01DCC SEND f 167772167 40000 9\x01\r\n", "\x00\x01file\x00octet\x00",
		"\x00\x10\x00\x01\x1a\x2b\x3c\x4d\x00\x07\x00\x00\x9c\x40", "\x03\x00\x00\x10\x08\x02\x0a\x00\x00\x07\x9c\x40",
	}
	for _, port := range []uint16{21, 69, 554, 1719, 1720, 1723, 5060, 5061, 6667} {
		to := netip.AddrPortFrom(remoteA, port)
		for _, say := range payloads {
			for cut := 0; cut <= len(say); cut += 7 { // as two segments or datagrams
				for _, part := range []string{say[:cut], say[cut:]} {
					for _, b := range [][]byte{
						tcpPacket(t, TCPHeader{Src: inner, Dst: to, Flags: PSH | ACK, Seq: 1}, part),
						udpPacket(t, inner, to, part),
					} {
						p := mustParse(t, b)
						p.SetSource(ext)
						p.ClampMSS(500)
						p.DecrementTTL()
						if again := mustParse(t, b); string(again.Data()) != part || again.Src != extA || !again.ChecksumOK() {
							t.Fatalf("port %d: %q became %q", port, part, again.Data())
						}
						p.SetDestination(inner) // and the other way
						if again := mustParse(t, b); string(again.Data()) != part {
							t.Fatalf("port %d: %q became %q on its way back", port, part, again.Data())
						}
					}
				}
			}
		}
	}
}
