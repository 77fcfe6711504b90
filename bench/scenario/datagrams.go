package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sallyport-net/sallyport/bench/progress"
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/bench/trial"
	"github.com/sallyport-net/sallyport/bench/wire"
)

// The packets and sandboxes of the datagram scenarios.
const (
	smallSize = 64
	fullSize  = 1420
	flows     = 64
	crowdSize = 16 // sandboxes, but for scenarios of scale
	headers   = 20 + 8
	// firstRate is the least rate of a search, tries how many rates it tries.
	firstRate = 1000
	tries     = 8
	// lowLoss is the part of packets that may be lost, or late, at the highest rate; of
	// connections it is the part that may fail, too.
	lowLoss = 0.001
	// lag is how long a packet may be under way when the sending ends.
	lag = 20 * time.Millisecond
	// full is from what part of its time on a core counts as busy all the time.
	full = 0.9
	// trialPatience is how long answers of a try are waited for.
	trialPatience = 500 * time.Millisecond
	// maxQueue is how much longer than the least of the run half of the packets may take at
	// the highest rate: more only fills queues.
	maxQueue = 20 * time.Millisecond
)

// limits are those of datagrams.
func limits() search.Limits {
	return search.Limits{Lost: lowLoss, Reached: minReached, Queue: maxQueue, Full: full}
}

// carried is what came of a load of datagrams.
type carried struct {
	search.Datagrams
	asked     float64 // per second
	sent, got uint64
	rate      float64 // arrived per second
	spent     trial.Cost
	trace     *trace
	report    wire.Report
	received  traffic.Received
	latency   *latency
	in        bool
	own       uint64 // lost by this process's sockets
	blind     bool   // nobody could be asked what arrived
	broken    bool   // it was not sent, or not counted, to its end
}

var _ trial.Blamed = carried{}

// Passes implements [search.Outcome].
func (t carried) Passes() bool { return limits().Passes(t.Datagrams) }

// Starved implements [search.Outcome].
func (t carried) Starved() bool { return limits().Starved(t.Datagrams) }

// Blame implements [trial.Blamed].
func (t carried) Blame() (by search.Limit, why string) { return limits().Blame(t.Datagrams) }

// Offered implements [trial.Blamed].
func (t carried) Offered() float64 { return t.asked }

// send offers a load of datagrams for a while.
func (r *runner) send(ctx context.Context, c *crowd, l traffic.Load, in bool) (t carried, err error) {
	l.Run, t.in, t.asked = newRun(), in, l.Rate
	if len(l.Remotes) == 0 {
		l.Remotes = r.remotes[:1]
	}
	if _, err := c.source.Report(ctx, l.Run, r.remotes[0]); err != nil {
		return t, err
	}
	before, err := r.meter.Read(ctx)
	if err != nil {
		return t, err
	}
	sent, overrun := traffic.Sent{}, c.source.Overrun()
	if in {
		stop := r.watch(l.For, l.Rate, fresh(func() uint64 { return c.source.Received().Packets }))
		var back traffic.Ingress
		back, err = c.source.Generate(ctx, l)
		t.trace, t.received, t.report, t.sent = stop(), back.Received, back.Report, back.Report.Generated
	} else {
		stop := r.watch(l.For, l.Rate, r.arrivals(l.Run))
		sent, err = c.source.Blast(ctx, l)
		t.trace, t.received, t.latency, t.sent = stop(), c.source.Received(), latencyOf(sent.Latency), sent.Packets
	}
	after, uerr := r.meter.Read(ctx)
	if uerr == nil {
		t.spent = after.Since(before)
	} else if err == nil {
		err = uerr
	}
	var silent *traffic.SilentError
	switch {
	case errors.As(err, &silent) && silent.Answers:
		if t.report = silent.Report; in {
			t.sent = silent.Report.Generated
		}
		t.blind = t.sent == 0
	case in:
		t.blind = err != nil
	case err == nil:
		t.report, err = r.settled(ctx, c, l.Run)
		t.blind = err != nil
	case r.chain != nil:
		t.report, _ = r.chain.far.Report(l.Run)
	default:
		t.blind = true
	}
	if t.broken = err != nil; t.broken && sent.Took > 0 {
		l.For = min(l.For, sent.Took)
	}
	t.own = c.source.Overrun().Since(overrun)
	return r.weigh(t, l), err
}

// queued is how much a median is above the least latency that the run has seen so far.
func (r *runner) queued(l *latency) time.Duration {
	if l == nil || len(l.Quantiles) == 0 {
		return 0
	}
	if least := l.Quantiles[0][1]; r.least == 0 || least < r.least {
		r.least = least
	}
	return time.Duration((l.P50 - r.least) * float64(time.Microsecond))
}

// arrivals counts what arrives at a far side of this process; nil: it is elsewhere.
func (r *runner) arrivals(run uint64) func() uint64 {
	if r.chain == nil {
		return nil
	}
	return func() uint64 {
		report, _ := r.chain.far.Report(run)
		return report.Packets
	}
}

// settled asks for reports until nothing more arrives.
func (r *runner) settled(ctx context.Context, c *crowd, run uint64) (report wire.Report, err error) {
	err = trial.Settle(ctx, func() (uint64, error) {
		var err error
		report, err = c.source.Report(ctx, run, r.remotes[0])
		return report.Packets, err
	})
	return report, err
}

// weigh fills in what follows from the counts.
func (r *runner) weigh(t carried, l traffic.Load) carried {
	if t.got = t.report.Arrived(); t.in {
		t.got = t.received.Arrived()
	}
	counts := search.Counts{Asked: l.Rate * l.For.Seconds(), Sent: t.sent, Arrived: t.got, InTime: t.got, Dropped: t.report.Dropped}
	if t.in { // outwards only answers get lost here
		counts.Dropped += t.own
	}
	if !t.trace.begun().IsZero() {
		counts.InTime = t.trace.within(l.For + lag)
	}
	t.Datagrams = counts.Weigh()
	t.Busy, t.Queue = -1, r.queued(t.latency)
	if t.sent == 0 {
		return t
	}
	t.rate = float64(counts.InTime) / l.For.Seconds()
	if _, core := r.meter.Seen(); core {
		t.Busy = t.spent.Busy(l.For + lag)
	}
	return t
}

// note takes a trial into a step, and what a gateway must not do.
func (r *runner) note(s *step, t carried, l traffic.Load) {
	r.fill(s, t, l)
	r.inspect(s, t)
}

// fill takes a trial's figures into a step.
func (r *runner) fill(s *step, t carried, l traffic.Load) {
	s.Noise.Reached, s.Latency = t.Reached, t.latency
	if t.blind {
		s.Noise.Reached = 0 // it was not sent to its end
		s.mark("%s; the far side could not be asked how many arrived", sentOf(t))
		return
	}
	s.Figures[figureRate], s.Figures[figureLoss] = t.rate, 100*t.Lost
	s.Figures[figureGbps] = t.rate * float64(l.Size) * 8 / 1e9
	r.costs(s, t.spent, t.got)
	if t.Busy >= 0 {
		s.Figures[figureBusy] = 100 * min(1, t.Busy)
	}
	s.Noise.Dropped = t.Dropped
	if t.report.Dropped > 0 {
		s.mark("the far side itself lost %d packets", t.report.Dropped)
	}
	if t.own > 0 {
		s.mark("this process's own sockets were full and lost about %d packets", t.own)
	}
	if len(t.trace.at) > 0 {
		s.Series = append(s.Series, t.trace.series("arrived", "packets/s", l.For, 1))
	}
}

// sentOf says how many packets a trial sent, as far as is known: inwards the far side does.
func sentOf(t carried) string {
	if t.in {
		return "the far side was asked to send"
	}
	return progress.Group(float64(t.sent)) + " packets were sent"
}

// inspect notes what a gateway must not do.
func (r *runner) inspect(s *step, t carried) {
	r.checkSources(s, t.report)
	add := func(name string, n uint64) {
		if n > 0 {
			s.Figures[name] += float64(n)
		}
	}
	duplicates, damaged := t.received.Duplicates+t.report.Duplicates, t.received.Damaged
	add(figureDuplicates, duplicates)
	add(figureDamaged, damaged)
	add(figureReordered, t.report.Reordered+t.received.Reordered)
	if duplicates > 0 {
		s.never("%s came twice", trial.Plural(duplicates, "packet"))
	}
	if damaged > 0 {
		s.never("%s came back damaged", trial.Plural(damaged, "packet"))
	}
	if n := t.received.Foreign + t.received.Strange; n > 0 {
		s.never("%d packets came back that were others', or that nobody asked for", n)
	}
	if t.sent > 0 && t.got == 0 && !t.broken && !t.blind {
		s.fail("of %d packets none arrived", t.sent)
	}
}

// datagrams measures one size and direction: the fixed load, then the highest rate that passes.
func (r *runner) datagrams(ctx context.Context, o *outcome, size int, in bool) error {
	c, err := r.crowd(ctx, mainGroup, crowdSize)
	if err != nil {
		return err
	}
	l := traffic.Load{Rate: float64(r.cfg.Rate), For: r.cfg.For, Size: size, Flows: max(flows, len(c.inners))}
	if err := r.fixed(ctx, o, c, l, in); err != nil {
		return err
	}
	peak := load{Size: size, Sandboxes: len(c.inners), Flows: l.Flows, Seconds: (tries + search.Steadily) * r.cfg.Try.Seconds()}
	return r.step(ctx, o, "peak", peak, func(s *step) error {
		found, err := r.highest(ctx, s, c, l, in)
		best := found.Best
		if err != nil && !errors.Is(err, search.ErrNone) {
			return err // a rate that was tried when it broke off is no result
		}
		if limited(s, found); best.sent == 0 {
			return err
		}
		l.Rate, l.For = float64(best.sent)/(search.Steadily*r.cfg.Try.Seconds()), search.Steadily*r.cfg.Try
		s.Load.Rate = l.Rate
		r.fill(s, best, l)
		s.Noise.Reached = 0 // what it could not keep is not what is reported
		if err != nil {
			return err
		}
		s.Figures[figurePeak] = best.rate
		if size == smallSize && !in {
			r.peak = best.rate
		}
		return nil
	})
}

// fixed measures the fixed load.
func (r *runner) fixed(ctx context.Context, o *outcome, c *crowd, l traffic.Load, in bool) error {
	offered := load{Rate: l.Rate, Size: l.Size, Sandboxes: len(c.inners), Flows: l.Flows, Seconds: l.For.Seconds()}
	return r.step(ctx, o, progress.Group(l.Rate)+"/s", offered, func(s *step) error {
		warm := l
		warm.For = min(l.For, r.cfg.Try)
		t, err := r.send(ctx, c, warm, in)
		if err != nil {
			return err
		}
		r.checkSources(s, t.report)
		t, err = r.send(ctx, c, l, in)
		r.note(s, t, l)
		return err
	})
}

// highest finds the highest rate that passes. What a gateway must not do counts at all rates.
func (r *runner) highest(ctx context.Context, s *step, c *crowd, l traffic.Load, in bool) (search.Found[carried], error) {
	most := float64(maxRate)
	if l.Size > smallSize {
		most /= 2
	}
	return search.Highest(search.Range{Least: firstRate, Most: most, Tries: tries, Hold: r.cfg.Try},
		func(rate float64, hold time.Duration) (carried, error) {
			one := l
			one.Rate, one.For, one.Patience = rate, hold, trialPatience
			t, err := r.send(ctx, c, one, in)
			if t.got > 0 {
				r.inspect(s, t)
			}
			if errors.Is(err, traffic.ErrSilent) { // so much was lost that no answer came
				t.Lost, t.Late, err = 1, 1, nil
			}
			if err != nil {
				return t, fmt.Errorf("at %s packets per second: %w", progress.Group(rate), err)
			}
			return t, nil
		})
}
