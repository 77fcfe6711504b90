package traffic

import "time"

// pace is a schedule of packets at a fixed rate, and how far it was kept. Times are
// counted from wherever the caller's clock begins.
type pace struct {
	rate  float64       // per second
	from  time.Duration // when the first is due
	total uint64        // packets of the whole schedule
	// backlog is how many packets that are overdue are made up for at most.
	backlog uint64
	// spacing is how long to wait at least, so that those that are due in a short time go
	// together.
	spacing time.Duration

	taken, skipped uint64
}

// due is when a packet of the schedule is due.
func (p *pace) due(position uint64) time.Duration {
	return p.from + time.Duration(float64(position)/p.rate*float64(time.Second))
}

// position is the next packet's.
func (p *pace) position() uint64 { return p.taken + p.skipped }

// finished says whether there is nothing left to send.
func (p *pace) finished() bool { return p.position() == p.total }

// passed is how many packets have been due by now.
func (p *pace) passed(now time.Duration) uint64 {
	if now < p.from {
		return 0
	}
	n := uint64((now-p.from).Seconds()*p.rate) + 1
	// The same rounding as that of due, for a caller that waited until then.
	if p.due(n) <= now {
		n++
	}
	return min(n, p.total)
}

// take takes up to limit packets that are due, the first of which has a position; if none
// is, it says how long to wait.
func (p *pace) take(now time.Duration, limit int) (first uint64, n int, wait time.Duration) {
	passed := p.passed(now)
	if waiting := passed - min(passed, p.position()); waiting > p.backlog {
		p.skipped += waiting - p.backlog // never made up for
	}
	first = p.position()
	if passed <= first {
		return first, 0, max(p.due(first)-now, p.spacing)
	}
	n = int(min(passed-first, uint64(limit)))
	p.taken += uint64(n)
	return first, n, 0
}
