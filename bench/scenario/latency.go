package scenario

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/bench/progress"
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/traffic"
)

const (
	echoSize = 128
	echoRate = 1000 // requests per second
	// halfSearch is how many rates are tried where the highest is not known yet.
	halfSearch = 6
)

// latencyIdle measures requests and answers alone.
func (r *runner) latencyIdle(ctx context.Context, o *outcome) error {
	c, err := r.crowd(ctx, mainGroup, crowdSize)
	if err != nil {
		return err
	}
	return r.step(ctx, o, "idle", r.asked(c), func(s *step) error {
		if _, err := r.ask(ctx, c, &step{Figures: values{}}, r.cfg.Try); err != nil { // warms up
			return err
		}
		_, err := r.ask(ctx, c, s, r.cfg.For)
		return err
	})
}

// asked is the load of requests.
func (r *runner) asked(c *crowd) load {
	return load{Rate: echoRate, Size: echoSize, Sandboxes: len(c.inners), Flows: max(flows, len(c.inners)), Seconds: r.cfg.For.Seconds()}
}

// latencyHalf measures requests and answers beside half of the load that passes.
func (r *runner) latencyHalf(ctx context.Context, o *outcome) error {
	if r.gateway.fixed() != nil {
		return notRun("it needs a second tunnel: " + errFixed.Error())
	}
	c, err := r.crowd(ctx, mainGroup, crowdSize)
	if err != nil {
		return err
	}
	side, err := r.crowd(ctx, sideGroup, crowdSize)
	if err != nil {
		return err
	}
	background := traffic.Load{Size: smallSize, Flows: flows, For: r.cfg.Try}
	if r.peak == 0 {
		stop := r.progress.Work(o.place+"  looking for the load", 0)
		found, err := search.Highest(search.Range{Least: firstRate, Most: maxRate, Tries: halfSearch, Hold: r.cfg.Try},
			func(rate float64, hold time.Duration) (carried, error) {
				background.Rate, background.For, background.Patience = rate, hold, trialPatience
				t, err := r.send(ctx, side, background, false)
				if errors.Is(err, traffic.ErrSilent) {
					t.Lost, t.Late, err = 1, 1, nil
				}
				return t, err
			})
		stop()
		if err != nil {
			return err
		}
		r.peak = found.Best.rate
	}
	background.Rate, background.For, background.Patience = r.peak/2, r.cfg.For, 0
	return r.step(ctx, o, "half load", r.asked(c), func(s *step) error { return r.askBeside(ctx, c, side, s, background) })
}

// ask sends requests for a while and takes the answers into a step.
func (r *runner) ask(ctx context.Context, c *crowd, s *step, d time.Duration) (traffic.Answers, error) {
	l := traffic.Load{Run: newRun(), Rate: echoRate, For: d, Size: echoSize, Remotes: r.remotes[:1], Flows: max(flows, len(c.inners))}
	if _, err := c.source.Report(ctx, l.Run, r.remotes[0]); err != nil {
		return traffic.Answers{}, err
	}
	stop := r.watch(d, echoRate, fresh(func() uint64 { return c.source.Received().Packets }))
	overrun := c.source.Overrun()
	a, err := c.source.Echo(ctx, l)
	trace := stop()
	if err == nil {
		s.Figures[figureRate] = float64(a.Answered) / d.Seconds()
	}
	if a.Asked > 0 && err == nil {
		s.Figures[figureLoss] = 100 * float64(a.Lost) / float64(a.Asked)
	}
	if own := c.source.Overrun().Since(overrun); own > 0 {
		s.Noise.Dropped = float64(own) / float64(max(a.Asked, own))
		s.mark("this process's own sockets were full and lost about %d packets", own)
	}
	s.Latency, s.Noise.Reached = latencyOf(a.Latency), a.Reached
	s.Series = append(s.Series, trace.series("answered", "answers/s", d, 1))
	if err != nil {
		return a, err
	}
	report, err := c.source.Report(ctx, l.Run, r.remotes[0])
	r.inspect(s, carried{sent: a.Asked, got: a.Answered, received: a.Received, report: report})
	return a, err
}

// askBeside asks while other sandboxes send.
func (r *runner) askBeside(ctx context.Context, c, side *crowd, s *step, background traffic.Load) error {
	var t carried
	both, gctx := errgroup.WithContext(ctx)
	both.Go(func() (err error) {
		t, err = r.send(gctx, side, background, false)
		return err
	})
	both.Go(func() error {
		_, err := r.ask(gctx, c, s, r.cfg.For)
		return err
	})
	err := both.Wait()
	if t.Busy >= 0 {
		s.Figures[figureBusy] = 100 * min(1, t.Busy)
		s.also(busyOfAll)
	}
	if t.blind {
		return err
	}
	s.also("beside it %s packets of %d bytes per second left, half of the most that passes; %.3f %% of them were lost",
		progress.Group(background.Rate), background.Size, 100*t.Lost)
	r.checkSources(s, t.report)
	return err
}
