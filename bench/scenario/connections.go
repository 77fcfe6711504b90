package scenario

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/bench/handshake"
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/tcp"
	"github.com/sallyport-net/sallyport/bench/traffic"
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

// dialer makes short connections for a crowd's first end.
type dialer struct {
	client *tcp.Connections
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
	var err error
	d.client, err = tcp.NewConnections(handshake.Config{
		Sandboxes: d.inners, FirstPort: connectionPort, LastPort: connectionPort + connectionPorts - 1, Remotes: r.remotes,
		Request: headOf(wire.KindAsk, d.run), Answer: headOf(wire.KindAskAnswer, d.run), MSS: connectionMSS, Seed: rand.Uint64(),
		Resend: resend, Tries: connectionTries,
	})
	if err != nil {
		return nil, err
	}
	d.hold, err = c.source.Attach(0, d.client)
	return d, err
}

// connected is what came of a load of connections.
type connected struct {
	tcp.Made
	due           float64
	rate          float64 // ended well, per second
	busy          float64
	before, after usage
}

var _ search.Outcome = connected{}

// Passes implements [search.Outcome].
func (c connected) Passes() bool {
	return float64(c.Failed()+c.Late+c.Skipped) <= lowLoss*c.due
}

// Starved implements [search.Outcome].
func (c connected) Starved() bool {
	return c.Failed() == 0 && c.Skipped > 0 && c.busy >= 0 && c.busy < full
}

func (r *runner) connect(ctx context.Context, d *dialer, rate float64, hold time.Duration) (c connected, err error) {
	if c.before, err = r.spent(ctx); err != nil {
		return c, err
	}
	c.Made, err = d.client.Run(ctx, d.hold, tcp.Load{Rate: rate, For: hold, Lag: connectionLag})
	after, uerr := r.spent(ctx)
	c.after, c.due, c.busy = after, rate*hold.Seconds(), -1
	c.rate = float64(c.OK) / max(hold, c.Sent).Seconds()
	if _, core := r.meter.seen(); core {
		c.busy = (c.after.core - c.before.core).Seconds() / hold.Seconds()
	}
	return c, errors.Join(err, uerr)
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
	name := fmt.Sprintf("%s/s to %s", group(rate), plural(len(r.remotes), "destination"))
	err = r.step(ctx, o, name, l, func(s *step) error {
		made, err := r.connect(ctx, d, rate, r.cfg.For)
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
		best, bound, err := search.Highest(search.Range{Least: leastRate, Most: mostTimes * rate, Tries: tries, Hold: r.cfg.Try},
			func(rate float64, hold time.Duration) (connected, error) { return r.connect(ctx, d, rate, hold) })
		if err != nil && !errors.Is(err, search.ErrNone) {
			return err
		}
		if err := errors.Join(err, r.noteConnections(ctx, s, c, d, best)); err != nil {
			return err
		}
		s.Figures[figurePeak], s.Load.Rate = best.rate, best.due/(search.Steadily*r.cfg.Try.Seconds())
		if bound {
			s.mark("the source could do no more: the gateway's own limit is higher")
		}
		return nil
	})
}

// noteConnections takes connections into a step. An error says that the far side could not be asked.
func (r *runner) noteConnections(ctx context.Context, s *step, c *crowd, d *dialer, made connected) error {
	s.Figures[figureRate], s.Figures[figureFailed] = made.rate, float64(made.Failed())
	r.costs(s, made.before, made.after, float64(made.OK))
	if made.busy >= 0 {
		s.Figures[figureBusy] = 100 * min(1, made.busy)
	}
	s.Latency = latencyOf(made.Exchange)
	if made.Wrong > 0 {
		s.fail("%d connections were answered wrongly", made.Wrong)
	}
	if made.Damaged > 0 {
		s.fail("%d segments came back damaged", made.Damaged)
	}
	if made.Skipped > 0 {
		s.mark("%d connections were due and not begun: too many were open", made.Skipped)
	}
	report, err := c.source.Report(ctx, d.run, r.remotes[0])
	if err == nil {
		r.checkSources(s, report)
	}
	return err
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return group(float64(n)) + " " + what + "s"
}
