package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// metric is the value of one of iad1's metrics, of all networks together. labels are
// those that a line must have; what was never counted has no line.
func (w *world) metric(t *testing.T, name string, labels ...string) (sum float64) {
	t.Helper()
	text, err := askAdmin(w.iad1, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
lines:
	for line := range strings.Lines(text) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if series != name && !strings.HasPrefix(series, name+"{") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(series, l) {
				continue lines
			}
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	if !strings.Contains(text, "\n"+name) {
		t.Fatalf("there is no metric %s", name)
	}
	return sum
}

// cut cuts a packet as for a link of that MTU.
func cut(t *testing.T, b []byte, mtu int) (pieces [][]byte) {
	t.Helper()
	for at := 0; ; {
		f := make([]byte, mtu)
		n, next := packet.NextFragment(f, b, mtu, at)
		if n == 0 {
			t.Fatalf("%d bytes cannot be cut for %d", len(b), mtu)
		}
		pieces = append(pieces, f[:n])
		if at = next; at == 0 {
			return pieces
		}
	}
}

// datagramOf is a UDP datagram in an IPv4 packet that may be cut.
func datagramOf(from, to netip.AddrPort, id uint16, payload []byte) []byte {
	b := make([]byte, 28+len(payload))
	return b[:packet.BuildUDP(b, from, to, payload, 64, id)]
}

// mapping is one of the client's, with the sockets at both ends.
type mapping struct {
	near, far            *net.UDPConn // near is connected
	inner, mapped, there netip.AddrPort
}

// mapping makes one to a port of the origin, for the rest of the test.
func (w *narrowWay) mapping(t *testing.T, port uint16) (m mapping) {
	t.Helper()
	m.there = netip.AddrPortFrom(originAddr, port)
	near, err := w.laptop.Dial(t.Context(), "udp4", m.there.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	far, err := w.home.ListenPacket("udp4", m.there.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	m.near, m.far = near.(*net.UDPConn), far.(*net.UDPConn)
	m.inner = near.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := near.Write([]byte("here I am")); err != nil {
		t.Fatal(err)
	}
	_ = far.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, from, err := m.far.ReadFromUDPAddrPort(make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	m.mapped = from
	return m
}

// takes reads a datagram that must be the one wanted.
func takes(c *net.UDPConn, want []byte) error {
	b := make([]byte, 65535)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, err := c.Read(b)
	if err == nil && !bytes.Equal(b[:n], want) {
		err = fmt.Errorf("%d bytes came, want %d others", n, len(want))
	}
	return err
}

// fragments (U-14, A-13, R-10): those of a datagram may come in any order; what
// overlaps, or stays incomplete, is dropped and counted, takes no more memory than a
// sandbox may have, and disturbs no other one.
func (w *narrowWay) fragments(t *testing.T) {
	for _, program := range [][]string{
		{"ping", "-n", "-q", "-c", "3", "-i", "0.02", "-W", "5", "-s", "3000", originAddr.String()},
		{"ping", "-n", "-q", "-c", "3", "-i", "0.02", "-W", "5", "-s", "60000", narrowAddr.String()},
	} {
		if out := w.client.run(program[0], program[1:]...); !strings.Contains(out, " 0% packet loss") {
			t.Errorf("ping says: %s", out)
		}
	}
	for _, to := range []netip.Addr{originAddr, narrowAddr} {
		allFrom(t, w.box.must(t, task{Do: "udp", Target: at(to, portUDP), Size: 4000}).Sources, 1, acmePair)
	}
	m := w.mapping(t, 9002)
	noise := newNoise()
	payload := func() []byte {
		b := make([]byte, 4000)
		_, _ = io.ReadFull(noise, b)
		return b
	}
	for i, order := range [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		for _, way := range []struct {
			from     *netlab.Namespace
			src, dst netip.AddrPort
			to       *net.UDPConn
		}{{w.laptop, m.inner, m.there, m.far}, {w.home, m.there, m.mapped, m.near}} {
			b := payload()
			pieces := cut(t, datagramOf(way.src, way.dst, uint16(100+i), b), tunnelMTU)
			err := sendRaw(way.from, pieces[order[0]], pieces[order[1]], pieces[order[2]])
			if err == nil {
				err = takes(way.to, b)
			}
			if err != nil {
				t.Errorf("%v to %v in the order %v: %v", way.src, way.dst, order, err)
			}
		}
	}
	w.badFragments(t, m)
}

// badFragments sends what must not come out.
func (w *narrowWay) badFragments(t *testing.T, m mapping) {
	overlapping := func(from, to netip.AddrPort) [][]byte {
		pieces := cut(t, datagramOf(from, to, 200, make([]byte, 4000)), tunnelMTU)
		over := bytes.Clone(pieces[1])
		over[7] -= 2 // 16 bytes too early
		return [][]byte{pieces[0], over, pieces[2], pieces[1]}
	}
	dropped := func(direction, reason string) float64 {
		return w.metric(t, "sallyport_drops_total", `network="net-acme"`, `direction="`+direction+`"`, `reason="`+reason+`"`)
	}
	rises := func(direction, reason string, before float64, by float64) {
		t.Helper()
		eventually(t, 5*time.Second, reason+" is counted "+direction, func() error {
			if n := dropped(direction, reason) - before; n < by {
				return fmt.Errorf("%v times", n)
			}
			return nil
		})
	}
	out, in, limit := dropped("egress", "fragment_overlap"), dropped("ingress", "fragment_overlap"), dropped("egress", "fragment_limit")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(sendRaw(w.laptop, overlapping(m.inner, m.there)...))
	must(sendRaw(w.home, overlapping(m.there, m.mapped)...))
	rises("egress", "fragment_overlap", out, 1)
	if w.uplink == byTun {
		rises("ingress", "fragment_overlap", in, 1)
	}
	// What comes next is what comes out.
	last := []byte("a good one")
	_, err := m.near.Write(last)
	must(err)
	must(takes(m.far, last))
	_, err = m.far.WriteToUDPAddrPort(last, m.mapped)
	must(err)
	must(takes(m.near, last))

	const many, mayHave = 400, 256 << 10 // of 1,420 bytes, and what a sandbox may have by default
	for i := range many {
		must(sendRaw(w.laptop, cut(t, datagramOf(m.inner, m.there, uint16(1000+i), make([]byte, 4000)), tunnelMTU)[0]))
	}
	rises("egress", "fragment_limit", limit, 1)
	if n := w.metric(t, "sallyport_fragment_bytes", `network="net-acme"`); n < mayHave/2 || n > mayHave {
		t.Errorf("%v bytes of fragments wait; a sandbox may have %d", n, mayHave)
	}
	allFrom(t, w.box.must(t, task{Do: "udp", Target: at(originAddr, portUDP), Size: 4000}).Sources, 1, acmePair)
}

// hops: whom datagrams die at, by their time to live, and what is left of an answer's.
func (w *narrowWay) hops(t *testing.T) {
	hub, origin := netip.MustParseAddr("198.51.100.17"), verdict{typ: 3, code: 3, by: originAddr}
	want, left := []verdict{{typ: 11, by: innerGateway}, {typ: 11, by: hub}, origin}, 62
	if w.uplink == byTun {
		want, left = []verdict{{typ: 11, by: innerGateway}, {typ: 11, by: iad1Addr}, {typ: 11, by: hub}, origin}, 61
	}
	c, err := w.laptop.Dial(t.Context(), "udp4", at(originAddr, portClosed))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := newProbe(c.(*net.UDPConn))
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range want {
		if err := p.set(unix.IP_TTL, i+1); err != nil {
			t.Fatal(err)
		}
		if err := p.send(netip.AddrPort{}, []byte("who is there?")); err != nil {
			t.Fatal(err)
		}
		if got, err := p.told(5 * time.Second); got != v || err != nil {
			t.Errorf("with a time to live of %d: %+v, %v; want %+v", i+1, got, err, v)
		}
	}
	out := w.client.run("ping", "-n", "-c", "1", "-W", "5", originAddr.String())
	if !strings.Contains(out, fmt.Sprintf(" ttl=%d ", left)) {
		t.Errorf("of 64 an answer should have %d left: %s", left, out)
	}
}
