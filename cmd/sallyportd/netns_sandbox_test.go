package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

// subject is whom a sandbox is attached as.
type subject struct {
	project, environment string
	kind                 spec.Kind
	runtime              string
}

var (
	acmeFunction   = subject{"shop", "production", spec.KindFunction, spec.RuntimeNodeJS}
	acmeBuild      = subject{"shop", "production", spec.KindBuild, spec.RuntimeNodeJS}
	acmeEdge       = subject{"shop", "production", spec.KindFunction, spec.RuntimeEdge}
	acmeOptedOut   = subject{"shop", "preview", spec.KindBuild, spec.RuntimeNodeJS}
	globexFunction = subject{"bank", "production", spec.KindFunction, spec.RuntimeNodeJS}
	quietFunction  = subject{"vault", "production", spec.KindFunction, spec.RuntimeNodeJS}
)

// task is what the command in a sandbox is told to do; see [guest.perform].
type task struct {
	ID      int           `json:"id"`
	Do      string        `json:"do"`
	Target  string        `json:"target,omitempty"`
	Targets []string      `json:"targets,omitempty"`
	Network string        `json:"network,omitempty"`
	Count   int           `json:"count,omitempty"`
	Size    int64         `json:"size,omitempty"`
	Within  time.Duration `json:"within,omitempty"`
}

// answer is what came of it.
type answer struct {
	ID      int              `json:"id"`
	Sources []netip.AddrPort `json:"sources,omitempty"`
	Texts   []string         `json:"texts,omitempty"`
	Count   int              `json:"count,omitempty"`
	Size    int64            `json:"size,omitempty"`
	Failure string           `json:"failure,omitempty"`
	Errno   syscall.Errno    `json:"errno,omitempty"` // that of Failure, if it has one
	Took    time.Duration    `json:"took"`
	Load    loadReport       `json:"load,omitzero"`
}

// sandbox is a command that runs in a sandbox.
type sandbox struct {
	w      *ground
	inner  netip.Addr    // 0 before address was asked for
	took   time.Duration // until it ran
	cmd    *exec.Cmd
	in     io.WriteCloser
	stderr messages      // complete when done is closed
	err    error         // of the command's end; likewise
	done   chan struct{} // closed when the command has ended

	mu      sync.Mutex
	tasks   *json.Encoder
	waiting map[int]chan answer
	last    int
}

// messages is what a command wrote, which may be read while it goes on.
type messages struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (m *messages) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.b.Write(p)
}

func (m *messages) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.b.String()
}

// start starts a command as a sandbox on the worker. It may fail; ask tells.
func (g *ground) start(who subject) (*sandbox, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b := &sandbox{w: g, done: make(chan struct{}), waiting: make(map[int]chan answer)}
	b.cmd = exec.Command(filepath.Join(g.bin, "sallyport-sidecar"), "exec", "--socket", g.socket,
		"--project", who.project, "--environment", who.environment, "--kind", string(who.kind), "--runtime", who.runtime,
		"--", self, insideSandbox)
	b.cmd.Stderr = &b.stderr
	if b.in, err = b.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	b.tasks = json.NewEncoder(b.in)
	if err := g.worker.Start(b.cmd); err != nil {
		return nil, err
	}
	go b.follow(out)
	return b, nil
}

// sandbox starts one that must succeed, and ends it with the test.
func (g *ground) sandbox(t *testing.T, who subject) *sandbox {
	t.Helper()
	began := time.Now()
	b, err := g.start(who)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.end)
	a := b.must(t, task{Do: "address"})
	b.took = time.Since(began)
	if len(a.Sources) == 1 {
		b.inner = a.Sources[0].Addr()
	}
	return b
}

// follow hands answers to those who wait for them until the command ends.
func (b *sandbox) follow(out io.Reader) {
	answers := json.NewDecoder(out)
	for {
		var a answer
		if err := answers.Decode(&a); err != nil {
			break
		}
		b.mu.Lock()
		c := b.waiting[a.ID]
		delete(b.waiting, a.ID)
		b.mu.Unlock()
		if c != nil {
			c <- a
		}
	}
	_, _ = io.Copy(io.Discard, out)
	b.err = b.cmd.Wait()
	close(b.done)
}

// askPatience is how long a task may take, all in all.
const askPatience = 30 * time.Second

// ask has the sandbox do a task. Many may be asked at a time. An error is the
// end of the sandbox; what the task itself failed of is in the answer.
func (b *sandbox) ask(t task) (answer, error) {
	c := make(chan answer, 1)
	b.mu.Lock()
	b.last++
	t.ID = b.last
	b.waiting[t.ID] = c
	err := b.tasks.Encode(t)
	b.mu.Unlock()
	if err != nil { // it has ended
		<-b.done
		return answer{}, b.ended()
	}
	select {
	case a := <-c:
		return a, nil
	case <-b.done:
		return answer{}, b.ended()
	case <-time.After(askPatience):
		return answer{}, fmt.Errorf("task %q of a sandbox takes more than %v", t.Do, askPatience)
	}
}

// ended says how the command ended.
func (b *sandbox) ended() error {
	return fmt.Errorf("the sandbox ended (%w): %s", errors.Join(errors.New("no answer"), b.err), strings.TrimSpace(b.stderr.String()))
}

// must is ask for what must succeed.
func (b *sandbox) must(t *testing.T, what task) answer {
	t.Helper()
	a, err := b.ask(what)
	if err != nil {
		t.Fatalf("%s %s: %v", what.Do, what.Target, err)
	}
	if a.Failure != "" {
		t.Fatalf("%s %s in a sandbox: %s (after %v)", what.Do, what.Target, a.Failure, a.Took)
	}
	return a
}

// fails is ask for what must fail; the answer says how.
func (b *sandbox) fails(t *testing.T, what task) answer {
	t.Helper()
	a, err := b.ask(what)
	if err != nil {
		t.Fatalf("%s %s: %v", what.Do, what.Target, err)
	}
	if a.Failure == "" {
		t.Errorf("%s %s succeeds in a sandbox: %+v", what.Do, what.Target, a)
	}
	return a
}

// end ends the command by the end of its input.
func (b *sandbox) end() {
	_ = b.in.Close()
	select {
	case <-b.done:
	case <-time.After(5 * time.Second):
		_ = b.cmd.Process.Kill()
		<-b.done
		b.w.t.Errorf("a sandbox did not end within 5 s of its input's end")
	}
}

// at is an address with a port, as text.
func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// load is what a sandbox reports of its load.
func (b *sandbox) load(t *testing.T) loadReport {
	t.Helper()
	return b.must(t, task{Do: "report"}).Load
}
