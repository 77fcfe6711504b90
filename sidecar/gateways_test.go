package sidecar

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/sidecar/failover"
	"github.com/sallyport-net/sallyport/tunnel"
)

// The internet of these tests: a host that echoes what it hears on some TCP ports.
var (
	webHost  = netip.MustParseAddr("192.0.2.80")
	web      = netip.AddrPortFrom(webHost, 80)
	webOther = netip.AddrPortFrom(webHost, 81)
)

// serveTCP gives a gateway an internet.
func (g *gateway) serveTCP(t *testing.T) {
	t.Helper()
	far, err := netstack.New(netstack.Config{Addresses: []netip.Addr{webHost}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	for _, at := range []netip.AddrPort{web, webOther} {
		l, err := far.ListenTCP(at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
			}
		}()
	}
	go func() {
		bufs, sizes := readBuffers()
		for {
			n, err := far.Read(bufs, sizes, 0)
			if err != nil {
				return
			}
			for i := range n {
				select {
				case g.out <- bytes.Clone(bufs[i][:sizes[i]]):
				case <-g.closed:
					return
				}
			}
		}
	}()
	g.with(func() { g.far = far })
}

// quick are settings under which a test need not wait.
func quick() Config {
	return Config{Failover: failover.Config{
		InUse: 20 * time.Millisecond, Standby: 40 * time.Millisecond, Suspect: 10 * time.Millisecond,
		Hold: 100 * time.Millisecond, HoldJitter: time.Millisecond, Failbacks: 1000,
	}}
}

// oneRegion finds the same control plane for every region.
type oneRegion struct{ control Control }

func (r oneRegion) Control(string, string) (Control, error) { return r.control, nil }

// estate is a network with two gateway hosts, and a passive one in another region.
type estate struct {
	*Sidecar
	home, away       *plane
	gw1, gw2, remote *gateway
}

func newEstate(t *testing.T, cfg Config) *estate {
	t.Helper()
	w := &estate{home: newPlane(t), away: newPlane(t)}
	w.gw1, w.gw2, w.remote = w.home.gateways["net_a"], newGateway(t, tunnel.NewKey()), w.away.gateways["net_a"]
	w.gw2.host, w.remote.host = "gw2", "gw9"
	for _, g := range []*gateway{w.gw1, w.gw2, w.remote} {
		g.serveTCP(t)
	}
	w.home.siblings["net_a"] = w.gw2
	w.home.passive = &api.PassiveRegion{Region: "cle1", Network: "net_p"}
	w.away.base, w.away.dns = [2]byte{172, 16}, []netip.Addr{netip.MustParseAddr("172.16.0.1")}
	w.away.networks = map[string]string{"p": "net_p"}
	w.away.gateways = map[string]*gateway{"net_p": w.remote}
	cfg.Regions = oneRegion{w.away.client(t)}
	w.Sidecar = newConfiguredSidecar(t, w.home, cfg)
	return w
}

// enter begins a sandbox on a device.
func (w *estate) enter(t *testing.T, dev func(sandboxAnswer) *netstack.Device) (sandboxAnswer, *netstack.Device) {
	t.Helper()
	ans, err := w.attach(t.Context(), request("p"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := w.claim(ans.ID)
	if err != nil {
		t.Fatal(err)
	}
	d := dev(ans)
	if err := w.connectDevice(t.Context(), e, d); err != nil {
		t.Fatal(err)
	}
	return ans, d
}

// stack is a sandbox with a TCP/IP stack.
type stack struct {
	*netstack.Device
	sandboxAnswer
}

func (w *estate) stack(t *testing.T) stack {
	t.Helper()
	ans, d := w.enter(t, func(a sandboxAnswer) *netstack.Device {
		d, err := netstack.New(netstack.Config{Addresses: []netip.Addr{a.Inner}})
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
	return stack{d, ans}
}

// dial opens a connection.
func (s stack) dial(t *testing.T, to netip.AddrPort) *netstack.Conn {
	t.Helper()
	c, err := s.DialTCP(short(t, patience), netip.AddrPortFrom(s.Inner, 0), to)
	if err != nil {
		t.Fatalf("connect to %v: %v", to, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// echo says something on a connection and waits for the echo.
func echo(t *testing.T, c *netstack.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 5)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Fatalf("heard %q, %v", b, err)
	}
}

// settled waits until every gateway answers and new flows go by a host.
func (w *estate) settled(t *testing.T, host string) {
	t.Helper()
	eventually(t, "all gateways are known, and new flows go by "+host, func() bool {
		n := w.status().Networks[0]
		dead := slices.ContainsFunc(n.Paths, func(p pathStatus) bool { return p.State != "good" })
		return !dead && n.Groups[0].Choice != nil && n.Groups[0].Choice.Host == host
	})
}

// chosen waits until new flows go by a host.
func (w *estate) chosen(t *testing.T, host string) {
	t.Helper()
	eventually(t, "new flows go by "+host, func() bool {
		g := w.status().Networks[0].Groups
		return len(g) == 1 && g[0].Choice != nil && g[0].Choice.Host == host
	})
}

// lastSwitch waits for the report of a switch to a host.
func (w *estate) lastSwitch(t *testing.T, to string) switchRecord {
	t.Helper()
	var last switchRecord
	eventually(t, "a switch to "+to+" is reported", func() bool {
		all := w.status().Networks[0].Switches
		i := slices.IndexFunc(all, func(r switchRecord) bool { return r.Switched && r.To != nil && r.To.Host == to })
		if i >= 0 {
			last = all[i]
		}
		return i >= 0
	})
	return last
}

// A gateway that is killed under load costs the connections through it, which are
// told at once; those that open are opened by its sibling. When that dies, too, the
// passive region takes over, where the sandbox has another address and does not
// notice.
func TestSiblingThenPassive(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("estate", func(t *testing.T) {
		w := newEstate(t, quick())
		box := w.stack(t)
		if box.Passive.State != passiveReady || box.Passive.Region != "cle1" || box.Passive.Network != "net_p" {
			t.Fatalf("passive %+v", box.Passive)
		}
		w.settled(t, "gw1")
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
		// One connection opens at the moment of death.
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
		_ = idle.SetDeadline(time.Now().Add(patience))
		if _, err := idle.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the idle connection ends with %v, want a reset", err)
		}
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

		open := box.dial(t, web)
		echo(t, open)
		w.gw2.end()
		_ = open.SetDeadline(time.Now().Add(patience))
		if _, err := open.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the connection through the sibling ends with %v, want a reset", err)
		}
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
	})
}

// entry finds a sandbox.
func (w *estate) entry(id string) *entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.entries[id]
}

// opening says whether a SYN of the sandbox is kept.
func (w *estate) opening(id string) bool {
	sw := w.entry(id).sw
	sw.mu.Lock()
	defer sw.mu.Unlock()
	return sw.flows.syns.used > 0
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
	_ = old.SetDeadline(time.Now().Add(patience))
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the old connection ends with %v, want a reset", err)
	}
	w.chosen(t, "gw1")
}

// A gateway that drains keeps its connections, for as long as they may linger.
func TestDraining(t *testing.T) {
	cfg := quick()
	cfg.Linger = 500 * time.Millisecond
	w := newEstate(t, cfg)
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
	_ = old.SetDeadline(time.Now().Add(patience))
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after the time to linger an old connection ends with %v, want a reset", err)
	}
	eventually(t, "the end of the lingering is reported", func() bool {
		all := w.status().Networks[0].Switches
		last := all[len(all)-1]
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
	_ = old.SetDeadline(time.Now().Add(patience))
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection ends with %v, want a reset", err)
	}
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
	future := m
	future.Sequence += 1000
	alien := m
	alien.Nonce++
	alien.Health = packet.HealthDraining
	question := m
	question.Type = packet.ProbeRequest
	sick := future
	sick.Health = packet.HealthUplinkLost
	broken := reply(sick, gateway)
	broken[len(broken)-1]++
	w.gw1.setMute(true)
	forged := [][]byte{
		replayed, reply(future, gateway), reply(alien, gateway), reply(question, gateway), reply(sick, gateway), broken,
		reply(m, netip.MustParseAddrPort("192.0.2.1:7")), reply(m, netip.AddrPortFrom(p.Src, 8)),
	}
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

// A passive region that is away delays no sandbox, and is asked again.
func TestPassiveRegionAway(t *testing.T) {
	w := newEstate(t, quick())
	w.away.with(func() {
		w.away.refuse = &api.Error{Status: http.StatusServiceUnavailable, Code: "away", Message: "not now"}
	})
	box := w.stack(t)
	if box.Passive.State != passiveFailed || box.Passive.Reason == "" || box.Passive.Network != "net_p" {
		t.Fatalf("passive %+v", box.Passive)
	}
	w.settled(t, "gw1")
	plane := w.planes["cle1"]
	if err := w.compare(t.Context(), plane); err == nil {
		t.Error("the passive region answers")
	}
	if st := w.status(); st.Regions["cle1"].Reachable || st.Regions["cle1"].Error == "" {
		t.Errorf("status %+v", st.Regions)
	}
	w.away.with(func() { w.away.refuse = nil })
	if err := w.compare(t.Context(), plane); err != nil {
		t.Fatal(err)
	}
	if got := w.listing().Sandboxes[0].Passive; got.State != passiveReady || got.Reason != "" {
		t.Errorf("passive %+v", got)
	}
	w.settled(t, "gw1")
	w.gw1.end()
	w.gw2.end()
	w.chosen(t, "gw9")
	echo(t, box.dial(t, web))
	if w.remote.from(w.entry(box.ID).passive.attachment.Inner) == 0 {
		t.Error("the passive gateway saw nothing")
	}
}

// A sandbox whose passive attachment comes when its region is dead already goes there.
func TestPassiveComesLate(t *testing.T) {
	w := newEstate(t, quick())
	w.away.with(func() {
		w.away.refuse = &api.Error{Status: http.StatusServiceUnavailable, Code: "away", Message: "not now"}
	})
	box := w.stack(t)
	w.settled(t, "gw1")
	old := box.dial(t, web)
	echo(t, old)
	w.gw1.end()
	w.gw2.end()
	eventually(t, "both are dead", func() bool {
		return !slices.ContainsFunc(w.status().Networks[0].Paths, func(p pathStatus) bool { return p.State != "dead" })
	})
	w.away.with(func() { w.away.refuse = nil })
	w.entry(box.ID).passive.due = time.Time{} // nobody is waiting here
	if err := w.compare(t.Context(), w.planes["cle1"]); err != nil {
		t.Fatal(err)
	}
	echo(t, box.dial(t, web))
	_ = old.SetDeadline(time.Now().Add(patience))
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the old connection ends with %v, want a reset", err)
	}
}

// Detaching detaches in both regions; a control plane that lost its memory is told
// again in both.
func TestBothRegionsAreTold(t *testing.T) {
	w := newEstate(t, quick())
	box, other := w.stack(t), w.stack(t)
	if w.home.count() != 2 || w.away.count() != 2 {
		t.Fatalf("%d and %d attachments, want 2 and 2", w.home.count(), w.away.count())
	}
	plane := w.planes["cle1"]
	before, _ := w.attachments(plane)
	w.away.with(func() { clear(w.away.list) })
	if err := w.compare(t.Context(), plane); err != nil || w.away.count() != 2 {
		t.Fatalf("after a restart there are %d, %v", w.away.count(), err)
	}
	for _, r := range w.away.resumed {
		if was := before[r.ID]; r.InnerAddress != was.Inner || r.WorkerAddress != was.Worker || r.Network != "net_p" {
			t.Errorf("resumed %+v, was %+v", r, was)
		}
	}
	// Another one has the address by now: the sandbox gets a new one, and goes on.
	id := w.entry(box.ID).passive.attachment.ID
	was := w.entry(box.ID).passive.attachment.Inner
	w.lose(t.Context(), plane, id, "the address is another's")
	if got := w.listing().Sandboxes; got[0].Passive.State != passiveFailed || got[1].Passive.State != passiveReady {
		t.Errorf("passive %+v, %+v", got[0].Passive, got[1].Passive)
	}
	if err := w.compare(t.Context(), plane); err != nil {
		t.Fatal(err)
	}
	if p := w.entry(box.ID).passive; p.state != passiveReady || p.attachment.Inner == was {
		t.Errorf("passive %+v, was %v", p.status(), was)
	}
	w.detach(t.Context(), box.ID, "test")
	if w.home.count() != 1 {
		t.Errorf("%d attachments at home, want 1", w.home.count())
	}
	w.detach(t.Context(), other.ID, "test")
	w.Sidecar.mu.Lock()
	networks := len(w.networks)
	w.Sidecar.mu.Unlock()
	if w.home.count() != 0 || networks != 0 {
		t.Errorf("%d attachments and %d networks are left", w.home.count(), networks)
	}
	if slices.Contains(w.away.detached, id) {
		t.Error("an attachment that is another's was detached")
	}
	for n := range w.away.list {
		if n != id {
			t.Errorf("%s is left in the passive region", n)
		}
	}
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

// What the environment's passive network is may change.
func TestPassiveNetworkChanges(t *testing.T) {
	w := newEstate(t, quick())
	box := w.stack(t)
	w.settled(t, "gw1")
	ask := func() {
		t.Helper()
		w.Sidecar.mu.Lock()
		w.network("net_a").asked = time.Time{}
		w.Sidecar.mu.Unlock()
		if err := w.compare(t.Context(), w.Sidecar.home); err != nil {
			t.Fatal(err)
		}
	}
	w.home.with(func() { w.home.passive = nil })
	ask()
	if got := w.listing().Sandboxes[0].Passive; got.State != passiveNone || w.away.count() != 0 {
		t.Errorf("passive %+v, %d attachments there", got, w.away.count())
	}
	if n := len(w.status().Networks[0].Paths); n != 2 {
		t.Errorf("%d paths, want 2", n)
	}
	echo(t, box.dial(t, web))
	w.home.with(func() { w.home.passive = &api.PassiveRegion{Region: "cle1", Network: "net_p"} })
	ask()
	if err := w.compare(t.Context(), w.planes["cle1"]); err != nil {
		t.Fatal(err)
	}
	if got := w.listing().Sandboxes[0].Passive; got.State != passiveReady {
		t.Errorf("passive %+v", got)
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
