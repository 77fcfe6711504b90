package trial

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/tcp"
)

// Witness sees what arrives beyond the gateway.
type Witness interface {
	// Wrong is how many segments have come so far from elsewhere than the gateway, or damaged.
	Wrong() (uint64, error)
}

// Dialer makes short connections at rates and judges what comes of them, one rate at a time.
type Dialer struct {
	Client *tcp.Connections
	// Waker has the client's segments leave, as a *traffic.Attachment does.
	Waker tcp.Waker
	// Meter reads what the gateway spends.
	Meter Meter
	// Limits say which rates pass, Lag how long after a load's end a connection of it may be
	// under way without being late.
	Limits search.ConnectionLimits
	Lag    time.Duration
	// Witness is nil where nobody sees single segments.
	Witness Witness
}

// Connected is what came of a rate.
type Connected struct {
	tcp.Made
	// Asked is the rate, Rate what ended well, per second.
	Asked, Rate float64
	// Spent is what the gateway spent.
	Spent Cost
	// Busy is the part of the load's time in which the gateway's core was used; less than 0:
	// nobody sees it. What waits for the last connections does not count as time.
	Busy float64
	// WrongSegments are those from elsewhere than the gateway, or damaged, at either end.
	WrongSegments uint64

	limits search.ConnectionLimits
}

var _ Blamed = Connected{}

// Passes implements [search.Outcome].
func (c Connected) Passes() bool { return c.limits.Passes(c.counts()) }

// Starved implements [search.Outcome].
func (c Connected) Starved() bool { return c.limits.Starved(c.counts()) }

// Blame implements [Blamed].
func (c Connected) Blame() (by search.Limit, why string) { return c.limits.Blame(c.counts()) }

// Offered implements [Blamed].
func (c Connected) Offered() float64 { return c.Asked }

func (c Connected) counts() search.Connections {
	return search.Connections{
		Due: c.Begun + c.Skipped, Skipped: c.Skipped, Failed: c.Failed(), Late: c.Late,
		Segments: c.Counts.Sent, Resent: c.Resent, Wrong: c.WrongSegments, Busy: c.Busy,
	}
}

// String is the outcome in a line.
func (c Connected) String() string {
	core := ""
	if c.Busy >= 0 {
		core = fmt.Sprintf(", core %.0f %%", 100*c.Busy)
	}
	return fmt.Sprintf("%.0f/s%s, %d late: %+v", c.Rate, core, c.Late, c.Counts)
}

// Try makes connections at a rate per second for a while. What was made is returned with an
// error, too.
func (d *Dialer) Try(ctx context.Context, rate float64, hold time.Duration) (c Connected, err error) {
	c = Connected{Asked: rate, Busy: -1, limits: d.Limits}
	before, err := d.Meter.Read(ctx)
	if err != nil {
		return c, err
	}
	was, err := d.wrong()
	if err != nil {
		return c, err
	}
	c.Made, err = d.Client.Run(ctx, d.Waker, tcp.Load{Rate: rate, For: hold, Lag: d.Lag})
	after, merr := d.Meter.Read(ctx)
	is, werr := d.wrong()
	took := max(hold, c.Sent) // a source that is behind begins some later
	if err != nil && c.Took > 0 {
		took = min(took, c.Took) // it was given up
	}
	c.Rate, c.WrongSegments = float64(c.OK)/took.Seconds(), c.Damaged
	if werr == nil {
		c.WrongSegments += is - was
	}
	if merr == nil {
		c.Spent = after.Since(before)
		if _, core := d.Meter.Seen(); core {
			c.Busy = c.Spent.Busy(took)
		}
	}
	return c, errors.Join(err, merr, werr)
}

func (d *Dialer) wrong() (uint64, error) {
	if d.Witness == nil {
		return 0, nil
	}
	return d.Witness.Wrong()
}

// Highest looks for the highest rate that passes. each is told of what came of every rate, and
// an error of it ends the search. With [search.ErrNone], too, the rate that was tried last is
// returned.
func (d *Dialer) Highest(ctx context.Context, r search.Range, each func(Connected) error) (f search.Found[Connected], err error) {
	f, err = search.Highest(r, func(rate float64, hold time.Duration) (Connected, error) {
		c, err := d.Try(ctx, rate, hold)
		if err == nil {
			err = each(c)
		}
		return c, err
	})
	if errors.Is(err, search.ErrNone) {
		err = fmt.Errorf("%w: %v", err, f.Best)
	}
	return f, err
}
