package conformance

import (
	"context"
	"crypto/sha256"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// narrow makes the last link of the way to far take less.
func (g *ground) narrow(mtu string) {
	g.t.Helper()
	run(g.t, g.router, "ip", "link", "set", "far", "mtu", mtu)
	run(g.t, g.far, "ip", "link", "set", "eth0", "mtu", mtu)
}

// TestPathMTUOutward (R-11, U-12 b, A-5): a router beyond the gateway says what it
// can take, and the sandbox's kernel believes it: for an echo, a datagram, and a
// stream that goes on with smaller segments.
func TestPathMTUOutward(t *testing.T) {
	netlab.Program(t, "ping")
	eachSubject(t, func(t *testing.T, g *ground) {
		g.narrow("1300")
		out, err := try(t, g.a1.Namespace, "ping", "-n", "-c", "1", "-W", "10", "-M", "do", "-s", "1372", farAddr.String())
		if err == nil || !strings.Contains(out, "From "+routerWAN.String()) || !strings.Contains(out, "mtu = 1300") {
			t.Errorf("ping says: %s", out)
		}
		g.flushPaths()
		if e := bigDatagram(t, g.a1.Namespace, netip.AddrPort{}, netip.AddrPortFrom(farAddr, 9), 1372); e == nil || e.typ != 3 || e.code != 4 || e.info != 1300 || e.from != routerWAN {
			t.Errorf("a datagram is told %+v", e)
		}
		g.flushPaths()
		l, err := g.far.Listen("tcp4", netip.AddrPortFrom(farAddr, 8080).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		sums := make(chan [32]byte, 1)
		g.task(func() { hashOne(l, sums) })
		payload := []byte(strings.Repeat("0123456789abcdef", 1<<16))
		ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
		defer cancel()
		c, err := g.a1.Dial(ctx, "tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(payload); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		select {
		case got := <-sums:
			if got != sha256.Sum256(payload) {
				t.Error("the stream did not arrive whole")
			}
		case <-ctx.Done():
			t.Error("the stream does not arrive: the path's MTU was not found")
		}
	})
}

// TestPathMTUInward (R-11, U-13): who sends more than the tunnel takes to a mapped
// port is told so, by the dedicated IP and about it: the kernel of the far side finds
// its socket by what the error quotes. What may be cut is cut.
func TestPathMTUInward(t *testing.T) {
	eachSubject(t, func(t *testing.T, g *ground) {
		c := g.a1.client(t, 0)
		port := netip.AddrPortFrom(serverAddrs[0], 7777)
		far, err := g.server.ListenPacket("udp4", port.String())
		if err != nil {
			t.Fatal(err)
		}
		wan := g.watch(g.server, "wan")
		if _, err := c.WriteTo([]byte("here I am"), udpAddr(port)); err != nil {
			t.Fatal(err)
		}
		_ = far.SetReadDeadline(time.Now().Add(patience))
		_, from, err := far.ReadFrom(make([]byte, 100))
		if err != nil {
			t.Fatal(err)
		}
		mapped := from.(*net.UDPAddr).AddrPort()
		if _, err := far.WriteTo(make([]byte, 1472), from); err != nil { // Linux sets DF on it until told otherwise
			t.Logf("the first datagram: %v", err)
		}
		_ = far.Close()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err = wan.await(ctx, 0, func(p *pkt, s sniffed) bool {
			return !s.out && p.ICMPType == 3 && p.ICMPCode == 4 && p.Kind == packet.KindICMPError &&
				int(s.b[26])<<8|int(s.b[27]) == tunnelMTU && netip.AddrPortFrom(p.Inner.Dst, p.Inner.DstPort) == mapped
		})
		if err != nil {
			t.Fatalf("nobody says that 1,500 bytes are too many: %v", err)
		}
		run(t, g.server, "ip", "route", "flush", "cache")
		e := bigDatagram(t, g.server, port, mapped, 1472)
		if e == nil || e.typ != 3 || e.code != 4 || e.info != tunnelMTU || e.from != mapped.Addr() {
			t.Errorf("the far side's socket is told %+v, want 3/4 with %d from %v", e, tunnelMTU, mapped.Addr())
		}
		out := raw(t, g.server)
		out.send(udp(port, mapped, strings.Repeat("x", 1472)))
		if text, _, err := c.hear(patience); len(text) != 1472 || err != nil {
			t.Errorf("of a datagram that may be cut %d bytes came, %v", len(text), err)
		}
	})
}

// flushPaths lets a sandbox forget what it has learnt.
func (g *ground) flushPaths() {
	g.t.Helper()
	run(g.t, g.a1.Namespace, "ip", "route", "flush", "cache")
}

// hashOne takes one connection and tells the sum of what came.
func hashOne(l net.Listener, sums chan<- [32]byte) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(3 * patience))
	b, _ := io.ReadAll(c)
	sums <- sha256.Sum256(b)
}

// bigDatagram sends a datagram that must not be cut and returns what its socket is
// told about it; nil if nothing. from is the socket's own end, if it matters.
func bigDatagram(t *testing.T, n *netlab.Namespace, from, to netip.AddrPort, payload int) (e *socketError) {
	t.Helper()
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if from.IsValid() {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(from.Port()), Addr: from.Addr().As4()}); err != nil {
				return err
			}
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
			return err
		}
		if _, err := unix.Write(fd, make([]byte, payload)); err != nil {
			return err
		}
		awaitEvents(fd, 0)
		e = nextError(fd)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}
