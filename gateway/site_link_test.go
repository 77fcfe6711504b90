package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// fakeWires are interfaces that a test plays, by name.
type fakeWires struct {
	Wires
	mu    sync.Mutex
	links map[string]*fakeWire
}

func (w *fakeWires) OpenWire(c uplink.WireConfig) (Wire, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.links[c.Interface]
	if l == nil {
		return nil, errors.New("this machine has no such interface")
	}
	l.cfg, l.opened = c, l.opened+1
	l.in, l.out, l.ended = make(chan []byte, 16), make(chan []byte, 16), make(chan struct{})
	return l, nil
}

// fakeWire hands on what is written and reads what the test brings.
type fakeWire struct {
	cfg     uplink.WireConfig
	opened  int
	in, out chan []byte
	ended   chan struct{}
	mu      sync.Mutex
	mtu     int
	own     []netip.Addr
	err     error
}

func (w *fakeWire) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case b := <-w.in:
		sizes[0] = copy(bufs[0][offset:], b)
		return 1, nil
	case <-w.ended:
		return 0, os.ErrClosed
	}
}

func (w *fakeWire) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		w.out <- bytes.Clone(b[offset:])
	}
	return len(bufs), nil
}

func (w *fakeWire) set(mtu int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mtu, w.err = mtu, err
}

func (w *fakeWire) MTU() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mtu
}

func (w *fakeWire) Own() []netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.own
}

func (w *fakeWire) Drops() (drops [packet.NumOutcomes]uint64) {
	drops[packet.QueueFull] = 3
	return drops
}

func (w *fakeWire) Check() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *fakeWire) Close() error { close(w.ended); return nil }

// sent is the next packet that left by the interface.
func (w *fakeWire) sent(t *testing.T) packet.Packet {
	t.Helper()
	select {
	case b := <-w.out:
		return parsed(t, b)
	case <-time.After(10 * time.Second):
		t.Fatal("nothing leaves by the interface")
		return packet.Packet{}
	}
}

// newWiredRig is a network that reaches 10.40.0.0/16 by eth1, whose MTU is 1300.
func newWiredRig(t *testing.T) (*siteRig, *fakeWire) {
	t.Helper()
	r, w := newSiteRig(t), &fakeWire{mtu: 1300}
	r.n.wires = &fakeWires{links: map[string]*fakeWire{"eth1": w}}
	r.wire("wired", "eth1", peeredRange)
	r.set()
	r.peered(peeredRange)
	return r, w
}

func (r *siteRig) wire(id, name string, ranges ...netip.Prefix) {
	if r.plan.links == nil {
		r.plan.links = map[string]linkPlan{}
	}
	r.plan.ranges[id] = ranges
	r.plan.links[id] = linkPlan{wire: uplink.WireConfig{ID: id, Network: network16, Ranges: ranges, Interface: name}}
}

// peered lets the policy know ranges.
func (r *siteRig) peered(ranges ...netip.Prefix) {
	r.t.Helper()
	p := &peeredRig{rig: r.rig}
	p.rules(ranges...)
}

// back is the next packet that comes out of the network's tunnel.
func (r *siteRig) back(t *testing.T) packet.Packet {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		bufs, sizes := readBuffers(), make([]int, batchSize)
		if n := r.f.returned.Load().take(bufs[:1], sizes, headroom); n == 1 {
			return parsed(t, bufs[0][headroom:headroom+sizes[0]])
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing comes back: %v", r.counts())
		}
		<-time.After(time.Millisecond)
	}
}

func (r *siteRig) awaitCount(what string, want uint64) {
	r.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for r.counts()[what] != want {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s is not %d: %v", what, want, r.counts())
		}
		<-time.After(time.Millisecond)
	}
}

// TestWiredRoundTrip: packets leave by the interface as they are, cut to its MTU, and only
// answers of the ranges come back.
func TestWiredRoundTrip(t *testing.T) {
	r, w := newWiredRig(t)
	r.write(tcp(t, packet.TCPHeader{Src: at(alice, 5000), Dst: database, Flags: packet.SYN, Seq: 1, Window: 60000, MSS: 9000, TTL: 64}))
	if p := w.sent(t); p.Src != alice || p.SrcPort != 5000 || p.TTL != 63 || !p.ChecksumOK() || int(p.B[42])<<8|int(p.B[43]) != 1300-40 {
		t.Errorf("the SYN is %+v", p)
	}
	r.write(udp(t, at(alice, 5000), database, []byte("query")))
	w.sent(t)
	w.in <- udp(t, database, at(alice, 5000), []byte("answer"))
	if p := r.back(t); p.Src != database.Addr() || p.Dst != alice || string(p.Data()) != "answer" || p.TTL != 63 {
		t.Errorf("the answer is %+v", p)
	}
	// What does not fit the interface is cut, or its sender told (the test's UDP has no DF).
	r.write(udp(t, at(alice, 5000), database, make([]byte, 1350)))
	if first, second := w.sent(t), w.sent(t); len(first.B) > 1300 || first.Kind != packet.KindFragment || second.Kind != packet.KindFragment {
		t.Errorf("a large datagram left as %+v and %+v", first, second)
	}
	large := udp(t, at(alice, 5000), database, make([]byte, 1350))
	setDF(large)
	r.write(large)
	if p := one(t, r.read()); p.ICMPType != 3 || p.B[21] != 4 || int(p.B[26])<<8|int(p.B[27]) != 1300 {
		t.Errorf("the sandbox is told %+v", p)
	}
	// Strangers, whatever they claim.
	for _, from := range []netip.AddrPort{at(netip.MustParseAddr("10.99.0.1"), 1), at(alice, 1), at(bob, 1), at(gw, 53), at(pair[0], 1), origin} {
		w.in <- udp(t, from, at(bob, 5000), nil)
	}
	w.in <- udp(t, at(database.Addr(), 99), at(bob, 5000), nil) // nobody has asked
	r.awaitCount("ingress no_mapping", 1)
	r.awaitCount("ingress spoofed_source", 6)
	report := r.n.siteReport(netip.Addr{}).Peerings[0]
	if report.Foreign != 6 || report.Egress.Packets != 3 || report.Ingress.Packets != 1 {
		t.Errorf("the report is %+v", report)
	}
	if len(r.up.sent) != 0 || r.f.counters.Drops(Egress, packet.WrongSource) != 0 {
		t.Errorf("the uplink got %d packets: %v", len(r.up.sent), r.counts())
	}
}

// setDF sets the flag of a packet whose header is changed for it (RFC 1624).
func setDF(b []byte) {
	b[6] |= 0x40
	sum := uint32(b[10])<<8 | uint32(b[11])
	sum = (^sum & 0xffff) + 0x4000
	sum = ^(sum&0xffff + sum>>16) & 0xffff
	b[10], b[11] = byte(sum>>8), byte(sum)
}

// TestWiredTroubles: an interface that is missing or goes away takes its own connection
// down and nothing else; its sandboxes are told.
func TestWiredTroubles(t *testing.T) {
	r, w := newWiredRig(t)
	other := netip.MustParsePrefix("10.41.0.0/16")
	r.wire("missing", "eth7", other)
	plan := r.plan
	plan.ranges, plan.links = maps.Clone(plan.ranges), maps.Clone(plan.links)
	if err := r.n.setSite(plan); err != nil {
		t.Errorf("one connection's trouble is all the site's: %v", err)
	}
	report := r.n.siteReport(netip.Addr{})
	for _, p := range report.Peerings {
		if p.ID == "missing" != strings.Contains(p.Trouble, "eth7") || p.ID == "wired" && p.Trouble != "" {
			t.Errorf("the report is %+v", p)
		}
	}
	r.peered(peeredRange, other)
	r.write(udp(t, at(alice, 5000), database, nil))
	w.sent(t)
	r.write(udp(t, at(alice, 5000), netip.MustParseAddrPort("10.41.0.1:1"), nil))
	if p := one(t, r.read()); p.ICMPType != 3 || p.B[21] != 1 {
		t.Errorf("the sandbox is told %+v", p)
	}
	r.awaitCount("egress site_down", 1)
	if w.opened != 1 {
		t.Errorf("the interface was opened %d times", w.opened)
	}

	w.set(1300, errors.New("it is gone"))
	r.n.tendLinks()
	r.write(udp(t, at(alice, 5000), database, nil))
	r.awaitCount("egress site_down", 2)
	w.set(1200, nil)
	r.n.tendLinks()
	r.write(udp(t, at(alice, 5000), database, make([]byte, 1250)))
	if p := w.sent(t); len(p.B) > 1200 {
		t.Errorf("%d bytes left by an interface of 1200", len(p.B))
	}
	if r.flows() != 1 {
		t.Errorf("%d flows, want 1: they outlive the interface", r.flows())
	}

	// What comes later is found, and not asked for all the time.
	r.n.wires.(*fakeWires).links["eth7"] = &fakeWire{mtu: 1500}
	r.n.tendLinks()
	if r.n.site.links["missing"] != nil {
		t.Error("it is tried again at once")
	}
	r.n.site.tried = time.Time{}
	r.n.tendLinks()
	if r.n.site.links["missing"] == nil || r.n.site.trouble("missing") != "" {
		t.Errorf("the interface that came is not found: %q", r.n.site.trouble("missing"))
	}

	// The connection's end.
	ended := w.ended
	r.drop("wired")
	delete(r.plan.links, "wired")
	delete(r.plan.links, "missing")
	r.drop("missing")
	r.set()
	<-ended
	if r.flows() != 0 {
		t.Errorf("%d flows are left", r.flows())
	}
	if drops := r.n.linkDrops(); drops[packet.QueueFull] != 6 {
		t.Errorf("%d drops are left of two interfaces with 3 each", drops[packet.QueueFull])
	}
}

// TestWiredMachine: addresses of this machine among the ranges are none of the other side's,
// also when they come later; and routers on the way may say that something is too big.
func TestWiredMachine(t *testing.T) {
	r, w := newWiredRig(t)
	r.write(udp(t, at(alice, 5000), database, []byte("query")))
	asked := w.sent(t)
	router := netip.MustParseAddr("10.9.0.1")
	b := make([]byte, 600)
	tell := func(from netip.Addr, about *packet.Packet) {
		n := packet.BuildICMPError(b, 3, 4, 1000, from, about)
		w.in <- bytes.Clone(b[:n])
	}
	tell(router, &asked)
	if p := r.back(t); p.Src != router || p.Dst != alice || p.Kind != packet.KindICMPError || int(p.B[26])<<8|int(p.B[27]) != 1000 {
		t.Errorf("the sandbox is told %+v", p)
	}
	unasked := parsed(t, udp(t, at(bob, 5000), database, nil))
	elsewhere := parsed(t, udp(t, at(alice, 5000), origin, nil))
	tell(router, &unasked) // nobody has asked
	r.awaitCount("ingress no_mapping", 1)
	tell(router, &elsewhere) // not its business
	tell(alice, &asked)
	tell(gw, &asked)
	r.awaitCount("ingress spoofed_source", 3)

	w.mu.Lock()
	w.own = []netip.Addr{database.Addr()}
	w.mu.Unlock()
	r.n.tendLinks()
	r.write(udp(t, at(alice, 5000), database, []byte("query")))
	if p := one(t, r.read()); p.ICMPType != 3 || p.B[21] != 13 {
		t.Errorf("the sandbox is told %+v", p)
	}
	r.awaitCount("egress own_address", 1)
	if len(w.out) != 0 {
		t.Error("a packet went to this machine itself")
	}
	w.mu.Lock()
	w.own = nil
	w.mu.Unlock()
	r.n.tendLinks()
	r.write(udp(t, at(alice, 5000), database, []byte("query")))
	w.sent(t)
}

// TestWiredGone: a wire that was deleted is closed and opened anew, also where that fails
// at first. What it counted and its flows stay, and the log is told each cause once.
func TestWiredGone(t *testing.T) {
	r, w := newWiredRig(t)
	log := &lockedBuffer{}
	r.n.log = slog.New(slog.NewTextHandler(log, nil))
	wires := r.n.wires.(*fakeWires)
	r.write(udp(t, at(alice, 5000), database, nil))
	w.sent(t)

	delete(wires.links, "eth1") // nor can another be opened
	ended := w.ended
	w.set(1300, fmt.Errorf("%w: it is deleted", uplink.ErrWireGone))
	for range 3 {
		r.n.site.tried = time.Time{}
		r.n.tendLinks()
	}
	<-ended
	if said := r.n.siteReport(netip.Addr{}).Peerings[0].Trouble; !strings.Contains(said, "no such interface") {
		t.Errorf("the report says %q", said)
	}
	r.write(udp(t, at(alice, 5000), database, nil))
	r.awaitCount("egress site_down", 1)
	for _, cause := range []string{"it is deleted", "no such interface"} {
		if n := strings.Count(log.String(), cause); n != 1 {
			t.Errorf("the log says %q %d times:\n%s", cause, n, log)
		}
	}

	w.set(1200, nil)
	wires.links["eth1"] = w
	r.n.tendLinks()
	if w.opened != 1 {
		t.Error("it is tried again at once")
	}
	r.n.site.tried = time.Time{}
	r.n.tendLinks()
	r.write(udp(t, at(alice, 5000), database, make([]byte, 1250)))
	if p := w.sent(t); len(p.B) > 1200 {
		t.Errorf("%d bytes left by an interface of 1200", len(p.B))
	}
	w.sent(t) // the other fragment
	w.in <- udp(t, database, at(alice, 5000), []byte("answer"))
	if p := r.back(t); string(p.Data()) != "answer" {
		t.Errorf("the answer is %+v", p)
	}
	if said := r.n.siteReport(netip.Addr{}).Peerings[0].Trouble; said != "" || w.opened != 2 || r.flows() != 1 {
		t.Errorf("the report says %q, the wire was opened %d times, %d flows", said, w.opened, r.flows())
	}
	if drops := r.n.linkDrops(); drops[packet.QueueFull] != 6 {
		t.Errorf("%d drops of two wires with 3 each", drops[packet.QueueFull])
	}
}
