package conformance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/tundev"
	"github.com/sallyport-net/sallyport/nat"
)

// The addresses, all of them inside the namespaces of a test.
var (
	inner16      = netip.MustParsePrefix("10.20.0.0/16")
	innerGateway = netip.MustParseAddr("10.20.0.1")
	inner1       = netip.MustParseAddr("10.20.0.2")
	inner2       = netip.MustParseAddr("10.20.0.3")
	inner3       = netip.MustParseAddr("10.20.0.9") // nobody's: for mappings that fill a table

	pairA = [2]netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("203.0.113.11")}
	pairB = [2]netip.Addr{netip.MustParseAddr("203.0.113.20"), netip.MustParseAddr("203.0.113.21")}

	gatewayWAN  = netip.MustParseAddr("198.51.100.1")
	serverAddrs = [2]netip.Addr{netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("198.51.100.81")}
	spooferAddr = netip.MustParseAddr("198.51.100.66")
	routerWAN   = netip.MustParseAddr("198.51.100.254")
	routerFar   = netip.MustParseAddr("192.0.2.1")
	farAddr     = netip.MustParseAddr("192.0.2.80")
	// The router loses what goes to nowhere, and refuses what goes to refused.
	nowhere16 = netip.MustParsePrefix("198.18.0.0/16")
	nowhere   = netip.MustParseAddr("198.18.0.1")
	refused   = netip.MustParseAddr("198.19.0.1")
)

// tunnelMTU is the MTU of the sandboxes' devices, as in the gateway.
const tunnelMTU = 1420

// ground is the machines of one test, with a subject in the gateway's place.
type ground struct {
	t                                          *testing.T
	lab                                        *netlab.Lab
	gateway, wan, server, router, far, spoofer *netlab.Namespace
	a1, a2, b1                                 *sandbox // b1 is nil for the kernel's NAT
	a, b                                       *ours    // nil for the kernel's NAT
	clock                                      *clock
	config                                     nat.Config
	offload                                    bool
	tun                                        bool
	tap                                        *tap // of what leaves the Forwarder of network A
	tasks                                      sync.WaitGroup
}

// sandbox is one machine with a tunnel device.
type sandbox struct {
	*netlab.Namespace
	inner   netip.Addr
	dev     *tundev.Device
	network subject
	spoofed atomic.Int64 // packets with a source that is not the sandbox's
}

// option changes a ground before it is built.
type option func(*ground)

// withNAT sets what the tables are made from.
func withNAT(c nat.Config) option { return func(g *ground) { g.config = c } }

// withOffload leaves the offloads of all links on.
func withOffload(g *ground) { g.offload = true }

// withTun has the gateway's own uplink for the Forwarder's far side, offloads and all.
func withTun(g *ground) { g.tun = true }

// withEndpointIndependentTCP lets TCP be mapped as UDP is.
func withEndpointIndependentTCP(g *ground) { g.config.TCPMapping = nat.EndpointIndependent }

// newGround builds the machines with our Forwarder between them.
func newGround(t *testing.T, options ...option) *ground {
	t.Helper()
	g := build(t, options)
	g.a = newOurs(t, g, "upA", pairA)
	g.b = newOurs(t, g, "upB", pairB)
	run(t, g.gateway, "ip", "route", "add", pairA[0].String()+"/31", "dev", "upA")
	run(t, g.gateway, "ip", "route", "add", pairB[0].String()+"/32", "dev", "upB")
	run(t, g.gateway, "ip", "route", "add", pairB[1].String()+"/32", "dev", "upB")
	g.b1 = g.sandbox("b1", inner1)
	g.tap = g.watch(g.gateway, "upA")
	oracleB := g.watch(g.gateway, "upB")
	g.attach(g.a, g.a1, g.a2)
	g.attach(g.b, g.b1)
	t.Cleanup(func() { g.close(g.tap.judge(pairA), oracleB.judge(pairB)) })
	return g
}

// newReference builds the machines with the kernel's NAT in the Forwarder's place.
func newReference(t *testing.T, options ...option) *ground {
	t.Helper()
	netlab.Require(t)
	netlab.Program(t, "nft")
	g := build(t, options)
	dev := g.device(g.gateway, "in0", tunnelMTU)
	run(t, g.gateway, "ip", "address", "add", innerGateway.String()+"/16", "dev", "in0")
	g.tap = g.watch(g.gateway, "wan")
	g.attach(newKernelNAT(t, g.gateway, dev, pairA), g.a1, g.a2)
	t.Cleanup(func() { g.close(nil, nil) })
	return g
}

// eachSubject runs a test on the Forwarder, by each kind of uplink, and on the kernel's NAT.
func eachSubject(t *testing.T, test func(t *testing.T, g *ground), options ...option) {
	eachForwarder(t, test, options...)
	t.Run("kernel", func(t *testing.T) { test(t, newReference(t, options...)) })
}

// eachForwarder runs a test on the Forwarder alone, by a plain uplink and by the gateway's own.
func eachForwarder(t *testing.T, test func(t *testing.T, g *ground), options ...option) {
	t.Run("forwarder", func(t *testing.T) { test(t, newGround(t, options...)) })
	t.Run("tun", func(t *testing.T) { test(t, newGround(t, append(slices.Clone(options), withTun)...)) })
}

// build makes everything but the subject.
func build(t *testing.T, options []option) *ground {
	t.Helper()
	netlab.Require(t)
	netlab.Program(t, "ip")
	lab := netlab.Test(t)
	g := &ground{t: t, lab: lab, clock: newClock()}
	for _, o := range options {
		o(g)
	}
	for _, m := range []struct {
		at   **netlab.Namespace
		name string
	}{{&g.gateway, "gateway"}, {&g.wan, "wan"}, {&g.server, "server"}, {&g.router, "router"}, {&g.far, "far"}, {&g.spoofer, "spoofer"}} {
		*m.at = lab.Namespace(m.name)
		quieten(*m.at)
	}
	run(t, g.wan, "ip", "link", "add", "br0", "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
	for _, m := range []struct {
		n    *netlab.Namespace
		addr netip.Addr
	}{{g.gateway, gatewayWAN}, {g.server, serverAddrs[0]}, {g.router, routerWAN}, {g.spoofer, spooferAddr}} {
		port := "to-" + m.n.String()
		lab.Connect(
			netlab.End{Namespace: g.wan, Link: port, NoOffload: !g.offload},
			netlab.End{Namespace: m.n, Link: "wan", Address: netip.PrefixFrom(m.addr, 24), NoOffload: !g.offload})
		run(t, g.wan, "ip", "link", "set", port, "master", "br0")
	}
	run(t, g.wan, "ip", "link", "set", "br0", "up")
	lab.Connect(
		netlab.End{Namespace: g.router, Link: "far", Address: netip.PrefixFrom(routerFar, 24), NoOffload: !g.offload},
		netlab.End{Namespace: g.far, Link: "eth0", Address: netip.PrefixFrom(farAddr, 24), NoOffload: !g.offload})
	g.server.Address("wan", netip.PrefixFrom(serverAddrs[1], 24))
	g.gateway.Forward(true)
	g.router.Forward(true)
	g.far.Route(hostnet.DefaultIPv4, routerFar)
	g.gateway.Route(hostnet.DefaultIPv4, routerWAN)
	dedicated := netip.MustParsePrefix("203.0.113.0/27")
	for _, n := range []*netlab.Namespace{g.server, g.router, g.spoofer} {
		n.Route(dedicated, gatewayWAN)
	}
	g.server.Route(farPrefix(), routerWAN)
	run(t, g.router, "ip", "route", "add", "blackhole", nowhere16.String())
	run(t, g.router, "ip", "route", "add", "unreachable", refused.String()+"/32")
	g.a1, g.a2 = g.sandbox("a1", inner1), g.sandbox("a2", inner2)
	return g
}

func farPrefix() netip.Prefix { return netip.PrefixFrom(farAddr, 24).Masked() }

// quieten lets a machine answer every packet that deserves it, and forward
// packets whoever sent them: the subject must hold without the kernel's help.
func quieten(n *netlab.Namespace) {
	n.Sysctl("net.ipv4.icmp_ratemask", "0")
	n.Sysctl("net.ipv4.conf.all.rp_filter", "0")
	n.Sysctl("net.ipv4.conf.default.rp_filter", "0")
}

// device makes a TUN that is up in a namespace.
func (g *ground) device(n *netlab.Namespace, name string, mtu int) *tundev.Device {
	g.t.Helper()
	var f *os.File
	err := n.Do(func() (err error) {
		f, err = tundev.CreateTUN(name, false)
		return err
	})
	if err != nil {
		netlab.NotRun(g.t, err.Error())
	}
	dev, err := tundev.FromTUN(f, tundev.Config{MTU: 65535})
	if err != nil {
		g.t.Fatal(err)
	}
	run(g.t, n, "ip", "link", "set", name, "mtu", fmt.Sprint(mtu), "txqueuelen", "20000", "up")
	return dev
}

// sandbox makes a machine whose only way out is a tunnel device.
func (g *ground) sandbox(name string, inner netip.Addr) *sandbox {
	g.t.Helper()
	n := g.lab.Namespace(name)
	quieten(n)
	s := &sandbox{Namespace: n, inner: inner, dev: g.device(n, "tun0", tunnelMTU)}
	n.Sysctl("net.ipv4.ping_group_range", "0 0")
	run(g.t, n, "ip", "address", "add", inner.String()+"/32", "dev", "tun0")
	run(g.t, n, "ip", "route", "add", "default", "dev", "tun0")
	return s
}

func (g *ground) task(f func()) { g.tasks.Go(f) }

// attach begins to carry packets between a subject and its sandboxes.
func (g *ground) attach(s subject, sandboxes ...*sandbox) {
	for _, b := range sandboxes {
		b.network = s
		g.task(func() { b.pump(g.t) })
	}
	g.task(func() { deliver(g.t, s, sandboxes...) })
}

// pump carries what the sandbox's kernel sends.
func (s *sandbox) pump(t *testing.T) {
	bufs, sizes := buffers(tundev.BatchSize)
	batch := make([][]byte, 0, len(bufs))
	for {
		n, err := s.dev.Read(bufs, sizes, 0)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			t.Errorf("read from the device of %v: %v", s, err)
			return
		}
		batch = batch[:0]
		for i := range n {
			if b := bufs[i][:sizes[i]]; s.may(b) {
				batch = append(batch, b)
			}
		}
		if len(batch) > 0 {
			s.network.write(batch...)
		}
	}
}

// may says whether a packet may enter the tunnel: only with the sandbox's own source.
func (s *sandbox) may(b []byte) bool {
	if len(b) < 20 || netip.AddrFrom4([4]byte(b[12:])) != s.inner {
		s.spoofed.Add(1)
		return false
	}
	return true
}

// send brings a packet to the subject as the tunnel would. It says whether it did. The
// packet may be changed.
func (s *sandbox) send(b []byte) bool {
	if !s.may(b) {
		return false
	}
	s.network.write(b)
	return true
}

// close ends subjects, devices and their goroutines, then asks the oracles.
func (g *ground) close(oracles ...func() error) {
	for _, s := range []*sandbox{g.a1, g.a2, g.b1} {
		if s != nil {
			s.network.close()
			_ = s.dev.Close()
		}
	}
	g.tasks.Wait()
	for _, judge := range oracles {
		if judge == nil {
			continue
		}
		if err := judge(); err != nil {
			g.t.Error(err)
		}
	}
}

// run runs a program on a machine; its failure ends the test.
func run(t *testing.T, n *netlab.Namespace, args ...string) string {
	t.Helper()
	out, err := try(t, n, args...)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return out
}

// try runs a program on a machine and returns all that it says. No program may take
// longer than three minutes.
func try(t *testing.T, n *netlab.Namespace, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = time.Second // for pipes that a child of it might hold
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	err := n.Run(cmd)
	return out.String(), err
}
