package nat

import (
	"math"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// RFC 6056 (port randomization). ports_test.go looks at the crowded ways of
// choosing; here is the usual one, over many destinations.

// sample is what an observer inside and one outside see of one connection.
type sample struct{ inner, outer uint16 }

// observe opens n connections, towards a hundred destinations in turn, from inner
// ports in rising order as kernels give them.
func observe(tb reporter, n int, seed byte) []sample {
	tb.Helper()
	l := newLab(tb, func(c *Config) { c.Limits, c.Seed = endless, [32]byte{seed, 60, 56} })
	seen := make([]sample, n)
	for i := range seen {
		from := makeEndpoint(0x0a000000+uint32(i/50_000), uint16(1024+i%50_000)).addrPort()
		n := l.build(from, makeEndpoint(0xcb007100+uint32(i%100), 443).addrPort(), seg{flags: packet.SYN, seq: 1})
		l.parse(n)
		if o := l.Egress(&l.p, l.now); o != packet.Pass {
			tb.Fatal(o)
		}
		seen[i] = sample{from.Port(), l.p.SrcPort}
	}
	return seen
}

// chi63at1 is the statistic of 64 bins that chance passes with p = 0.01.
const chi63at1 = 92.01

// X-11, P-1, P-2, P-3, P-4, C-15: 100,000 connections. Their ports span the whole
// range and are uniform, so are the gaps between them; who sees every second
// port does not guess the next, and inner ports tell nothing of outer ones.
func TestP1P2P3P4OverManyDestinations(t *testing.T) {
	const n = 100_000
	seen := observe(t, n, 1)
	bins, gaps := make([]int, 64), make([]int, 64)
	var used [1 << 16]bool
	distinct := 0
	for i, s := range seen {
		if s.outer < 1024 {
			t.Fatalf("port %d", s.outer)
		}
		bins[(int(s.outer)-1024)/(wholeRange/64)]++
		if i > 0 {
			gaps[(int(s.outer)-int(seen[i-1].outer)+wholeRange)%wholeRange/(wholeRange/64)]++
		}
		if !used[s.outer] {
			used[s.outer] = true
			distinct++
		}
	}
	// Of m ports n drawings leave m/e^(n/m) unseen.
	if want := wholeRange * (1 - math.Exp(-float64(n)/wholeRange)); math.Abs(float64(distinct)-want) > 500 {
		t.Errorf("%d distinct ports, want about %.0f: part of the range is not used", distinct, want)
	}
	if x := chiSquare(bins); x > chi63at1 {
		t.Errorf("chi-square of ports is %.1f", x)
	}
	if x := chiSquare(gaps); x > chi63at1 {
		t.Errorf("chi-square of gaps is %.1f", x)
	}
	for name, hits := range predictions(seen) {
		// A rate of 2/64,512 makes 1.6 hits; three are within chance of it.
		if hits > 3 {
			t.Errorf("who guesses %s hits %d of %d times", name, hits, n/2)
		}
	}
	if r := correlation(seen); math.Abs(r) > 0.01 { // three times its deviation
		t.Errorf("inner and outer ports correlate by %.4f", r)
	}
}

// predictions counts how often simple rules, given every second port, tell the next.
func predictions(seen []sample) map[string]int {
	hits := map[string]int{}
	for i := 3; i < len(seen); i += 2 {
		last, before, next := seen[i-1].outer, seen[i-3].outer, seen[i].outer
		for name, guess := range map[string]uint16{
			"the same":         last,
			"one more":         last + 1,
			"one less":         last - 1,
			"two more":         last + 2,
			"the same step":    last + (last - before),
			"half of the step": last + (last-before)/2,
			"the difference":   last ^ before,
			"the inner port":   seen[i].inner,
			"a shifted port":   last<<1 | last>>15,
			"the opposite":     ^last,
		} {
			if guess == next {
				hits[name]++
			}
		}
	}
	return hits
}

// correlation is Pearson's coefficient of inner and outer ports.
func correlation(seen []sample) float64 {
	var x, y, xx, yy, xy float64
	for _, s := range seen {
		a, b := float64(s.inner), float64(s.outer)
		x, y, xx, yy, xy = x+a, y+b, xx+a*a, yy+b*b, xy+a*b
	}
	n := float64(len(seen))
	return (n*xy - x*y) / math.Sqrt((n*xx-x*x)*(n*yy-y*y))
}

// P-3: two tables, or one before and after a restart, choose differently; the
// same secret chooses the same, so that all of it is in the secret.
func TestP3SecretDecides(t *testing.T) {
	a, b, again := observe(t, 2000, 1), observe(t, 2000, 2), observe(t, 2000, 1)
	same := 0
	for i := range a {
		if a[i] != again[i] {
			t.Fatalf("connection %d: the same secret gave ports %d and %d", i, a[i].outer, again[i].outer)
		}
		if a[i] == b[i] {
			same++
		}
	}
	if same > 3 {
		t.Errorf("two secrets agree in %d of 2000 ports", same)
	}
}

// P-1: the range is 64,512 ports, 15.98 bits, less the reserved ones.
func TestP1WholeRange(t *testing.T) {
	for reserved, want := range map[int]uint64{0: wholeRange, 3: wholeRange - 3} {
		l := newLab(t, func(c *Config) { c.Reserved = []uint16{51820, 8080, 9090}[:reserved] })
		must2(l.udpOut(box, web))(l, packet.Pass)
		if free := l.Stats().FreePorts.Of(packet.UDP) + 1; free != want {
			t.Errorf("%d ports, want %d", free, want)
		}
	}
	if bits := math.Log2(wholeRange); math.Abs(bits-15.98) > 0.005 {
		t.Errorf("%.3f bits", bits)
	}
}
