// Package compare measures gateways beside each other: how much of a core a byte
// costs them, and a small packet.
//
//	sandbox ── gateway ── server
//
// Each variant has such a chain of network namespaces of its own. Its gateway has
// one core of the machine, and all else the others: the kernel's work for what
// arrives at the gateway is steered to the gateway's core as well, so that it is
// counted, whoever sent it. While one variant is measured the others are stopped.
// Variants and scenarios take turns in rounds, each of which another variant begins, so
// that what changes on the machine meanwhile meets all of them; ratios are of one round.
// A measurement of which the hypervisor took a part is made again.
package compare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/bench/document"
	"github.com/sallyport-net/sallyport/bench/progress"
	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/bench/trial"
)

// Config is what the user chooses.
type Config struct {
	// Variants are names of [Variants]. The first tunnel among them is what the
	// others are compared with.
	Variants []string
	// Scenarios are names of [Scenarios].
	Scenarios []string
	// Rounds is how often each variant is measured in each scenario.
	Rounds int
	// Bulk is how long one transfer lasts.
	Bulk time.Duration
	// Rate is the load of small packets below saturation, per second.
	Rate int
	// Try is how long a rate of small packets is tried; what is reported is measured
	// three times as long.
	Try time.Duration
	// Core is the gateway's core, by its number.
	Core int
	// Strict has Run refuse a machine that is too noisy, and fail where a measurement
	// was noisy to the end.
	Strict bool
	// JSON is a file that gets everything, as a part of the report by the file's name; empty:
	// none. Title is the part's. Whole keeps what JSON has if not everything could be measured:
	// see [document.Output]. Standard takes it if JSON is [document.Standard].
	JSON, Title string
	Standard    io.Writer
	Whole       bool
	// Bin is the folder of sallyportd, wireguard-go and this program.
	Bin string
	// KeepLogs is a folder for the daemons' logs; empty: they go at the end.
	KeepLogs string
	// Command is the command line, for the report. Version is that of the programs.
	Command, Version string
	// Out takes a table at the end, Progress what happens; nil: nobody wants to know. On a
	// Terminal of Width columns one line says what is measured, and is written again and again.
	Out, Progress io.Writer
	Terminal      bool
	Width         int

	half     *halfLoad
	attempts int // at a measurement without noise; 0: the usual
}

// Quicken makes it about a minute's work, but for what the user has chosen, by the
// flags' names.
func (c *Config) Quicken(chosen func(flag string) bool) {
	if !chosen("variants") {
		c.Variants = []string{variantWireGuard, variantSockets, variantTun}
	}
	if !chosen("scenarios") {
		c.Scenarios = []string{"tcp-out", "tcp-in", "udp-out", "udp-in", "latency-idle"}
	}
	if !chosen("rounds") {
		c.Rounds = 1
	}
	if !chosen("bulk") {
		c.Bulk = 2 * time.Second
	}
	if !chosen("try") {
		c.Try = 150 * time.Millisecond
	}
}

// validate refuses what cannot be, and takes what is named twice once.
func (c *Config) validate() (err error) {
	if c.Variants, err = trial.Names("variant", "--variants", c.Variants, Variants()); err != nil {
		return err
	}
	if c.Scenarios, err = trial.Names("scenario", "--scenarios", c.Scenarios, Scenarios()); err != nil {
		return err
	}
	tunnels := len(c.Variants) == 0 || slices.ContainsFunc(c.Variants, func(v string) bool { return v != variantDirect })
	for _, s := range scenarios() {
		if s.tunnelled && !tunnels && slices.Contains(c.Scenarios, s.name) {
			return fmt.Errorf("%s is sent through a tunnel, and %s has none: name another variant, too (--variants)", s.name, variantDirect)
		}
	}
	switch {
	case len(c.Variants) == 0 || len(c.Scenarios) == 0:
		return errors.New("nothing to measure: choose variants and scenarios")
	case c.Rounds < 1 || c.Rounds > 100:
		return fmt.Errorf("%d rounds cannot be: choose 1 to 100 (--rounds)", c.Rounds)
	case c.Bulk < time.Second || c.Bulk > 10*time.Minute || c.Bulk%time.Second != 0:
		return fmt.Errorf("a transfer of %v cannot be: choose whole seconds from 1s to 10m (--bulk)", c.Bulk)
	case c.Rate < minRate || c.Rate > maxRate:
		return fmt.Errorf("%d packets per second cannot be: choose %d to %d (--rate)", c.Rate, minRate, maxRate)
	case c.Try < 50*time.Millisecond || c.Try > time.Minute:
		return fmt.Errorf("a try of %v cannot be: choose 50ms to 1m (--try)", c.Try)
	case c.Core < 0:
		return fmt.Errorf("there is no core %d: the gateway's has a number from 0 on (--core)", c.Core)
	}
	return c.output().Check("--json")
}

// output is where the JSON document goes.
func (c *Config) output() document.Output {
	return document.Output{Path: c.JSON, To: c.Standard, Whole: c.Whole}
}

// program is the path of a program in Bin.
func (c *Config) program(name string) string { return filepath.Join(c.Bin, name) }

// usable says why nothing can be measured here.
func (c *Config) usable() error {
	return testbed.Needs{
		Root: "run it as root: cores are steered and namespaces made", Programs: []string{"iperf3", "nft", "taskset", "unshare", "mount"},
		Built: []string{"sallyportd", comparator, harness}, Bin: c.Bin, Make: "make comparator builds it", Core: c.Core, Alone: true, WireGuard: true,
	}.Check()
}

// Run measures. It returns an error if something could not be measured; what could
// is reported all the same.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	if err := cfg.usable(); err != nil {
		return fmt.Errorf("nothing can be compared here: %w", err)
	}
	back, err := testbed.LeaveCore(cfg.Core)
	if err != nil {
		return err
	}
	defer back()
	if cfg.Strict {
		if err := watch(ctx, cfg.Core); err != nil {
			return err
		}
	}
	r := newReport(ctx, &cfg)
	cfg.half = &halfLoad{comparator: r.Against}
	b := &bench{cfg: &cfg, report: r, progress: progress.New(cfg.Progress, cfg.Terminal, cfg.Width), took: map[string]time.Duration{}}
	err = b.measure(ctx)
	b.progress.End()
	if errors.Is(err, context.Canceled) && context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		r.problem("", "", 0, err)
	}
	r.sumUp()
	err = r.write(&cfg)
	if n := len(r.Problems); n > 0 {
		err = errors.Join(fmt.Errorf("%s, the first: %s", trial.Plural(n, "problem"), r.Problems[0]), err)
	}
	return err
}

// bench is a run.
type bench struct {
	cfg    *Config
	report *result
	dir    string
	chains []*chain

	progress *progress.Line
	took     map[string]time.Duration // by scenario: the last measurement
}

// measure sets all chains up and measures round by round. What fails is noted; the
// error is why nothing more can be done.
func (b *bench) measure(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "sallyport-compare-"); err != nil {
		return fmt.Errorf("make a folder for the daemons' files: %w", err)
	}
	defer func() {
		for _, c := range slices.Backward(b.chains) {
			err = errors.Join(err, c.close())
		}
		err = errors.Join(err, os.RemoveAll(b.dir))
	}()
	for _, v := range b.cfg.Variants {
		b.progress.Print("starting %s", v)
		c, err := b.newChain(ctx, v)
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), c.close())
		}
		if errors.Is(err, errNotPossible) {
			b.report.Impossible = append(b.report.Impossible, problem{Variant: v, Why: err.Error()})
			b.progress.Print("%s: %v", v, err)
			err = c.close()
			if err == nil {
				continue
			}
		}
		if err != nil {
			b.failed(v, "start", 0, errors.Join(err, c.close()))
			continue
		}
		b.chains = append(b.chains, c)
	}
	for round := 1; round <= b.cfg.Rounds; round++ {
		for _, s := range scenarios() {
			if !slices.Contains(b.cfg.Scenarios, s.name) {
				continue
			}
			if err := b.round(ctx, round, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// round measures one scenario once with each variant.
func (b *bench) round(ctx context.Context, round int, s scenario) error {
	head := false
	for i := range b.chains {
		c := b.chains[(i+round-1)%len(b.chains)]
		if c.tunnel == nil && s.tunnelled {
			continue
		}
		if !head {
			b.say(s.header(round, b.cfg.Rounds))
			head = true
		}
		began := time.Now()
		stop := b.progress.Work(fmt.Sprintf("round %d of %d  %s  %s", round, b.cfg.Rounds, s.name, c.name), b.took[s.name])
		sample, err := b.quiet(ctx, c, s)
		stop()
		b.took[s.name] = time.Since(began)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		sample.Variant, sample.Scenario, sample.Round = c.name, s.name, round
		if err != nil {
			b.failed(c.name, s.name, round, err)
			if len(sample.Figures) == 0 {
				continue
			}
		}
		b.say(s.row(sample))
		if sample.Noisy && b.cfg.Strict {
			b.failed(c.name, s.name, round, fmt.Errorf("it was noisy%s: %s", trial.AllNoisy(sample.Attempts), sample.noise()))
		}
		if !b.report.add(sample) {
			b.progress.Print("FAILED: %s", b.report.Problems[len(b.report.Problems)-1])
		}
	}
	return nil
}

// say has lines of a table stay, which a terminal does not break.
func (b *bench) say(lines []string) {
	for _, line := range lines {
		b.progress.Brief(line)
	}
}

func (b *bench) failed(variant, scenario string, round int, err error) {
	b.report.problem(variant, scenario, round, err)
	b.progress.Print("FAILED: %s", b.report.Problems[len(b.report.Problems)-1])
}
