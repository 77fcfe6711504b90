package handshake

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

const millisecond = packet.Instant(time.Millisecond)

func addresses(first string, n int) (out []netip.Addr) {
	for a := netip.MustParseAddr(first); len(out) < n; a = a.Next() {
		out = append(out, a)
	}
	return out
}

func remotes(n int) (out []netip.AddrPort) {
	for _, a := range addresses("192.0.2.1", n) {
		out = append(out, netip.AddrPortFrom(a, 80))
	}
	return out
}

// config has 4 sandboxes with 50 ports each and 20 destinations.
func config() Config {
	return Config{
		Sandboxes: addresses("10.0.0.1", 4), FirstPort: 5000, LastPort: 5049, Remotes: remotes(20),
		Request: []byte("what is the answer?"), Answer: []byte("it is long enough to be cut"), MSS: 1380,
		Resend: 200 * time.Millisecond, Tries: 8, Seed: 7,
	}
}

func newClient(t testing.TB, c Config) *Client {
	t.Helper()
	cl, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

func newAnswerer(t testing.TB, c Config) *Answerer {
	t.Helper()
	a, err := NewAnswerer(AnswererConfig{Request: c.Request, Answer: c.Answer, Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// latencies counts what is recorded.
type latencies struct {
	n         uint64
	most, sum time.Duration
}

func (l *latencies) Record(d time.Duration) {
	l.n++
	l.most = max(l.most, d)
	l.sum += d
}

// flight is a packet under way.
type flight struct {
	at    packet.Instant
	order int
	toFar bool
	b     []byte
}

type flights []flight

func (f flights) Len() int { return len(f) }
func (f flights) Less(i, j int) bool {
	return f[i].at < f[j].at || f[i].at == f[j].at && f[i].order < f[j].order
}
func (f flights) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(x any)   { *f = append(*f, x.(flight)) }
func (f *flights) Pop() any {
	old := *f
	x := old[len(old)-1]
	*f = old[:len(old)-1]
	return x
}

// far is what answers packets.
type far interface{ answer(b []byte) [][]byte }

// stateless is an Answerer as far.
type stateless struct{ *Answerer }

func (s stateless) answer(b []byte) [][]byte {
	dst := make([]byte, s.Size())
	if n := s.Answer(dst, b); n > 0 {
		return [][]byte{dst[:n]}
	}
	return nil
}

// world is a client, a far side, and a network between them that loses, doubles and delays.
type world struct {
	client              *Client
	far                 far
	chance              *rand.Rand
	loss, double, delay float64 // parts of 1; milliseconds at most, beside 1
	now                 packet.Instant
	flying              flights
	order               int
}

func (w *world) fly(toFar bool, b []byte) {
	for range 2 {
		if w.chance.Float64() >= w.loss {
			at := w.now + millisecond + packet.Instant(w.chance.Float64()*w.delay*float64(millisecond))
			w.order++
			heap.Push(&w.flying, flight{at, w.order, toFar, append([]byte(nil), b...)})
		}
		if w.chance.Float64() >= w.double {
			return
		}
	}
}

// step moves to the next moment at which something happens; false: there is none.
func (w *world) step() bool {
	buf := make([]byte, w.client.SegmentSize())
	for {
		n := w.client.Next(buf, w.now)
		if n == 0 {
			break
		}
		w.fly(true, buf[:n])
	}
	wait := w.client.Wait(w.now)
	if len(w.flying) == 0 && wait < 0 {
		return false
	}
	if next := w.now + packet.Instant(wait); wait >= 0 && (len(w.flying) == 0 || w.flying[0].at > next) {
		w.now = next
		return true
	}
	f := heap.Pop(&w.flying).(flight)
	w.now = f.at
	if !f.toFar {
		w.client.Deliver(f.b, w.now)
		return true
	}
	for _, b := range w.far.answer(f.b) {
		w.fly(false, b)
	}
	return true
}

// sound says what is wrong with a client's books.
func sound(c *Client) error {
	n := c.Counts()
	if n.Begun != n.OK+n.Failed()+uint64(c.Open()) {
		return fmt.Errorf("%d began, %d are open: %+v", n.Begun, c.Open(), n)
	}
	free, waiting := 0, 0
	for i := c.free.first; i != 0; i = c.slots[i].next {
		if free++; c.slots[i].busy() || free > len(c.slots) {
			return fmt.Errorf("slot %d is free and in state %d", i, c.slots[i].state)
		}
	}
	for tries := range c.wait {
		before := packet.Instant(0)
		for i := c.wait[tries].first; i != 0; i = c.slots[i].next {
			s := &c.slots[i]
			if waiting++; !s.busy() || int(s.tries) != tries+1 || s.again < before || waiting > len(c.slots) {
				return fmt.Errorf("slot %d waits after %d tries: %+v", i, tries+1, *s)
			}
			before = s.again
		}
	}
	if waiting != c.Open() || free+waiting != len(c.slots)-1 {
		return fmt.Errorf("%d slots, %d free, %d waiting, %d open", len(c.slots)-1, free, waiting, c.Open())
	}
	return nil
}
