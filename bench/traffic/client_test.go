package traffic

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

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
