package conformance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// probe is one packet of a protocol with a TTL, and what its sender hears of it.
type probe struct {
	s     *sandbox
	proto packet.Proto
	to    netip.AddrPort
	ttl   int
}

// send returns the ICMP error about the packet; nil where the far end answered.
func (p probe) send() (e *socketError, err error) {
	kind, transport := unix.SOCK_DGRAM, unix.IPPROTO_UDP
	switch p.proto {
	case packet.TCP:
		kind, transport = unix.SOCK_STREAM, unix.IPPROTO_TCP
	case packet.ICMP:
		transport = unix.IPPROTO_ICMP
	}
	return e, p.s.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, transport)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, p.ttl))
		if err != nil {
			return err
		}
		events := int16(unix.POLLIN)
		if p.proto == packet.TCP {
			events = unix.POLLOUT
		}
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(p.to.Port()), Addr: p.to.Addr().As4()})
		if err != nil && err != unix.EINPROGRESS {
			return err
		}
		if p.proto != packet.TCP {
			if _, err := unix.Write(fd, []byte{8, 0, 0, 0, 0, 0, 0, 1}); err != nil { // an echo, or any text
				return err
			}
		}
		if awaitEvents(fd, events) == 0 {
			return fmt.Errorf("protocol %d with TTL %d: nobody answers", p.proto, p.ttl)
		}
		e = nextError(fd)
		return nil
	})
}

// trace returns who is on the way to a host, as traceroute does it.
func trace(s *sandbox, proto packet.Proto, to netip.AddrPort) (hops []netip.Addr, err error) {
	for ttl := 1; ttl <= 8; ttl++ {
		e, err := probe{s, proto, to, ttl}.send()
		switch {
		case err != nil:
			return hops, err
		case e == nil || !e.from.IsValid(): // an answer, or a reset
			return append(hops, to.Addr()), nil
		case e.typ == 3:
			return append(hops, e.from), nil
		case e.typ != 11 || e.code != 0:
			return hops, fmt.Errorf("ICMP %d/%d from %v", e.typ, e.code, e.from)
		}
		hops = append(hops, e.from)
	}
	return hops, errors.New("more than eight hops")
}

// TestTrace (R-1, I-4, T-9, R-7): every hop shows itself, by UDP, ICMP and TCP: the
// gateway with its inner address, those beyond it because the translator brings
// their errors back to the sockets they are about. Ours has one hop more than the
// kernel's NAT: the Forwarder, and the kernel that routes for the test uplink.
func TestTrace(t *testing.T) {
	eachSubject(t, func(t *testing.T, g *ground) {
		want := []netip.Addr{innerGateway, gatewayWAN, routerWAN, farAddr}
		if g.a == nil {
			want = slices.Delete(want, 1, 2)
		}
		for proto, port := range map[packet.Proto]uint16{packet.UDP: 33434, packet.ICMP: 0, packet.TCP: 81} {
			hops, err := trace(g.a1, proto, netip.AddrPortFrom(farAddr, port))
			if err != nil || !slices.Equal(hops, want) {
				t.Errorf("protocol %d: the hops are %v, want %v; %v", proto, hops, want, err)
			}
		}
	})
}

// TestErrorsInward (I-4, U-12 b, T-9): what hosts and routers say about a sandbox's
// packet reaches the socket that sent it, with type, code and sender as they were.
func TestErrorsInward(t *testing.T) {
	eachSubject(t, func(t *testing.T, g *ground) {
		for _, c := range []struct {
			proto     packet.Proto
			to        netip.AddrPort
			typ, code uint8
			from      netip.Addr
		}{
			{packet.UDP, netip.AddrPortFrom(farAddr, 99), 3, 3, farAddr},
			{packet.UDP, netip.AddrPortFrom(refused, 99), 3, 1, routerWAN},
			{packet.TCP, netip.AddrPortFrom(refused, 99), 3, 1, routerWAN},
			{packet.ICMP, netip.AddrPortFrom(refused, 0), 3, 1, routerWAN},
		} {
			e, err := probe{g.a1, c.proto, c.to, 64}.send()
			if err != nil || e == nil || e.typ != c.typ || e.code != c.code || e.from != c.from {
				t.Errorf("protocol %d to %v: %+v, %v; want %d/%d from %v", c.proto, c.to, e, err, c.typ, c.code, c.from)
			}
		}
		// A reset is not an ICMP error: the connection is refused.
		if _, err := g.a1.dial(t.Context(), 0, netip.AddrPortFrom(farAddr, 82)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("a closed port says %v", err)
		}
	})
}

// TestErrorsOutward (I-5): what a sandbox's kernel says about a packet from outside
// reaches who sent it, as though the dedicated IP had said it.
func TestErrorsOutward(t *testing.T) {
	eachSubject(t, func(t *testing.T, g *ground) {
		server := g.serve()
		c := g.a1.client(t, 0)
		mapped, _ := c.ask(endpoint(0, 0))
		_ = c.Close()
		wan := g.watch(g.server, "wan")
		mark := wan.mark()
		if _, err := server.udp[0][0].WriteTo([]byte("nobody hears this"), udpAddr(mapped)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err := wan.await(ctx, mark, func(p *pkt, s sniffed) bool {
			return !s.out && p.Kind == packet.KindICMPError && p.ICMPType == 3 && p.ICMPCode == 3 && p.Src == mapped.Addr() &&
				p.Inner.Src == serverAddrs[0] && netip.AddrPortFrom(p.Inner.Dst, p.Inner.DstPort) == mapped
		})
		if err != nil {
			t.Errorf("the port that nobody listens on: %v", err)
		}
	})
}
