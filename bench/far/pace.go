package far

import (
	"time"

	"github.com/sallyport-net/sallyport/bench/schedule"
)

// pace is when packets of an order are due, by the time since it began.
type pace struct {
	schedule.Schedule
	began time.Time
}

// backlog is what a sender that was held up makes up for at least, if it is no more than a batch;
// the rest is left out.
const backlog = 5 * time.Millisecond

// newPace is that of packets per second for a while.
func newPace(rate float64, began time.Time, d time.Duration) pace {
	return pace{schedule.Schedule{Rate: rate, Total: schedule.Count(rate, d), Backlog: max(batch, uint64(rate*backlog.Seconds()))}, began}
}

// take takes up to a batch of packets that are due; if none is it says when to ask again,
// unless it is over.
func (p *pace) take(now time.Time) (n int, again time.Duration, over bool) {
	at := now.Sub(p.began)
	if _, n = p.Take(at, batch); n > 0 || p.Finished() {
		return n, 0, n == 0
	}
	return 0, min(max(shortWait, p.Next()-at), longWait), false
}

const (
	// shortWait is the shortest time between looks: what a timer is good for.
	shortWait = 100 * time.Microsecond
	// longWait is the longest, so that an order ends soon when another takes its place.
	longWait = 10 * time.Millisecond
)
