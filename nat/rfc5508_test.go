package nat

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// RFC 5508 (ICMP, BCP 148). What icmp_test.go proves already is not repeated here.

// arrive parses what came from outside and hands it to the table.
func (l *lab) arrive(n int) packet.Outcome {
	l.Helper()
	if o := packet.Parse(&l.p, l.buf[:n]); o != packet.Pass {
		return o
	}
	return l.Ingress(&l.p, l.now)
}

// withOptions returns the IPv4 packet q with four bytes of no-operation options.
func withOptions(q []byte) []byte {
	r := append(bytes.Clone(q[:20]), 1, 1, 1, 0)
	r = append(r, q[20:]...)
	r[0] = 0x46
	binary.BigEndian.PutUint16(r[2:], binary.BigEndian.Uint16(r[2:])+4)
	clear(r[10:12])
	binary.BigEndian.PutUint16(r[10:], sumOf(r[:24]))
	return r
}

// I-3: of five crafted errors about one datagram those with a wrong checksum of
// ICMP or of the quoted IP header are dropped; options of the quoted header are
// walked, its transport checksum is not looked at, and extensions behind the quotation
// (RFC 4884) are not part of it.
func TestI3CraftedErrors(t *testing.T) {
	for _, tt := range []struct {
		name  string
		craft func(l *lab, quote []byte) int
		want  packet.Outcome
	}{
		{"ICMP checksum", func(l *lab, q []byte) int {
			n := l.errorAbout(3, 3, 0, router, external, q)
			l.buf[22] ^= 1
			return n
		}, packet.ICMPChecksum},
		{"quoted IP checksum", func(l *lab, q []byte) int {
			q[10] ^= 1
			return l.errorAbout(3, 3, 0, router, external, q)
		}, packet.ICMPChecksum},
		{"quoted options", func(l *lab, q []byte) int {
			return l.errorAbout(3, 3, 0, router, external, withOptions(q))
		}, packet.Pass},
		{"quoted transport checksum", func(l *lab, q []byte) int {
			q[26] ^= 0x55
			return l.errorAbout(3, 3, 0, router, external, q)
		}, packet.Pass},
		{"extensions", func(l *lab, q []byte) int {
			padded := append(bytes.Clone(q), make([]byte, 128-len(q))...)
			extension := []byte{0x20, 0, 0xdf, 0xff, 0, 4, 1, 1}
			n := l.errorAbout(3, 3, uint32(len(padded)/4)<<16, router, external, append(padded, extension...))
			return n
		}, packet.Pass},
	} {
		l := newLab(t, nil)
		must2(l.udpOut(box, web))(l, packet.Pass)
		n := tt.craft(l, bytes.Clone(l.p.B))
		tail := bytes.Clone(l.buf[n-8 : n])
		if o := l.arrive(n); o != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, o, tt.want)
			continue
		}
		if tt.want == packet.Pass && (l.p.Dst != box.Addr() || l.p.Inner.Src != box.Addr() || l.p.Inner.SrcPort != box.Port()) {
			t.Errorf("%s: arrived as %+v", tt.name, l.p)
		}
		if tt.name == "extensions" && (!bytes.Equal(l.p.B[n-8:], tail) || !l.p.ChecksumOK()) {
			t.Errorf("the extension became %x, checksum right: %v", l.p.B[n-8:], l.p.ChecksumOK())
		}
	}
}

// outgoing builds the packet of a protocol as the sandbox sends it.
func (l *lab) outgoing(proto packet.Proto) int {
	switch proto {
	case packet.TCP:
		return l.build(box, web, seg{flags: packet.SYN, seq: 1000})
	case packet.UDP:
		return packet.BuildUDP(l.buf[:], box, web, []byte("question"), 64, 0)
	}
	return packet.BuildICMPEcho(l.buf[:], packet.Echo{Src: box.Addr(), Dst: web.Addr(), Ident: box.Port(), Seq: 7, TTL: 64}, []byte("question"))
}

// I-4, T-9: what the sandbox gets of an error from outside is byte for byte the error
// that it would have got without a translator, however much is quoted: type,
// code, rest of the header, quoted addresses, ports and checksums. Only the quoted
// identification is the one that the packet left with.
func TestI4ByteExact(t *testing.T) {
	for _, proto := range []packet.Proto{packet.TCP, packet.UDP, packet.ICMP} {
		for _, cut := range []int{28, 36, 1500} {
			for _, kind := range []struct {
				typ, code uint8
				info      uint32
			}{{3, 0, 0}, {3, 3, 0}, {3, 4, 1400}, {3, 13, 0}, {11, 0, 0}, {11, 1, 0}, {12, 0, 9 << 24}} {
				l := newLab(t, nil)
				n := l.outgoing(proto)
				inside := bytes.Clone(l.buf[:n])
				if o := l.egress(n); o != packet.Pass {
					t.Fatal(o)
				}
				outside := bytes.Clone(l.p.B)
				k := min(cut, n)
				n = l.errorAbout(kind.typ, kind.code, kind.info, router, box.Addr(), inside[:k])
				want := bytes.Clone(l.buf[:n])
				n = l.errorAbout(kind.typ, kind.code, kind.info, router, external, outside[:k])
				if o := l.arrive(n); o != packet.Pass {
					t.Fatalf("protocol %d, %+v, %d bytes: %v", proto, kind, cut, o)
				}
				// The identification of what was quoted is the translator's own, and with it the checksums.
				got := bytes.Clone(l.p.B)
				for _, b := range [][]byte{got, want} {
					clear(b[28+4 : 28+6])
					clear(b[28+10 : 28+12])
					clear(b[22:24])
				}
				if !bytes.Equal(got, want) {
					t.Errorf("protocol %d, %+v, %d bytes:\n got %x\nwant %x", proto, kind, cut, got, want)
				}
				if !l.p.ChecksumOK() || sumOf(l.p.B[28:48]) != 0 {
					t.Errorf("protocol %d, %+v, %d bytes: a checksum is wrong", proto, kind, cut)
				}
			}
		}
	}
}

// I-6, X-9: an error from inside that answers what came in refreshes nothing:
// the mapping ends as though it had been silent.
func TestI6ErrorsFromInsideRefreshNothing(t *testing.T) {
	l := newLab(t, nil)
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	c := l.conn(box, web).syn()
	left := c.left()
	for range 30 {
		must2(l.udpIn(web, at))(l, packet.Pass)
		quote := bytes.Clone(l.p.B)
		if o := l.egress(l.errorAbout(3, 3, 0, box.Addr(), web.Addr(), quote)); o != packet.Pass {
			t.Fatal(o)
		}
		l.wait(10 * time.Second)
	}
	l.wait(200 * time.Millisecond)
	must2(l.udpIn(web, at))(l, packet.NoMapping)
	if n := l.settle(); n != 2 {
		t.Errorf("%d sessions ended, want 2; TCP had %v", n, left)
	}
}

// I-10, I-11, A-11, A-12, R-13: of all types of ICMP only echo and the three
// errors are translated, in their own direction; all else is dropped and counted as
// such, redirects and source quench among it, and nothing of it leaves.
func TestI10TypeMatrix(t *testing.T) {
	for typ := range 256 {
		l := newLab(t, nil)
		must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
		id := l.p.SrcPort
		out := bytes.Clone(l.p.B)
		must2(l.echoIn(web.Addr(), id))(l, packet.Pass)
		in := bytes.Clone(l.p.B)
		wantOut, wantIn := packet.ICMPType, packet.ICMPType
		switch uint8(typ) {
		case packet.ICMPEchoRequest:
			wantOut, wantIn = packet.Pass, packet.NoMapping
		case packet.ICMPEchoReply:
			wantOut, wantIn = packet.NoMapping, packet.Pass
		case packet.ICMPUnreachable, packet.ICMPTimeExceeded, packet.ICMPParameter:
			wantOut, wantIn = packet.Pass, packet.Pass
		}
		info := uint32(id) << 16
		n := l.errorAbout(uint8(typ), 0, uint32(box.Port())<<16, box.Addr(), web.Addr(), in)
		o := packet.Parse(&l.p, l.buf[:n])
		if o == packet.Pass {
			o = l.Egress(&l.p, l.now)
		}
		if o != wantOut {
			t.Errorf("type %d out: %v, want %v", typ, o, wantOut)
		}
		if o == packet.Pass && l.p.Src != external {
			t.Errorf("type %d left from %v", typ, l.p.Src)
		}
		if o := l.arrive(l.errorAbout(uint8(typ), 0, info, web.Addr(), external, out)); o != wantIn {
			t.Errorf("type %d in: %v, want %v", typ, o, wantIn)
		}
	}
}

// I-2: the timer of identifiers can be set, not below 60 s.
func TestI2TimerIsConfigurable(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Timers.ICMP = 90 * time.Second })
	id := must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	l.wait(89 * time.Second)
	l.settle()
	must2(l.echoIn(web.Addr(), id))(l, packet.Pass)
	l.wait(1200 * time.Millisecond)
	must2(l.echoIn(web.Addr(), id))(l, packet.NoMapping)
	if _, err := New(Config{External: external, Seed: [32]byte{1}, Timers: Timers{ICMP: 59 * time.Second}}); err == nil {
		t.Error("59 s were accepted")
	}
}

// I-1: identifiers of many inner hosts to one host stay apart, and each reply finds its own.
func TestI1RepliesFindTheirOwn(t *testing.T) {
	l := newLab(t, nil)
	owner := map[uint16]netip.AddrPort{}
	for i := range 2000 {
		from := makeEndpoint(0x0a000000+uint32(i), 7).addrPort() // one identifier, many hosts
		id := must2(l.echoOut(from, web.Addr()))(l, packet.Pass)
		if other, taken := owner[id]; taken {
			t.Fatalf("%v and %v share identifier %d", other, from, id)
		}
		owner[id] = from
	}
	for id, from := range owner {
		if at := must2(l.echoIn(web.Addr(), id))(l, packet.Pass); at != from {
			t.Fatalf("the reply for %v arrived at %v", from, at)
		}
	}
}
