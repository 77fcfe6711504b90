// Package demo shows on one machine, to any user, that the gateway does what it
// promises: it starts the real daemons in network namespaces of their own, runs
// functions and builds on the worker, and holds what the far side saw, and what
// went over the links, against a list of expectations. Hosts and a region are
// killed meanwhile.
//
//	worker         198.51.100.2   sidecar, sandboxes
//	gw-a           198.51.100.18  sallyportd: the first address of each pair of iad1
//	gw-b           198.51.100.34  sallyportd: the second
//	gw-c           198.51.100.50  sallyportd: cle1, both addresses of the passive pair
//	office         198.51.100.66  another WireGuard, with a private database behind it
//	internet                      links them all, captures, origin, DNS
//	control                       sallyportd: the control plane of iad1
//
// Where user namespaces are forbidden all of them are one machine, the pairs lie
// on its loopback, and sandboxes are programs that use proxies (machine.go). Then
// some things cannot be shown; each of them says why.
//
// [Function] is what runs in the sandboxes.
package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// patience is how long all of it may take.
const patience = 60 * time.Second

// FunctionCommand is the argument with which the program that runs the demo
// must call [Function].
const FunctionCommand = "demo-function"

// Config is what the user chooses.
type Config struct {
	// Bin is the folder of our programs.
	Bin string
	// JSON asks for one JSON document instead of lines.
	JSON bool
	// KeepLogs is a folder for the daemons' logs; empty: they go with the demo.
	KeepLogs string
	// Out takes the report. Terminal says that it is one, and Width how many
	// characters it has in a line, 0 if that is not known.
	Out      io.Writer
	Terminal bool
	Width    int
}

// Run runs the demo and returns the exit code: 0 if no expectation failed. It
// runs the program again, with the same arguments, in a user namespace, and does
// its work there; where that is forbidden, root's powers will do, and else it
// does with loopback what can be done there.
func Run(ctx context.Context, cfg Config) (int, error) {
	var forbidden error
	if !netlab.Inside() {
		code, err := netlab.Reexec(os.Args)
		if err == nil {
			return code, nil
		}
		forbidden = err
	}
	began := time.Now()
	r := report{World: worldNamespaces}
	p, err := namespacePlan(), usable()
	if err != nil {
		r.World, r.Why = worldLoopback, oneLine(cmp.Or(forbidden, err))
		p, err = loopbackPlan()
	}
	out := newPrinter(cfg, p)
	if err != nil {
		r.World, r.Why = worldNone, r.Why+"; "+oneLine(err)
		nothingPossible(out, &r, p)
	} else {
		show(ctx, cfg, p, out, &r)
	}
	r.Took = time.Since(began)
	r.Held = r.Failure == "" && r.count(failed) == 0
	out.end(&r)
	if cfg.JSON {
		if err := writeJSON(cfg.Out, &r); err != nil {
			return 1, err
		}
	}
	if !r.Held {
		return 1, nil
	}
	return 0, nil
}

// usable says why the machines cannot be built here, or the sandboxes on them.
func usable() error {
	return testbed.Needs{Core: testbed.AnyCore, Sandboxes: FunctionCommand}.Check() // without tasks it ends at once
}

// nothingPossible reports of a machine that allows neither namespaces nor the use
// of its loopback.
func nothingPossible(out *printer, r *report, p *plan) {
	out.begin(r)
	for _, c := range expectations(p) {
		line := result{Name: c.name, Expected: c.expected, Seen: "neither namespaces nor loopback", Status: impossible}
		r.Results = append(r.Results, line)
		out.result(line)
	}
}

// show builds the stage, looks at every expectation and clears up.
func show(ctx context.Context, cfg Config, p *plan, out *printer, r *report) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the demo took more than %v", patience))
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	out.begin(r)
	out.waiting("starting the daemons")
	s, err := newStage(ctx, cfg, p, giveUp)
	if err == nil {
		err = judgeAll(ctx, s, out, r)
	}
	out.waiting("ending the daemons")
	if interrupted := ctx.Err() != nil; interrupted {
		_ = s.close() // what was cut off complains
	} else {
		err = errors.Join(err, s.close())
	}
	if err != nil {
		r.Failure = err.Error()
	}
	if r.Failure != "" || r.count(failed) > 0 {
		r.Logs = make(map[string]string)
		for _, d := range s.daemons {
			if tail := d.Tail(); tail != "" {
				r.Logs[d.Name()] = tail
			}
		}
	}
	if err := s.removeFiles(); err != nil && r.Failure == "" {
		r.Failure = err.Error()
	}
}

// judgeAll looks at one expectation after the other, until time is up or a daemon ended.
func judgeAll(ctx context.Context, s *stage, out *printer, r *report) error {
	for _, c := range expectations(s.plan) {
		if ctx.Err() != nil {
			return fmt.Errorf("stopped before %q: %w", c.name, context.Cause(ctx))
		}
		out.waiting(c.name)
		line := c.judge(ctx, s)
		if ctx.Err() != nil {
			return fmt.Errorf("stopped at %q: %w", c.name, context.Cause(ctx))
		}
		r.Results = append(r.Results, line)
		out.result(line)
	}
	return nil
}
