package failover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

const (
	readyPatience = 15 * time.Second
	// endPatience is how long a program may take to end before it is killed.
	endPatience = 5 * time.Second
	// lookEvery is how often a condition is looked at that nobody announces.
	lookEvery = 5 * time.Millisecond
	tailSize  = 4096 // bytes of a log that are shown
)

// process is one of our daemons on a machine. It can be killed, stopped, and
// started again. Its methods are for one goroutine.
type process struct {
	name    string
	program string
	args    []string
	machine *netlab.Namespace
	log     string
	probe   func(context.Context) error // whether it is ready
	giveUp  context.CancelCauseFunc     // told when it ends by itself

	mu       sync.Mutex
	expected bool // its end is what we want
	cmd      *exec.Cmd
	ended    chan struct{} // closed when cmd has ended
	err      error         // of the end; valid then
}

// start starts it, for the first time or again.
func (p *process) start() error {
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open a log for %s: %w", p.name, err)
	}
	defer f.Close()
	cmd := exec.Command(p.program, p.args...)
	cmd.Stdout, cmd.Stderr = f, f
	// Keys on the terminal are for this process, which ends the daemons in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.machine.Start(cmd); err != nil {
		return fmt.Errorf("start %s (is it built? make build): %w", p.name, err)
	}
	ended := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.ended, p.err, p.expected = cmd, ended, nil, false
	p.mu.Unlock()
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		expected := p.expected
		p.mu.Unlock()
		close(ended)
		if !expected {
			p.giveUp(fmt.Errorf("%s ended by itself: %s", p.name, cmd.ProcessState))
		}
	}()
	return nil
}

// ready waits until it is.
func (p *process) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyPatience, fmt.Errorf("%s did not get ready within %v", p.name, readyPatience))
	defer cancel()
	return awaitCondition(ctx, p.probe)
}

// signal sends it a signal, at once.
func (p *process) signal(s syscall.Signal) error {
	p.mu.Lock()
	if s == syscall.SIGKILL || s == syscall.SIGTERM {
		p.expected = true
	}
	p.mu.Unlock()
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to %s: %w", s, p.name, err)
	}
	return nil
}

// gone waits until it has ended, after SIGKILL.
func (p *process) gone(ctx context.Context) error {
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s: %w", p.name, context.Cause(ctx))
	}
}

// stop asks it to end and waits. One that was never started has ended.
func (p *process) stop() error {
	if p.cmd == nil {
		return nil
	}
	select {
	case <-p.ended:
		return nil // whoever saw it end has told
	default:
	}
	_ = p.signal(syscall.SIGCONT) // it may be stopped, or have ended meanwhile
	_ = p.signal(syscall.SIGTERM)
	patience := time.NewTimer(endPatience)
	defer patience.Stop()
	select {
	case <-p.ended:
		if p.err != nil {
			return fmt.Errorf("%s did not end well: %w", p.name, p.err)
		}
		return nil
	case <-patience.C:
		_ = p.cmd.Process.Kill()
		<-p.ended
		return fmt.Errorf("%s did not end within %v of SIGTERM", p.name, endPatience)
	}
}

// tail is the end of its log.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error() + "\n"
	}
	return string(b[max(0, len(b)-tailSize):])
}

// awaitCondition waits until a look succeeds. When ctx ends first, the error
// says what the last look said.
func awaitCondition(ctx context.Context, look func(context.Context) error) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		err := look(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
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

// httpReady asks an address inside a machine whether it is ready.
func httpReady(machine *netlab.Namespace, url string) func(context.Context) error {
	// Connections are not kept: the daemon may be another one next time.
	client := &http.Client{Transport: &http.Transport{DialContext: machine.Dial, DisableKeepAlives: true}, Timeout: time.Second}
	return func(ctx context.Context) error {
		_, err := get(ctx, client, url)
		return err
	}
}

// program is the path of one of our programs.
func (c *Config) program(name string) string { return filepath.Join(c.Bin, name) }

// errEnded says that a function is no more.
var errEnded = errors.New("the function has ended")
