package packet

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func edit(b []byte, f func(b []byte)) []byte {
	f(b)
	return b
}

func TestParseKinds(t *testing.T) {
	seg := tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Seq: 100, Ack: 200, Flags: PSH | ACK, Window: 512}, "hello")
	p := mustParse(t, append(seg, 0, 0, 0)) // link padding is trimmed
	if p.Kind != KindTCP || p.Proto != TCP || len(p.B) != len(seg) || p.TTL != 64 || !p.DF ||
		p.Src != innerA || p.Dst != remoteA || p.SrcPort != 40000 || p.DstPort != 443 ||
		p.Seq != 100 || p.Ack != 200 || p.Flags != PSH|ACK || p.Window != 512 || string(p.Data()) != "hello" {
		t.Errorf("segment: %+v", p)
	}
	p = mustParse(t, udpPacket(t, inner, remote, "ping"))
	if p.Kind != KindUDP || p.DF || p.ID() != 7 || p.SrcPort != 40000 || p.DstPort != 443 || string(p.Data()) != "ping" {
		t.Errorf("datagram: %+v", p)
	}
	p = mustParse(t, echoPacket(t, innerA, remoteA, false, 77, "abc"))
	if p.Kind != KindICMPQuery || p.SrcPort != 77 || p.DstPort != 0 || p.ICMPType != 8 || string(p.Data()) != "abc" {
		t.Errorf("request: %+v", p)
	}
	p = mustParse(t, echoPacket(t, remoteA, extA, true, 77, "abc"))
	if p.SrcPort != 0 || p.DstPort != 77 || p.ICMPType != 0 {
		t.Errorf("reply: %+v", p)
	}
	p = mustParse(t, fixHeader(edit(udpPacket(t, inner, remote, "ping"), func(b []byte) { b[6] = 0x20 })))
	if p.Kind != KindFragment || p.Data() != nil || p.ChecksumOK() {
		t.Errorf("fragment: %+v", p)
	}
	p = mustParse(t, withOptions(udpPacket(t, inner, remote, "ping"), 30, 7, 4, 0, 0, 0, 0)) // an experiment of RFC 4727
	if p.L4 != 28 || string(p.Data()) != "ping" {
		t.Errorf("options: %+v", p)
	}
}

// I-3 b, I-3 d, T-9: what an error quotes is found behind options and before extensions.
func TestParseEmbedded(t *testing.T) {
	seg := tcpPacket(t, TCPHeader{Src: ext, Dst: remote, Seq: 99, Flags: SYN}, "")
	p := mustParse(t, errorPacket(t, 3, 4, seg[:28])) // eight bytes of transport are all that is certain
	e := p.Inner
	if p.Kind != KindICMPError || p.ICMPType != 3 || p.ICMPCode != 4 || e.Proto != TCP || e.Src != extA || e.Dst != remoteA ||
		e.SrcPort != 61234 || e.DstPort != 443 || e.Seq != 99 || e.Off != 28 || e.L4 != 48 || e.End != 56 {
		t.Errorf("%+v", p)
	}
	p = mustParse(t, errorPacket(t, 11, 0, withOptions(echoPacket(t, extA, remoteA, false, 5, "x"), 148, 4, 0, 0)))
	if e := p.Inner; e.Proto != ICMP || e.SrcPort != 5 || e.DstPort != 0 || e.L4 != 52 {
		t.Errorf("embedded options: %+v", p)
	}
	// RFC 4884: 128 bytes of quotation, then extensions (RFC 4950).
	quote := make([]byte, 128)
	copy(quote, udpPacket(t, ext, remote, "traceroute"))
	b := errorPacket(t, 11, 0, append(quote, 0x20, 0, 0, 0, 0, 8, 1, 1, 1, 2, 3, 4))
	b[25] = 32
	p = mustParse(t, fixICMP(b))
	if e := p.Inner; e.SrcPort != 61234 || e.End != 28+38 {
		t.Errorf("extensions: %+v", p)
	}
	b[25] = 200 // longer than the message: an unused field of an old router
	mustParse(t, fixICMP(b))
}

// C-1, I-3: what is dropped, and for which reason.
func TestParseRefuses(t *testing.T) {
	udp := func() []byte { return udpPacket(t, inner, remote, "0123456789abcdef") }
	tcp := func() []byte { return tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: ACK, MSS: 1460}, "x") }
	flags := func(f TCPFlags) []byte { return tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: f}, "") }
	echo := func() []byte { return echoPacket(t, innerA, remoteA, false, 1, "x") }
	icmp := func(about []byte) []byte { return errorPacket(t, 3, 3, about) }
	for _, row := range []struct {
		name string
		b    []byte
		want Outcome
	}{
		{"empty", nil, Malformed},
		{"one byte", []byte{0x45}, Malformed},
		{"19 bytes", udp()[:19], Malformed},
		{"IPv6", append([]byte{0x60}, make([]byte, 60)...), NotIPv4},
		{"version 0", make([]byte, 40), NotIPv4},
		{"IHL 4 (R-2)", fixHeader(edit(udp(), func(b []byte) { b[0] = 0x44 })), Malformed},
		{"IHL beyond the frame", edit(udp()[:28], func(b []byte) { b[0] = 0x4f; b[3] = 28 }), Malformed},
		{"total length beyond the frame (R-2)", udp()[:43], Malformed},
		{"total length below the header", fixHeader(edit(udp(), func(b []byte) { b[2], b[3] = 0, 19 })), Malformed},
		{"header checksum (R-2)", edit(udp(), func(b []byte) { b[10] ^= 1 }), Malformed},
		{"LSRR (R-5)", withOptions(udp(), 131, 7, 4, 1, 2, 3, 4), SourceRoute},
		{"SSRR behind NOPs (R-5)", withOptions(udp(), 1, 1, 137, 3, 4), SourceRoute},
		{"LSRR behind another option", withOptions(udp(), 30, 3, 4, 131, 3, 4), SourceRoute},
		{"record route (R-5, A-18)", withOptions(udp(), 7, 7, 8, 10, 0, 0, 7), AddressOption},
		{"timestamp behind router alert (R-5, A-18)", withOptions(udp(), 148, 4, 0, 0, 68, 12, 13, 1, 10, 0, 0, 7, 0, 0, 0, 0), AddressOption},
		{"option of length 1", withOptions(udp(), 30, 1, 0, 0), Malformed},
		{"option beyond the header", withOptions(udp(), 30, 9, 0, 0), Malformed},
		{"option without a length", withOptions(udp(), 1, 1, 1, 30), Malformed},
		{"GRE (C-1)", fixHeader(edit(udp(), func(b []byte) { b[9] = 47 })), BadProtocol},
		{"fragment of ESP", fixHeader(edit(udp(), func(b []byte) { b[9], b[6] = 50, 0x20 })), BadProtocol},
		{"UDP header cut", fixHeader(edit(udp()[:27], func(b []byte) { b[3] = 27 })), MalformedL4},
		{"UDP length 7", edit(udp(), func(b []byte) { b[25] = 7 }), MalformedL4},
		{"UDP length beyond the packet", edit(udp(), func(b []byte) { b[25]++ }), MalformedL4},
		{"UDP to port 0", edit(udp(), func(b []byte) { b[22], b[23] = 0, 0 }), MalformedL4},
		{"TCP header cut", fixHeader(edit(tcp()[:39], func(b []byte) { b[3] = 39 })), MalformedL4},
		{"TCP data offset 4", edit(tcp(), func(b []byte) { b[32] = 0x40 }), MalformedL4},
		{"TCP data offset beyond the packet", edit(tcp(), func(b []byte) { b[32] = 0xf0 }), MalformedL4},
		{"TCP from port 0", edit(tcp(), func(b []byte) { b[20], b[21] = 0, 0 }), MalformedL4},
		{"TCP to port 0", edit(tcp(), func(b []byte) { b[22], b[23] = 0, 0 }), MalformedL4},
		{"null scan", flags(0), MalformedL4},
		{"Xmas scan", flags(FIN | PSH | URG), MalformedL4},
		{"SYN FIN", flags(SYN | FIN), MalformedL4},
		{"SYN RST", flags(SYN | RST), MalformedL4},
		{"FIN RST ACK", flags(FIN | RST | ACK), MalformedL4},
		{"bare FIN", flags(FIN), MalformedL4},
		{"ICMP header cut", fixHeader(edit(echo()[:27], func(b []byte) { b[3] = 27 })), MalformedL4},
		{"echo code 1", edit(echo(), func(b []byte) { b[21] = 1 }), ICMPType},
		{"redirect (R-13, A-12)", errorPacket(t, 5, 1, udp()), ICMPType},
		{"source quench (A-11)", errorPacket(t, 4, 0, udp()), ICMPType},
		{"timestamp (I-10)", errorPacket(t, 13, 0, udp()), ICMPType},
		{"ICMP checksum (I-3)", edit(icmp(udp()), func(b []byte) { b[22] ^= 1 }), ICMPChecksum},
		{"embedded IP checksum (I-3 a)", icmp(edit(udp(), func(b []byte) { b[8]-- })), ICMPChecksum},
		{"embedded version 6", icmp(edit(udp(), func(b []byte) { b[0] = 0x65 })), MalformedL4},
		{"embedded IHL 4 (A-26)", icmp(edit(udp(), func(b []byte) { b[0] = 0x44 })), MalformedL4},
		{"embedded IHL beyond the quotation", icmp(edit(udp()[:30], func(b []byte) { b[0] = 0x46 })), MalformedL4},
		{"seven bytes of transport quoted", icmp(udp()[:27]), MalformedL4},
		{"embedded total length too small", icmp(fixHeader(edit(udp(), func(b []byte) { b[3] = 27 }))), MalformedL4},
		{"embedded option of length 0", icmp(withOptions(udp(), 30, 0, 0, 0)), MalformedL4},
		{"embedded record route (A-18)", icmp(withOptions(udp(), 7, 7, 8, 10, 0, 0, 7)), MalformedL4},
		{"embedded later fragment", icmp(fixHeader(edit(udp(), func(b []byte) { b[7] = 1 }))), Fragment},
		{"embedded GRE", icmp(fixHeader(edit(udp(), func(b []byte) { b[9] = 47 }))), BadProtocol},
		{"error about an error", icmp(errorPacket(t, 3, 3, udp())), ICMPType},
	} {
		p := Packet{Kind: KindTCP}
		if got := Parse(&p, row.b); got != row.want {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
		if p.Kind != KindUnknown {
			t.Errorf("%s: kind %d survived", row.name, p.Kind)
		}
	}
}

// Whatever is wrong with the transport's checksum is not Parse's business.
func TestParseLeavesTransportChecksumAlone(t *testing.T) {
	for _, b := range [][]byte{
		tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: ACK}, "abc"),
		udpPacket(t, inner, remote, "abc"),
		echoPacket(t, innerA, remoteA, false, 1, "abc"),
	} {
		if p := mustParse(t, b); !p.ChecksumOK() {
			t.Errorf("proto %d: a good checksum is refused", p.Proto)
		}
		b[len(b)-1] ^= 0x40
		if p := mustParse(t, b); p.ChecksumOK() {
			t.Errorf("proto %d: a bad checksum is believed", p.Proto)
		}
	}
	b := udpPacket(t, inner, remote, "abc")
	b[26], b[27] = 0, 0
	if p := mustParse(t, b); !p.ChecksumOK() {
		t.Error("a datagram without a checksum is refused")
	}
}

// A quotation's own transport checksum is not verified (I-3 c).
func TestParseIgnoresEmbeddedTransportChecksum(t *testing.T) {
	b := udpPacket(t, ext, remote, "abc")
	b[26] ^= 0xff
	mustParse(t, errorPacket(t, 3, 3, b))
}

// the sum is that of RFC 1071's text, from every start and of every length.
func TestChecksumAgainstText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "bytes")
		if rapid.Bool().Draw(t, "ones") {
			for i := range b {
				b[i] |= 0xfe
			}
		}
		acc := rapid.SampledFrom([]uint64{0, 1, 0xffff, 0xffff_ffff_ffff, 1<<64 - 1}).Draw(t, "acc")
		got, want := fold(sum(b, acc)), slowSum(b, uint32(fold(acc)))
		if got%0xffff != want%0xffff { // the two zeros are one number
			t.Fatalf("sum %#x, want %#x", got, want)
		}
	})
}

// the blocks and their edges.
func TestClassOf(t *testing.T) {
	for s, want := range map[string]Class{
		"0.0.0.0": ClassThisNetwork, "0.255.255.255": ClassThisNetwork, "1.0.0.0": ClassGlobal,
		"9.255.255.255": ClassGlobal, "10.0.0.0": ClassPrivate, "10.255.255.255": ClassPrivate, "11.0.0.0": ClassGlobal,
		"100.63.255.255": ClassGlobal, "100.64.0.0": ClassShared, "100.127.255.255": ClassShared, "100.128.0.0": ClassGlobal,
		"126.255.255.255": ClassGlobal, "127.0.0.0": ClassLoopback, "127.255.255.255": ClassLoopback, "128.0.0.0": ClassGlobal,
		"169.253.255.255": ClassGlobal, "169.254.169.254": ClassLinkLocal, "169.255.0.0": ClassGlobal,
		"172.15.255.255": ClassGlobal, "172.16.0.0": ClassPrivate, "172.31.255.255": ClassPrivate, "172.32.0.0": ClassGlobal,
		"192.167.255.255": ClassGlobal, "192.168.0.0": ClassPrivate, "192.168.255.255": ClassPrivate, "192.169.0.0": ClassGlobal,
		"223.255.255.255": ClassGlobal, "224.0.0.0": ClassMulticast, "239.255.255.255": ClassMulticast,
		"240.0.0.0": ClassReserved, "255.255.255.254": ClassReserved, "255.255.255.255": ClassBroadcast,
		"::1": ClassInvalid, "::ffff:10.0.0.1": ClassInvalid,
	} {
		got := ClassOf(netip.MustParseAddr(s))
		if got != want {
			t.Errorf("%s: %v, want %v", s, got, want)
		}
		host := want == ClassGlobal || want == ClassPrivate || want == ClassShared
		if got.Host() != host {
			t.Errorf("%s: host %v", s, got.Host())
		}
	}
	if ClassOf(netip.Addr{}) != ClassInvalid {
		t.Error("no address has a class")
	}
	seen := map[string]bool{}
	for c := ClassInvalid; c <= ClassShared; c++ {
		if seen[c.String()] {
			t.Errorf("class %d shares the name %q", c, c)
		}
		seen[c.String()] = true
	}
}

func TestSurplusArea(t *testing.T) {
	b := udpPacket(t, inner, remote, "0123456789")
	binary.BigEndian.PutUint16(b[24:], 8+4)
	if p := mustParse(t, b); string(p.Data()) != "0123" {
		t.Errorf("data %q", p.Data())
	}
}
