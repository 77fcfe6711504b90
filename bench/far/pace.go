package far

import "time"

// backlog is what a sender that was held up makes up for at once; the rest is left out.
const backlog = 5 * time.Millisecond

// pace says when packets of a steady rate are due.
type pace struct {
	rate  float64 // per second
	from  time.Time
	until time.Time
	taken float64 // since from
}

// take takes up to limit packets that are due; if none is it says when to ask again,
// unless it is over.
func (p *pace) take(now time.Time, limit int) (n int, again time.Duration, over bool) {
	end := now
	if end.After(p.until) {
		end = p.until
	}
	due := end.Sub(p.from).Seconds()*p.rate - p.taken
	if most := max(backlog.Seconds()*p.rate, float64(limit)); due > most {
		p.taken += float64(int(due - most)) // never made up for
		due -= float64(int(due - most))
	}
	if n = min(int(due+rounding), limit); n > 0 {
		p.taken += float64(n)
		return n, 0, false
	}
	if !now.Before(p.until) {
		return 0, 0, true
	}
	return 0, min(max(shortWait, time.Duration((1-due)/p.rate*float64(time.Second))), longWait), false
}

const (
	// shortWait is the shortest time between looks: what a timer is good for.
	shortWait = 100 * time.Microsecond
	// longWait is the longest, so that an order ends soon when another takes its place.
	longWait = 10 * time.Millisecond
	// rounding is the part of a packet that products of seconds may be short by.
	rounding = 1e-6
)
