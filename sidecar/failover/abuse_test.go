package failover

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestAnswersToNothing(t *testing.T) {
	m, err := New(Config{}, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := m.AddPath(0)
	m.SetGroup(7, []PathID{p}, 0)
	sent, next := m.Poll(nil, 0)
	first := sent[0].Sequence
	refuse := func(what string, p PathID, sequence uint64) {
		t.Helper()
		before, refused := m.Path(p), m.Stats().Refused
		if m.Answer(p, sequence, HealthUplinkLost, m.now) {
			t.Errorf("%s is taken", what)
		}
		if m.Path(p) != before || m.Stats().Refused != refused+1 {
			t.Errorf("%s has an effect: %+v", what, m.Path(p))
		}
	}
	refuse("an unknown path", p+1, first)
	refuse("no path", 0, first)
	refuse("sequence 0", p, 0)
	refuse("the next sequence", p, first+1)
	refuse("a sequence of the same slot", p, first+window)
	refuse("the highest sequence", p, math.MaxUint64)
	if !m.Answer(p, first, 0, ms) {
		t.Error("the answer is refused")
	}
	refuse("a replay", p, first)
	for range window {
		sent, next = m.Poll(sent, next)
	}
	for sent[len(sent)-1].Sequence < sent[1].Sequence+window {
		sent, next = m.Poll(sent, next)
	}
	refuse("an answer beyond the window", p, sent[1].Sequence)
	if !m.Answer(p, sent[len(sent)-window].Sequence, 0, next) {
		t.Error("the oldest of the window is refused")
	}
	m.RemovePath(p, next)
	refuse("a path that is gone", p, sent[len(sent)-1].Sequence)
}

// An id is given again as late as possible, never while an unread event names it,
// and its sequences go on.
func TestPathIDs(t *testing.T) {
	c := newChecked(t, Config{}, 1, 0)
	stay := c.add(0)
	old := c.add(0)
	c.set(0, 7, old, stay)
	sent, _ := c.poll(0)
	c.m.RemovePath(old, 0)
	delete(c.paths, old)
	c.last[old] = sent[1].Sequence
	for range 600 {
		p := c.m.AddPath(0)
		if p == 0 || p == stay || p == old {
			t.Fatalf("path %d is given, while %d is in use and an event names %d", p, stay, old)
		}
		c.m.RemovePath(p, 0)
	}
	c.m.Events(nil)
	others := 0
	for p := c.m.AddPath(0); p != old; p = c.m.AddPath(0) {
		c.m.RemovePath(p, 0)
		others++
	}
	if others < 100 {
		t.Errorf("the id is given again after %d others", others)
	}
	again, _ := c.m.Poll(nil, 0)
	if last := again[len(again)-1]; last.Path != old || last.Sequence <= sent[1].Sequence {
		t.Errorf("%v, after %v in the life before", again, sent)
	}
	if c.m.Answer(old, sent[1].Sequence, 0, 0) {
		t.Error("an answer to the path that had the id before is taken")
	}
}

// However short the intervals are, no probe is forgotten before it is judged.
func TestWindowIsNotOverrun(t *testing.T) {
	m, err := New(Config{InUse: ms1, Standby: ms1, Suspect: ms1}, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := m.AddPath(0)
	m.SetGroup(7, []PathID{p}, 0)
	for now := Instant(0); now <= 1005*ms; {
		_, now = m.Poll(nil, now)
		if s := m.Path(p); s.Asked-s.Misses > window {
			t.Fatalf("%+v", s)
		}
	}
	if s := m.Path(p); s.State != PathDead {
		t.Errorf("%+v", s)
	}
}

const ms1 = time.Millisecond

func TestPathLimit(t *testing.T) {
	m, _ := New(Config{}, 1, 0)
	for range MaxPaths {
		if m.AddPath(0) == 0 {
			t.Fatal("no path")
		}
	}
	if p := m.AddPath(0); p != 0 {
		t.Errorf("path %d is beyond the limit", p)
	}
}

// Events that nobody reads are bounded, and the latest are kept.
func TestEventsAreBounded(t *testing.T) {
	m, _ := New(Config{}, 1, 0)
	a, b := m.AddPath(0), m.AddPath(0)
	for i := range Instant(1000) {
		m.SetGroup(7, []PathID{a}, i)
		m.SetGroup(7, []PathID{b}, i)
	}
	events := m.Events(nil)
	if len(events) != maxEvents || m.Stats().EventsLost != 1999-maxEvents {
		t.Errorf("%d events, %d lost", len(events), m.Stats().EventsLost)
	}
	for i, v := range events {
		if want := Instant(999 - (maxEvents-1-i)/2); v.At != want {
			t.Errorf("event %d is of %d, want %d", i, v.At, want)
		}
	}
	if len(m.Events(nil)) != 0 {
		t.Error("events are told twice")
	}
}

func TestGroups(t *testing.T) {
	c := newChecked(t, Config{}, 1, 0)
	a, b := c.add(0), c.add(0)
	c.set(0, 7, 99, a, a, 0, b)
	c.set(0, 3)
	if s := c.m.Group(3); s != (GroupStatus{}) {
		t.Errorf("an empty group is %+v", s)
	}
	sent, _ := c.poll(0)
	for _, s := range sent {
		c.answer(ms, s.Path, s.Sequence, 0)
	}
	c.set(2*ms, 7, b)
	c.set(3*ms, 7)
	c.set(4*ms, 7, a, b)
	c.remove(5*ms, a)
	c.remove(6*ms, b)
	c.remove(7*ms, b)
	want := []Event{
		{At: 2 * ms, Group: 7, From: a, To: b, Reason: ReasonRemoved, Switched: true},
		{At: 3 * ms, Group: 7, From: b, Reason: ReasonRemoved, Switched: true},
		{At: 5 * ms, Group: 7, From: a, To: b, Reason: ReasonRemoved, Switched: true, Lost: true},
		{At: 6 * ms, Group: 7, From: b, Reason: ReasonRemoved, Switched: true, Lost: true},
	}
	if len(c.events) != len(want) {
		t.Fatalf("%+v", c.events)
	}
	for i, v := range c.events {
		if v != want[i] {
			t.Errorf("event %d is %+v, want %+v", i, v, want[i])
		}
	}
	c.removeGroup(8*ms, 7)
	if s := c.m.Group(7); s.State != GroupNone {
		t.Errorf("a group that was removed is %+v", s)
	}
}

// Time that runs backwards or to the ends of its type does no harm.
func TestTime(t *testing.T) {
	m, err := New(Config{}, 1, math.MinInt64)
	if err != nil {
		t.Fatal(err)
	}
	p := m.AddPath(math.MinInt64)
	m.SetGroup(7, []PathID{p}, math.MinInt64)
	latest := Instant(math.MinInt64)
	for _, now := range []Instant{math.MinInt64, 0, 5, -5, math.MaxInt64, 0, math.MinInt64, math.MaxInt64} {
		sent, next := m.Poll(nil, now)
		if next <= m.now || next < latest {
			t.Errorf("at %d the next poll is due at %d", now, next)
		}
		latest = next
		for _, s := range sent {
			m.Answer(p, s.Sequence, 0, now)
		}
		m.Heard(p, now)
	}
	if s := m.Path(p); s.Misses != 0 || s.RTT < 0 {
		t.Errorf("%+v", s)
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	m, _ := New(Config{}, 1, 0)
	a, b := m.AddPath(0), m.AddPath(0)
	m.SetGroup(0, []PathID{a, b}, 0)
	m.SetGroup(1, []PathID{b, a}, 0)
	probes, events, now := make([]Probe, 0, 8), make([]Event, 0, 8), Instant(0)
	step := func() {
		probes, now = m.Poll(probes[:0], now)
		for i, s := range probes {
			if i+int(now)%7 != 0 { // some are lost
				m.Answer(s.Path, s.Sequence, Health(now/(10_000*ms)%2), now)
			}
		}
		m.Heard(a, now)
		m.Choice(0)
		m.Path(a)
		m.Group(1)
		events = m.Events(events[:0])
	}
	for range 1000 {
		step()
	}
	if n := testing.AllocsPerRun(5000, step); n != 0 {
		t.Errorf("%v allocations for each round", n)
	}
	if m.Path(a).Misses == 0 || m.Group(0).Switches == 0 {
		t.Errorf("nothing happened: %+v, %+v", m.Path(a), m.Group(0))
	}
}

func TestConfig(t *testing.T) {
	got := Config{}.withDefaults()
	want := Config{
		InUse: 100 * time.Millisecond, Standby: time.Second, Suspect: 50 * time.Millisecond,
		MissFloor: 50 * time.Millisecond, MissRTTs: 4, Misses: 3, MissesBusy: 5,
		Hold: time.Minute, HoldJitter: 30 * time.Second, Failbacks: 2,
		FailbackWindow: 10 * time.Minute, Linger: 10 * time.Minute,
	}
	if got != want {
		t.Errorf("defaults %+v, want %+v", got, want)
	}
	if err := (Config{Misses: 9}).Validate(); err != nil {
		t.Errorf("MissesBusy does not follow Misses: %v", err)
	}
	for name, cfg := range map[string]Config{
		"Hold":       {Hold: -1},
		"Linger":     {Linger: math.MaxInt64},
		"InUse":      {InUse: time.Millisecond},
		"Standby":    {Standby: 60 * time.Millisecond},
		"Suspect":    {Suspect: time.Microsecond},
		"MissFloor":  {MissFloor: 2 * time.Second},
		"MissRTTs":   {MissRTTs: -1},
		"MissesBusy": {Misses: 4, MissesBusy: 3},
		"Misses":     {Misses: -2},
		"Failbacks":  {Failbacks: -1},
	} {
		_, err := New(cfg, 1, 0)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for s := range PathDead + 1 {
		seen["path "+s.String()] = true
	}
	for s := range GroupHeld + 1 {
		seen["group "+s.String()] = true
	}
	for r := range ReasonRemoved + 1 {
		seen["reason "+r.String()] = true
	}
	if len(seen) != 5+6+7 {
		t.Errorf("names are not distinct: %v", seen)
	}
}
