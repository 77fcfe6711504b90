// Package failover measures how long it takes until a new connection is answered
// again after a gateway host, or a whole region, was lost, and that nothing
// leaves from a wrong address meanwhile.
//
//	worker ─┐            ┌─ gw-a  203.0.113.10   ┐ control of iad1
//	origin ─┴─── hub ────┼─ gw-b  203.0.113.11   ┘
//	                     └─ gw-c  203.0.113.18/19   control of cle1
//
// Each machine is a network namespace with its own link to the hub; captures on
// the hub see everything that leaves a gateway host or the worker. Control planes
// have machines without links: their APIs are unix sockets, which cross by the file system.
//
// [Function] is what runs in the sandbox. It opens new connections to the origin
// all the time, each with its own start, and is told afterwards when the cut was:
// all processes read the same clock.
package failover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/document"
	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// FunctionCommand is the argument with which the program that runs the
// measurement must call [Function].
const FunctionCommand = "failover-function"

// Config is what the user chooses.
type Config struct {
	// Runs is how often each fault is made.
	Runs int
	// Faults are the methods by which is made to fail, of [Methods]; none: all.
	Faults []string
	// Load is how long the load without a fault lasts; 0: there is none.
	Load time.Duration
	// Report is the file that gets the report in Markdown; empty: none does.
	Report string
	// JSON asks for one JSON document instead of lines.
	JSON bool
	// Bin is the folder of our programs.
	Bin string
	// KeepLogs is a folder for the daemons' logs; empty: they go at the end.
	KeepLogs string
	// Version is that of the programs.
	Version string
	// Out takes lines or the document.
	Out io.Writer
}

// patience is how long all of it may take.
func (c *Config) patience() time.Duration {
	const start, each = time.Minute, 15 * time.Second
	return start + c.Load + time.Duration(c.Runs*len(c.faults()))*each
}

// command is the command line, without what only says where files are.
func (c *Config) command() string {
	line := fmt.Sprintf("sallyport-bench failover --runs %d --load %v", c.Runs, c.Load)
	if n := len(c.Faults); n > 0 && n < len(Methods()) {
		line += " --faults " + strings.Join(c.Faults, ",")
	}
	return line
}

// program is the path of one of our programs.
func (c *Config) program(name string) string { return filepath.Join(c.Bin, name) }

// validate checks what the user chose.
func (c *Config) validate() error {
	switch {
	case c.Runs < 1 || c.Runs > 1000:
		return fmt.Errorf("%d runs cannot be: choose 1 to 1000 (--runs)", c.Runs)
	case c.Load < 0 || c.Load > 24*time.Hour:
		return fmt.Errorf("a load of %v cannot be: choose 0 to 24h (--load)", c.Load)
	}
	for _, m := range c.Faults {
		if !slices.Contains(Methods(), m) {
			return fmt.Errorf("there is no fault %q: choose from %s (--faults)", m, strings.Join(Methods(), ", "))
		}
	}
	return document.Writable("--out", c.Report)
}

// faults are those that are asked for.
func (c *Config) faults() []fault {
	return slices.DeleteFunc(faults(), func(f fault) bool { return len(c.Faults) > 0 && !slices.Contains(c.Faults, string(f.how)) })
}

// Run measures and returns the exit code: 0 if everything came back each time, no
// packet had a wrong source, and the load caused no switch. Targets that are not
// met are said, and change nothing. Run runs the program again, with the same
// arguments, in a user namespace, and does its work there; where neither that nor
// root's powers will do, it says so and the code is 0.
func Run(ctx context.Context, cfg Config) (int, error) {
	if err := cfg.validate(); err != nil {
		return 1, err
	}
	var forbidden error
	if !netlab.Inside() {
		code, err := netlab.Reexec(os.Args)
		if err == nil {
			return code, nil
		}
		forbidden = err
	}
	if err := usable(); err != nil {
		return 0, notRun(cfg, errors.Join(forbidden, err))
	}
	r, err := measureAll(ctx, cfg)
	if err != nil {
		return 1, err
	}
	if err := r.write(cfg); err != nil {
		return 1, err
	}
	if len(r.Problems) > 0 {
		return 1, nil
	}
	return 0, nil
}

// usable says why the machines cannot be built here, or the sandboxes on them.
func usable() error {
	return testbed.Needs{Core: testbed.AnyCore, Sandboxes: FunctionCommand}.Check() // without orders it ends at once
}

// measureAll builds the stage, makes all faults, loads, and clears up.
func measureAll(ctx context.Context, cfg Config) (r *report, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.patience(), fmt.Errorf("the measurement took more than %v", cfg.patience()))
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	p := &printer{out: cfg.Out}
	if cfg.JSON {
		p.out = io.Discard
	}
	p.line("starting the daemons")
	began, busy := time.Now(), machine.LoadAverage()
	cpu, err := machine.ReadCPU(machine.AllCores)
	if err != nil {
		return nil, err
	}
	s, err := newStage(ctx, cfg, giveUp)
	if err == nil {
		r, err = s.measure(ctx, p)
	}
	if ctx.Err() != nil {
		err = errors.Join(err, context.Cause(ctx))
		_ = s.close() // what was cut off complains
	} else {
		err = errors.Join(err, s.close())
	}
	if err != nil {
		s.showLogs(p)
		return nil, errors.Join(err, s.removeFiles())
	}
	r.Load1 = busy
	r.Date, r.Took = began.UTC().Format(time.DateOnly), time.Since(began)
	end, err := machine.ReadCPU(machine.AllCores)
	if err != nil {
		return nil, errors.Join(err, s.removeFiles())
	}
	_, r.Stolen = end.Shares(cpu)
	return r, s.removeFiles()
}

// measure makes all faults, then loads. The faults take turns, so that what
// changes on the machine meanwhile meets all of them.
func (s *stage) measure(ctx context.Context, p *printer) (*report, error) {
	r := &report{Machine: machine.Here(), Version: s.cfg.Version, Command: s.cfg.command(), RunsEach: s.cfg.Runs}
	for i := range s.cfg.Runs {
		for _, f := range s.cfg.faults() {
			one, err := s.once(ctx, f)
			if err != nil {
				return nil, err
			}
			r.Wire = s.judge.look()
			r.Runs = append(r.Runs, one)
			p.run(i+1, s.cfg.Runs, one)
		}
	}
	if s.cfg.Load > 0 {
		p.line("full load for %v", s.cfg.Load)
		l, err := s.underLoad(ctx)
		if err != nil {
			return nil, err
		}
		r.Load = &l
	}
	r.Wire = s.judge.look()
	r.sumUp()
	return r, nil
}

// showLogs prints the ends of the daemons' logs.
func (s *stage) showLogs(p *printer) {
	for _, d := range s.daemons {
		if tail := d.Tail(); tail != "" {
			p.line("\nthe end of %s's log:\n%s", d.Name(), tail)
		}
	}
}
