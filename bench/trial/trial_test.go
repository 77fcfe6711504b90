package trial

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/handshake"
	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/tcp"
)

// gateway lets connections through to an answerer that it has, in one goroutine, or none of them.
type gateway struct {
	client   *tcp.Connections
	answerer *handshake.Answerer
	shut     bool
	woken    chan struct{}
	quit     chan struct{}
	began    chan struct{} // closed when a segment has come
	come     bool
}

const room = 1500 // bytes for a packet

// newGateway makes one that runs until the test ends, and a dialer with a meter that tells steps of a
// process, 30 ms each, and of a core.
func newGateway(t *testing.T, shut bool) (*gateway, *Dialer) {
	t.Helper()
	request, answer := []byte("ask"), []byte("answer")
	resend := time.Minute // nothing is lost: a busy machine must not time anything out
	if shut {
		resend = 10 * time.Millisecond
	}
	client, err := tcp.NewConnections(handshake.Config{
		Sandboxes: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, FirstPort: 1024, LastPort: 65535,
		Remotes: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.80:80")},
		Request: request, Answer: answer, MSS: 1380, Seed: 1, Resend: resend, Tries: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	answerer, err := handshake.NewAnswerer(handshake.AnswererConfig{Request: request, Answer: answer, Seed: 2})
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{client: client, answerer: answerer, shut: shut, woken: make(chan struct{}, 1), quit: make(chan struct{}), began: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.run()
	}()
	t.Cleanup(func() {
		close(g.quit)
		<-ended
	})
	return g, &Dialer{
		Client: client, Waker: g, Meter: &steps{}, Lag: time.Second,
		Limits: search.ConnectionLimits{Late: 0.001, Resent: 1, Full: 0.9},
	}
}

// Wake implements tcp.Waker.
func (g *gateway) Wake() {
	select {
	case g.woken <- struct{}{}:
	default:
	}
}

func (g *gateway) run() {
	bufs, sizes := make([][]byte, 16), make([]int, 16)
	for i := range bufs {
		bufs[i] = make([]byte, room)
	}
	for {
		n, again := g.client.Fill(bufs, sizes, 0)
		for i := range n {
			back := make([]byte, room)
			if size := g.answerer.Answer(back, bufs[i][:sizes[i]]); size > 0 && !g.shut {
				g.client.Deliver([][]byte{back[:size]})
			}
		}
		if n > 0 && !g.come {
			g.come = true
			close(g.began)
		}
		if n > 0 {
			continue
		}
		if again == 0 {
			again = time.Hour
		}
		select {
		case <-time.After(again):
		case <-g.woken:
		case <-g.quit:
			return
		}
	}
}

// steps is a meter by which the gateway spends 30 ms between two readings, its core 40.
type steps struct {
	n      time.Duration
	unseen bool
	err    error
}

func (s *steps) Seen() (process, core bool) { return !s.unseen, !s.unseen }

func (s *steps) Read(context.Context) (Usage, error) {
	s.n++
	return Usage{Process: s.n * 30 * time.Millisecond, Core: s.n * 40 * time.Millisecond}, s.err
}

// wrongs sees two wrong segments in each trial.
type wrongs struct{ n uint64 }

func (w *wrongs) Wrong() (uint64, error) {
	w.n += 2
	return w.n, nil
}

// All connections of a rate end well, and it is said what they cost.
func TestTry(t *testing.T) {
	_, d := newGateway(t, false)
	const hold = 50 * time.Millisecond
	c, err := d.Try(t.Context(), 2000, hold)
	if err != nil || c.Begun == 0 || c.OK != c.Begun || c.WrongSegments != 0 {
		t.Fatalf("%v (%v)", c, err)
	}
	if c.Begun+c.Skipped != 100 || c.Asked != 2000 || c.Rate <= 0 || c.Rate > 2000 {
		t.Errorf("%v of %v/s", c, c.Asked)
	}
	if process, core := c.Spent.Each(c.OK); c.Spent != (Cost{30 * time.Millisecond, 40 * time.Millisecond}) || core <= process {
		t.Errorf("it cost %+v, each %v and %v us", c.Spent, process, core)
	}
	if want := c.Spent.Core.Seconds() / max(hold, c.Sent).Seconds(); c.Busy != want {
		t.Errorf("busy %v, want %v", c.Busy, want)
	}
	d.Witness = &wrongs{}
	if c, err := d.Try(t.Context(), 1000, hold); err != nil || c.WrongSegments != 2 || c.Passes() {
		t.Errorf("with wrong ones: %d, %v (%v)", c.WrongSegments, c, err)
	}
	d.Meter = &steps{unseen: true}
	if c, err := d.Try(t.Context(), 1000, hold); err != nil || c.Busy >= 0 || c.Starved() || strings.Contains(c.String(), "core") {
		t.Errorf("unseen: %v (%v)", c, err)
	}
	gone := errors.New("gone")
	d.Meter = &steps{err: gone}
	if _, err := d.Try(t.Context(), 1000, hold); !errors.Is(err, gone) {
		t.Errorf("nobody to ask: %v", err)
	}
}

// What was made until somebody had enough is kept.
func TestTryEnds(t *testing.T) {
	g, d := newGateway(t, false)
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	go func() {
		<-g.began
		cancel(enough)
	}()
	if c, err := d.Try(ctx, 1000, time.Minute); !errors.Is(err, enough) || c.Begun == 0 {
		t.Errorf("%v (%v)", c, err)
	}
}

// A search says of all rates what came of them, and why there is no highest.
func TestHighest(t *testing.T) {
	_, d := newGateway(t, true)
	tried := 0
	found, err := d.Highest(t.Context(), search.Range{Least: 1000, Most: 4000, Tries: 1, Hold: 2 * time.Millisecond}, func(c Connected) error {
		tried++
		return nil
	})
	best := found.Best
	if !errors.Is(err, search.ErrNone) || found.Over == nil || tried < 2 || best.Asked == 0 || best.Failed()+best.Skipped == 0 || !strings.Contains(err.Error(), "TimedOut") {
		t.Errorf("after %d: %v, %v", tried, best, err)
	}
	enough := errors.New("enough")
	if _, err := d.Highest(t.Context(), search.Range{Least: 1000, Most: 4000, Tries: 3, Hold: time.Millisecond}, func(Connected) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
}

// Nothing costs nothing each, and what is not known is not read.
func TestUsage(t *testing.T) {
	if process, core := (Cost{1, 1}).Each(0); process != 0 || core != 0 {
		t.Errorf("%v, %v", process, core)
	}
	from := Usage{All: machine.CPU{Total: 100, Stolen: 1}}
	if got := (Usage{All: machine.CPU{Total: 200, Stolen: 26}}).Stolen(from); got != 0.25 {
		t.Errorf("%v stolen", got)
	}
	l := Local{Core: -1}
	u, err := l.Read(t.Context())
	if process, core := l.Seen(); process || core || err != nil || u.Process != 0 || u.Core != 0 || u.All.Total == 0 {
		t.Errorf("%+v (%v)", u, err)
	}
	if _, err := (Local{PID: 1 << 30, Core: -1}).Read(t.Context()); err == nil {
		t.Error("a process that is none was read")
	}
}

// A count is final when it has not grown for a while.
func TestSettle(t *testing.T) {
	counts := []uint64{0, 5, 7, 7}
	i := -1
	read := func() (uint64, error) {
		i++
		return counts[min(i, len(counts)-1)], nil
	}
	counts[0] = 3
	if err := Settle(t.Context(), read); err != nil || i != 3 {
		t.Errorf("after %d readings: %v", i+1, err)
	}
	broken := errors.New("broken")
	if err := Settle(t.Context(), func() (uint64, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	if err := Settle(ctx, read); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

// What is noisy is measured again while repeats are left, of its own and of all.
func TestRepeats(t *testing.T) {
	r := Repeats{Each: 2, All: 3}
	for i, c := range []struct {
		noisy, attempts, left int
		spent                 bool
	}{
		{0, 1, 3, false}, {1, 2, 2, false}, {9, 3, 0, false}, {9, 1, 0, true}, {0, 1, 0, false},
	} {
		n, told := 0, 0
		attempts, spent := r.Measure(func() string {
			if n++; n <= c.noisy {
				return "a reason"
			}
			return ""
		}, func(noise string) {
			if told++; noise != "a reason" || told != n {
				t.Errorf("%d: told of %q %d times after %d attempts", i, noise, told, n)
			}
		})
		if attempts != c.attempts || spent != c.spent || n != attempts || told != n-1 || r.All != c.left {
			t.Errorf("%d: %d attempts, told %d times, %d left, spent: %t; want %+v", i, n, told, r.All, spent, c)
		}
	}
}
