package histogram

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// durations are drawn so that every power of two is as likely as any other.
func durations() *rapid.Generator[[]time.Duration] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) time.Duration {
		shift := rapid.IntRange(0, 43).Draw(t, "shift")
		return time.Duration(rapid.Uint64Range(0, 1<<shift).Draw(t, "value"))
	}), 1, 300)
}

// oracle is the quantile of a sorted list, by the histogram's definition.
func oracle(sorted []time.Duration, q float64) time.Duration {
	rank := min(len(sorted), max(1, int(math.Ceil(q*float64(len(sorted))))))
	return sorted[rank-1]
}

// near says whether a quantile is the right one, rounded up as far as the package promises.
func near(got, want time.Duration) bool {
	if want > Most {
		return got >= want
	}
	return got == want || got > want && 1000*(got-want) < want
}

// same says whether two hold the same.
func same(a, b *Histogram) bool {
	return a.counts.Equals(b.counts) && a.beyond == b.beyond && a.least == b.least && a.most == b.most
}

func TestAgainstSorting(t *testing.T) {
	whole, odd, even := New(), New(), New()
	rapid.Check(t, func(t *rapid.T) {
		values := durations().Draw(t, "values")
		whole.Reset()
		odd.Reset()
		even.Reset()
		for i, v := range values {
			whole.Record(v)
			[]*Histogram{even, odd}[i%2].Record(v)
		}
		if even.Merge(odd); !same(even, whole) {
			t.Fatal("two halves together are not the whole")
		}
		slices.Sort(values)
		n := len(values)
		if whole.Count() != uint64(n) || whole.Min() != values[0] || whole.Max() != values[n-1] {
			t.Fatalf("count %d, min %v, max %v of %v", whole.Count(), whole.Min(), whole.Max(), values)
		}
		for _, q := range []float64{0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1, rapid.Float64Range(0, 1).Draw(t, "q")} {
			got, want := whole.Quantile(q), oracle(values, q)
			if !near(got, want) || got > whole.Max() {
				t.Fatalf("quantile %g: %d ns, want %d ns, max %d ns", q, got, want, whole.Max())
			}
		}
	})
}

// Each of many values is found by its rank: no rounding of the rank moves it.
func TestRanks(t *testing.T) {
	const n = 2000 // so few that each has its own bucket
	h := New()
	for v := range n {
		h.Record(time.Duration(v))
	}
	for v := range n {
		if got := h.Quantile((float64(v) + 0.5) / n); got != time.Duration(v) {
			t.Fatalf("%d is the value of rank %d", got, v)
		}
	}
}

func TestEmptyAndOdd(t *testing.T) {
	h := New()
	if h.Count() != 0 || h.Min() != 0 || h.Max() != 0 || h.Quantile(0.5) != 0 {
		t.Errorf("empty: %d, %v to %v, p50 %v", h.Count(), h.Min(), h.Max(), h.Quantile(0.5))
	}
	h.Merge(New())
	h.Record(-time.Second)
	if h.Max() != 0 || h.Count() != 1 {
		t.Errorf("a negative duration: max %v of %d", h.Max(), h.Count())
	}
	for range 3 {
		h.Record(math.MaxInt64)
	}
	if h.Count() != 4 || h.Quantile(0.25) != 0 || h.Quantile(0.5) != math.MaxInt64 || h.Quantile(math.NaN()) != 0 {
		t.Errorf("of %d p25 %d, p50 %d", h.Count(), h.Quantile(0.25), h.Quantile(0.5))
	}
	if h.Reset(); !same(h, New()) {
		t.Error("not empty after Reset")
	}
}

func TestAllocations(t *testing.T) {
	h, o := New(), New()
	o.Record(time.Second)
	if n := testing.AllocsPerRun(100, func() {
		h.Record(time.Millisecond)
		h.Record(2 * Most)
		h.Merge(o)
		_ = h.Quantile(0.99)
		h.Reset()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// drawn is what a benchmark records: latencies of a millisecond or so.
func drawn() (values [4096]time.Duration) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range values {
		values[i] = time.Duration(r.ExpFloat64() * float64(time.Millisecond))
	}
	return values
}

func BenchmarkRecord(b *testing.B) {
	h, values := New(), drawn()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		h.Record(values[i%len(values)])
	}
}

func BenchmarkMerge(b *testing.B) {
	h, o := New(), New()
	for _, v := range drawn() {
		o.Record(v)
	}
	b.ReportAllocs()
	for b.Loop() {
		h.Merge(o)
	}
}
