package compare

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/sallyport-net/sallyport/bench/search"
)

// Rates that are tried, in packets per second, and the loss that passes.
const (
	minRate = 1000
	maxRate = 1 << 20
	lowLoss = 0.001
	tries   = 8
	// kept is the part of the asked rate that a source must keep, for a try to say
	// something of the gateway.
	kept = 0.97
	// lag is how long a packet may be under way when the sending ends.
	lag = 20 * time.Millisecond
	// full is from what part of its time on a core counts as busy all the time.
	full = 0.9
)

// direction is a way of small packets.
type direction struct {
	pace    *pacer
	arrived *atomic.Uint64
}

func (c *chain) direction(in bool) direction {
	if in {
		return direction{&c.remote.pace, &c.small.received}
	}
	return direction{&c.small.pace, &c.remote.received}
}

// trial is what came of a rate.
type trial struct {
	rate, loss float64 // delivered per second; lost part of what was sent
	late       float64 // part of what was sent that had not arrived when the sending ended
	reached    float64 // part of the asked rate that was sent
	busy       float64 // part of the time in which the gateway's core was used, until then
	perPacket  cost    // of each that arrived
}

var _ search.Outcome = trial{}

// Passes implements [search.Outcome].
func (t trial) Passes() bool { return t.late <= lowLoss && t.reached >= kept }

// Starved implements [search.Outcome].
func (t trial) Starved() bool { return t.loss <= lowLoss && t.busy < full }

// try sends at a rate for a while.
func (c *chain) try(ctx context.Context, in bool, rate float64, d time.Duration) (t trial, err error) {
	way := c.direction(in)
	before, err := readUsage(c)
	if err != nil {
		return t, err
	}
	sent, arrived := way.pace.sent(), way.arrived.Load()
	way.pace.set(time.Now(), rate, d)
	select {
	case <-time.After(d + lag):
	case <-ctx.Done():
		return t, context.Cause(ctx)
	}
	inTime := float64(way.arrived.Load() - arrived)
	then, err := readUsage(c)
	if err != nil {
		return t, err
	}
	if err := settle(ctx, way.arrived); err != nil {
		return t, err
	}
	after, err := readUsage(c)
	if err != nil {
		return t, err
	}
	n, got := float64(way.pace.sent()-sent), float64(way.arrived.Load()-arrived)
	if n == 0 || got == 0 {
		return t, fmt.Errorf("of %.0f small packets at %.0f/s %.0f arrived", n, rate, got)
	}
	used := after.since(before)
	return trial{
		rate: inTime / d.Seconds(), loss: max(0, 1-got/n), late: max(0, 1-inTime/n), reached: n / d.Seconds() / rate,
		busy:      then.since(before).core.Seconds() / (d + lag).Seconds(),
		perPacket: cost{time.Duration(float64(used.process) / got), time.Duration(float64(used.core) / got)},
	}, nil
}

// settle waits until nothing more arrives.
func settle(ctx context.Context, arrived *atomic.Uint64) error {
	const quiet = 30 * time.Millisecond
	for last := uint64(math.MaxUint64); ; {
		n := arrived.Load()
		if n == last {
			return nil
		}
		last = n
		select {
		case <-time.After(quiet):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// open lets each flow send until the server knows where all come from.
func (c *chain) open(ctx context.Context) error {
	const patience = 10 * time.Second
	c.remote.forget()
	for began := time.Now(); c.remote.knows() < flows; {
		if time.Since(began) > patience {
			return fmt.Errorf("the server knows %d of %d flows after %v", c.remote.knows(), flows, patience)
		}
		if _, err := c.try(ctx, false, 2000, 50*time.Millisecond); err != nil && ctx.Err() != nil {
			return err
		}
	}
	return nil
}

// small measures small packets, first at a rate far below saturation, then at the
// highest that passes.
func small(ctx context.Context, c *chain, cfg *Config, in bool) (figures, error) {
	if err := c.open(ctx); err != nil {
		return nil, err
	}
	for range 2 { // the first warms up
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		_, err := c.try(ctx, in, float64(cfg.Rate), cfg.Try)
		if err != nil {
			return nil, err
		}
	}
	fixed, err := c.try(ctx, in, float64(cfg.Rate), search.Steadily*cfg.Try)
	if err != nil {
		return nil, err
	}
	f := figures{figureLoss: 100 * fixed.loss, figureProcessPacket: micros(fixed.perPacket.process), figureCorePacket: micros(fixed.perPacket.core)}
	best, bound, err := c.highest(ctx, in, cfg.Try)
	if err != nil {
		return f, err
	}
	f[figurePeak] = best.rate / 1000
	f[figurePeakPacket] = micros(best.perPacket.core)
	if bound {
		f[figureBound] = 1
	}
	return f, nil
}

// highest finds the highest rate that passes.
func (c *chain) highest(ctx context.Context, in bool, d time.Duration) (best trial, bound bool, err error) {
	return search.Highest(search.Range{Least: minRate, Most: maxRate, Tries: tries, Hold: d},
		func(rate float64, d time.Duration) (trial, error) { return c.try(ctx, in, rate, d) })
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
