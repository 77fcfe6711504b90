package scale

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/report"
)

// result is the whole outcome, as JSON has it: a part of the report, and beside it what
// only scale knows.
type result struct {
	report.Part
	Facts machine.Facts `json:"machine"`
	Took  time.Duration `json:"took"`
}

// bench is a run.
type bench struct {
	cfg    *Config
	result *result
	began  time.Time
}

func newBench(cfg *Config) *bench {
	b := &bench{cfg: cfg, result: &result{Facts: machine.Here()}, began: time.Now()}
	p := &b.result.Part
	p.Name, p.Title = cfg.output().Name("scale"), "Many networks, sandboxes, tunnels and sessions"
	p.Command, p.Date, p.Machine = cfg.Command, b.began.UTC().Format(time.DateOnly), b.result.Facts.String()
	p.Conditions = []string{
		fmt.Sprintf("the gateways on core %d of %d", cfg.Core, b.result.Facts.Cores), "uplink " + cfg.Uplink, "sallyport " + cfg.Version,
		fmt.Sprintf("load average %.2f at the start", machine.LoadAverage()),
	}
	p.Figures = []report.Figure{}
	return b
}

// figure is one value that was measured.
type figure struct {
	id, what, unit string
	value          float64
	noisy          bool
}

// note takes a figure in and prints it.
func (b *bench) note(f figure) {
	row := report.Figure{ID: f.id, What: f.what, Unit: f.unit, Digits: digits(f.value),
		Values: []report.Value{{Spread: report.SpreadOf([]float64{f.value}), Noisy: f.noisy}}}
	b.result.Figures = append(b.result.Figures, row)
	noisy := ""
	if f.noisy {
		noisy = " noisy"
	}
	value := strings.TrimSpace(fmt.Sprintf("%.*f %s", row.Digits, f.value, f.unit)) // some have no unit
	fmt.Fprintf(b.cfg.Out, "%s: %s%s\n", f.what, value, noisy)
}

// digits are as many after the point as make three that count.
func digits(v float64) int {
	switch {
	case v >= 100 || v <= -100 || v == float64(int64(v)):
		return 0
	case v >= 10 || v <= -10:
		return 1
	}
	return 2
}

// missing notes that a question has no answer.
func (b *bench) missing(part string, err error) {
	b.result.Missing = append(b.result.Missing, part+": "+strings.ReplaceAll(err.Error(), "\n", "; "))
}

// report writes the outcome where the user wants it.
func (b *bench) report() error {
	b.result.Took = time.Since(b.began).Round(time.Second)
	_, err := fmt.Fprint(b.cfg.Out, "\n"+b.result.Table())
	n := len(b.result.Missing)
	err = errors.Join(err, b.cfg.output().Write(b.result, n == 0))
	if n > 0 {
		err = errors.Join(fmt.Errorf("%d of the parts could not be measured; the report says why", n), err)
	}
	return err
}

// with builds a world, does something in it, and ends it.
func (b *bench) with(ctx context.Context, p plan, do func(context.Context, *world) error) error {
	p.Uplink = b.cfg.Uplink
	w, ctx, err := newWorld(ctx, b.cfg, p)
	if err == nil {
		err = do(ctx, w)
	}
	if err != nil && ctx.Err() != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	return errors.Join(err, w.close())
}
