package compare

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/bench/trial"
)

// idleRate is how many requests a second leave a gateway idle: its core has a millisecond
// for each. It is not in step with the kernel's tick, by which the core's time is counted.
const idleRate = 997

// echoHold is how much longer than small packets requests are sent: of a second's, p99
// would rest on ten.
const echoHold = 10

// echoTrial is what came of requests at a rate.
type echoTrial struct {
	traffic.Answers
	busy  float64 // part of the time in which the gateway's core was used
	wrong uint64  // packets from or to a wrong address, or damaged
}

// Passes implements search.Outcome. What waits in buffers is answered late.
func (t echoTrial) Passes() bool {
	return float64(t.Lost) <= lowLoss*float64(t.Asked) && t.Reached >= limits().Reached && t.Latency.Quantile(1-lowLoss) <= lag
}

// Starved implements search.Outcome.
func (t echoTrial) Starved() bool {
	return float64(t.Lost) <= lowLoss*float64(t.Asked) && t.busy < full
}

// echo sends requests at a rate, on schedule whatever comes back.
func (c *chain) echo(ctx context.Context, rate float64, hold time.Duration) (t echoTrial, err error) {
	l, err := c.datagrams.load(echoSize, rate, hold)
	if err != nil {
		return t, err
	}
	before, err := c.spent(ctx)
	if err != nil {
		return t, err
	}
	if t.Answers, err = c.datagrams.source.Echo(ctx, l); err != nil {
		return t, err
	}
	after, err := c.spent(ctx)
	if err != nil {
		return t, err
	}
	if t.Answered == 0 {
		return t, fmt.Errorf("none of %d requests was answered", t.Asked)
	}
	t.busy = after.Since(before).Busy(t.Took)
	report, _ := c.datagrams.far.Report(c.datagrams.run)
	t.wrong = wrongSources(report) + t.Received.Wrong()
	return t, nil
}

// latency measures how long requests take to be answered, at a rate.
func (c *chain) latency(ctx context.Context, rate float64, hold time.Duration) (figures, error) {
	warm, err := c.echo(ctx, rate, hold/echoHold)
	if err != nil {
		return nil, err
	}
	t, err := c.echo(ctx, rate, hold)
	if err != nil {
		return nil, err
	}
	if t.Reached < limits().Reached {
		return nil, fmt.Errorf("no more than %.0f %% of %.0f requests/s could be sent", 100*t.Reached, rate)
	}
	return figures{
		figureP50: trial.Micros(t.Latency.Quantile(0.5)), figureP99: trial.Micros(t.Latency.Quantile(0.99)),
		figureLoss: 100 * float64(t.Lost) / float64(t.Asked), figureEchoRate: rate / 1000, figureBusy: 100 * t.busy,
		figureWrong: float64(warm.wrong + t.wrong),
	}, nil
}

func latencyIdle(ctx context.Context, c *chain, cfg *Config) (figures, error) {
	return c.latency(ctx, idleRate, echoHold*cfg.Try)
}

// latencyHalf measures at half of the rate at which the comparator's answers begin to be
// late: the same for all variants.
func latencyHalf(ctx context.Context, c *chain, cfg *Config) (figures, error) {
	rate, err := cfg.half.find(ctx, c, cfg)
	if err != nil {
		return nil, err
	}
	return c.latency(ctx, rate, echoHold*cfg.Try)
}

// halfLoad is half of what the comparator answers. It is found once, when the comparator's
// turn comes first.
type halfLoad struct {
	comparator string
	rate       float64 // 0: not found yet
}

// errNoHalf says that a variant's turn came before the comparator's.
var errNoHalf = errors.New("half of the comparator's load is not known: it could not be measured")

func (h *halfLoad) find(ctx context.Context, c *chain, cfg *Config) (float64, error) {
	if h.rate != 0 {
		return h.rate, nil
	}
	if c.name != h.comparator {
		return 0, errNoHalf
	}
	found, err := search.Highest(search.Range{Least: minRate, Most: maxRate, Tries: tries, Hold: cfg.Try},
		func(rate float64, d time.Duration) (echoTrial, error) { return c.echo(ctx, rate, d) })
	if err != nil {
		return 0, fmt.Errorf("look for the most that is answered: %w", err)
	}
	best := found.Best
	h.rate = best.Reached * float64(best.Due) / best.Took.Seconds() / 2
	return h.rate, nil
}
