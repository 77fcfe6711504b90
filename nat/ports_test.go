package nat

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// chiSquare returns the statistic of counts that should be equal.
func chiSquare(counts []int) float64 {
	n := 0
	for _, c := range counts {
		n += c
	}
	want := float64(n) / float64(len(counts))
	x := 0.0
	for _, c := range counts {
		x += (float64(c) - want) * (float64(c) - want) / want
	}
	return x
}

// chi63 is the statistic of 64 bins that chance passes with p = 0.001.
const chi63 = 103.4

// P-1, P-2, P-3: ports are uniform over the whole range, and neither their
// gaps nor every second one tell the next. At once the crowd's way of choosing is seen, as
// all connections go to one destination.
func TestP2PortsUniform(t *testing.T) {
	for _, proto := range []packet.Proto{packet.TCP, packet.UDP} {
		l := newLab(t, func(c *Config) { c.Limits = Limits{Sessions: -1, Ports: -1, HalfOpen: -1, NewPerSecond: -1} })
		bins, gaps := make([]int, 64), make([]int, 64)
		last, low, high, hits := 0, 65536, 0, 0
		for i := range 40_000 {
			from := makeEndpoint(0x0a000000+uint32(i>>14), uint16(1024+i&0x3fff)).addrPort()
			var p int
			if proto == packet.TCP {
				p = int(l.conn(from, web).syn().external.Port())
			} else {
				p = int(must2(l.udpOut(from, web))(l, packet.Pass).Port())
			}
			low, high = min(low, p), max(high, p)
			if i < 20_000 { // later the pool is thinned out, and bins are no longer alike by chance alone
				bins[(p-1024)/1008]++
				gaps[(p-last+65536)%64512/1008]++
			}
			if p-last == 1 || p-last == 2 {
				hits++
			}
			last = p
		}
		if x := chiSquare(bins); x > chi63 {
			t.Errorf("protocol %d: chi-square of ports is %.1f", proto, x)
		}
		if x := chiSquare(gaps); x > chi63 {
			t.Errorf("protocol %d: chi-square of gaps is %.1f", proto, x)
		}
		if low > 1030 || high < 65530 {
			t.Errorf("protocol %d: ports %d to %d do not span the range", proto, low, high)
		}
		if hits > 15 {
			t.Errorf("protocol %d: %d ports of 40000 follow their predecessor", proto, hits)
		}
	}
}

// P-2, U-11: at 99 % occupancy each of the free ports comes as often as any other.
func TestP2UniformWhenNearlyFull(t *testing.T) {
	s := newPortSet(PortRange{1024, 65535}, nil)
	d := dice{rand.NewChaCha8([32]byte{5})}
	var free []uint16
	for p := 1024; p <= 65535; p++ {
		// Free ports in bunches, so that a scan from a random start would favour some.
		if p%6400 < 64 {
			free = append(free, uint16(p))
		} else {
			s.take(uint16(p))
		}
	}
	if s.free != len(free) {
		t.Fatalf("%d free, want %d", s.free, len(free))
	}
	counts := make([]int, 64)
	for range 64_000 {
		p, ok := s.pick(&d)
		i, found := slices.BinarySearch(free, p)
		if !ok || !found {
			t.Fatalf("port %d is not free", p)
		}
		counts[i%64]++
	}
	if x := chiSquare(counts); x > chi63 {
		t.Errorf("chi-square is %.1f", x)
	}
}

// A portSet agrees with a slice of booleans.
func TestPortSetAgainstSlice(t *testing.T) {
	s := newPortSet(PortRange{2000, 6000}, []uint16{2000, 3000, 6000, 7000})
	d := dice{rand.NewChaCha8([32]byte{6})}
	free := map[uint16]bool{}
	for p := uint16(2001); p < 6000; p++ {
		free[p] = p != 3000
	}
	delete(free, 3000)
	for range 50_000 {
		p := uint16(2001 + d.below(3999))
		switch {
		case p == 3000:
		case d.below(3) > 0:
			if s.take(p) != free[p] {
				t.Fatalf("take(%d) disagrees", p)
			}
			free[p] = false
		default:
			s.release(p)
			free[p] = true
		}
	}
	var want []uint16
	for p, ok := range free {
		if ok {
			want = append(want, p)
		}
	}
	slices.Sort(want)
	if s.free != len(want) {
		t.Fatalf("%d free, want %d", s.free, len(want))
	}
	for i, p := range want {
		if got := s.nth(i); got != p {
			t.Fatalf("free port %d is %d, want %d", i, got, p)
		}
	}
}

// dice.below is uniform where its bound is no power of two.
func TestDiceUniform(t *testing.T) {
	d := dice{rand.NewChaCha8([32]byte{7})}
	counts, thirds := make([]int, 64), make([]int, 3)
	for range 64_000 {
		counts[d.below(64*3)/3]++
		thirds[d.below(3<<30)%3]++ // half of them 0 without rejection
	}
	if x := chiSquare(counts); x > chi63 {
		t.Errorf("chi-square is %.1f", x)
	}
	if x := chiSquare(thirds); x > 13.8 {
		t.Errorf("chi-square of a bound that does not divide 2^32 is %.1f", x)
	}
}

// C-13, T-7, U-11: every port is used towards one destination before the first
// refusal; other destinations don't feel it; after the hold all come back.
func TestC13CrowdedDestination(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits = Limits{Sessions: -1, Ports: -1, HalfOpen: -1, NewPerSecond: -1} })
	from := func(i int) endpoint { return makeEndpoint(0x0a000000+uint32(i>>15), uint16(1024+i&0x7fff)) }
	const ports = 64512
	seen := make(map[uint16]bool, ports)
	for i := range ports {
		c := l.conn(from(i).addrPort(), web).syn()
		if seen[c.external.Port()] {
			t.Fatalf("port %d was given out twice", c.external.Port())
		}
		seen[c.external.Port()] = true
	}
	c := l.conn(box2, web)
	c.mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
	l.conn(box2, other).open()
	if s := l.Stats(); s.Crowded != 1 || s.Sessions.Of(packet.TCP) != ports+1 {
		t.Errorf("%d crowds, %d sessions", s.Crowded, s.Sessions.Of(packet.TCP))
	}
	audit(t, l.Table)

	l.wait(241 * time.Second)
	if n := l.settle(); n != ports {
		t.Errorf("%d sessions expired, want %d", n, ports)
	}
	c.mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
	audit(t, l.Table)
	l.wait(121 * time.Second)
	l.settle()
	c.open()
	if s := l.Stats(); s.Crowded != 0 || s.HeldTuples != 0 {
		t.Errorf("%d crowds and %d holds are left", s.Crowded, s.HeldTuples)
	}
	audit(t, l.Table)
}

// The rate that follows from hold and closing time (NAT: 64,512 ports / 360 s) lasts for ever.
func TestSustainedRateToOneDestination(t *testing.T) {
	l := newLab(t, func(c *Config) {
		c.Ports = PortRange{2000, 2359}
		c.Limits = Limits{Sessions: -1, Ports: -1, HalfOpen: -1, NewPerSecond: -1}
	})
	for i := range 3000 {
		c := l.conn(makeEndpoint(0x0a000002, uint16(1024+i)).addrPort(), web).syn()
		c.recv(seg{flags: rstAck, ack: c.out})
		l.wait(1010 * time.Millisecond)
		l.Expire(l.now, 1000)
	}
	if n := l.Stats().Refused.Of(ReasonNoPorts); n != 0 {
		t.Errorf("%d connections were refused", n)
	}
}

// The memory of holds is bounded: beyond, the oldest ends early and is counted.
func TestHoldsAreBounded(t *testing.T) {
	l := newLab(t, func(c *Config) { c.MaxSessions = 10 })
	for i := range 100 {
		c := l.conn(makeEndpoint(0x0a000002, uint16(1024+i)).addrPort(), web).syn()
		l.Close(Flow{Proto: packet.TCP, External: c.external, Remote: web}, l.now)
	}
	if s := l.Stats(); s.HeldTuples != 10 || s.HoldsShortened != 90 {
		t.Errorf("%d holds, %d shortened, want 10 and 90", s.HeldTuples, s.HoldsShortened)
	}
	audit(t, l.Table)
}

// A tuple that the kernel refuses towards a crowded destination is on hold, too.
func TestRefusedTupleInCrowd(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports = PortRange{2000, 2003} })
	var c *conn
	for i := range 4 {
		c = l.conn(makeEndpoint(0x0a000002, uint16(1024+i)).addrPort(), web).open()
	}
	l.conn(box, web).mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
	l.Close(Flow{packet.TCP, c.external, web}, l.now)
	l.wait(121 * time.Second)
	l.settle()
	l.PortRefused(Flow{packet.TCP, c.external, web}, l.now)
	audit(t, l.Table)
	c.mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
	if l.Stats().Crowded != 1 {
		t.Error("the destination is not crowded")
	}
}

// P-3: 64-bit words of the generator spread over 16-bit ports as log2(64512) bits do.
func TestP3Entropy(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.HalfOpen, c.Limits.Ports = -1, -1 })
	counts := map[uint16]int{}
	for i := range 20_000 {
		c := l.conn(box, makeEndpoint(0xcb007100+uint32(i), 443).addrPort()).syn()
		counts[c.external.Port()]++
	}
	h := 0.0
	for _, n := range counts {
		p := float64(n) / 20_000
		h -= p * math.Log2(p)
	}
	if h < 13.9 { // of at most log2(20000) = 14.29
		t.Errorf("entropy of 20000 ports is %.2f bits", h)
	}
}
