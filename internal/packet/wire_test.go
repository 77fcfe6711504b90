package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// I-10, I-11, A-11, A-12, R-13: of all types echo and the errors of RFC 5508 REQ-10 pass;
// every other one, redirect and source quench among them, is dropped for its type.
func TestICMPTypesThatPass(t *testing.T) {
	b := errorPacket(t, 0, 0, udpPacket(t, ext, remote, "x"))
	for typ := range 256 {
		for code := range 256 {
			b[20], b[21] = uint8(typ), uint8(code)
			fixICMP(b)
			want, kind := ICMPType, KindUnknown
			switch uint8(typ) {
			case 3, 11, 12:
				want, kind = Pass, KindICMPError
			case 0, 8:
				if code == 0 {
					want, kind = Pass, KindICMPQuery
				}
			}
			var p Packet
			if got := Parse(&p, b); got != want || p.Kind != kind {
				t.Errorf("type %d code %d: %v, kind %d", typ, code, got, p.Kind)
			}
		}
	}
	// Nor does the gateway send any but errors.
	buf, about := make([]byte, 600), mustParse(t, udpPacket(t, inner, remote, "x"))
	for typ := range 256 {
		want := typ == 3 || typ == 11 || typ == 12
		if got := BuildICMPError(buf, uint8(typ), 0, 0, gateway, about) != 0; got != want {
			t.Errorf("an error of type %d: %v", typ, got)
		}
	}
}

// C-1, A-18, A-20: nothing but TCP, UDP and ICMP passes, whole or in fragments, and no tunnel
// (4, 41, 47 and the rest) is looked into.
func TestProtocolsThatPass(t *testing.T) {
	within := udpPacket(t, inner, remote, "x")
	for proto := range 256 {
		for _, flags := range []byte{0, 0x20} {
			b := make([]byte, 20+len(within))
			ipv4{src: remoteA, dst: extA, proto: Proto(proto), ttl: 64, id: 1}.put(b, len(b))
			b[6] = flags
			copy(b[20:], within)
			var p Packet
			got := Parse(&p, fixHeader(b))
			switch Proto(proto) {
			case TCP, UDP, ICMP: // what is in them is nonsense, but a fragment shows nothing of it
				if flags != 0 && (got != Pass || p.Kind != KindFragment) || got == BadProtocol {
					t.Errorf("protocol %d, flags %#x: %v", proto, flags, got)
				}
			default:
				if got != BadProtocol || p.Kind != KindUnknown {
					t.Errorf("protocol %d, flags %#x: %v", proto, flags, got)
				}
			}
		}
	}
}

// I-3: (first) a wrong sum drops the error, (a) so does a wrong one of the quoted IP header;
// (b) quoted options are walked; (c) the quoted transport's sum does not matter;
// (d) extensions of RFC 4884 are no part of what is quoted.
func TestICMPErrorsThatPass(t *testing.T) {
	quote := func() []byte { return udpPacket(t, ext, remote, "0123456789") }
	wrong := errorPacket(t, 3, 1, quote())
	wrong[23]++
	badHeader := quote()
	badHeader[1]++
	badTransport := quote()
	badTransport[27]++
	extended := quotation{keep: 28, extensions: true}.message(remoteA, extA, quote())
	longer := quotation{keep: 128, extensions: true}.message(remoteA, extA, udpPacket(t, ext, remote, strings.Repeat("x", 300)))
	first := quotation{keep: 548, fragment: 16}.message(remoteA, extA, quote())
	for _, row := range []struct {
		name string
		b    []byte
		want Outcome
		end  int // of the quotation
	}{
		{"wrong sum", wrong, ICMPChecksum, 0},
		{"wrong quoted header (a)", errorPacket(t, 3, 1, badHeader), ICMPChecksum, 0},
		{"quoted options (b)", errorPacket(t, 3, 1, withOptions(quote(), 148, 4, 0, 0, 1, 1, 1, 1)), Pass, 28 + 46},
		{"wrong quoted transport (c)", errorPacket(t, 3, 1, badTransport), Pass, 28 + 38},
		{"extensions (d)", extended, Pass, 28 + 38},
		{"extensions behind a part (d)", longer, Pass, 28 + 128},
		{"a quoted first fragment", first, Pass, 28 + 36},
		{"quoted short", errorPacket(t, 3, 1, quote()[:28]), Pass, 28 + 28},
	} {
		var p Packet
		if got := Parse(&p, row.b); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		} else if got == Pass && (p.Inner.End != row.end || p.Inner.SrcPort != ext.Port() || p.Inner.DstPort != remote.Port()) {
			t.Errorf("%s: %+v", row.name, p.Inner)
		}
	}
	// What lies behind the quotation is covered by the message's sum and changed by nobody.
	tail := bytes.Clone(extended[28+128:])
	p := mustParse(t, extended)
	p.SetEmbeddedSource(inner)
	if !bytes.Equal(extended[28+128:], tail) || !soundWhole(extended) {
		t.Error("extensions were changed")
	}
}

// no error about a piece of an error either.
func TestNoErrorAboutAFirstFragmentOfAnError(t *testing.T) {
	buf := make([]byte, 600)
	for typ, want := range map[byte]bool{8: true, 0: true, 3: false, 5: false, 11: false, 12: false, 13: false} {
		b := echoPacket(t, innerA, remoteA, false, 1, "12345678")
		b[6], b[20] = 0x20, typ
		if got := BuildICMPError(buf, 11, 1, 0, gateway, mustParse(t, fixHeader(b))) != 0; got != want {
			t.Errorf("type %d: %v", typ, got)
		}
	}
	b := echoPacket(t, innerA, remoteA, false, 1, "")[:20]
	b[3], b[6] = 20, 0x20
	if BuildICMPError(buf, 11, 1, 0, gateway, mustParse(t, fixHeader(b))) != 0 {
		t.Error("about a fragment that shows nothing")
	}
}

// RFC 5508 sections 7.1.1 and 7.2, R-1, R-7, U-13: what the gateway says about a packet that is
// too big or too old names the MTU, quotes the packet as it came, and may be answered by nobody.
func TestErrorsAboutTooBigAndTooOld(t *testing.T) {
	b := tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: ACK, TTL: 1}, strings.Repeat("x", 1460))
	p, buf := mustParse(t, b), make([]byte, 576)
	if !p.DF || p.DecrementTTL() != TTLExpired {
		t.Fatal("not what the test is about")
	}
	for _, row := range []struct {
		typ, code uint8
		info      uint32
	}{{ICMPUnreachable, 4, 1420}, {ICMPTimeExceeded, 0, 0}} {
		n := BuildICMPError(buf, row.typ, row.code, row.info, gateway, p)
		e := mustParse(t, buf[:n])
		if n != 576 || e.Src != gateway || e.Dst != innerA || e.TTL < 64 || e.ICMPType != row.typ || e.ICMPCode != row.code ||
			binary.BigEndian.Uint32(buf[24:]) != row.info || !bytes.Equal(buf[28:n], b[:548]) || !e.ChecksumOK() {
			t.Errorf("type %d: %+v", row.typ, e)
		}
		if BuildICMPError(make([]byte, 600), row.typ, row.code, 0, remoteA, e) != 0 {
			t.Errorf("type %d: an error about the error", row.typ)
		}
	}
}

// the service type of a whole datagram is that of its first fragment, and it tells of congestion
// that any of them met (RFC 3168 section 5.3), unless one is of a sender that would not understand.
func TestReassemblyTellsOfCongestion(t *testing.T) {
	const notECT, ect1, ect0, ce = 0, 1, 2, 3
	for first := range uint8(4) {
		for second := range uint8(4) {
			for _, turned := range []bool{false, true} {
				a, b := piece(t, UDP, 1, 0, true, make([]byte, 16)), piece(t, UDP, 1, 16, false, make([]byte, 16))
				a[1], b[1] = 0xb8|first, 0x20|second
				pair := [][]byte{fixHeader(a), fixHeader(b)}
				if turned {
					slices.Reverse(pair)
				}
				r := newReassembler(t, ReassemblyConfig{})
				r.Add(mustParse(t, pair[0]), 0)
				whole, o := r.Add(mustParse(t, pair[1]), 0)
				want := first
				if second == ce {
					want = ce
				}
				lost := want == ce && (first == notECT || second == notECT)
				switch {
				case lost:
					if o != Fragment || whole != nil || r.Used() != 0 {
						t.Errorf("%d and %d: %v, %d bytes, %d charged", first, second, o, len(whole), r.Used())
					}
				case o != Pass || whole[1] != 0xb8|want || !sound(whole[:20], 0):
					t.Errorf("%d and %d: %v, % x", first, second, o, whole)
				}
			}
		}
	}
}

// A-13 a: a copy that ends the datagram elsewhere, or no more, is a contradiction.
func TestCopiesThatEndElsewhereCondemn(t *testing.T) {
	for _, more := range []bool{false, true} {
		r := newReassembler(t, ReassemblyConfig{})
		r.Add(mustParse(t, piece(t, UDP, 1, 16, more, make([]byte, 16))), 0)
		if _, o := r.Add(mustParse(t, piece(t, UDP, 1, 16, !more, make([]byte, 16))), 0); o != FragmentOverlap || r.Used() != datagramCost {
			t.Errorf("more fragments %v, then %v: %v", more, !more, o)
		}
	}
}

// A-13 c: a fragment that would be cut into one beyond 65,535 bytes is not cut.
func TestNoFragmentBeyondTheLastOffset(t *testing.T) {
	b := piece(t, ICMP, 1, 65504, true, make([]byte, 80))
	buf := make([]byte, 100)
	n, next := NextFragment(buf, b, 44, 0)
	if n != 44 || next != 24 || buf[6] != 0x3f || buf[7] != 0xfc {
		t.Fatalf("%d bytes, next %d, % x", n, next, buf[:n])
	}
	if n, next = NextFragment(buf, b, 44, 24); n != 44 || buf[6] != 0x3f || buf[7] != 0xff {
		t.Fatalf("%d bytes, next %d, % x", n, next, buf[:n])
	}
	if n, _ := NextFragment(buf, b, 44, next); n != 0 {
		t.Errorf("offset %d wraps: % x", next, buf[:n])
	}
}

// U-13: of the options later fragments have those that are to be copied, padded
// with the end of options, whatever stood in the buffer.
func TestLaterFragmentsHaveTheCopiedOptions(t *testing.T) {
	b := withOptions(udpPacket(t, inner, remote, strings.Repeat("x", 100)), 30, 3, 4, 130, 3, 9, 1, 148, 4, 0, 0)
	buf := bytes.Repeat([]byte{0xee}, 100)
	n, next := NextFragment(buf, b, 80, 0)
	if n != 80 || !bytes.Equal(buf[20:32], b[20:32]) {
		t.Fatalf("% x", buf[:n])
	}
	copy(buf, bytes.Repeat([]byte{0xee}, 100))
	n, next = NextFragment(buf, b, 80, next)
	if want := []byte{130, 3, 9, 148, 4, 0, 0, 0}; n != 28+48 || next != 96 || !bytes.Equal(buf[20:28], want) {
		t.Errorf("options % x of %d bytes, next %d", buf[20:28], n, next)
	}
	mustParse(t, buf[:n])
}

// a call forgets a bounded number of datagrams, none is used behind its time
// however many wait before it, and each is reported once.
func TestExpiryIsBounded(t *testing.T) {
	r := newReassembler(t, ReassemblyConfig{MaxPerSource: 4 << 20})
	const n = 3 * expireBudget
	for id := range n {
		r.Add(mustParse(t, piece(t, UDP, uint16(id), 0, true, make([]byte, 16))), 0)
	}
	// The newest is behind its time, and not yet forgotten.
	last := mustParse(t, piece(t, UDP, n-1, 16, false, make([]byte, 16)))
	if whole, o := r.Add(last, 30*second); whole != nil || o != Pass {
		t.Errorf("the end of a datagram that is over: %v, %d bytes", o, len(whole))
	}
	if len(r.datagrams) != n-expireBudget {
		t.Errorf("%d datagrams are left", len(r.datagrams))
	}
	if got := r.Expire(30 * second); got != 2*expireBudget+1 {
		t.Errorf("%d expired at first", got)
	}
	if got := r.Expire(30 * second); got != expireBudget-1 || r.Used() != datagramCost+fragmentCost+16 {
		t.Errorf("then %d, %d bytes charged", got, r.Used())
	}
}

// A-13 e, R-10, U-14: what is charged covers what the heap holds, however small the fragments.
func TestReassemblyMemoryIsBounded(t *testing.T) {
	for _, size := range []int{8, 64, 1400} {
		for _, perDatagram := range []int{1, 40} {
			r := newReassembler(t, ReassemblyConfig{MaxBytes: 1 << 20, MaxPerSource: 1 << 20})
			b := withOptions(piece(t, UDP, 1, 8, true, make([]byte, size)), bytes.Repeat([]byte{1}, 40)...)
			before, refused := heap(), false
			for i := 0; !refused; i++ {
				place := i % perDatagram
				binary.BigEndian.PutUint32(b[12:], 0x0a000000+uint32(i/perDatagram)) // as many sources as datagrams
				binary.BigEndian.PutUint16(b[6:], flagMF|uint16(place*size/8))
				_, o := r.Add(mustParse(t, fixHeader(b)), 0)
				refused = o == FragmentLimit
			}
			used := int64(heap() - before)
			if r.Used() > 1<<20 || used > 5<<18 { // a quarter more than the cap
				t.Errorf("fragments of %d bytes, %d a datagram: %d bytes charged, %d held", size, perDatagram, r.Used(), used)
			}
			runtime.KeepAlive(r)
		}
	}
}

// heap returns the bytes of live objects.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// what nobody may send from, by block.
func TestMartianSources(t *testing.T) {
	for s, want := range map[string]bool{
		"0.0.0.0": true, "0.255.255.255": true, "1.0.0.0": false, "10.0.0.1": false, "100.64.0.1": false, "126.255.255.255": false,
		"127.0.0.1": true, "127.255.255.255": true, "128.0.0.0": false, "169.254.169.254": false, "172.16.0.1": false, "192.168.1.1": false,
		"223.255.255.255": false, "224.0.0.0": true, "239.255.255.255": true, "240.0.0.0": true, "255.255.255.255": true, "::1": true,
	} {
		if got := ClassOf(netip.MustParseAddr(s)).MartianSource(); got != want {
			t.Errorf("%s: %v", s, got)
		}
	}
}
