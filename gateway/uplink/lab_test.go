package uplink

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// labSandbox is an uplink in a namespace of its own: gateway 203.0.113.1, a router
// whose second link is narrow, and a server, 198.51.100.2.
type labSandbox struct {
	*sandbox
	host   *netlab.Namespace
	server *netlab.Namespace
}

func newLabSandbox(t *testing.T, ping bool) *labSandbox {
	t.Helper()
	lab := netlab.Test(t)
	host, router, server := lab.Namespace("host"), lab.Namespace("router"), lab.Namespace("server")
	end := func(n *netlab.Namespace, link, address string, mtu int) netlab.End {
		return netlab.End{Namespace: n, Link: link, Address: netip.MustParsePrefix(address), MTU: mtu}
	}
	lab.Connect(end(host, "eth0", "203.0.113.1/24", 1500), end(router, "eth0", "203.0.113.254/24", 1500))
	lab.Connect(end(router, "eth1", "198.51.100.1/24", 1200), end(server, "eth0", "198.51.100.2/24", 1200))
	host.Address("eth0", netip.MustParsePrefix("203.0.113.2/24"))
	host.Route(hostnet.DefaultIPv4, netip.MustParseAddr("203.0.113.254"))
	server.Route(hostnet.DefaultIPv4, netip.MustParseAddr("198.51.100.1"))
	router.Forward(true)
	if ping {
		// The own group alone: a user namespace may have no other.
		host.Sysctl("net.ipv4.ping_group_range", fmt.Sprintf("%d %[1]d", os.Getgid()))
	}
	l := &labSandbox{host: host, server: server}
	if err := host.Do(func() error {
		l.sandbox = newSandbox(t, SocketsConfig{Addresses: []netip.Addr{
			netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"),
		}})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return l
}

// send writes packets inside the host, where their sockets shall be.
func (l *labSandbox) send(pkts ...[]byte) {
	l.t.Helper()
	if err := l.host.Do(func() error {
		_, err := l.up.Write(pkts, 0)
		return err
	}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *labSandbox) listenUDP() *net.UDPConn {
	l.t.Helper()
	pc, err := l.server.ListenPacket("udp4", "198.51.100.2:9000")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { pc.Close() })
	pc.SetDeadline(time.Now().Add(patience))
	return pc.(*net.UDPConn)
}

// I-4, U-13, R-11: errors about datagrams come back with the type, code and sender of the one that arrived.
func TestLabUDPErrors(t *testing.T) {
	l := newLabSandbox(t, false)
	server := l.listenUDP()
	const from, to = "203.0.113.1:42000", "198.51.100.2:9000"
	hop := netip.MustParseAddr("203.0.113.254")
	check := func(what string, want icmpError, sender netip.Addr) {
		t.Helper()
		p := l.error(42000)
		info := uint32(p.B[p.L4+6])<<8 | uint32(p.B[p.L4+7])
		if p.ICMPType != want.typ || p.ICMPCode != want.code || info != want.info || p.Src != sender || p.Dst.String() != "203.0.113.1" ||
			p.Inner.Dst.String() != "198.51.100.2" || p.Inner.DstPort != 9000 {
			t.Errorf("%s: %d/%d %d from %v to %v about %v:%d, want %d/%d %d from %v", what, p.ICMPType, p.ICMPCode, info, p.Src, p.Dst,
				p.Inner.Dst, p.Inner.DstPort, want.typ, want.code, want.info, sender)
		}
	}
	l.send(datagramTTL(from, to, []byte("x"), 1, 1))
	check("TTL 1", icmpError{typ: 11}, hop)

	// With DF the router complains; that it did changes nothing for the next, so it complains again.
	for range 2 {
		l.send(datagramTTL(from, to, make([]byte, 1300), 64, 0))
		check("DF beyond the router", icmpError{typ: 3, code: 4, info: 1200}, hop)
	}
	l.send(datagramTTL(from, to, make([]byte, 1600), 64, 0))
	// The host itself, which has heard the router.
	check("DF beyond the host", icmpError{typ: 3, code: 4, info: 1200}, gateway)

	// Without DF host and router fragment.
	big := bytes.Repeat([]byte("0123456789"), 300)
	l.send(datagramTTL(from, to, big, 64, 7))
	buf := make([]byte, 4000)
	if n, src, err := server.ReadFromUDPAddrPort(buf); err != nil || !bytes.Equal(buf[:n], big) || src.String() != from {
		t.Errorf("server read %d bytes from %v, %v", n, src, err)
	}
	l.send(datagram(from, "192.0.2.1:9000", []byte("no route at the router")))
	if p := l.error(42000); p.ICMPType != 3 || p.ICMPCode != 0 || p.Src != hop || p.Inner.Dst.String() != "192.0.2.1" {
		t.Errorf("no route: %d/%d from %v about %v", p.ICMPType, p.ICMPCode, p.Src, p.Inner.Dst)
	}
	l.wantDrops(map[packet.Outcome]uint64{packet.TooBig: 1})
}

// I-1: echo crosses by ping sockets, and errors about it come back.
func TestLabPing(t *testing.T) {
	l := newLabSandbox(t, true)
	if !strings.Contains(l.up.String(), "ICMP echo by ping sockets") {
		t.Error(l.up.String())
	}
	server := netip.MustParseAddr("198.51.100.2")
	// The same identifier on both addresses, and to the second hop.
	for _, from := range []string{"203.0.113.1", "203.0.113.2"} {
		for seq := range uint16(3) {
			l.send(echo(from, server, 777, seq, 64, "payload"))
			p := l.wait("echo reply", func(p *packet.Packet) bool { return p.Kind == packet.KindICMPQuery })
			if p.ICMPType != 0 || p.Src != server || p.Dst.String() != from || p.DstPort != 777 ||
				p.B[p.L4+7] != byte(seq) || string(p.Data()) != "payload" || p.TTL != 63 {
				t.Errorf("type %d from %v to %v, identifier %d, sequence %d, TTL %d, %q", p.ICMPType, p.Src, p.Dst, p.DstPort, p.B[p.L4+7], p.TTL, p.Data())
			}
		}
	}
	if st := l.up.Stats(); st.ICMP != 2 {
		t.Errorf("%d sockets, want 2", st.ICMP)
	}
	l.send(echo("203.0.113.1", server, 777, 9, 1, "traceroute"))
	p := l.error(777)
	if p.ICMPType != 11 || p.Src.String() != "203.0.113.254" || p.Inner.Dst != server || p.B[p.Inner.L4+7] != 9 || p.Inner.Proto != packet.ICMP {
		t.Errorf("%d/%d from %v about %v", p.ICMPType, p.ICMPCode, p.Src, p.Inner.Dst)
	}
	l.send(echo("203.0.113.1", netip.MustParseAddr("192.0.2.1"), 777, 10, 64, ""))
	if p := l.error(777); p.ICMPType != 3 || p.ICMPCode != 0 || p.Inner.Dst.String() != "192.0.2.1" {
		t.Errorf("no route: %d/%d about %v", p.ICMPType, p.ICMPCode, p.Inner.Dst)
	}
	l.wantDrops(nil)
	// A reply from inside has no socket.
	b := make([]byte, 100)
	n := packet.BuildICMPEcho(b, packet.Echo{Src: netip.MustParseAddr("203.0.113.1"), Dst: server, Reply: true, TTL: 64, ID: 1}, nil)
	l.send(b[:n])
	l.wantDrops(map[packet.Outcome]uint64{packet.ICMPType: 1})
	l.up.Release(Flow{Proto: packet.ICMP, External: netip.MustParseAddrPort("203.0.113.1:777")})
	if st := l.up.Stats(); st.ICMP != 1 {
		t.Errorf("%d sockets after Release, want 1", st.ICMP)
	}
}

func TestLabPingForbidden(t *testing.T) {
	l := newLabSandbox(t, false)
	if !strings.Contains(l.up.String(), "no ICMP echo (net.ipv4.ping_group_range ") {
		t.Error(l.up.String())
	}
	l.send(echo("203.0.113.1", netip.MustParseAddr("198.51.100.2"), 777, 1, 64, ""))
	l.wantDrops(map[packet.Outcome]uint64{packet.ICMPUnavailable: 1})
}

// A host that loses the address must not send from another one.
func TestLabAddressGone(t *testing.T) {
	l := newLabSandbox(t, false)
	server := l.listenUDP()
	l.send(datagram("203.0.113.2:42000", "198.51.100.2:9000", []byte("before")))
	buf := make([]byte, 10)
	if n, _, err := server.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "before" {
		t.Fatalf("server read %q, %v", buf[:n], err)
	}
	capture, err := l.host.Capture("eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close()
	gone := hostnet.Plan{Addresses: []hostnet.Address{{Link: "eth0", Prefix: netip.MustParsePrefix("203.0.113.2/24")}}}
	if err := l.host.Host().Undo(gone); err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"42000", "42001"} { // a socket that is open, and a new one
		l.send(datagram("203.0.113.2:"+port, "198.51.100.2:9000", []byte("after")))
	}
	l.eventually("drops", func() bool { return l.up.Stats().Drops[packet.Unreachable] > 0 })
	l.send(datagram("203.0.113.1:42000", "198.51.100.2:9000", []byte("other")))
	for {
		n, from, err := server.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if string(buf[:n]) == "other" {
			break
		}
		if from.Addr().String() != "203.0.113.2" {
			t.Errorf("%q from %v", buf[:n], from)
		}
	}
	for source := range capture.Sources() {
		if a := source.Addr.String(); source.Out && a != "203.0.113.1" && a != "203.0.113.2" && source.Addr.IsValid() {
			t.Errorf("a packet left from %s", a)
		}
	}
	if err := capture.Stats().Complete(); err != nil {
		t.Error(err)
	}
	if err := l.host.Do(func() error {
		_, err := NewSockets(SocketsConfig{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.2")}, Gateway: gateway})
		return err
	}); err == nil || errors.Is(err, errNotOurs) {
		t.Errorf("NewSockets without the address: %v", err)
	}
}

func echo(from string, to netip.Addr, ident, seq uint16, ttl uint8, payload string) []byte {
	b := make([]byte, ipv4Len+icmpLen+len(payload))
	packet.BuildICMPEcho(b, packet.Echo{Src: netip.MustParseAddr(from), Dst: to, Ident: ident, Seq: seq, TTL: ttl, ID: 1}, []byte(payload))
	return b
}
