// Package histogram counts durations in buckets whose width grows with the value, as
// HdrHistogram's do: memory is bounded, and quantiles are right to a part in a
// thousand, however many values there are.
//
// Values are whole nanoseconds from 0 to one hour. Below 2,048 ns each has a bucket of
// its own. Above, each power of two is cut into 1,024 buckets, so that a bucket is no
// wider than 1/1024 of its values: three significant digits. Count, sum, least and
// largest value are kept exactly.
package histogram

import (
	"fmt"
	"math"
	"math/bits"
	"time"
)

const (
	// fineBits is log2 of the buckets of each power of two.
	fineBits = 10
	fine     = 1 << fineBits
	// Most is the largest value that has a bucket. Longer ones are counted in its
	// bucket, and by Beyond.
	Most = time.Hour
	// topBits is how many bits Most has.
	topBits = 42
	buckets = (topBits - fineBits + 1) * fine
)

// Histogram is a set of durations. The zero value is empty and ready. It takes 264 KiB
// whatever is in it, and no method but those of JSON allocates. It is not safe for use
// by several goroutines.
type Histogram struct {
	counts      [buckets]uint64
	count       uint64
	beyond      uint64
	sum, carry  uint64 // of nanoseconds, in 128 bits
	least, most uint64 // valid if count > 0
}

// bucketOf is the bucket of a value, which must not be above Most.
func bucketOf(v uint64) int {
	if v < 2*fine {
		return int(v)
	}
	shift := bits.Len64(v) - fineBits - 1
	return shift<<fineBits + int(v>>shift)
}

// upper is the largest value of a bucket.
func upper(bucket int) uint64 {
	if bucket < 2*fine {
		return uint64(bucket)
	}
	shift := bucket>>fineBits - 1
	return uint64(bucket-shift<<fineBits+1)<<shift - 1
}

// Record adds a duration. A negative one counts as 0.
func (h *Histogram) Record(d time.Duration) {
	v := uint64(max(d, 0))
	if h.count == 0 || v < h.least {
		h.least = v
	}
	h.most = max(h.most, v)
	h.count++
	var c uint64
	h.sum, c = bits.Add64(h.sum, v, 0)
	h.carry += c
	if v > uint64(Most) {
		h.beyond++
		v = uint64(Most)
	}
	h.counts[bucketOf(v)]++
}

// Merge adds all that is in another, which stays as it is.
func (h *Histogram) Merge(o *Histogram) {
	if o.count == 0 {
		return
	}
	if h.count == 0 || o.least < h.least {
		h.least = o.least
	}
	h.most = max(h.most, o.most)
	h.count += o.count
	h.beyond += o.beyond
	var c uint64
	h.sum, c = bits.Add64(h.sum, o.sum, 0)
	h.carry += o.carry + c
	for i, n := range o.counts {
		h.counts[i] += n
	}
}

// Reset empties it.
func (h *Histogram) Reset() { *h = Histogram{} }

// Count is how many durations were recorded.
func (h *Histogram) Count() uint64 { return h.count }

// Beyond is how many of them were longer than Most.
func (h *Histogram) Beyond() uint64 { return h.beyond }

// Min is the shortest duration, exactly; 0 if there is none.
func (h *Histogram) Min() time.Duration { return time.Duration(h.least) }

// Max is the longest duration, exactly; 0 if there is none.
func (h *Histogram) Max() time.Duration { return time.Duration(h.most) }

// Mean is the mean of all, to a nanosecond; 0 if there is none.
func (h *Histogram) Mean() time.Duration {
	if h.count == 0 {
		return 0
	}
	mean, _ := bits.Div64(h.carry, h.sum, h.count)
	return time.Duration(mean)
}

// Quantile is a duration that the part q of all is not longer than, 0 to 1: the
// smallest that was recorded of which that is so, rounded up by less than 1/1024. It is
// never beyond Max, and 0 if there is none.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.count == 0 {
		return 0
	}
	if !(q > 0) { // NaN, too
		return h.Min()
	}
	rank := h.count
	if q < 1 {
		rank = min(h.count, max(1, uint64(math.Ceil(q*float64(h.count)))))
	}
	if rank > h.count-h.beyond {
		return h.Max()
	}
	var n uint64
	for i := range h.counts {
		if n += h.counts[i]; n >= rank {
			return time.Duration(min(upper(i), h.most))
		}
	}
	return h.Max()
}

// String says the most in a line.
func (h *Histogram) String() string {
	if h.count == 0 {
		return "none"
	}
	return fmt.Sprintf("%d: p50 %v, p99 %v, p99.9 %v, max %v", h.count,
		h.Quantile(0.5), h.Quantile(0.99), h.Quantile(0.999), h.Max())
}
