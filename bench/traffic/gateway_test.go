package traffic

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/tunnel"
)

// beyond is what a test's gateway does with a packet of a sandbox: it returns what comes
// back. One goroutine of each peer calls it.
type beyond interface {
	answer(p *packet.Packet) [][]byte
}

// gateway is the other end of the tunnels, in this process.
type gateway struct {
	tunnel *tunnel.Tunnel
	beyond beyond
	queue  chan []byte
	events chan tun.Event
	quit   chan struct{}
	once   sync.Once
}

// newGateway lets peers in: as many ends as asked for, of so many sandboxes each.
func newGateway(t testing.TB, b beyond, ends, sandboxes int) (*gateway, []End) {
	t.Helper()
	g := &gateway{beyond: b, queue: make(chan []byte, 1<<14), events: make(chan tun.Event), quit: make(chan struct{})}
	key := tunnel.NewKey()
	var err error
	if g.tunnel, err = tunnel.New(tunnel.Config{PrivateKey: key, Device: g}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.tunnel.Close)
	var all []End
	inner := netip.MustParseAddr("10.1.0.1")
	for range ends {
		private := tunnel.NewKey()
		e := End{PrivateKey: private.String(), Gateway: g.as()}
		peer := tunnel.Peer{PublicKey: private.Public()}
		for range sandboxes {
			e.Inners = append(e.Inners, inner)
			peer.AllowedIPs = append(peer.AllowedIPs, netip.PrefixFrom(inner, 32))
			inner = inner.Next()
		}
		if err := g.tunnel.SetPeer(peer); err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return g, all
}

// as is the gateway as sandboxes know it.
func (g *gateway) as() Gateway {
	return Gateway{
		PublicKey: g.tunnel.PublicKey().String(),
		Endpoint:  netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), g.tunnel.ListenPort()),
	}
}

// newSource connects a source with a gateway.
func newSource(t testing.TB, cfg Config) *Source {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (g *gateway) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	select {
	case p := <-g.queue:
		for {
			sizes[n] = copy(bufs[n][offset:], p)
			if n++; n == len(bufs) {
				return n, nil
			}
			select {
			case p = <-g.queue:
			default:
				return n, nil
			}
		}
	case <-g.quit:
		return 0, os.ErrClosed
	}
}

func (g *gateway) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		var p packet.Packet
		if packet.Parse(&p, b[offset:]) != packet.Pass || !p.ChecksumOK() {
			continue
		}
		for _, back := range g.beyond.answer(&p) {
			g.send(back)
		}
	}
	return len(bufs), nil
}

// send has a packet sent to the sandbox that it is for. What there is no room for is lost.
func (g *gateway) send(b []byte) {
	select {
	case g.queue <- b:
	default:
	}
}

func (g *gateway) Close() error {
	g.once.Do(func() {
		close(g.quit)
		close(g.events)
	})
	return nil
}

func (g *gateway) MTU() (int, error)        { return 1420, nil }
func (g *gateway) Name() (string, error)    { return "gateway", nil }
func (g *gateway) File() *os.File           { return nil }
func (g *gateway) Events() <-chan tun.Event { return g.events }
func (g *gateway) BatchSize() int           { return 128 }

// back is an answer to a packet, with a payload.
func back(p *packet.Packet, payload []byte) []byte {
	b := make([]byte, headers+len(payload))
	return b[:packet.BuildUDP(b, netip.AddrPortFrom(p.Dst, p.DstPort), netip.AddrPortFrom(p.Src, p.SrcPort), payload, 60, 0)]
}

// echo answers what asks for an answer, as a far side does.
type echo struct{}

func (echo) answer(p *packet.Packet) [][]byte {
	h, ok := wire.Decode(p.Data())
	if !ok || h.Kind != wire.KindEcho {
		return nil
	}
	h.Kind = wire.KindEchoAnswer
	payload := slices.Clone(p.Data())
	h.Put(payload)
	return [][]byte{back(p, payload)}
}

// allow lets an end have more addresses than its sandboxes.
func allow(g *gateway, e End, p ...netip.Prefix) error {
	key, err := tunnel.ParseKey(e.PrivateKey)
	if err != nil {
		return err
	}
	return g.tunnel.SetPeer(tunnel.Peer{PublicKey: key.Public(), AllowedIPs: p})
}

// contains says whether an error's text has all parts.
func contains(err error, parts ...string) bool {
	return err != nil && !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(err.Error(), p) })
}
