package confine

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
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/internal/tundev"
	"github.com/sallyport-net/sallyport/sidecar/handover"
)

// inside is the first argument with which this program is the command in a sandbox.
const inside = "inside-sandbox"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == Subcommand {
		os.Exit(Enter(os.Args[3:]))
	}
	if len(os.Args) > 2 && os.Args[1] == inside {
		os.Exit(tenant(os.Args[2], os.Args[3:]))
	}
	os.Exit(m.Run())
}

var (
	inner = netip.MustParseAddr("10.1.2.3")
	dns   = []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")}
)

// far plays the sidecar: it takes the interface over and answers every UDP
// datagram with its own payload.
type far struct {
	conn    *net.UnixConn
	message handover.Message
	refuse  string
	dev     *tundev.Device
	seen    atomic.Uint64 // packets from the sandbox
	foreign atomic.Uint64 // of them, those with another source
	done    chan error
}

// newFar returns the far side and the near end of the connection to it.
func newFar(t *testing.T, refuse string) (*far, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	f := &far{conn: ends[0], refuse: refuse, done: make(chan error, 1)}
	go func() { f.done <- f.serve() }()
	return f, ends[1]
}

func (f *far) serve() error {
	m, file, err := handover.Receive(f.conn)
	if err != nil {
		return err
	}
	f.message = m
	if f.refuse != "" {
		_ = file.Close()
		return handover.Answer(f.conn, handover.Reply{Error: f.refuse})
	}
	cfg := tundev.Config{MTU: 1420, LocalMAC: net.HardwareAddr(m.LocalMAC), PeerMAC: net.HardwareAddr(m.PeerMAC)}
	if m.Type == handover.TUN {
		f.dev, err = tundev.FromTUN(file, cfg)
	} else {
		f.dev, err = tundev.FromPacket(file, cfg)
	}
	if err != nil {
		return err
	}
	defer f.dev.Close()
	go f.echo()
	if err := handover.Answer(f.conn, handover.Reply{Ready: true}); err != nil {
		return err
	}
	// As the sidecar's, the interface lives as long as the connection.
	_, _ = f.conn.Read(make([]byte, 1))
	return nil
}

func (f *far) echo() {
	bufs, sizes := make([][]byte, 16), make([]int, 16)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	for {
		n, err := f.dev.Read(bufs, sizes, 0)
		if err != nil {
			return
		}
		for i := range n {
			var p packet.Packet
			f.seen.Add(1)
			if packet.Parse(&p, bufs[i][:sizes[i]]) != packet.Pass || p.Kind != packet.KindUDP {
				continue
			}
			if p.Src != inner {
				f.foreign.Add(1)
			}
			out := make([]byte, 2048)
			size := packet.BuildUDP(out, netip.AddrPortFrom(p.Dst, p.DstPort), netip.AddrPortFrom(p.Src, p.SrcPort), p.B[p.L4+8:], 64, 1)
			_, _ = f.dev.Write([][]byte{out[:size]}, 0)
		}
	}
}

// result is what a command in a sandbox did.
type result struct {
	code   int
	err    error
	output string
}

// sandbox runs a command with a far side that works.
func sandbox(t *testing.T, cfg Config) (result, *far) {
	t.Helper()
	f, near := newFar(t, "")
	cfg.Sidecar = near
	r := runSandbox(t, cfg)
	_ = near.Close()
	if err := <-f.done; err != nil && r.err == nil {
		t.Errorf("far side: %v", err)
	}
	return r, f
}

func runSandbox(t *testing.T, cfg Config) result {
	t.Helper()
	cfg.Inner, cfg.DNS, cfg.MTU = inner, dns, 1420
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Stdout, cfg.Stderr = w, w
	output := make(chan string)
	go func() {
		b, _ := io.ReadAll(r)
		output <- string(b)
	}()
	code, err := Run(cfg)
	_ = w.Close()
	res := result{code: code, err: err, output: <-output}
	if err != nil && strings.Contains(err.Error(), "namespaces") {
		netlab.NotRun(t, err.Error())
	}
	return res
}

// forms are the interfaces that this machine can make.
func forms(t *testing.T, f func(t *testing.T, i Interface)) {
	for _, i := range []Interface{TUN, Veth} {
		t.Run(string(i), func(t *testing.T) {
			if i == TUN {
				if file, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
					netlab.NotRun(t, err.Error())
				} else {
					_ = file.Close()
				}
			}
			f(t, i)
		})
	}
}

// self is the command that is this program, playing a tenant.
func self(t *testing.T, args ...string) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{exe, inside}, args...)
}

func TestExitCodes(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	forms(t, func(t *testing.T, i Interface) {
		for name, c := range map[string]struct {
			command []string
			code    int
			own     bool // the code is the command's
		}{
			"success":        {[]string{"true"}, 0, true},
			"own code":       {[]string{"sh", "-c", "exit 7"}, 7, true},
			"signal":         {[]string{"sh", "-c", "kill -TERM $$"}, 143, true},
			"not found":      {[]string{"no-such-command"}, 127, false},
			"no such path":   {[]string{"/no/such/command"}, 127, false},
			"not executable": {[]string{plain}, 126, false},
		} {
			t.Run(name, func(t *testing.T) {
				r, _ := sandbox(t, Config{Command: c.command, Interface: i})
				if r.code != c.code || (r.err == nil) != c.own {
					t.Errorf("exit code %d, error %v, output %q; want %d", r.code, r.err, r.output, c.code)
				}
			})
		}
	})
}

func TestRefusedByTheSidecar(t *testing.T) {
	_, near := newFar(t, "the tunnel is not ready")
	r := runSandbox(t, Config{Command: []string{"true"}, Sidecar: near})
	if r.code != ExitFailed || r.err == nil || !strings.Contains(r.err.Error(), "the tunnel is not ready") {
		t.Errorf("code %d, error %v; want 125 and the sidecar's reason", r.code, r.err)
	}
}

func TestRefusedConfigs(t *testing.T) {
	_, near := newFar(t, "")
	good := Config{Command: []string{"true"}, Sidecar: near, Inner: inner, DNS: dns, MTU: 1420}
	for name, spoil := range map[string]func(*Config){
		"no command": func(c *Config) { c.Command = nil },
		"no sidecar": func(c *Config) { c.Sidecar = nil },
		"IPv6":       func(c *Config) { c.Inner = netip.IPv6Loopback() },
		"MTU":        func(c *Config) { c.MTU = 100 },
		"interface":  func(c *Config) { c.Interface = "tap" },
		"hide all":   func(c *Config) { c.Hide = []string{"/tmp/.."} },
		"relative":   func(c *Config) { c.Hide = []string{"tmp"} },
	} {
		cfg := good
		spoil(&cfg)
		if code, err := Run(cfg); err == nil || code != ExitFailed {
			t.Errorf("%s: code %d, error %v; want 125 and an error", name, code, err)
		}
	}
}

// What the tenant sees of its sandbox, from inside.
func TestInside(t *testing.T) {
	forms(t, func(t *testing.T, i Interface) {
		secret := t.TempDir()
		if err := os.WriteFile(filepath.Join(secret, "socket"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, what := range []string{"interfaces", "routes", "capabilities", "resolv", "traffic", "ipv6", "readonly", "escape"} {
			t.Run(what, func(t *testing.T) {
				r, f := sandbox(t, Config{Command: self(t, what, secret, strconv.Itoa(os.Getuid())), Interface: i, Hide: []string{secret}})
				if r.code != 0 || r.err != nil {
					t.Errorf("code %d, error %v:\n%s", r.code, r.err, r.output)
				}
				if n := f.foreign.Load(); n != 0 {
					t.Errorf("%d packets with a foreign source", n)
				}
				if what == "traffic" && f.seen.Load() == 0 {
					t.Error("no packet left by the interface")
				}
			})
		}
	})
}

// The tenant runs as an ordinary user, without any right on /dev/net/tun.
func TestAsNobody(t *testing.T) {
	if raceDetector {
		t.Skip("repeats what other tests do, at a walking pace")
	}
	if os.Getuid() != 0 {
		netlab.NotRun(t, "only root can become another user")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.MkdirTemp("", "confine")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	binary, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(folder, "confine.test")
	if err := errors.Join(os.WriteFile(program, binary, 0o755), os.Chmod(folder, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.v", "-test.run=^(TestExitCodes|TestInside|TestSignals|TestBindsLife)$")
	cmd.Dir = folder
	// The list of what was not run is root's; here root has run it all.
	cmd.Env = append(os.Environ(), "TMPDIR=/tmp", "HOME=/tmp", "SALLYPORT_NOTRUN=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
	if !bytes.Contains(out, []byte("--- PASS: TestInside/veth")) {
		t.Errorf("the veth path was not tested as nobody:\n%s", out)
	}
}

// The sandbox is made inside another user namespace, as in an unprivileged container.
func TestInAnotherUserNamespace(t *testing.T) {
	if raceDetector {
		t.Skip("repeats what other tests do, at a walking pace")
	}
	cmd := exec.Command(self(t)[0], "-test.v", "-test.run=^(TestExitCodes|TestInside|TestBindsLife)$")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		netlab.NotRun(t, err.Error())
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestInside/veth")) {
		t.Errorf("in a user namespace: %v\n%s", err, out)
	}
}

func TestSignals(t *testing.T) {
	_, near := newFar(t, "")
	// The command says by its standard input, which is the writing end of a pipe
	// here, that it is ready for the signal.
	ready, stdin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	go func() {
		if _, err := ready.Read(make([]byte, 1)); err == nil {
			_ = syscall.Kill(os.Getpid(), syscall.SIGUSR1)
		}
	}()
	r := runSandbox(t, Config{Command: self(t, "signal"), Sidecar: near, Stdin: stdin, Interface: Veth})
	_ = stdin.Close()
	if r.code != 42 || r.err != nil {
		t.Errorf("code %d, error %v, output %q; want 42", r.code, r.err, r.output)
	}
}

// When the far side ends, the interface is gone and nothing else is there.
func TestFailsClosed(t *testing.T) {
	forms(t, func(t *testing.T, i Interface) {
		f, near := newFar(t, "")
		started := make(chan struct{})
		go func() {
			<-started
			_ = f.conn.CloseRead() // the far side ends, and its interface with it
		}()
		r := runSandbox(t, Config{Command: self(t, "closed"), Sidecar: near, Started: started, Interface: i})
		if r.code != 0 || r.err != nil {
			t.Errorf("code %d, error %v:\n%s", r.code, r.err, r.output)
		}
	})
}

// A parent that is killed takes the command with it.
func TestBindsLife(t *testing.T) {
	cmd := exec.Command(self(t)[0], inside, "parent")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 5)
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "ready" {
		_ = cmd.Wait()
		if cmd.ProcessState.ExitCode() == 77 {
			netlab.NotRun(t, "no user namespaces")
		}
		t.Fatalf("the command said %q, %v", line, err)
	}
	_ = cmd.Process.Kill()
	// The command holds the pipe's other end as long as it lives.
	ended := make(chan error, 1)
	go func() { _, err := io.ReadAll(out); ended <- err }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the command outlived its parent by 10 s")
	}
	_ = cmd.Wait()
}

// A descriptor that this process inherited does not reach the command.
func TestDescriptorsStayOutside(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 50) // without close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	r, _ := sandbox(t, Config{Command: self(t, "descriptors"), Interface: Veth})
	if r.code != 0 || r.err != nil {
		t.Errorf("code %d, error %v:\n%s", r.code, r.err, r.output)
	}
}

func TestRunBare(t *testing.T) {
	for want, command := range map[int][]string{
		0: {"true"}, 5: {"sh", "-c", "exit 5"}, 137: {"sh", "-c", "kill -9 $$"},
		127: {"no-such-command"}, 126: {"/etc/passwd"}, 125: nil,
	} {
		started := make(chan struct{})
		code, err := RunBare(Config{Command: command, Started: started})
		if code != want {
			t.Errorf("%q: code %d, error %v; want %d", command, code, err, want)
		}
		var failure *Failure
		if errors.As(err, &failure) && failure.Code != want {
			t.Errorf("%q: failure's code %d, want %d", command, failure.Code, want)
		}
	}
}

func TestRunBareEnvironment(t *testing.T) {
	t.Setenv("SALLYPORT_TEST_MINE", "1")
	command := []string{"sh", "-c", `exit "${SALLYPORT_TEST_MINE:-0}${SALLYPORT_TEST_GIVEN:-0}"`}
	for want, environment := range map[int][]string{10: nil, 2: {"SALLYPORT_TEST_GIVEN=2", "PATH=" + os.Getenv("PATH")}} {
		if code, err := RunBare(Config{Command: command, Environment: environment}); code != want || err != nil {
			t.Errorf("with %q: code %d, %v; want %d", environment, code, err, want)
		}
	}
}

func TestExplainStart(t *testing.T) {
	for _, c := range []struct {
		err  error
		word string
	}{
		{unix.EPERM, "kernel.apparmor_restrict_unprivileged_userns"},
		{unix.ENOSPC, "user.max_user_namespaces"},
		{unix.EINVAL, "CONFIG_USER_NS"},
		{unix.EIO, "input/output error"},
	} {
		f := explainStart(fmt.Errorf("fork/exec: %w", c.err))
		proxied := strings.Contains(f.Error(), "exec --proxy")
		if f.Code != ExitFailed || !strings.Contains(f.Error(), c.word) || !errors.Is(f, c.err) || proxied == (c.err == unix.EIO) {
			t.Errorf("%v: %v; want code 125, %q and what is left", c.err, f, c.word)
		}
	}
}
