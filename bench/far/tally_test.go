package far

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/wire"
)

// The window says what a list of all that came says, as far as it reaches.
func TestWindowAgainstList(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var w window
		seen, top := map[uint64]bool{}, uint64(0)
		missing := 0
		for n := range 300 {
			s := uint64(max(0, int(top)+rng.IntN(100)-70))
			if rng.IntN(50) == 0 {
				s = top + uint64(rng.IntN(500))
			}
			want := reordered
			switch {
			case n == 0 || s > top:
				want = fresh
			case top-s >= windowSize:
				want = stale
			case seen[s]:
				want = duplicate
			}
			got, left := w.note(s)
			if got != want {
				t.Fatalf("%d after %d: %v, want %v", s, top, got, want)
			}
			switch want {
			case fresh:
				first := uint64(0)
				if n > 0 {
					first = top + 1
				}
				if left != s-first {
					t.Fatalf("%d after %d leaves out %d, want %d", s, top, left, s-first)
				}
				missing += int(left)
				top = s
			case reordered:
				missing--
			}
			if want != stale {
				seen[s] = true
			}
			if int(top)+1-len(seen) != missing {
				t.Fatalf("%d are missing, want %d", missing, int(top)+1-len(seen))
			}
		}
	}
}

func data(flow uint16, sequence uint64) wire.Head {
	return wire.Head{Kind: wire.KindData, Flow: flow, Sequence: sequence}
}

func TestTallyCountsAll(t *testing.T) {
	b := &budget{pages: 2}
	y := tally{budget: b}
	for _, d := range []struct {
		flow     uint16
		sequence uint64
	}{{0, 0}, {0, 1}, {0, 1}, {0, 100}, {0, 99}, {0, 2}, {300, 5}} {
		if !y.data(data(d.flow, d.sequence), 36) {
			t.Errorf("refused %v", d)
		}
	}
	if y.data(data(600, 0), 36) {
		t.Error("took a flow for which there is no room")
	}
	want := wire.Report{Packets: 7, Bytes: 7 * 36, Duplicates: 1, Reordered: 1, Stale: 1, Missing: 97 + 5, Flows: 2}
	got := y.result()
	got.Sources = nil
	if !equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if y.release(); b.pages != 2 {
		t.Errorf("%d pages came back, want 2", b.pages)
	}
}

func equal(a, b wire.Report) bool {
	if len(a.Sources) != len(b.Sources) {
		return false
	}
	for i := range a.Sources {
		if a.Sources[i] != b.Sources[i] {
			return false
		}
	}
	a.Sources, b.Sources = nil, nil
	s := wire.NewSealer([wire.KeySize]byte{})
	return string(s.AppendReport(nil, wire.Control{}, &a)) == string(s.AppendReport(nil, wire.Control{}, &b))
}

// A wrong source is never lost among many right ones.
func TestSourcesAreToldApart(t *testing.T) {
	var y tally
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}) }
	y.source(at(1), 64)
	y.source(at(2), 3)
	y.source(at(1), 1)
	r := y.result()
	if len(r.Sources) != 2 || r.Sources[0] != (wire.Source{Addr: at(1), Count: 65}) || r.Sources[1] != (wire.Source{Addr: at(2), Count: 3}) || r.Others != 0 {
		t.Errorf("%+v", r)
	}
	for i := range 100 {
		y.source(at(i), 1)
	}
	if r = y.result(); len(r.Sources) != wire.MaxSources || r.Others != 100-wire.MaxSources || r.Sources[0].Count != 66 {
		t.Errorf("of 100 addresses: %+v", r)
	}
}

func TestPace(t *testing.T) {
	start := time.Unix(1000, 0)
	for _, c := range []struct {
		rate float64
		d    time.Duration
		step time.Duration // between looks
		want int
	}{
		{1000, time.Second, 100 * time.Microsecond, 1000},
		{333, 3 * time.Second, time.Millisecond, 999},
		{1e6, 10 * time.Millisecond, 50 * time.Microsecond, 10000},
		{10, 100 * time.Millisecond, 10 * time.Millisecond, 1},
		{1000, time.Second, 100 * time.Millisecond, 1 + 10*batch}, // held up all the time after the first
	} {
		p := newPace(c.rate, start, c.d)
		total := 0
		for now := start; ; {
			n, again, over := p.take(now)
			if over {
				break
			}
			if total += n; n == 0 {
				if again < shortWait || again > longWait {
					t.Errorf("%v: wait %v", c, again)
				}
				now = now.Add(c.step)
			}
			if now.Sub(start) > 2*c.d {
				t.Fatalf("%v does not end", c)
			}
		}
		if total < c.want*99/100 || total > c.want {
			t.Errorf("at %v/s for %v, looking each %v: %d packets, want %d", c.rate, c.d, c.step, total, c.want)
		}
	}
}

func TestTableIsBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newTable(Limits{Rate: 1000, For: time.Second})
	for i := range maxRuns {
		if b.open(uint64(i), now.Add(time.Duration(i)), 0) == nil {
			t.Fatalf("no room for run %d", i)
		}
	}
	const stranger = 1 << 20
	first := b.runs[0]
	if b.join(first, wire.Head{Sequence: 1}, &sockaddr{}, netip.Addr{}) != wire.ReasonNone || !first.tally.data(data(0, 0), 36) {
		t.Error("a run does not take its flow")
	}
	if b.open(stranger, now.Add(forgetAfter-time.Second), 0) != nil {
		t.Error("a run was forgotten to which a request could be repeated")
	}
	if b.open(1, now.Add(forgetAfter), 0) == nil || b.open(stranger, now.Add(forgetAfter), 0) == nil {
		t.Error("no run was forgotten")
	}
	if b.runs[0] != nil || b.runs[1] == nil || len(b.runs) != maxRuns {
		t.Error("not the run that was idle for longest was forgotten")
	}
	if b.budget != (budget{maxPages, maxJoins}) {
		t.Errorf("a run took %+v along", b.budget)
	}
}

// Many runs in a row, of many flows each, as a search for a rate makes: those that are
// over make room, and what was counted of them stays.
func TestRunsThatAreOverMakeRoom(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newTable(Limits{Rate: 1000, For: time.Second})
	const flows, room = 1 << 9, 4
	b.budget = budget{room * flows / pageFlows, room * flows}
	fill := func(id uint64) wire.Reason {
		r := b.open(id, now, 0)
		for i := range flows {
			if !b.data(r, data(uint16(i), 0), 36, now) {
				return wire.ReasonFlows
			}
			if reason := b.join(r, wire.Head{Flow: uint16(i), Sequence: 1}, &sockaddr{}, netip.Addr{}); reason != wire.ReasonNone {
				return reason
			}
		}
		return wire.ReasonNone
	}
	for i := range uint64(room) {
		if reason := fill(i); reason != wire.ReasonNone {
			t.Fatalf("no room for run %d: %v", i, reason)
		}
	}
	if reason := fill(room); reason != wire.ReasonFlows {
		t.Errorf("while all are in use: %v, want %v", reason, wire.ReasonFlows)
	}
	order := wire.Order{Rate: 1000, For: time.Second, Size: 36}
	if fresh, reason := b.generate(b.runs[0], wire.Head{Sequence: 1}, order); !fresh {
		t.Errorf("an order: %v", reason)
	}
	for i := range uint64(2 * room) {
		now = now.Add(closeAfter)
		if reason := fill(room + 1 + i); reason != wire.ReasonNone {
			t.Fatalf("no room for run %d: %v", room+1+i, reason)
		}
	}
	first := b.runs[0]
	if r := first.report(0); !first.over || r.Flows != flows || r.Joined != flows || r.Packets != flows {
		t.Errorf("of the first run: over %t, %+v", first.over, r)
	}
	if reason := b.join(first, wire.Head{Sequence: 2}, &sockaddr{}, netip.Addr{}); reason != wire.ReasonRun {
		t.Errorf("a join of a run that is over: %v", reason)
	}
	if fresh, reason := b.generate(first, wire.Head{Sequence: 2}, order); fresh || reason != wire.ReasonRun {
		t.Errorf("an order of a run that is over: %t, %v", fresh, reason)
	}
}

// A run without joins makes no room for any when it is over.
func TestJoinsAreBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newTable(Limits{Rate: 1000, For: time.Second})
	b.budget = budget{8, 2}
	b.data(b.open(1, now, 0), data(0, 0), 36, now)
	now = now.Add(closeAfter)
	r := b.open(2, now, 0)
	for flow, want := range []wire.Reason{wire.ReasonNone, wire.ReasonNone, wire.ReasonFlows, wire.ReasonFlows} {
		if reason := b.join(r, wire.Head{Flow: uint16(flow), Sequence: 1}, &sockaddr{}, netip.Addr{}); reason != want {
			t.Errorf("join %d: %v, want %v", flow, reason, want)
		}
	}
	if len(r.joins) != 2 || b.budget.joins != 0 {
		t.Errorf("%d joins are kept, room for %d is left", len(r.joins), b.budget.joins)
	}
}

// Orders and joins that were repeated by somebody else change nothing.
func TestOldRequestsChangeNothing(t *testing.T) {
	b := newTable(Limits{Rate: 1000, For: time.Second})
	r := b.open(1, time.Unix(1000, 0), 0)
	order := wire.Order{Rate: 1000, For: time.Second, Size: 36}
	if _, reason := b.generate(r, wire.Head{Sequence: 1}, order); reason != wire.ReasonFlows {
		t.Errorf("without a flow: %v", reason)
	}
	here, there := &sockaddr{4: 1}, &sockaddr{4: 2}
	for _, c := range []struct {
		number uint64
		to     *sockaddr
		want   *sockaddr
		reason wire.Reason
	}{{5, here, here, wire.ReasonNone}, {5, there, here, wire.ReasonNone}, {4, there, here, wire.ReasonNumber}, {6, there, there, wire.ReasonNone}} {
		if reason := b.join(r, wire.Head{Flow: 7, Sequence: c.number}, c.to, netip.Addr{}); reason != c.reason || r.joins[0].to != *c.want || len(r.joins) != 1 {
			t.Errorf("join %d from %v: %v, goes to %v", c.number, c.to[4], reason, r.joins[0].to[4])
		}
	}
	for _, c := range []struct {
		number uint64
		change func(*wire.Order)
		fresh  bool
		reason wire.Reason
	}{
		{0, func(*wire.Order) {}, false, wire.ReasonNumber},
		{2, func(o *wire.Order) { o.Rate++ }, false, wire.ReasonRate},
		{2, func(o *wire.Order) { o.For++ }, false, wire.ReasonRate},
		{2, func(o *wire.Order) { o.Size = wire.HeadSize - 1 }, false, wire.ReasonRate},
		{2, func(o *wire.Order) { o.Size = maxPayload + 1 }, false, wire.ReasonRate},
		{2, func(*wire.Order) {}, true, wire.ReasonNone},
		{2, func(*wire.Order) {}, false, wire.ReasonNone},
		{1, func(*wire.Order) {}, false, wire.ReasonNumber},
		{3, func(o *wire.Order) { o.Rate = 0 }, true, wire.ReasonNone},
	} {
		o := order
		c.change(&o)
		if fresh, reason := b.generate(r, wire.Head{Sequence: c.number}, o); fresh != c.fresh || reason != c.reason {
			t.Errorf("order %d, %+v: %t, %v; want %t, %v", c.number, o, fresh, reason, c.fresh, c.reason)
		}
	}
	bulk := wire.Order{Bytes: 1}
	for _, c := range []struct {
		number uint64
		order  wire.Order
		reason wire.Reason
	}{{9, bulk, wire.ReasonNone}, {8, bulk, wire.ReasonNone}, {9, bulk, wire.ReasonNumber}, {1 << 63, bulk, wire.ReasonNumber}, {10, wire.Order{}, wire.ReasonRate}, {10, wire.Order{For: time.Hour}, wire.ReasonRate}} {
		if reason := b.source(r, wire.Head{Sequence: c.number}, c.order); reason != c.reason {
			t.Errorf("source %d, %+v: %v, want %v", c.number, c.order, reason, c.reason)
		}
	}
}
