package sidecar

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/sidecar/failover"
)

// fork is a sandbox with two routes, the second with other addresses, and nothing
// that takes packets from their queues.
type fork struct {
	*sandbox
	dev   *memDevice
	group *group
	paths [2]*path
}

var forkThere = packet.Renumbering{
	Local:  [2][4]byte{testInner.As4(), {172, 16, 0, 9}},
	Remote: [2][4]byte{{10, 0, 0, 1}, {172, 16, 0, 1}},
}

func newFork(t interface{ Cleanup(func()) }) *fork {
	clk := clock{base: time.Now()}
	pool := newBufferPool(spec.TunnelMTU)
	count := &counters{}
	f := &fork{dev: newMemDevice(), group: &group{}}
	for i, gateway := range []string{"10.0.0.1", "172.16.0.1"} {
		f.paths[i] = newPath(pathConfig{
			gateway: netip.MustParseAddr(gateway), mtu: spec.TunnelMTU, sandboxes: newDirectory(),
			pool: pool, clock: clk, count: count,
		}, netip.MustParseAddr("10.0.0.2"))
		t.Cleanup(func() { _ = f.paths[i].Close() })
	}
	f.sandbox = newSandbox(sandboxConfig{inner: testInner.As4(), dev: f.dev, clock: clk, pool: pool, count: count})
	f.setRoutes([]route{{id: 1, path: f.paths[0]}, {id: 2, path: f.paths[1], there: &forkThere}})
	f.choose(1)
	f.sandbox.group.Store(f.group)
	return f
}

func (f *fork) choose(id failover.PathID) { f.group.choice.Store(uint32(id)) }

// send makes the sandbox send a packet.
func (f *fork) send(b []byte) {
	f.sizes[0] = copy(f.views[0], b)
	f.forward(1)
}

// took empties a path's queue.
func (f *fork) took(i int) [][]byte {
	var out [][]byte
	q := f.paths[i].queue
	for {
		q.mu.Lock()
		n := q.n
		q.mu.Unlock()
		if n == 0 {
			return out
		}
		bufs := make([]*buffer, 1)
		q.take(bufs)
		out = append(out, bytes.Clone(bufs[0].b[:bufs[0].n]))
		bufs[0].free()
	}
}

// segmentOf builds a segment of the sandbox's, or to it.
func segmentOf(local, remote netip.AddrPort, flags packet.TCPFlags, seq, ack uint32, out bool) []byte {
	h := packet.TCPHeader{Src: local, Dst: remote, Flags: flags, Seq: seq, Ack: ack, TTL: 64, Window: 1000}
	if !out {
		h.Src, h.Dst = remote, local
	}
	b := make([]byte, 40)
	packet.BuildTCP(b, h, nil)
	return b
}

// swayed is what is expected of a flow when its route is lost.
type swayed struct {
	state flowState
	ack   uint32
	syn   []byte
}

var sweepRemote = netip.MustParseAddrPort("192.0.2.1:80")

// step lets something happen on a flow of the first route.
func (f *fork) step(rt *rapid.T, flows map[uint16]*swayed) {
	port := rapid.Uint16Range(1, 30).Draw(rt, "port")
	local := netip.AddrPortFrom(testInner, port)
	w, number := flows[port], rapid.Uint32().Draw(rt, "number")
	switch what := rapid.IntRange(0, 4).Draw(rt, "what"); {
	case w == nil && what == 0:
		flows[port] = &swayed{state: flowLoose}
		f.send(udp(local.String(), "192.0.2.1:53", 5))
	case w == nil || w.state == flowOpening && what == 0 || w.state == flowClosed:
		b := segmentOf(local, sweepRemote, packet.SYN, number, 0, true)
		flows[port] = &swayed{state: flowOpening, syn: b}
		f.send(b)
	case w.state == flowLoose:
	case w.state == flowOpening:
		f.deliver(f.paths[0], nil, [][]byte{segmentOf(local, sweepRemote, packet.SYN|packet.ACK, number, 1, false)}, 0)
		w.state, w.ack = flowOpen, number+1
	case what == 1:
		f.send(segmentOf(local, sweepRemote, packet.RST, 1, number, true))
		w.state = flowClosed
	default:
		f.send(segmentOf(local, sweepRemote, packet.ACK, 1, number, true))
		w.ack = number
	}
}

// resets are what the sandbox got, by its port.
func (f *fork) resets(rt *rapid.T) map[uint16]uint32 {
	out := map[uint16]uint32{}
	for len(f.dev.in) > 0 {
		var p packet.Packet
		if packet.Parse(&p, <-f.dev.in) != packet.Pass || !p.ChecksumOK() || p.Flags != packet.RST ||
			p.Src != sweepRemote.Addr() || p.SrcPort != sweepRemote.Port() || p.Dst != testInner {
			rt.Fatalf("the sandbox gets %+v", p)
		}
		if _, twice := out[p.DstPort]; twice {
			rt.Fatalf("port %d is reset twice", p.DstPort)
		}
		out[p.DstPort] = p.Seq
	}
	return out
}

// A sweep resets each connection once, with the number that the sandbox expects,
// sends the SYN of each that is opening by the new route with the addresses that
// are right there, moves all else, and touches nothing on other routes.
func TestSweep(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFork(t)
		flows := map[uint16]*swayed{}
		for range rapid.IntRange(1, 120).Draw(rt, "steps") {
			f.step(rt, flows)
		}
		if rapid.Bool().Draw(rt, "turned") {
			f.flows.turn(0)
		}
		for len(f.dev.in) > 0 {
			<-f.dev.in
		}
		f.took(0)
		f.choose(2)
		f.send(segmentOf(netip.AddrPortFrom(testInner, 999), sweepRemote, packet.ACK, 1, 1, true))
		f.took(1)

		v := &switchover{watch: &watch{}}
		v.pending.Store(2) // its end is not of interest
		f.sweepAll(1, v)
		f.tasks.Wait()
		f.checkSwept(rt, flows, v)
		for port, w := range flows { // and a program that goes on gets a reset for each segment
			if !w.state.connected() {
				continue
			}
			f.send(segmentOf(netip.AddrPortFrom(testInner, port), sweepRemote, packet.ACK, 1, w.ack+7, true))
			if got := f.resets(rt); len(got) != 1 || got[port] != w.ack+7 {
				rt.Fatalf("a later segment is answered by %v", got)
			}
		}
		if got := len(f.took(0)) + len(f.took(1)); got != 0 {
			rt.Fatalf("%d segments of lost connections went on", got)
		}
	})
}

// checkSwept holds what was sent, and reported, against what was expected.
func (f *fork) checkSwept(rt *rapid.T, flows map[uint16]*swayed, v *switchover) {
	resets, syns := f.resets(rt), map[string]bool{}
	for _, b := range f.took(1) {
		syns[string(b)] = true
	}
	nResets, nMoved, nSYNs := 0, 0, 0
	for port, w := range flows {
		seq, reset := resets[port]
		if reset != w.state.connected() || reset && seq != w.ack {
			rt.Fatalf("port %d in state %d: reset %v with %d, want %d", port, w.state, reset, seq, w.ack)
		}
		switch {
		case reset:
			nResets++
		case w.state == flowOpening:
			there := bytes.Clone(w.syn)
			forkThere.Egress(there)
			if !syns[string(there)] {
				rt.Fatalf("the SYN of port %d was not sent again", port)
			}
			nSYNs++
			nMoved++
		case w.state == flowLoose:
			nMoved++
		}
	}
	if len(resets) != nResets || len(syns) != nSYNs ||
		v.reset.Load() != uint64(nResets) || v.moved.Load() != uint64(nMoved) || v.resent.Load() != uint64(nSYNs) {
		rt.Fatalf("reset %d of %d, moved %d of %d, sent again %d of %d",
			v.reset.Load(), nResets, v.moved.Load(), nMoved, v.resent.Load(), nSYNs)
	}
	if len(f.flows.losing) != 0 || f.flows.connections(1) {
		rt.Fatal("something is left on the lost route")
	}
}

// While a sweep works, packets pass, and find their flows in order.
func TestSweepBesideTraffic(t *testing.T) {
	f := newFork(t)
	remote := netip.MustParseAddrPort("192.0.2.1:80")
	const flows = 3 * maxFlows / 2
	at := func(i int) netip.AddrPort { return netip.AddrPortFrom(testInner, uint16(1+i)) }
	drain := make(chan struct{})
	resets := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-f.dev.in:
				n++
			case <-drain:
				resets <- n + len(f.dev.in)
				return
			}
		}
	}()
	for i := range flows {
		f.send(segmentOf(at(i), remote, packet.ACK, 1, uint32(i), true))
		f.took(0)
	}
	f.choose(2)
	v := &switchover{watch: &watch{}}
	v.pending.Store(2)
	f.sweepAll(1, v)
	refused := 0
	for i := 0; i < flows; i += 7 {
		f.send(segmentOf(at(i), remote, packet.ACK, 1, uint32(i), true))
		refused++
	}
	f.tasks.Wait()
	close(drain)
	// Each is reset by the sweep, or by what it said meanwhile, or both.
	if n := <-resets; n < flows || n != int(v.reset.Load())+refused {
		t.Errorf("%d resets; %d by the sweep, %d answers, %d connections", n, v.reset.Load(), refused, flows)
	}
	if n := f.dropped[0][packet.NoSession].Load(); n != uint64(refused) || len(f.took(0)) != 0 {
		t.Errorf("%d segments were dropped, want %d", n, refused)
	}
}

// A SYN that was sent long ago moves, and is not sent again: its program may have
// given up.
func TestSweepLeavesOldSYNs(t *testing.T) {
	f := newFork(t)
	for port := range uint16(2) {
		f.send(segmentOf(netip.AddrPortFrom(testInner, 1+port), sweepRemote, packet.SYN, 1, 0, true))
	}
	f.flows.syns.slots[0].at -= synFresh + 1
	f.choose(2)
	v := &switchover{watch: &watch{}}
	v.pending.Store(2)
	f.sweepAll(1, v)
	f.tasks.Wait()
	if moved, resent, sent := v.moved.Load(), v.resent.Load(), len(f.took(1)); moved != 2 || resent != 1 || sent != 1 {
		t.Errorf("%d moved, %d sent again, %d packets; want 2, 1 and 1", moved, resent, sent)
	}
}

// A packet that waits for the table while a sweep has it takes the choice of
// afterwards: its flow must not begin on the route that was swept.
func TestNewFlowBesideASweep(t *testing.T) {
	f := newFork(t)
	f.sizes[0] = copy(f.views[0], udp("10.0.0.5:1", "192.0.2.1:53", 1))
	f.mu.Lock()
	done := make(chan struct{})
	go func() { defer close(done); f.classify(1) }()
	stacks := make([]byte, 1<<20)
	eventually(t, "the packet waits", func() bool {
		all := stacks[:runtime.Stack(stacks, true)]
		return slices.ContainsFunc(bytes.Split(all, []byte("\n\n")), func(one []byte) bool {
			return bytes.Contains(one, []byte("sync.Mutex.Lock")) && bytes.Contains(one, []byte("(*sandbox).classify"))
		})
	})
	f.choose(2)
	f.mu.Unlock()
	<-done
	if f.taken[0] != 2 {
		t.Errorf("the flow begins on route %d, want 2", f.taken[0])
	}
}

// Of segments that come together the table remembers the last number of each
// connection, and each packet takes the route of its flow.
func TestBatch(t *testing.T) {
	f := newFork(t)
	f.resize(maxBatch)
	remote := netip.MustParseAddrPort("192.0.2.1:80")
	a, b := netip.AddrPortFrom(testInner, 1), netip.AddrPortFrom(testInner, 2)
	ack := func(local netip.AddrPort, n uint32) []byte { return segmentOf(local, remote, packet.ACK, 1, n, true) }
	f.send(ack(b, 1))
	f.took(0)
	f.choose(2)
	batch := [][]byte{
		ack(a, 10), ack(a, 11), ack(a, 12), ack(b, 20), ack(b, 21), udp("10.0.0.5:3", "192.0.2.1:53", 1), udp("10.0.0.5:3", "192.0.2.1:53", 2),
		ack(a, 13), ack(a, 14), segmentOf(b, remote, packet.FIN|packet.ACK, 1, 22, true), ack(b, 23), {0x45},
	}
	for i, p := range batch {
		f.sizes[i] = copy(f.views[i], p)
	}
	f.forward(len(batch))
	for port, want := range map[uint16]flow{1: {ack: 14, route: 2, state: flowOpen}, 2: {ack: 23, route: 1, state: flowFinOut}} {
		key := flowKey{remote: remote.Addr().As4(), local: port, port: 80, proto: packet.TCP}
		if got, _ := f.flows.peek(key); got != want {
			t.Errorf("port %d: %+v, want %+v", port, got, want)
		}
	}
	first, second := f.took(0), f.took(1)
	if len(first) != 4 || len(second) != 7 || f.dropped[0].total() != 1 {
		t.Errorf("%d and %d packets, %d drops; want 4, 7 and 1", len(first), len(second), f.dropped[0].total())
	}
	if f.egress.packets.Load() != 12 {
		t.Errorf("%d packets are counted, want 12", f.egress.packets.Load())
	}
}

// A sandbox that has ended takes part in a switch by saying so.
func TestSweepAfterTheEnd(t *testing.T) {
	f := newFork(t)
	f.start()
	f.stop()
	v := &switchover{watch: &watch{}}
	v.pending.Store(2)
	f.sweepAll(1, v)
	if n := v.pending.Load(); n != 1 {
		t.Errorf("%d parts are missing, want 1", n)
	}
}

// Packets of a route that is gone are dropped, and the sandbox goes on.
func TestRouteGoes(t *testing.T) {
	f := newFork(t)
	f.send(udp("10.0.0.5:1", "192.0.2.1:53", 1))
	if len(f.took(0)) != 1 {
		t.Fatal("the first route does not work")
	}
	share := f.find(1).share
	f.setRoutes([]route{{id: 2, path: f.paths[1], there: &forkThere}})
	if !share.gone || f.find(2) == nil {
		t.Error("the wrong route is gone")
	}
	f.send(udp("10.0.0.5:1", "192.0.2.1:53", 1))
	f.choose(2)
	f.send(udp("10.0.0.5:2", "10.0.0.1:53", 1))
	got := f.took(1)
	if len(got) != 1 || !bytes.Equal(got[0], udp("172.16.0.9:2", "172.16.0.1:53", 1)) {
		t.Errorf("the second route carries %x", got)
	}
	if want := uint64(1); f.dropped[0][packet.Closed].Load() != want {
		t.Errorf("%d packets were dropped, want %d", f.dropped[0][packet.Closed].Load(), want)
	}
	back := udp("172.16.0.1:53", "172.16.0.9:2", 1)
	short := append([]byte(nil), back[:20]...)
	f.deliver(f.paths[1], &forkThere, [][]byte{short, back}, 0)
	if got := <-f.dev.in; !bytes.Equal(got, udp("10.0.0.1:53", "10.0.0.5:2", 1)) {
		t.Errorf("the sandbox gets %x", got)
	}
	if got := fmt.Sprint(f.dropped[1][packet.Malformed].Load(), len(f.dev.in)); got != "1 0" {
		t.Errorf("malformed and left: %s, want 1 0", got)
	}
}

func BenchmarkSweep(b *testing.B) {
	f := newFork(b)
	f.sandbox.dev = &loop{memDevice: f.dev}
	v := &switchover{watch: &watch{}}
	v.pending.Store(1 << 40)
	for b.Loop() {
		for i := range maxFlows {
			f.flows.young[flowKey{local: uint16(i), proto: packet.TCP}] = flow{route: 1, state: flowOpen}
		}
		f.choose(2)
		f.sweepAll(1, v)
		f.tasks.Wait()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/maxFlows, "ns/flow")
}
