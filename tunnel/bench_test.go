package tunnel

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// A benchmark here compares binds: ours and the one that comes with wireguard-go.
// Take ratios of one run, with -count.

type benchedBind struct {
	name string
	make func() conn.Bind
}

func benchedBinds() []benchedBind {
	return []benchedBind{
		{"sallyport", func() conn.Bind { return new(bind) }},
		{"stdnetbind", conn.NewStdNetBind},
	}
}

// processorTime is what the process has used, user and system.
func processorTime(tb testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLoopback sends a batch and receives it, by one goroutine: the kernel
// delivers it to the other socket within the call that sends.
func BenchmarkLoopback(b *testing.B) {
	shapes := []struct {
		name string
		size func(i int) int
		n    int
	}{
		{"run-1452", func(int) int { return 1452 }, conn.IdealBatchSize},
		{"run-128", func(int) int { return 128 }, conn.IdealBatchSize},
		{"growing", func(i int) int { return 96 + 8*i }, conn.IdealBatchSize}, // nothing can be joined
		{"single-1452", func(int) int { return 1452 }, 1},
	}
	for _, shape := range shapes {
		for _, kind := range benchedBinds() {
			b.Run(shape.name+"/"+kind.name, func(b *testing.B) {
				batch := make([][]byte, shape.n)
				for i := range batch {
					batch[i] = make([]byte, shape.size(i), 65535)
				}
				from, to := kind.make(), kind.make()
				benchLoopback(b, from, to, batch)
			})
		}
	}
}

func benchLoopback(b *testing.B, from, to conn.Bind, batch [][]byte) {
	if _, _, err := from.Open(0); err != nil {
		b.Fatal(err)
	}
	defer from.Close()
	receive, port, err := to.Open(0)
	if err != nil {
		b.Fatal(err)
	}
	defer to.Close()
	peer, err := from.ParseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		b.Fatal(err)
	}
	bufs, sizes, eps := make([][]byte, to.BatchSize()), make([]int, to.BatchSize()), make([]conn.Endpoint, to.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, device.MaxMessageSize)
	}
	// wireguard-go's bind appends to the first buffer of a run.
	sent := make([][]byte, len(batch))
	b.ReportAllocs()
	before := processorTime(b)
	b.ResetTimer()
	for range b.N {
		copy(sent, batch)
		if err := from.Send(sent, peer); err != nil {
			b.Fatal(err)
		}
		for got := 0; got < len(batch); {
			n, err := receive[0](bufs, sizes, eps)
			if err != nil {
				b.Fatal(err)
			}
			got += n
		}
	}
	b.StopTimer()
	datagrams := float64(b.N * len(batch))
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/datagrams, "ns/datagram")
	b.ReportMetric(float64((processorTime(b)-before).Nanoseconds())/datagrams, "cpu-ns/datagram")
}

// BenchmarkDevices sends packets from one wireguard-go device to another, which has
// them counted and dropped.
func BenchmarkDevices(b *testing.B) {
	for _, size := range []int{1420, 92} {
		for _, kind := range benchedBinds() {
			b.Run(fmt.Sprintf("%d/%s", size, kind.name), func(b *testing.B) { benchDevices(b, kind, size) })
		}
	}
}

func benchDevices(b *testing.B, kind benchedBind, size int) {
	source, sink := newNullTUN(size), newNullTUN(0)
	source.window = sink.arrived
	a, z := NewKey(), NewKey()
	from := device.NewDevice(source, kind.make(), device.NewLogger(device.LogLevelSilent, ""))
	defer from.Close()
	to := device.NewDevice(sink, kind.make(), device.NewLogger(device.LogLevelSilent, ""))
	defer to.Close()
	port := startBenched(b, to, z, a.Public(), "")
	startBenched(b, from, a, z.Public(), fmt.Sprintf("127.0.0.1:%d", port))

	source.begin(512) // shakes hands, warms up
	sink.await(b, 512)
	before := processorTime(b)
	b.ReportAllocs()
	b.ResetTimer()
	source.begin(b.N)
	sink.await(b, b.N)
	b.StopTimer()
	used := processorTime(b) - before
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N), "cpu-ns/packet")
	b.ReportMetric(used.Seconds()/(float64(b.N)*float64(size)/1e9), "cpu-s/GB")
}

// startBenched brings a device up with one peer and returns its port.
func startBenched(b *testing.B, d *device.Device, own, peer Key, endpoint string) uint16 {
	b.Helper()
	err := d.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nallowed_ip=0.0.0.0/0\n", own.hex(), peer.hex()))
	if err == nil && endpoint != "" {
		err = d.IpcSet(fmt.Sprintf("public_key=%s\nendpoint=%s\n", peer.hex(), endpoint))
	}
	if err == nil {
		err = d.Up()
	}
	if err != nil {
		b.Fatal(err)
	}
	text, err := d.IpcGet()
	if err != nil {
		b.Fatal(err)
	}
	state, err := parseState(text)
	if err != nil {
		b.Fatal(err)
	}
	return state.listenPort
}

// inFlight is how many packets are under way at most: they fit the socket's buffer.
const inFlight = 1024

// nullTUN is a packet device that makes packets, or counts and drops them.
type nullTUN struct {
	packet  []byte // what it makes
	order   chan int
	left    int
	credit  int
	window  chan int // what arrived at the other device: room for more
	arrived chan int // what arrived here: the other device's window
	got     chan int
	events  chan tun.Event
	closed  chan struct{}
}

func newNullTUN(size int) *nullTUN {
	d := &nullTUN{
		packet: make([]byte, size), order: make(chan int), credit: inFlight, arrived: make(chan int, 16),
		got: make(chan int, 1<<16), events: make(chan tun.Event), closed: make(chan struct{}),
	}
	if size > 0 {
		d.packet[0], d.packet[2], d.packet[3], d.packet[8], d.packet[9] = 0x45, byte(size>>8), byte(size), 64, 17
		src, dst := netip.MustParseAddr("10.0.0.1").As4(), netip.MustParseAddr("10.0.0.2").As4()
		copy(d.packet[12:], src[:])
		copy(d.packet[16:], dst[:])
	}
	return d
}

func (d *nullTUN) begin(n int) { d.order <- n }

// await waits until so many packets have arrived here.
func (d *nullTUN) await(b *testing.B, n int) {
	b.Helper()
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	for left := n; left > 0; {
		select {
		case got := <-d.got:
			left -= got
		case <-late.C:
			b.Fatalf("%d of %d packets have not arrived", left, n)
		}
	}
}

func (d *nullTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for d.left == 0 || d.credit == 0 {
		select {
		case n := <-d.order:
			d.left += n
		case n := <-d.window:
			d.credit += n
		case <-d.closed:
			return 0, os.ErrClosed
		}
	}
	n := min(len(bufs), d.left, d.credit)
	for i := range n {
		sizes[i] = copy(bufs[i][offset:], d.packet)
	}
	d.left, d.credit = d.left-n, d.credit-n
	return n, nil
}

func (d *nullTUN) Write(bufs [][]byte, _ int) (int, error) {
	d.arrived <- len(bufs)
	d.got <- len(bufs)
	return len(bufs), nil
}

func (d *nullTUN) Close() error {
	close(d.closed)
	close(d.events)
	return nil
}

func (d *nullTUN) File() *os.File           { return nil }
func (d *nullTUN) MTU() (int, error)        { return 1420, nil }
func (d *nullTUN) Name() (string, error)    { return "null", nil }
func (d *nullTUN) Events() <-chan tun.Event { return d.events }
func (d *nullTUN) BatchSize() int           { return conn.IdealBatchSize }
