package failover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

// errEnded says that a function is no more.
var errEnded = errors.New("the function has ended")

// sandbox is a running sandbox with our function in it.
type sandbox struct {
	name    string
	cmd     *exec.Cmd
	in      io.WriteCloser
	orders  *json.Encoder
	replies chan reply // closed when the function has ended
	stderr  bytes.Buffer
	err     error // of the end; valid when replies is closed
}

// startFunction starts a sandbox with our function on the worker, by the sidecar's
// exec. The stage ends it.
func (s *stage) startFunction(name string) (*sandbox, error) {
	b := &sandbox{name: name, replies: make(chan reply), cmd: exec.Command(s.cfg.program("sallyport-sidecar"), "exec", "--socket", s.socket(),
		"--project", projectID, "--environment", environmentName, "--kind", string(spec.KindFunction), "--runtime", spec.RuntimeNodeJS,
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
	b.in, b.orders = in, json.NewEncoder(in)
	if err := s.world.worker.Start(b.cmd); err != nil {
		return nil, fmt.Errorf("start a sandbox: %w", err)
	}
	s.sandboxes = append(s.sandboxes, b)
	go b.read(json.NewDecoder(out))
	return b, nil
}

// read hands on replies until there are no more.
func (b *sandbox) read(in *json.Decoder) {
	defer close(b.replies)
	for {
		var r reply
		if err := in.Decode(&r); err != nil {
			b.err = b.cmd.Wait()
			return
		}
		b.replies <- r
	}
}

// do has the function do one order and waits for the reply.
func (b *sandbox) do(ctx context.Context, o order) (reply, error) {
	if err := b.orders.Encode(o); err != nil {
		return reply{}, fmt.Errorf("tell %s to %s: %w: %w", b.name, o.Do, errEnded, err)
	}
	select {
	case r, ok := <-b.replies:
		switch {
		case !ok:
			return r, fmt.Errorf("tell %s to %s: %w (%v): %s", b.name, o.Do, errEnded, b.err, bytes.TrimSpace(b.stderr.Bytes()))
		case r.Failure != "":
			return r, fmt.Errorf("%s was told to %s: %s", b.name, o.Do, r.Failure)
		}
		return r, nil
	case <-ctx.Done():
		return reply{}, fmt.Errorf("tell %s to %s: %w", b.name, o.Do, context.Cause(ctx))
	}
}

// end lets the function end, and the sandbox with it.
func (b *sandbox) end() error {
	_ = b.in.Close() // it may be gone
	patience := time.NewTimer(endPatience)
	defer patience.Stop()
	for {
		select {
		case _, ok := <-b.replies:
			if ok {
				continue // to an order that nobody waits for any more
			}
			if b.err != nil {
				return fmt.Errorf("%s did not end well: %w: %s", b.name, b.err, bytes.TrimSpace(b.stderr.Bytes()))
			}
			return nil
		case <-patience.C:
			_ = b.cmd.Process.Kill() // ends the pipe, and that the reader
		}
	}
}
