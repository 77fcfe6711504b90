package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/sallyport-net/sallyport/internal/mmsg"
)

// loopback opens two binds and returns an endpoint of the second for the first. They
// are closed with the test, and with it the receivers end.
func loopback(tb testing.TB) (from, to *bind, receive conn.ReceiveFunc, peer *endpoint) {
	tb.Helper()
	from, to = new(bind), new(bind)
	for _, b := range []*bind{from, to} {
		functions, port, err := b.Open(0)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { b.Close() })
		receive, peer = functions[0], newEndpoint(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), source{})
	}
	return from, to, receive, peer
}

// batch is the memory that WireGuard hands to a receiver.
type batch struct {
	bufs  [][]byte
	sizes []int
	eps   []conn.Endpoint
}

func newBatch(n, size int) *batch {
	b := &batch{make([][]byte, n), make([]int, n), make([]conn.Endpoint, n)}
	for i := range b.bufs {
		b.bufs[i] = make([]byte, size)
	}
	return b
}

// take receives until there are so many datagrams.
func (b *batch) take(tb testing.TB, receive conn.ReceiveFunc, want int) (got [][]byte) {
	tb.Helper()
	for len(got) < want {
		n, err := receive(b.bufs, b.sizes, b.eps)
		if err != nil {
			tb.Fatal(err)
		}
		for i := range n {
			got = append(got, bytes.Clone(b.bufs[i][:b.sizes[i]]))
		}
	}
	return got
}

// lostOf are a bind's lost datagrams, by reason.
func lostOf(b *bind) (n [losses]uint64) {
	for reason, count := range b.counts.read().Lost {
		for i := range losses {
			if i.String() == reason {
				n[i] = count
			}
		}
	}
	return n
}

// numbered makes datagrams of some sizes, each filled with its number.
func numbered(sizes ...int) [][]byte {
	var all [][]byte
	for i, size := range sizes {
		b := bytes.Repeat([]byte{byte(i)}, size)
		all = append(all, b)
	}
	return all
}

func same(tb testing.TB, got, want [][]byte) {
	tb.Helper()
	if len(got) != len(want) {
		tb.Fatalf("%d datagrams, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			tb.Fatalf("datagram %d has %d bytes of %.1x, want %d of %.1x", i, len(got[i]), got[i], len(want[i]), want[i])
		}
	}
}

// Runs of every size pass the kernel as one and come out as they were, with a shorter
// datagram at their end, whatever the number of buffers they are received into.
func TestRunsOfEverySize(t *testing.T) {
	from, _, receive, peer := loopback(t)
	into := []*batch{newBatch(1, 65535), newBatch(3, 65535), newBatch(conn.IdealBatchSize, 65535)}
	for size := 1; size <= 1500; size++ {
		n := 2 + size%(maxSegments+9) // more than the kernel cuts at once, at times
		sizes := make([]int, n)
		for i := range sizes {
			sizes[i] = size
		}
		sizes[n-1] = 1 + size/2
		want := numbered(sizes...)
		if err := from.Send(want, peer); err != nil {
			t.Fatal(err)
		}
		same(t, into[size%len(into)].take(t, receive, n), want)
	}
	if r := from.counts.read(); from.counts.refusedRuns.Load() != 0 || lostOf(from) != [losses]uint64{} {
		t.Errorf("counted %+v of what went well", r)
	}
	if !from.v4.gso.Load() {
		t.Log("NOT RUN: this kernel cuts no datagrams (UDP_SEGMENT)")
	}
}

// Datagrams that the kernel joined are not divided among two calls, while they fit one.
func TestJoinedStayTogether(t *testing.T) {
	from, _, receive, peer := loopback(t)
	if !from.v4.gso.Load() {
		t.Skip("NOT RUN: this kernel cuts no datagrams (UDP_SEGMENT)")
	}
	sizes := make([]int, 40)
	for i := range sizes {
		sizes[i] = 1452
	}
	want := numbered(sizes...)
	for range 4 {
		if err := from.Send(want, peer); err != nil {
			t.Fatal(err)
		}
	}
	b := newBatch(conn.IdealBatchSize, 65535)
	for _, wanted := range []int{120, 40} {
		n, err := receive(b.bufs, b.sizes, b.eps)
		if err != nil {
			t.Fatal(err)
		}
		if n != wanted {
			t.Errorf("%d datagrams of four times 40, want %d", n, wanted)
		}
	}
}

// The largest datagrams pass, and more of them than a system call takes in.
func TestLargestDatagrams(t *testing.T) {
	from, _, receive, peer := loopback(t)
	var sizes []int
	for range slots + 3 {
		sizes = append(sizes, maxDatagram)
	}
	want := numbered(sizes...)
	if err := from.Send(want, peer); err != nil {
		t.Fatal(err)
	}
	same(t, newBatch(8, 65535).take(t, receive, len(want)), want)
}

// A datagram that the kernel does not take is no obstacle to the others, and counted.
func TestTooBig(t *testing.T) {
	from, _, receive, peer := loopback(t)
	all := numbered(100, maxDatagram+1, 60, 60, 70)
	if err := from.Send(all, peer); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("sent: %v, want EMSGSIZE", err)
	}
	same(t, newBatch(8, 65535).take(t, receive, 4), append(all[:1:1], all[2:]...))
	if r := lostOf(from); r != [losses]uint64{lossTooBig: 1} {
		t.Errorf("counted %+v, want one that was too big", r)
	}
}

// What does not fit the buffer that WireGuard gave is dropped and counted.
func TestBufferTooSmall(t *testing.T) {
	from, to, receive, peer := loopback(t)
	all := numbered(2000, 100)
	if err := from.Send(all, peer); err != nil {
		t.Fatal(err)
	}
	same(t, newBatch(8, 1000).take(t, receive, 1), all[1:])
	if r := lostOf(to); r != [losses]uint64{lossTruncated: 1} {
		t.Errorf("counted %+v, want one that did not fit", r)
	}
}

// A peer whose port is closed answers by ICMP. That ends neither sending nor receiving.
func TestNobodyThere(t *testing.T) {
	from, to, receive, peer := loopback(t)
	_, gone, _, nobody := loopback(t)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 * maxReceiveErrors {
		if err := to.Send(numbered(100, 100), nobody); err != nil {
			t.Fatal(err)
		}
	}
	want := numbered(50)
	if err := from.Send(want, peer); err != nil {
		t.Fatal(err)
	}
	same(t, newBatch(8, 65535).take(t, receive, 1), want)
}

// A deadline and a Close reach a receiver that waits.
func TestReceiverIsWoken(t *testing.T) {
	_, to, receive, _ := loopback(t)
	memory, ended := newBatch(8, 65535), make(chan error, 1)
	if err := to.v4.udp.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	// Below the sieve, which takes deadlines for its own.
	in := newIncoming(to.v4, conn.IdealBatchSize)
	if _, err := in.receive(memory.bufs, memory.sizes, memory.eps); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	if err := to.v4.udp.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := receive(memory.bufs, memory.sizes, memory.eps)
		ended <- err
	}()
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Close does not wake a receiver")
	}
	if _, err := receive(memory.bufs, memory.sizes, memory.eps); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A peer that does not move keeps its endpoint, among many others; one whose local
// address was given up gets another, and so does one that is called elsewhere.
func TestEndpointsAreKept(t *testing.T) {
	var known endpoints
	here := source{addr: netip.MustParseAddr("192.0.2.1")}
	name := func(i int) *sockaddr {
		s := sockaddrOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), uint16(1000+i)))
		return &s
	}
	first := known.of(name(0), here)
	if again := known.of(name(0), here); again != first {
		t.Error("a peer that stayed has another endpoint")
	}
	elsewhere := known.of(name(0), source{addr: netip.MustParseAddr("192.0.2.2")})
	if elsewhere == first || elsewhere.from.addr.String() != "192.0.2.2" {
		t.Errorf("called at another address: %+v", elsewhere)
	}
	elsewhere.ClearSrc()
	if back := known.of(name(0), elsewhere.from); back == elsewhere || !back.SrcIP().IsValid() {
		t.Error("an endpoint without local address goes on to be used")
	}
	const peers = 300
	for range 20 { // until the table is large enough
		for i := range peers {
			known.of(name(i), here)
		}
	}
	made := known.unknown
	for i := range peers {
		known.of(name(i), here)
	}
	if made = known.unknown - made; made > peers/3 {
		t.Errorf("%d of %d peers that stayed have another endpoint", made, peers)
	}
	for i := range 10 * maxKnown {
		if e := known.of(name(i), here); e.to.Port() != uint16(1000+i) {
			t.Fatalf("peer %d is %v", i, e.to)
		}
	}
	if len(known.table) > maxKnown {
		t.Errorf("a table of %d places", len(known.table))
	}
	if known.of(new(sockaddr), here) != nil {
		t.Error("no address has an endpoint")
	}
}

func TestSockaddr(t *testing.T) {
	for _, text := range []string{"192.0.2.1:51820", "[2001:db8::1]:1", "[fe80::1%7]:65535"} {
		e, err := parseEndpoint(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.name.addrPort(); got != e.to || e.DstToString() != text {
			t.Errorf("%s: read back %v and %s", text, got, e.DstToString())
		}
	}
	if e, err := parseEndpoint("[fe80::1%lo]:1"); err != nil || e.to.Addr().Zone() != "1" {
		t.Errorf("a link's name: %v, %v", e, err)
	}
	if _, err := parseEndpoint("[fe80::1%no such link]:1"); err == nil {
		t.Error("a link that is not there passed")
	}
}

// What is sent together is what the kernel may cut: one size, the last one shorter.
func TestFill(t *testing.T) {
	e := newEndpoint(netip.MustParseAddrPort("192.0.2.1:1"), source{addr: netip.MustParseAddr("192.0.2.7")})
	for name, tc := range map[string]struct {
		sizes []int
		cut   bool
		want  []int // datagrams of each message
	}{
		"one":        {[]int{100}, true, []int{1}},
		"no cutting": {[]int{100, 100}, false, []int{1, 1}},
		"equal":      {[]int{100, 100, 100}, true, []int{3}},
		"short last": {[]int{100, 100, 50, 50}, true, []int{3, 1}},
		"longer":     {[]int{50, 100, 100}, true, []int{1, 2}},
		"too long":   {[]int{30000, 30000, 30000}, true, []int{2, 1}},
		"empty":      {[]int{100, 0, 100}, true, []int{1, 1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOutgoing(new(udpSocket))
			for _, n := range tc.sizes {
				o.bufs = append(o.bufs, make([]byte, n))
			}
			o.to, o.from, o.cut = e, e.source(), tc.cut
			n, used := o.fill()
			if used != len(tc.sizes) {
				t.Errorf("%d datagrams, want %d", used, len(tc.sizes))
			}
			var got []int
			for i := range o.msgs[:n] {
				h := &o.msgs[i].Header
				got = append(got, int(h.Iovlen))
				control := o.controls[i][:h.Controllen]
				if c := mmsg.Parse(control); sourceOf(&c) != e.from {
					t.Errorf("sent from %v", sourceOf(&c))
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(tc.want) {
				t.Errorf("messages of %v, want %v", got, tc.want)
			}
		})
	}
}

// Neither direction allocates, once it has been used.
func TestDatagramsAllocateNothing(t *testing.T) {
	from, _, receive, peer := loopback(t)
	memory, sizes := newBatch(conn.IdealBatchSize, 65535), make([]int, conn.IdealBatchSize)
	for i := range sizes {
		sizes[i] = 600 + i/40
	}
	all := numbered(sizes...)
	n := testing.AllocsPerRun(200, func() {
		if err := from.Send(all, peer); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < len(all); {
			n, err := receive(memory.bufs, memory.sizes, memory.eps)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	})
	if n > 0 && !raceEnabled {
		t.Errorf("%v allocations for a batch", n)
	}
}

func TestLossNames(t *testing.T) {
	seen := map[string]bool{}
	for l := range losses {
		if name := l.String(); seen[name] || name == "" {
			t.Errorf("two reasons are called %q", name)
		}
		seen[l.String()] = true
	}
	for errno, want := range map[syscall.Errno]loss{
		unix.EPERM: lossRefused, unix.ENETUNREACH: lossNoRoute, unix.ENOBUFS: lossNoMemory,
		unix.EMSGSIZE: lossTooBig, unix.EIO: lossOther,
	} {
		b := new(bind)
		b.counts.lose(errno, 3)
		var all [losses]uint64
		if all[want] = 3; lostOf(b) != all {
			t.Errorf("%v is counted as %v", errno, b.counts.read().Lost)
		}
	}
}
