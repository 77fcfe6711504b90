package failover

import (
	"fmt"
	"hash/fnv"
	"slices"
	"testing"
	"time"
)

const ms = Instant(1e6)

// oraclePath is what the oracle knows of a path: everything that was ever sent.
type oraclePath struct {
	probes   []oracleProbe
	lastSent uint64 // sequence; also of paths that had the id before
	answers  int
	newest   int // index of the newest that was answered
	health   Health
	ails     Instant
	run      int
	missedAt Instant
	missSent Instant
	dead     bool
	heard    Instant
	hasHeard bool
	forgiven int
	goodFrom Instant // the first answer since the last miss or ailment
	good     bool
	stalled  Instant // time of stalls since goodFrom
	sends    []Instant
}

type oracleProbe struct {
	sequence           uint64
	sent               Instant
	judged, void, done bool
}

type oracleGroup struct {
	order   []PathID
	choice  PathID
	alarmed bool
	linger  map[PathID]Instant // until
	returns []Instant
}

// checked drives a Monitor and checks each step against an oracle that keeps
// everything and looks for it each time.
type checked struct {
	t      testing.TB
	m      *Monitor
	cfg    Config
	now    Instant
	due    Instant
	paths  map[PathID]*oraclePath
	groups map[GroupID]*oracleGroup
	last   map[PathID]uint64 // sequences that were used, for good
	alarms []Instant
	events []Event // all
	fresh  []Event // of this step
	trace  uint64
	step   []any // its name and operands
}

func newChecked(t testing.TB, cfg Config, seed uint64, now Instant) *checked {
	m, err := New(cfg, seed, now)
	if err != nil {
		t.Fatal(err)
	}
	return &checked{
		t: t, m: m, cfg: cfg.withDefaults(), now: now, due: now,
		paths: map[PathID]*oraclePath{}, groups: map[GroupID]*oracleGroup{}, last: map[PathID]uint64{},
	}
}

func (c *checked) fail(format string, args ...any) {
	c.t.Helper()
	c.t.Fatalf("at %v, %s %s", time.Duration(c.now), fmt.Sprintln(c.step...), fmt.Sprintf(format, args...))
}

func (c *checked) begin(now Instant, step ...any) {
	c.now = now
	c.step = append(c.step[:0], step...)
}

func (c *checked) add(now Instant) PathID {
	c.begin(now, "add path")
	p := c.m.AddPath(now)
	if c.paths[p] != nil || p == 0 {
		c.fail("path %d is not free", p)
	}
	c.paths[p] = &oraclePath{lastSent: c.last[p]}
	if len(c.paths) == 1 {
		c.due = now
	}
	c.check(0)
	return p
}

func (c *checked) remove(now Instant, p PathID) {
	c.begin(now, "remove path", p)
	c.m.RemovePath(p, now)
	if o := c.paths[p]; o != nil {
		c.last[p] = o.lastSent
		delete(c.paths, p)
		for _, g := range c.groups {
			g.order = slices.DeleteFunc(g.order, func(q PathID) bool { return q == p })
		}
	}
	c.check(0)
}

func (c *checked) set(now Instant, g GroupID, order ...PathID) {
	c.begin(now, "set group", g, order)
	c.m.SetGroup(g, order, now)
	o := c.groups[g]
	if o == nil {
		o = &oracleGroup{linger: map[PathID]Instant{}}
		c.groups[g] = o
	}
	o.order = nil
	for _, p := range order {
		if c.paths[p] != nil && !slices.Contains(o.order, p) {
			o.order = append(o.order, p)
		}
	}
	if o.choice == 0 && len(o.order) > 0 {
		o.choice = c.beginWith(o)
		delete(o.linger, o.choice)
	}
	c.check(0)
}

// beginWith is the first of the order that is not known to be worse than another.
func (c *checked) beginWith(o *oracleGroup) PathID {
	for worst := range rankDead + 1 {
		for _, p := range o.order {
			r := c.rank(p)
			if r == rankNew {
				r = rankFit
			}
			if r <= worst {
				return p
			}
		}
	}
	return 0
}

func (c *checked) removeGroup(now Instant, g GroupID) {
	c.begin(now, "remove group", g)
	c.m.RemoveGroup(g)
	delete(c.groups, g)
	c.check(0)
}

func (c *checked) heard(now Instant, p PathID) {
	c.begin(now, "heard path", p)
	c.m.Heard(p, now)
	if o := c.paths[p]; o != nil {
		o.heard, o.hasHeard = max(o.heard, now), true
	} // nothing may have changed: the next step sees
}

func (c *checked) poll(now Instant) ([]Probe, Instant) {
	c.begin(now, "poll")
	timeouts := map[PathID]Instant{}
	for p := range c.paths {
		timeouts[p] = Instant(c.m.Path(p).Timeout)
	}
	sent, next := c.m.Poll(nil, now)
	late := now-c.due > Instant(2*c.cfg.Suspect)
	for p, o := range c.paths {
		o.judge(c.cfg, timeouts[p], now, late, c.due)
	}
	for i, s := range sent {
		o := c.paths[s.Path]
		if o == nil || s.Sequence <= o.lastSent || i > 0 && sent[i-1].Path >= s.Path {
			c.fail("probes %v", sent)
		}
		o.lastSent = s.Sequence
		o.probes = append(o.probes, oracleProbe{sequence: s.Sequence, sent: now})
		o.sends = append(o.sends, now)
	}
	if next <= now || next > now+Instant(c.cfg.Standby) {
		c.fail("the next poll is due at %v", time.Duration(next))
	}
	c.due = next
	c.check(0)
	c.rate(sent)
	return sent, next
}

func (o *oraclePath) judge(cfg Config, timeout, now Instant, late bool, due Instant) {
	open := false
	recent := o.probes[max(0, len(o.probes)-window):]
	for i := range recent {
		open = open || !recent[i].judged && !recent[i].done && !recent[i].void
	}
	if late {
		o.stalled += now - due
		if open && o.forgiven < maxForgiven {
			o.forgiven++
			for i := range recent {
				if a := &recent[i]; !a.judged && !a.done {
					a.void = true
				}
			}
		}
	}
	for i := range recent {
		a := &recent[i]
		if a.judged || a.done || a.void || a.sent+timeout > now {
			continue
		}
		a.judged, o.good = true, false
		if o.answers > 0 && o.probes[o.newest].sequence > a.sequence {
			continue
		}
		if o.run++; o.run == 1 {
			o.missedAt, o.missSent = now, a.sent
		}
		needed := cfg.Misses
		if o.hasHeard && o.heard >= o.missedAt {
			needed = cfg.MissesBusy
		}
		o.dead = o.dead || o.run >= needed
	}
}

func (c *checked) answer(now Instant, p PathID, sequence uint64, h Health) bool {
	c.begin(now, "answer of path, sequence, health", p, sequence, h)
	got := c.m.Answer(p, sequence, h, now)
	want := false
	if o := c.paths[p]; o != nil {
		want = o.answer(sequence, h, now)
	}
	if got != want {
		c.fail("taken: %v, want %v", got, want)
	}
	c.check(p)
	return got
}

func (o *oraclePath) answer(sequence uint64, h Health, now Instant) bool {
	i := slices.IndexFunc(o.probes, func(a oracleProbe) bool { return a.sequence == sequence })
	if i < 0 || i < len(o.probes)-window || o.probes[i].done {
		return false
	}
	o.probes[i].done = true
	if o.answers == 0 || i > o.newest {
		if h != o.health {
			o.ails = o.probes[i].sent
		}
		o.newest, o.health = i, h
	}
	o.answers++
	o.run, o.forgiven, o.dead = 0, 0, false
	if o.health != 0 {
		o.good = false
	} else if !o.good {
		o.good, o.goodFrom, o.stalled = true, now, 0
	}
	return true
}

func (c *checked) state(p PathID) PathState {
	o := c.paths[p]
	switch {
	case o == nil:
		return PathNone
	case o.dead:
		return PathDead
	case o.answers == 0:
		return PathNew
	case o.run > 0:
		return PathSuspect
	default:
		return PathGood
	}
}

func (c *checked) rank(p PathID) rank {
	switch o := c.paths[p]; {
	case o == nil || o.dead:
		return rankDead
	case o.answers == 0:
		return rankNew
	case o.health&HealthUplinkLost != 0:
		return rankUnfit
	case o.health != 0:
		return rankLimited
	default:
		return rankFit
	}
}

// lost says whether the flows on a path are: it is gone, dead, or without uplink.
func (c *checked) lost(p PathID) bool { return c.rank(p) >= rankUnfit && c.rank(p) != rankNew }

// better is the path to leave p for: I1, I2, I5 as a search.
func (c *checked) better(order []PathID, p PathID) PathID {
	var proven []PathID
	alive := rankDead
	from := c.rank(p)
	if from == rankNew {
		return 0
	}
	for _, q := range order {
		o := c.paths[q]
		if q == p || c.rank(q) >= rankNew || c.rank(q) >= from {
			continue
		}
		alive = min(alive, c.rank(q))
		sent := o.probes[o.newest].sent
		if from == rankDead && sent >= c.paths[p].missedAt ||
			from != rankDead && o.run == 0 && c.now-sent <= Instant(2*c.cfg.Standby) {
			proven = append(proven, q)
		}
	}
	for _, want := range []rank{rankFit, rankLimited, rankUnfit} {
		for _, q := range proven {
			if c.rank(q) == want && (want == alive || from != rankDead) {
				return q
			}
		}
	}
	return 0
}

// check compares the state after a step, in which answered was answered.
func (c *checked) check(answered PathID) {
	c.t.Helper()
	c.fresh = c.m.Events(nil)
	for _, v := range c.fresh {
		c.event(v, answered)
	}
	c.events = append(c.events, c.fresh...)
	for p, o := range c.paths {
		s := c.m.Path(p)
		if s.State != c.state(p) || s.Run != o.run || s.Good != o.good || s.Health != o.health ||
			o.good && s.GoodSince != o.goodFrom || o.answers > 0 && s.Answers != uint64(o.answers) {
			c.fail("path %d is %+v, want %v, run %d, good %v since %v", p, s, c.state(p), o.run, o.good, time.Duration(o.goodFrom))
		}
		if hold := s.GoodUntil - o.goodFrom - o.stalled - Instant(c.cfg.Hold); o.good && (hold < 0 || hold > Instant(c.cfg.HoldJitter)) {
			c.fail("path %d has a jitter of %v", p, time.Duration(hold))
		}
	}
	for id, g := range c.groups {
		c.group(id, g, answered)
	}
}

// group checks what always holds of a group between two steps.
func (c *checked) group(id GroupID, g *oracleGroup, answered PathID) {
	c.t.Helper()
	choice, ok := c.m.Choice(id)
	if ok != (len(g.order) > 0) || choice != g.choice || ok && !slices.Contains(g.order, choice) {
		c.fail("group %d has the choice %d, %v, want %d of %v (I10)", id, choice, ok, g.choice, g.order)
	}
	for p, until := range g.linger {
		if c.now >= until {
			delete(g.linger, p)
		}
	}
	if !ok {
		return
	}
	if b := c.better(g.order, choice); b != 0 {
		c.fail("group %d stays on %d (%v), though %d (%v) is better (I2)", id, choice, c.state(choice), b, c.state(b))
	}
	for p := range g.linger {
		if c.lost(p) && c.rank(choice) < c.rank(p) {
			c.fail("group %d was not told that flows on %d are lost (I8)", id, p)
		}
	}
	h := c.paths[choice].health & (HealthUplinkLost | HealthDraining)
	alarmed := c.paths[choice].run > 0 || h != 0
	if alarmed && !g.alarmed {
		c.alarms = append(c.alarms, c.now)
	}
	g.alarmed = alarmed
	used := 0
	for _, r := range g.returns {
		if c.now-r < Instant(c.cfg.FailbackWindow) {
			used++
		}
	}
	if used > c.cfg.Failbacks {
		c.fail("group %d failed back %d times (I4)", id, used)
	}
	for _, p := range g.order {
		s := c.m.Path(p)
		if p == choice || s.Good && s.GoodUntil > c.now && s.GoodUntil-c.now <= Instant(c.cfg.HoldJitter) {
			break
		}
		if !s.Good || s.GoodUntil > c.now {
			continue
		}
		if p == answered && used < c.cfg.Failbacks {
			c.fail("group %d does not fail back from %d to %d", id, choice, p)
		}
		break
	}
}

// event checks one event and follows it.
func (c *checked) event(v Event, answered PathID) {
	c.t.Helper()
	h := fnv.New64a()
	fmt.Fprint(h, c.trace, v)
	c.trace = h.Sum64()
	g := c.groups[v.Group]
	if g == nil || v.At != c.now || v.From == 0 || v.From == v.To {
		c.fail("event %+v", v)
	}
	if v.Lost != c.lost(v.From) {
		c.fail("event %+v of a path that is %v (I8)", v, c.state(v.From))
	}
	if !v.Switched {
		if _, lingers := g.linger[v.From]; !lingers || !v.Lost || v.To != g.choice {
			c.fail("event %+v, but flows linger on %v (I8)", v, g.linger)
		}
		delete(g.linger, v.From)
		return
	}
	if v.From != g.choice {
		c.fail("event %+v, but the choice is %d (I10)", v, g.choice)
	}
	c.reason(v, g, answered)
	g.choice = v.To
	delete(g.linger, v.To)
	if !v.Lost {
		g.linger[v.From] = c.now + Instant(c.cfg.Linger)
	}
}

// reason checks that a switch had one.
func (c *checked) reason(v Event, g *oracleGroup, answered PathID) {
	c.t.Helper()
	from := c.paths[v.From]
	switch v.Reason {
	case ReasonRemoved:
		if slices.Contains(g.order, v.From) || v.Detection != 0 {
			c.fail("event %+v, but it is in the order", v)
		}
		if v.To == 0 {
			if len(g.order) > 0 {
				c.fail("event %+v, but %v are left", v, g.order)
			}
			return
		}
		for _, q := range g.order[:slices.Index(g.order, v.To)] {
			if c.rank(q) <= c.rank(v.To) {
				c.fail("event %+v, but %d is better", v, q)
			}
		}
		return
	case ReasonFailback:
		o := c.paths[v.To]
		if !o.good || c.now-o.goodFrom-o.stalled < Instant(c.cfg.Hold) || v.To != answered || v.Detection != 0 ||
			slices.Index(g.order, v.To) > slices.Index(g.order, v.From) {
			c.fail("event %+v to a path that is good since %v", v, time.Duration(o.goodFrom))
		}
		g.returns = append(g.returns, c.now)
		return
	}
	if want := c.better(g.order, v.From); v.To != want {
		c.fail("event %+v, want to %d (I1)", v, want)
	}
	reason, since := ReasonFull, from.ails
	switch {
	case from.dead:
		reason, since = ReasonDead, from.missSent
	case from.health&HealthUplinkLost != 0:
		reason = ReasonUnhealthy
	case from.health&HealthDraining != 0:
		reason = ReasonDraining
	}
	if v.Reason != reason || v.Detection != time.Duration(c.now-since) {
		c.fail("event %+v, want %v after %v", v, reason, time.Duration(c.now-since))
	}
}

// rate checks I6 for the paths that were asked just now.
func (c *checked) rate(sent []Probe) {
	c.t.Helper()
	second := func(at Instant) bool { return c.now-at >= 1000*ms }
	c.alarms = slices.DeleteFunc(c.alarms, second)
	for _, s := range sent {
		o := c.paths[s.Path]
		o.sends = slices.DeleteFunc(o.sends, second)
		if most := int(time.Second/c.cfg.Suspect) + 1 + len(c.alarms); len(o.sends) > most {
			c.fail("path %d was asked %d times in a second, want at most %d (I6)", s.Path, len(o.sends), most)
		}
	}
}
