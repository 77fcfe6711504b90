package tundev

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Enter(leakChecked{m})) }

// leakChecked fails the package if a goroutine outlives its tests.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	// Enter's parent process waits for signals; that is no test's goroutine.
	if err := goleak.Find(goleak.IgnoreAnyFunction("os/signal.loop")); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

const (
	testMTU = 1400
	offset  = 16 // as wireguard-go reads and writes
)

var (
	kernelSide = netip.MustParseAddr("10.3.0.1")
	farSide    = netip.MustParseAddr("10.3.0.2")
)

// bench is a device and the kernel's end of it.
type bench struct {
	dev *Device
	ns  *netlab.Namespace
	// link is the interface whose packets the device reads.
	link string
}

// media runs one body on a TUN and on a packet socket.
func media(t *testing.T, body func(t *testing.T, b *bench)) {
	t.Run("tun", func(t *testing.T) { body(t, newTUNBench(t)) })
	t.Run("packet", func(t *testing.T) { body(t, newPacketBench(t)) })
}

func (b *bench) own(t *testing.T, dev *Device) {
	b.dev = dev
	t.Cleanup(func() {
		if err := dev.Close(); err != nil {
			t.Errorf("close device: %v", err)
		}
	})
}

func newTUNBench(t *testing.T) *bench {
	lab := netlab.Test(t)
	b := &bench{ns: lab.Namespace("sandbox"), link: "tun7"}
	var f *os.File
	err := b.ns.Do(func() (err error) {
		f, err = CreateTUN(b.link, false)
		return err
	})
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		netlab.NotRun(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	dev, err := FromTUN(f, Config{MTU: testMTU})
	if err != nil {
		t.Fatal(err)
	}
	b.own(t, dev)
	b.plan(t)
	return b
}

func newPacketBench(t *testing.T) *bench {
	lab := netlab.Test(t)
	b := &bench{ns: lab.Namespace("sandbox"), link: "eth0"}
	holder := lab.Namespace("holder")
	lab.Connect(netlab.End{Namespace: b.ns, Link: b.link, NoOffload: true}, netlab.End{Namespace: holder, Link: "far"})
	b.own(t, openPacketDevice(t, holder, b))
	b.plan(t)
	return b
}

func openPacketDevice(t *testing.T, holder *netlab.Namespace, b *bench) *Device {
	t.Helper()
	var f *os.File
	err := holder.Do(func() (err error) {
		f, err = OpenPacket("far")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	peer, err := b.ns.Host().HardwareAddr(b.link)
	if err != nil {
		t.Fatal(err)
	}
	local, err := holder.Host().HardwareAddr("far")
	if err != nil {
		t.Fatal(err)
	}
	dev, err := FromPacket(f, Config{MTU: testMTU, LocalMAC: local, PeerMAC: peer})
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// plan gives the kernel's end its address and its route.
func (b *bench) plan(t *testing.T) {
	t.Helper()
	err := b.ns.Host().Apply(hostnet.Plan{
		Links:     []hostnet.Link{{Name: b.link, MTU: 1500, NoARP: true}},
		Addresses: []hostnet.Address{{Link: b.link, Prefix: netip.PrefixFrom(kernelSide, 32)}},
		Routes:    []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Link: b.link}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// datagram returns an IPv4 UDP packet from the far side to the kernel's,
// with offset bytes in front.
func datagram(port uint16, payload string) []byte {
	b := make([]byte, offset+28+len(payload))
	ip := b[offset:]
	copy(ip, []byte{0x45, 0, byte((28 + len(payload)) >> 8), byte(28 + len(payload)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0})
	copy(ip[12:], farSide.AsSlice())
	copy(ip[16:], kernelSide.AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	sum = sum>>16 + sum&0xffff
	sum = ^(sum>>16 + sum&0xffff)
	ip[10], ip[11] = byte(sum>>8), byte(sum)
	copy(ip[20:], []byte{0, 9, byte(port >> 8), byte(port), byte((8 + len(payload)) >> 8), byte(8 + len(payload)), 0, 0}) // no UDP checksum
	copy(ip[28:], payload)
	return b
}

// buffers are what a reader hands in.
type buffers struct {
	bufs  [][]byte
	sizes []int
}

func newBuffers() *buffers {
	b := &buffers{make([][]byte, BatchSize), make([]int, BatchSize)}
	for i := range b.bufs {
		b.bufs[i] = make([]byte, offset+2000)
	}
	return b
}

func (b *buffers) packet(i int) []byte { return b.bufs[i][offset : offset+b.sizes[i]] }

// socket is a UDP socket of the kernel's end towards the far side.
func (b *bench) socket(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := b.ns.DialFrom(t.Context(), &net.UDPAddr{IP: kernelSide.AsSlice(), Port: 53}, "udp4", netip.AddrPortFrom(farSide, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.UDPConn)
}

func TestReadsWhatTheKernelSends(t *testing.T) {
	media(t, func(t *testing.T, b *bench) {
		socket := b.socket(t)
		const sent = 300
		for i := range sent {
			if _, err := fmt.Fprintf(socket, "number %d", i); err != nil {
				t.Fatal(err)
			}
		}
		in := newBuffers()
		for got := 0; got < sent; {
			n, err := b.dev.Read(in.bufs, in.sizes, offset)
			if err != nil {
				t.Fatal(err)
			}
			// All were sent before the first Read, so every batch but the last is full.
			if want := min(BatchSize, sent-got); n != want {
				t.Fatalf("read %d packets after %d, want %d", n, got, want)
			}
			for i := range n {
				p := in.packet(i)
				if want := fmt.Sprintf("number %d", got); string(p[28:]) != want || netip.AddrFrom4([4]byte(p[16:])) != farSide {
					t.Fatalf("packet %d: %q", got, p)
				}
				got++
			}
		}
		stats := b.dev.Stats()
		if stats.Read != sent || stats.ReadBytes != 10*36+90*37+200*38 || stats.NotIPv4 != 0 || stats.TooBig != 0 {
			t.Errorf("stats: %+v", stats)
		}
	})
}

func TestWritesWhatTheKernelReceives(t *testing.T) {
	media(t, func(t *testing.T, b *bench) {
		socket := b.socket(t)
		six := make([]byte, offset+40)
		six[offset] = 0x60
		n, err := b.dev.Write([][]byte{
			datagram(53, "one"), {}, make([]byte, offset), six, datagram(53, strings.Repeat("x", testMTU)), datagram(53, "two"),
		}, offset)
		if n != 2 || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
		for _, want := range []string{"one", "two"} {
			got := make([]byte, 64)
			k, err := socket.Read(got)
			if err != nil || string(got[:k]) != want {
				t.Errorf("got %q, %v, want %q", got[:k], err, want)
			}
		}
		want := Stats{Written: 2, WrittenBytes: 62, NotIPv4: 1, TooBig: 1}
		if got := b.dev.Stats(); got != want {
			t.Errorf("stats: %+v, want %+v", got, want)
		}
	})
}

// dialSix opens a socket of IPv6 on the link, whose own address may not be there
// yet.
func dialSix(t *testing.T, b *bench) net.Conn {
	t.Helper()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-again.C {
		six, err := b.ns.Dial(t.Context(), "udp6", "[ff02::1%"+b.link+"]:9")
		if err == nil {
			return six
		}
		if !errors.Is(err, unix.EADDRNOTAVAIL) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestDropsIPv6AndLongPackets(t *testing.T) {
	media(t, func(t *testing.T, b *bench) {
		// Router solicitations and the like come by themselves with IPv6.
		b.ns.Sysctl("net.ipv6.conf.all.disable_ipv6", "0")
		socket := b.socket(t)
		for _, size := range []int{testMTU - 27, 1, testMTU - 28} { // one byte too many, and two that fit
			if _, err := socket.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
		}
		six := dialSix(t, b)
		defer func() { _ = six.Close() }()
		in := newBuffers()
		for want := []int{29, testMTU}; len(want) > 0; {
			n, err := b.dev.Read(in.bufs, in.sizes, offset)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if in.sizes[i] != want[0] {
					t.Fatalf("packet of %d bytes, want %d", in.sizes[i], want[0])
				}
				want = want[1:]
			}
		}
		if _, err := six.Write([]byte("leak")); err != nil {
			t.Fatal(err)
		}
		if _, err := socket.Write([]byte("last")); err != nil {
			t.Fatal(err)
		}
		if n, err := b.dev.Read(in.bufs, in.sizes, offset); n != 1 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
		if stats := b.dev.Stats(); stats.Read != 3 || stats.TooBig != 1 || stats.NotIPv4 == 0 {
			t.Errorf("stats: %+v", stats)
		}
	})
}

func TestCloseWakesRead(t *testing.T) {
	media(t, func(t *testing.T, b *bench) {
		result := make(chan error)
		go func() {
			in := newBuffers()
			_, err := b.dev.Read(in.bufs, in.sizes, offset)
			result <- err
		}()
		if event := <-b.dev.Events(); event != tun.EventUp {
			t.Errorf("first event: %v", event)
		}
		if err := b.dev.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, os.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		if _, open := <-b.dev.Events(); open {
			t.Error("events still open")
		}
		in := newBuffers()
		if n, err := b.dev.Read(in.bufs, in.sizes, offset); n != 0 || !errors.Is(err, os.ErrClosed) {
			t.Errorf("read after close: %d, %v", n, err)
		}
		if n, err := b.dev.Write([][]byte{datagram(53, "late")}, offset); n != 0 || !errors.Is(err, os.ErrClosed) {
			t.Errorf("write after close: %d, %v", n, err)
		}
		if _, err := b.dev.Name(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("name after close: %v", err)
		}
		if err := b.dev.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	})
}

func TestDescribesItself(t *testing.T) {
	media(t, func(t *testing.T, b *bench) {
		want := b.link
		if want == "eth0" {
			want = "far" // the device sits at the other end of the pair
		}
		if name, err := b.dev.Name(); name != want || err != nil {
			t.Errorf("name %q, %v, want %q", name, err, want)
		}
		if mtu, err := b.dev.MTU(); mtu != testMTU || err != nil {
			t.Errorf("MTU %d, %v", mtu, err)
		}
		if b.dev.BatchSize() != BatchSize || b.dev.File() == nil {
			t.Error("no batch size or file")
		}
	})
}

func TestReadAndWriteAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has pools forget what they hold")
	}
	media(t, func(t *testing.T, b *bench) {
		socket := b.socket(t)
		in := newBuffers()
		out := [][]byte{datagram(53, "ping")}
		reply := make([]byte, 64)
		allocs := testing.AllocsPerRun(100, func() {
			if _, err := socket.Write(reply[:32]); err != nil {
				t.Fatal(err)
			}
			if n, err := b.dev.Read(in.bufs, in.sizes, offset); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			if n, err := b.dev.Write(out, offset); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			if _, err := socket.Read(reply); err != nil {
				t.Fatal(err)
			}
		})
		if allocs > 0 {
			t.Errorf("%v allocations", allocs)
		}
	})
}

// TestPassesToAnotherProcess sends the descriptor over a Unix socket, as the
// opener in the sandbox's namespace does, once as it is and once made blocking.
func TestPassesToAnotherProcess(t *testing.T) {
	for _, nonblock := range []bool{true, false} {
		t.Run(fmt.Sprintf("nonblock=%t", nonblock), func(t *testing.T) {
			b := newPacketBench(t)
			passed := pass(t, b.dev.File(), nonblock)
			dev, err := FromPacket(passed, Config{MTU: testMTU, LocalMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, PeerMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}})
			if err != nil {
				t.Fatal(err)
			}
			// The opener keeps none.
			if err := b.dev.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := b.socket(t).Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			in := newBuffers()
			if n, err := dev.Read(in.bufs, in.sizes, offset); n != 1 || err != nil || string(in.packet(0)[28:]) != "hello" {
				t.Fatalf("read %d, %v", n, err)
			}
			result := make(chan error)
			go func() {
				_, err := dev.Read(in.bufs, in.sizes, offset)
				result <- err
			}()
			if err := dev.Close(); err != nil {
				t.Error(err)
			}
			if err := <-result; !errors.Is(err, os.ErrClosed) {
				t.Errorf("read: %v", err)
			}
		})
	}
}

// pass sends f through a socket and returns what arrives.
func pass(t *testing.T, f *os.File, nonblock bool) *os.File {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(pair[0]), unix.Close(pair[1]) }()
	err = control(f, func(fd int) error { return unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fd), nil, 0) })
	if err != nil {
		t.Fatal(err)
	}
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[1], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fds[0], nonblock); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "passed")
}

func TestPacketSurvivesLinkDown(t *testing.T) {
	b := newPacketBench(t)
	type result struct {
		text string
		err  error
	}
	results := make(chan result)
	go func() {
		in := newBuffers()
		for {
			n, err := b.dev.Read(in.bufs, in.sizes, offset)
			for i := range n {
				results <- result{text: string(in.packet(i)[28:])}
			}
			if err != nil {
				results <- result{err: err}
				return
			}
		}
	}()
	far := b.dev
	for _, up := range []bool{false, true} {
		if err := b.ns.Host().SetUp(b.link, up); err != nil {
			t.Fatal(err)
		}
	}
	b.plan(t)
	if _, err := b.socket(t).Write([]byte("after")); err != nil {
		t.Fatal(err)
	}
	if r := <-results; r.text != "after" || r.err != nil {
		t.Fatalf("got %+v", r)
	}
	// With the interface gone the device is of no more use.
	if err := b.ns.Host().Delete(b.link); err != nil {
		t.Fatal(err)
	}
	if r := <-results; !errors.Is(r.err, unix.ENETDOWN) || errors.Is(r.err, os.ErrClosed) {
		t.Errorf("after the interface went: %+v", r)
	}
	if n, err := far.Write([][]byte{datagram(53, "gone")}, offset); n != 0 || err == nil || far.Stats().WriteErrors != 1 {
		t.Errorf("write to an interface that is gone: %d, %v, %+v", n, err, far.Stats())
	}
}

func TestWriteToTUNThatIsDown(t *testing.T) {
	b := newTUNBench(t)
	if err := b.ns.Host().SetUp(b.link, false); err != nil {
		t.Fatal(err)
	}
	n, err := b.dev.Write([][]byte{datagram(53, "one"), datagram(53, "two")}, offset)
	if n != 0 || !errors.Is(err, unix.EIO) || b.dev.Stats().WriteErrors != 2 {
		t.Errorf("wrote %d, %v, %+v", n, err, b.dev.Stats())
	}
}
