// Package histogram counts durations by HdrHistogram: memory is bounded, and quantiles
// are right to three significant digits, however many values there are.
package histogram

import (
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	// Most is the longest duration that is told from others. Longer ones are counted
	// together.
	Most = time.Hour
	// digits are the significant ones of a quantile.
	digits = 3
)

// Histogram is a set of durations, of which count, least and largest are kept exactly. It
// takes 264 KiB whatever is in it, and but for New nothing allocates. It is not safe for use
// by several goroutines.
type Histogram struct {
	counts      *hdrhistogram.Histogram // of those up to Most, in nanoseconds
	beyond      uint64                  // how many were longer
	least, most time.Duration           // 0 if there is none
}

// New makes one that is empty.
func New() *Histogram {
	return &Histogram{counts: hdrhistogram.New(1, int64(Most), digits)}
}

// Record adds a duration. A negative one counts as 0.
func (h *Histogram) Record(d time.Duration) {
	d = max(d, 0)
	h.extend(d, d)
	if d > Most || h.counts.RecordValue(int64(d)) != nil {
		h.beyond++
	}
}

// Merge adds all that is in another, which stays as it is.
func (h *Histogram) Merge(o *Histogram) {
	if o.Count() == 0 {
		return
	}
	h.extend(o.least, o.most)
	h.counts.Merge(o.counts) // drops nothing: both take the same
	h.beyond += o.beyond
}

// extend takes in the least and largest of what is about to be added.
func (h *Histogram) extend(least, most time.Duration) {
	if h.Count() == 0 || least < h.least {
		h.least = least
	}
	h.most = max(h.most, most)
}

// Reset empties it.
func (h *Histogram) Reset() {
	h.counts.Reset()
	*h = Histogram{counts: h.counts}
}

// Count is how many durations were recorded.
func (h *Histogram) Count() uint64 { return uint64(h.counts.TotalCount()) + h.beyond }

// Min is the shortest duration, exactly; 0 if there is none.
func (h *Histogram) Min() time.Duration { return h.least }

// Max is the longest duration, exactly; 0 if there is none.
func (h *Histogram) Max() time.Duration { return h.most }

// Quantile is a duration that the part q of all is not longer than, 0 to 1: the
// smallest that was recorded of which that is so, rounded up by less than 1/1000. It is
// never beyond Max, which it is for what is longer than Most, and 0 if there is none.
func (h *Histogram) Quantile(q float64) time.Duration {
	count := h.Count()
	if count == 0 {
		return 0
	}
	if !(q > 0) { // NaN, too
		return h.least
	}
	rank := count
	if q < 1 {
		rank = min(count, max(1, uint64(math.Ceil(q*float64(count)))))
	}
	within := uint64(h.counts.TotalCount())
	if rank > within {
		return h.most
	}
	// The library rounds to the nearest rank, which of this percentile is the one above.
	d := time.Duration(h.counts.ValueAtPercentile(100 * float64(rank) / float64(within)))
	return min(d, h.most)
}
