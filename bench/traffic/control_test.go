package traffic

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/far"
	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// relay is a translator by sockets: each flow gets one to the far side.
type relay struct {
	to      netip.AddrPort
	gateway *gateway
	// lose says how many of the packets that come back are lost, one in so many; 0: none.
	lose int
	// mute says that no echo comes back.
	mute atomic.Bool

	mu      sync.Mutex
	sockets map[[2]netip.AddrPort]*net.UDPConn
	running sync.WaitGroup
	came    int
}

func (r *relay) answer(p *packet.Packet) [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := [2]netip.AddrPort{netip.AddrPortFrom(p.Src, p.SrcPort), netip.AddrPortFrom(p.Dst, p.DstPort)}
	c := r.sockets[from]
	if c == nil {
		var err error
		if c, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(r.to)); err != nil {
			return nil
		}
		r.sockets[from] = c
		about := *p
		r.running.Go(func() { r.back(c, about) })
	}
	_, _ = c.Write(p.Data())
	return nil
}

// back brings what comes to where the flow is.
func (r *relay) back(c *net.UDPConn, about packet.Packet) {
	b := make([]byte, 2000)
	for {
		n, err := c.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		r.mu.Lock()
		r.came++
		lost := r.lose > 0 && r.came%r.lose == 0
		r.mu.Unlock()
		if h, ok := wire.Decode(b[:n]); ok && h.Kind == wire.KindEchoAnswer && r.mute.Load() {
			lost = true
		}
		if err == nil && !lost {
			r.gateway.send(back(&about, slices.Clone(b[:n])))
		}
	}
}

func (r *relay) close() {
	r.mu.Lock()
	for _, c := range r.sockets {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.running.Wait()
}

// withFar makes a source whose packets reach a far side that runs.
func withFar(t *testing.T, key [wire.KeySize]byte) (*relay, *Source) {
	t.Helper()
	f, err := far.New(far.Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Key: [wire.KeySize]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	r := &relay{to: f.Addr(), sockets: make(map[[2]netip.AddrPort]*net.UDPConn)}
	t.Cleanup(r.close) // after the gateway's end
	g, ends := newGateway(t, r, 2, 10)
	r.mu.Lock() // answer takes it, too
	r.gateway = g
	r.mu.Unlock()
	return r, newSource(t, Config{Ends: ends, Key: key})
}

// The far side and the source agree on what was sent, egress, echo and ingress.
func TestWithFar(t *testing.T) {
	r, s := withFar(t, [wire.KeySize]byte{1})
	l := load(1)
	l.Flows = 40
	if _, err := s.Report(t.Context(), 1, remoteA); err != nil {
		t.Fatal(err)
	}
	sent, err := s.Blast(t.Context(), l)
	if err != nil || sent.Answered != sent.Asked || sent.Asked == 0 {
		t.Errorf("%v: %+v", err, sent)
	}
	var report wire.Report
	eventually(t, func() bool {
		report, err = s.Report(t.Context(), 1, remoteA)
		return err != nil || report.Packets == sent.Packets
	})
	if err != nil || report.Bytes != sent.Bytes-headers*sent.Packets || report.Flows != 40 ||
		report.Duplicates+report.Reordered+report.Stale+report.Missing != 0 || report.Echoed != sent.Asked || len(report.Sources) != 1 {
		t.Errorf("%v: %+v of %+v", err, report, sent)
	}

	if _, err := s.Report(t.Context(), 2, remoteA); err != nil {
		t.Fatal(err)
	}
	l.Run = 2
	a, err := s.Echo(t.Context(), l)
	if err != nil || a.Lost != 0 || a.Received.Wrong() != 0 {
		t.Errorf("%v: %+v", err, a)
	}

	l.Run, l.Rate = 3, 5000
	in, err := s.Generate(t.Context(), l)
	if err != nil || in.Flows != 40 || in.Report.Generated == 0 || in.Lost != 0 || in.Received.Packets != in.Report.Generated || in.Received.Wrong() != 0 {
		t.Errorf("%v: %+v", err, in)
	}
	r.mu.Lock()
	r.lose, r.came = 10, 0
	r.mu.Unlock()
	l.Run, l.Patience = 4, 300*time.Millisecond
	in, err = s.Generate(t.Context(), l)
	if err != nil || in.Flows != 40 || in.Lost == 0 || in.Lost != in.Report.Generated-in.Received.Packets {
		t.Errorf("with losses: %v: %+v", err, in)
	}
}

// A far side with another key says nothing, and the harness what to look at.
func TestOtherKey(t *testing.T) {
	t.Parallel()
	_, s := withFar(t, [wire.KeySize]byte{2})
	began := time.Now()
	if _, err := s.Report(t.Context(), 1, remoteA); !errors.Is(err, ErrUnanswered) || !contains(err, remoteA.String(), "key") || time.Since(began) > 30*time.Second {
		t.Errorf("%v", err)
	}
}

// A gateway that carries packets and no answers is silent only if it was asked often enough;
// then the far side says what came.
func TestFewAnswers(t *testing.T) {
	t.Parallel()
	r, s := withFar(t, [wire.KeySize]byte{1})
	r.mute.Store(true)
	for run, c := range map[uint64]struct {
		long time.Duration
		want error
	}{1: {200 * time.Millisecond, nil}, 2: {time.Minute, ErrSilent}} {
		if _, err := s.Report(t.Context(), run, remoteA); err != nil {
			t.Fatal(err)
		}
		l := load(run)
		l.For, l.Patience = c.long, time.Second
		sent, err := s.Blast(t.Context(), l)
		if !errors.Is(err, c.want) || sent.Packets == 0 || sent.Asked == 0 || sent.Answered != 0 {
			t.Errorf("for %v: %v, %+v", c.long, err, sent)
		}
		var silent *SilentError
		if errors.As(err, &silent) != (c.want != nil) || silent != nil && (!silent.Answers || silent.Report.Packets == 0 || !contains(err, "sessions", "look")) {
			t.Errorf("for %v: %v", c.long, err)
		}
	}
}
