package tunnel

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Enter(m)) }

// world is two binds in namespaces with three links between them: an ordinary one, a
// narrow one, and one whose device neither cuts datagrams nor computes checksums.
type world struct {
	t       *testing.T
	here    *netlab.Namespace
	from    *bind
	receive conn.ReceiveFunc
	memory  *batch

	ordinary, narrow, plain, away *endpoint
}

func newWorld(t *testing.T) *world {
	t.Helper()
	lab := netlab.Test(t)
	w := &world{t: t, here: lab.Namespace("from"), from: new(bind), memory: newBatch(conn.IdealBatchSize, 65535)}
	there := lab.Namespace("to")
	connect := func(link, net string, mtu int, plain bool) {
		end := func(n *netlab.Namespace, host string) netlab.End {
			return netlab.End{Namespace: n, Link: link, Address: netip.MustParsePrefix(net + host + "/24"), MTU: mtu, NoOffload: plain}
		}
		lab.Connect(end(w.here, "1"), end(there, "2"))
	}
	connect("eth0", "192.0.2.", 1500, false)
	connect("eth1", "198.51.100.", 1280, false)
	connect("eth2", "203.0.113.", 1500, true)
	if err := w.here.Do(func() error {
		_, _, err := w.from.Open(0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	to := new(bind)
	if err := there.Do(func() error {
		functions, port, err := to.Open(0)
		if err != nil {
			return err
		}
		w.receive = functions[0]
		for e, address := range map[**endpoint]string{&w.ordinary: "192.0.2.2", &w.narrow: "198.51.100.2", &w.plain: "203.0.113.2", &w.away: "8.8.8.8"} {
			*e = newEndpoint(netip.AddrPortFrom(netip.MustParseAddr(address), port), source{})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(w.from.Close(), to.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) run(name string, args ...string) {
	w.t.Helper()
	if err := w.here.Run(exec.Command(netlab.Program(w.t, name), args...)); err != nil {
		w.t.Fatal(err)
	}
}

// passes sends a batch and sees that all of it arrives.
func (w *world) passes(to *endpoint, sizes ...int) {
	w.t.Helper()
	want := numbered(sizes...)
	if err := w.from.Send(want, to); err != nil {
		w.t.Fatal(err)
	}
	same(w.t, w.memory.take(w.t, w.receive, len(want)), want)
}

// What the kernel refuses to cut is sent one by one, and only there.
func TestKernelRefusesToCut(t *testing.T) {
	w := newWorld(t)
	w.passes(w.ordinary, 1300, 1300, 1300, 200)
	w.passes(w.narrow, 1300, 1300, 1300, 200) // in fragments
	if w.narrow.uncut.Load() == 0 || w.ordinary.uncut.Load() != 0 || !w.from.v4.gso.Load() {
		t.Errorf("cut: narrow way %t, ordinary %t, socket %t; want the last two", w.narrow.uncut.Load() == 0, w.ordinary.uncut.Load() == 0, w.from.v4.gso.Load())
	}
	if n := w.from.counts.read().RefusedRuns; n != 1 {
		t.Errorf("%d runs were refused, want 1", n)
	}
	w.passes(w.narrow, 1300, 1300)
	w.passes(w.ordinary, 1300, 1300)
	if n := w.from.counts.read().RefusedRuns; n != 1 {
		t.Errorf("%d runs were refused, want no more", n)
	}
	// The way there may have become another, which is found out after a while.
	w.narrow.uncut.Store(1)
	w.passes(w.narrow, 1300, 1300)
	w.passes(w.narrow, 1300, 1300)
	if n := w.from.counts.read().RefusedRuns; n != 2 {
		t.Errorf("%d runs were refused, want another try", n)
	}
	// Where the device computes no checksums, kernels before 6.11 refuse by EIO.
	w.passes(w.plain, 1300, 1300, 1300, 200)
	if off := w.from.counts.read().RefusedRuns > 2; off == w.from.v4.gso.Load() {
		t.Errorf("refused %t, and the socket cuts %t", off, w.from.v4.gso.Load())
	}
}

// What is sent together reaches the link together, whatever the size of its datagrams: it is
// not so long that the kernel cuts it before.
func TestRunsReachTheLink(t *testing.T) {
	w := newWorld(t)
	w.passes(w.ordinary, 1300, 1300) // neighbours know each other from here on
	for _, size := range []int{1452, 1424, 1310, 1188, 1092} {
		sizes := make([]int, maxSegments)
		for i := range sizes {
			sizes[i] = size
		}
		before := w.sent("eth0")
		w.passes(w.ordinary, sizes...)
		if n := w.sent("eth0") - before; n > 2 {
			t.Errorf("%d datagrams of %d bytes reached the link as %d packets, want 2 at most", len(sizes), size, n)
		}
	}
	if !w.from.v4.gso.Load() {
		t.Log("NOT RUN: this kernel cuts no datagrams (UDP_SEGMENT)")
	}
}

// sent is how many packets a link has sent; what is cut behind it counts as one.
func (w *world) sent(link string) (packets int) {
	w.t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("cat", "/proc/net/dev")
	cmd.Stdout = &out
	if err := w.here.Run(cmd); err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if name, counts, _ := strings.Cut(strings.TrimSpace(line), ":"); name == link {
			if f := strings.Fields(counts); len(f) > 9 {
				packets, _ = strconv.Atoi(f[9])
				return packets
			}
		}
	}
	w.t.Fatalf("no counts of %s in %q", link, out.String())
	return 0
}

// A datagram that is longer than a link beyond the first takes is cut there: nobody need
// tell, and nobody is asked not to.
func TestCutOnTheWay(t *testing.T) {
	w := newWorld(t)
	if err := w.from.v4.control(func(fd int) error {
		how, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
		if how != unix.IP_PMTUDISC_DONT {
			t.Errorf("path MTU discovery is %d, want none", how)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// A refusal of the socket's driver turns cutting off for the socket, and nothing is lost.
func TestDriverRefusesToCut(t *testing.T) {
	var said bytes.Buffer
	o := newOutgoing(&udpSocket{counts: new(socketCounts), log: slog.New(slog.NewTextHandler(&said, nil))})
	o.socket.gso.Store(true)
	o.bufs, o.to, o.cut = numbered(100, 100, 100), newEndpoint(netip.MustParseAddrPort("192.0.2.1:1"), source{}), true
	o.fill()
	o.fails(unix.EIO)
	if n, _ := o.fill(); n != 3 || o.err != nil || o.at != 0 {
		t.Fatalf("then %d messages, error %v, %d given up; want all three again", n, o.err, o.at)
	}
	if o.learn(); o.socket.gso.Load() || o.mayCut() || o.socket.counts.read().RefusedRuns != 1 {
		t.Error("the socket still cuts")
	}
	if o.socket.cutsNoMore(); strings.Count(said.String(), "one by one") != 1 {
		t.Errorf("not said once: %q", said.String())
	}
	// Whatever is wrong with single datagrams is no fault of cutting.
	o.socket.gso.Store(true)
	o.fails(unix.EIO)
	if !o.socket.gso.Load() || !errors.Is(o.err, unix.EIO) || o.at != 3 || o.socket.counts.lost[lossOther].Load() != 3 {
		t.Errorf("error %v, at %d, counted %+v", o.err, o.at, o.socket.counts.read())
	}
}

// A firewall's refusal and a missing route are errors, counted by what they are, and
// pass.
func TestKernelRefusesToSend(t *testing.T) {
	w := newWorld(t)
	w.run("nft", "add table ip t; add chain ip t out { type filter hook output priority 0; }; add rule ip t out ip daddr 192.0.2.2 drop")
	if err := w.from.Send(numbered(100, 200, 300), w.ordinary); !errors.Is(err, syscall.EPERM) {
		t.Errorf("against the firewall: %v, want EPERM", err)
	}
	if n := lostOf(w.from); n != [losses]uint64{lossRefused: 3} {
		t.Errorf("counted %v", n)
	}
	w.run("nft", "delete table ip t")
	w.passes(w.ordinary, 100, 200, 300)
	if err := w.from.Send(numbered(100, 100), w.away); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("without a route: %v, want ENETUNREACH", err)
	}
	if n := lostOf(w.from); n != [losses]uint64{lossRefused: 3, lossNoRoute: 2} {
		t.Errorf("counted %v", n)
	}
	if err := w.from.SetMark(77); err != nil {
		t.Fatal(err)
	}
	if err := w.from.v4.control(func(fd int) error {
		mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
		if mark != 77 {
			t.Errorf("the mark is %d", mark)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// A sender waits while the socket's buffer is full; nothing is lost or changes its place.
func TestFullSocket(t *testing.T) {
	w := newWorld(t)
	w.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "200mbit", "burst", "10kb", "latency", "10s")
	if err := w.from.v4.control(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 20000)
	}); err != nil {
		t.Fatal(err)
	}
	oneCore(t)
	var sizes []int
	for i := range conn.IdealBatchSize {
		sizes = append(sizes, 1000+i%7)
	}
	for range 3 {
		w.passes(w.ordinary, sizes...)
	}
	if w.from.counts.read().Full == 0 {
		t.Error("no sender had to wait: the test shows nothing")
	}
}

// oneCore has the caller stay on its core until the test ends. What a limited link holds
// leaves it by the core of its timer or by that of a sender, and packets of two cores pass
// each other.
func oneCore(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	var all, one unix.CPUSet
	err := unix.SchedGetaffinity(0, &all)
	for core := 0; err == nil && one.Count() == 0; core++ {
		if all.IsSet(core) {
			one.Set(core)
		}
	}
	if err == nil {
		err = unix.SchedSetaffinity(0, &one)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.SchedSetaffinity(0, &all); err != nil {
			t.Error(err)
		}
	})
}
