package handshake

import (
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// late is how long after a load's end those connections may begin that were due before it.
const late = 20 * time.Millisecond

// pace says when connections are due.
type pace struct {
	load        Load
	from, until packet.Instant
	begun       uint64
	runs        bool
}

// at is when the next connection of an open loop is due.
func (p *pace) at() packet.Instant {
	return p.from + packet.Instant(float64(p.begun)/p.load.Rate*float64(time.Second))
}

// take says whether another connection may begin beside those that are open, and since when it
// is due. At the load's end it counts those that never will.
func (p *pace) take(now packet.Instant, open int, skipped *uint64) (due packet.Instant, ok bool) {
	switch {
	case !p.runs:
		return 0, false
	case p.load.Rate == 0:
		p.runs = now < p.until
		return now, p.runs && open < p.load.Open
	}
	due = p.at()
	if due >= p.until {
		p.runs = false
		return 0, false
	}
	if now >= p.until+packet.Instant(late) {
		for ; p.at() < p.until; p.begun++ {
			*skipped++
		}
		p.runs = false
		return 0, false
	}
	return due, due <= now && open < p.load.Open
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
	case room:
		return p.at(), true
	}
	return p.until + packet.Instant(late), true
}
