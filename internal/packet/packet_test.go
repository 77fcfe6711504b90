package packet

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

var (
	innerA  = netip.MustParseAddr("10.0.0.7")
	extA    = netip.MustParseAddr("192.0.2.10")
	remoteA = netip.MustParseAddr("198.51.100.20")
	inner   = netip.MustParseAddrPort("10.0.0.7:40000")
	ext     = netip.MustParseAddrPort("192.0.2.10:61234")
	remote  = netip.MustParseAddrPort("198.51.100.20:443")
	gateway = netip.MustParseAddr("10.0.0.1")
)

// slowSum is the sum of RFC 1071 as its text has it.
func slowSum(b []byte, s uint32) uint16 {
	for i, v := range b {
		if i%2 == 0 {
			s += uint32(v) << 8
		} else {
			s += uint32(v)
		}
		if s > 0xffff {
			s -= 0xffff
		}
	}
	return uint16(s)
}

func slowPseudo(b []byte) uint32 {
	head := int(b[0]&15) * 4
	n := len(b) - head
	if b[9] == uint8(UDP) {
		n = int(binary.BigEndian.Uint16(b[head+4:]))
	}
	return uint32(slowSum(b[12:20], uint32(b[9]))) + uint32(n)
}

// soundWhole verifies every checksum of a packet, embedded ones not.
func soundWhole(b []byte) bool {
	head := int(b[0]&15) * 4
	if slowSum(b[:head], 0) != 0xffff {
		return false
	}
	t := b[head:]
	switch Proto(b[9]) {
	case TCP:
		return slowSum(t, slowPseudo(b)) == 0xffff
	case UDP:
		if t[6] == 0 && t[7] == 0 {
			return true
		}
		return slowSum(t[:binary.BigEndian.Uint16(t[4:])], slowPseudo(b)) == 0xffff
	}
	return slowSum(t, 0) == 0xffff
}

// fixHeader recomputes the header checksum after a test has edited b.
func fixHeader(b []byte) []byte {
	head := int(b[0]&15) * 4
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^slowSum(b[:head], 0))
	return b
}

// fixICMP recomputes the ICMP checksum after a test has edited b.
func fixICMP(b []byte) []byte {
	m := b[int(b[0]&15)*4:]
	m[2], m[3] = 0, 0
	binary.BigEndian.PutUint16(m[2:], ^slowSum(m, 0))
	return b
}

func tcpPacket(t testing.TB, h TCPHeader, payload string) []byte {
	t.Helper()
	if h.TTL == 0 {
		h.TTL = 64
	}
	b := make([]byte, 2000)
	n := BuildTCP(b, h, []byte(payload))
	if n == 0 {
		t.Fatal("segment does not fit")
	}
	return b[:n:n]
}

func udpPacket(t testing.TB, src, dst netip.AddrPort, payload string) []byte {
	t.Helper()
	b := make([]byte, 70000)
	n := BuildUDP(b, src, dst, []byte(payload), 64, 7)
	if n == 0 {
		t.Fatal("datagram does not fit")
	}
	return b[:n:n]
}

func echoPacket(t testing.TB, src, dst netip.Addr, reply bool, ident uint16, payload string) []byte {
	t.Helper()
	b := make([]byte, 2000)
	n := BuildICMPEcho(b, Echo{Src: src, Dst: dst, Reply: reply, Ident: ident, Seq: 3, TTL: 64}, []byte(payload))
	if n == 0 {
		t.Fatal("echo does not fit")
	}
	return b[:n:n]
}

// withOptions inserts IP options, which are padded with NOP.
func withOptions(b []byte, options ...byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, optionNOP)
	}
	w := append([]byte{}, b[:20]...)
	w = append(w, options...)
	w = append(w, b[20:]...)
	w[0] = 0x40 | uint8(5+len(options)/4)
	binary.BigEndian.PutUint16(w[2:], uint16(len(w)))
	return fixHeader(w)
}

// errorPacket quotes about in an ICMP error from the remote to the external address.
func errorPacket(t testing.TB, typ, code uint8, about []byte) []byte {
	t.Helper()
	b := make([]byte, 28+len(about))
	ipv4{src: remoteA, dst: extA, proto: ICMP, ttl: 60, id: 9}.put(b, len(b))
	b[20], b[21] = typ, code
	copy(b[28:], about)
	return fixICMP(b)
}

func mustParse(t testing.TB, b []byte) *Packet {
	t.Helper()
	p := new(Packet)
	if o := Parse(p, b); o != Pass {
		t.Fatalf("parse: %v", o)
	}
	return p
}
