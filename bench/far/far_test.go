package far_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/bench/far"
	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

var key = [wire.KeySize]byte{9, 8, 7}

// patience is how long an answer may take on a busy machine.
const patience = 20 * time.Second

func start(t *testing.T, cfg far.Config) *far.Server {
	current := goleak.IgnoreCurrent()
	cfg.Key = key
	if !cfg.Listen.IsValid() {
		cfg.Listen = netip.MustParseAddrPort("127.0.0.1:0")
	}
	s, err := far.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t, current)
	})
	return s
}

// flow is a socket of the harness.
type flow struct {
	*testing.T
	net.Conn
	sealer *wire.Sealer
}

func dial(t *testing.T, s *far.Server) *flow {
	c, err := net.Dial("udp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return use(t, c)
}

func use(t *testing.T, c net.Conn) *flow {
	t.Cleanup(func() { _ = c.Close() })
	return &flow{t, c, wire.NewSealer(key)}
}

func (f *flow) send(b []byte) {
	f.Helper()
	if _, err := f.Write(b); err != nil {
		f.Fatal(err)
	}
}

// receive returns the next datagram, nil if there is none until then.
func (f *flow) receive(until time.Duration) []byte {
	f.Helper()
	_ = f.SetReadDeadline(time.Now().Add(until))
	b := make([]byte, 1<<16)
	n, err := f.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		f.Fatal(err)
	}
	return b[:n]
}

func (f *flow) sealed(kind wire.Kind, h wire.Head, o wire.Order) []byte {
	h.Kind = kind
	return f.sealer.Append(nil, wire.Control{Head: h, Order: o, Until: time.Now().Add(wire.Validity)})
}

// ask sends a request and returns its answer, over what is generated meanwhile.
func (f *flow) ask(kind wire.Kind, h wire.Head, o wire.Order) wire.Control {
	f.Helper()
	f.send(f.sealed(kind, h, o))
	return f.answer()
}

func (f *flow) answer() wire.Control {
	f.Helper()
	for {
		b := f.receive(patience)
		if h, ok := wire.Decode(b); ok && h.Kind == wire.KindGenerated {
			continue
		}
		c, v := f.sealer.Open(b, time.Now())
		if v != wire.Good {
			f.Fatalf("the answer %x is %v", b, v)
		}
		return c
	}
}

func (f *flow) report(run uint64) wire.Report {
	f.Helper()
	f.send(f.sealed(wire.KindReport, wire.Head{Run: run}, wire.Order{}))
	_, r, v := f.sealer.OpenReport(f.receive(patience), time.Now())
	if v != wire.Good {
		f.Fatalf("the report is %v", v)
	}
	return r
}

func message(h wire.Head, size int) []byte {
	b := make([]byte, size)
	h.Put(b)
	for i := wire.HeadSize; i < size; i++ {
		b[i] = byte(i)
	}
	return b
}

func TestDataIsCounted(t *testing.T) {
	s := start(t, far.Config{Sockets: 2})
	f, other := dial(t, s), dial(t, s)
	if r := f.report(7); r.Packets != 0 || len(r.Sources) != 1 {
		t.Errorf("a run begins with %+v", r)
	}
	for i := range uint64(100) {
		f.send(message(wire.Head{Kind: wire.KindData, Run: 7, Sequence: i}, 36))
		other.send(message(wire.Head{Kind: wire.KindData, Run: 7, Flow: 500, Sequence: 2 * i}, 1200))
	}
	f.send(message(wire.Head{Kind: wire.KindData, Run: 7, Sequence: 99}, 36))
	f.send(message(wire.Head{Kind: wire.KindData, Run: 8}, 36)) // not open
	f.send(message(wire.Head{Kind: wire.KindEcho, Run: 8}, 36)) // the same
	f.send([]byte("a stranger"))                                // no message
	f.send(message(wire.Head{Kind: wire.KindData, Run: 7, Sequence: 1 << 63}, 36))
	f.send(message(wire.Head{Kind: wire.KindAskAnswer, Run: 7}, 36)) // not for the far side
	want := wire.Report{Packets: 201, Bytes: 101*36 + 100*1200, Duplicates: 1, Missing: 99, Flows: 2}
	r := f.report(7)
	for began := time.Now(); r.Packets < want.Packets && time.Since(began) < patience; r = f.report(7) {
	}
	if len(r.Sources) != 1 || r.Sources[0].Addr != s.Addr().Addr() || r.Sources[0].Count < 202 || r.Others != 0 {
		t.Errorf("sources: %+v, %d others", r.Sources, r.Others)
	}
	r.Sources, want.Sources = nil, nil
	if r.Packets != want.Packets || r.Bytes != want.Bytes || r.Duplicates != 1 || r.Missing != 99 || r.Flows != 2 || r.Reordered+r.Stale+r.Echoed+r.Generated != 0 {
		t.Errorf("%+v, want %+v", r, want)
	}
	if got, ok := s.Report(7); !ok || got.Packets != 201 {
		t.Errorf("the server itself says %+v, %t", got, ok)
	}
	if _, ok := s.Report(8); ok {
		t.Error("a run opened without a request")
	}
	n := s.Counts()
	for refusal, want := range map[far.Refusal]uint64{far.RefusedRun: 2, far.RefusedForeign: 1, far.RefusedFlow: 1, far.RefusedKind: 1} {
		if n.Refused[refusal] != want {
			t.Errorf("refused as %v: %d, want %d", refusal, n.Refused[refusal], want)
		}
	}
	if n.Runs != 1 || n.Datagrams < 205 || n.Unsent != 0 {
		t.Errorf("%+v", n)
	}
}

func TestEchoIsTheSame(t *testing.T) {
	s := start(t, far.Config{})
	if !s.Open(1) {
		t.Fatal("no room for a run")
	}
	f := dial(t, s)
	for i := range uint64(200) {
		h := wire.Head{Kind: wire.KindEcho, Flags: 3, Flow: 4, Run: 1, Sequence: i, Time: 1000 + i}
		sent := message(h, 32+int(i))
		f.send(sent)
		got := f.receive(patience)
		h.Kind = wire.KindEchoAnswer
		if a, ok := wire.Decode(got); !ok || a != h || !bytes.Equal(got[wire.HeadSize:], sent[wire.HeadSize:]) {
			t.Fatalf("%x was answered by %x", sent, got)
		}
	}
	if r, _ := s.Report(1); r.Echoed != 200 || r.Packets != 0 {
		t.Errorf("%+v", r)
	}
}

// Both versions of IP, and all addresses of a machine.
func TestListensOn(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", "[::1]:0", "[::]:0"} {
		t.Run(listen, func(t *testing.T) {
			at := netip.MustParseAddrPort(listen)
			if at.Addr().Is6() {
				l, err := net.Listen("tcp6", "[::1]:0")
				if err != nil {
					netlab.NotRun(t, "there is no IPv6: "+err.Error())
				}
				_ = l.Close()
			}
			s := start(t, far.Config{Listen: at})
			s.Open(1)
			f := dial(t, s)
			f.send(message(wire.Head{Kind: wire.KindEcho, Run: 1}, 36))
			if h, ok := wire.Decode(f.receive(patience)); !ok || h.Kind != wire.KindEchoAnswer {
				t.Errorf("the echo is %+v, %t", h, ok)
			}
			f.ask(wire.KindJoin, wire.Head{Run: 1}, wire.Order{})
			f.ask(wire.KindGenerate, wire.Head{Run: 1, Sequence: 1}, wire.Order{Rate: 1000, For: time.Minute, Size: 36})
			if h, ok := wire.Decode(f.receive(patience)); !ok || h.Kind != wire.KindGenerated {
				t.Errorf("generated: %+v, %t", h, ok)
			}
			c := connect(t, s)
			c.send(message(wire.Head{Kind: wire.KindAsk, Run: 1}, wire.HeadSize))
			if h, ok := wire.Decode(c.all()); !ok || h.Kind != wire.KindAskAnswer {
				t.Errorf("the answer is %+v, %t", h, ok)
			}
			r, _ := s.Report(1)
			if want := f.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(); len(r.Sources) != 1 || r.Sources[0].Addr != want || r.Failed != 0 {
				t.Errorf("%+v, want all from %v", r, want)
			}
		})
	}
}

// Joined datagrams come to the far side as one; each counts.
func TestJoinedDatagramsAreToldApart(t *testing.T) {
	s := start(t, far.Config{})
	s.Open(1)
	f := dial(t, s)
	const n = 40
	var train []byte
	for i := range uint64(n) {
		train = append(train, message(wire.Head{Kind: wire.KindEcho, Run: 1, Sequence: i}, 100)...)
	}
	sendTrain(t, f.Conn.(*net.UDPConn), train, 100)
	for i := range uint64(n) {
		if h, ok := wire.Decode(f.receive(patience)); !ok || h.Kind != wire.KindEchoAnswer || h.Sequence != i {
			t.Fatalf("echo %d: %+v, %t", i, h, ok)
		}
	}
	// They may be here before they are counted there.
	await(t, "all are counted", func() bool { c := s.Counts(); return c.Datagrams == n && c.Answered == n })
}

func TestGenerate(t *testing.T) {
	s := start(t, far.Config{})
	first := dial(t, s)
	flows := []*flow{first, dial(t, s), dial(t, s)}
	first.report(5)
	for i, f := range flows {
		for range 2 { // an answer was lost, say
			if a := f.ask(wire.KindJoin, wire.Head{Run: 5, Flow: uint16(10 + i), Sequence: 1}, wire.Order{}); a.Head.Kind != wire.KindJoinAnswer || a.Order.Flows != uint32(i+1) {
				t.Fatalf("flow %d: %+v", i, a)
			}
		}
	}
	order := wire.Order{Rate: 3000, For: time.Minute, Size: 100}
	if a := first.ask(wire.KindGenerate, wire.Head{Run: 5, Sequence: 258}, order); a.Head.Kind != wire.KindGenerateAnswer || a.Order.Flows != 3 || a.Order.Rate != 3000 {
		t.Fatalf("%+v", a)
	}
	for i, f := range flows[1:] {
		for n := range uint64(30) {
			b := f.receive(patience)
			h, ok := wire.Decode(b)
			if !ok || len(b) != 100 || h.Kind != wire.KindGenerated || h.Flags != 2 || h.Flow != uint16(11+i) || h.Run != 5 || h.Sequence != n {
				t.Fatalf("flow %d, packet %d: %d bytes, %+v, %t", i, n, len(b), h, ok)
			}
		}
	}
	if a := first.ask(wire.KindGenerate, wire.Head{Run: 5, Sequence: 259}, wire.Order{}); a.Head.Kind != wire.KindGenerateAnswer || a.Order.Rate != 0 {
		t.Errorf("the end: %+v", a)
	}
	for began := time.Now(); flows[1].receive(50*time.Millisecond) != nil; { // what was under way
		if time.Since(began) > patience {
			t.Fatal("it does not end")
		}
	}
	r, _ := s.Report(5)
	if r.Joined != 3 || r.Generated < 90 || r.Failed != 0 {
		t.Errorf("%+v", r)
	}
}

func TestRefusals(t *testing.T) {
	s := start(t, far.Config{Limits: far.Limits{Rate: 1000, For: time.Second}})
	f := dial(t, s)
	refused := func(name string, got wire.Control, want wire.Reason) {
		t.Helper()
		if got.Head.Kind != wire.KindRefusal || got.Order.Reason != want {
			t.Errorf("%s: %+v, want %q", name, got, want)
		}
	}
	refused("join of a run that is not open", f.ask(wire.KindJoin, wire.Head{Run: 1}, wire.Order{}), wire.ReasonRun)
	f.report(1)
	refused("nothing joined", f.ask(wire.KindGenerate, wire.Head{Run: 1, Sequence: 1}, wire.Order{Rate: 1, For: time.Second, Size: 36}), wire.ReasonFlows)
	f.ask(wire.KindJoin, wire.Head{Run: 1}, wire.Order{})
	refused("too fast", f.ask(wire.KindGenerate, wire.Head{Run: 1, Sequence: 1}, wire.Order{Rate: 1001, For: time.Second, Size: 36}), wire.ReasonRate)
	f.send(f.sealer.Append(nil, wire.Control{Head: wire.Head{Kind: wire.KindReport, Run: 2}, Until: time.Now().Add(-time.Second)}))
	refused("late", f.answer(), wire.ReasonExpired)
	// Whoever has no key hears nothing.
	f.send(wire.NewSealer([wire.KeySize]byte{1}).Append(nil, wire.Control{Head: wire.Head{Kind: wire.KindReport, Run: 2}, Until: time.Now().Add(time.Minute)}))
	f.send(f.sealed(wire.KindReport, wire.Head{Run: 2}, wire.Order{})[:wire.ReportSize-1])
	if r := f.report(1); r.Joined != 1 || r.Generated != 0 {
		t.Errorf("%+v", r)
	}
	n := s.Counts()
	for refusal, want := range map[far.Refusal]uint64{far.RefusedSeal: 1, far.RefusedExpired: 1, far.RefusedForeign: 1, far.RefusedRequest: 4} {
		if n.Refused[refusal] != want {
			t.Errorf("refused as %v: %d, want %d", refusal, n.Refused[refusal], want)
		}
	}
	if _, ok := s.Report(2); ok {
		t.Error("a run was opened by a request that is not valid")
	}
}

func connect(t *testing.T, s *far.Server) *flow {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	return use(t, c)
}

func (f *flow) all() []byte {
	f.Helper()
	b, err := io.ReadAll(f)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

func TestAsk(t *testing.T) {
	s := start(t, far.Config{})
	s.Open(3)
	const n = 50
	for i := range uint64(n) {
		c := connect(t, s)
		ask := message(wire.Head{Kind: wire.KindAsk, Run: 3, Sequence: i, Time: 5}, wire.HeadSize)
		if i%2 == 0 {
			c.send(ask)
		} else { // a slow one
			c.send(ask[:7])
			c.send(ask[7:])
		}
		if h, ok := wire.Decode(c.all()); !ok || h != (wire.Head{Kind: wire.KindAskAnswer, Run: 3, Sequence: i, Time: 5}) {
			t.Fatalf("ask %d was answered by %+v, %t", i, h, ok)
		}
	}
	// The answer may be here before it is counted there.
	await(t, "all answers are counted", func() bool {
		r, _ := s.Report(3)
		return r.Asked == n && r.Connections == n && len(r.Sources) == 1 && r.Sources[0].Count == n
	})
	c := connect(t, s)
	c.send(message(wire.Head{Kind: wire.KindAsk, Run: 4}, wire.HeadSize))
	if b, err := io.ReadAll(c); err == nil {
		t.Errorf("of a run that is not open: %x", b)
	}
	if n := s.Counts().Refused[far.RefusedRun]; n != 1 {
		t.Errorf("%d refused, want 1", n)
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); !ok(); <-tick.C {
		if time.Since(began) > patience {
			t.Fatalf("not after %v: %s", patience, what)
		}
	}
}

func TestSinkCounts(t *testing.T) {
	s := start(t, far.Config{})
	s.Open(3)
	for _, size := range []int{0, 1, 3_000_000} {
		c := connect(t, s)
		c.send(append(message(wire.Head{Kind: wire.KindSink, Run: 3}, wire.HeadSize), make([]byte, size)...))
		if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if h, ok := wire.Decode(c.all()); !ok || h.Kind != wire.KindSinkAnswer || h.Sequence != uint64(size) {
			t.Errorf("%d bytes: %+v, %t", size, h, ok)
		}
	}
	if r, _ := s.Report(3); r.Sunk != 3_000_001 || r.Connections != 3 {
		t.Errorf("%+v", r)
	}
}

func TestSource(t *testing.T) {
	s := start(t, far.Config{})
	c := connect(t, s)
	c.send(c.sealed(wire.KindReport, wire.Head{Run: 3}, wire.Order{})) // over TCP, too
	if _, r, v := c.sealer.OpenReport(c.all(), time.Now()); v != wire.Good || r.Connections != 1 {
		t.Fatalf("%+v, %v", r, v)
	}
	c = connect(t, s)
	order := c.sealed(wire.KindSource, wire.Head{Run: 3, Sequence: 1}, wire.Order{Bytes: 3_000_001})
	c.send(order[:40])
	c.send(order[40:])
	if n := len(c.all()); n != 3_000_001 {
		t.Errorf("%d bytes, want 3000001", n)
	}
	c = connect(t, s)
	c.send(order)
	if a, v := c.sealer.Open(c.all(), time.Now()); v != wire.Good || a.Head.Kind != wire.KindRefusal || a.Order.Reason != wire.ReasonNumber {
		t.Errorf("a repeated order: %+v, %v", a, v)
	}
	c = connect(t, s)
	c.send(c.sealed(wire.KindSource, wire.Head{Run: 3, Sequence: 2}, wire.Order{For: 50 * time.Millisecond}))
	for b := make([]byte, 1<<20); ; {
		if _, err := c.Read(b); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if r, _ := s.Report(3); r.Sourced <= 3_000_001 || r.Sourced != s.Counts().Sourced {
		t.Errorf("%+v", r)
	}
}

// Close ends what stands still, too.
func TestCloseEndsConnections(t *testing.T) {
	s := start(t, far.Config{})
	s.Open(3)
	sink, silent, source := connect(t, s), connect(t, s), connect(t, s)
	sink.send(message(wire.Head{Kind: wire.KindSink, Run: 3}, wire.HeadSize))
	silent.send([]byte{1})
	source.send(source.sealed(wire.KindSource, wire.Head{Run: 3, Sequence: 1}, wire.Order{For: time.Minute})) // nobody reads
	await(t, "all are there", func() bool { return s.Counts().Connections == 3 && s.Counts().Sourced > 0 })
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := sink.Read(make([]byte, 1)); err == nil {
		t.Error("a sink goes on")
	}
}

func TestBadConfig(t *testing.T) {
	taken := start(t, far.Config{})
	for name, cfg := range map[string]far.Config{
		"no address":      {},
		"another version": {Listen: netip.MustParseAddrPort("127.0.0.1:0"), Prefixes: []netip.Prefix{netip.MustParsePrefix("2001:db8::/64")}},
		"not here":        {Listen: netip.MustParseAddrPort("192.0.2.1:9")},
		"below 0":         {Listen: netip.MustParseAddrPort("127.0.0.1:0"), Sockets: -1},
		"tcp is taken":    {Listen: taken.Addr()},
	} {
		if s, err := far.New(cfg); err == nil {
			t.Errorf("%s: it listens on %v", name, s.Addr())
			_ = s.Close()
		}
	}
}
