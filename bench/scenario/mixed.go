package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/bench/progress"
	"github.com/sallyport-net/sallyport/bench/tcp"
	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/bench/trial"
)

// The mix: at full load datagrams of mixedSize at a fifth of the fixed rate, requests at
// echoRate, connections at a hundredth of the rate, attaches at mixedAttaches per second,
// and one TCP transfer out and then in for a tenth of the time each.
const (
	mixedSize        = 512
	mixedShare       = 0.2
	mixedConnections = 0.01
	mixedAttaches    = 5
	mixedTransfers   = 10 // parts of the time
)

// phase is a time of day.
type phase struct {
	name  string
	share float64 // of the full load
}

func phases() []phase {
	return []phase{{"night", 0.1}, {"morning", 0.5}, {"noon", 1}, {"evening", 0.7}}
}

// mixed runs all kinds of load beside each other.
func (r *runner) mixed(ctx context.Context, o *outcome) error {
	if r.gateway.fixed() != nil {
		return notRun("a mix needs two tunnels: " + errFixed.Error())
	}
	c, err := r.crowd(ctx, mainGroup, connectionSandboxes*workers)
	if err != nil {
		return err
	}
	side, err := r.crowd(ctx, sideGroup, crowdSize)
	if err != nil {
		return err
	}
	talk, err := r.crowd(ctx, talkGroup, 1)
	if err != nil {
		return err
	}
	d, err := r.dialer(ctx, c)
	if err != nil {
		return err
	}
	defer d.hold.Close()
	b, err := tcp.NewBulk(tcp.BulkConfig{Inner: side.ends[0].Inners[0], MTU: side.ends[0].Gateway.MTU})
	if err != nil {
		return err
	}
	defer b.Close()
	hold, err := side.source.Attach(0, b)
	if err != nil {
		return err
	}
	defer hold.Close()
	b.Use(hold)
	for _, p := range phases() {
		rate := p.share * mixedShare * float64(r.cfg.Rate)
		l := load{Rate: rate, Size: mixedSize, Sandboxes: len(c.inners) + len(side.inners), Seconds: r.cfg.For.Seconds()}
		name := fmt.Sprintf("%s, %.0f %% of the load", p.name, 100*p.share)
		err := r.step(ctx, o, name, l, func(s *step) error { return r.phase(ctx, s, p, mixers{c, side, talk, d, b}) })
		if err != nil {
			return err
		}
	}
	return nil
}

// mixers are what makes the kinds of load.
type mixers struct {
	main, side, talk *crowd
	dialer           *dialer
	bulk             *tcp.Bulk
}

// phase runs a time of day.
func (r *runner) phase(ctx context.Context, s *step, p phase, m mixers) error {
	held := r.cfg.For
	datagrams := traffic.Load{Rate: p.share * mixedShare * float64(r.cfg.Rate), For: held, Size: mixedSize, Flows: len(m.main.inners)}
	var t carried
	var made trial.Connected
	var moved [2]tcp.Moved
	runs := []uint64{0, 0, m.dialer.run}
	out := newStormed()
	before, err := r.meter.Read(ctx)
	if err != nil {
		return err
	}
	all, gctx := errgroup.WithContext(ctx)
	all.Go(func() (err error) {
		t, err = r.send(gctx, m.main, datagrams, false)
		return err
	})
	all.Go(func() error {
		_, err := r.ask(gctx, m.side, s, held)
		return err
	})
	all.Go(func() (err error) {
		made, err = m.dialer.Try(gctx, max(1, p.share*mixedConnections*float64(r.cfg.Rate)), held)
		return err
	})
	all.Go(func() (err error) {
		for i := range moved {
			if moved[i], runs[i], err = r.move(gctx, m.talk, m.bulk, held/mixedTransfers, i == 1); err != nil {
				return err
			}
		}
		return nil
	})
	all.Go(func() error { return r.attachBeside(gctx, out, p.share, held) })
	err = all.Wait()
	after, uerr := r.meter.Read(ctx)
	s.Broken = err != nil
	r.sumPhase(s, t, made, moved, out)
	for _, run := range runs {
		if report, rerr := m.talk.source.Report(ctx, run, r.remotes[0]); err == nil && rerr == nil {
			r.checkSources(s, report)
		}
	}
	if _, core := r.meter.Seen(); core && uerr == nil {
		s.Figures[figureBusy] = 100 * min(1, after.Since(before).Busy(held))
		s.also(busyOfAll)
	}
	return errors.Join(err, uerr)
}

// attachBeside attaches sandboxes of the side group, steadily.
func (r *runner) attachBeside(ctx context.Context, out *stormed, share float64, held time.Duration) error {
	n := int(share * mixedAttaches * held.Seconds())
	began := time.Now()
	for i := range n {
		due := began.Add(time.Duration(float64(i) / (share * mixedAttaches) * float64(time.Second)))
		if err := trial.Pause(ctx, time.Until(due)); err != nil {
			return err
		}
		if _, err := r.gateway.attach(ctx, r.members[sideGroup].keys[0].public); err != nil {
			out.miss(err)
			continue
		}
		out.mu.Lock()
		out.done++
		out.attach.Record(time.Since(due))
		out.mu.Unlock()
	}
	return nil
}

// sumPhase takes all kinds into a step, beside the requests that are there.
func (r *runner) sumPhase(s *step, t carried, made trial.Connected, moved [2]tcp.Moved, out *stormed) {
	if t.sent > 0 {
		r.inspect(s, t)
	}
	if t.sent > 0 && !t.blind {
		s.Figures[figureLoss] = 100 * t.Lost // of datagrams
		s.also("datagrams: %s/s arrived, %.3f %% lost", progress.Group(t.rate), 100*t.Lost)
	}
	s.Figures[figureFailed] = float64(made.Failed()) + float64(out.failed)
	if made.Failed() > 0 && !s.Broken {
		s.fail("of %d connections %d failed", made.Begun, made.Failed())
	}
	s.also("connections: %s/s, %d failed", progress.Group(made.Rate), made.Failed())
	for i, way := range []string{"out", "in"} {
		if m := moved[i]; m.Took > 0 {
			s.also("a transfer %s, %d streams: %.2f Gbit/s", way, streams, float64(m.Bytes)*8/1e9/m.Took.Seconds())
		}
	}
	if out.failed > 0 && !s.Broken {
		s.fail("of %d attaches %d failed: %v", out.done+out.failed, out.failed, out.why)
	}
	if out.done > 0 {
		s.also("attaches: %d, p99 %.1f ms", out.done, millis(out.attach.Quantile(0.99)))
	}
}
