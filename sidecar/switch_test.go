package sidecar

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/tunnel"
)

func TestPacketsThroughTheTunnel(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("world", func(t *testing.T) {
		p := newPlane(t)
		s := newTestSidecar(t, p)
		a, b := open(t, s, "p"), open(t, s, "p")
		other := open(t, s, "q") // another network, with the same range

		for i, x := range []box{a, b, other} {
			sent := x.send(fmt.Sprintf("192.0.2.%d:53", i+1), 100)
			got := x.next(t)
			var v packet.Packet
			if packet.Parse(&v, got) != packet.Pass || v.Dst != x.inner || v.Src != netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}) || v.Payload != 100 {
				t.Errorf("sandbox %d got %x for %x", i, got, sent)
			}
		}
		if n := p.gateways["net_a"].from(other.inner) + p.gateways["net_b"].from(a.inner) + p.gateways["net_b"].from(b.inner); n != 0 {
			t.Errorf("%d packets went to another network's gateway", n)
		}
		for i, x := range []box{a, b, other} {
			if len(x.in) != 0 {
				t.Errorf("sandbox %d got what is not its own", i)
			}
		}
		if n := s.count.egress.total() + s.count.ingress.total(); n != 0 {
			t.Errorf("%d drops: %v", n, s.status())
		}
		list := s.listing()
		if list.Attached != 3 || len(list.Sandboxes) != 3 || list.Sandboxes[0].Sent.Packets != 1 ||
			list.Sandboxes[0].Sent.Bytes != 128 || list.Sandboxes[0].Received.Packets != 1 || list.Sandboxes[0].State != "running" {
			t.Errorf("listing %+v", list)
		}
	})
}

// What a sandbox may not send is counted by reason and goes nowhere; what
// follows it passes.
func TestForbiddenEgress(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	a := open(t, s, "p")
	ipv6 := make([]byte, 60)
	ipv6[0] = 0x60
	for _, b := range [][]byte{
		udp("10.0.1.99:1000", "192.0.2.1:53", 1), // another sandbox's
		udp("10.0.0.2:1000", "192.0.2.1:53", 1),  // the worker's
		udp("198.51.100.1:1", "192.0.2.1:53", 1), // anybody's
		ipv6,
		udp(a.inner.String()+":1000", "224.0.0.251:5353", 1),
		udp(a.inner.String()+":1000", "255.255.255.255:67", 1),
		{0x45, 0},
	} {
		a.out <- b
	}
	a.send("192.0.2.1:53", 7)
	if got := a.next(t); len(got) != 35 {
		t.Errorf("the answer is %x", got)
	}
	want := map[string]uint64{"spoofed_source": 3, "not_ipv4": 1, "martian": 2, "malformed": 1}
	if got := s.status().Egress; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("egress drops %v, want %v", got, want)
	}
	if got := s.listing().Sandboxes[0].Drops; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the sandbox's drops %v, want %v", got, want)
	}
	if n := p.gateways["net_a"].from(a.inner); n != 1 {
		t.Errorf("%d packets reached the gateway, want 1", n)
	}
}

// What comes from the gateway reaches the sandbox that it is addressed to, and
// nobody else.
func TestIngressByDestination(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	a, b := open(t, s, "p"), open(t, s, "p")
	g := p.gateways["net_a"]
	// A gateway that has gone wrong sends everything here.
	if err := g.tunnel.SetPeer(tunnel.Peer{PublicKey: s.key.Public(), AllowedIPs: []netip.Prefix{everything()}}); err != nil {
		t.Fatal(err)
	}
	in := func(dst string) []byte { return udp("192.0.2.1:53", dst+":1000", 3) }
	fromGateway := udp("10.0.0.1:7", "10.0.0.2:7", 32) // to the worker, and no probe
	for _, x := range [][]byte{in("10.0.1.200"), in("203.0.113.1"), fromGateway, in(a.inner.String()), in(b.inner.String()), in(a.inner.String())} {
		g.out <- x
	}
	for _, x := range []box{a, b, a} {
		if got := x.next(t); !bytes.Equal(got[16:20], x.inner.AsSlice()) {
			t.Errorf("sandbox %v got %x", x.inner, got)
		}
	}
	eventually(t, "drops are counted", func() bool { return s.count.ingress.total() == 3 })
	want := map[string]uint64{"unattached": 2, "no_local_service": 1}
	if got := s.status().Ingress; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("ingress drops %v, want %v", got, want)
	}
}

// Nothing runs before a probe was answered.
func TestNoProofNoSandbox(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	p.gateways["net_a"].setMute(true)
	ans, err := s.attach(t.Context(), request("p"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.claim(ans.ID)
	if err != nil {
		t.Fatal(err)
	}
	dev := newMemDevice()
	err = s.connectDevice(short(t, 300*time.Millisecond), e, dev)
	mustContain(t, err, "no answer through the tunnel", "gw1", "check that UDP reaches")
	if !s.detach(t.Context(), ans.ID, "test") {
		t.Error("the sandbox is not there any more")
	}
	select {
	case <-dev.closed:
	default:
		t.Error("the device is still open")
	}
}

// A sandbox gets the name servers and the MTU that the control plane says, as far
// as they can be.
func TestNetworkSettings(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	list := func(texts ...string) (out []netip.Addr) {
		for _, text := range texts {
			out = append(out, netip.MustParseAddr(text))
		}
		return out
	}
	p.with(func() { p.dns, p.mtu = list("10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5"), 1280 })
	got, err := s.attach(t.Context(), request("p"))
	if err != nil {
		t.Fatal(err)
	}
	if mtu, _ := s.network("net_a").links["gw1"].path.MTU(); got.MTU != 1280 || mtu != 1280 || !slices.Equal(got.DNS, p.dns[:3]) {
		t.Errorf("the sandbox gets %+v, the tunnel an MTU of %d", got, mtu)
	}
	// Buffers have the size that the network began with.
	p.with(func() { p.mtu = 1400 })
	if got, err := s.attach(t.Context(), request("p")); err != nil || got.MTU != 1280 {
		t.Errorf("a second one gets %+v, %v", got, err)
	}

	attached := p.count()
	for name, c := range map[string]struct {
		dns  []netip.Addr
		mtu  int
		says string
	}{
		"small MTU":   {list("10.0.0.1"), 575, "MTU of 575"},
		"large MTU":   {list("10.0.0.1"), 9001, "MTU of 9001"},
		"no DNS":      {nil, 1420, "no name server"},
		"DNS of IPv6": {list("10.0.0.1", "2001:db8::1"), 1420, "2001:db8::1"},
		"DNS on lo":   {list("127.0.0.53"), 1420, "127.0.0.53"},
		"no address":  {[]netip.Addr{{}}, 1420, "invalid IP"},
	} {
		p.with(func() { p.dns, p.mtu = c.dns, c.mtu })
		_, err := s.attach(t.Context(), request("q"))
		if mustContain(t, err, "net_b", c.says); p.count() != attached || len(s.networks) != 1 {
			t.Errorf("%s: %d attachments and %d networks are left", name, p.count(), len(s.networks))
		}
	}
}

// With the last sandbox of a network its tunnel ends.
func TestTunnelsComeAndGo(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	a, b := open(t, s, "p"), open(t, s, "p")
	l := s.network("net_a").links["gw1"]
	s.detach(t.Context(), a.id, "test")
	b.send("192.0.2.1:53", 1)
	b.next(t)
	s.detach(t.Context(), b.id, "test")
	select {
	case <-l.tunnel.Done():
	default:
		t.Error("the tunnel is open without sandboxes")
	}
	if len(s.networks) != 0 || len(s.entries) != 0 || p.count() != 0 {
		t.Errorf("left: networks %v, entries %v, %d attachments", s.networks, s.entries, p.count())
	}
	c := open(t, s, "p")
	c.send("192.0.2.1:53", 1)
	c.next(t)
}

// A device that was taken away ends the switching.
func TestDeviceGone(t *testing.T) {
	s := newTestSidecar(t, newPlane(t))
	a := open(t, s, "p")
	_ = a.Close()
	select {
	case <-s.entries[a.id].sw.ended:
	case <-time.After(patience):
		t.Error("switching goes on without a device")
	}
}

// slowGateway reads nothing: its queue fills. One sandbox that floods leaves
// room for another.
func TestFloodLeavesRoom(t *testing.T) {
	q := newQueue()
	pool := newBufferPool(spec.TunnelMTU)
	flood, light := &share{}, &share{}
	batch := func(n int) []*buffer {
		var out []*buffer
		for range n {
			out = append(out, pool.get())
		}
		return out
	}
	for range queueShare / maxBatch {
		q.put(flood, batch(maxBatch))
	}
	var passed atomic.Bool
	blocked := make(chan bool)
	go func() {
		ok := q.put(flood, batch(1))
		passed.Store(true)
		blocked <- ok
	}()
	if !q.put(light, batch(maxBatch)) {
		t.Fatal("no room for another sandbox")
	}
	if passed.Load() {
		t.Error("a flood got more than its share")
	}
	dst := make([]*buffer, 128)
	if n := q.take(dst); n != 128 || dst[0].share != flood {
		t.Errorf("took %d", n)
	}
	if !<-blocked {
		t.Error("the flood's next packet was refused")
	}
	if flood.queued != queueShare-128+1 || light.queued != maxBatch {
		t.Errorf("queued %d and %d", flood.queued, light.queued)
	}
}

func TestQueueEnds(t *testing.T) {
	pool := newBufferPool(spec.TunnelMTU)
	full := func() (*queue, *share) {
		q, s := newQueue(), &share{}
		var batch []*buffer
		for range queueShare {
			batch = append(batch, pool.get())
		}
		q.put(s, batch)
		return q, s
	}
	waiting := func(q *queue) bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.waiting == 1
	}
	for name, end := range map[string]func(q *queue, s *share){
		"closed": func(q *queue, _ *share) { q.close() },
		"left":   func(q *queue, s *share) { q.leave(s) },
	} {
		q, s := full()
		result := make(chan bool)
		go func() { result <- q.put(s, []*buffer{pool.get()}) }()
		eventually(t, "the putter waits", func() bool { return waiting(q) })
		end(q, s)
		if <-result {
			t.Errorf("%s: the packet was taken", name)
		}
	}
	q, _ := full()
	urgent := pool.get()
	if !q.putUrgent(urgent) {
		t.Fatal("an urgent packet was refused")
	}
	dst := make([]*buffer, 2)
	if q.take(dst) != 2 || dst[0] != urgent {
		t.Error("the urgent packet is not first")
	}
	if n := q.close(); n != queueShare-1 {
		t.Errorf("close dropped %d, want %d", n, queueShare-1)
	}
	if q.take(dst) != 0 || q.putUrgent(urgent) || q.close() != 0 {
		t.Error("a closed queue works on")
	}
}

// loop is a device that always has packets and takes all.
type loop struct {
	*memDevice
	packet []byte
	stop   atomic.Bool
}

func (l *loop) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if l.stop.Load() {
		return 0, os.ErrClosed
	}
	for i := range bufs {
		sizes[i] = copy(bufs[i][offset:], l.packet)
	}
	return len(bufs), nil
}

func (l *loop) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }

// bench makes a switch and a path without a tunnel.
func bench(t testing.TB) (*sandbox, *path) {
	clk := clock{base: time.Now()}
	pool := newBufferPool(spec.TunnelMTU)
	count := &counters{}
	p := newPath(pathConfig{
		gateway: netip.MustParseAddr("10.0.0.1"), mtu: spec.TunnelMTU, sandboxes: newDirectory(),
		pool: pool, clock: clk, count: count,
	}, netip.MustParseAddr("10.0.0.2"))
	t.Cleanup(func() { _ = p.Close() })
	dev := &loop{memDevice: newMemDevice(), packet: udp("10.0.0.5:1000", "192.0.2.1:53", 1300)}
	s := newSandbox(sandboxConfig{inner: testInner.As4(), dev: dev, clock: clk, pool: pool, count: count})
	s.setRoutes([]route{{id: 1, path: p}})
	g := &group{}
	g.choice.Store(1)
	s.group.Store(g)
	p.sandboxes.add(s.inner, resident{sandbox: s})
	return s, p
}

func readBuffers() ([][]byte, []int) {
	bufs := make([][]byte, pathBatch)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	return bufs, make([]int, pathBatch)
}

func TestSwitchingAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes pools forget")
	}
	s, p := bench(t)
	s.resize(maxBatch)
	bufs, sizes := readBuffers()
	step := func() {
		n, err := s.dev.Read(s.views[:s.window], s.sizes[:s.window], 0)
		if err != nil {
			t.Fatal(err)
		}
		s.forward(n)
		readAll(t, p, bufs, sizes, n)
	}
	step()
	if n := testing.AllocsPerRun(200, step); n >= 1 {
		t.Errorf("%v allocations per batch of %d out", n, maxBatch)
	}
	back := make([][]byte, pathBatch)
	for i := range back {
		back[i] = append(make([]byte, 16), udp("192.0.2.1:53", "10.0.0.5:1000", 1300)...)
	}
	if n := testing.AllocsPerRun(200, func() { _, _ = p.Write(back, 16) }); n >= 1 {
		t.Errorf("%v allocations per batch of %d back", n, pathBatch)
	}
}

// readAll reads what waits on a path.
func readAll(tb testing.TB, p *path, bufs [][]byte, sizes []int, n int) {
	for n > 0 {
		m, err := p.Read(bufs, sizes, 16)
		if err != nil {
			tb.Fatal(err)
		}
		n -= m
	}
}

// The number of packets that are asked for at once follows what comes.
func TestBatchAdapts(t *testing.T) {
	s, _ := bench(t)
	if s.window != minBatch {
		t.Fatalf("begins with %d", s.window)
	}
	for range 3 {
		s.adapt(s.window)
	}
	if s.window != maxBatch || s.bufs[maxBatch-1] == nil {
		t.Errorf("after full reads the window is %d, want %d", s.window, maxBatch)
	}
	for range 3 {
		s.adapt(0)
	}
	if s.window != minBatch || s.bufs[minBatch] != nil || s.bufs[minBatch-1] == nil {
		t.Errorf("after empty reads the window is %d, want %d", s.window, minBatch)
	}
}

func BenchmarkSwitch(b *testing.B) {
	s, p := bench(b)
	s.resize(maxBatch)
	bufs, sizes := readBuffers()
	b.ReportAllocs()
	for b.Loop() {
		n, _ := s.dev.Read(s.views[:s.window], s.sizes[:s.window], 0)
		s.forward(n)
		readAll(b, p, bufs, sizes, n)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/maxBatch, "ns/packet")
}
