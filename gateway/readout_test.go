package gateway

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-net/sallyport/gateway/readout"
	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/tunnel"
)

// statsUplink has nothing to tell.
type statsUplink struct{ *fakeUplink }

func (statsUplink) Stats() uplink.Stats { return uplink.Stats{} }

// readoutHost is a host with one network between fakes, whose sandboxes have some
// connections to a database and datagrams to elsewhere.
func readoutHost(t *testing.T) (*Host, *rig) {
	t.Helper()
	r := newRigOf(t, nat.Config{Ports: nat.PortRange{First: 2000, Last: 2099}})
	a, b, c := r.attach(0, 0), r.attach(0, 1), r.attach(1, 0)
	for sandbox, n := range map[netip.Addr]int{a: 30, b: 5, c: 2} {
		for i := range n {
			r.write(tcp(t, packet.TCPHeader{Src: at(sandbox, uint16(3000+i)), Dst: origin, Flags: packet.SYN, Seq: 1, Window: 100, TTL: 64}))
		}
		r.write(udp(t, at(sandbox, 53), resolver, nil))
	}
	tun, err := tunnel.New(tunnel.Config{PrivateKey: tunnel.NewKey(), Device: newMemTUN()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tun.Close)
	n := &network{id: "net_a", pair: pair, held: [2]bool{true, true}, fwd: r.f, tun: tun, up: statsUplink{r.up}, clock: r.clock,
		health: health{draining: new(atomic.Bool)}}
	return &Host{networks: map[string]*network{"net_a": n}, keeper: newKeeper()}, r
}

// C-10: who uses the ports to a destination, how many are left, and which sandboxes take most.
func TestPortsReadout(t *testing.T) {
	h, r := readoutHost(t)
	out, err := h.Ports(t.Context(), PortsQuery{Network: "net_a", Protocol: packet.TCP, Destination: origin, Top: 1})
	if err != nil || len(out.IPs) != 2 || out.IPs[0].IP != pair[0] {
		t.Fatalf("%+v, %v", out, err)
	}
	u := out.IPs[0]
	if d := u.Destination; d == nil || d.PortUse != (readout.PortUse{Protocol: "tcp", Destination: origin, Used: 35, Left: 65}) || d.Users != 2 || len(d.Sandboxes) != 1 || d.Sandboxes[0].Sessions != 30 {
		t.Errorf("the destination: %+v", d)
	}
	if len(u.Busiest) != 1 || u.Busiest[0].Used != 35 || u.Busiest[0].Left != 65 {
		t.Errorf("busiest: %+v", u.Busiest)
	}
	if len(u.Sandboxes) != 1 || u.Sandboxes[0].Ports != 31 || u.Sandboxes[0].TCP != 30 || u.Sandboxes[0].UDP != 1 || u.Sandboxes[0].HalfOpen != 30 {
		t.Errorf("sandboxes: %+v", u.Sandboxes)
	}
	if len(u.Shared) != 2 || u.Shared[0] != (readout.PortUse{Protocol: "udp", Used: 2, Left: 98}) {
		t.Errorf("shared: %+v", u.Shared)
	}
	r.drain(pair[1], true)
	if out, err = h.Ports(t.Context(), PortsQuery{Network: "net_a"}); err != nil || out.IPs[0].Destination != nil || out.IPs[0].Draining || !out.IPs[1].Draining {
		t.Errorf("%+v, %v", out, err)
	}
	if _, err := h.Ports(t.Context(), PortsQuery{Network: "net_b"}); !errors.Is(err, ErrNotServed) || !strings.HasSuffix(err.Error(), "it serves net_a") {
		t.Errorf("a network of another host: %v", err)
	}
	if got := servedText(strings.Fields("a b c d e f g h i j")); got != "it serves a, b, c, d, e, f, g, h and 2 more" {
		t.Errorf("of ten networks an error says %q", got)
	}
	h.reading.Store(true)
	if _, err := h.Ports(t.Context(), PortsQuery{Network: "net_a"}); !errors.Is(err, ErrBusy) {
		t.Errorf("two at a time: %v", err)
	}
	h.reading.Store(false)
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := h.Ports(ended, PortsQuery{Network: "net_a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("whoever asked has gone: %v", err)
	}
	if h.reading.Load() {
		t.Error("it is under way still")
	}
}

// C-10: every session can be read, page by page, each of them once.
func TestSessionsReadout(t *testing.T) {
	h, r := readoutHost(t)
	r.clock.now += 5e9
	seen := map[readout.Session]int{}
	q := SessionsQuery{Network: "net_a", Limit: 7}
	for pages := 1; ; pages++ {
		page, err := h.Sessions(t.Context(), q)
		if err != nil || len(page.Sessions) > 7 || page.More && len(page.Sessions) != 7 || pages > 7 {
			t.Fatalf("page %d has %d sessions, %v", pages, len(page.Sessions), err)
		}
		for _, s := range page.Sessions {
			seen[s]++
			if s.Age != 5 || s.Expires <= 0 || s.External.Addr() != pair[0] && s.External.Addr() != pair[1] || s.State == "" {
				t.Errorf("%+v", s)
			}
		}
		if !page.More {
			break
		}
		q.After = page.Next
	}
	if len(seen) != 40 {
		t.Errorf("%d sessions, want 40", len(seen))
	}
	for s := range maps.Values(seen) {
		if s != 1 {
			t.Error("a session was told twice")
		}
	}
	page, err := h.Sessions(t.Context(), SessionsQuery{Network: "net_a", Destination: resolver})
	if err != nil || len(page.Sessions) != 3 || page.Sessions[0].Protocol != "udp" {
		t.Errorf("%+v, %v", page, err)
	}
	first, err := h.Sessions(t.Context(), SessionsQuery{Network: "net_a", Destination: resolver, Limit: 1})
	if err != nil || len(first.Sessions) != 1 || !first.More || first.Sessions[0] != page.Sessions[0] {
		t.Errorf("%+v, %v", first, err)
	}
	second, err := h.Sessions(t.Context(), SessionsQuery{Network: "net_a", Destination: resolver, Limit: 2, After: first.Next})
	if err != nil || len(second.Sessions) != 2 || second.Sessions[0] != page.Sessions[1] {
		t.Errorf("%+v, %v", second, err)
	}
	page, err = h.Sessions(t.Context(), SessionsQuery{Network: "net_a", Inner: page.Sessions[0].Inner.Addr(), Destination: resolver})
	if err != nil || len(page.Sessions) != 1 {
		t.Errorf("%+v, %v", page, err)
	}
}

// C-10: of a pair whose other IP another host holds, each session is told once.
func TestSessionsReadoutOfHalfAPair(t *testing.T) {
	for _, away := range []int{0, 1} {
		h, r := readoutHost(t)
		h.networks["net_a"].held[away], r.f.tables[away].nat = false, nil
		seen := map[readout.Session]int{}
		page, err := h.Sessions(t.Context(), SessionsQuery{Network: "net_a", Limit: 100})
		for _, s := range page.Sessions {
			if seen[s]++; seen[s] > 1 || s.External.Addr() != pair[1-away] {
				t.Errorf("without IP %d: %+v, told %d times", away, s, seen[s])
			}
		}
		if want := [...]int{3, 37}[away]; err != nil || len(seen) != want || page.More {
			t.Errorf("without IP %d: %d sessions, want %d; more: %v, %v", away, len(seen), want, page.More, err)
		}
	}
}

// countingClock counts how often it is read: once for each step of a read-out of sessions.
type countingClock struct {
	Clock
	n int
}

func (c *countingClock) Now() packet.Instant {
	c.n++
	return c.Clock.Now()
}

// C-10: where a few sessions are left of many, a page takes few steps, each of which rests.
func TestSessionsReadoutOfFewLeft(t *testing.T) {
	r := newRigOf(t, nat.Config{})
	gone, stays := r.attach(0, 0), r.attach(0, 1)
	for port := range uint16(20_000) {
		r.write(udp(t, at(gone, 1024+port), origin, nil))
		r.up.sent = r.up.sent[:0]
	}
	r.write(udp(t, at(stays, 1), origin, nil))
	r.f.Revoke(gone)
	clock := &countingClock{Clock: r.clock}
	n := &network{id: "net_a", pair: pair, held: [2]bool{true, true}, fwd: r.f, clock: clock}
	h := &Host{networks: map[string]*network{"net_a": n}}
	page, err := h.Sessions(t.Context(), SessionsQuery{Network: "net_a", Limit: 1})
	if err != nil || len(page.Sessions) != 1 || page.Sessions[0].Inner.Addr() != stays {
		t.Fatalf("%+v, %v", page, err)
	}
	if most := 20_000/readStep + 14; clock.n > most {
		t.Errorf("%d steps, want at most %d", clock.n, most)
	}
}

// C-10: metrics tell of pressure before anybody is refused, and of refusals by reason.
func TestTableMetrics(t *testing.T) {
	h, r := readoutHost(t)
	r.drain(pair[1], true)
	r.write(fragmentsOf(udp(t, at(alice, 1), origin, make([]byte, 3000)))[:1]...)
	registry := prometheus.NewRegistry()
	registry.MustRegister(h)
	got := map[string]float64{}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := f.GetName()
			for _, l := range m.GetLabel() {
				if l.GetName() != "network" {
					key += " " + l.GetValue()
				}
			}
			got[key] = m.GetGauge().GetValue()
		}
	}
	for key, want := range map[string]float64{
		"sallyport_ports_left 203.0.113.10 udp":       98,
		"sallyport_ports_left 203.0.113.10 icmp":      100,
		"sallyport_half_open 203.0.113.10":            35,
		"sallyport_crowded_destinations 203.0.113.10": 0,
		"sallyport_ports_held 203.0.113.10":           0,
		"sallyport_ip_draining 203.0.113.10":          0,
		"sallyport_ip_draining 203.0.113.11":          1,
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s is %v (there: %v), want %v", key, v, ok, want)
		}
	}
	if v := got["sallyport_fragment_bytes"]; v < 1000 || v > 4096 {
		t.Errorf("a fragment takes %v bytes", v)
	}
}
