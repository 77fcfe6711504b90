package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func drawAddr(t *rapid.T, label string) netip.Addr {
	v := rapid.OneOf(rapid.Uint32(), rapid.SampledFrom([]uint32{0, 0xffffffff, 0xffff, 0xffff0000})).Draw(t, label)
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}

func drawAddrPort(t *rapid.T, label string) netip.AddrPort {
	return netip.AddrPortFrom(drawAddr(t, label), rapid.Uint16Range(1, 0xffff).Draw(t, label+" port"))
}

// drawPacket draws a sound packet of any translated query, segment or datagram.
func drawPacket(t *rapid.T) []byte {
	src, dst := drawAddrPort(t, "src"), drawAddrPort(t, "dst")
	payload := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "payload")
	b := make([]byte, 300)
	ttl := rapid.Uint8().Draw(t, "ttl")
	id := rapid.Uint16().Draw(t, "id")
	switch rapid.IntRange(0, 3).Draw(t, "what") {
	case 0:
		flags := rapid.SampledFrom([]TCPFlags{SYN, SYN | ACK, ACK, FIN | ACK, RST}).Draw(t, "flags")
		mss := rapid.Uint16().Draw(t, "mss")
		return b[:BuildTCP(b, TCPHeader{Src: src, Dst: dst, Seq: rapid.Uint32().Draw(t, "seq"), Flags: flags, MSS: mss, TTL: ttl, ID: id}, payload)]
	case 1:
		return b[:BuildUDP(b, src, dst, payload, ttl, id)]
	case 2:
		b = b[:BuildUDP(b, src, dst, payload, ttl, id)]
		b[26], b[27] = 0, 0
		return b
	}
	return b[:BuildICMPEcho(b, Echo{Src: src.Addr(), Dst: dst.Addr(), Reply: rapid.Bool().Draw(t, "reply"), Ident: src.Port(), TTL: ttl, ID: id}, payload)]
}

// TestRewriteAgainstRecomputation is R-14: after any chain of rewrites every
// checksum is what a whole new computation gives, and what was 0 is 0.
func TestRewriteAgainstRecomputation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawPacket(t)
		none := b[9] == 17 && b[26] == 0 && b[27] == 0
		payload := bytes.Clone(mustParseRapid(t, b).Data())
		p := mustParseRapid(t, b)
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 4:
				id := rapid.Uint16().Draw(t, "new id")
				if p.SetID(id); p.ID() != id {
					t.Fatalf("the identification is %d, want %d", p.ID(), id)
				}
			case 0:
				p.SetSource(drawAddrPort(t, "to"))
			case 1:
				p.SetDestination(drawAddrPort(t, "to"))
			case 2:
				p.DecrementTTL()
			case 3:
				p.ClampMSS(rapid.Uint16().Draw(t, "mss"))
			}
			if !soundWhole(p.B) {
				t.Fatalf("checksum is wrong: % x", p.B)
			}
			if p.Kind == KindUDP && (b[26] == 0 && b[27] == 0) != none {
				t.Fatalf("UDP checksum 0 came or went: % x", p.B)
			}
		}
		again := mustParseRapid(t, b)
		if again.Src != p.Src || again.Dst != p.Dst || again.SrcPort != p.SrcPort || again.DstPort != p.DstPort || again.TTL != p.TTL {
			t.Fatalf("view and bytes differ: %+v, %+v", again, p)
		}
		if !bytes.Equal(again.Data(), payload) {
			t.Fatal("payload changed")
		}
	})
}

func mustParseRapid(t *rapid.T, b []byte) *Packet {
	p := new(Packet)
	if o := Parse(p, b); o != Pass {
		t.Fatalf("parse: %v", o)
	}
	return p
}

// TestCorruptStaysCorrupt is R-14: a rewrite never mends a wrong checksum.
func TestCorruptStaysCorrupt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawPacket(t)
		if b[9] == 17 && b[26] == 0 && b[27] == 0 {
			t.Skip("no checksum")
		}
		last := &b[len(b)-1]
		if len(b) <= 28 {
			last = &b[4+20] // an empty echo: its identifier; an empty datagram: its length
			if b[9] != 1 {
				t.Skip("nothing to corrupt")
			}
		}
		*last ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		var p Packet
		if Parse(&p, b) != Pass {
			t.Skip("the corruption shows in the header")
		}
		p.SetSource(drawAddrPort(t, "source"))
		p.SetDestination(drawAddrPort(t, "destination"))
		p.ClampMSS(1)
		p.DecrementTTL()
		if soundWhole(b) || p.ChecksumOK() {
			t.Fatalf("mended: % x", b)
		}
	})
}

// TestChecksumEdges walks a UDP and a TCP checksum over both representations of zero.
func TestChecksumEdges(t *testing.T) {
	for port := range uint16(0xffff) {
		d := udpPacket(t, inner, remote, "")[:28]
		p := mustParse(t, d)
		p.SetSource(netip.AddrPortFrom(extA, port+1))
		if !soundWhole(d) || d[26] == 0 && d[27] == 0 {
			t.Fatalf("UDP, port %d: % x", port+1, d[20:])
		}
		if port%16 != 0 {
			continue
		}
		s := tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: ACK}, "")
		p = mustParse(t, s)
		p.SetSource(netip.AddrPortFrom(extA, port+1))
		if !soundWhole(s) {
			t.Fatalf("TCP, port %d: % x", port+1, s[20:])
		}
	}
}

// the two zeros.
func TestAmendEdges(t *testing.T) {
	// RFC 1624 section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 give 0x0000.
	if got := amend(0xdd2f, diff16(0x5555, 0x3285)); got != 0 {
		t.Errorf("RFC 1624's example gives %#x", got)
	}
	// Corrupt by nothing but the representation of zero stays acceptable.
	for _, check := range []uint16{0, 0xffff} {
		if got := amend(check, diff16(7, 7)); got%0xffff != 0 {
			t.Errorf("%#x becomes %#x", check, got)
		}
	}
}

// TestEmbeddedRewrite is I-4 and I-5: the error that comes back equals, byte for
// byte, the error that the inner host would have been sent without translation.
func TestEmbeddedRewrite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in, out, far := drawAddrPort(t, "inner"), drawAddrPort(t, "external"), drawAddrPort(t, "remote")
		router := drawAddr(t, "router")
		payload := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "payload")
		quote := rapid.IntRange(28, 90).Draw(t, "quoted bytes")
		kind := rapid.IntRange(0, 3).Draw(t, "kind")
		if kind == 0 && quote == 37 {
			quote = 36 // half a checksum cannot be amended
		}
		build := func(src, to netip.AddrPort) []byte {
			b := make([]byte, 120)
			var n int
			switch kind {
			case 0:
				n = BuildTCP(b, TCPHeader{Src: src, Dst: far, Flags: ACK, Seq: 5, TTL: 1}, payload)
			case 1:
				n = BuildUDP(b, src, far, payload, 1, 9)
			case 2:
				n = BuildUDP(b, src, far, payload, 1, 9)
				b[26], b[27] = 0, 0
			case 3:
				n = BuildICMPEcho(b, Echo{Src: src.Addr(), Dst: far.Addr(), Ident: src.Port(), TTL: 1}, payload)
			}
			b = b[:min(n, quote)]
			e := make([]byte, 28+len(b))
			ipv4{src: router, dst: to.Addr(), proto: ICMP, ttl: 60, id: 9}.put(e, len(e))
			e[20], e[21] = 11, 0
			copy(e[28:], b)
			return fixICMP(e)
		}
		got, want := build(out, out), build(in, in)
		p := mustParseRapid(t, got)
		p.SetEmbeddedSource(in)
		p.SetDestination(in)
		if !soundWhole(got) || !sameButZero(got, want) {
			t.Fatalf("\n% x, want\n% x", got, want)
		}
		again := mustParseRapid(t, got)
		if again.Inner != p.Inner || again.Dst != p.Dst {
			t.Fatalf("view and bytes differ: %+v, %+v", again, p)
		}
		// And back, through the other pair of setters: what leaves inside out.
		p.SetEmbeddedSource(out)
		p.SetEmbeddedDestination(far)
		p.SetDestination(out)
		p.SetSource(netip.AddrPortFrom(router, 0))
		if !soundWhole(got) || !sameButZero(got, build(out, out)) {
			t.Fatalf("not undone: % x", got)
		}
	})
}

// sameButZero compares packets, taking the two zeros of a checksum for equal.
func sameButZero(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i+1 < len(a); i += 2 {
		v, w := binary.BigEndian.Uint16(a[i:]), binary.BigEndian.Uint16(b[i:])
		if v != w && (v%0xffff != 0 || w%0xffff != 0) {
			return false
		}
	}
	return len(a)%2 == 0 || a[len(a)-1] == b[len(b)-1]
}

func TestEmbeddedReplyAndDestination(t *testing.T) {
	// An inner host reports on an echo reply and on a datagram that it received.
	b := errorPacket(t, 3, 3, echoPacket(t, remoteA, extA, true, 70, "x"))
	p := mustParse(t, b)
	p.SetEmbeddedDestination(netip.AddrPortFrom(innerA, 71))
	p.SetEmbeddedSource(netip.AddrPortFrom(remoteA, 99)) // no identifier on this side
	again := mustParse(t, b)
	if e := again.Inner; e.Dst != innerA || e.DstPort != 71 || e.SrcPort != 0 || e != p.Inner {
		t.Errorf("%+v", again.Inner)
	}
	b = errorPacket(t, 3, 3, udpPacket(t, remote, ext, "x"))
	p = mustParse(t, b)
	p.SetEmbeddedDestination(inner)
	again = mustParse(t, b)
	if e := again.Inner; e.Dst != innerA || e.DstPort != 40000 || e.SrcPort != 443 || e != p.Inner {
		t.Errorf("%+v", again.Inner)
	}
}

func TestEmbeddedSettersLeaveOthersAlone(t *testing.T) {
	b := udpPacket(t, inner, remote, "x")
	before := bytes.Clone(b)
	p := mustParse(t, b)
	p.SetEmbeddedSource(ext)
	p.SetEmbeddedDestination(ext)
	if !bytes.Equal(b, before) {
		t.Error("a datagram was changed")
	}
}

// TestDecrementTTL is R-1.
func TestDecrementTTL(t *testing.T) {
	for ttl := range 256 {
		b := tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: ACK, TTL: 64}, "")
		b[8] = uint8(ttl)
		p := mustParse(t, fixHeader(b))
		before := bytes.Clone(b)
		o := p.DecrementTTL()
		switch {
		case ttl <= 1:
			if o != TTLExpired || !bytes.Equal(b, before) || p.TTL != uint8(ttl) {
				t.Errorf("TTL %d: %v", ttl, o)
			}
		case o != Pass || p.TTL != uint8(ttl-1) || b[8] != uint8(ttl-1) || !soundWhole(b):
			t.Errorf("TTL %d: %v, % x", ttl, o, b[:20])
		}
	}
}

// TestClampMSS is R-12.
func TestClampMSS(t *testing.T) {
	segment := func(flags TCPFlags, options ...byte) []byte {
		b := tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: flags}, string(options))
		b[32] = uint8((20 + len(options)) / 4 << 4)
		return fixTCP(b)
	}
	mss := []byte{2, 4, 5, 180} // 1460
	for _, row := range []struct {
		name string
		b    []byte
		to   uint16
		want uint16 // 0: unchanged
	}{
		{"SYN", segment(SYN, mss...), 1380, 1380},
		{"SYN ACK", segment(SYN|ACK, mss...), 1380, 1380},
		{"behind NOPs, word aligned", segment(SYN, 1, 1, 2, 4, 5, 180, 1, 1), 1380, 1380},
		{"behind a NOP, across two words", segment(SYN, 1, 2, 4, 5, 180, 1, 1, 1), 1380, 1380},
		{"behind window scale", segment(SYN, 3, 3, 7, 2, 4, 5, 180, 0), 536, 536},
		{"two of them", segment(SYN, 2, 4, 5, 180, 2, 4, 5, 181), 1380, 1380},
		{"equal", segment(SYN, mss...), 1460, 0},
		{"never raised", segment(SYN, mss...), 1500, 0},
		{"not a SYN", segment(ACK, mss...), 1380, 0},
		{"behind the end of options", segment(SYN, 0, 0, 0, 0, 2, 4, 5, 180), 1380, 0},
		{"cut option", segment(SYN, 1, 1, 1, 2), 1380, 0},
		{"option of length 0", segment(SYN, 3, 0, 0, 0, 2, 4, 5, 180), 1380, 0},
		{"option beyond the header", segment(SYN, 3, 9, 0, 0), 1380, 0},
		{"MSS of length 3", segment(SYN, 2, 3, 5, 1), 1, 0},
		{"none", segment(SYN), 1380, 0},
	} {
		before := bytes.Clone(row.b)
		p := mustParse(t, row.b)
		if got := p.ClampMSS(row.to); got != (row.want != 0) {
			t.Errorf("%s: %v", row.name, got)
		}
		if row.want == 0 {
			if !bytes.Equal(row.b, before) {
				t.Errorf("%s: changed", row.name)
			}
			continue
		}
		i := bytes.Index(row.b[40:], []byte{2, 4}) + 42
		if got := binary.BigEndian.Uint16(row.b[i:]); got != row.want || !soundWhole(row.b) {
			t.Errorf("%s: MSS %d, sound %v", row.name, got, soundWhole(row.b))
		}
		if mustParse(t, row.b).ClampMSS(row.to) {
			t.Errorf("%s: one was left", row.name)
		}
	}
	p := mustParse(t, udpPacket(t, inner, remote, "x"))
	if p.ClampMSS(1) {
		t.Error("a datagram was clamped")
	}
}

func fixTCP(b []byte) []byte {
	b[36], b[37] = 0, 0
	binary.BigEndian.PutUint16(b[36:], ^slowSum(b[20:], slowPseudo(b)))
	return b
}
