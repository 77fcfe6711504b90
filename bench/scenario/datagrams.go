package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/traffic"
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
	// lowLoss is the part of packets that may be lost, or late, at the highest rate.
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

// trial is what came of a load of datagrams.
type trial struct {
	sent, got     uint64
	rate          float64 // arrived per second
	loss          float64 // part of what was sent
	late          float64 // part that had not arrived lag after the sending ended; at least loss
	reached       float64 // part of the asked rate that was sent
	busy          float64 // part of the time that the gateway's core was used; -1: not seen
	before, after usage
	trace         *trace
	report        wire.Report
	received      traffic.Received
	latency       *latency
	in            bool
	blind         bool          // nobody could be asked what arrived
	broken        bool          // it was not sent, or not counted, to its end
	queue         time.Duration // how much the median is above the least latency of the run
}

var _ search.Outcome = trial{}

// Passes implements [search.Outcome].
func (t trial) Passes() bool {
	return t.late <= lowLoss && t.reached >= minReached && t.queue <= maxQueue
}

// Starved implements [search.Outcome]. What the far side loses is no loss of the gateway's.
func (t trial) Starved() bool {
	far := float64(t.report.Dropped) / float64(max(t.sent, 1))
	return t.loss-far <= lowLoss && t.queue <= maxQueue && (t.busy >= 0 && t.busy < full || t.busy < 0 && t.reached < minReached)
}

// send offers a load of datagrams for a while.
func (r *runner) send(ctx context.Context, c *crowd, l traffic.Load, in bool) (t trial, err error) {
	l.Run, t.in = newRun(), in
	if len(l.Remotes) == 0 {
		l.Remotes = r.remotes[:1]
	}
	if _, err := c.source.Report(ctx, l.Run, r.remotes[0]); err != nil {
		return t, err
	}
	if t.before, err = r.spent(ctx); err != nil {
		return t, err
	}
	sent := traffic.Sent{}
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
	after, uerr := r.spent(ctx)
	t.after = after
	if err == nil {
		err = uerr
	}
	switch {
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
	t.queue = r.queued(t.latency)
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

// settled asks for a report until nothing more arrives.
func (r *runner) settled(ctx context.Context, c *crowd, run uint64) (wire.Report, error) {
	const quiet = 30 * time.Millisecond
	for last := uint64(0); ; {
		report, err := c.source.Report(ctx, run, r.remotes[0])
		if err != nil || report.Packets == last {
			return report, err
		}
		last = report.Packets
		if err := pause(ctx, quiet); err != nil {
			return report, err
		}
	}
}

// weigh fills in what follows from the counts.
func (r *runner) weigh(t trial, l traffic.Load) trial {
	asked, d := l.Rate*l.For.Seconds(), l.For.Seconds()
	if t.got = t.report.Packets - t.report.Duplicates - t.report.Stale; t.in {
		t.got = t.received.Packets - t.received.Duplicates - t.received.Stale
	}
	t.busy = -1
	if asked > 0 {
		t.reached = float64(t.sent) / asked
	}
	if t.sent == 0 {
		t.loss, t.late = 1, 1
		return t
	}
	t.loss = max(0, 1-float64(t.got)/float64(t.sent))
	t.late, t.rate = t.loss, float64(t.got)/d
	if !t.trace.begun().IsZero() {
		inTime := t.trace.within(l.For + lag)
		t.late, t.rate = max(t.loss, 1-float64(inTime)/float64(t.sent)), float64(inTime)/d
	}
	if _, core := r.meter.seen(); core {
		t.busy = (t.after.core - t.before.core).Seconds() / (d + lag.Seconds())
	}
	return t
}

// note takes a trial into a step, and what a gateway must not do.
func (r *runner) note(s *step, t trial, l traffic.Load) {
	r.fill(s, t, l)
	r.inspect(s, t)
}

// fill takes a trial's figures into a step.
func (r *runner) fill(s *step, t trial, l traffic.Load) {
	s.Noise.Reached = t.reached
	if t.blind {
		s.Noise.Reached = 0 // it was not sent to its end
		s.mark("%s; the far side could not be asked how many arrived", sentOf(t))
		return
	}
	s.Latency = t.latency
	s.Figures[figureRate], s.Figures[figureLoss] = t.rate, 100*t.loss
	s.Figures[figureGbps] = t.rate * float64(l.Size) * 8 / 1e9
	r.costs(s, t.before, t.after, float64(t.got))
	if t.busy >= 0 {
		s.Figures[figureBusy] = 100 * min(1, t.busy)
	}
	if t.report.Dropped > 0 {
		s.mark("the far side itself lost %d packets", t.report.Dropped)
	}
	if len(t.trace.at) > 0 {
		s.Series = append(s.Series, t.trace.series("arrived", "packets/s", l.For, 1))
	}
}

// sentOf says how many packets a trial sent, as far as is known: inwards the far side does.
func sentOf(t trial) string {
	if t.in {
		return "the far side was asked to send"
	}
	return group(float64(t.sent)) + " packets were sent"
}

// inspect notes what a gateway must not do.
func (r *runner) inspect(s *step, t trial) {
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
		s.fail("%d packets came twice", duplicates)
	}
	if damaged > 0 {
		s.fail("%d packets came back damaged", damaged)
	}
	if n := t.received.Foreign + t.received.Strange; n > 0 {
		s.fail("%d packets came back that were others', or that nobody asked for", n)
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
		best, bound, err := r.highest(ctx, s, c, l, in)
		if err != nil && !errors.Is(err, search.ErrNone) || best.sent == 0 {
			return err // a rate that was tried when it broke off is no result
		}
		l.Rate, l.For = float64(best.sent)/(search.Steadily*r.cfg.Try.Seconds()), search.Steadily*r.cfg.Try
		s.Load.Rate = l.Rate
		r.fill(s, best, l)
		s.Noise.Reached = 0 // what it could not keep is not what is reported
		if err != nil {
			return err
		}
		s.Figures[figurePeak] = best.rate
		if bound {
			s.mark("the source could do no more: the gateway's own limit is higher")
		}
		if size == smallSize && !in {
			r.peak = best.rate
		}
		return nil
	})
}

// fixed measures the fixed load.
func (r *runner) fixed(ctx context.Context, o *outcome, c *crowd, l traffic.Load, in bool) error {
	offered := load{Rate: l.Rate, Size: l.Size, Sandboxes: len(c.inners), Flows: l.Flows, Seconds: l.For.Seconds()}
	return r.step(ctx, o, group(l.Rate)+"/s", offered, func(s *step) error {
		warm := l
		warm.For = min(l.For, r.cfg.Try)
		if _, err := r.send(ctx, c, warm, in); err != nil {
			return err
		}
		t, err := r.send(ctx, c, l, in)
		r.note(s, t, l)
		return err
	})
}

// highest finds the highest rate that passes. What a gateway must not do counts at all rates.
func (r *runner) highest(ctx context.Context, s *step, c *crowd, l traffic.Load, in bool) (best trial, bound bool, err error) {
	most := float64(maxRate)
	if l.Size > smallSize {
		most /= 2
	}
	return search.Highest(search.Range{Least: firstRate, Most: most, Tries: tries, Hold: r.cfg.Try},
		func(rate float64, hold time.Duration) (trial, error) {
			one := l
			one.Rate, one.For, one.Patience = rate, hold, trialPatience
			t, err := r.send(ctx, c, one, in)
			if t.got > 0 {
				r.inspect(s, t)
			}
			if errors.Is(err, traffic.ErrSilent) { // so much was lost that no answer came
				t.loss, t.late, err = 1, 1, nil
			}
			if err != nil {
				return t, fmt.Errorf("at %s packets per second: %w", group(rate), err)
			}
			return t, nil
		})
}
