package handshake

import (
	"math"
	"time"

	"github.com/sallyport-net/sallyport/bench/schedule"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// late is how long after a load's end those connections may begin that were due before it.
const late = 20 * time.Millisecond

// pace says when connections may begin.
type pace struct {
	load  Load
	until packet.Instant
	due   schedule.Schedule // of an open loop
	runs  bool
}

func newPace(l Load, now packet.Instant) pace {
	return pace{
		load: l, until: now + packet.Instant(l.For), runs: true,
		due: schedule.Schedule{Rate: l.Rate, From: time.Duration(now), Total: schedule.Count(l.Rate, l.For), Backlog: math.MaxUint64},
	}
}

// take takes another connection, where there is room for one beside those that are open, and says
// since when it is due. At the load's end it counts those that never will begin.
func (p *pace) take(now packet.Instant, room bool, skipped *uint64) (due packet.Instant, ok bool) {
	switch {
	case !p.runs:
		return 0, false
	case p.load.Rate == 0:
		p.runs = now < p.until
		return now, p.runs && room
	case p.due.Finished():
		p.runs = false
		return 0, false
	case now >= p.until+packet.Instant(late):
		*skipped += p.due.Leave()
		p.runs = false
		return 0, false
	case !room:
		return 0, false
	}
	position, n := p.due.Take(time.Duration(now), 1)
	return packet.Instant(p.due.Due(position)), n > 0
}

// next is when to ask again; ok is false if there is no such time.
func (p *pace) next(room bool) (at packet.Instant, ok bool) {
	switch {
	case !p.runs:
		return 0, false
	case p.load.Rate == 0 && room:
		return 0, true
	case p.load.Rate == 0:
		return p.until, true
	case p.due.Finished():
		return 0, true // that it is over is noted at once
	case room:
		return packet.Instant(p.due.Next()), true
	}
	return p.until + packet.Instant(late), true
}
