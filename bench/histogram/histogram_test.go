package histogram

import (
	"encoding/json"
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
	return got >= want && float64(got-want) <= float64(want)/fine
}

func TestAgainstSorting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := durations().Draw(t, "values")
		var h, a, b Histogram
		var sum, beyond uint64
		for i, v := range values {
			h.Record(v)
			[]*Histogram{&a, &b}[i%2].Record(v)
			sum += uint64(v)
			if v > Most {
				beyond++
			}
		}
		if a.Merge(&b); a != h {
			t.Fatal("two halves together are not the whole")
		}
		slices.Sort(values)
		n := uint64(len(values))
		if h.Count() != n || h.Min() != values[0] || h.Max() != values[n-1] || h.Mean() != time.Duration(sum/n) || h.Beyond() != beyond {
			t.Fatalf("count %d, min %v, max %v, mean %v, beyond %d of %v", h.Count(), h.Min(), h.Max(), h.Mean(), h.Beyond(), values)
		}
		for _, q := range []float64{0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1, rapid.Float64Range(0, 1).Draw(t, "q")} {
			got, want := h.Quantile(q), oracle(values, q)
			if !near(got, want) || got > h.Max() {
				t.Fatalf("quantile %g: %d ns, want %d ns, max %d ns", q, got, want, h.Max())
			}
		}
		raw, err := json.Marshal(&h)
		if err != nil {
			t.Fatal(err)
		}
		var back Histogram
		if err := json.Unmarshal(raw, &back); err != nil || back != h {
			t.Fatalf("as JSON it is another (%v): %s", err, raw)
		}
	})
}

// Every value is in the bucket whose bounds hold it, and no bucket is wider than promised.
func TestBuckets(t *testing.T) {
	last := bucketOf(uint64(Most))
	for i := 1; i <= last; i++ {
		low, high := upper(i-1)+1, upper(i)
		if low > high || bucketOf(low) != i || bucketOf(high) != i || (high-low)*fine > low {
			t.Fatalf("bucket %d holds %d to %d", i, low, high)
		}
	}
	if last >= buckets {
		t.Fatalf("%d buckets, and an hour is in number %d", buckets, last)
	}
}

func TestEmptyAndOdd(t *testing.T) {
	var h Histogram
	if h.Count() != 0 || h.Min() != 0 || h.Max() != 0 || h.Mean() != 0 || h.Quantile(0.5) != 0 || h.String() != "none" {
		t.Errorf("empty: %+v", h.String())
	}
	h.Merge(new(Histogram))
	h.Record(-time.Second)
	if h.Max() != 0 || h.Count() != 1 {
		t.Errorf("a negative duration: max %v of %d", h.Max(), h.Count())
	}
	h.Record(math.MaxInt64)
	h.Record(math.MaxInt64)
	h.Record(math.MaxInt64) // the sum needs more than 64 bits
	if h.Beyond() != 3 || h.Mean() != math.MaxInt64/4*3+2 || h.Quantile(0.5) != math.MaxInt64 || h.Quantile(math.NaN()) != 0 {
		t.Errorf("beyond %d, mean %d, p50 %d", h.Beyond(), h.Mean(), h.Quantile(0.5))
	}
	if h.Reset(); h != (Histogram{}) {
		t.Error("not empty after Reset")
	}
}

func TestRefusesJSON(t *testing.T) {
	var h Histogram
	h.Record(time.Millisecond)
	before := h
	for _, text := range []string{
		`[]`,
		`{"count":2,"minNs":1,"maxNs":1,"buckets":[[1,1]]}`,
		`{"count":1,"minNs":1,"maxNs":1,"buckets":[[1,2]]}`,
		`{"count":1,"minNs":1,"maxNs":1,"buckets":[[99999,1]]}`,
		`{"count":1,"minNs":1,"maxNs":1,"buckets":[[-1,1]]}`,
		`{"count":1,"minNs":2,"maxNs":1,"buckets":[[1,1]]}`,
		`{"count":1,"beyondHour":1,"minNs":1,"maxNs":1,"buckets":[[1,1]]}`,
		`{"count":1,"minNs":1,"maxNs":1,"sumNs":[1,0],"buckets":[[1,1]]}`,
		`{"count":1,"minNs":1,"maxNs":18446744073709551615,"buckets":[[1,1]]}`,
		`{"count":0,"maxNs":1}`,
	} {
		if err := json.Unmarshal([]byte(text), &h); err == nil || h != before {
			t.Errorf("taken: %s", text)
		}
	}
}

func TestAllocations(t *testing.T) {
	h, o := new(Histogram), new(Histogram)
	o.Record(time.Second)
	if n := testing.AllocsPerRun(100, func() {
		h.Record(time.Millisecond)
		h.Merge(o)
		_, _ = h.Quantile(0.99), h.Mean()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	h, r := new(Histogram), rand.New(rand.NewPCG(1, 2))
	var values [4096]time.Duration
	for i := range values {
		values[i] = time.Duration(r.ExpFloat64() * float64(time.Millisecond))
	}
	for i := 0; b.Loop(); i++ {
		h.Record(values[i%len(values)])
	}
}
