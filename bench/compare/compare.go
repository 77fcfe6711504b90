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
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/internal/netlab"
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
	// none. Title is the part's.
	JSON, Title string
	// Bin is the folder of sallyportd, wireguard-go and this program.
	Bin string
	// KeepLogs is a folder for the daemons' logs; empty: they go at the end.
	KeepLogs string
	// Command is the command line, for the report. Version is that of the programs.
	Command, Version string
	// Out takes what happens, and a table at the end.
	Out io.Writer

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

func (c *Config) validate() error {
	for _, v := range c.Variants {
		if !slices.Contains(Variants(), v) {
			return fmt.Errorf("there is no variant %q: choose from %s (--variants)", v, strings.Join(Variants(), ", "))
		}
	}
	for _, s := range c.Scenarios {
		if !slices.Contains(Scenarios(), s) {
			return fmt.Errorf("there is no scenario %q: choose from %s (--scenarios)", s, strings.Join(Scenarios(), ", "))
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
		return fmt.Errorf("there is no core %d (--core)", c.Core)
	}
	return nil
}

// name is that of the part of the report.
func (c *Config) name() string {
	return cmp.Or(strings.TrimSuffix(filepath.Base(c.JSON), ".json"), "compare")
}

// program is the path of a program in Bin.
func (c *Config) program(name string) string { return filepath.Join(c.Bin, name) }

// usable says why nothing can be measured here.
func (c *Config) usable() error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("run it as root: cores are steered and namespaces made"))
	}
	for _, name := range []string{"iperf3", "nft", "taskset", "unshare", "mount"} {
		if _, err := exec.LookPath(name); err != nil {
			errs = append(errs, fmt.Errorf("the program %s is not installed (make deps)", name))
		}
	}
	if err := netlab.WireGuardUsable(); err != nil {
		errs = append(errs, err)
	}
	for _, name := range []string{"sallyportd", comparator, harness} {
		if err := unix.Access(c.program(name), unix.X_OK); err != nil {
			errs = append(errs, fmt.Errorf("there is no program %s (make bench-compare builds it): %w", c.program(name), err))
		}
	}
	var cores unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cores); err != nil {
		errs = append(errs, fmt.Errorf("ask for the cores: %w", err))
	} else if !cores.IsSet(c.Core) || cores.Count() < 2 {
		errs = append(errs, fmt.Errorf("the gateway needs core %d to itself and all else another one; this process may use %d", c.Core, cores.Count()))
	}
	if len(errs) == 0 {
		errs = append(errs, netlab.Usable())
	}
	return errors.Join(errs...)
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
	b := &bench{cfg: &cfg, report: r}
	err = b.measure(ctx)
	if errors.Is(err, context.Canceled) && context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		r.problem("", "", 0, err)
	}
	r.sumUp()
	if err := r.write(&cfg); err != nil {
		return err
	}
	if n := len(r.Problems); n > 0 {
		return fmt.Errorf("%d parts could not be measured", n)
	}
	return nil
}

// bench is a run.
type bench struct {
	cfg    *Config
	report *result
	dir    string
	chains []*chain
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
		b.line("starting %s", v)
		c, err := b.newChain(ctx, v)
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), c.close())
		}
		if errors.Is(err, errNotPossible) {
			b.report.Impossible = append(b.report.Impossible, problem{Variant: v, Why: err.Error()})
			b.line("%s: %v", v, err)
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
	for i := range b.chains {
		c := b.chains[(i+round-1)%len(b.chains)]
		if c.tunnel == nil && s.tunnelled {
			continue
		}
		sample, err := b.quiet(ctx, c, s)
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
		b.line("%d/%d  %-8s  %-12s  %s", round, b.cfg.Rounds, s.name, c.name, sample)
		if sample.Noisy && b.cfg.Strict {
			b.failed(c.name, s.name, round, fmt.Errorf("it was noisy %d times: %s", attempts, sample.noise()))
		}
		if !b.report.add(sample) {
			b.line("FAILED: %s", b.report.Problems[len(b.report.Problems)-1])
		}
	}
	return nil
}

func (b *bench) failed(variant, scenario string, round int, err error) {
	b.report.problem(variant, scenario, round, err)
	b.line("FAILED: %s", b.report.Problems[len(b.report.Problems)-1])
}

// line says what happens. Who closed the output does not want to know more.
func (b *bench) line(format string, args ...any) {
	_, _ = fmt.Fprintf(b.cfg.Out, format+"\n", args...)
}
