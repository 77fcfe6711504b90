package failover

import (
	"math"
	"slices"
	"time"
)

// The targets, from the cut to the first answered new connection.
const (
	targetP50 = 350 * time.Millisecond
	targetP99 = 700 * time.Millisecond
)

// percentile is the smallest of the values that at least p percent of them do
// not exceed (the nearest rank); 0 of no values.
func percentile(values []time.Duration, p float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

// spread sums values up.
type spread struct {
	Count int           `json:"count"`
	P50   time.Duration `json:"p50"`
	P99   time.Duration `json:"p99"`
	Max   time.Duration `json:"max"`
}

// spreadOf sums up those values that are there: 0 is none.
func spreadOf(values []time.Duration) spread {
	values = slices.DeleteFunc(slices.Clone(values), func(d time.Duration) bool { return d <= 0 })
	return spread{len(values), percentile(values, 50), percentile(values, 99), percentile(values, 100)}
}

// summary is what all runs of one fault say.
type summary struct {
	Fault string `json:"fault"`
	Runs  int    `json:"runs"`
	// First, Reset, UDP and Back sum up what the fields of a run mean.
	First spread `json:"first"`
	Reset spread `json:"reset"`
	UDP   spread `json:"udp"`
	Back  spread `json:"back"`
}

// summarize sums up the runs of one fault; of all if it is "".
func summarize(name string, runs []run) summary {
	var first, reset, udp, back []time.Duration
	for _, r := range runs {
		if name != "" && r.Fault != name {
			continue
		}
		first, reset = append(first, r.First), append(reset, r.Reset)
		udp, back = append(udp, r.UDP), append(back, r.Back)
	}
	return summary{name, len(first), spreadOf(first), spreadOf(reset), spreadOf(udp), spreadOf(back)}
}
