package gateway

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/tunnel"
)

// sandbox is a stock WireGuard client of a network, whose packets are the test's.
type sandbox struct {
	t *testing.T
	api.AttachResponse
	tunnel *tunnel.Tunnel
	dev    *memTUN
}

// memTUN is a packet device made of two channels.
type memTUN struct {
	out    chan []byte // what the tunnel reads
	in     chan []byte // what the tunnel wrote
	events chan tun.Event
	closed chan struct{}
	once   sync.Once
}

func newMemTUN() *memTUN {
	return &memTUN{out: make(chan []byte, 16), in: make(chan []byte, 1024), events: make(chan tun.Event, 1), closed: make(chan struct{})}
}

func (d *memTUN) File() *os.File           { return nil }
func (d *memTUN) MTU() (int, error)        { return tunnelMTU, nil }
func (d *memTUN) Name() (string, error)    { return "mem", nil }
func (d *memTUN) Events() <-chan tun.Event { return d.events }
func (d *memTUN) BatchSize() int           { return 1 }

func (d *memTUN) Close() error {
	d.once.Do(func() { close(d.closed); close(d.events) })
	return nil
}

func (d *memTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-d.closed:
		return 0, os.ErrClosed
	case b := <-d.out:
		sizes[0] = copy(bufs[0][offset:], b)
		return 1, nil
	}
}

func (d *memTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		select {
		case d.in <- bytes.Clone(b[offset:]):
		case <-d.closed:
			return 0, os.ErrClosed
		}
	}
	return len(bufs), nil
}

// attach attaches a sandbox of a network and connects its tunnel.
func (r *hostRig) attach(network string) *sandbox {
	r.t.Helper()
	key := tunnel.NewKey()
	resp, err := r.src.Attach(r.t.Context(), api.AttachRequest{
		Project: "prj_" + network, Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeGo,
		Region: "iad1", PublicKey: key.Public().String(),
	})
	if err != nil {
		r.t.Fatalf("%v\n%s", err, r.log)
	}
	s := &sandbox{t: r.t, AttachResponse: resp, dev: newMemTUN()}
	if s.tunnel, err = tunnel.New(tunnel.Config{PrivateKey: key, Device: s.dev}); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(s.tunnel.Close)
	gateway, err := tunnel.ParseKey(resp.Gateways[0].PublicKey)
	if err != nil {
		r.t.Fatal(err)
	}
	err = s.tunnel.SetPeer(tunnel.Peer{
		PublicKey: gateway, Endpoint: resp.Gateways[0].Endpoint, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// exchange sends datagrams with the text until one of them is answered, and
// returns the answer. Sending again is what a program would do, too.
func (s *sandbox) exchange(to netip.AddrPort, text string) string {
	s.t.Helper()
	late, again := time.After(15*time.Second), time.NewTicker(200*time.Millisecond)
	defer again.Stop()
	for {
		s.dev.out <- udp(s.t, at(s.Attachment.Inner, 5000), to, []byte(text))
		for waiting := true; waiting; {
			select {
			case b := <-s.dev.in:
				if p := parsed(s.t, b); p.Kind == packet.KindUDP && strings.HasPrefix(string(p.Data()), text) {
					return string(p.Data())
				}
			case <-again.C:
				waiting = false
			case <-late:
				s.t.Fatalf("%q was not answered within 15 s", text)
			}
		}
	}
}

// echoServer answers each datagram with its text and the address it came from.
func echoServer(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.88.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if _, err := c.WriteToUDPAddrPort(fmt.Appendf(b[:n], " from %v", from.Addr()), from); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// checkEcho sends through the pair and back.
func (s *sandbox) checkEcho(to netip.AddrPort, text string) {
	s.t.Helper()
	if got, want := s.exchange(to, text), fmt.Sprintf("%s from %v", text, s.Attachment.Egress); got != want {
		s.t.Errorf("the far side says %q, want %q", got, want)
	}
}
