package sidecar

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/tunnel"
)

// A gateway that is killed under load costs the connections through it, which are
// told at once; those that open are opened by its sibling. When that dies, too, the
// passive region takes over, where the sandbox has another address and does not
// notice.
func TestSiblingThenPassive(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("estate", func(t *testing.T) {
		w := newEstate(t, quick())
		box := w.stack(t)
		if s := box.Passive; s.State != passiveReady && s.State != passivePending || s.Region != "cle1" || s.Network != "net_p" {
			t.Fatalf("passive %+v", s)
		}
		w.ready(t, box.ID)
		w.settled(t, "gw1")
		w.killTheActive(t, box)
		w.killTheSibling(t, box)
	})
}

// killTheActive kills it while one connection is idle, one busy, and one opens.
func (w *estate) killTheActive(t *testing.T, box stack) {
	idle, busy := box.dial(t, web), box.dial(t, web)
	echo(t, idle)
	echo(t, busy)
	load := make(chan error, 1)
	go func() { // as much as goes
		_ = busy.SetDeadline(time.Time{})
		go func() { _, _ = io.Copy(io.Discard, busy) }()
		b := make([]byte, 1<<16)
		for {
			if _, err := busy.Write(b); err != nil {
				load <- err
				return
			}
		}
	}()
	w.gw1.with(func() { w.gw1.deaf = webOther.Port() })
	opening := make(chan error, 1)
	go func() {
		c, err := box.DialTCP(short(t, patience), netip.AddrPortFrom(box.Inner, 0), webOther)
		if err == nil {
			_ = c.Close()
		}
		opening <- err
	}()
	eventually(t, "a SYN waits", func() bool { return w.opening(box.ID) })

	w.gw1.end()
	began := time.Now()
	mustBeReset(t, idle)
	t.Logf("reset %v after the death", time.Since(began))
	if err := <-load; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the busy connection ends with %v, want a reset", err)
	}
	if err := <-opening; err != nil {
		t.Errorf("the connection that was opening: %v", err)
	}
	echo(t, box.dial(t, web))
	if w.gw2.from(box.Inner) == 0 {
		t.Error("the sibling saw nothing")
	}
	r := w.lastSwitch(t, "gw2")
	if r.Reason != "dead" || !r.Lost || r.From.Host != "gw1" || r.Reset != 2 || r.Resent != 1 || r.Moved != 1 || r.Detection <= 0 {
		t.Errorf("switch %+v", r)
	}
	t.Logf("switch %+v", r)
}

// killTheSibling kills the last gateway of the region.
func (w *estate) killTheSibling(t *testing.T, box stack) {
	open := box.dial(t, web)
	echo(t, open)
	w.gw2.end()
	mustBeReset(t, open)
	echo(t, box.dial(t, web))
	there := w.entry(box.ID).passive.attachment.Inner
	if n := w.remote.from(there); n == 0 || w.remote.from(box.Inner) != 0 {
		t.Errorf("the passive gateway saw %d packets of %v and %d of %v", n, there, w.remote.from(box.Inner), box.Inner)
	}
	u, err := box.DialUDP(netip.AddrPortFrom(box.Inner, 0), netip.AddrPortFrom(box.DNS[0], 53))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	_ = u.SetDeadline(time.Now().Add(patience))
	if _, err := u.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	if n, err := u.Read(make([]byte, 16)); err != nil || n != 8 {
		t.Errorf("the name server answers %d bytes, %v", n, err)
	}
	w.remote.with(func() {
		if w.remote.asked[w.away.dns[0]] != 1 || w.remote.asked[box.DNS[0]] != 0 {
			t.Errorf("name servers asked there: %v", w.remote.asked)
		}
	})
}

// A gateway that comes back gets new flows after its hold, and only those.
func TestFailback(t *testing.T) {
	w := newEstate(t, quick())
	box := w.stack(t)
	w.settled(t, "gw1")
	w.gw1.setMute(true)
	w.chosen(t, "gw2")
	old := box.dial(t, web)
	echo(t, old)
	w.gw1.setMute(false)
	w.chosen(t, "gw1")
	before := w.gw1.from(box.Inner)
	echo(t, old)
	if n := w.gw1.from(box.Inner); n != before {
		t.Error("an old connection moved")
	}
	echo(t, box.dial(t, web))
	if n := w.gw1.from(box.Inner); n == before {
		t.Error("a new connection did not go back")
	}
	r := w.lastSwitch(t, "gw1")
	if r.Reason != "failback" || r.Lost || r.Reset != 0 || r.Moved != 0 || r.From.Host != "gw2" {
		t.Errorf("switch %+v", r)
	}
	g := w.status().Networks[0].Groups[0]
	if g.Failbacks != 1 || g.Switches != 2 || len(g.Lingering) != 1 || g.Lingering[0].Host != "gw2" {
		t.Errorf("group %+v", g)
	}
	// What stayed behind is lost with its gateway, although nothing prefers it.
	w.gw2.end()
	mustBeReset(t, old)
	w.chosen(t, "gw1")
}

// A gateway that drains keeps its connections, for as long as they may linger.
func TestDraining(t *testing.T) {
	w := newEstate(t, quick())
	box := w.stack(t)
	w.settled(t, "gw1")
	old := box.dial(t, web)
	echo(t, old)
	w.gw1.with(func() { w.gw1.health = packet.HealthDraining })
	w.chosen(t, "gw2")
	before := w.gw2.from(box.Inner)
	echo(t, old)
	if n := w.gw2.from(box.Inner); n != before {
		t.Error("an old connection moved")
	}
	echo(t, box.dial(t, web))
	if n := w.gw2.from(box.Inner); n == before {
		t.Error("a new connection went to a gateway that drains")
	}
	if r := w.lastSwitch(t, "gw2"); r.Reason != "draining" || r.Lost || r.Reset != 0 {
		t.Errorf("switch %+v", r)
	}
	w.expire()
	mustBeReset(t, old)
	eventually(t, "the end of the lingering is reported", func() bool {
		all := w.status().Networks[0].Switches
		last := all[len(all)-1] // there is one
		return last.Reason == reasonLinger && last.Reset == 1 && !last.Switched && last.Lost
	})
}

// A gateway without an uplink is left at once, and so are its connections.
func TestUplinkLost(t *testing.T) {
	w := newEstate(t, quick())
	box := w.stack(t)
	w.settled(t, "gw1")
	old := box.dial(t, web)
	echo(t, old)
	w.gw1.with(func() { w.gw1.health = packet.HealthUplinkLost })
	mustBeReset(t, old)
	if r := w.lastSwitch(t, "gw2"); r.Reason != "unhealthy" || !r.Lost || r.Reset != 1 {
		t.Errorf("switch %+v", r)
	}
}

// Answers that were not asked for keep no dead gateway alive and make no live one
// look better; they are counted.
func TestFalseAnswers(t *testing.T) {
	w := newEstate(t, quick())
	w.stack(t)
	w.settled(t, "gw1")
	link := w.network("net_a").links["gw1"]
	var replayed []byte
	w.gw1.with(func() { replayed = bytes.Clone(w.gw1.last) })
	forged := forge(t, replayed)
	w.gw1.setMute(true)
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		pause := time.NewTicker(time.Millisecond) // this is no flood
		defer pause.Stop()
		for {
			for _, b := range forged {
				w.gw1.out <- b
			}
			select {
			case <-pause.C:
			case <-stop:
				return
			}
		}
	}()
	w.chosen(t, "gw2")
	close(stop)
	<-ended
	if n := link.path.falseAnswers.Load(); n < uint64(len(forged)) {
		t.Errorf("%d false answers are counted, want %d or more", n, len(forged))
	}
	if r := w.lastSwitch(t, "gw2"); r.Reason != "dead" {
		t.Errorf("the reason is %q, want dead", r.Reason)
	}
	if n := w.network("net_a").links["gw2"].path.falseAnswers.Load(); n != 0 {
		t.Errorf("%d false answers on the sibling's path", n)
	}
}

// forge makes packets out of the answer to a probe that look like others.
func forge(t *testing.T, replayed []byte) [][]byte {
	t.Helper()
	var p packet.Packet
	if packet.Parse(&p, replayed) != packet.Pass {
		t.Fatal("no answer was seen")
	}
	m, _ := packet.ParseProbe(p.Data())
	reply := func(m packet.Probe, from netip.AddrPort) []byte {
		var payload [packet.ProbeSize]byte
		m.Put(payload[:])
		b := make([]byte, 100)
		return b[:packet.BuildUDP(b, from, netip.AddrPortFrom(p.Dst, packet.ProbePort), payload[:], 64, 0)]
	}
	gateway := netip.AddrPortFrom(p.Src, packet.ProbePort)
	future, alien, question := m, m, m
	future.Sequence += 1000
	alien.Nonce++
	alien.Health = packet.HealthDraining
	question.Type = packet.ProbeRequest
	sick := future
	sick.Health = packet.HealthUplinkLost
	broken := reply(sick, gateway)
	broken[len(broken)-1]++
	return [][]byte{
		replayed, reply(future, gateway), reply(alien, gateway), reply(question, gateway), reply(sick, gateway), broken,
		reply(m, netip.MustParseAddrPort("192.0.2.1:7")), reply(m, netip.AddrPortFrom(p.Src, 8)),
	}
}

// A dead gateway keeps no sandbox from running, and the sandbox runs with both in view.
func TestStartWhileTheActiveIsDead(t *testing.T) {
	w := newEstate(t, quick())
	w.gw1.end()
	box := w.stack(t)
	echo(t, box.dial(t, web))
	if w.gw2.from(box.Inner) == 0 {
		t.Error("the sibling saw nothing")
	}
}

// A host that learns late of a worker, and has dropped its first call, is called again
// long before WireGuard itself would, which is after 5 s. A busy machine may take as long
// once, but not each time.
func TestSiblingLearnsLate(t *testing.T) {
	for range 3 {
		took := learnsLate(t)
		if took < 4*time.Second {
			return
		}
		t.Logf("that took %v", took)
	}
	t.Error("WireGuard's own retry did it")
}

// learnsLate is how long it takes from a sibling's first call, which it drops, until it
// has answered one.
func learnsLate(t *testing.T) time.Duration {
	t.Helper()
	w := newEstate(t, quick())
	w.home.late = true
	w.stack(t)
	w.Sidecar.mu.Lock()
	link := w.network("net_a").links["gw2"]
	w.Sidecar.mu.Unlock()
	peer := func() tunnel.PeerStats {
		peers, err := link.tunnel.Peers()
		if err != nil || len(peers) != 1 {
			t.Fatalf("%v, %v", peers, err)
		}
		return peers[0]
	}
	eventually(t, "the sibling is called", func() bool { return peer().TxBytes > 0 })
	began := time.Now()
	w.home.with(func() { w.home.admit(w.gw2, "net_a") })
	eventually(t, "the sibling answers", func() bool { return !peer().LastHandshake.IsZero() })
	return time.Since(began)
}

// A host that the control plane names no more gets no new flows, and its tunnel
// goes when no connection is left.
func TestHostLeaves(t *testing.T) {
	w := newEstate(t, quick())
	box := w.stack(t)
	w.settled(t, "gw1")
	old := box.dial(t, web)
	echo(t, old)
	fresh := newGateway(t, tunnel.NewKey())
	fresh.host = "gw3"
	fresh.serveTCP(t)
	w.home.with(func() { w.home.gateways["net_a"] = fresh })
	n := w.network("net_a")
	w.Sidecar.mu.Lock()
	n.asked = time.Now().Add(-askInterval)
	leaving := n.links["gw1"]
	w.Sidecar.mu.Unlock()
	if err := w.compare(t.Context(), w.Sidecar.home); err != nil {
		t.Fatal(err)
	}
	if len(n.links) != 3 || leaving.unlisted.IsZero() {
		t.Fatalf("links %v", n.links)
	}
	w.dropLeaving()
	if n := len(n.links); n != 3 {
		t.Errorf("%d links; a host that is not named for a moment may be back", n)
	}
	w.Sidecar.mu.Lock()
	leaving.unlisted = time.Now().Add(-unlistedLimit)
	w.Sidecar.mu.Unlock()
	w.dropLeaving()
	eventually(t, "new flows go elsewhere", func() bool {
		c := w.status().Networks[0].Groups[0].Choice
		return c != nil && c.Host != "gw1"
	})
	w.dropLeaving()
	echo(t, old) // through a tunnel that is still needed
	_ = old.Close()
	eventually(t, "the tunnel is closed", func() bool {
		w.dropLeaving()
		select {
		case <-leaving.tunnel.Done():
			return true
		default:
			return false
		}
	})
	echo(t, box.dial(t, web))
	for _, p := range w.status().Networks[0].Paths {
		if p.Gateway.Host == "gw1" {
			t.Error("the host is still listed")
		}
	}
}

// A device that takes nothing holds up neither the switch of others nor the end.
func TestStuckDevice(t *testing.T) {
	w := newEstate(t, quick())
	ans, err := w.attach(t.Context(), request("p"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := w.claim(ans.ID)
	if err != nil {
		t.Fatal(err)
	}
	dev := newMemDevice()
	if err := w.connectDevice(t.Context(), e, dev); err != nil {
		t.Fatal(err)
	}
	for len(dev.in) < cap(dev.in) {
		dev.in <- nil
	}
	box := w.stack(t)
	w.settled(t, "gw1")
	for port := range uint16(200) { // connections in their midst
		h := packet.TCPHeader{Src: netip.AddrPortFrom(ans.Inner, 1000+port), Dst: web, Flags: packet.ACK, Ack: 7, TTL: 64}
		b := make([]byte, 40)
		packet.BuildTCP(b, h, nil)
		dev.out <- b
	}
	eventually(t, "they are known", func() bool {
		e.sw.mu.Lock()
		defer e.sw.mu.Unlock()
		return e.sw.flows.len() == 200
	})
	w.gw1.end()
	w.chosen(t, "gw2")
	echo(t, box.dial(t, web))
	w.detach(t.Context(), ans.ID, "test")
}

// A sandbox begins with the gateway that the control plane names first because the
// preferred one is away, and goes there when that is back.
func TestBeginAway(t *testing.T) {
	w := newEstate(t, quick())
	w.home.with(func() { w.home.swapped = true })
	w.gw1.setMute(true)
	box := w.stack(t)
	if g := w.status().Networks[0].Groups; g[0].Prefers != "gw1" || g[0].Choice == nil || g[0].Choice.Host != "gw2" {
		t.Errorf("groups %+v", g)
	}
	echo(t, box.dial(t, web))
	w.gw1.setMute(false)
	w.chosen(t, "gw1")
	if r := w.lastSwitch(t, "gw1"); r.Reason != "failback" {
		t.Errorf("switch %+v", r)
	}
}

// Bits of health that a later version may send mean nothing.
func TestUnknownHealth(t *testing.T) {
	w := newEstate(t, quick())
	w.gw1.with(func() { w.gw1.health = 0xf8 })
	box := w.stack(t)
	w.settled(t, "gw1")
	echo(t, box.dial(t, web))
	if p := w.status().Networks[0].Paths[0]; p.Health != 0 || p.Gateway.Host != "gw1" {
		t.Errorf("path %+v", p)
	}
}

// roles decide what is preferred, not who is named first because the other is away.
func TestPreferred(t *testing.T) {
	gw := func(host string, role spec.GatewayRole) spec.Gateway { return spec.Gateway{Host: host, Role: role} }
	for _, c := range []struct {
		in           []spec.Gateway
		host, listed string
	}{
		{[]spec.Gateway{gw("a", spec.RoleActive), gw("b", spec.RoleSibling)}, "a", "a"},
		{[]spec.Gateway{gw("b", spec.RoleSibling), gw("a", spec.RoleActive)}, "a", "b"},
		{[]spec.Gateway{gw("x", spec.RolePassive), gw("y", spec.RolePassive)}, "x", "x"},
	} {
		if host, listed := preferred(c.in); host != c.host || listed != c.listed {
			t.Errorf("%v: %s, %s; want %s, %s", c.in, host, listed, c.host, c.listed)
		}
	}
}

// A switch is counted and shown.
func TestSwitchIsReported(t *testing.T) {
	w := newEstate(t, quick())
	box := w.stack(t)
	w.ready(t, box.ID)
	w.settled(t, "gw1")
	echo(t, box.dial(t, web))
	w.gw1.end()
	w.lastSwitch(t, "gw2")
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(w.Sidecar)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			values[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for name, want := range map[string]float64{
		"sallyport_sidecar_switches_total net_a dead":          1,
		"sallyport_sidecar_flows_reset_total net_a":            1,
		"sallyport_sidecar_flows_moved_total net_a":            0,
		"sallyport_sidecar_syns_resent_total net_a":            0,
		"sallyport_sidecar_detection_seconds":                  1,
		"sallyport_sidecar_switch_seconds":                     1,
		"sallyport_sidecar_path_alive gw1 net_a":               0,
		"sallyport_sidecar_path_alive gw2 net_a":               1,
		"sallyport_sidecar_path_alive gw9 net_p":               1,
		"sallyport_sidecar_passive_attachments ready":          1,
		"sallyport_sidecar_path_false_answers_total gw2 net_a": 0,
	} {
		if got, there := values[name]; !there || got != want {
			t.Errorf("%s is %v (%v), want %v", name, got, there, want)
		}
	}
	b, err := json.Marshal(w.status())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		`"prefers":"gw1"`, `"choice":{"host":"gw2","region":"iad1","network":"net_a"}`, `"state":"away"`, `"state":"dead"`,
		`"reason":"dead"`, `"role":"passive"`, `"region":"cle1"`, `"lost":true`, `"reset":1`, `"regions":{"cle1":`,
	} {
		if !strings.Contains(string(b), part) {
			t.Errorf("status %s lacks %s", b, part)
		}
	}
	if b, err := json.Marshal(w.listing()); err != nil || !strings.Contains(string(b), `"passive":{"region":"cle1","network":"net_p","state":"ready"}`) {
		t.Errorf("listing %s, %v", b, err)
	}
}

// No more than the last decisions are remembered.
func TestSwitchLog(t *testing.T) {
	var l switchLog
	for i := range 3 * keptSwitches {
		l.add(SwitchRecord{Reset: uint64(i)})
	}
	if got := l.read(); len(got) != keptSwitches || got[0].Reset != 2*keptSwitches || got[keptSwitches-1].Reset != 3*keptSwitches-1 {
		t.Errorf("remembered %+v", got)
	}
}

// That flows which stayed behind are ended is a decision worth a word only where
// there were any.
func TestEmptySweepIsQuiet(t *testing.T) {
	log := &noted{lines: map[string]int{}}
	w, err := newWatch(watchConfig{network: "net_a", linger: time.Minute, clock: clock{time.Now()}, switches: newSwitchMetrics(), log: slog.New(log)})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []*switchover{
		{watch: w, record: SwitchRecord{Lost: true}},
		{watch: w, record: SwitchRecord{Lost: true, Reason: "linger"}},
		{watch: w, record: SwitchRecord{Lost: true, Switched: true}},
	} {
		v.reset.Store(uint64(len(v.record.Reason)))
		v.finish()
	}
	w.end()
	if quiet, loud, kept := log.count("DEBUG"), log.count("WARN"), len(w.records.read()); quiet != 1 || loud != 2 || kept != 2 {
		t.Errorf("%d quiet and %d loud lines, %d remembered; want 1, 2 and 2", quiet, loud, kept)
	}
}

// However many groups leave a path at once, each is told.
func TestManyGroupsLeave(t *testing.T) {
	clk := clock{time.Now()}
	log := slog.New(slog.DiscardHandler)
	w, err := newWatch(watchConfig{network: "net_a", linger: time.Minute, clock: clk, switches: newSwitchMetrics(), log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer w.end()
	var tracks []*track
	for _, host := range []string{"gw1", "gw2"} {
		p := newPath(pathConfig{
			gateway: netip.MustParseAddr("10.0.0.1"), mtu: 1420, sandboxes: newDirectory(), pool: newBufferPool(1420), clock: clk, count: &counters{},
		}, netip.MustParseAddr("10.0.0.2"))
		defer func() { _ = p.Close() }()
		tracks = append(tracks, w.add(&link{network: &network{}, path: p, gateway: spec.Gateway{Host: host}}))
	}
	groups := make([]*group, 200)
	for i := range groups {
		groups[i] = w.enter(groupKey{host: "gw1", passive: strconv.Itoa(i)}, tracks, tracks)
	}
	w.remove(tracks[0])
	for i, g := range groups {
		if got := g.choice.Load(); got != uint32(tracks[1].id) {
			t.Fatalf("group %d takes route %d, want %d", i, got, tracks[1].id)
		}
	}
}
