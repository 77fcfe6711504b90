package sidecar

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/internal/netstack"
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

// quick are settings under which a test need not wait long, and which a busy machine
// does not take for a death.
func quick() Config {
	return Config{Failover: failover.Config{
		InUse: 20 * time.Millisecond, Standby: 40 * time.Millisecond, Suspect: 10 * time.Millisecond,
		MissFloor: 500 * time.Millisecond,
		Hold:      100 * time.Millisecond, HoldJitter: time.Millisecond, Failbacks: 1000,
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
	w.away.region = "cle1"
	w.away.networks = map[string]string{"p": "net_p"}
	w.away.gateways = map[string]*gateway{"net_p": w.remote}
	cfg.Regions = oneRegion{w.away.client(t)}
	w.Sidecar = newConfiguredSidecar(t, w.home, cfg)
	return w
}

// enter begins a sandbox on a device.
func (w *estate) enter(t *testing.T, dev func(Attached) *netstack.Device) (Attached, *netstack.Device) {
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
	Attached
}

func (w *estate) stack(t *testing.T) stack {
	t.Helper()
	ans, d := w.enter(t, func(a Attached) *netstack.Device {
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

// mustBeReset waits until a connection is reset.
func mustBeReset(t *testing.T, c *netstack.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection ends with %v, want a reset", err)
	}
}

// ready waits until the sandbox is attached to its passive network.
func (w *estate) ready(t *testing.T, id string) {
	t.Helper()
	eventually(t, "it is attached to its passive network", func() bool {
		e := w.entry(id)
		w.Sidecar.mu.Lock()
		defer w.Sidecar.mu.Unlock()
		return e.passive.state == passiveReady
	})
}

// settled waits until every gateway answers and new flows go by a host.
func (w *estate) settled(t *testing.T, host string) {
	t.Helper()
	eventually(t, "all gateways are known, and new flows go by "+host, func() bool {
		n := w.status().Networks[0]
		dead := slices.ContainsFunc(n.Paths, func(p PathStatus) bool { return p.State != "good" })
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
func (w *estate) lastSwitch(t *testing.T, to string) SwitchRecord {
	t.Helper()
	var last SwitchRecord
	eventually(t, "a switch to "+to+" is reported", func() bool {
		all := w.status().Networks[0].Switches
		i := slices.IndexFunc(all, func(r SwitchRecord) bool { return r.Switched && r.To != nil && r.To.Host == to })
		if i >= 0 {
			last = all[i]
		}
		return i >= 0
	})
	return last
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

// expire lets the time be over for which old flows may linger.
func (w *estate) expire() {
	watch := w.network("net_a").watch
	watch.mu.Lock()
	defer watch.mu.Unlock()
	for _, g := range watch.groups {
		for id := range g.lingering {
			g.lingering[id] = 0
		}
	}
	watch.hurry()
}
