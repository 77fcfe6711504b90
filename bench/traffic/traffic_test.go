package traffic

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/packet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	remoteA = netip.MustParseAddrPort("192.0.2.1:9")
	remoteB = netip.MustParseAddrPort("192.0.2.2:9")
)

func load(run uint64) Load {
	return Load{Run: run, Rate: 2000, For: 200 * time.Millisecond, Size: 64, Remotes: []netip.AddrPort{remoteA, remoteB}}
}

// sink counts what came through the tunnels, by endpoints.
type sink struct {
	mu    sync.Mutex
	flows map[endpoints]int
	sizes map[int]int
	wrong atomic.Int64 // not of the run
	echo  echo
}

func newSink() *sink { return &sink{flows: make(map[endpoints]int), sizes: make(map[int]int)} }

func (s *sink) answer(p *packet.Packet) [][]byte {
	h, ok := wire.Decode(p.Data())
	switch {
	case !ok || p.Kind != packet.KindUDP || h.Run != 7:
		s.wrong.Add(1)
	case h.Kind == wire.KindData:
		s.mu.Lock()
		s.flows[endpoints{addressNumber(p.Src), p.SrcPort, remote{addressNumber(p.Dst), p.DstPort}}]++
		s.sizes[len(p.B)]++
		s.mu.Unlock()
	}
	return s.echo.answer(p)
}

func (s *sink) total() (n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.flows {
		n += uint64(k)
	}
	return n
}

// eventually waits until something is so.
func eventually(t *testing.T, so func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for over := time.After(10 * time.Second); !so(); {
		select {
		case <-tick.C:
		case <-over:
			t.Fatal("not in 10 s")
		}
	}
}

// A load that prepares is sent whole, also at a rate that the machine does not keep.
func TestAllAreSent(t *testing.T) {
	_, ends := newGateway(t, newSink(), 3, 5)
	s := newSource(t, Config{Ends: ends})
	l := load(8)
	l.Rate, l.For, l.All = 400_000, 10*time.Millisecond, true
	sent, err := s.Blast(t.Context(), l)
	if err != nil || sent.Due != 4000 || sent.Packets != sent.Due {
		t.Errorf("sent %+v, %v", sent, err)
	}
}

// All flows send in turn, at the rate, over all ends; pulses are answered.
func TestBlast(t *testing.T) {
	there := newSink()
	_, ends := newGateway(t, there, 3, 5)
	s := newSource(t, Config{Ends: ends})
	l := load(7)
	l.Flows, l.Size = 15*2*3, 1420
	sent, err := s.Blast(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if sent.Due != 400 || sent.Packets == 0 || sent.Packets > sent.Due || sent.Bytes != 1420*sent.Packets || sent.Unsent != 0 {
		t.Errorf("sent %+v", sent)
	}
	if sent.Reached != float64(sent.Packets)/400 || sent.Behind.Count() == 0 || sent.Took < l.For/2 {
		t.Errorf("reached %v, behind %v, in %v", sent.Reached, sent.Behind, sent.Took)
	}
	if sent.Asked == 0 || sent.Answered != sent.Asked || sent.Latency.Count() != sent.Answered {
		t.Errorf("asked %d times, answered %d", sent.Asked, sent.Answered)
	}
	eventually(t, func() bool { return there.total() == sent.Packets })
	there.mu.Lock()
	defer there.mu.Unlock()
	total, least, most := 0, 1<<30, 0
	for _, n := range there.flows {
		total, least, most = total+n, min(least, n), max(most, n)
	}
	if uint64(total) != sent.Packets || there.wrong.Load() != 0 || there.sizes[1420] != total {
		t.Errorf("%d of %d arrived, %d wrong, sizes %v", total, sent.Packets, there.wrong.Load(), there.sizes)
	}
	if len(there.flows) != l.Flows || most-least > 1 && sent.Reached == 1 {
		t.Errorf("%d flows of %d, with %d to %d packets", len(there.flows), l.Flows, least, most)
	}
}

func TestEcho(t *testing.T) {
	_, ends := newGateway(t, echo{}, 2, 10)
	s := newSource(t, Config{Ends: ends})
	l := load(1)
	l.Flows = 20 * 2 * 2
	a, err := s.Echo(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if a.Asked != a.Packets || a.Answered != a.Asked || a.Lost != 0 || a.Latency.Count() != a.Asked {
		t.Errorf("%+v, latency %v", a, a.Latency)
	}
	r := a.Received
	if r.Packets != a.Asked || r.Bytes != 64*a.Asked || r.Wrong() != 0 || r.Duplicates+r.Stale+r.Old+r.Errors != 0 {
		t.Errorf("%+v", r)
	}
	var inRanges uint64
	for _, n := range r.Ranges {
		if n == 0 {
			t.Errorf("a range of flows got nothing: %v", r.Ranges)
		}
		inRanges += n
	}
	if inRanges != r.Packets || a.Latency.Max() > time.Minute {
		t.Errorf("%d in ranges of %d; latency %v", inRanges, r.Packets, a.Latency)
	}
}

// crooked answers each of the first requests in a wrong way of its own.
type crooked struct {
	n    atomic.Int64
	echo echo
}

// The wrong ways.
const (
	wayTwice = iota
	wayDamaged
	wayOtherSandbox
	wayOtherPort
	wayNobody
	wayOldRun
	wayOldConnection
	wayStrange
	wayError
	wayLost
	ways
)

func (c *crooked) answer(p *packet.Packet) [][]byte {
	good := c.echo.answer(p)
	if good == nil {
		return nil
	}
	b := good[0]
	change := func(do func(h *wire.Head)) [][]byte {
		payload := slices.Clone(b[headers:])
		h, _ := wire.Decode(payload)
		do(&h)
		h.Put(payload)
		return [][]byte{back(p, payload)}
	}
	switch c.n.Add(1) - 1 {
	case wayTwice:
		return [][]byte{b, b}
	case wayDamaged:
		b[40] ^= 1
	case wayOtherSandbox:
		other := *p
		other.Src = netip.MustParseAddr("10.1.0.1")
		if p.Src == other.Src {
			other.Src = other.Src.Next()
		}
		return [][]byte{back(&other, b[headers:])}
	case wayOtherPort:
		other := *p
		other.SrcPort++
		return [][]byte{back(&other, b[headers:])}
	case wayNobody: // the peer may have it, the source does not
		other := *p
		other.Src = netip.MustParseAddr("10.1.0.77")
		return [][]byte{back(&other, b[headers:])}
	case wayOldRun:
		return change(func(h *wire.Head) { h.Run = 1 })
	case wayOldConnection: // whose client has left
		b := make([]byte, 64)
		n := packet.BuildTCP(b, packet.TCPHeader{
			Src: netip.AddrPortFrom(p.Dst, p.DstPort), Dst: netip.AddrPortFrom(p.Src, p.SrcPort), Flags: packet.FIN | packet.ACK, TTL: 64,
		}, nil)
		return [][]byte{b[:n]}
	case wayStrange:
		return change(func(h *wire.Head) { h.Run = 99 })
	case wayError:
		e := make([]byte, 1500)
		return [][]byte{e[:packet.BuildICMPError(e, 3, 1, 0, remoteA.Addr(), p)]}
	case wayLost:
		return nil
	}
	return good
}

// Wrong packets are counted, each where it belongs, and are no answers.
func TestWrong(t *testing.T) {
	t.Parallel()
	c := new(crooked)
	c.n.Store(ways)
	g, ends := newGateway(t, c, 1, 20)
	// The gateway sends 10.1.0.77 by this tunnel, too.
	if err := allow(g, ends[0], netip.MustParsePrefix("10.1.0.0/16")); err != nil {
		t.Fatal(err)
	}
	s := newSource(t, Config{Ends: ends})
	l := load(1)
	if _, err := s.Echo(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	c.n.Store(0)
	l.Run, l.Patience, l.Flows = 2, time.Second, 40
	a, err := s.Echo(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	r := a.Received
	if r.Duplicates != 1 || r.Damaged != 1 || r.Foreign != 3 || r.Old != 2 || r.Strange != 1 || r.Errors != 1 || r.Wrong() != 5 {
		t.Errorf("%+v", r)
	}
	if a.Lost != ways-1 || a.Answered != a.Asked-a.Lost || a.Late != 0 || r.Packets != a.Answered+1 {
		t.Errorf("%d lost of %d, %d answered", a.Lost, a.Asked, a.Answered)
	}
}

// slow answers every other request late.
type slow struct {
	echo echo
	to   atomic.Pointer[gateway]
	wait sync.WaitGroup
	n    atomic.Int64
	by   time.Duration
}

func (s *slow) answer(p *packet.Packet) [][]byte {
	answers, g := s.echo.answer(p), s.to.Load()
	if s.n.Add(1)%2 == 0 || g == nil || answers == nil {
		return answers
	}
	s.wait.Add(1)
	time.AfterFunc(s.by, func() {
		defer s.wait.Done()
		g.send(answers[0])
	})
	return nil
}

// Time is counted from when a request was due; what is later than the patience is lost.
func TestLate(t *testing.T) {
	t.Parallel()
	b := &slow{by: 400 * time.Millisecond}
	t.Cleanup(b.wait.Wait) // after the gateway's end
	g, ends := newGateway(t, b, 1, 2)
	b.to.Store(g)
	s := newSource(t, Config{Ends: ends})
	l := load(1)
	l.Rate = 200
	a, err := s.Echo(t.Context(), l)
	if err != nil || a.Answered != a.Asked || a.Latency.Quantile(0.6) < b.by || a.Latency.Min() > b.by {
		t.Errorf("%v: %d of %d, latency %v", err, a.Answered, a.Asked, a.Latency)
	}
	l.Run, l.Patience = 2, 300*time.Millisecond
	a, err = s.Echo(t.Context(), l)
	if err != nil || a.Lost < a.Asked/2 || a.Lost != a.Asked-a.Answered || a.Latency.Count() != a.Asked || a.Latency.Max() != l.Patience {
		t.Errorf("%v: %d lost, %d late of %d, latency %v", err, a.Lost, a.Late, a.Asked, a.Latency)
	}
	l.Run, l.For = 3, 600*time.Millisecond
	a, err = s.Echo(t.Context(), l)
	if err != nil || a.Late == 0 || a.Lost < a.Late || a.Received.Packets < a.Answered+a.Late {
		t.Errorf("%v: %d lost, %d late of %d", err, a.Lost, a.Late, a.Asked)
	}
}

// A gateway that is not there is named, and what to look at.
func TestUnreachable(t *testing.T) {
	g, ends := newGateway(t, echo{}, 1, 1)
	g.tunnel.Close()
	s, err := New(Config{Ends: ends})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := s.Connect(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	e := s.ends[0]
	err = s.shaken(t.Context(), s.ends, time.Now(), 50*time.Millisecond)
	if !errors.Is(err, ErrDead) || !contains(err, e.gateway.Endpoint.String(), e.gateway.PublicKey, "look") {
		t.Errorf("%v", err)
	}
}

// dying stops to answer when told to.
type dying struct {
	echo    echo
	stopped atomic.Bool
}

func (d *dying) answer(p *packet.Packet) [][]byte {
	if d.stopped.Load() {
		return nil
	}
	return d.echo.answer(p)
}

// A gateway that dies, and one that stays and passes nothing, are told apart, and what
// was measured is kept.
func TestDies(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		close bool
		want  error
	}{"dead": {true, ErrDead}, "silent": {false, ErrSilent}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := new(dying)
			g, ends := newGateway(t, d, 1, 2)
			s := newSource(t, Config{Ends: ends})
			l := load(1)
			l.For, l.Patience = time.Minute, time.Second
			var a Answers
			done := make(chan error, 1)
			go func() {
				var err error
				a, err = s.Echo(t.Context(), l)
				done <- err
			}()
			eventually(t, func() bool { return s.Received().Packets >= 20 })
			d.stopped.Store(true)
			if c.close {
				g.tunnel.Close()
			}
			if err := <-done; !errors.Is(err, c.want) || !contains(err, ends[0].Gateway.Endpoint.String(), "look") {
				t.Errorf("%v", err)
			}
			if a.Answered < 20 || a.Lost != a.Asked-a.Answered || a.Lost == 0 || a.Latency.Count() != a.Asked || a.Due > 120_000/2 {
				t.Errorf("%+v", a)
			}
		})
	}
}

// A message that a dead gateway does not pass on is not held against the far side.
func TestReportOfDead(t *testing.T) {
	t.Parallel()
	g, ends := newGateway(t, newSink(), 1, 1)
	s := newSource(t, Config{Ends: ends})
	g.tunnel.Close()
	if _, err := s.Report(t.Context(), 1, remoteA); !errors.Is(err, ErrDead) || errors.Is(err, ErrUnanswered) || !contains(err, ends[0].Gateway.Endpoint.String(), "look") {
		t.Errorf("%v", err)
	}
}

// A load that is ended by its caller tells what was sent.
func TestCancelled(t *testing.T) {
	there := newSink()
	_, ends := newGateway(t, there, 1, 2)
	s := newSource(t, Config{Ends: ends})
	l := load(7)
	l.For = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	sent, err := s.Blast(ctx, l)
	if !errors.Is(err, context.DeadlineExceeded) || sent.Packets == 0 || sent.Due > 100_000 {
		t.Errorf("%v: %+v", err, sent)
	}
	l.Run = 8 // the first load has ended
	l.For, l.Unasked = 20*time.Millisecond, true
	if sent, err := s.Blast(t.Context(), l); err != nil || sent.Due != 40 || sent.Asked != 0 {
		t.Errorf("%v: %+v", err, sent)
	}
}
