package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// an error has 576 bytes at most, and comes from the gateway.
func TestBuildICMPError(t *testing.T) {
	buf := make([]byte, 2000)
	about := mustParse(t, udpPacket(t, inner, remote, strings.Repeat("x", 1000)))
	n := BuildICMPError(buf, 3, 4, 1420, gateway, about)
	if n != 576 {
		t.Fatalf("length %d", n)
	}
	p := mustParse(t, buf[:n])
	if p.Kind != KindICMPError || p.Src != gateway || p.Dst != innerA || p.TTL != 64 || p.ICMPType != 3 || p.ICMPCode != 4 ||
		binary.BigEndian.Uint16(buf[26:]) != 1420 || !bytes.Equal(buf[28:n], about.B[:548]) || !soundWhole(buf[:n]) {
		t.Errorf("%+v", p)
	}
	about = mustParse(t, echoPacket(t, innerA, remoteA, false, 1, "abc"))
	if n := BuildICMPError(buf, 11, 0, 0, gateway, about); n != 28+31 || !soundWhole(buf[:n]) {
		t.Errorf("a short packet makes an error of %d bytes", n)
	}
	if n := BuildICMPError(buf[:58], 11, 0, 0, gateway, about); n != 0 {
		t.Errorf("wrote %d bytes into 58", n)
	}
}

// TestNoErrorAbout is R-6.
func TestNoErrorAbout(t *testing.T) {
	buf := make([]byte, 600)
	from := func(s string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), 9) }
	frag := func(hi, lo byte) []byte {
		b := udpPacket(t, inner, remote, "0123456789")
		b[6], b[7] = hi, lo
		return fixHeader(b)
	}
	for _, row := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"a datagram", udpPacket(t, inner, remote, "x"), true},
		{"an echo reply", echoPacket(t, innerA, remoteA, true, 1, "x"), true},
		{"a first fragment", frag(0x20, 0), true},
		{"a middle fragment", frag(0x20, 1), false},
		{"a last fragment", frag(0, 1), false},
		{"an error", errorPacket(t, 3, 3, udpPacket(t, ext, remote, "x")), false},
		{"to the metadata service", udpPacket(t, inner, from("169.254.169.254"), "x"), true},
		{"to loopback", udpPacket(t, inner, from("127.0.0.9"), "x"), true},
		{"to broadcast", udpPacket(t, inner, from("255.255.255.255"), "x"), false},
		{"to multicast", udpPacket(t, inner, from("224.0.0.251"), "x"), false},
		{"to class E", udpPacket(t, inner, from("240.0.0.1"), "x"), false},
		{"from 0/8", udpPacket(t, from("0.0.0.0"), remote, "x"), false},
		{"from loopback", udpPacket(t, from("127.0.0.1"), remote, "x"), false},
		{"from multicast", udpPacket(t, from("224.0.0.1"), remote, "x"), false},
		{"from class E", udpPacket(t, from("255.255.255.255"), remote, "x"), false},
	} {
		if got := BuildICMPError(buf, 3, 13, 0, gateway, mustParse(t, row.b)) != 0; got != row.want {
			t.Errorf("about %s: %v", row.name, got)
		}
	}
	if BuildICMPError(buf, 3, 13, 0, gateway, &Packet{}) != 0 {
		t.Error("about nothing")
	}
}

// RFC 9293 section 3.5.2, R-6: the reset that a closed port would send.
func TestBuildRST(t *testing.T) {
	buf := make([]byte, 100)
	for _, row := range []struct {
		name     string
		flags    TCPFlags
		payload  string
		seq, ack uint32
		want     TCPFlags
	}{
		{"ACK", ACK, "data", 700, 0, RST},
		{"SYN ACK", SYN | ACK, "", 700, 0, RST},
		{"SYN", SYN, "", 0, 1001, RST | ACK},
		{"SYN with data", SYN, "four", 0, 1005, RST | ACK},
	} {
		b := tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Seq: 1000, Ack: 700, Flags: row.flags}, row.payload)
		n := BuildRST(buf, mustParse(t, b))
		p := mustParse(t, buf[:n])
		if p.Src != remoteA || p.Dst != innerA || p.SrcPort != 443 || p.DstPort != 40000 ||
			p.Flags != row.want || p.Seq != row.seq || p.Ack != row.ack || p.Payload != 0 || !soundWhole(buf[:n]) {
			t.Errorf("%s: %+v", row.name, p)
		}
	}
	for name, b := range map[string][]byte{
		"a reset":    tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: RST}, ""),
		"a datagram": udpPacket(t, inner, remote, "x"),
		"multicast":  tcpPacket(t, TCPHeader{Src: inner, Dst: netip.MustParseAddrPort("224.0.0.1:80"), Flags: SYN}, ""),
	} {
		if BuildRST(buf, mustParse(t, b)) != 0 {
			t.Errorf("a reset about %s", name)
		}
	}
	if p := mustParse(t, tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Seq: 0xfffffffe, Flags: FIN | ACK}, "ab")); p.End() != 1 {
		t.Errorf("the end of a segment over the wrap is %d", p.End())
	}
}

// no datagram is built with the checksum 0.
func TestBuiltPacketsAreSound(t *testing.T) {
	for _, b := range [][]byte{
		udpPacket(t, inner, remote, ""), udpPacket(t, inner, remote, "odd"), udpPacket(t, inner, remote, strings.Repeat("z", 65507)),
		echoPacket(t, innerA, remoteA, true, 3, "odd"),
		tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: SYN, MSS: 1400, ID: 5}, "odd"),
	} {
		if !soundWhole(b) {
			t.Errorf("proto %d, %d bytes", b[9], len(b))
		}
	}
	// A datagram whose checksum computes to 0 is sent with 0xffff (RFC 768).
	b := make([]byte, 30)
	for v := range 0x10000 {
		n := BuildUDP(b, inner, remote, []byte{byte(v >> 8), byte(v)}, 64, 1)
		if b[26] == 0 && b[27] == 0 || !soundWhole(b[:n]) {
			t.Fatalf("payload %#x: % x", v, b[20:])
		}
	}
}

func TestBuildersMindTheBuffer(t *testing.T) {
	b := make([]byte, 70000)
	for name, n := range map[string]int{
		"udp":      BuildUDP(b[:31], inner, remote, make([]byte, 4), 64, 1),
		"udp 64 K": BuildUDP(b, inner, remote, make([]byte, 65508), 64, 1),
		"tcp":      BuildTCP(b[:40], TCPHeader{Src: inner, Dst: remote, Flags: SYN, MSS: 1}, nil),
		"echo":     BuildICMPEcho(b[:28], Echo{Src: innerA, Dst: remoteA}, make([]byte, 1)),
	} {
		if n != 0 {
			t.Errorf("%s: %d bytes", name, n)
		}
	}
	// The payload may stand in its place already.
	copy(b[28:], "in place")
	n := BuildUDP(b, inner, remote, b[28:36], 64, 1)
	if p := mustParse(t, b[:n]); string(p.Data()) != "in place" {
		t.Errorf("%q", p.Data())
	}
}

// Whatever is built parses as what it was to be, with every sum right: by the text
// of RFC 1071, and by Parse.
func TestWhatIsBuiltParses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		buf := make([]byte, 1600)
		src, dst := drawAddrPort(t, "src"), drawAddrPort(t, "dst")
		payload := rapid.SliceOfN(rapid.Byte(), 0, 1500).Draw(t, "payload")
		ttl, id := rapid.Uint8().Draw(t, "ttl"), rapid.Uint16().Draw(t, "id")
		n, kind := 0, KindUnknown
		switch rapid.IntRange(0, 2).Draw(t, "what") {
		case 0:
			h := TCPHeader{Src: src, Dst: dst, Seq: rapid.Uint32().Draw(t, "seq"), Ack: rapid.Uint32().Draw(t, "ack"), TTL: ttl, ID: id,
				Flags: rapid.SampledFrom([]TCPFlags{SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK}).Draw(t, "flags"),
				MSS:   rapid.Uint16().Draw(t, "mss"), Window: rapid.Uint16().Draw(t, "window")}
			n, kind = BuildTCP(buf, h, payload), KindTCP
			if p := mustParseRapid(t, buf[:n]); p.Seq != h.Seq || p.Ack != h.Ack || p.Flags != h.Flags || p.Window != h.Window {
				t.Fatalf("%+v of %+v", p, h)
			}
		case 1:
			n, kind = BuildUDP(buf, src, dst, payload, ttl, id), KindUDP
		case 2:
			dst = netip.AddrPortFrom(dst.Addr(), 0)
			n, kind = BuildICMPEcho(buf, Echo{Src: src.Addr(), Dst: dst.Addr(), Ident: src.Port(), TTL: ttl, ID: id}, payload), KindICMPQuery
		}
		p := mustParseRapid(t, buf[:n])
		if p.Kind != kind || p.Src != src.Addr() || p.Dst != dst.Addr() || p.SrcPort != src.Port() || p.DstPort != dst.Port() ||
			p.TTL != ttl || p.ID() != id || p.DF != (id == 0) || !bytes.Equal(p.Data(), payload) || !soundWhole(p.B) || !p.ChecksumOK() {
			t.Fatalf("%+v", p)
		}
		out := make([]byte, 600)
		if n := BuildICMPError(out, 3, 4, 1420, gateway, p); n > 0 {
			if e := mustParseRapid(t, out[:n]); e.Dst != p.Src || e.Inner.Src != p.Src || e.Inner.Dst != p.Dst || e.Inner.SrcPort != p.SrcPort || !soundWhole(e.B) {
				t.Fatalf("%+v about %+v", e, p)
			}
		}
		if n := BuildRST(out, p); n > 0 {
			if e := mustParseRapid(t, out[:n]); e.Src != p.Dst || e.DstPort != p.SrcPort || e.Flags&RST == 0 || !soundWhole(e.B) {
				t.Fatalf("%+v about %+v", e, p)
			}
		}
	})
}
