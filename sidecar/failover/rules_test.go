package failover

import (
	"slices"
	"testing"
	"time"
)

// steady is a link without chance: answers take exactly 2 ms.
var steady = link{toGateway: true, back: true, rtt: 2 * time.Millisecond}

// rules makes a world without chance: three paths, one group that prefers them
// in their order, three seconds after its beginning.
func rules(t *testing.T, cfg Config) (*world, [3]PathID) {
	w := newWorld(newChecked(t, cfg, 1, 0), 1)
	var p [3]PathID
	for i := range p {
		p[i] = w.addPath(steady)
	}
	w.setGroup(7, p[0], p[1], p[2])
	w.run(3000 * ms)
	return w, p
}

func (w *world) cut(p PathID)  { w.links[p].toGateway, w.links[p].back = false, false }
func (w *world) mend(p PathID) { w.links[p].toGateway, w.links[p].back = true, true }

// expect compares the events since the last call, and clears them.
func (w *world) expect(want ...Event) {
	w.t.Helper()
	if !slices.Equal(w.events, want) {
		w.t.Fatalf("events\n%+v, want\n%+v", w.events, want)
	}
	w.events = nil
}

func (w *world) wantGroup(state GroupState, choice PathID) {
	w.t.Helper()
	if s := w.m.Group(7); s.State != state || s.Choice != choice {
		w.t.Fatalf("at %v the group is %v on %d, want %v on %d", time.Duration(w.now), s.State, s.Choice, state, choice)
	}
}

func TestDeath(t *testing.T) {
	for _, tt := range []struct {
		name    string
		heard   []Instant // when other packets arrive
		decided Instant   // after the cut
	}{
		// The probe of 100 ms is the first that is missed, at 150; then all are
		// asked at once, and those of 150 and 200 are missed, too.
		{"idle", nil, 250 * ms},
		{"heard before the first miss only", []Instant{100 * ms, 149 * ms}, 250 * ms},
		{"heard at the first miss", []Instant{150 * ms}, 350 * ms},
		{"heard all the time", []Instant{160 * ms, 210 * ms, 260 * ms, 310 * ms, 360 * ms}, 350 * ms},
		{"heard after three misses", []Instant{251 * ms}, 250 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, p := rules(t, Config{})
			w.run(3010 * ms) // after the probe of 3000
			cut := 3000 * ms
			w.cut(p[0])
			for _, at := range tt.heard {
				w.after(time.Duration(cut+at-w.now), func(now Instant) { w.heard(now, p[0]) })
			}
			w.run(cut + tt.decided - 1)
			w.expect()
			if s := w.m.Path(p[0]); s.State != PathSuspect {
				t.Errorf("the path is %v before the last miss", s.State)
			}
			w.wantGroup(GroupAlarmed, p[0])
			w.run(cut + 1000*ms)
			w.expect(Event{
				At: cut + tt.decided, Group: 7, From: p[0], To: p[1], Reason: ReasonDead, Switched: true,
				Detection: time.Duration(tt.decided - 100*ms), Lost: true,
			})
			if s := w.m.Path(p[0]); s.State != PathDead {
				t.Errorf("the path is %v after the last miss", s.State)
			}
			w.wantGroup(GroupAway, p[1])
		})
	}
}

func TestOneAnswerEndsMisses(t *testing.T) {
	w, p := rules(t, Config{})
	l := w.links[p[0]]
	for range 20 { // two of three are lost
		w.run(w.now + 200*ms)
		l.toGateway = false
		for w.m.Path(p[0]).Run < 2 {
			w.run(w.now + ms)
		}
		l.toGateway = true
	}
	w.run(w.now + 200*ms)
	w.expect()
	if s := w.m.Path(p[0]); s.State != PathGood || s.Misses < 40 {
		t.Errorf("the path is %v after %d misses", s.State, s.Misses)
	}
}

// A path that lags answers after the miss; that ends the run, and the timeout
// grows until nothing is missed any more.
func TestLateAnswers(t *testing.T) {
	w, p := rules(t, Config{})
	w.links[p[0]].rtt = 90 * time.Millisecond
	w.run(w.now + 5000*ms)
	w.expect()
	s := w.m.Path(p[0])
	if s.Late == 0 || s.Late != s.Misses || s.State != PathGood || s.Timeout < 300*time.Millisecond || s.Timeout > 360*time.Millisecond {
		t.Errorf("%+v", s)
	}
	before := s.Misses
	w.run(w.now + 5000*ms)
	if s := w.m.Path(p[0]); s.Misses != before {
		t.Errorf("%d more misses with a timeout of %v", s.Misses-before, s.Timeout)
	}
}

func TestTimeout(t *testing.T) {
	cfg := Config{}.withDefaults()
	sec := time.Second
	for _, tt := range []struct {
		name    string
		samples []time.Duration
		want    time.Duration
	}{
		{"no sample", nil, sec},
		{"the floor", []time.Duration{3 * time.Millisecond}, 50 * time.Millisecond},
		{"four round trips", []time.Duration{50 * time.Millisecond}, 200 * time.Millisecond},
		{"the ceiling", []time.Duration{400 * time.Millisecond}, sec},
		{"the first waited for a handshake", []time.Duration{5 * sec, 900 * time.Millisecond, 5 * time.Millisecond}, 50 * time.Millisecond},
		{"one outlier at the floor", []time.Duration{ms4, ms4, ms4, ms4, ms4, ms4, ms4, ms4, 30 * sec}, 50 * time.Millisecond},
		{"one outlier above", []time.Duration{40 * time.Millisecond, 30 * sec}, 220 * time.Millisecond},
		{"no time at all", []time.Duration{0, -5}, 50 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p path
			for _, s := range tt.samples {
				p.sample(&cfg, s)
			}
			if got := p.timeout(&cfg); got != tt.want {
				t.Errorf("timeout %v, want %v", got, tt.want)
			}
		})
	}
}

const ms4 = 4 * time.Millisecond

// asked counts the probes of each path during d.
func (w *world) asked(d time.Duration, p [3]PathID) (n [3]uint64) {
	for i, q := range p {
		n[i] = w.m.Path(q).Asked
	}
	w.run(w.now + Instant(d))
	for i, q := range p {
		n[i] = w.m.Path(q).Asked - n[i]
	}
	return n
}

func TestRhythm(t *testing.T) {
	w, p := rules(t, Config{})
	expect := func(when string, want [3]uint64) {
		t.Helper()
		if got := w.asked(10*time.Second, p); got != want {
			t.Errorf("%s: %v probes in 10 s, want %v", when, got, want)
		}
	}
	expect("in use and standby", [3]uint64{100, 10, 10})
	for _, q := range p {
		w.cut(q)
	}
	w.run(w.now + 2000*ms)
	w.wantGroup(GroupStranded, p[0])
	expect("stranded on a dead path", [3]uint64{200, 200, 200})
	w.mend(p[1])
	w.run(w.now + 2000*ms)
	w.wantGroup(GroupAway, p[1])
	expect("settled elsewhere", [3]uint64{10, 100, 10})
	w.links[p[1]].health = HealthDraining
	w.mend(p[2])
	w.run(w.now + 2000*ms)
	w.wantGroup(GroupAway, p[2])
	expect("flows linger", [3]uint64{10, 100, 100})
	w.setGroup(8, p[0])
	w.run(w.now + 2000*ms)
	expect("another group is stranded", [3]uint64{200, 100, 100})

	w, p = rules(t, Config{})
	w.links[p[0]].health = HealthDraining
	w.cut(p[1])
	w.cut(p[2])
	w.run(w.now + 2000*ms)
	w.wantGroup(GroupStranded, p[0])
	expect("stranded on a path that drains", [3]uint64{200, 200, 200})
	w.links[p[0]].health = HealthFull
	w.run(w.now + 2000*ms)
	expect("stranded on a path that is full", [3]uint64{100, 10, 10})
}

// The first miss asks all paths of the group at once, even one that was asked
// just before, and no others.
func TestAlarmAsksAtOnce(t *testing.T) {
	w, p := rules(t, Config{})
	other := w.addPath(steady)
	w.run(3030 * ms)
	late := w.addPath(steady) // is asked at 4030
	w.setGroup(7, p[0], p[1], p[2], late)
	w.run(3950 * ms)
	w.cut(p[0]) // so that the probe of 4000 is missed at 4050
	w.run(4050*ms - 1)
	asked := func() (n []uint64) {
		for _, q := range []PathID{p[0], p[1], p[2], late, other} {
			n = append(n, w.m.Path(q).Asked)
		}
		return n
	}
	before := asked()
	w.run(4050 * ms)
	w.wantGroup(GroupAlarmed, p[0])
	for i, n := range asked() {
		if more := n - before[i]; more != 1 && i < 4 || more != 0 && i == 4 {
			t.Errorf("path number %d is asked %d times at the first miss", i, more)
		}
	}
}

func TestBeginning(t *testing.T) {
	w := newWorld(newChecked(t, Config{}, 1, 0), 1)
	a, b := w.addPath(steady), w.addPath(steady)
	w.cut(a)
	w.setGroup(7, a, b)
	w.wantGroup(GroupPreferred, a)
	w.run(999 * ms)
	w.wantGroup(GroupPreferred, a)
	if s := w.m.Path(a); s.State != PathNew || s.Timeout != time.Second {
		t.Errorf("%+v", s)
	}
	w.run(2000 * ms)
	// Missed are those of 0, 100 and 200; the second answered all the time, also to
	// what it was asked at the first miss.
	w.expect(Event{At: 1200 * ms, Group: 7, From: a, To: b, Reason: ReasonDead, Switched: true, Detection: 1200 * time.Millisecond, Lost: true})

	w.setGroup(8, a, b)
	if c, ok := w.m.Choice(8); c != b || !ok {
		t.Errorf("a group begins with %d, which is dead", c)
	}
	c := w.addPath(steady)
	w.setGroup(9, a, c, b)
	if got, _ := w.m.Choice(9); got != c {
		t.Errorf("a group begins with %d, want %d, which is new", got, c)
	}
	if got, ok := w.m.Choice(10); ok {
		t.Errorf("an unknown group has the choice %d", got)
	}
}

func TestOrder(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(w *world, p [3]PathID)
		to   int
	}{
		{"the sibling, though the passive region is nearer", func(w *world, p [3]PathID) { w.links[p[1]].rtt = 40 * time.Millisecond }, 1},
		{"the sibling is dead too", func(w *world, p [3]PathID) { w.cut(p[1]) }, 2},
		{"the sibling has lost its uplink", func(w *world, p [3]PathID) { w.links[p[1]].health = HealthUplinkLost }, 2},
		{"the sibling is full", func(w *world, p [3]PathID) { w.links[p[1]].health = HealthFull }, 2},
		{"the passive is full", func(w *world, p [3]PathID) { w.links[p[2]].health = HealthFull }, 1},
		{"both have lost it", func(w *world, p [3]PathID) {
			w.links[p[1]].health, w.links[p[2]].health = HealthUplinkLost, HealthUplinkLost
		}, 1},
		{"one has lost it, the other dies", func(w *world, p [3]PathID) {
			w.links[p[1]].health = HealthUplinkLost
			w.cut(p[2])
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, p := rules(t, Config{})
			w.cut(p[0])
			tt.do(w, p)
			w.run(w.now + 2000*ms)
			if len(w.events) != 1 || w.events[0].To != p[tt.to] || w.events[0].Reason != ReasonDead || !w.events[0].Lost {
				t.Errorf("%+v", w.events)
			}
		})
	}
}

func TestHealth(t *testing.T) {
	for _, tt := range []struct {
		health Health
		reason Reason
		lost   bool
	}{
		{HealthUplinkLost, ReasonUnhealthy, true},
		{HealthUplinkLost | HealthDraining | HealthFull, ReasonUnhealthy, true},
		{HealthDraining, ReasonDraining, false},
		{HealthDraining | HealthFull, ReasonDraining, false},
		{HealthFull, ReasonFull, false},
	} {
		t.Run(tt.reason.String(), func(t *testing.T) {
			w, p := rules(t, Config{})
			w.run(3050 * ms)
			w.links[p[0]].health = tt.health
			w.run(4000 * ms)
			w.expect(Event{
				At: 3102 * ms, Group: 7, From: p[0], To: p[1], Reason: tt.reason, Switched: true,
				Detection: 2 * time.Millisecond, Lost: tt.lost,
			})
			// What is wrong everywhere is no reason to move.
			w.links[p[1]].health, w.links[p[2]].health = tt.health, tt.health
			w.run(7000 * ms)
			w.wantGroup(GroupStranded, p[1])
			w.links[p[2]].health = 0
			w.run(9000 * ms)
			w.wantGroup(GroupAway, p[2])
		})
	}
}

// A path that answered long ago is no refuge; it must answer again.
func TestRefugeIsRecent(t *testing.T) {
	w, p := rules(t, Config{})
	w.run(3010 * ms)
	last := w.m.Path(p[0]).Asked
	w.stall(10 * time.Second)
	w.now = 13_000 * ms
	w.answer(w.now, p[0], last-30, HealthUplinkLost) // answered already
	sent, _ := w.poll(w.now)
	w.answer(w.now+ms, sent[0].Path, sent[0].Sequence, HealthUplinkLost)
	w.wantGroup(GroupStranded, p[0])
	w.answer(w.now+ms, sent[2].Path, sent[2].Sequence, 0)
	w.wantGroup(GroupAway, p[2])
}

// A choice without uplink is left at once, even for a path that drains, while a
// better one has just missed a probe.
func TestUnhealthyDoesNotWait(t *testing.T) {
	w, p := rules(t, Config{})
	w.links[p[2]].health = HealthDraining
	w.run(4010 * ms)
	w.cut(p[1])
	w.run(5060 * ms)
	w.links[p[0]].health = HealthUplinkLost
	w.run(5110 * ms)
	w.wantGroup(GroupStranded, p[2])
	w.mend(p[1])
	w.run(6100 * ms)
	w.wantGroup(GroupAway, p[1])
}

// It is the latest packet that counts, in whatever order they are told.
func TestHeardOutOfOrder(t *testing.T) {
	w, p := rules(t, Config{})
	w.run(3010 * ms)
	w.cut(p[0])
	w.run(3160 * ms)
	w.heard(3155*ms, p[0])
	w.heard(3100*ms, p[0])
	w.run(4000 * ms)
	if len(w.events) != 1 || w.events[0].At != 3350*ms {
		t.Errorf("%+v", w.events)
	}
}

// A path that drained and ended takes the flows that had stayed with it.
func TestLingeringFlowsAreLost(t *testing.T) {
	w, p := rules(t, Config{})
	w.run(3050 * ms)
	w.links[p[0]].health = HealthDraining
	w.run(3510 * ms)
	w.events = nil
	w.cut(p[0])
	w.run(9000 * ms)
	w.expect(Event{At: 3750 * ms, Group: 7, From: p[0], To: p[1], Reason: ReasonDead, Detection: 150 * time.Millisecond, Lost: true})

	// While the choice is as dead, nothing is gained by telling.
	w, p = rules(t, Config{})
	w.links[p[0]].health = HealthDraining
	w.run(4000 * ms)
	w.events = nil
	for _, q := range p {
		w.cut(q)
	}
	w.run(6000 * ms)
	w.expect()
	w.mend(p[1])
	w.run(6100 * ms)
	if len(w.events) != 1 || w.events[0].From != p[0] || w.events[0].Switched || !w.events[0].Lost {
		t.Errorf("%+v", w.events)
	}

	// After Linger nobody asks any more.
	w, p = rules(t, Config{Linger: 5 * time.Second})
	w.links[p[0]].health = HealthDraining
	w.run(8200 * ms)
	w.events = nil
	w.cut(p[0])
	w.run(20_000 * ms)
	w.expect()

	// A path that is removed takes them as well.
	w, p = rules(t, Config{})
	w.links[p[0]].health = HealthDraining
	w.run(4000 * ms)
	w.events = nil
	w.removePath(p[0])
	w.expect(Event{At: 4000 * ms, Group: 7, From: p[0], To: p[1], Reason: ReasonRemoved, Lost: true})
}

func TestStranded(t *testing.T) {
	w, p := rules(t, Config{})
	for _, q := range p {
		w.cut(q)
	}
	w.run(60_000 * ms)
	w.wantGroup(GroupStranded, p[0])
	w.mend(p[0])
	w.run(61_000 * ms)
	w.expect() // whoever stayed has lost nothing
	w.wantGroup(GroupPreferred, p[0])
	w.cut(p[0])
	w.run(62_000 * ms)
	w.mend(p[2])
	mended := w.now
	w.run(63_000 * ms)
	if len(w.events) != 1 || w.events[0].To != p[2] || w.events[0].At > mended+52*ms {
		t.Errorf("mended at %v: %+v", time.Duration(mended), w.events)
	}
}

func TestFailback(t *testing.T) {
	cfg := Config{Hold: 10 * time.Second, HoldJitter: 5 * time.Second}
	w, p := rules(t, cfg)
	w.cut(p[0])
	w.run(5000 * ms)
	w.events = nil
	w.mend(p[0])
	w.run(13_000 * ms)
	w.wantGroup(GroupAway, p[1])
	w.cut(p[0]) // once, before the hold has passed
	w.run(14_000 * ms)
	w.mend(p[0])
	w.run(24_000 * ms)
	w.expect()
	s := w.m.Path(p[0])
	if !s.Good || s.GoodSince < 14_000*ms || s.GoodSince > 15_010*ms {
		t.Fatalf("%+v", s)
	}
	w.run(40_000 * ms)
	w.wantGroup(GroupPreferred, p[0])
	at := w.events[0].At
	if at < s.GoodUntil || at > s.GoodUntil+1002*ms {
		t.Errorf("back at %v, want a standby interval after %v", time.Duration(at), time.Duration(s.GoodUntil))
	}
	w.expect(Event{At: at, Group: 7, From: p[1], To: p[0], Reason: ReasonFailback, Switched: true})
}

func TestFailbackBudget(t *testing.T) {
	cfg := Config{Hold: time.Second, HoldJitter: 1, FailbackWindow: time.Minute}
	w, p := rules(t, cfg)
	var back []Instant
	for range 3 {
		w.cut(p[0])
		w.run(w.now + 2000*ms) // leaving is never refused
		if n := len(w.events); n == 0 || w.events[n-1].Reason != ReasonDead {
			t.Fatalf("%+v", w.events)
		}
		w.mend(p[0])
		w.run(w.now + 5000*ms)
		if v := w.events[len(w.events)-1]; v.Reason == ReasonFailback {
			back = append(back, v.At)
		}
	}
	if len(back) != 2 {
		t.Fatalf("failed back at %v", back)
	}
	w.wantGroup(GroupHeld, p[1])
	w.run(back[0] + 60_000*ms - 1)
	w.wantGroup(GroupHeld, p[1])
	w.run(back[0] + 62_000*ms)
	w.wantGroup(GroupPreferred, p[0])
	if s := w.m.Group(7); s.Failbacks != 3 || s.Switches != 6 {
		t.Errorf("%+v", s)
	}
}

// Hosts that come back together, the sibling first, cost one failback.
func TestRegionComesBack(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(newChecked(t, Config{Hold: 5 * time.Second, HoldJitter: 3 * time.Second}, seed, 0), 1)
		a, b, c := w.addPath(steady), w.addPath(steady), w.addPath(steady)
		w.setGroup(7, a, b, c)
		w.run(1000 * ms)
		w.cut(a)
		w.cut(b)
		w.run(3500 * ms)
		w.wantGroup(GroupAway, c)
		w.mend(b)
		w.mend(a)
		w.run(20_000 * ms)
		w.wantGroup(GroupPreferred, a)
		late := max(w.m.Path(a).GoodUntil-w.m.Path(b).GoodUntil, 0)
		if s := w.m.Group(7); s.Failbacks != 1 && late <= 3000*ms {
			t.Errorf("seed %d: %d failbacks, the holds end %v apart", seed, s.Failbacks, time.Duration(late))
		}
	}
}

func TestStall(t *testing.T) {
	w, p := rules(t, Config{Hold: 10 * time.Second})
	w.run(3050 * ms)
	for range 5 { // just before the answer is read
		for w.m.Path(p[0]).Asked == w.m.Path(p[0]).Answers {
			w.run(w.now + ms)
		}
		w.stall(700 * time.Millisecond)
		w.run(w.now + 900*ms)
	}
	w.expect()
	s := w.m.Path(p[0])
	if s.Misses != 0 || s.Voided == 0 || w.m.Stats().Stalls != 5 {
		t.Errorf("%+v, %+v", s, w.m.Stats())
	}
	if s.RTT > 3*time.Millisecond {
		t.Errorf("stalls were measured: %v", s.RTT)
	}
	if hold := s.GoodUntil - s.GoodSince; hold < 12_000*ms {
		t.Errorf("stalls count for the hold: %v", time.Duration(hold))
	}
}

// Who has no path has nothing to poll for.
func TestIdleIsNoStall(t *testing.T) {
	c := newChecked(t, Config{}, 1, 0)
	c.poll(0)
	c.add(60_000 * ms)
	c.poll(60_001 * ms)
	if n := c.m.Stats().Stalls; n != 0 {
		t.Errorf("%d stalls", n)
	}
}

// A caller that is always late notices a death nevertheless.
func TestSlowCaller(t *testing.T) {
	c := newChecked(t, Config{}, 1, 0)
	a, b := c.add(0), c.add(0)
	c.set(0, 7, a, b)
	for now := Instant(0); now < 10_000*ms; now += 400 * ms {
		sent, _ := c.poll(now)
		for _, s := range sent {
			if s.Path == b || now < 3000*ms {
				c.answer(now+200*ms, s.Path, s.Sequence, 0)
			}
		}
		if now == 5000*ms && len(c.events) != 0 {
			t.Errorf("after 5 s: %+v", c.events)
		}
	}
	if len(c.events) != 1 || c.events[0].To != b || c.events[0].Reason != ReasonDead {
		t.Errorf("%+v", c.events)
	}
}
