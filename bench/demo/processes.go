package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

const (
	readyPatience = 15 * time.Second
	// endPatience is how long a daemon may take to end before it is killed.
	endPatience = 3 * time.Second
	probeEvery  = 10 * time.Millisecond
	tailSize    = 4096 // bytes of a log that are shown
)

// daemon is a long-lived process of ours.
type daemon struct {
	name, log string
	cmd       *exec.Cmd
	ended     chan struct{} // closed when it has
	err       error         // of its end; valid then
}

// startDaemon starts one of our programs inside a machine, with its log in a
// file. Its end ends the demo.
func (s *stage) startDaemon(n *netlab.Namespace, name string, args ...string) (*daemon, error) {
	d := &daemon{name: name, ended: make(chan struct{}), log: filepath.Join(s.logs, name+".log")}
	f, err := os.Create(d.log)
	if err != nil {
		return nil, fmt.Errorf("make a log for %s: %w", d.name, err)
	}
	defer f.Close()
	d.cmd = exec.Command(s.program(name), args...)
	d.cmd.Stdout, d.cmd.Stderr = f, f
	// Keys on the terminal are for this process, which ends the daemons in order.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.Start(d.cmd); err != nil {
		return nil, fmt.Errorf("start %s (is it built? make build): %w", d.name, err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.ended)
		s.giveUp(fmt.Errorf("%s ended by itself: %s", d.name, d.cmd.ProcessState))
	}()
	s.daemons = append(s.daemons, d)
	return d, nil
}

// ready waits until probe succeeds.
func (d *daemon) ready(ctx context.Context, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-d.ended:
			return fmt.Errorf("%s ended instead of getting ready: %s", d.name, d.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("%s did not get ready: %w (%w)", d.name, err, context.Cause(ctx))
		}
	}
}

// stop asks it to end and waits.
func (d *daemon) stop() error {
	select {
	case <-d.ended:
		return fmt.Errorf("%s had ended before it was asked to: %s", d.name, d.cmd.ProcessState)
	default:
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended meanwhile
	select {
	case <-d.ended:
		if d.err != nil {
			return fmt.Errorf("%s did not end well: %w", d.name, d.err)
		}
		return nil
	case <-time.After(endPatience):
		_ = d.cmd.Process.Kill()
		<-d.ended
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

// subject is whom a sandbox is attached as.
type subject struct {
	project, environment string
	kind                 spec.Kind
	runtime              string
}

// sandbox is a running sandbox with our function in it.
type sandbox struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	tasks  *json.Encoder
	output *json.Decoder
	stderr bytes.Buffer // complete when cmd has ended
}

// start starts a function, or a build, on the worker. End it.
func (s *stage) start(ctx context.Context, who subject) (*sandbox, error) {
	b := &sandbox{cmd: exec.CommandContext(ctx, s.program("sallyport-sidecar"), "exec", "--socket", s.socket,
		"--project", who.project, "--environment", who.environment, "--kind", string(who.kind), "--runtime", who.runtime,
		"--", s.self, FunctionCommand)}
	b.cmd.Stderr = &b.stderr
	b.cmd.WaitDelay = endPatience
	in, err := b.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("make a sandbox's pipes: %w", err)
	}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("make a sandbox's pipes: %w", err)
	}
	b.in, b.tasks, b.output = in, json.NewEncoder(in), json.NewDecoder(out)
	if err := s.world.worker.Start(b.cmd); err != nil {
		return nil, fmt.Errorf("start a sandbox: %w", err)
	}
	return b, nil
}

// do has the function do one task.
func (b *sandbox) do(t task) (answer, error) {
	err := b.tasks.Encode(t)
	var a answer
	if err == nil {
		err = b.output.Decode(&a)
	}
	if err != nil {
		return answer{}, fmt.Errorf("the sandbox ended: %w", errors.Join(err, b.end()))
	}
	return a, nil
}

// end lets the function end, and the sandbox with it. It may be called again.
func (b *sandbox) end() error {
	if b.cmd.ProcessState != nil {
		return nil
	}
	_ = b.in.Close()
	err := b.cmd.Wait()
	if err == nil {
		return nil
	}
	text := bytes.TrimSpace(b.stderr.Bytes())
	return fmt.Errorf("%w: %s", err, text[max(0, len(text)-tailSize):])
}

// with starts a function, lets use use it, and ends it.
func (s *stage) with(ctx context.Context, who subject, use func(*sandbox) error) error {
	b, err := s.start(ctx, who)
	if err != nil {
		return err
	}
	return errors.Join(use(b), b.end())
}

// once starts a function, has it do one task, and ends it.
func (s *stage) once(ctx context.Context, who subject, t task) (a answer, err error) {
	err = s.with(ctx, who, func(b *sandbox) (err error) {
		a, err = b.do(t)
		return err
	})
	return a, err
}
