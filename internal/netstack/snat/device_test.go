package snat

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/internal/packet"
)

const offset = 16

// wire is a TUN whose far side is a test.
type wire struct {
	tun.Device          // nil: nothing else is called
	sent       [][]byte // by the last Write
	batches    int
	arriving   [][]byte // what the next Read has; none: it ends
	closed     int
}

func (w *wire) Write(bufs [][]byte, at int) (int, error) {
	w.sent = nil
	for _, b := range bufs {
		w.sent = append(w.sent, bytes.Clone(b[at:]))
	}
	w.batches++
	return len(bufs), nil
}

func (w *wire) Read(bufs [][]byte, sizes []int, at int) (int, error) {
	if len(w.arriving) == 0 {
		return 0, os.ErrClosed
	}
	n := len(w.arriving)
	for i, b := range w.arriving {
		sizes[i] = copy(bufs[i][at:], b)
	}
	w.arriving = nil
	return n, nil
}

func (w *wire) Close() error { w.closed++; return os.ErrClosed }

// rig is a device with its wire.
type rig struct {
	*Device
	wire *wire
	t    *testing.T
}

var (
	external = netip.MustParseAddr("203.0.113.2")
	config   = Config{Inside: netip.MustParsePrefix("10.20.0.0/16"), External: external, MTU: 1420}
)

func newRig(t *testing.T) *rig {
	r := &rig{wire: &wire{}, t: t}
	d, err := New(r.wire, config)
	if err != nil {
		t.Fatal(err)
	}
	r.Device = d
	t.Cleanup(func() {
		if err := d.Close(); err != nil || d.Close() != nil || r.wire.closed != 1 {
			t.Errorf("closed %d times: %v", r.wire.closed, err)
		}
	})
	return r
}

// out writes a batch and returns what left.
func (r *rig) out(packets ...[]byte) []packet.Packet {
	r.t.Helper()
	bufs := make([][]byte, len(packets))
	for i, p := range packets {
		bufs[i] = append(make([]byte, offset, 2048), p...)
	}
	r.wire.sent = nil
	if n, err := r.Write(bufs, offset); n != len(packets) || err != nil {
		r.t.Fatalf("wrote %d of %d: %v", n, len(packets), err)
	}
	return r.parse(r.wire.sent)
}

// in lets a batch arrive and returns what came in; none: the TUN has ended.
func (r *rig) in(packets ...[]byte) []packet.Packet {
	r.t.Helper()
	r.wire.arriving = packets
	bufs, sizes := make([][]byte, 128), make([]int, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	n, err := r.Read(bufs, sizes, offset)
	if err != nil && !errors.Is(err, os.ErrClosed) {
		r.t.Fatal(err)
	}
	for i := range bufs[:n] {
		bufs[i] = bufs[i][offset : offset+sizes[i]]
	}
	return r.parse(bufs[:n])
}

func (r *rig) parse(list [][]byte) []packet.Packet {
	r.t.Helper()
	ps := make([]packet.Packet, len(list))
	for i, b := range list {
		if o := packet.Parse(&ps[i], b); o != packet.Pass {
			r.t.Fatalf("packet %d: %v", i, o)
		}
	}
	return ps
}

func datagram(from, to netip.AddrPort, text string) []byte {
	b := make([]byte, 1500)
	return b[:packet.BuildUDP(b, from, to, []byte(text), 64, 0)]
}

func segment(from, to netip.AddrPort, flags packet.TCPFlags) []byte {
	b := make([]byte, 1500)
	h := packet.TCPHeader{Src: from, Dst: to, Seq: 1000, Ack: 1000, Flags: flags, Window: 65535, TTL: 64}
	return b[:packet.BuildTCP(b, h, nil)]
}

// A batch leaves as a batch from the external address, and its answers find back.
func TestTranslates(t *testing.T) {
	r := newRig(t)
	server := netip.MustParseAddrPort("192.0.2.80:53")
	first, second := netip.MustParseAddrPort("10.20.0.2:4000"), netip.MustParseAddrPort("10.20.0.3:4000")
	left := r.out(datagram(first, server, "one"), datagram(second, server, "two"), segment(first, server, packet.SYN))
	if len(left) != 3 || r.wire.batches != 1 {
		t.Fatalf("%d packets in %d batches left", len(left), r.wire.batches)
	}
	for i, p := range left {
		if p.Src != external || p.Dst != server.Addr() || p.TTL != 63 {
			t.Errorf("packet %d left from %v to %v with TTL %d", i, p.Src, p.Dst, p.TTL)
		}
	}
	if left[0].SrcPort == left[1].SrcPort {
		t.Errorf("both senders have port %d", left[0].SrcPort)
	}
	at := func(p packet.Packet) netip.AddrPort { return netip.AddrPortFrom(external, p.SrcPort) }
	came := r.in(datagram(server, at(left[1]), "answer"), segment(server, at(left[2]), packet.SYN|packet.ACK), datagram(server, at(left[0]), "answer"))
	if len(came) != 3 {
		t.Fatalf("%d packets came in", len(came))
	}
	for i, want := range []netip.AddrPort{second, first, first} {
		if p := came[i]; p.Dst != want.Addr() || p.DstPort != want.Port() || p.Src != server.Addr() {
			t.Errorf("packet %d came in from %v to %v:%d, want %v", i, p.Src, p.Dst, p.DstPort, want)
		}
	}
}

// Strangers reach nobody inside. That a packet is too big is told to its sender with
// the next batch that comes in.
func TestStack(t *testing.T) {
	r := newRig(t)
	server, stranger := netip.MustParseAddrPort("192.0.2.80:53"), netip.MustParseAddrPort("192.0.2.81:53")
	inner := netip.MustParseAddrPort("10.20.0.2:4000")
	left := r.out(datagram(inner, server, "one"))
	at := netip.AddrPortFrom(external, left[0].SrcPort)
	if came := r.in(datagram(stranger, at, "let me in"), []byte("no packet")); len(came) != 0 {
		t.Errorf("a stranger reached %v", came[0].Dst)
	}
	b := make([]byte, 2048)
	b = b[:packet.BuildTCP(b, packet.TCPHeader{Src: inner, Dst: server, Flags: packet.SYN, TTL: 64}, make([]byte, 1400))] // has DF
	for _, p := range r.out(b) {                                                                                          // what the stranger is told
		if p.Dst != stranger.Addr() {
			t.Errorf("a packet to %v left", p.Dst)
		}
	}
	came := r.in(datagram(server, at, "answer"))
	if len(came) != 2 || came[0].Dst != inner.Addr() || came[1].Dst != inner.Addr() {
		t.Errorf("%d packets came in, want the error and the answer", len(came))
	}
}

func TestRefuses(t *testing.T) {
	for want, spoil := range map[string]func(*Config){
		"inside":   func(c *Config) { c.Inside = netip.MustParsePrefix("fd00::/8") },
		"external": func(c *Config) { c.External = netip.Addr{} },
		"MTU 20":   func(c *Config) { c.MTU = 20 },
	} {
		c := config
		spoil(&c)
		if _, err := New(&wire{}, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
