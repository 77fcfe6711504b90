package demo

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/bench/daemon"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// sent is a packet of IPv4 that came in.
func sent(proto uint8, from, to string) netlab.Packet {
	return netlab.Packet{EtherType: 0x0800, Proto: proto, Src: netip.MustParseAddrPort(from), Dst: netip.MustParseAddrPort(to), Length: 40}
}

func TestLinks(t *testing.T) {
	bypassed := sources("198.51.100.2:4000")
	gateway := []netlab.Packet{
		{EtherType: etherARP},
		sent(protocolUDP, "198.51.100.18:51820", "198.51.100.2:5000"),
		sent(protocolTCP, "203.0.113.12:4000", "192.0.2.80:80"),
	}
	worker := []netlab.Packet{
		sent(protocolUDP, "198.51.100.2:5000", "198.51.100.18:51820"),
		sent(protocolTCP, "198.51.100.2:4000", "192.0.2.80:80"),
	}
	out := sent(protocolUDP, "192.0.2.80:7", "203.0.113.10:9")
	out.Out = true
	leak := sent(protocolUDP, "192.0.2.80:7", "10.20.0.2:9")
	leak.Out = true
	closed := sent(protocolICMP, "198.51.100.18:0", "198.51.100.2:0")
	closed.ICMPType, closed.ICMPCode = 3, 3
	filtered := closed
	filtered.ICMPCode = 13
	for _, c := range []struct {
		name    string
		packets []netlab.Packet
		more    []netlab.Packet
		lost    uint64
		held    bool
	}{
		{"gateway", gateway, nil, 0, true},
		{"gateway, answered", gateway, []netlab.Packet{out}, 0, true},
		{"gateway, incomplete", gateway, nil, 1, false},
		{"gateway, no tunnel", gateway[2:], nil, 0, false},
		{"gateway, nothing from the pairs", gateway[:2], nil, 0, false},
		{"gateway's own address", gateway, []netlab.Packet{sent(protocolTCP, "198.51.100.18:4000", "192.0.2.80:80")}, 0, false},
		{"gateway, UDP that is no tunnel", gateway, []netlab.Packet{sent(protocolUDP, "198.51.100.18:4000", "192.0.2.53:53")}, 0, false},
		{"gateway, its sibling's address", gateway, []netlab.Packet{sent(protocolTCP, "203.0.113.11:4000", "192.0.2.80:80")}, 0, false},
		{"gateway, site tunnel", gateway, []netlab.Packet{sent(protocolUDP, "198.51.100.18:51899", "198.51.100.66:4000")}, 0, true},
		{"gateway, site tunnel to anybody", gateway, []netlab.Packet{sent(protocolUDP, "198.51.100.18:51899", "192.0.2.80:4000")}, 0, false},
		{"gateway, a tunnel to the office", gateway, []netlab.Packet{sent(protocolUDP, "198.51.100.18:51820", "198.51.100.66:4000")}, 0, false},
		{"gateway, port closed", gateway, []netlab.Packet{closed}, 0, true},
		{"gateway, something else forbidden", gateway, []netlab.Packet{filtered}, 0, false},
		{"gateway, another of the pool", gateway, []netlab.Packet{sent(protocolTCP, "203.0.113.14:4000", "192.0.2.80:80")}, 0, false},
		{"gateway, inner source", gateway, []netlab.Packet{sent(protocolTCP, "10.20.0.2:4000", "192.0.2.80:80")}, 0, false},
		{"gateway, inner destination", gateway, []netlab.Packet{leak}, 0, false},
		{"gateway, IPv6", gateway, []netlab.Packet{{EtherType: 0x86dd, Src: netip.MustParseAddrPort("[2001:db8::1]:0")}}, 0, false},
		{"worker", worker, nil, 0, true},
		{"worker, who did not bypass", worker, []netlab.Packet{sent(protocolTCP, "198.51.100.2:4001", "192.0.2.80:80")}, 0, false},
		{"worker, DNS", worker, []netlab.Packet{sent(protocolUDP, "198.51.100.2:4000", "192.0.2.53:53")}, 0, false},
		{"worker, inner source", worker, []netlab.Packet{sent(protocolUDP, "10.20.0.2:5000", "198.51.100.18:51820")}, 0, false},
	} {
		why, reasons := ofGateway(testPlan, atA), []string{byTunnel, byPair}
		if strings.HasPrefix(c.name, "worker") {
			why, reasons = ofWorker(testPlan, bypassed), []string{byTunnel, byBypass}
		}
		all := append(append([]netlab.Packet{}, c.packets...), c.more...)
		if got := onlyAllowed(all, c.lost, why, reasons...); got.held != c.held {
			t.Errorf("%s: got %v, want %v", c.name, got, c.held)
		}
	}
}

func TestRelayedLink(t *testing.T) {
	relay := sent(protocolUDP, "198.51.100.34:4000", "198.51.100.18:51899")
	for _, c := range []struct {
		at   int
		p    netlab.Packet
		want string
	}{
		{atB, relay, bySite},
		{atA, relay, ""},
		{atC, relay, ""},
		{atB, sent(protocolUDP, "198.51.100.34:4000", "198.51.100.18:51898"), ""},
		{atB, sent(protocolUDP, "198.51.100.34:51899", "198.51.100.66:4000"), ""},
		{atC, sent(protocolTCP, "203.0.113.21:4000", "192.0.2.80:80"), byPair},
		{atC, sent(protocolTCP, "203.0.113.10:4000", "192.0.2.80:80"), ""},
	} {
		if got := ofGateway(testPlan, c.at)(c.p); got != c.want {
			t.Errorf("%v from the host %d: got %q, want %q", c.p, c.at, got, c.want)
		}
	}
}

// TestWorld builds the machines and asks the internet from the worker's own address.
func TestWorld(t *testing.T) {
	netlab.Require(t)
	ignored := goleak.IgnoreCurrent()
	defer goleak.VerifyNone(t, ignored)
	w, err := newNamespaces(testPlan)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	}()
	o, err := startOrigin(w)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := o.close(); err != nil {
			t.Error(err)
		}
	}()
	client := &http.Client{Transport: &http.Transport{DialContext: w.worker.Dial, DisableKeepAlives: true}}
	for _, a := range []netip.AddrPort{testPlan.web, testPlan.refused} {
		b, err := daemon.Get(t.Context(), client, "http://"+a.String()+"/")
		if err != nil {
			t.Fatal(err)
		}
		if from, err := netip.ParseAddrPort(string(b)); err != nil || from.Addr() != testPlan.worker {
			t.Errorf("%v saw %q (%v), want a port of %v", a, b, err, testPlan.worker)
		}
	}
	if o, err := judgeCapture(w.fromWorker, ofWorker(testPlan, nil)); err != nil || o.held {
		t.Errorf("a worker that goes out by itself is not noticed: %v, %v", o, err)
	}
	if n := o.unwanted.Load(); n != 1 {
		t.Errorf("%d connections to where nobody may ask, not 1", n)
	}
}

// TestLoopbackPlan draws addresses and looks for what must differ.
func TestLoopbackPlan(t *testing.T) {
	for range 100 {
		p := drawLoopback()
		udp := make(map[uint16]string)
		for _, g := range p.gateways {
			for port := g.Tunnels.First; port <= g.Tunnels.Last; port++ {
				if udp[port] != "" {
					t.Fatalf("port %d is that of %s and %s", port, udp[port], g.Name)
				}
				udp[port] = g.Name
			}
			for _, a := range g.Dedicated {
				if !p.pool.Contains(a) && !p.standbyPool.Contains(a) {
					t.Fatalf("%v is in neither %v nor %v", a, p.pool, p.standbyPool)
				}
			}
		}
		if udp[p.site] != hostA {
			t.Fatalf("the site's port %d is that of %q", p.site, udp[p.site])
		}
		others := make(map[netip.AddrPort]bool)
		all := []netip.AddrPort{p.web, p.hold, p.refused, p.nameServer, p.control}
		for _, g := range p.gateways {
			all = append(all, g.Admin)
		}
		for _, a := range all {
			if others[a] || udp[a.Port()] != "" || !a.Addr().IsLoopback() {
				t.Fatalf("%v is used twice, or no loopback", a)
			}
			others[a] = true
		}
	}
	if p, err := loopbackPlan(); err != nil || !p.loopback() {
		t.Errorf("no plan for this machine: %v", err)
	}
}

func TestArrivals(t *testing.T) {
	datagram := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 20, 0, 2, 10, 30, 0, 5, 0x12, 0x34, 0x15, 0x38, 0, 8, 0, 0}
	want := arrival{netip.MustParseAddrPort("10.20.0.2:4660"), netip.MustParseAddrPort("10.30.0.5:5432"), protocolUDP}
	if a, ok := parseArrival(datagram); !ok || a != want {
		t.Errorf("got %v, want %v", a, want)
	}
	for n := range 24 {
		if _, ok := parseArrival(datagram[:n]); ok {
			t.Errorf("%d bytes are taken for a datagram", n)
		}
	}
	asked := []caller{{"gw-a", want.from.Addr(), sources("10.20.0.2:4660")}}
	stranger := arrival{netip.MustParseAddrPort("203.0.113.10:1"), want.to, protocolTCP}
	for _, c := range []struct {
		name     string
		asked    []caller
		arrivals []arrival
		lost     int
		held     bool
	}{
		{"as it should be", asked, []arrival{want, want}, 0, true},
		{"nothing came", asked, nil, 0, false},
		{"some not seen", asked, []arrival{want}, 1, false},
		{"another came, too", asked, []arrival{want, stranger}, 0, false},
		{"translated", []caller{{"gw-a", want.from.Addr(), sources("203.0.113.10:1")}}, []arrival{want}, 0, false},
		{"one did not come", append([]caller{{"gw-b", stranger.from.Addr(), sources("203.0.113.10:1")}}, asked...), []arrival{want}, 0, false},
	} {
		if o := untranslated(c.asked, c.arrivals, c.lost); o.held != c.held {
			t.Errorf("%s: %v", c.name, o)
		}
	}
}
