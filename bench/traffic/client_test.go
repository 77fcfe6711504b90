package traffic

import (
	"context"
	"encoding/binary"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// mirror sends all packets back to where they came from.
type mirror struct{}

func (mirror) answer(p *packet.Packet) [][]byte { return [][]byte{back(p, p.Data())} }

// counting sends numbered datagrams of each of its sandboxes until all came back.
type counting struct {
	inners []netip.Addr
	count  int

	mu   sync.Mutex
	sent int
	came map[netip.Addr]int
}

func (c *counting) Fill(bufs [][]byte, sizes []int, offset int) (n int, again time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; n < len(bufs) && c.sent < c.count*len(c.inners); n++ {
		var payload [8]byte
		binary.BigEndian.PutUint64(payload[:], uint64(c.sent))
		from := netip.AddrPortFrom(c.inners[c.sent%len(c.inners)], 777)
		sizes[n] = packet.BuildUDP(bufs[n][offset:], from, remoteA, payload[:], 64, 0)
		c.sent++
	}
	return n, 0
}

func (c *counting) Deliver(packets [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range packets {
		var p packet.Packet
		if packet.Parse(&p, b) == packet.Pass && p.Src == remoteA.Addr() && p.DstPort == 777 {
			c.came[p.Dst]++
		}
	}
}

func (c *counting) all() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, inner := range c.inners {
		if c.came[inner] != c.count {
			return false
		}
	}
	return true
}

// Clients get what comes for their sandboxes and nothing else, beside a load.
func TestClients(t *testing.T) {
	_, ends := newGateway(t, mirrorAndEcho{}, 2, 6)
	s := newSource(t, Config{Ends: ends})
	some := &counting{inners: ends[0].Inners[:3], count: 100, came: map[netip.Addr]int{}}
	others := &counting{inners: ends[0].Inners[3:], count: 50, came: map[netip.Addr]int{}}
	end := &counting{inners: ends[1].Inners, count: 30, came: map[netip.Addr]int{}}
	a, err := s.Attach(0, some, some.inners...)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Attach(0, others, others.inners[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Add(others.inners[1:]...); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Attach(0, end, some.inners[0]); err == nil {
		t.Error("two clients have an address")
	}
	c, err := s.Attach(1, end)
	if err != nil {
		t.Fatal(err)
	}
	answers, err := s.Echo(t.Context(), load(1))
	if err != nil || answers.Lost != 0 {
		t.Errorf("beside clients: %v, %d of %d lost", err, answers.Lost, answers.Asked)
	}
	eventually(t, func() bool { return some.all() && others.all() && end.all() })
	a.Close()
	some.mu.Lock()
	some.count++
	some.mu.Unlock()
	b.Wake()
	c.Close()
	if _, err := s.Attach(0, some, some.inners...); err != nil {
		t.Errorf("after another client: %v", err)
	}
	eventually(t, some.all)
	if r := s.Received(); r.Wrong() != 0 {
		t.Errorf("%+v", r)
	}
}

// mirrorAndEcho answers a load's requests as a far side does, and sends the rest back.
type mirrorAndEcho struct {
	echo   echo
	mirror mirror
}

func (m mirrorAndEcho) answer(p *packet.Packet) [][]byte {
	if b := m.echo.answer(p); b != nil {
		return b
	}
	return m.mirror.answer(p)
}

// stacked has a whole TCP/IP stack beyond the tunnel.
type stacked struct{ device *netstack.Device }

func (s stacked) answer(p *packet.Packet) [][]byte {
	_, _ = s.device.Write([][]byte{p.B}, 0)
	return nil
}

// pump has what a stack sends go to the sandboxes.
func (s stacked) pump(g *gateway) error {
	bufs, sizes := make([][]byte, netstack.BatchSize), make([]int, netstack.BatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, 1500)
	}
	for {
		n, err := s.device.Read(bufs, sizes, 0)
		if err != nil {
			return nil
		}
		for i := range n {
			g.send(append([]byte(nil), bufs[i][:sizes[i]]...))
		}
	}
}

// A stack on a sandbox's end moves much data both ways.
func TestBulk(t *testing.T) {
	const size = 4 << 20
	far, err := netstack.New(netstack.Config{Addresses: []netip.Addr{remoteA.Addr()}, MTU: 1420})
	if err != nil {
		t.Fatal(err)
	}
	g, ends := newGateway(t, stacked{far}, 1, 2)
	var running errgroup.Group
	running.Go(func() error { return stacked{far}.pump(g) })
	t.Cleanup(func() {
		_ = far.Close()
		_ = running.Wait()
	})
	s := newSource(t, Config{Ends: ends})
	near, err := netstack.New(netstack.Config{Addresses: ends[0].Inners[1:], MTU: 1420})
	if err != nil {
		t.Fatal(err)
	}
	a, err := s.AttachDevice(0, near, ends[0].Inners[1])
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	l, err := far.ListenTCP(netip.AddrPortFrom(remoteA.Addr(), 80))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var g2 errgroup.Group
	g2.Go(func() error { // sends back what it gets
		c, err := l.Accept()
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.Copy(c, c)
		return err
	})
	c, err := near.DialTCP(ctx, netip.AddrPortFrom(ends[0].Inners[1], 0), netip.AddrPortFrom(remoteA.Addr(), 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	g2.Go(func() error {
		if _, err := c.Write(make([]byte, size)); err != nil {
			return err
		}
		return c.CloseWrite()
	})
	n, err := io.Copy(io.Discard, c)
	if err := g2.Wait(); err != nil {
		t.Error(err)
	}
	if n != size || err != nil {
		t.Errorf("%d bytes of %d came back (%v)", n, size, err)
	}
}
