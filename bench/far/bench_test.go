package far

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/wire"
)

// Benchmarks work on what waits already, from the test's own goroutine: they cost what
// the far side costs, without what it takes to send to it.

const small = 36 // bytes of payload of an IPv4 packet of 64

// idle is a server whose sockets nobody empties.
func idle(b *testing.B) (*Server, *socket) {
	b.Helper()
	s := &Server{quit: make(chan struct{}), connections: map[*connection]struct{}{}, filler: make([]byte, fillerSize)}
	s.cfg.Listen, s.cfg.Sockets = netip.MustParseAddrPort("127.0.0.1:0"), 1
	if err := s.cfg.complete(); err != nil {
		b.Fatal(err)
	}
	s.table = newTable(s.cfg.Limits)
	if err := s.listen(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	s.Open(1)
	return s, s.sockets[0]
}

// step works on one batch that is there.
func (k *socket) once(b *testing.B) int {
	if err := k.raw.Read(k.step); err != nil || k.errno != 0 {
		b.Fatal(err, k.errno)
	}
	if err := k.take(time.Now()); err != nil {
		b.Fatal(err)
	}
	return k.got
}

func benchmarkSocket(b *testing.B, kind wire.Kind) {
	s, k := idle(b)
	c, err := net.Dial("udp", s.addr.String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	const queue = 1024
	m, sequence, left := make([]byte, small), uint64(0), 0
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if left == 0 {
			b.StopTimer()
			for range queue {
				wire.Head{Kind: kind, Flow: uint16(sequence % 64), Run: 1, Sequence: sequence / 64}.Put(m)
				if _, err := c.Write(m); err != nil {
					b.Fatal(err)
				}
				sequence++
			}
			left = queue
			b.StartTimer()
		}
		if n%batch == 0 {
			left -= k.once(b)
		}
	}
	if r, _ := s.Report(1); r.Dropped > 0 || r.Missing > 0 {
		b.Errorf("%+v", r)
	}
}

func BenchmarkDatagramCounted(b *testing.B) { benchmarkSocket(b, wire.KindData) }
func BenchmarkDatagramEchoed(b *testing.B)  { benchmarkSocket(b, wire.KindEcho) }

// Sending costs what the kernel needs to bring a packet into a socket on loopback, too.
func BenchmarkDatagramGenerated(b *testing.B) {
	s, k := idle(b)
	to, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		b.Fatal(err)
	}
	defer to.Close()
	var name sockaddr
	name[0] = unix.AF_INET
	port := to.LocalAddr().(*net.UDPAddr).Port
	name[2], name[3], name[4], name[7] = byte(port>>8), byte(port), 127, 1
	r := s.table.runs[1]
	for i := range uint16(64) {
		s.table.join(r, wire.Head{Flow: i, Sequence: 1}, &name, netip.Addr{})
	}
	g := &generator{server: s, run: r, flows: len(r.joins), out: newOutbox(k.raw)}
	for i := range g.payloads {
		g.payloads[i] = make([]byte, small)
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n%batch == 0 {
			g.collect(time.Now(), batch)
			if err := g.out.flush(); err != nil {
				b.Fatal(err)
			}
			g.count()
		}
	}
}

func BenchmarkConnectionAnswered(b *testing.B) {
	s, _ := idle(b)
	a := &acceptor{server: s, file: s.listener}
	raw, err := s.listener.SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	step, ask := a.step, make([]byte, wire.HeadSize)
	wire.Head{Kind: wire.KindAsk, Run: 1}.Put(ask)
	const queue = 256
	var waiting [queue]net.Conn
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n%queue == 0 {
			b.StopTimer()
			for i := range waiting {
				if waiting[i] != nil {
					_ = waiting[i].(*net.TCPConn).SetLinger(0)
					_ = waiting[i].Close()
				}
				if waiting[i], err = net.Dial("tcp", s.addr.String()); err == nil {
					_, err = waiting[i].Write(ask)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.StartTimer()
		}
		if err := raw.Read(step); err != nil || a.err != nil {
			b.Fatal(err, a.err)
		}
		a.take()
	}
	for _, c := range waiting {
		_ = c.Close()
	}
	if r, _ := s.Report(1); r.Asked == 0 || r.Asked != r.Connections {
		b.Errorf("%+v", r)
	}
}

// A connection of bulk, by bytes: both of its ends on loopback.
func BenchmarkBulkTaken(b *testing.B) {
	s, _ := idle(b)
	s.spawn((&acceptor{server: s, file: s.listener}).serve)
	c, err := net.Dial("tcp", s.addr.String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	m := make([]byte, chunkSize)
	wire.Head{Kind: wire.KindSink, Run: 1}.Put(m)
	b.SetBytes(chunkSize)
	for b.Loop() {
		if _, err := c.Write(m); err != nil {
			b.Fatal(err)
		}
	}
}

const chunkSize = 1 << 18
