package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const second = Instant(time.Second)

func newReassembler(t testing.TB, c ReassemblyConfig) *Reassembler {
	t.Helper()
	r, err := NewReassembler(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// split returns the fragments of b.
func split(t testing.TB, b []byte, mtu int) [][]byte {
	t.Helper()
	var all [][]byte
	for at := 0; ; {
		buf := make([]byte, mtu)
		n, next := NextFragment(buf, b, mtu, at)
		if n == 0 {
			t.Fatalf("no fragment at %d of %d bytes, MTU %d", at, len(b), mtu)
		}
		all = append(all, buf[:n])
		if at = next; at == 0 {
			return all
		}
	}
}

// piece makes the fragment of a datagram from its parts.
func piece(t testing.TB, proto Proto, id uint16, off int, more bool, data []byte) []byte {
	t.Helper()
	b := make([]byte, 20+len(data))
	ipv4{src: innerA, dst: remoteA, proto: proto, ttl: 64, id: id}.put(b, len(b))
	copy(b[20:], data)
	f := uint16(off / 8)
	if more {
		f |= flagMF
	}
	binary.BigEndian.PutUint16(b[6:], f)
	return fixHeader(b)
}

func permutations(n int) [][]int {
	if n == 0 {
		return [][]int{{}}
	}
	var all [][]int
	for _, p := range permutations(n - 1) {
		for i := range n {
			q := append(append(append([]int{}, p[:i]...), n-1), p[i:]...)
			all = append(all, q)
		}
	}
	return all
}

// TestReassembleEveryOrder is U-14 and A-13 d: all orders of four fragments.
func TestReassembleEveryOrder(t *testing.T) {
	b := udpPacket(t, inner, remote, strings.Repeat("abcdefghij", 300))
	frags := split(t, b, 900)
	if len(frags) != 4 {
		t.Fatalf("%d fragments", len(frags))
	}
	r := newReassembler(t, ReassemblyConfig{})
	for _, order := range permutations(4) {
		for i, k := range order {
			whole, o := r.Add(mustParse(t, frags[k]), 0)
			if o != Pass || (whole != nil) != (i == 3) {
				t.Fatalf("order %v, step %d: %v, %d bytes", order, i, o, len(whole))
			}
			if whole != nil && !bytes.Equal(whole, b) {
				t.Fatalf("order %v: datagram differs", order)
			}
		}
		if r.Used() != 0 || len(r.perSource) != 0 {
			t.Fatalf("order %v: %d bytes remain charged", order, r.Used())
		}
	}
}

// TestFragmentRoundTrip is U-13: refragmentation is in order, within the MTU, and undone by reassembly.
func TestFragmentRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := make([]byte, 5000)
		b = b[:BuildUDP(b, inner, remote, rapid.SliceOfN(rapid.Byte(), 0, 4000).Draw(t, "payload"), 64, 77)]
		if rapid.Bool().Draw(t, "options") {
			b = withOptions(b, 30, 3, 4, 148, 4, 0, 0) // an experiment (RFC 4727) is not copied, router alert is
		}
		mtu := rapid.IntRange(68, 1500).Draw(t, "mtu")
		var frags [][]byte
		for at, last := 0, -1; at != last; {
			buf := make([]byte, mtu)
			n, next := NextFragment(buf, b, mtu, at)
			var p Packet
			if n == 0 || n > mtu || Parse(&p, buf[:n]) != Pass {
				t.Fatalf("fragment of %d bytes at %d", n, at)
			}
			if at > 0 && p.L4 != 20 && !bytes.Equal(buf[20:p.L4], []byte{148, 4, 0, 0}) {
				t.Fatalf("options of a later fragment: % x", buf[20:p.L4])
			}
			if off := int(binary.BigEndian.Uint16(buf[6:])&offsetMask) * 8; off != at {
				t.Fatalf("offset %d, want %d", off, at)
			}
			frags = append(frags, buf[:n])
			last, at = 0, next
		}
		if len(frags) == 1 {
			if !bytes.Equal(frags[0], b) {
				t.Fatal("a packet that fits was changed")
			}
			return
		}
		seed := rapid.Uint64().Draw(t, "shuffle")
		rand.New(rand.NewPCG(seed, 1)).Shuffle(len(frags), func(i, j int) { frags[i], frags[j] = frags[j], frags[i] })
		r, _ := NewReassembler(ReassemblyConfig{})
		for i, f := range frags {
			whole, o := r.Add(mustParseRapid(t, f), 0)
			if o != Pass || (whole != nil) != (i == len(frags)-1) {
				t.Fatalf("fragment %d of %d: %v", i, len(frags), o)
			}
			if whole != nil && !bytes.Equal(whole, b) {
				t.Fatal("datagram differs")
			}
		}
	})
}

// U-13: fragments of a fragment keep its place and its more-fragments bit.
func TestFragmentOfFragment(t *testing.T) {
	b := udpPacket(t, inner, remote, strings.Repeat("0123456789", 500))
	var small [][]byte
	for _, f := range split(t, b, 1500) {
		small = append(small, split(t, f, 300)...)
	}
	r := newReassembler(t, ReassemblyConfig{})
	for i, f := range small {
		whole, o := r.Add(mustParse(t, f), 0)
		if o != Pass || i == len(small)-1 && !bytes.Equal(whole, b) {
			t.Fatalf("fragment %d: %v, %d bytes", i, o, len(whole))
		}
	}
}

func TestNextFragmentWithoutRoom(t *testing.T) {
	b := udpPacket(t, inner, remote, "0123456789")
	if n, _ := NextFragment(make([]byte, 100), b, 27, 0); n != 0 {
		t.Errorf("MTU 27 yields %d bytes", n)
	}
	if n, _ := NextFragment(make([]byte, 27), b, 100, 0); n != 0 {
		t.Errorf("27 bytes hold %d", n)
	}
	if n, _ := NextFragment(make([]byte, 100), b, 10, 0); n != 0 {
		t.Errorf("MTU 10 yields %d bytes", n)
	}
	if n, _ := NextFragment(make([]byte, 100), b, 100, 800); n != 0 {
		t.Errorf("beyond the end there are %d bytes", n)
	}
}

// TestReassemblyRefuses is A-13 a, b, c.
func TestReassemblyRefuses(t *testing.T) {
	x := func(n int) []byte { return bytes.Repeat([]byte{'x'}, n) }
	y := func(n int) []byte { return bytes.Repeat([]byte{'y'}, n) }
	type step struct {
		b    []byte
		want Outcome
	}
	for _, row := range []struct {
		name  string
		steps []step
	}{
		{"overlap at the front condemns", []step{
			{piece(t, UDP, 1, 16, true, x(16)), Pass},
			{piece(t, UDP, 1, 24, true, x(16)), FragmentOverlap},
			{piece(t, UDP, 1, 0, true, x(16)), Fragment},
			{piece(t, UDP, 1, 32, false, x(8)), Fragment},
		}},
		{"overlap at the back", []step{
			{piece(t, UDP, 1, 16, true, x(16)), Pass},
			{piece(t, UDP, 1, 8, true, x(16)), FragmentOverlap},
		}},
		{"one inside another (teardrop)", []step{
			{piece(t, UDP, 1, 0, true, x(64)), Pass},
			{piece(t, UDP, 1, 24, false, x(4)), FragmentOverlap},
		}},
		{"the same place, other bytes", []step{
			{piece(t, UDP, 1, 0, true, x(16)), Pass},
			{piece(t, UDP, 1, 0, true, y(16)), FragmentOverlap},
		}},
		{"an exact copy is harmless", []step{
			{piece(t, UDP, 1, 0, true, x(16)), Pass},
			{piece(t, UDP, 1, 0, true, x(16)), Fragment},
			{piece(t, UDP, 1, 16, false, x(16)), Pass},
		}},
		{"two ends", []step{
			{piece(t, UDP, 1, 32, false, x(8)), Pass},
			{piece(t, UDP, 1, 16, false, x(8)), FragmentOverlap},
		}},
		{"beyond the end", []step{
			{piece(t, UDP, 1, 16, false, x(8)), Pass},
			{piece(t, UDP, 1, 24, true, x(8)), FragmentOverlap},
		}},
		{"an end before what is there", []step{
			{piece(t, UDP, 1, 64, true, x(8)), Pass},
			{piece(t, UDP, 1, 16, false, x(8)), FragmentOverlap},
		}},
		{"tiny first TCP fragment (RFC 1858)", []step{
			{piece(t, TCP, 1, 0, true, x(16)), Fragment},
		}},
		{"TCP options cut off", []step{
			{piece(t, TCP, 1, 0, true, append(append(x(12), 0xf0), x(27)...)), Fragment},
		}},
		{"TCP fragment at offset 1 (RFC 3128)", []step{
			{piece(t, TCP, 1, 8, true, x(16)), Fragment},
		}},
		{"TCP fragment at offset 2", []step{
			{piece(t, TCP, 1, 16, true, x(16)), Fragment},
		}},
		{"later fragments of other transports may be anywhere", []step{
			{piece(t, UDP, 1, 8, true, x(8)), Pass},
		}},
		{"empty", []step{{piece(t, UDP, 1, 8, true, nil), Fragment}}},
		{"no multiple of eight in the middle", []step{{piece(t, UDP, 1, 8, true, x(9)), Fragment}}},
		{"ping of death", []step{{piece(t, ICMP, 1, 65528, false, x(8)), Fragment}}},
		{"up to 65,535", []step{{piece(t, ICMP, 1, 65504, false, x(11)), Pass}}},
	} {
		r := newReassembler(t, ReassemblyConfig{})
		for i, s := range row.steps {
			if _, o := r.Add(mustParse(t, s.b), 0); o != s.want {
				t.Errorf("%s: step %d is %v, want %v", row.name, i, o, s.want)
			}
		}
		r.Expire(30 * second)
		if r.Used() != 0 || len(r.datagrams) != 0 || r.oldest != nil || r.newest != nil {
			t.Errorf("%s: %d bytes remain after the timeout", row.name, r.Used())
		}
	}
}

func TestReassemblerWantsFragments(t *testing.T) {
	r := newReassembler(t, ReassemblyConfig{})
	if _, o := r.Add(mustParse(t, udpPacket(t, inner, remote, "x")), 0); o != Fragment {
		t.Errorf("a whole datagram is %v", o)
	}
}

// A-13 c: the header of the first fragment may be longer than that of the last, so that
// only the whole is too long.
func TestReassemblyTooLongByOptions(t *testing.T) {
	r := newReassembler(t, ReassemblyConfig{})
	first := withOptions(piece(t, UDP, 1, 0, true, make([]byte, 1000)), 30, 7, 4, 0, 0, 0, 0)
	frags := [][]byte{first}
	for off := 1000; off < 65504; off += 1000 {
		frags = append(frags, piece(t, UDP, 1, off, off+1000 < 65504, make([]byte, min(1000, 65512-off))))
	}
	for i, f := range frags {
		want := Pass
		if i == len(frags)-1 {
			want = Fragment
		}
		if whole, o := r.Add(mustParse(t, f), 0); o != want || whole != nil {
			t.Fatalf("fragment %d: %v, %d bytes", i, o, len(whole))
		}
	}
	if r.Used() != 0 {
		t.Errorf("%d bytes remain", r.Used())
	}
}

// TestReassemblyTimeout is R-10: 30 s from the first fragment, whatever follows.
func TestReassemblyTimeout(t *testing.T) {
	r := newReassembler(t, ReassemblyConfig{})
	frags := split(t, udpPacket(t, inner, remote, strings.Repeat("a", 2500)), 1000)
	r.Add(mustParse(t, frags[0]), 0)
	if _, o := r.Add(mustParse(t, frags[1]), 30*second-1); o != Pass {
		t.Fatal(o)
	}
	if n := r.Expire(30*second - 1); n != 0 {
		t.Errorf("%d expired early", n)
	}
	if whole, o := r.Add(mustParse(t, frags[2]), 30*second); o != Pass || whole != nil {
		t.Errorf("the last fragment came too late: %v, %d bytes", o, len(whole))
	}
	if n := r.Expire(60 * second); n != 2 || r.Used() != 0 { // Add forgot the first
		t.Errorf("%d expired, %d bytes remain", n, r.Used())
	}
}

// TestReassemblyLimits (U-14, R-10) is A-13 e: one source's flood leaves others their room,
// and what is under reassembly is not thrown out for what is new.
func TestReassemblyLimits(t *testing.T) {
	r := newReassembler(t, ReassemblyConfig{MaxBytes: 64 << 10, MaxPerSource: 16 << 10})
	frags := split(t, udpPacket(t, inner, remote, strings.Repeat("a", 2500)), 1000)
	r.Add(mustParse(t, frags[0]), 0)
	refused := 0
	for id := range 1000 {
		if _, o := r.Add(mustParse(t, piece(t, UDP, uint16(1000+id), 8, true, make([]byte, 8))), 0); o == FragmentLimit {
			refused++
		}
	}
	if r.Used() > 16<<10 || refused < 900 {
		t.Errorf("%d bytes used, %d refused", r.Used(), refused)
	}
	// Another source still finds room, a third after a flood by many none.
	other := piece(t, UDP, 5, 8, true, make([]byte, 1000))
	other[15] = 99
	if _, o := r.Add(mustParse(t, fixHeader(other)), 0); o != Pass {
		t.Errorf("another source: %v", o)
	}
	for i := range 200 {
		b := piece(t, UDP, 6, 8, true, make([]byte, 1000))
		b[14], b[15] = 1, byte(i)
		r.Add(mustParse(t, fixHeader(b)), 0)
	}
	if r.Used() > 64<<10 || r.Used() < 60<<10 {
		t.Errorf("%d bytes used of %d", r.Used(), 64<<10)
	}
	r.Expire(30 * second)
	if r.Used() != 0 || len(r.perSource) != 0 {
		t.Errorf("%d bytes remain of %d sources", r.Used(), len(r.perSource))
	}
}

// A-13 e: a datagram in more pieces than links make is dropped, and its bytes are freed.
func TestReassemblyFragmentCount(t *testing.T) {
	r := newReassembler(t, ReassemblyConfig{})
	for i := range maxFragments {
		if _, o := r.Add(mustParse(t, piece(t, UDP, 1, 16*i+8, true, make([]byte, 8))), 0); o != Pass {
			t.Fatalf("fragment %d: %v", i, o)
		}
	}
	if _, o := r.Add(mustParse(t, piece(t, UDP, 1, 0, true, make([]byte, 8))), 0); o != FragmentLimit || r.Used() != datagramCost {
		t.Errorf("%v, %d bytes used", o, r.Used())
	}
	if d := r.oldest; d == nil || !d.condemned || d.parts != nil || d.header != nil {
		t.Errorf("a condemned datagram keeps its bytes: %+v", d)
	}
}

// TestReassemblySameID is A-13 f within a network: other addresses or another
// protocol are another datagram.
func TestReassemblySameID(t *testing.T) {
	r := newReassembler(t, ReassemblyConfig{})
	r.Add(mustParse(t, piece(t, UDP, 1, 0, true, make([]byte, 16))), 0)
	last := piece(t, UDP, 1, 16, false, make([]byte, 16))
	for i, edit := range []func(b []byte){
		func(b []byte) { b[15]++ },
		func(b []byte) { b[19]++ },
		func(b []byte) { b[9] = uint8(ICMP) },
		func(b []byte) { b[5]++ },
	} {
		b := bytes.Clone(last)
		edit(b)
		if whole, o := r.Add(mustParse(t, fixHeader(b)), 0); whole != nil || o != Pass {
			t.Errorf("edit %d: %v, %d bytes", i, o, len(whole))
		}
	}
	if whole, _ := r.Add(mustParse(t, last), 0); len(whole) != 52 {
		t.Errorf("%d bytes", len(whole))
	}
}

// A-13 f: two networks with the same inner addresses have each their own
// Reassembler, and the halves of their datagrams never meet.
func TestNetworksReassembleApart(t *testing.T) {
	one, two := newReassembler(t, ReassemblyConfig{}), newReassembler(t, ReassemblyConfig{})
	a, b := piece(t, UDP, 1, 0, true, make([]byte, 16)), piece(t, UDP, 1, 16, false, make([]byte, 16))
	if whole, o := one.Add(mustParse(t, a), 0); whole != nil || o != Pass {
		t.Fatalf("%v, %d bytes", o, len(whole))
	}
	if whole, o := two.Add(mustParse(t, b), 0); whole != nil || o != Pass {
		t.Errorf("the other network's half: %v, %d bytes", o, len(whole))
	}
	if whole, _ := one.Add(mustParse(t, b), 0); len(whole) != 52 {
		t.Errorf("its own half: %d bytes", len(whole))
	}
}

// R-10: a timeout beyond 120 s and limits that contradict each other are refused.
func TestReassemblyConfig(t *testing.T) {
	for _, c := range []ReassemblyConfig{
		{MaxBytes: 100, MaxPerSource: 200}, {MaxBytes: -1, MaxPerSource: 1}, {MaxPerSource: -1},
		{Timeout: -1}, {Timeout: 121 * time.Second},
	} {
		if _, err := NewReassembler(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

func ExampleNextFragment() {
	buf, b := make([]byte, 576), make([]byte, 1300)
	b = b[:BuildUDP(b, inner, remote, make([]byte, 1200), 64, 1)]
	for at, n := 0, 0; ; {
		if n, at = NextFragment(buf, b, 576, at); n == 0 {
			break
		}
		fmt.Println(n)
		if at == 0 {
			break
		}
	}
	// Output:
	// 572
	// 572
	// 124
}
