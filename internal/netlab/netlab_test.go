package netlab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Enter(leakChecked{m})) }

// leakChecked fails the package if a goroutine outlives its tests.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(goleak.IgnoreAnyFunction("os/signal.loop")); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

var (
	left   = netip.MustParseAddr("10.1.0.2")
	right  = netip.MustParseAddr("203.0.113.2")
	middle = [2]netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("203.0.113.1")}
)

// line is a lab of three namespaces in a row, the middle one a router.
type line struct {
	lab                 *netlab.Lab
	left, middle, right *netlab.Namespace
	leftLink, rightLink *netlab.Link
}

func newLine(t *testing.T) *line {
	lab := netlab.Test(t)
	l := &line{lab: lab, left: lab.Namespace("left"), middle: lab.Namespace("middle"), right: lab.Namespace("right")}
	l.leftLink = lab.Connect(
		netlab.End{Namespace: l.left, Link: "eth0", Address: netip.PrefixFrom(left, 24)},
		netlab.End{Namespace: l.middle, Link: "left", Address: netip.PrefixFrom(middle[0], 24)})
	l.rightLink = lab.Connect(
		netlab.End{Namespace: l.middle, Link: "right", Address: netip.PrefixFrom(middle[1], 24)},
		netlab.End{Namespace: l.right, Link: "eth0", Address: netip.PrefixFrom(right, 24)})
	l.left.Route(hostnet.DefaultIPv4, middle[0])
	l.right.Route(hostnet.DefaultIPv4, middle[1])
	l.middle.Forward(true)
	return l
}

// echo answers every datagram until the test ends.
func echo(t *testing.T, n *netlab.Namespace, address string) {
	t.Helper()
	server, err := n.ListenPacket("udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			k, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(b[:k], from)
		}
	}()
}

// ask sends one datagram and waits for the same back.
func ask(t *testing.T, n *netlab.Namespace, address string, patience time.Duration) error {
	t.Helper()
	c, err := n.Dial(t.Context(), "udp4", address)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	b := make([]byte, 16)
	k, err := c.Read(b)
	if err == nil && string(b[:k]) != "ping" {
		err = fmt.Errorf("got %q", b[:k])
	}
	return err
}

func TestForwardsAndCaptures(t *testing.T) {
	l := newLine(t)
	atRight, err := l.right.Capture("eth0")
	if err != nil {
		t.Fatal(err)
	}
	echo(t, l.right, "203.0.113.2:7")
	if err := ask(t, l.left, "203.0.113.2:7", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	// The answer has arrived, so both packets are in the capture already.
	var in, out int
	for _, p := range atRight.Packets() {
		if p.Proto != syscall.IPPROTO_UDP {
			continue
		}
		switch {
		case !p.Out && p.Src.Addr() == left && p.Dst == netip.AddrPortFrom(right, 7) && p.Length == 32:
			in++
		case p.Out && p.Src == netip.AddrPortFrom(right, 7) && p.Dst.Addr() == left && p.Length == 32:
			out++
		default:
			t.Errorf("unexpected packet: %v", p)
		}
		if age := time.Since(p.At); age < 0 || age > time.Minute {
			t.Errorf("time of %v is %v ago", p, age)
		}
	}
	if in != 1 || out != 1 {
		t.Errorf("%d packets in and %d out, want 1 and 1", in, out)
	}
	sources := atRight.Sources()
	if sources[netlab.Source{Addr: left}] != 1 || sources[netlab.Source{Out: true, Addr: right}] != 1 {
		t.Errorf("sources: %v", sources)
	}
	if err := atRight.Stats().Complete(); err != nil {
		t.Error(err)
	}
}

func TestWithoutForwardingNothingPasses(t *testing.T) {
	l := newLine(t)
	l.middle.Forward(false)
	atMiddle, err := l.middle.Capture("left")
	if err != nil {
		t.Fatal(err)
	}
	atRight, err := l.right.Capture("eth0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.left.Dial(t.Context(), "udp4", "203.0.113.2:7")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	if _, err := atMiddle.Wait(t.Context(), func(p netlab.Packet) bool { return p.Dst.Port() == 7 }); err != nil {
		t.Fatal(err)
	}
	if n := atRight.Sources()[netlab.Source{Addr: left}]; n != 0 {
		t.Errorf("%d packets passed a middle that does not forward", n)
	}
}

func TestWaitSeesLaterPacketsAndEnds(t *testing.T) {
	l := newLine(t)
	capture, err := l.left.Capture("eth0")
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		p   netlab.Packet
		err error
	}
	results := make(chan result)
	go func() {
		p, err := capture.Wait(t.Context(), func(p netlab.Packet) bool { return p.Out && p.TCPFlags&2 != 0 })
		results <- result{p, err}
	}()
	if _, err := l.left.Dial(t.Context(), "tcp4", "203.0.113.2:9"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("dial a closed port: %v, want refused", err)
	}
	r := <-results
	if r.err != nil || r.p.Dst != netip.MustParseAddrPort("203.0.113.2:9") || r.p.Proto != syscall.IPPROTO_TCP {
		t.Errorf("got %v, %v", r.p, r.err)
	}
	expired, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := capture.Wait(expired, func(netlab.Packet) bool { return false }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for what never comes: %v", err)
	}
	go func() {
		_, err := capture.Wait(t.Context(), func(netlab.Packet) bool { return false })
		results <- result{err: err}
	}()
	if err := capture.Close(); err != nil {
		t.Fatal(err)
	}
	if r := <-results; !errors.Is(r.err, os.ErrClosed) {
		t.Errorf("wait on a closed capture: %v", r.err)
	}
}

func TestCaptureLosesNothing(t *testing.T) {
	l := newLine(t)
	capture, err := l.left.Capture("eth0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.left.Dial(t.Context(), "udp4", "203.0.113.2:7")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	const sent = 20_000
	accepted := uint64(0)
	for range sent {
		_, err := c.Write(make([]byte, 1200))
		switch {
		case err == nil || errors.Is(err, syscall.ECONNREFUSED):
			if err != nil {
				continue // the error of an earlier one came instead; this was not sent
			}
			accepted++
		default:
			t.Fatal(err)
		}
	}
	stats := capture.Stats()
	if err := stats.Complete(); err != nil {
		t.Fatal(err)
	}
	if n := capture.Sources()[netlab.Source{Out: true, Addr: left}]; n != accepted {
		t.Errorf("captured %d of %d packets, stats %+v", n, accepted, stats)
	}
}

func TestCutAndMendedLink(t *testing.T) {
	l := newLine(t)
	echo(t, l.right, "203.0.113.2:7")
	capture, err := l.left.Capture("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := ask(t, l.left, "203.0.113.2:7", 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if err := l.leftLink.SetUp(false); err != nil {
			t.Fatal(err)
		}
		if err := ask(t, l.left, "203.0.113.2:7", 20*time.Millisecond); err == nil {
			t.Error("an answer over a cut link")
		}
		if err := l.leftLink.SetUp(true); err != nil {
			t.Fatal(err)
		}
	}
	// The capture outlives the cut.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	answers := 0
	if _, err := capture.Wait(ctx, func(p netlab.Packet) bool {
		if p.Src == netip.AddrPortFrom(right, 7) {
			answers++
		}
		return answers == 3
	}); err != nil {
		t.Error(err)
	}
}

// A blackhole loses packets of its direction only, without an error, and passes
// them again when it is mended.
func TestBlackhole(t *testing.T) {
	const port = 7
	for _, c := range []struct {
		name               string
		hole               func(*line) netlab.Blackhole
		arrives, fromRight bool // what the right end sees of a question, and what comes back
	}{
		{"from the left", func(l *line) netlab.Blackhole { return netlab.Blackhole{Router: l.middle, From: "left"} }, false, false},
		{"to the left", func(l *line) netlab.Blackhole {
			return netlab.Blackhole{Router: l.middle, To: []netip.Prefix{netip.PrefixFrom(left, 32)}}
		}, true, false},
		{"both", func(l *line) netlab.Blackhole {
			return netlab.Blackhole{Router: l.middle, From: "left", To: []netip.Prefix{netip.PrefixFrom(left, 24).Masked()}}
		}, false, false},
		{"elsewhere", func(l *line) netlab.Blackhole {
			return netlab.Blackhole{Router: l.middle, To: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
		}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLine(t)
			hole := c.hole(l)
			if err := l.lab.Err(); err != nil {
				t.Fatal(err)
			}
			atRight, err := l.right.Capture("eth0")
			if err != nil {
				t.Fatal(err)
			}
			echo(t, l.right, netip.AddrPortFrom(right, port).String())
			for range 2 { // it may be repeated
				if err := hole.Set(true); err != nil {
					t.Fatal(err)
				}
			}
			// Nothing comes back to wait for, so the asker waits in vain for a while.
			err = ask(t, l.left, netip.AddrPortFrom(right, port).String(), 50*time.Millisecond)
			if c.fromRight != (err == nil) || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("answered: %v, want %t, or silence", err, c.fromRight)
			}
			if n := atRight.Sources()[netlab.Source{Addr: left}]; (n > 0) != c.arrives {
				t.Errorf("%d packets crossed, want some: %t", n, c.arrives)
			}
			for range 2 {
				if err := hole.Set(false); err != nil {
					t.Fatal(err)
				}
			}
			if err := ask(t, l.left, netip.AddrPortFrom(right, port).String(), 5*time.Second); err != nil {
				t.Errorf("after it was mended: %v", err)
			}
		})
	}
}

func TestProcessesLiveInTheirNamespace(t *testing.T) {
	l := newLine(t)
	cmd := exec.Command("/bin/sh", "-c", "cat /proc/net/dev; readlink /proc/self/ns/net; echo ready; exec sleep 1000")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.middle.Start(cmd); err != nil {
		t.Fatal(err)
	}
	var output []string
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && lines.Text() != "ready" {
		output = append(output, lines.Text())
	}
	text := strings.Join(output, "\n")
	for _, want := range []string{"left:", "right:", "net:["} {
		if !strings.Contains(text, want) {
			t.Errorf("the process does not see %q:\n%s", want, text)
		}
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, own) {
		t.Error("the process is in the test's own namespace")
	}
	if err := l.lab.Close(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("after Close the process ended with %v, want SIGKILL", err)
	}
	if err := l.middle.Start(exec.Command("/bin/true")); err == nil {
		t.Error("a closed lab started a process")
	}
	if err := l.lab.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestRunTellsOutput(t *testing.T) {
	lab := netlab.Test(t)
	n := lab.Namespace("one")
	if err := n.Run(exec.Command("/bin/true")); err != nil {
		t.Error(err)
	}
	if err := n.Run(exec.Command("/bin/sh", "-c", "echo the reason >&2; exit 3")); err == nil || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("got %v", err)
	}
}

func TestBuildKeepsTheFirstError(t *testing.T) {
	netlab.Require(t)
	lab := netlab.New()
	n := lab.Namespace("one")
	n.Address("absent0", netip.MustParsePrefix("10.0.0.1/24"))
	first := lab.Err()
	if first == nil || !strings.Contains(first.Error(), "absent0") {
		t.Fatalf("got %v", first)
	}
	later := lab.Namespace("two")
	later.Forward(true)
	lab.Connect(netlab.End{Namespace: n, Link: "a"}, netlab.End{Namespace: later, Link: "b"})
	if err := later.Do(func() error { return nil }); err != first {
		t.Errorf("Do in a failed lab: %v", err)
	}
	if _, err := later.Capture("b"); !errors.Is(err, first) {
		t.Errorf("Capture in a failed lab: %v", err)
	}
	if lab.Err() != first {
		t.Errorf("first error replaced by %v", lab.Err())
	}
	if err := lab.Close(); err != nil {
		t.Error(err)
	}
}

func TestDialRefusesNames(t *testing.T) {
	lab := netlab.Test(t)
	if _, err := lab.Namespace("one").Dial(t.Context(), "tcp", "localhost:80"); err == nil || !strings.Contains(err.Error(), "names are not resolved") {
		t.Errorf("got %v", err)
	}
}

func TestListenIsInside(t *testing.T) {
	lab := netlab.Test(t)
	n := lab.Namespace("one")
	listener, err := n.Listen("tcp4", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	var dialer net.Dialer
	if c, err := dialer.DialContext(t.Context(), "tcp4", "127.0.0.1:8080"); err == nil {
		_ = c.Close()
		t.Skip("something outside listens on port 8080, too")
	}
	c, err := n.DialFrom(t.Context(), &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}, "tcp4", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if got := c.LocalAddr().(*net.TCPAddr).IP.String(); got != "127.0.0.9" {
		t.Errorf("dialled from %s", got)
	}
}

// reexecVariable makes TestHelperReexec act as a program that re-executes itself.
const reexecVariable = "SALLYPORT_TEST_REEXEC"

func TestReexec(t *testing.T) {
	netlab.Require(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperReexec$")
	cmd.Env = []string{reexecVariable + "=outer"}
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "FORBIDDEN") {
		netlab.NotRun(t, "user namespaces are forbidden here: "+string(out))
	}
	if cmd.ProcessState.ExitCode() != 7 || !strings.Contains(string(out), "uid 0 inside, usable: <nil>") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestHelperReexec is no test: it is the program that TestReexec runs.
func TestHelperReexec(t *testing.T) {
	if os.Getenv(reexecVariable) == "" {
		t.Skip("runs for TestReexec only")
	}
	if netlab.Inside() {
		fmt.Printf("uid %d inside, usable: %v\n", os.Getuid(), netlab.Usable())
		os.Exit(7)
	}
	code, err := netlab.Reexec([]string{"again", "-test.run=^TestHelperReexec$"})
	if err != nil {
		fmt.Println("FORBIDDEN:", err)
	}
	os.Exit(code)
}

// recorder is a TB that notes how a test would have been skipped.
type recorder struct {
	testing.TB
	skipped string
}

func (r *recorder) Skipf(format string, args ...any) { r.skipped = fmt.Sprintf(format, args...) }

func TestNotRunIsLoud(t *testing.T) {
	list := filepath.Join(t.TempDir(), "notrun")
	t.Setenv("SALLYPORT_NOTRUN", list)
	r := &recorder{TB: t}
	netlab.NotRun(r, "no reason")
	netlab.Program(r, "no-such-program-anywhere")
	got, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	want := "NOT RUN: TestNotRunIsLoud: no reason\nNOT RUN: TestNotRunIsLoud: the program no-such-program-anywhere is not installed (make deps)\n"
	if string(got) != want || !strings.Contains(r.skipped, "no-such-program-anywhere") {
		t.Errorf("noted %q, skipped %q", got, r.skipped)
	}
}

func TestLengthOfSoak(t *testing.T) {
	for text, want := range map[string]time.Duration{"": time.Second, "10m": 10 * time.Minute} {
		t.Setenv("SALLYPORT_SOAK", text)
		if got := netlab.Soak(t, time.Second); got != want {
			t.Errorf("with %q: %v, want %v", text, got, want)
		}
	}
}

// TestThreadsAreThereAtOnce: when Namespace returns its thread is there. A check for leaks
// would blame what comes later on what is tested.
func TestThreadsAreThereAtOnce(t *testing.T) {
	lab := netlab.Test(t)
	stacks := make([]byte, 1<<20)
	for n := range 20 {
		lab.Namespace("some")
		threads := 0
		for _, g := range strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			if strings.Contains(g, "startThread") && strings.Contains(g, "locked to thread") {
				threads++
			}
		}
		if threads != n+1 {
			t.Fatalf("of %d namespaces %d have their thread", n+1, threads)
		}
	}
}
