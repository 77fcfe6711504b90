// Package daemon runs our long-lived programs for the harness: each on a machine
// of its own, with a log, until it is asked to end or made to. Whoever started
// one is told when it ends by itself. The package also holds what asks a daemon
// whether it serves, and waits until it does.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

// tailSize is how many bytes of a log are shown.
const tailSize = 4096

// Machine is where daemons run.
type Machine interface {
	// Start starts a command that dies with this process.
	Start(cmd *exec.Cmd) error
}

// Config describes a daemon. All fields but Args are needed.
type Config struct {
	Name    string // in errors
	Machine Machine
	Program string // its path
	Args    []string
	// Log is the path of the file that its output goes to. The first start makes
	// it anew, later ones write behind what is there.
	Log   string
	Ready Probe // whether it serves
	// GiveUp is told when it ends and nobody wanted that. What waits for the daemon
	// should wait by the context that this cancels.
	GiveUp context.CancelCauseFunc
	// ReadyWithin is how long it may take to serve, EndWithin how long to end once
	// it is asked to; then it is killed.
	ReadyWithin, EndWithin time.Duration
}

func (c *Config) validate() error {
	switch {
	case c.Name == "":
		return errors.New("describe a daemon: it needs a name")
	case c.Machine == nil || c.Program == "" || c.Log == "":
		return fmt.Errorf("describe %s: it needs a machine, a program and a log", c.Name)
	case c.Ready == nil || c.GiveUp == nil:
		return fmt.Errorf("describe %s: somebody must ask whether it is ready, and be told when it ends", c.Name)
	case c.ReadyWithin <= 0 || c.EndWithin <= 0:
		return fmt.Errorf("describe %s: it needs time to get ready (not %v) and to end (not %v)", c.Name, c.ReadyWithin, c.EndWithin)
	}
	return nil
}

// Daemon is one of our long-lived programs. It can be killed, stopped, and
// started again. Its methods are for one goroutine at a time.
type Daemon struct {
	cfg Config
	run *process // the last one; nil: it was never started
}

// process is one run of a daemon.
type process struct {
	cmd      *exec.Cmd
	expected atomic.Bool   // its end is wanted
	killed   atomic.Bool   // and by SIGKILL, so that it cannot end well
	ended    chan struct{} // closed when it has ended, and GiveUp was told
	err      error         // of the end; valid then
}

// New describes a daemon, which does not run yet.
func New(cfg Config) (*Daemon, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Daemon{cfg: cfg}, nil
}

// Name is what errors call it.
func (d *Daemon) Name() string { return d.cfg.Name }

// PID is the number of its last process; 0: it was never started.
func (d *Daemon) PID() int {
	if d.run == nil {
		return 0
	}
	return d.run.cmd.Process.Pid
}

// Start starts it, for the first time or again. One that runs is left alone.
func (d *Daemon) Start() error {
	if d.run == nil {
		_ = os.Remove(d.cfg.Log) // of an earlier harness, where logs are kept
	} else if !d.run.hasEnded() {
		return nil
	}
	err := os.MkdirAll(filepath.Dir(d.cfg.Log), 0o755)
	if err != nil {
		return fmt.Errorf("make a folder for the log of %s: %w", d.cfg.Name, err)
	}
	f, err := os.OpenFile(d.cfg.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open a log for %s: %w", d.cfg.Name, err)
	}
	defer f.Close()
	p := &process{cmd: exec.Command(d.cfg.Program, d.cfg.Args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	// Keys on the terminal are for this process, which ends the daemons in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cfg.Machine.Start(p.cmd); err != nil {
		return fmt.Errorf("start %s (is it built? make build): %w", d.cfg.Name, err)
	}
	d.run = p
	go p.watch(d.cfg.Name, d.cfg.GiveUp)
	return nil
}

// watch waits for the end.
func (p *process) watch(name string, giveUp context.CancelCauseFunc) {
	p.err = p.cmd.Wait()
	if !p.expected.Load() {
		giveUp(fmt.Errorf("%s ended by itself: %s", name, p.cmd.ProcessState))
	}
	close(p.ended)
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Await waits until it serves. The error says what it lacked.
func (d *Daemon) Await(ctx context.Context) error {
	if d.run == nil {
		return fmt.Errorf("wait until %s is ready: it was not started", d.cfg.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.ReadyWithin)
	defer cancel()
	return Until(ctx, d.cfg.Name+" is ready", func(ctx context.Context) error {
		if d.run.hasEnded() {
			return Final(fmt.Errorf("it ended: %s", d.run.cmd.ProcessState))
		}
		return d.cfg.Ready.Ready(ctx)
	})
}

// Signal sends it a signal and returns at once. That it ends by SIGKILL or
// SIGTERM is wanted then.
func (d *Daemon) Signal(s syscall.Signal) error {
	if d.run == nil {
		return fmt.Errorf("send %v to %s: it was not started", s, d.cfg.Name)
	}
	switch s {
	case syscall.SIGKILL:
		d.run.killed.Store(true)
		d.run.expected.Store(true)
	case syscall.SIGTERM:
		d.run.expected.Store(true)
	}
	if err := d.run.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to %s: %w", s, d.cfg.Name, err)
	}
	return nil
}

// Gone waits until it has ended, for whatever reason. One that was never started
// has.
func (d *Daemon) Gone(ctx context.Context) error {
	if d.run == nil {
		return nil
	}
	select {
	case <-d.run.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s: %w", d.cfg.Name, context.Cause(ctx))
	}
}

// Stop asks it to end, also if it is stopped by SIGSTOP, and waits. It returns an
// error if it did not end well: late, with an error, or before anybody wanted
// it. One that was never started, or killed by [Daemon.Signal], is no fault.
func (d *Daemon) Stop() error {
	p := d.run
	switch {
	case p == nil:
		return nil
	case p.killed.Load():
		<-p.ended
		return nil
	case p.hasEnded() && !p.expected.Load():
		return fmt.Errorf("%s had ended before it was asked to: %s", d.cfg.Name, p.cmd.ProcessState)
	}
	_ = d.Signal(syscall.SIGCONT) // it may be stopped, or have ended meanwhile
	_ = d.Signal(syscall.SIGTERM)
	patience := time.NewTimer(d.cfg.EndWithin)
	defer patience.Stop()
	select {
	case <-p.ended:
		if p.err != nil {
			return fmt.Errorf("%s did not end well: %w", d.cfg.Name, p.err)
		}
		return nil
	case <-patience.C:
		_ = d.Signal(syscall.SIGKILL)
		<-p.ended
		return fmt.Errorf("%s did not end within %v of SIGTERM", d.cfg.Name, d.cfg.EndWithin)
	}
}

// Tail is the end of its log; empty if it was never started.
func (d *Daemon) Tail() string {
	if d.run == nil {
		return ""
	}
	b, err := os.ReadFile(d.cfg.Log)
	if err != nil {
		return err.Error() + "\n"
	}
	return string(b[max(0, len(b)-tailSize):])
}
