package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// What the child of these tests is told to be.
const (
	serves   = "serves"   // listens on the socket; SIGTERM ends it well
	stubborn = "stubborn" // listens on the socket and ignores SIGTERM
	mute     = "mute"     // never listens; SIGTERM ends it badly
	fails    = "fails"    // ends at once
)

const failure = 3 // what fails ends with

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "child" {
		os.Exit(child(os.Args[2], os.Args[3]))
	}
	goleak.VerifyTestMain(m)
}

// child is a daemon: this test binary, started again.
func child(kind, socket string) int {
	fmt.Println("it", kind)
	end := make(chan os.Signal, 1)
	switch kind {
	case fails:
		return failure
	case serves:
		signal.Notify(end, syscall.SIGTERM)
	case stubborn:
		signal.Ignore(syscall.SIGTERM)
	}
	if kind != mute {
		l, err := net.Listen("unix", socket)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer l.Close() // removes the socket
	}
	select {
	case <-end:
		return 0
	case <-time.After(time.Minute): // whoever started it is gone
		return 1
	}
}

// here is this machine.
type here struct{}

func (here) Start(cmd *exec.Cmd) error { return cmd.Start() }

// describe describes a daemon that a test may change. The context is what it
// gives up.
func describe(t *testing.T, kind string) (Config, context.Context) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, giveUp := context.WithCancelCause(t.Context())
	t.Cleanup(func() { giveUp(nil) })
	dir := t.TempDir()
	socket := filepath.Join(dir, "socket")
	return Config{
		Name: "the child", Machine: here{}, Program: self, Args: []string{"child", kind, socket}, Log: filepath.Join(dir, "log"),
		Ready: Socket(socket), GiveUp: giveUp, ReadyWithin: 30 * time.Second, EndWithin: 30 * time.Second,
	}, ctx
}

// begin starts a daemon, which has ended when the test has.
func begin(t *testing.T, cfg Config) *Daemon {
	t.Helper()
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.Signal(syscall.SIGKILL)
		_ = d.Gone(context.Background())
	})
	return d
}

// says fails the test unless err says all of what.
func says(t *testing.T, err error, what ...string) {
	t.Helper()
	for _, w := range what {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error %v, without %q", err, w)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// untold fails the test if somebody was told that the daemon ended by itself.
func untold(t *testing.T, ctx context.Context) {
	t.Helper()
	if ctx.Err() != nil {
		t.Errorf("told: %v", context.Cause(ctx))
	}
}

func TestServesAndStops(t *testing.T) {
	cfg, ctx := describe(t, serves)
	must(t, os.WriteFile(cfg.Log, []byte("of another harness\n"), 0o600))
	d := begin(t, cfg)
	must(t, d.Await(ctx))
	pid := d.run.cmd.Process.Pid
	must(t, d.Start())
	if again := d.run.cmd.Process.Pid; again != pid {
		t.Errorf("process %d runs and was started again as %d", pid, again)
	}
	must(t, d.Stop())
	must(t, d.Stop())
	must(t, d.Start())
	must(t, d.Await(ctx))
	must(t, d.Stop())
	untold(t, ctx)
	if got, want := d.Tail(), "it serves\nit serves\n"; got != want {
		t.Errorf("the log says %q, not %q", got, want)
	}
}

func TestEndsByItself(t *testing.T) {
	cfg, ctx := describe(t, fails)
	d := begin(t, cfg)
	must(t, d.Gone(t.Context()))
	says(t, context.Cause(ctx), "the child ended by itself: exit status 3")
	says(t, d.Await(t.Context()), "the child is ready", "it ended: exit status 3")
	says(t, d.Stop(), "had ended before it was asked to: exit status 3")
}

// What waits by the context that is given up learns of the end, too.
func TestEndsWhileAwaited(t *testing.T) {
	cfg, ctx := describe(t, fails)
	says(t, begin(t, cfg).Await(ctx), "exit status 3")
}

func TestKilled(t *testing.T) {
	cfg, ctx := describe(t, serves)
	d := begin(t, cfg)
	must(t, d.Await(ctx))
	must(t, d.Signal(syscall.SIGKILL))
	must(t, d.Gone(ctx))
	must(t, d.Stop())
	if err := d.Signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a signal after the end: %v", err)
	}
	untold(t, ctx)

	// The end of the next run is wanted no more than that of the first was.
	d.cfg.Args[1] = fails
	must(t, d.Start())
	must(t, d.Gone(t.Context()))
	says(t, context.Cause(ctx), "ended by itself")
}

func TestEndsWhenStopped(t *testing.T) {
	cfg, ctx := describe(t, serves)
	d := begin(t, cfg)
	must(t, d.Await(ctx))
	must(t, d.Signal(syscall.SIGSTOP))
	must(t, d.Stop())
	untold(t, ctx)
}

func TestDoesNotEnd(t *testing.T) {
	cfg, ctx := describe(t, stubborn)
	cfg.EndWithin = 20 * time.Millisecond
	d := begin(t, cfg)
	must(t, d.Await(ctx))
	impatient, cancel := context.WithCancelCause(ctx)
	cancel(errors.New("no patience"))
	says(t, d.Gone(impatient), "wait for the end of the child: no patience")
	says(t, d.Stop(), "the child did not end within 20ms of SIGTERM")
	must(t, d.Gone(ctx))
	untold(t, ctx)
}

func TestNeverReady(t *testing.T) {
	cfg, ctx := describe(t, mute)
	cfg.ReadyWithin = 20 * time.Millisecond
	d := begin(t, cfg)
	err := d.Await(ctx)
	says(t, err, "until the child is ready", "no such file or directory")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v does not say that time was up", err)
	}
	says(t, d.Stop(), "the child did not end well: signal: terminated")
	untold(t, ctx)
}

func TestNeverStarted(t *testing.T) {
	cfg, ctx := describe(t, serves)
	cfg.Program += "-missing"
	d, err := New(cfg)
	must(t, err)
	err = d.Start()
	says(t, err, "start the child (is it built? make build)")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v does not say that there is no program", err)
	}
	says(t, d.Await(ctx), "was not started")
	says(t, d.Signal(syscall.SIGTERM), "was not started")
	must(t, d.Gone(ctx))
	must(t, d.Stop())
	if got := d.Tail(); got != "" {
		t.Errorf("its log says %q", got)
	}
	untold(t, ctx)
}

func TestTailIsBounded(t *testing.T) {
	cfg, ctx := describe(t, serves)
	d := begin(t, cfg)
	must(t, d.Await(ctx))
	must(t, d.Stop())
	must(t, os.WriteFile(cfg.Log, []byte("x"+strings.Repeat("y", tailSize)), 0o600))
	if got := d.Tail(); got != strings.Repeat("y", tailSize) {
		t.Errorf("%d bytes of the log, beginning with %.1q", len(got), got)
	}
	must(t, os.Remove(cfg.Log))
	if got := d.Tail(); !strings.Contains(got, "no such file") {
		t.Errorf("a log that is gone says %q", got)
	}
}

func TestConfig(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"name":         func(c *Config) { c.Name = "" },
		"machine":      func(c *Config) { c.Machine = nil },
		"program":      func(c *Config) { c.Program = "" },
		"log":          func(c *Config) { c.Log = "" },
		"probe":        func(c *Config) { c.Ready = nil },
		"whom to tell": func(c *Config) { c.GiveUp = nil },
		"time to be":   func(c *Config) { c.ReadyWithin = 0 },
		"time to end":  func(c *Config) { c.EndWithin = -1 },
	} {
		cfg, _ := describe(t, serves)
		if _, err := New(cfg); err != nil {
			t.Fatal(err)
		}
		spoil(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("a daemon without %s", name)
		}
	}
}
