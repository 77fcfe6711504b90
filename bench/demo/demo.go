// Package demo shows on one machine, to any user, that the gateway does what it
// promises: it starts the real daemons in network namespaces of their own, runs
// functions and builds on the worker, and holds what the far side saw, and what
// went over the links, against a list of expectations.
//
//	worker ──────── internet ──────── iad1
//	198.51.100.2    192.0.2.80        198.51.100.18
//	sidecar         origin, DNS       sallyportd
//	sandboxes       two captures      203.0.113.10 to .13
//
// [Function] is what runs in the sandboxes.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

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
	// Out takes the report. Terminal says that it is one.
	Out      io.Writer
	Terminal bool
}

// Run runs the demo and returns the exit code: 0 if no expectation failed. It
// runs the program again, with the same arguments, in a user namespace, and does
// its work there; where that is forbidden, root's powers will do, and else the
// report says of everything that it is not possible.
func Run(ctx context.Context, cfg Config) (int, error) {
	var forbidden error
	if !netlab.Inside() {
		code, err := netlab.Reexec(os.Args)
		if err == nil {
			return code, nil
		}
		forbidden = err
	}
	p := newPrinter(cfg.Out, cfg.Terminal, expectations())
	if cfg.JSON {
		p = newPrinter(io.Discard, false, nil)
	}
	began := time.Now()
	var r report
	if err := usable(); err != nil {
		r = nothingPossible(p, errors.Join(forbidden, err))
	} else {
		r = show(ctx, cfg, p)
	}
	r.Took = time.Since(began)
	r.Held = r.Failure == "" && r.count(failed) == 0
	p.end(&r)
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

// usable says whether this process can build the machines, and the sandboxes on
// them, which need user namespaces of their own whoever asks.
func usable() error {
	if err := netlab.Usable(); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", FunctionCommand) // without tasks it ends at once
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("no user namespace can be made for a sandbox (see /proc/sys/user/max_user_namespaces and the machine's security policy): %w", err)
	}
	return nil
}

// nothingPossible is the report of a machine that allows no namespaces.
func nothingPossible(p *printer, why error) (r report) {
	p.header()
	for _, c := range expectations() {
		line := result{Name: c.name, Expected: c.expected, Seen: oneLine(why), Status: impossible}
		r.Results = append(r.Results, line)
		p.result(line)
	}
	return r
}

// show builds the stage, looks at every expectation and clears up.
func show(ctx context.Context, cfg Config, p *printer) (r report) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the demo took more than %v", patience))
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	p.waiting("starting the daemons")
	s, err := newStage(ctx, cfg, giveUp)
	if err == nil {
		p.header()
		r.Results, err = judgeAll(ctx, s, p)
	}
	p.waiting("ending the daemons")
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
			r.Logs[d.name] = d.tail()
		}
	}
	if err := s.removeFiles(); err != nil && r.Failure == "" {
		r.Failure = err.Error()
	}
	return r
}

// judgeAll looks at one expectation after the other, until time is up or a daemon ended.
func judgeAll(ctx context.Context, s *stage, p *printer) (all []result, err error) {
	for _, c := range expectations() {
		if ctx.Err() != nil {
			return all, fmt.Errorf("stopped before %q: %w", c.name, context.Cause(ctx))
		}
		p.waiting(c.name)
		r := c.judge(ctx, s)
		if ctx.Err() != nil {
			return all, fmt.Errorf("stopped at %q: %w", c.name, context.Cause(ctx))
		}
		all = append(all, r)
		p.result(r)
	}
	return all, nil
}
