package sidecar

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/sidecar/confine"
)

// inside is the first argument with which this program is a command in a sandbox.
const inside = "inside-sandbox"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case confine.Subcommand:
			os.Exit(confine.Enter(os.Args[3:]))
		case inside:
			if err := tenant(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// tenant is what runs in the sandbox.
func tenant(args []string) error {
	switch args[0] {
	case "echo": // a datagram to the far side and back, then says its address
		c, err := net.Dial("udp4", args[1])
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		b := make([]byte, 100)
		if n, err := c.Read(b); err != nil || string(b[:n]) != "hello" {
			return fmt.Errorf("answer %q, %w", b[:n], err)
		}
		fmt.Println(netip.MustParseAddrPort(c.LocalAddr().String()).Addr())
		return nil
	case "proxied":
		to, err := netip.ParseAddrPort(args[1])
		if err != nil {
			return err
		}
		return proxiedEcho(to)
	case "socket": // neither the sidecar's socket nor what it hides must be there
		if c, err := net.Dial("unix", args[1]); err == nil {
			_ = c.Close()
			return errors.New("the sidecar's socket can be reached")
		}
		entries, err := os.ReadDir(filepath.Dir(args[1]))
		if err == nil && len(entries) > 0 {
			return fmt.Errorf("the socket's folder shows %v", entries)
		}
		if c, err := net.Dial("unix", args[2]); err == nil {
			_ = c.Close()
			return errors.New("the control plane's socket can be reached")
		}
		if text, err := os.ReadFile(args[3]); len(text) > 0 {
			return fmt.Errorf("the control plane's token can be read, %v", err)
		}
		return nil
	case "await-end": // says that it runs, and waits until its interface is gone and its input ends
		fmt.Println("running")
		deadline := time.After(patience)
		again := time.NewTicker(5 * time.Millisecond)
		defer again.Stop()
		for {
			all, err := net.Interfaces()
			if err == nil && len(all) == 1 {
				break
			}
			select {
			case <-again.C:
			case <-deadline:
				return errors.New("the interface is still there")
			}
		}
		if c, err := net.DialTimeout("tcp4", "192.0.2.1:80", time.Second); err == nil {
			_ = c.Close()
			return errors.New("a connection was made without a sidecar")
		}
		_, _ = io.ReadAll(os.Stdin)
		return nil
	}
	return fmt.Errorf("no such test %q", args[0])
}

// outcome is what became of an Exec.
type outcome struct {
	code             int
	err              error
	output, messages string
}

// execute runs a command by way of a sidecar; each line of its output goes to
// lines first, if there is one.
func execute(t *testing.T, cfg ExecConfig, lines chan<- string) outcome {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var messages bytes.Buffer
	if cfg.Messages == nil {
		cfg.Messages = &messages
	}
	cfg.Environment, cfg.Kind = "production", spec.KindFunction
	cfg.Stdout, cfg.Stderr = w, w
	output := make(chan string, 1)
	go func() {
		b := make([]byte, 4096)
		var all strings.Builder
		for {
			n, err := r.Read(b)
			all.Write(b[:n])
			if n > 0 && lines != nil {
				lines <- string(b[:n])
			}
			if err != nil {
				break
			}
		}
		output <- all.String()
	}()
	var out outcome
	out.code, out.err = Exec(cfg)
	_ = w.Close()
	out.output, out.messages = <-output, messages.String()
	if out.err != nil && strings.Contains(out.err.Error(), "namespaces") {
		netlab.NotRun(t, out.err.Error())
	}
	return out
}

func self(t *testing.T, args ...string) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{exe, inside}, args...)
}

func TestExecGoesThroughTheTunnel(t *testing.T) {
	for _, i := range []confine.Interface{confine.TUN, confine.Veth} {
		t.Run(string(i), func(t *testing.T) {
			if i == confine.TUN {
				f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
				if err != nil {
					netlab.NotRun(t, err.Error())
				}
				_ = f.Close()
			}
			p := newPlane(t)
			r := serve(t, p)
			out := execute(t, ExecConfig{
				Socket: r.cfg.Socket, Project: "p", Runtime: "go", Interface: i, Verbose: true,
				Command: self(t, "echo", "192.0.2.1:9"),
			}, nil)
			if out.code != 0 || out.err != nil {
				t.Fatalf("%+v", out)
			}
			inner := netip.MustParseAddr(strings.TrimSpace(out.output))
			if p.gateways["net_a"].from(inner) != 1 {
				t.Errorf("the gateway saw no packet of %v", inner)
			}
			if !strings.Contains(out.messages, inner.String()) {
				t.Errorf("messages %q", out.messages)
			}
			if n := p.count(); n != 0 {
				t.Errorf("%d attachments after the command ended", n)
			}
			if drops := r.status(); len(drops.Egress)+len(drops.Ingress) != 0 {
				t.Errorf("drops %v %v", drops.Egress, drops.Ingress)
			}
		})
	}
}

func TestExecHidesTheSidecar(t *testing.T) {
	r := serve(t, newPlane(t))
	out := execute(t, ExecConfig{Socket: r.cfg.Socket, Project: "p", Runtime: "go", Command: self(t, "socket", r.cfg.Socket, r.cfg.Hide[0], r.cfg.Hide[1])}, nil)
	if out.code != 0 || out.err != nil {
		t.Errorf("%+v", out)
	}
}

func TestExecBypass(t *testing.T) {
	p := newPlane(t)
	r := serve(t, p)
	lines := make(chan string, 1)
	seen, held := make(chan struct{}), make(chan int, 1)
	go func() {
		<-lines
		held <- p.count()
		close(seen)
	}()
	out := execute(t, ExecConfig{
		Socket: r.cfg.Socket, Project: "p", Runtime: spec.RuntimeEdge, Command: []string{"sh", "-c", "readlink /proc/self/ns/net; read x; exit 3"},
		Stdin: reader(t, seen),
	}, lines)
	if out.code != 3 || out.err != nil || out.messages != "" {
		t.Errorf("%+v; want code 3 and no word", out)
	}
	mine, err := os.Readlink("/proc/self/ns/net")
	if err != nil || strings.TrimSpace(out.output) != mine {
		t.Errorf("the command ran in %q, want %q, untouched", out.output, mine)
	}
	if during := <-held; during != 1 || p.count() != 0 {
		t.Errorf("attachments %d while it ran, %d after; want 1 and 0", during, p.count())
	}
}

// reader is a standard input that ends when the channel is closed.
func reader(t *testing.T, end <-chan struct{}) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-end; _ = w.Close() }()
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// When the sidecar ends, the command's network ends, and exec says so.
func TestExecFailsClosed(t *testing.T) {
	r := serve(t, newPlane(t))
	lines := make(chan string, 1)
	go func() {
		<-lines
		r.stop()
	}()
	said := make(sayings, 1)
	told := make(chan struct{})
	go func() {
		if word := <-said; !strings.Contains(word, "no network any more") {
			t.Errorf("exec says %q", word)
		}
		close(told)
	}()
	out := execute(t, ExecConfig{
		Socket: r.cfg.Socket, Project: "p", Runtime: "go", Command: self(t, "await-end"),
		Stdin: reader(t, told), Messages: said,
	}, lines)
	if out.code != 0 || out.err != nil {
		t.Errorf("%+v", out)
	}
}

// sayings is a writer whose lines are received.
type sayings chan string

func (s sayings) Write(b []byte) (int, error) {
	s <- string(b)
	return len(b), nil
}

// An exec that is killed leaves nothing behind.
func TestExecKilled(t *testing.T) {
	if os.Getenv("SALLYPORT_TEST_SOCKET") != "" {
		code, err := Exec(ExecConfig{
			Socket: os.Getenv("SALLYPORT_TEST_SOCKET"), Project: "p", Environment: "production", Kind: spec.KindFunction, Runtime: "go",
			Command: self(t, "await-end"),
		})
		t.Fatalf("ended by itself: %d, %v", code, err)
	}
	p := newPlane(t)
	r := serve(t, p)
	cmd := exec.Command(self(t)[0], "-test.run=^TestExecKilled$")
	cmd.Env = append(os.Environ(), "SALLYPORT_TEST_SOCKET="+r.cfg.Socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, _ := out.Read(b)
	if !strings.HasPrefix(string(b[:n]), "running") {
		rest, _ := io.ReadAll(out)
		_ = cmd.Wait()
		if strings.Contains(string(rest), "namespaces") {
			netlab.NotRun(t, string(rest))
		}
		t.Fatalf("it said %s%s", b[:n], rest)
	}
	if p.count() != 1 {
		t.Errorf("%d attachments while it runs", p.count())
	}
	_ = cmd.Process.Kill()
	_, _ = io.ReadAll(out) // ends when the command has ended, too
	_ = cmd.Wait()
	eventually(t, "it is detached", func() bool { return p.count() == 0 })
}

func TestExecFailures(t *testing.T) {
	p := newPlane(t)
	r := serve(t, p)
	good := ExecConfig{Socket: r.cfg.Socket, Project: "p", Runtime: "go", Command: []string{"true"}}
	for name, c := range map[string]struct {
		spoil func(*ExecConfig)
		code  int
		word  string
	}{
		"no command":      {func(c *ExecConfig) { c.Command = nil }, 125, "behind --"},
		"both":            {func(c *ExecConfig) { c.Proxy, c.Interface = true, confine.Veth }, 125, "take the place"},
		"no sidecar":      {func(c *ExecConfig) { c.Socket = "/nowhere/sidecar.sock" }, 125, "run --config FILE"},
		"unknown project": {func(c *ExecConfig) { c.Project = "x" }, 125, api.CodeNotFound},
		"not found":       {func(c *ExecConfig) { c.Command = []string{"no-such-command"} }, 127, "no-such-command"},
		"not executable":  {func(c *ExecConfig) { c.Command = []string{"/etc/passwd"} }, 126, "/etc/passwd"},
	} {
		cfg := good
		c.spoil(&cfg)
		out := execute(t, cfg, nil)
		if out.code != c.code || out.err == nil || !strings.Contains(out.err.Error(), c.word) {
			t.Errorf("%s: %+v; want %d and %q", name, out, c.code, c.word)
		}
		if n := p.count(); n != 0 {
			t.Errorf("%s: %d attachments are left", name, n)
		}
	}
}
