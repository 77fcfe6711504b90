package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/tunnel"
)

// sitePort and the next ones are those of site tunnels, on gw-a.
const sitePort = 23850

// siteState is a region of two hosts, on which both networks have one IP each. Their
// sites are on gw-a.
func siteState(peerings ...spec.Peering) spec.State {
	a, b := testNetwork("net_a", 1), testNetwork("net_b", 3)
	a.Site, b.Site = &spec.Site{Host: "gw-a", Port: sitePort}, &spec.Site{Host: "gw-a", Port: sitePort + 1}
	a.Hosts, b.Hosts = []string{"gw-a", "gw-b"}, []string{"gw-a", "gw-b"}
	s := testState(a, b)
	s.Regions[0].Hosts = append(s.Regions[0].Hosts, spec.Host{Name: "gw-b", Endpoint: netip.MustParseAddr("127.0.0.2")})
	s.Peerings = peerings
	return s
}

// region is two hosts that follow one store.
type region struct {
	t     *testing.T
	store *control.Store
	hosts map[string]*hostRig
}

func newRegion(t *testing.T, state spec.State) *region {
	t.Helper()
	r := &region{t: t, store: newStore(t, state), hosts: map[string]*hostRig{}}
	for i, name := range []string{"gw-a", "gw-b"} {
		r.open(name, uint16(i), regionSecret())
	}
	return r
}

// open starts a host, which has the i-th range of ports.
func (r *region) open(name string, i uint16, secret []byte) *hostRig {
	r.t.Helper()
	daemon := testDaemon()
	daemon.Host, daemon.WireGuard.Ports = name, spec.PortRange{First: 23840 + 20*i, Last: 23859 + 20*i}
	h := &hostRig{t: r.t, src: newSource(r.store), log: &lockedBuffer{}, ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(r.t.Context())
	h.end = cancel
	r.t.Cleanup(cancel)
	var err error
	h.host, err = OpenHost(ctx, HostConfig{
		Daemon: daemon, Secret: bytes.Repeat([]byte{byte(i)}, 32), RegionSecret: secret, Source: h.src, Clock: NewMonotonicClock(),
		Log: slog.New(slog.NewTextHandler(h.log, nil)),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	go func() { h.ended <- h.host.Run(ctx) }()
	r.hosts[name] = h
	return h
}

func (r *region) close() {
	r.t.Helper()
	for _, h := range r.hosts {
		h.close()
	}
}

func (r *region) replace(state spec.State) {
	r.t.Helper()
	if err := r.store.Replace(state); err != nil {
		r.t.Fatal(err)
	}
}

// stack is a TCP/IP stack behind a stock WireGuard tunnel.
type stack struct {
	t *testing.T
	*netstack.Device
	tunnel *tunnel.Tunnel
	addr   netip.Addr
	host   string // of a sandbox: the one that its tunnel leads to
}

func newStack(t *testing.T, key tunnel.Key, addr netip.Addr) *stack {
	t.Helper()
	dev, err := netstack.New(netstack.Config{Addresses: []netip.Addr{addr}})
	if err != nil {
		t.Fatal(err)
	}
	tun, err := tunnel.New(tunnel.Config{PrivateKey: key, Device: dev})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tun.Close)
	return &stack{t: t, Device: dev, tunnel: tun, addr: addr}
}

func (s *stack) peer(p tunnel.Peer) {
	s.t.Helper()
	if err := s.tunnel.SetPeer(p); err != nil {
		s.t.Fatal(err)
	}
}

// attach attaches sandboxes of a network until one leaves by a host.
func (r *region) attach(network, host string) *stack {
	r.t.Helper()
	for {
		key := tunnel.NewKey()
		resp, err := r.store.Attach(r.t.Context(), api.AttachRequest{
			Project: "prj_" + network, Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeGo,
			Region: "iad1", PublicKey: key.Public().String(),
		})
		if err != nil {
			r.t.Fatal(err)
		}
		gateway := resp.Gateways[0]
		if gateway.Host != host {
			continue
		}
		s := newStack(r.t, key, resp.Attachment.Inner)
		s.host = host
		public, err := tunnel.ParseKey(gateway.PublicKey)
		if err != nil {
			r.t.Fatal(err)
		}
		s.peer(tunnel.Peer{PublicKey: public, Endpoint: gateway.Endpoint, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}})
		return s
	}
}

// newOtherNetwork is a peered network of one server: TCP connections are told their
// source and its name, then get back what they send.
func newOtherNetwork(t *testing.T, key tunnel.Key, name string) *stack {
	t.Helper()
	s := newStack(t, key, database.Addr())
	s.serve(name)
	return s
}

// serve does that on the database's port.
func (s *stack) serve(name string) {
	s.t.Helper()
	l, err := s.ListenTCP(at(s.addr, database.Port()))
	if err != nil {
		s.t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s sees %v\n", name, c.RemoteAddr())
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// call makes a peered network's tunnel call a site tunnel.
func (s *stack) call(network string, port uint16) {
	s.t.Helper()
	s.peer(tunnel.Peer{
		PublicKey: siteKey(s.t, network), AllowedIPs: []netip.Prefix{network16}, Keepalive: time.Second,
		Endpoint: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port),
	})
}

// expect makes it wait for the call of one.
func (s *stack) expect(network string) {
	s.t.Helper()
	s.peer(tunnel.Peer{PublicKey: siteKey(s.t, network), AllowedIPs: []netip.Prefix{network16}})
}

func siteKey(t *testing.T, network string) tunnel.Key {
	t.Helper()
	key, err := tunnel.DeriveSiteKey(regionSecret(), network)
	if err != nil {
		t.Fatal(err)
	}
	return key.Public()
}

// dial connects to the database and returns the connection and what it was told.
func (s *stack) dial() (*netstack.Conn, string) {
	s.t.Helper()
	return s.dialTo(database)
}

func (s *stack) dialTo(to netip.AddrPort) (*netstack.Conn, string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	c, err := s.DialTCP(ctx, netip.AddrPortFrom(s.addr, 0), to)
	if err != nil {
		s.t.Fatalf("from %v by %s: %v", s.addr, s.host, err)
	}
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	line := make([]byte, 0, 100)
	for b := make([]byte, 1); b[0] != '\n'; line = append(line, b...) {
		if _, err := io.ReadFull(c, b); err != nil {
			s.t.Fatalf("from %v by %s: %v", s.addr, s.host, err)
		}
	}
	if want := fmt.Sprintf(" sees %v\n", c.LocalAddr()); !strings.HasSuffix(string(line), want) {
		s.t.Errorf("the peered network says %q, want %q", line, want)
	}
	name, _, _ := strings.Cut(string(line), " ")
	return c, name
}

// echo sends bytes there and back.
func echo(t *testing.T, c *netstack.Conn, n int) {
	t.Helper()
	sent := bytes.Repeat([]byte("0123456789abcdef"), n/16)
	go func() { _, _ = c.Write(sent) }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes did not come back as they were: %v", len(sent), err)
	}
}

// wantReset sends something and waits for the reset that answers it, if the stack had
// not sent something by itself.
func wantReset(t *testing.T, c *netstack.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("more")); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("write: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want a reset", err)
	}
}

func activePeering(id, network string, key tunnel.Key, cidrs ...string) spec.Peering {
	p := spec.Peering{ID: id, Network: network, PublicKey: key.Public().String(), State: spec.PeeringActive}
	for _, c := range cidrs {
		p.CIDRs = append(p.CIDRs, netip.MustParsePrefix(c))
	}
	return p
}

// siteOf is what the host with a network's site reports of it.
func siteOf(report spec.HostReport, network string) *spec.SiteReport {
	for _, n := range report.Networks {
		if n.ID == network {
			return n.Site
		}
	}
	return nil
}

// TestSiteTunnels: sandboxes of two networks with the same CIDR, on either host, reach
// each their own peered network, which sees their inner addresses and cannot connect
// to them; when a peering ends, their connections are reset at once.
func TestSiteTunnels(t *testing.T) {
	checkLeaks(t)
	keyA, keyB := tunnel.NewKey(), tunnel.NewKey()
	first, second := activePeering("peer_a", "net_a", keyA, peeredRange.String()), activePeering("peer_b", "net_b", keyB, peeredRange.String())
	r := newRegion(t, siteState(first, second))
	seenA, seenB := newOtherNetwork(t, keyA, "a"), newOtherNetwork(t, keyB, "b")
	seenA.call("net_a", sitePort)
	seenB.call("net_b", sitePort+1)

	conns := map[string]*netstack.Conn{}
	for _, network := range []string{"net_a", "net_b"} {
		for _, host := range []string{"gw-a", "gw-b"} {
			c, name := r.attach(network, host).dial()
			if "net_"+name != network {
				t.Errorf("a sandbox of %s reached the network of %s", network, name)
			}
			echo(t, c, 1<<20)
			conns[network+host] = c
		}
	}

	// The other side cannot begin.
	inner := conns["net_agw-a"].LocalAddrPort().Addr()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() {
		if c, err := seenA.DialTCP(ctx, at(seenA.addr, 0), at(inner, 80)); err == nil {
			t.Error("the other side has connected")
			c.Close()
		}
	}()
	a := r.hosts["gw-a"]
	a.await("the site counts what passed, and what may not", func(report spec.HostReport, _ spec.Cursor) bool {
		s := siteOf(report, "net_a")
		return s != nil && len(s.Peerings) == 1 && s.Peerings[0].Egress.Bytes > 2<<20 && s.Peerings[0].Ingress.Bytes > 2<<20 &&
			!s.Peerings[0].Handshake.IsZero() && s.Endpoint == netip.MustParseAddrPort(fmt.Sprint("127.0.0.1:", sitePort)) &&
			report.Networks[0].Drops[packet.NoMapping.String()] > 0 && report.Networks[0].WrongSource == 0
	})
	cancel()

	// One peering ends.
	r.replace(siteState(second))
	for _, host := range []string{"gw-a", "gw-b"} {
		n := r.hosts[host].find("net_a")
		r.hosts[host].await("the peering has ended", func(spec.HostReport, spec.Cursor) bool {
			return n.fwd.peered.Load().find(database.Addr()) == nil
		})
		c := conns["net_a"+host]
		began := time.Now()
		wantReset(t, c)
		if took := time.Since(began); took > 10*time.Second { // TCP itself would try for minutes
			t.Errorf("%s: the reset came after %v", host, took)
		}
		echo(t, conns["net_b"+host], 1<<16)
	}
	for _, c := range conns {
		c.Close()
	}
	r.close()
}

// TestSiteForeignSources: what a peered network sends from outside its ranges reaches
// nobody and is counted for its peering alone, even when the source is another's.
func TestSiteForeignSources(t *testing.T) {
	checkLeaks(t)
	keyA, keyB := tunnel.NewKey(), tunnel.NewKey()
	r := newRegion(t, siteState(activePeering("peer_a", "net_a", keyA, peeredRange.String()), activePeering("peer_b", "net_a", keyB, "10.50.0.0/24")))
	other := newOtherNetwork(t, keyA, "a")
	other.call("net_a", sitePort)
	sandbox := r.attach("net_a", "gw-a")
	c, _ := sandbox.dial()

	dev := newMemTUN()
	tun, err := tunnel.New(tunnel.Config{PrivateKey: keyB, Device: dev})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tun.Close)
	(&stack{t: t, tunnel: tun}).call("net_a", sitePort)
	forged := tcp(t, packet.TCPHeader{Src: database, Dst: c.LocalAddrPort(), Flags: packet.RST, Seq: 1, TTL: 64})
	dev.out <- forged
	dev.out <- udp(t, netip.MustParseAddrPort("192.0.2.1:1"), at(sandbox.addr, 1), nil)
	dev.out <- udp(t, at(sandbox.addr, 1), at(sandbox.addr, 1), nil)
	dev.out <- udp(t, netip.MustParseAddrPort("10.50.0.5:1"), at(sandbox.addr, 1), nil)
	check := func(what string, holds func(a, b spec.PeeringReport) bool) {
		t.Helper()
		r.hosts["gw-a"].await(what, func(report spec.HostReport, _ spec.Cursor) bool {
			s := siteOf(report, "net_a")
			return s != nil && len(s.Peerings) == 2 && holds(s.Peerings[0], s.Peerings[1])
		})
	}
	check("foreign packets are counted", func(a, b spec.PeeringReport) bool { return a.Foreign == 0 && b.Foreign == 3 })
	echo(t, c, 1<<10)

	// The count outlives the tunnel.
	moved := siteState(activePeering("peer_a", "net_a", keyA, peeredRange.String()), activePeering("peer_b", "net_a", keyB, "10.50.0.0/24"))
	moved.Networks[0].Site.Port = sitePort + 2
	r.replace(moved)
	r.hosts["gw-a"].await("the tunnel is on another port", func(report spec.HostReport, _ spec.Cursor) bool {
		s := siteOf(report, "net_a")
		return s != nil && s.Endpoint.Port() == sitePort+2
	})
	check("the count goes on", func(a, b spec.PeeringReport) bool { return b.Foreign == 3 })
	echo(t, c, 1<<10) // and so does the connection
	c.Close()
	r.close()
}

// TestSiteMoves: the site goes to the other host while the networks' own tunnels stay.
// Flows through it end; new ones reach the peered network from both hosts.
func TestSiteMoves(t *testing.T) {
	checkLeaks(t)
	key := tunnel.NewKey()
	other := newOtherNetwork(t, key, "a")
	peering := activePeering("peer_a", "net_a", key, peeredRange.String())
	peering.Endpoint = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), other.tunnel.ListenPort())
	other.expect("net_a")
	r := newRegion(t, siteState(peering))
	on := map[string]*stack{"gw-a": r.attach("net_a", "gw-a"), "gw-b": r.attach("net_a", "gw-b")}
	before := map[string]*network{}
	var open []*netstack.Conn
	for host, s := range on {
		c, _ := s.dial()
		open = append(open, c)
		before[host] = r.hosts[host].find("net_a")
	}
	moved := siteState(peering)
	moved.Networks[0].Site = &spec.Site{Host: "gw-b", Port: 23870}
	r.replace(moved)
	r.hosts["gw-b"].await("the site has moved", func(report spec.HostReport, _ spec.Cursor) bool { return siteOf(report, "net_a") != nil })
	r.hosts["gw-a"].await("nor is it here", func(report spec.HostReport, _ spec.Cursor) bool { return siteOf(report, "net_a") == nil })
	for _, c := range open {
		wantReset(t, c)
		c.Close()
	}
	for host, s := range on {
		c, _ := s.dial()
		echo(t, c, 1<<16)
		c.Close()
		if r.hosts[host].find("net_a") != before[host] {
			t.Errorf("%s opened the network again", host)
		}
	}
	r.close()
}

// holdPort holds a UDP port.
func holdPort(t *testing.T, port uint16) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(port)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestSiteFails: a site that cannot be says why and is tried again, and everything
// else of the network goes on.
func TestSiteFails(t *testing.T) {
	for name, c := range map[string]struct {
		secret []byte
		port   uint16
		want   string
	}{
		"no region secret":   {nil, sitePort, "region_secret_file"},
		"port outside range": {regionSecret(), 24000, "lies outside wireguard.ports 23840-23859"},
		"port in use":        {regionSecret(), sitePort, "address already in use"},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			origin := echoServer(t)
			n := testNetwork("net_a", 1)
			n.Site = &spec.Site{Host: "gw-a", Port: c.port}
			state := testState(n)
			state.Peerings = []spec.Peering{activePeering("peer_a", "net_a", tunnel.NewKey(), peeredRange.String())}
			r := &region{t: t, store: newStore(t, state), hosts: map[string]*hostRig{}}
			var release func()
			if name == "port in use" {
				holder := holdPort(t, c.port)
				release = func() { holder.Close() }
			}
			h := r.open("gw-a", 0, c.secret)
			s := h.attach("net_a")
			s.checkEcho(origin, "one")
			if h.host.Ready() || !strings.Contains(h.log.String(), c.want) {
				t.Errorf("ready %v; the log does not say %q:\n%s", h.host.Ready(), c.want, h.log)
			}
			s.dev.out <- udp(t, at(s.Attachment.Inner, 5000), database, nil)
			for p := parsed(t, <-s.dev.in); p.Kind != packet.KindICMPError || p.ICMPType != 3 || p.ICMPCode != 1; p = parsed(t, <-s.dev.in) {
			}
			if release != nil {
				release()
				h.await("the site is up", func(report spec.HostReport, _ spec.Cursor) bool {
					return siteOf(report, "net_a") != nil && h.host.Ready()
				})
			}
			r.close()
		})
	}
}
