package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// hammer makes packets that are nearly right and puts them through everything
// that bytes of strangers go through. It is deterministic.
type hammer struct {
	dice      *rand.Rand
	templates [][]byte
	buf, out  []byte
	fragments *Reassembler
	now       Instant
	seen      [NumOutcomes]int
	passed    map[Kind]int
	whole     int // datagrams that came out of the Reassembler
}

func newHammer(t testing.TB, seed uint64) *hammer {
	tcp := TCPHeader{Src: inner, Dst: remote, Flags: SYN, MSS: 1460, ID: 3}
	whole := udpPacket(t, inner, remote, string(make([]byte, 200)))
	h := &hammer{
		dice:      rand.New(rand.NewPCG(seed, 26)),
		buf:       make([]byte, 0, 512),
		out:       make([]byte, 1500),
		fragments: newReassembler(t, ReassemblyConfig{MaxBytes: 64 << 10, MaxPerSource: 32 << 10}),
		passed:    map[Kind]int{},
		templates: [][]byte{
			tcpPacket(t, tcp, ""), tcpPacket(t, TCPHeader{Src: remote, Dst: ext, Flags: PSH | ACK}, "hello, world"),
			udpPacket(t, inner, remote, "ping"), udpPacket(t, remote, ext, ""),
			echoPacket(t, innerA, remoteA, false, 77, "abc"), echoPacket(t, remoteA, extA, true, 77, "abc"),
			withOptions(udpPacket(t, inner, remote, "ping"), 148, 4, 0, 0, 30, 3, 1),
			withOptions(tcpPacket(t, tcp, ""), 131, 7, 4, 1, 2, 3, 4), withOptions(udpPacket(t, inner, remote, "x"), 7, 7, 4, 0, 0, 0, 0),
			errorPacket(t, 3, 4, tcpPacket(t, tcp, "")[:28]), errorPacket(t, 11, 0, withOptions(udpPacket(t, ext, remote, "x"), 148, 4, 0, 0)),
			errorPacket(t, 3, 3, echoPacket(t, extA, remoteA, false, 5, "x")), errorPacket(t, 12, 0, whole),
			errorPacket(t, 3, 3, udpPacket(t, remote, inner, "from inside")), errorPacket(t, 5, 1, whole), errorPacket(t, 4, 0, whole),
			errorPacket(t, 3, 3, errorPacket(t, 3, 3, whole)), errorPacket(t, 3, 1, piece(t, UDP, 1, 8, true, make([]byte, 16))),
			quotation{keep: 28, extensions: true}.message(remoteA, extA, whole), quotation{keep: 500, fragment: 16}.message(remoteA, extA, whole),
			append([]byte{0x60}, make([]byte, 60)...),
		},
	}
	h.templates = append(h.templates, split(t, whole, 100)...)
	h.templates = append(h.templates, split(t, tcpPacket(t, tcp, string(make([]byte, 100))), 68)...)
	return h
}

// next returns a template with up to four things wrong. Half of them get sums
// that are right again, so that what is behind the sums is reached.
func (h *hammer) next() []byte {
	b := append(h.buf[:0], h.templates[h.dice.IntN(len(h.templates))]...)
	for range h.dice.IntN(5) {
		b = h.mutate(b)
	}
	if h.dice.IntN(2) == 0 {
		mend(b)
	}
	return b[:len(b):len(b)] // what is read behind the end panics
}

func (h *hammer) mutate(b []byte) []byte {
	if len(b) == 0 {
		return b
	}
	i := h.dice.IntN(len(b))
	switch h.dice.IntN(9) {
	case 0:
		b[i] ^= 1 << h.dice.IntN(8)
	case 1:
		b[i] = [...]byte{0, 1, 2, 4, 7, 8, 0x7f, 0x80, 0xff}[h.dice.IntN(9)]
	case 2:
		b[i] = byte(h.dice.Uint32())
	case 3: // cut, told or untold
		b = b[:i]
		h.tell(b)
	case 4:
		b = append(b, make([]byte, h.dice.IntN(40))...)
		h.tell(b)
	case 5:
		b[0] = b[0]&0xf0 | byte(h.dice.IntN(16))
	case 6:
		if len(b) > 32 {
			b[32] = byte(h.dice.IntN(16)) << 4 // of a segment the data offset
		}
	case 7:
		if len(b) > 8 {
			binary.BigEndian.PutUint16(b[6:], uint16(h.dice.IntN(4))<<13|uint16(h.dice.IntN(30)))
		}
	case 8:
		if len(b) > 29 {
			b[28] = b[28]&0xf0 | byte(h.dice.IntN(16)) // IHL of a quoted header
		}
	}
	return b
}

func (h *hammer) tell(b []byte) {
	if len(b) >= 4 && h.dice.IntN(4) > 0 {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	}
}

// strike sends one packet through, from one of the sides.
func (h *hammer) strike(t testing.TB, i int) {
	b := h.next()
	var p Packet
	o := Parse(&p, b)
	h.seen[o]++
	h.passed[p.Kind]++
	switch {
	case o != Pass && p.Kind != KindUnknown, o == Pass && (p.Kind == KindUnknown || len(p.B) > len(b)), o == Unspecified:
		t.Fatalf("packet %d: %v, %+v", i, o, p)
	case o != Pass:
	case p.Kind == KindFragment:
		h.now += 2 * second
		whole, o := h.fragments.Add(&p, h.now)
		if h.fragments.Used() > 64<<10 || whole != nil && o != Pass {
			t.Fatalf("packet %d: %d bytes charged, %v", i, h.fragments.Used(), o)
		}
		if whole == nil {
			return
		}
		h.whole++
		if o := Parse(&p, whole); o == Malformed || o == Fragment || p.Kind == KindFragment {
			t.Fatalf("packet %d: reassembled, it is %v", i, o)
		} else if o == Pass {
			h.translate(t, i, &p)
		}
	default:
		h.translate(t, i, &p)
	}
}

// translate does what tables do on the way out and in, and looks at what leaves.
func (h *hammer) translate(t testing.TB, i int, p *Packet) {
	p.ChecksumOK()
	for _, n := range []int{BuildICMPError(h.out, 3, 13, 0, gateway, p), BuildRST(h.out, p)} {
		var e Packet
		if n > 0 && (Parse(&e, h.out[:n]) != Pass || !e.ChecksumOK()) {
			t.Fatalf("packet %d: % x is not sound", i, h.out[:n])
		}
	}
	empty, ok, data := nothing(p), p.ChecksumOK(), bytes.Clone(p.Data())
	to := netip.AddrPortFrom(extA, 61234)
	if h.dice.IntN(2) == 0 {
		p.SetEmbeddedDestination(to)
		p.SetSource(to)
	} else {
		p.SetEmbeddedSource(to)
		p.SetDestination(to)
	}
	p.ClampMSS(1380)
	p.DecrementTTL()
	var again Packet
	o := Parse(&again, p.B)
	if o != Pass || again.Src != p.Src || again.Dst != p.Dst || again.SrcPort != p.SrcPort || again.DstPort != p.DstPort ||
		p.Kind == KindICMPError && again.Inner != p.Inner || !empty && again.ChecksumOK() != ok || !bytes.Equal(again.Data(), data) {
		t.Fatalf("packet %d: %v, %+v, was to be %+v", i, o, again, *p)
	}
	if again.Src != extA && again.Dst != extA || p.Kind == KindICMPError && p.Inner.Src != extA && p.Inner.Dst != extA {
		t.Fatalf("packet %d: untranslated, % x", i, p.B)
	}
	for at := 0; ; {
		n, next := NextFragment(h.out, p.B, 68, at)
		if n == 0 && at == 0 && p.L4 <= 60 {
			t.Fatalf("packet %d cannot be cut: % x", i, p.B)
		}
		if at = next; at == 0 {
			return
		}
	}
}

// nothing says whether p is an echo reply of zeros only, its checksum too. To
// nothing both zeros add up alike, so this is the one wrong sum that a rewrite
// cannot keep.
func nothing(p *Packet) bool {
	return p.Kind == KindICMPQuery && len(bytes.Trim(p.B[p.L4:], "\x00")) == 0
}

// packets that are nearly right neither panic nor leave untranslated,
// from either side. BenchmarkHammer strikes as often as one likes (-benchtime 10000000x).
func TestHammer(t *testing.T) {
	h := newHammer(t, 1)
	for i := range 100_000 {
		h.strike(t, i)
	}
	for _, o := range []Outcome{Pass, Malformed, MalformedL4, NotIPv4, BadProtocol, SourceRoute, AddressOption, Fragment, ICMPType, ICMPChecksum} {
		if h.seen[o] < 50 {
			t.Errorf("%v was seen %d times", o, h.seen[o])
		}
	}
	for k := KindTCP; k <= KindFragment; k++ {
		if h.passed[k] < 1000 {
			t.Errorf("kind %d passed %d times", k, h.passed[k])
		}
	}
	if h.whole < 100 {
		t.Errorf("%d datagrams were reassembled", h.whole)
	}
}

func BenchmarkHammer(b *testing.B) {
	h := newHammer(b, 2)
	i := 0
	for b.Loop() {
		h.strike(b, i)
		i++
	}
	b.ReportMetric(float64(h.passed[KindICMPError]), "errors")
	b.ReportMetric(float64(h.whole), "reassembled")
}
