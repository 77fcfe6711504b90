package histogram

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// text is a histogram as JSON, in nanoseconds: what people read first, then all that is
// needed to make it again.
type text struct {
	Count     uint64            `json:"count"`
	Beyond    uint64            `json:"beyondHour,omitempty"`
	Min       uint64            `json:"minNs"`
	Mean      uint64            `json:"meanNs"`
	Max       uint64            `json:"maxNs"`
	Quantiles map[string]uint64 `json:"quantilesNs,omitempty"`
	Sum       [2]uint64         `json:"sumNs"`             // high and low 64 bits
	Buckets   [][2]uint64       `json:"buckets,omitempty"` // number and count of those that are not empty
}

// MarshalJSON writes it, with its empty buckets left out.
func (h *Histogram) MarshalJSON() ([]byte, error) {
	t := text{
		Count: h.count, Beyond: h.beyond, Min: h.least, Mean: uint64(h.Mean()), Max: h.most,
		Sum: [2]uint64{h.carry, h.sum},
	}
	if h.count > 0 {
		t.Quantiles = make(map[string]uint64)
		for name, q := range map[string]float64{"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999} {
			t.Quantiles[name] = uint64(h.Quantile(q))
		}
	}
	for i, n := range h.counts {
		if n > 0 {
			t.Buckets = append(t.Buckets, [2]uint64{uint64(i), n})
		}
	}
	return json.Marshal(t)
}

// UnmarshalJSON reads what MarshalJSON wrote in place of what it holds, which stays
// where there is an error. Mean and quantiles follow from the rest and are passed over.
func (h *Histogram) UnmarshalJSON(b []byte) error {
	var t text
	if err := json.Unmarshal(b, &t); err != nil {
		return fmt.Errorf("read a histogram: %w", err)
	}
	read := &Histogram{
		count: t.Count, beyond: t.Beyond, least: t.Min, most: t.Max,
		carry: t.Sum[0], sum: t.Sum[1],
	}
	var n uint64
	for _, b := range t.Buckets {
		if b[0] > uint64(bucketOf(uint64(Most))) || b[1] > t.Count-n {
			return fmt.Errorf("read a histogram of %d values: there is no bucket %d, or it cannot hold %d", t.Count, b[0], b[1])
		}
		read.counts[b[0]] += b[1]
		n += b[1]
	}
	switch {
	case n != t.Count:
		return fmt.Errorf("read a histogram: its buckets hold %d values and not %d", n, t.Count)
	case t.Beyond > read.counts[bucketOf(uint64(Most))], t.Min > t.Max, t.Count == 0 && t.Max > 0, t.Count > 0 && t.Sum[0] >= t.Count,
		t.Max > 0 && time.Duration(t.Max) < 0:
		return errors.New("read a histogram: its parts contradict each other")
	}
	*h = *read
	return nil
}
