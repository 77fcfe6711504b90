package scenario

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/bench/handshake"
	"github.com/sallyport-net/sallyport/bench/progress"
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/tcp"
	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/bench/trial"
	"github.com/sallyport-net/sallyport/bench/wire"
)

const (
	// connectionSandboxes make the connections, each with so many local ports: a gateway holds a
	// port for minutes after a connection, and no sandbox may have all.
	connectionSandboxes = 64
	connectionPorts     = 2048
	connectionPort      = 40_000 // the first; loads of datagrams use those below
	connectionMSS       = 1380
	// connectionShare is the fixed load of connections, per packet of that of datagrams.
	connectionShare = 1.0 / 20
	// connectionLag is how long one may be under way when the load ends.
	connectionLag = 200 * time.Millisecond
	// resend is how long the first try waits for an answer, the next twice as long.
	resend          = 300 * time.Millisecond
	connectionTries = 3
	leastRate       = 50
	mostTimes       = 50 // the highest rate that is looked for, of the fixed load
)

// connectionLimits say which rates of connections pass. A gateway in use has limits, and may let
// connections wait beside an idle core: that is not the source's.
func connectionLimits() search.ConnectionLimits {
	return search.ConnectionLimits{Failed: lowLoss, Late: lowLoss, Resent: 1, Full: full, Unbegun: true}
}

// dialer makes short connections for a crowd's first end.
type dialer struct {
	trial.Dialer
	hold   *traffic.Attachment
	run    uint64
	inners []netip.Addr
}

// dialer makes one, with a run of its own at the far side.
func (r *runner) dialer(ctx context.Context, c *crowd) (*dialer, error) {
	d := &dialer{run: newRun(), inners: c.ends[0].Inners}
	if _, err := c.source.Report(ctx, d.run, r.remotes[0]); err != nil {
		return nil, err
	}
	client, err := tcp.NewConnections(handshake.Config{
		Sandboxes: d.inners, FirstPort: connectionPort, LastPort: connectionPort + connectionPorts - 1, Remotes: r.remotes,
		Request: headOf(wire.KindAsk, d.run), Answer: headOf(wire.KindAskAnswer, d.run), MSS: connectionMSS, Seed: rand.Uint64(),
		Resend: resend, Tries: connectionTries,
	})
	if err != nil {
		return nil, err
	}
	d.hold, err = c.source.Attach(0, client)
	d.Dialer = trial.Dialer{Client: client, Waker: d.hold, Meter: r.meter, Limits: connectionLimits(), Lag: connectionLag}
	return d, err
}

// connectionsOf measures short connections: the fixed load, then the highest rate.
func (r *runner) connectionsOf(ctx context.Context, o *outcome) error {
	c, err := r.crowd(ctx, mainGroup, connectionSandboxes*workers)
	if err != nil {
		return err
	}
	d, err := r.dialer(ctx, c)
	if err != nil {
		return err
	}
	defer d.hold.Close()
	rate := max(leastRate, float64(r.cfg.Rate)*connectionShare)
	l := load{Rate: rate, Sandboxes: len(d.inners), Seconds: r.cfg.For.Seconds()}
	name := fmt.Sprintf("%s/s to %s", progress.Group(rate), trial.Plural(len(r.remotes), "destination"))
	err = r.step(ctx, o, name, l, func(s *step) error {
		// Keys, routes and the gateway's memory are warm after this.
		warm, err := d.Try(ctx, rate, min(r.cfg.For, r.cfg.Try))
		inspectConnections(s, warm)
		if err != nil {
			return err
		}
		made, err := d.Try(ctx, rate, r.cfg.For)
		inspectConnections(s, made)
		err = errors.Join(err, r.noteConnections(ctx, s, c, d, made))
		if made.Failed() > 0 && err == nil {
			s.fail("of %d connections %d failed: refused %d, reset %d, unreachable %d, timed out %d, answered wrongly %d",
				made.Begun, made.Failed(), made.Refused, made.Reset, made.Unreachable, made.TimedOut, made.Wrong)
		}
		return err
	})
	if err != nil {
		return err
	}
	l = load{Sandboxes: len(d.inners), Seconds: (tries + search.Steadily) * r.cfg.Try.Seconds()}
	return r.step(ctx, o, "peak", l, func(s *step) error {
		found, err := d.Highest(ctx, search.Range{Least: leastRate, Most: mostTimes * rate, Tries: tries, Hold: r.cfg.Try},
			func(made trial.Connected) error {
				inspectConnections(s, made)
				return nil
			})
		if err != nil && !errors.Is(err, search.ErrNone) {
			return err // a rate that was tried when it broke off is no result
		}
		best := found.Best
		s.Load.Rate = best.Asked
		limited(s, found)
		if err := errors.Join(err, r.noteConnections(ctx, s, c, d, best)); err != nil {
			return err
		}
		s.Figures[figurePeak] = best.Rate
		return nil
	})
}

// noteConnections takes connections into a step. An error says that the far side could not be asked.
func (r *runner) noteConnections(ctx context.Context, s *step, c *crowd, d *dialer, made trial.Connected) error {
	s.Figures[figureRate], s.Figures[figureFailed] = made.Rate, float64(made.Failed())
	r.costs(s, made.Spent, made.OK)
	if made.Busy >= 0 {
		s.Figures[figureBusy] = 100 * min(1, made.Busy)
	}
	s.Latency = latencyOf(made.Exchange)
	if made.Skipped > 0 {
		s.mark("%d connections were due and not begun: too many were open", made.Skipped)
	}
	report, err := c.source.Report(ctx, d.run, r.remotes[0])
	if err == nil {
		r.checkSources(s, report)
	}
	return err
}

// inspectConnections notes what a gateway must not do.
func inspectConnections(s *step, made trial.Connected) {
	if n := made.Wrong; n > 0 {
		s.never("%d connections were answered wrongly", n)
	}
	if made.Damaged > 0 {
		s.never("%s came back damaged", trial.Plural(made.Damaged, "segment"))
	}
}
