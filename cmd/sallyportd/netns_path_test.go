package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The narrow way of these tests: a router beyond the gateway whose link takes less than
// the tunnel does, and behind it a machine whose own link takes more.
//
//	hub ── 1280 ── mid ── 1500 ── far (narrowAddr, blindAddr)
//
// Of blindAddr both routers keep silent.
var (
	midAddr    = netip.MustParseAddr("198.51.100.66")
	farLink    = netip.MustParsePrefix("198.51.100.82/28")
	narrowAddr = netip.MustParseAddr("192.0.2.97")
	blindAddr  = netip.MustParseAddr("192.0.2.98")
)

const (
	narrowMTU = 1280
	tunnelMTU = 1420
)

// narrowWay is a world with that way, and a stock client.
type narrowWay struct {
	*world
	mid, far  *netlab.Namespace
	atMid     *netlab.Capture
	client    *stockPeer
	box       *sandbox
	told, dim *origin // at narrowAddr and blindAddr
}

func newNarrowWay(t *testing.T, by uplinkKind) *narrowWay {
	w := &narrowWay{world: newWorld(t, by)}
	w.mid, w.far = w.lab.Namespace("mid"), w.lab.Namespace("far")
	w.lab.Connect(
		netlab.End{Namespace: w.mid, Link: "eth0", Address: netip.PrefixFrom(midAddr, 28), MTU: narrowMTU},
		netlab.End{Namespace: w.hub, Link: "mid", Address: netip.MustParsePrefix("198.51.100.65/28"), MTU: narrowMTU})
	w.lab.Connect(
		netlab.End{Namespace: w.far, Link: "eth0", Address: farLink},
		netlab.End{Namespace: w.mid, Link: "far", Address: netip.MustParsePrefix("198.51.100.81/28")})
	w.mid.Route(hostnet.DefaultIPv4, netip.MustParseAddr("198.51.100.65"))
	w.far.Route(hostnet.DefaultIPv4, netip.MustParseAddr("198.51.100.81"))
	w.mid.Forward(true)
	for _, a := range []netip.Addr{narrowAddr, blindAddr} {
		w.hub.Route(netip.PrefixFrom(a, 32), midAddr)
		w.mid.Route(netip.PrefixFrom(a, 32), farLink.Addr())
		w.far.Address("lo", netip.PrefixFrom(a, 32))
	}
	for _, n := range []*netlab.Namespace{w.hub, w.mid} {
		// The quoted packet's source and destination stand 20 bytes behind: 8 of ICMP, 12 of IP.
		for _, at := range []int{160, 192} {
			toolOn(t, n, "nft", fmt.Sprintf("add table ip dim; add chain ip dim out { type filter hook output priority 0; }; "+
				"add rule ip dim out icmp type destination-unreachable @th,%d,32 %#x drop", at, binary.BigEndian.Uint32(blindAddr.AsSlice())))
		}
	}
	w.atMid = w.capture("mid")
	w.told, w.dim = newFarSide(t, w.far, narrowAddr), newFarSide(t, w.far, blindAddr)
	t.Cleanup(func() {
		w.told.close()
		w.dim.close()
	})
	w.up()
	w.client, w.box = newStockPeer(t, w.world), w.sandbox(t, acmeFunction)
	return w
}

// TestPathMTU (R-1, R-10, R-11, R-12, U-13, U-14, A-13): whoever sends more than a link on the way takes is told how
// much it does take, in both directions, and streams go on; where nobody tells, what
// promises to find out finds out. Fragments and times to live go with it. Seen by a sandbox of ours and by a stock client.
func TestPathMTU(t *testing.T) { byEach(t, pathMTU) }

func pathMTU(t *testing.T, by uplinkKind) {
	requireStock(t, "nft")
	w := newNarrowWay(t, by)
	t.Run("outward", w.outward)
	t.Run("inward", w.inward)
	t.Run("streams", w.streams)
	t.Run("nobody tells", w.blackhole)
	t.Run("hops", w.hops)
	t.Run("fragments", w.fragments)
	t.Run("narrow underlay", w.underlay)
	for s, n := range w.atMid.Sources() {
		if s.Out && s.Addr.IsValid() && !pairsPool.Contains(s.Addr) {
			t.Errorf("%d packets with the source %v beyond the narrow link", n, s.Addr)
		}
	}
}

// outward: ping of the client is told by the router, and a datagram's socket is.
func (w *narrowWay) outward(t *testing.T) {
	out, err := w.client.try("ping", "-n", "-c", "1", "-W", "5", "-M", "do", "-s", "1392", narrowAddr.String())
	if err == nil || !strings.Contains(out, "mtu = 1280") {
		t.Errorf("ping says: %s", out)
	}
	w.forget(t)
	a := w.box.must(t, task{Do: "too big", Target: at(narrowAddr, portUDP), Size: tunnelMTU - 28})
	if a.Size != narrowMTU {
		t.Errorf("a datagram's socket is told that the path takes %d", a.Size)
	}
}

// forget lets the client and the gateway's host forget what they learnt of paths.
func (w *narrowWay) forget(t *testing.T) {
	t.Helper()
	for _, n := range []*netlab.Namespace{w.laptop, w.iad1, w.home, w.far} {
		toolOn(t, n, "ip", "route", "flush", "cache")
	}
}

// streams: megabytes both ways over the narrow link.
func (w *narrowWay) streams(t *testing.T) {
	const size = 4 << 20
	w.forget(t)
	w.box.must(t, task{Do: "upload", Target: at(narrowAddr, portSum), Size: size})
	w.box.must(t, task{Do: "download", Target: at(narrowAddr, portGive), Size: size})
	w.forget(t)
	w.carry(t, narrowAddr)
}

// carry uploads and downloads by the client's kernel.
func (w *narrowWay) carry(t *testing.T, to netip.Addr) {
	t.Helper()
	const size = 1 << 20
	var both sync.WaitGroup
	for do, port := range map[string]uint16{"upload": portSum, "download": portGive} {
		c, err := w.laptop.Dial(t.Context(), "tcp4", at(to, port))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		began := time.Now()
		both.Go(func() {
			if err := stream(c.(*net.TCPConn), task{Do: do, Size: size}); err != nil {
				t.Errorf("%s by %v: %v", do, to, err)
			}
			t.Logf("%s by %v took %v", do, to, time.Since(began).Round(time.Millisecond))
		})
	}
	both.Wait()
}

// blackhole: the routers keep silent. What a sender sends is its own kernel's matter:
// by tun the sandbox's, by sockets that of the gateway's host.
func (w *narrowWay) blackhole(t *testing.T) {
	sender := w.laptop
	if w.uplink == bySockets {
		sender = w.iad1
	}
	for _, n := range []*netlab.Namespace{sender, w.far} {
		n.Sysctl("net.ipv4.tcp_mtu_probing", "1")
		n.Sysctl("net.ipv4.tcp_retries1", "1") // soon
	}
	w.forget(t)
	w.carry(t, blindAddr)
}

// inward: a datagram of 1500 bytes that must not be cut comes to a mapped port. By tun
// its sender is told by the dedicated address what the tunnel takes; by sockets it
// came to the end of its way, and the tunnel's end cuts it.
func (w *narrowWay) inward(t *testing.T) {
	m := w.mapping(t, 9001)
	r, err := newProbe(m.far)
	if err == nil {
		err = r.send(m.mapped, make([]byte, 1472))
	}
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 65535)
	_ = m.near.SetReadDeadline(time.Now().Add(5 * time.Second))
	if w.uplink == byTun {
		want := verdict{typ: 3, code: 4, info: tunnelMTU, by: m.mapped.Addr()}
		if got, err := r.told(5 * time.Second); got != want || err != nil {
			t.Errorf("the far side is told %+v, %v; want %+v", got, err, want)
		}
	} else if n, err := m.near.Read(b); n != 1472 || err != nil {
		t.Errorf("of 1472 bytes %d came, %v", n, err)
	}
	if err := r.set(unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_WANT); err != nil {
		t.Fatal(err)
	}
	// Believed, the next ones are cut by the sender itself, and larger ones anyway.
	for _, size := range []int{1472, 4000, 60000} {
		if _, err := m.far.WriteToUDPAddrPort(make([]byte, size), m.mapped); err != nil {
			t.Fatalf("send %d bytes: %v", size, err)
		}
		if n, err := m.near.Read(b); n != size || err != nil {
			t.Errorf("of %d bytes %d came, %v", size, n, err)
		}
	}
}

// underlay: the tunnel itself goes over a link that takes less than its datagrams, and
// no router says so.
func (w *narrowWay) underlay(t *testing.T) {
	toolOn(t, w.hub, "nft", "add rule ip dim out icmp type destination-unreachable drop")
	for n, link := range map[*netlab.Namespace]string{w.iad1: "eth0", w.hub: "iad1"} {
		toolOn(t, n, "ip", "link", "set", link, "mtu", "1300")
	}
	w.forget(t)
	const size = 4 << 20
	w.box.must(t, task{Do: "upload", Target: at(originAddr, portSum), Size: size})
	w.box.must(t, task{Do: "download", Target: at(originAddr, portGive), Size: size})
	w.box.must(t, task{Do: "udp", Target: at(originAddr, portUDP), Size: 4000})
}
