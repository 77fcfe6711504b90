package nat

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// storm is a seeded flood of mutated packets from both sides. Unlike the fuzz
// targets it goes on with one table, and is as long as its caller likes.
type storm struct {
	*lab
	seeds  [][]byte
	chance *rand.Rand
	passed [3]int // from inside, from outside, from inside to inside
	kinds  [8]int // what left, by kind
}

func newStorm(tb reporter, seed uint64, mode Mapping) *storm {
	l, seeds := fuzzLab(tb, mode)
	l.Table.config.Limits.NewPerSecond = unlimited
	// Errors from inside about a datagram that came in.
	l.udpOut(box, web)
	at := l.src()
	l.udpIn(web, at)
	seeds = append(seeds, bytes.Clone(l.buf[:l.errorAbout(3, 3, 0, box.Addr(), web.Addr(), bytes.Clone(l.p.B))]))
	seeds = append(seeds, bytes.Clone(l.buf[:l.errorAbout(11, 1, 0, box.Addr(), web.Addr(), bytes.Clone(l.p.B[:28]))]))
	// Two sandboxes that have sent to each other's external endpoints.
	l.udpOut(box2, web)
	other := l.src()
	for _, ends := range [][2]netip.AddrPort{{box, other}, {box2, at}} {
		l.udpOut(ends[0], ends[1])
		seeds = append(seeds, bytes.Clone(l.buf[:packet.BuildUDP(l.buf[:], ends[0], ends[1], []byte("x"), 64, 0)]))
	}
	return &storm{lab: l, seeds: seeds, chance: rand.New(rand.NewPCG(seed, 18))}
}

// recording returns the packet b with an option that already holds its source's address.
func recording(b []byte, option byte) []byte {
	o := []byte{option, 11, 8, b[12], b[13], b[14], b[15], 0, 0, 0, 0, 0}
	if option == 68 {
		o = []byte{option, 12, 13, 1, b[12], b[13], b[14], b[15], 0, 0, 0, 1}
	}
	r := append(bytes.Clone(b[:20]), o...)
	r[0] = 0x48
	return repair(append(r, b[20:]...))
}

// mutate returns a packet that is nearly one of the seeds.
func (s *storm) mutate() []byte {
	b := bytes.Clone(s.seeds[s.chance.IntN(len(s.seeds))])
	for range s.chance.IntN(5) {
		at := s.chance.IntN(min(len(b), 72))
		switch s.chance.IntN(6) {
		case 0:
			b[at] = byte(s.chance.Uint32())
		case 1:
			b[at] ^= 1 << s.chance.IntN(8)
		case 2:
			b[at] = [...]byte{0, 1, 0x45, 0x4f, 0x7f, 0x80, 0xff}[s.chance.IntN(7)]
		case 3:
			b = b[:1+s.chance.IntN(len(b))]
		case 4:
			b = append(b, make([]byte, s.chance.IntN(9))...)
		default:
			copy(b[at:], b[s.chance.IntN(len(b)):])
		}
	}
	if s.chance.IntN(8) > 0 {
		b = repair(b)
	}
	return b
}

// blow sends one packet from inside and from outside, and checks what passes.
func (s *storm) blow() {
	s.Helper()
	b := s.mutate()
	was := append(s.was[:0], b...)
	if packet.Parse(&s.p, b) == packet.Pass {
		inner, to := s.p.Src, s.p.Dst
		if s.Egress(&s.p, s.now) == packet.Pass {
			s.passed[0]++
			s.kinds[s.p.Kind]++
			s.hidden(was, inner, to)
			s.turned()
		} else if !bytes.Equal(b, was[:len(b)]) {
			s.Fatalf("dropped, but changed:%s", describe(b))
		}
	}
	b = append(b[:0], was...)
	if packet.Parse(&s.p, b) == packet.Pass && s.Ingress(&s.p, s.now) == packet.Pass {
		s.passed[1]++
		if to := netip.AddrPortFrom(s.p.Dst, 0); to.Addr() != box.Addr() && to.Addr() != box2.Addr() {
			if _, known := s.host(to.Addr()); !known {
				s.Fatalf("arrived at %v:%s", to.Addr(), describe(b))
			}
		}
	}
}

// turned sends what has left for the table's own address back into it.
func (s *storm) turned() {
	s.Helper()
	var q packet.Packet
	if s.p.Dst != external || packet.Parse(&q, s.p.B) != packet.Pass || s.Hairpin(&q, s.now) != packet.Pass {
		return
	}
	s.passed[2]++
	if _, known := s.host(q.Dst); !known || q.Src != external {
		s.Fatalf("turned to %v from %v:%s", q.Dst, q.Src, describe(q.B))
	}
}

func (s *storm) host(a netip.Addr) (uint32, bool) {
	i := s.findHost(s.key.sum(uint64(number(a)), 0), number(a))
	return i, i != 0
}

// hidden checks that no address field of what leaves, those of a quoted packet
// included, shows the inner address. What a sandbox writes into an option that
// nobody knows is its own data, like any payload.
func (s *storm) hidden(was []byte, inner, to netip.Addr) {
	s.Helper()
	var q packet.Packet
	if packet.Parse(&q, s.p.B) != packet.Pass || q.Src != external || q.Dst != to {
		s.Fatalf("left as%s\nwas%s", describe(s.p.B), describe(was))
	}
	if q.Kind == packet.KindICMPError && (q.Inner.Dst != external || q.Inner.Src != to || to == inner) {
		s.Fatalf("left with a quotation from %v to %v:%s", q.Inner.Src, q.Inner.Dst, describe(q.B))
	}
}

// U-12: a hundred thousand mutated packets from each side, errors and
// what they quote among them: nothing panics, all that leaves has the external
// address, no header of it the inner one, and the table stays whole.
func TestA18MutationStorm(t *testing.T) {
	for seed, mode := range []Mapping{AddressAndPortDependent, EndpointIndependent} {
		s := newStorm(t, uint64(seed), mode)
		for i := range 50_000 {
			if s.blow(); i%25_000 == 0 {
				audit(t, s.Table)
			}
		}
		audit(t, s.Table)
		if s.passed[0] < 1000 || s.passed[1] < 1000 || s.passed[2] < 100 || s.kinds[packet.KindICMPError] < 100 || s.kinds[packet.KindTCP] < 100 {
			t.Errorf("%v passed, kinds %v: the storm does not reach the table", s.passed, s.kinds)
		}
	}
}

// a packet whose options hold the inner address, as hosts write it
// there themselves (ping -R), is dropped, and so is an error that quotes one.
func TestA18RecordingOptions(t *testing.T) {
	l, seeds := fuzzLab(t, AddressAndPortDependent)
	for _, option := range []byte{7, 68} { // record route, timestamp
		var p packet.Packet
		if o := packet.Parse(&p, recording(seeds[0], option)); o != packet.AddressOption {
			t.Errorf("option %d: %v", option, o)
		}
		if o := l.Egress(&p, l.now); o != packet.Malformed {
			t.Errorf("option %d: the table took it all the same: %v", option, o)
		}
		n := l.errorAbout(3, 3, 0, box.Addr(), web.Addr(), recording(seeds[0], option))
		if o := packet.Parse(&p, l.buf[:n]); o == packet.Pass {
			t.Errorf("option %d: an error that quotes it passed", option)
		}
	}
}

// BenchmarkA26Hammer is a packet of the storm from each side, each checked. For
// A-26's ten million packets: -bench A26 -benchtime 10000000x.
func BenchmarkA26Hammer(b *testing.B) {
	s := newStorm(b, 26, EndpointIndependent)
	for b.Loop() {
		s.blow()
	}
	audit(b, s.Table)
}
