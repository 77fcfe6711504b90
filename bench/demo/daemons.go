package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	readyPatience = 15 * time.Second
	// endPatience is how long a daemon may take to end before it is killed.
	endPatience = 3 * time.Second
	probeEvery  = 10 * time.Millisecond
	tailSize    = 4096 // bytes of a log that are shown
)

// daemon is one of our long-lived programs, which may run more than once.
type daemon struct {
	name, log string
	at        machine
	program   string
	args      []string
	ready     func(context.Context) error // whether it serves
	run       *running                    // nil: it does not run, and shall not
}

// running is a process of a daemon.
type running struct {
	cmd    *exec.Cmd
	meant  chan struct{} // closed before the end is asked for
	ended  chan struct{} // closed when it has
	err    error         // of its end; valid then
	giveUp context.CancelCauseFunc
}

// newDaemon describes a daemon. Its log is named after it, and empty.
func (s *stage) newDaemon(at machine, name, program string, ready func(context.Context) error) *daemon {
	_ = os.Remove(filepath.Join(s.logs, name+".log")) // of another demo, if there is one
	d := &daemon{
		name: name, log: filepath.Join(s.logs, name+".log"), at: at, program: s.program(program),
		args: []string{"run", "--config", filepath.Join(s.dir, name+".yaml")}, ready: ready,
	}
	s.daemons = append(s.daemons, d)
	return d
}

// start starts it, with its log behind that of earlier runs. Its end ends the
// demo, unless it was asked for.
func (d *daemon) start(giveUp context.CancelCauseFunc) error {
	f, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("make a log for %s: %w", d.name, err)
	}
	defer f.Close()
	r := &running{cmd: exec.Command(d.program, d.args...), meant: make(chan struct{}), ended: make(chan struct{}), giveUp: giveUp}
	r.cmd.Stdout, r.cmd.Stderr = f, f
	// Keys on the terminal are for this process, which ends the daemons in order.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.at.Start(r.cmd); err != nil {
		return fmt.Errorf("start %s (is it built? make build): %w", d.name, err)
	}
	d.run = r
	go r.watch(d.name)
	return nil
}

// watch waits for the end.
func (r *running) watch(name string) {
	r.err = r.cmd.Wait()
	close(r.ended)
	select {
	case <-r.meant:
	default:
		r.giveUp(fmt.Errorf("%s ended by itself: %s", name, r.cmd.ProcessState))
	}
}

// await waits until it serves.
func (d *daemon) await(ctx context.Context) error {
	return until(ctx, d.name+" is ready", func(ctx context.Context) error {
		select {
		case <-d.run.ended:
			return &finalError{fmt.Errorf("it ended: %s", d.run.cmd.ProcessState)}
		default:
			return d.ready(ctx)
		}
	})
}

// startAll starts daemons at once and waits until all of them serve.
func (s *stage) startAll(ctx context.Context, all ...*daemon) error {
	for _, d := range all {
		if err := d.start(s.giveUp); err != nil {
			return err
		}
	}
	for _, d := range all {
		if err := d.await(ctx); err != nil {
			return err
		}
	}
	return nil
}

// kill ends daemons by SIGKILL and returns the time just before, by [monotonic].
func kill(all ...*daemon) (at time.Duration, err error) {
	for _, d := range all {
		close(d.run.meant)
	}
	at = monotonic()
	for _, d := range all {
		err = errors.Join(err, d.run.cmd.Process.Kill())
	}
	for _, d := range all {
		<-d.run.ended
		d.run = nil
	}
	return at, err
}

// stopAll asks daemons to end, all at once, and waits.
func stopAll(all []*daemon) error {
	errs := make([]error, len(all))
	var stopping sync.WaitGroup
	for i, d := range all {
		if d != nil && d.run != nil {
			stopping.Go(func() { errs[i] = d.stop() })
		}
	}
	stopping.Wait()
	return errors.Join(errs...)
}

// stop asks it to end and waits.
func (d *daemon) stop() error {
	r := d.run
	select {
	case <-r.ended:
		return fmt.Errorf("%s had ended before it was asked to: %s", d.name, r.cmd.ProcessState)
	default:
	}
	close(r.meant)
	_ = r.cmd.Process.Signal(syscall.SIGTERM) // it may have ended meanwhile
	select {
	case <-r.ended:
		if r.err != nil {
			return fmt.Errorf("%s did not end well: %w", d.name, r.err)
		}
		return nil
	case <-time.After(endPatience):
		_ = r.cmd.Process.Kill()
		<-r.ended
		return fmt.Errorf("%s did not end within %v of SIGTERM", d.name, endPatience)
	}
}

// tail is the end of its log.
func (d *daemon) tail() string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error() + "\n"
	}
	return string(b[max(0, len(b)-tailSize):])
}

// finalError is one that waiting longer cannot mend.
type finalError struct{ why error }

// Error implements error.
func (e *finalError) Error() string { return e.why.Error() }

// Unwrap gives the cause.
func (e *finalError) Unwrap() error { return e.why }

// until waits until probe succeeds. The error says what was waited for.
func until(ctx context.Context, what string, probe func(context.Context) error) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	var said error // by the last probe that was not cut off
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		if said == nil || ctx.Err() == nil {
			said = err
		}
		var final *finalError
		if errors.As(err, &final) {
			return fmt.Errorf("waited until %s: %w", what, err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("waited %v until %s: %w (%w)", time.Since(began).Round(time.Millisecond), what, said, context.Cause(ctx))
		}
	}
}

// httpReady asks an address inside a machine whether it is ready.
func httpReady(client *http.Client, url string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := get(ctx, client, url)
		return err
	}
}

// get reads what a URL answers with.
func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", url, resp.Status, bytes.TrimSpace(b))
	}
	return b, err
}

// socketReady tries to connect to a Unix socket.
func socketReady(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		return c.Close()
	}
}
