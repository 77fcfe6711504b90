package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// slowReassembler is the oracle: it keeps every fragment, and asks byte by byte.
// It has no limits of memory.
type slowReassembler map[datagramKey]*slowDatagram

type slowDatagram struct {
	began     Instant
	condemned bool
	frags     [][]byte // as they came
}

// place returns the first byte of the payload, the one behind its last, and
// whether it is the end.
func slowPlace(f []byte) (from, to int, last bool) {
	field := binary.BigEndian.Uint16(f[6:])
	from = int(field&0x1fff) * 8
	return from, from + len(f) - slowHead(f), field&0x2000 == 0
}

func slowHead(f []byte) int { return int(f[0]&15) * 4 }

// slowPlausible is what RFC 791, 1858 and 3128 ask of one fragment by itself.
func slowPlausible(f []byte) bool {
	from, to, last := slowPlace(f)
	n := to - from
	if n == 0 || !last && n%8 != 0 || slowHead(f)+to > 65535 {
		return false
	}
	tcp := Proto(f[9]) == TCP
	if from == 0 {
		h := 8
		if tcp {
			h = 20
		}
		if tcp && n >= 20 {
			h = max(h, int(f[slowHead(f)+12]>>4)*4)
		}
		return n >= h
	}
	return !tcp || from >= 20
}

// contradict says whether two fragments cannot be of one datagram.
func slowContradict(f, g []byte) bool {
	a, b, fLast := slowPlace(f)
	c, d, gLast := slowPlace(g)
	return a < d && c < b || fLast && d > b || gLast && b > d || fLast && gLast && b != d
}

func slowCopy(f, g []byte) bool {
	a, b, fLast := slowPlace(f)
	c, d, gLast := slowPlace(g)
	return a == c && b == d && fLast == gLast && bytes.Equal(f[slowHead(f):], g[slowHead(g):])
}

func (r slowReassembler) add(p *Packet, now Instant) ([]byte, Outcome) {
	for k, d := range r {
		if now-d.began >= 30*second {
			delete(r, k)
		}
	}
	f := bytes.Clone(p.B)
	if !slowPlausible(f) {
		return nil, Fragment
	}
	key := datagramKey{src: [4]byte(f[12:]), dst: [4]byte(f[16:]), id: binary.BigEndian.Uint16(f[4:]), proto: Proto(f[9])}
	d := r[key]
	if d == nil {
		d = &slowDatagram{began: now}
		r[key] = d
	}
	if d.condemned {
		return nil, Fragment
	}
	for _, g := range d.frags {
		if slowCopy(f, g) {
			return nil, Fragment
		}
	}
	for _, g := range d.frags {
		if slowContradict(f, g) {
			d.condemned, d.frags = true, nil
			return nil, FragmentOverlap
		}
	}
	d.frags = append(d.frags, f)
	whole := d.whole()
	if whole == nil {
		return nil, Pass
	}
	delete(r, key)
	if len(whole) > 65535 || d.marked(3) && d.marked(0) {
		return nil, Fragment
	}
	return whole, Pass
}

// marked says whether a fragment has the ECN codepoint.
func (d *slowDatagram) marked(ecn byte) bool {
	return slices.ContainsFunc(d.frags, func(f []byte) bool { return f[1]&3 == ecn })
}

// whole returns the datagram if every byte of it is there.
func (d *slowDatagram) whole() []byte {
	end, have := -1, map[int]byte{}
	var header []byte
	for _, f := range d.frags {
		from, to, last := slowPlace(f)
		if last {
			end = to
		}
		if from == 0 {
			header = f[:slowHead(f)]
		}
		for i, v := range f[slowHead(f):] {
			have[from+i] = v
		}
	}
	if end < 0 || len(have) != end {
		return nil
	}
	b := bytes.Clone(header)
	for i := range end {
		b = append(b, have[i])
	}
	b[2], b[3], b[6], b[7] = byte(len(b)>>8), byte(len(b)), 0, 0
	if d.marked(3) {
		b[1] |= 3
	}
	return fixHeader(b)
}

// judge gives one packet to the Reassembler and to its oracle.
func judge(t interface{ Fatalf(string, ...any) }, r *Reassembler, slow slowReassembler, b []byte, now Instant) {
	var p Packet
	if Parse(&p, b) != Pass || p.Kind != KindFragment {
		return // it is not the Reassembler's
	}
	got, o := r.Add(&p, now)
	want, wantOutcome := slow.add(&p, now)
	if o != wantOutcome || !bytes.Equal(got, want) {
		t.Fatalf("%v % x, want %v % x, for % x", o, got, wantOutcome, want, b)
	}
	if r.Used() < 0 || len(r.datagrams) != len(slow) {
		t.Fatalf("%d bytes charged, %d datagrams, want %d", r.Used(), len(r.datagrams), len(slow))
	}
}

// drawHostile draws a fragment that is likely to meet another: few places, few
// lengths, two contents, two datagrams.
func drawHostile(t *rapid.T) []byte {
	data := make([]byte, rapid.SampledFrom([]int{0, 5, 8, 8, 16, 16, 24, 32}).Draw(t, "length"))
	off := rapid.IntRange(0, 5).Draw(t, "offset") * 8
	if rapid.IntRange(0, 30).Draw(t, "far") == 0 {
		off = 65528 - 8*rapid.IntRange(0, 4).Draw(t, "words from the end")
	}
	for i := range data {
		data[i] = 0x50 | byte(off+i)&15 // a data offset of 20 at the place where TCP has it
	}
	if len(data) > 0 && rapid.IntRange(0, 9).Draw(t, "other content") == 0 {
		data[len(data)-1] ^= 1
	}
	proto := rapid.SampledFrom([]Proto{UDP, UDP, TCP, ICMP}).Draw(t, "proto")
	b := make([]byte, 20+len(data))
	ipv4{src: innerA, dst: remoteA, proto: proto, tos: rapid.SampledFrom([]uint8{0, 2, 2, 1, 3, 0xba}).Draw(t, "tos"), ttl: 64, id: 1}.put(b, len(b))
	copy(b[20:], data)
	field := uint16(off / 8)
	if rapid.Bool().Draw(t, "more") {
		field |= flagMF
	}
	binary.BigEndian.PutUint16(b[6:], field)
	b[5] = rapid.ByteRange(1, 2).Draw(t, "id")
	if rapid.IntRange(0, 7).Draw(t, "options") == 0 {
		return withOptions(b, 148, 4, 0, 0)
	}
	return fixHeader(b)
}

// A-13 a, A-13 b, A-13 c, U-14, R-10: whatever comes in whatever order, the
// Reassembler says what the oracle says, byte for byte and reason for reason.
func TestReassemblyOfHostileFragmentsAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, _ := NewReassembler(ReassemblyConfig{})
		slow, now := slowReassembler{}, Instant(0)
		for range rapid.IntRange(1, 40).Draw(t, "fragments") {
			now += rapid.SampledFrom([]Instant{0, 0, 0, 0, 0, 7 * second, 30 * second}).Draw(t, "passes")
			judge(t, r, slow, drawHostile(t), now)
		}
		r.Expire(now + 30*second)
		if r.Used() != 0 || len(r.perSource) != 0 {
			t.Fatalf("%d bytes remain", r.Used())
		}
	})
}

// U-14, A-13 d: a datagram that is cut anywhere comes back whole, exactly when
// its last missing fragment arrives, in every order and with copies in between.
func TestReassemblyOfEveryOrderWithCopies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSlow(t)
		s.df, s.options = false, nil
		s.l4 = append(s.l4, bytes.Repeat([]byte{0xa5}, rapid.IntRange(48, 200).Draw(t, "more"))...)
		if s.proto == UDP {
			s.l4[5] = uint8(len(s.l4))
		}
		b := s.bytes()
		cuts := map[int]bool{}
		for range rapid.IntRange(1, 3).Draw(t, "cuts") {
			cuts[rapid.IntRange(5, (len(s.l4)-1)/8).Draw(t, "cut")*8] = true // behind the longest TCP header drawn
		}
		var frags [][]byte
		for from, at := 0, 8; from < len(s.l4); at += 8 {
			if at < len(s.l4) && !cuts[at] {
				continue
			}
			at = min(at, len(s.l4))
			f := append(bytes.Clone(b[:20]), s.l4[from:at]...)
			copy(f[20:], b[20+from:20+at])
			binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
			binary.BigEndian.PutUint16(f[6:], uint16(from/8))
			if at < len(s.l4) {
				f[6] |= 0x20
			}
			frags, from = append(frags, fixHeader(f)), at
		}
		seed := rapid.Uint64().Draw(t, "seed")
		for _, order := range permutations(len(frags)) {
			dice := rand.New(rand.NewPCG(seed, uint64(order[0])))
			r, _ := NewReassembler(ReassemblyConfig{})
			for i, k := range order {
				if i > 0 && dice.IntN(2) == 0 {
					if whole, o := r.Add(mustParseRapid(t, frags[order[dice.IntN(i)]]), 0); whole != nil || o != Fragment {
						t.Fatalf("order %v: a copy before step %d is %v", order, i, o)
					}
				}
				whole, o := r.Add(mustParseRapid(t, frags[k]), 0)
				if o != Pass || (whole != nil) != (i == len(order)-1) {
					t.Fatalf("order %v, step %d: %v, %d bytes", order, i, o, len(whole))
				}
				if whole != nil && !bytes.Equal(whole, b) {
					t.Fatalf("order %v\n% x, want\n% x", order, whole, b)
				}
			}
			if r.Used() != 0 || len(r.datagrams) != 0 {
				t.Fatalf("order %v: %d bytes remain", order, r.Used())
			}
		}
	})
}

// FuzzReassemblyOracle reads fragments out of the input, four bytes each: place,
// flags and identity, length, content and time.
func FuzzReassemblyOracle(f *testing.F) {
	f.Add([]byte{0, 0x80, 16, 0, 2, 0, 9, 0})
	f.Add([]byte{0, 0x80, 32, 0, 2, 0x80, 16, 0, 4, 0, 3, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := newReassembler(t, ReassemblyConfig{})
		slow, now := slowReassembler{}, Instant(0)
		for in = in[:min(len(in), 400)]; len(in) >= 4; in = in[4:] { // long inputs tell nothing new
			off, flags := int(in[0])*8, in[1]
			data := bytes.Repeat([]byte{0x50 | in[3]>>6}, int(in[2]))
			b := piece(t, []Proto{UDP, TCP, ICMP, UDP}[flags&3], uint16(flags>>2&1), off, flags&0x80 != 0, data)
			b[1] = flags >> 3 & 3
			if flags&0x40 != 0 {
				b = withOptions(b, 148, 4, 0, 0)
			}
			now += Instant(in[3]&7) * 5 * second
			judge(t, r, slow, fixHeader(b), now)
		}
	})
}
