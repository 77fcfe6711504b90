package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"

	"github.com/sallyport-net/sallyport/control/spec"
)

// subject is whom a sandbox is attached as.
type subject struct {
	project, environment string
	kind                 spec.Kind
	runtime              string
}

// The subjects of the demo.
var (
	function = subject{"shop", "production", spec.KindFunction, spec.RuntimeNodeJS}
	stranger = subject{"bank", "production", spec.KindFunction, spec.RuntimeNodeJS}
	build    = subject{"shop", "production", spec.KindBuild, spec.RuntimeNodeJS}
	optedOut = subject{"shop", "preview", spec.KindBuild, spec.RuntimeNodeJS}
	edge     = subject{"shop", "production", spec.KindFunction, spec.RuntimeEdge}
)

// sandbox is a running sandbox with our function in it.
type sandbox struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	tasks  *json.Encoder
	output *json.Decoder
	stderr bytes.Buffer // complete when cmd has ended
}

// resident is a sandbox that stays, with what the control plane gave it.
type resident struct {
	*sandbox
	attachment spec.Attachment
}

// start starts a function, or a build, on the worker. End it.
func (s *stage) start(ctx context.Context, who subject) (*sandbox, error) {
	args := []string{"exec", "--socket", s.socket,
		"--project", who.project, "--environment", who.environment, "--kind", string(who.kind), "--runtime", who.runtime}
	if !s.world.confined() {
		args = append(args, "--proxy")
	}
	b := &sandbox{cmd: exec.CommandContext(ctx, s.program("sallyport-sidecar"), append(args, "--", s.self, FunctionCommand)...)}
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

// settle starts a function and finds out what the control plane gave it. No other
// may be starting meanwhile.
func (s *stage) settle(ctx context.Context, who subject) (*resident, error) {
	before, err := s.api.Attachments(ctx)
	if err != nil {
		return nil, err
	}
	b, err := s.start(ctx, who)
	if err != nil {
		return nil, err
	}
	r := &resident{sandbox: b}
	s.residents = append(s.residents, r)
	if _, err := b.do(task{Do: doAddress}); err != nil {
		return nil, err
	}
	after, err := s.api.Attachments(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range after {
		known := slices.ContainsFunc(before, func(x spec.Attachment) bool { return x.ID == a.ID })
		if !known && a.Project == who.project {
			r.attachment = a
			return r, nil
		}
	}
	return nil, fmt.Errorf("the control API lists no new attachment of %s once its function runs", who.project)
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
	const tailSize = 4096 // bytes
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
