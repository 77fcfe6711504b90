package scenario

import (
	"context"
	"fmt"
	"time"

	"github.com/sallyport-net/sallyport/bench/progress"
	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/bench/trial"
)

const (
	// sessionSandboxes have the sessions: no sandbox may have all.
	sessionSandboxes = 128
	// openingRate is how many sessions are opened per second.
	openingRate = 50_000
	// samePorts is how many sessions there may be towards one address of the far side: a
	// gateway has as many ports for it.
	samePorts = 100_000
	// sandboxFlows is how many flows few sandboxes have at least: packets of one flow that come
	// together are joined, and would cost less than those of many sandboxes.
	sandboxFlows = 1000
	// fewSandboxes send while many more are attached.
	fewSandboxes = 100
)

// sandboxes measures what a packet costs with more and more sandboxes, at the fixed load:
// of all of them, and at the end of a few while all are attached.
func (r *runner) sandboxes(ctx context.Context, o *outcome) error {
	if r.gateway.fixed() != nil {
		return notRun(errFixed.Error())
	}
	attached := 0
	for _, n := range r.cfg.Sandboxes {
		if err := r.sandboxesOnce(ctx, o, n, max(n, attached)); err != nil {
			return err
		}
		attached = max(n, attached)
	}
	if attached <= fewSandboxes {
		return nil
	}
	return r.sandboxesOnce(ctx, o, fewSandboxes, attached)
}

// sandboxesOnce lets n sandboxes send while as many as attached are.
func (r *runner) sandboxesOnce(ctx context.Context, o *outcome, n, attached int) error {
	stop := r.progress.Work(fmt.Sprintf("%s  attaching up to %s", o.place, progress.Group(float64(n))), 0)
	began := time.Now()
	have := 0
	if m := r.members[mainGroup]; m != nil {
		have = len(m.inners)
	}
	c, err := r.crowd(ctx, mainGroup, n)
	stop()
	if err != nil {
		return err
	}
	took := time.Since(began)
	name := trial.Plural(n, "sandbox")
	if attached > n {
		name = fmt.Sprintf("%s of %s attached", name, progress.Group(float64(attached)))
	}
	l := traffic.Load{Rate: float64(r.cfg.Rate), For: r.cfg.For, Size: smallSize, Flows: max(n, sandboxFlows)}
	return r.step(ctx, o, name, load{Rate: l.Rate, Size: l.Size, Sandboxes: n, Flows: l.Flows, Seconds: l.For.Seconds()}, func(s *step) error {
		warm := l
		warm.For = max(r.cfg.Try, time.Duration(float64(l.Flows)/l.Rate*float64(time.Second))) // each once
		if _, err := r.send(ctx, c, warm, false); err != nil {
			return err
		}
		t, err := r.send(ctx, c, l, false)
		r.note(s, t, l)
		if n > have {
			s.Figures[figureAttached] = float64(n-have) / took.Seconds()
		}
		r.remember(s)
		return err
	})
}

// remember notes the memory of the gateway's process.
func (r *runner) remember(s *step) {
	if n := r.meter.memory(); n > 0 {
		s.Figures[figureMemory] = float64(n) / (1 << 20)
	}
}

// sessions measures what a packet costs with more and more sessions, at the fixed load.
func (r *runner) sessions(ctx context.Context, o *outcome) error {
	c, err := r.crowd(ctx, mainGroup, sessionSandboxes)
	if err != nil {
		return err
	}
	for _, n := range r.cfg.Sessions {
		if n > samePorts*len(r.remotes) {
			o.Steps = append(o.Steps, &step{Name: sessionsOf(n), Figures: values{}, Marks: []string{fmt.Sprintf(
				"not measured: the far side has %s, and a gateway has no more than some %s ports towards each (--far-prefix)",
				trial.Plural(len(r.remotes), "address"), progress.Group(samePorts))}})
			continue
		}
		if err := r.sessionsOnce(ctx, o, c, n); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) sessionsOnce(ctx context.Context, o *outcome, c *crowd, n int) error {
	l := traffic.Load{Rate: float64(r.cfg.Rate), For: r.cfg.For, Size: smallSize, Flows: n, Remotes: r.remotes}
	opening := l
	opening.Rate, opening.All = openingRate, true // a busy machine may hold the source up
	opening.For = max(r.cfg.Try, time.Duration(1.02*float64(n)/openingRate*float64(time.Second)))
	seconds := (opening.For + l.For).Seconds()
	return r.step(ctx, o, sessionsOf(n), load{Rate: l.Rate, Size: l.Size, Sandboxes: len(c.inners), Flows: n, Seconds: seconds}, func(s *step) error {
		first, err := r.send(ctx, c, opening, false)
		if err != nil {
			return err
		}
		if unseen(first) > lowLoss || short(first, n) { // what a busy machine dropped or left out goes now
			if first, err = r.send(ctx, c, opening, false); err != nil {
				return err
			}
		}
		unopened(s, first, n)
		t, err := r.send(ctx, c, l, false)
		r.note(s, t, l)
		r.checkSources(s, first.report)
		r.remember(s)
		return err
	})
}

// unseen is the part of packets that were lost before the far side: what that lost itself has
// opened its session.
func unseen(opening carried) float64 { return opening.Lost - opening.Dropped }

// unopened notes sessions that never were, so that what follows is of fewer.
func unopened(s *step, opening carried, n int) {
	if short(opening, n) {
		s.fail("%d packets were sent to open %d sessions, twice: this machine holds the source up; end what else runs on it, or ask for fewer (--sessions)", opening.sent, n)
	}
	if unseen(opening) > lowLoss {
		s.fail("%.2f %% of the packets that open sessions were lost, twice: those sessions never were; raise the gateway's limits for "+
			"one sandbox (sallyportd: sessions_per_sandbox, ports_per_sandbox, new_flows_per_second) or for an address (likewise, _per_ip), "+
			"or ask for fewer (--sessions)", 100*unseen(opening))
	}
}

// short says whether a source that was held up left so many packets out that it did not
// open n sessions.
func short(opening carried, n int) bool { return float64(opening.sent) < (1-lowLoss)*float64(n) }

func sessionsOf(n int) string {
	if n == 1 {
		return "1 session"
	}
	return progress.Group(float64(n)) + " sessions"
}
