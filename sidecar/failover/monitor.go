package failover

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Instant is a point of monotonic time in nanoseconds.
type Instant int64

// MaxPaths is how many paths a Monitor may have at once.
const MaxPaths = 64

// Probe is to be sent on a path.
type Probe struct {
	Path     PathID
	Sequence uint64
}

// Monitor watches the paths of one network. It belongs to one caller at a time.
// Its memory is bounded by MaxPaths, the groups that the caller has set, and a
// fixed number of unread events; calls other than AddPath and SetGroup do not
// allocate once dst is large enough.
//
// Time never runs backwards: an instant before the latest one is taken as that.
type Monitor struct {
	cfg    Config
	chance *rand.Rand
	now    Instant
	due    Instant // when the next Poll is

	paths  []*path     // by id
	byID   [256]*path  // nil: none
	starts [256]uint64 // by id: the first sequence of the next path
	lastID PathID      // that was given
	groups []*group    // by id
	events events
	stats  Stats
}

// Stats counts what a Monitor has done.
type Stats struct {
	Probes     uint64 // to be sent
	Answers    uint64 // taken
	Refused    uint64 // answers to nothing: forged, replayed, or too late
	Stalls     uint64 // Polls that were so late that probes were forgiven
	EventsLost uint64 // events that nobody read in time
}

// New makes a Monitor without paths. The seed decides the jitter of holds.
func New(cfg Config, seed uint64, now Instant) (*Monitor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("failover config: %w", err)
	}
	m := &Monitor{
		cfg:    cfg.withDefaults(),
		chance: rand.New(rand.NewPCG(seed, 0x5a11_9047)),
	}
	m.now = bounded(now)
	m.due = m.now
	return m, nil
}

// bounded keeps instants so far from the ends that no sum overflows.
func bounded(now Instant) Instant { return min(max(now, -1<<61), 1<<61) }

// at takes the caller's time.
func (m *Monitor) at(now Instant) Instant {
	m.now = max(m.now, bounded(now))
	return m.now
}

// AddPath adds a path in PathNew; the next Poll, which should follow at once,
// asks it. It returns 0 if there are MaxPaths.
func (m *Monitor) AddPath(now Instant) PathID {
	now = m.at(now)
	if len(m.paths) >= MaxPaths {
		return 0
	}
	// Fewer ids than there are can be taken by paths and unread events.
	id := m.lastID%255 + 1
	for m.byID[id] != nil || m.events.names(id) {
		id = id%255 + 1
	}
	m.lastID = id
	p := &path{id: id, state: PathNew, next: max(1, m.starts[id]), interval: m.cfg.Standby}
	p.judged = p.next
	m.byID[id] = p
	m.paths = append(m.paths, p)
	slices.SortFunc(m.paths, func(a, b *path) int { return cmp.Compare(a.id, b.id) })
	if len(m.paths) == 1 {
		m.due = now // there was nothing to poll for
	}
	return id
}

// RemovePath takes a path away. Groups that use it choose another; flows on it
// are lost. Unknown paths are ignored.
func (m *Monitor) RemovePath(id PathID, now Instant) {
	now = m.at(now)
	p := m.byID[id]
	if p == nil {
		return
	}
	m.byID[id] = nil
	m.starts[id] = p.next
	m.paths = slices.DeleteFunc(m.paths, func(q *path) bool { return q == p })
	for _, g := range m.groups {
		g.order = slices.DeleteFunc(g.order, func(q *path) bool { return q == p })
		if g.choice == p {
			m.leave(g, g.first(false), Event{Reason: ReasonRemoved, Lost: true}, now)
		} else if g.forget(p) {
			m.tell(g, p, Event{Reason: ReasonRemoved, Lost: true}, now)
		}
		m.decide(g, now)
	}
}

// SetGroup sets the order of a group, preferred first; it makes the group if there
// is none. Unknown and repeated paths are ignored. The choice stays if it is in
// the order. Poll should follow at once.
func (m *Monitor) SetGroup(id GroupID, order []PathID, now Instant) {
	now = m.at(now)
	i, found := m.find(id)
	if !found {
		m.groups = slices.Insert(m.groups, i, &group{id: id})
	}
	g := m.groups[i]
	g.order = g.order[:0]
	for _, q := range order {
		if p := m.byID[q]; p != nil && !slices.Contains(g.order, p) {
			g.order = append(g.order, p)
		}
	}
	switch {
	case g.choice == nil:
		if g.choice = g.first(true); g.choice != nil {
			g.forget(g.choice)
			g.since = now
		}
	case !slices.Contains(g.order, g.choice):
		m.leave(g, g.first(false), Event{Reason: ReasonRemoved, Lost: g.choice.lost()}, now)
	}
	m.decide(g, now)
}

// RemoveGroup forgets a group, without an event. Unknown ones are ignored.
func (m *Monitor) RemoveGroup(id GroupID) {
	if i, found := m.find(id); found {
		m.groups = slices.Delete(m.groups, i, i+1)
	}
}

// find returns where a group is, or where it belongs.
func (m *Monitor) find(id GroupID) (int, bool) {
	return slices.BinarySearchFunc(m.groups, id, func(g *group, id GroupID) int { return cmp.Compare(g.id, id) })
}

// Poll judges the probes that were not answered in time, decides for all
// groups, and appends to dst the probes to send now, by ascending path. The
// instant is when Poll wants to be called again: then, and at once after AddPath,
// SetGroup, and an Answer after which Events has some. Sooner does no harm. A probe
// that could not be sent is lost like any other.
func (m *Monitor) Poll(dst []Probe, now Instant) ([]Probe, Instant) {
	now = m.at(now)
	if m.stalled(now) {
		m.stats.Stalls++
		for _, p := range m.paths {
			p.forgive()
			p.goodUntil += now - m.due // nobody watched meanwhile
		}
	}
	for _, p := range m.paths {
		p.judge(&m.cfg, now)
		p.interval = m.cfg.Standby
	}
	for _, g := range m.groups {
		m.decide(g, now)
		m.pace(g)
	}
	m.due = now + Instant(m.cfg.Standby)
	for _, p := range m.paths {
		if p.due(now) <= now {
			if probe, ok := p.ask(now); ok {
				dst = append(dst, probe)
				m.stats.Probes++
			}
		}
		if due := p.due(now); due > now {
			m.due = min(m.due, due)
		}
		if a := p.oldest(); a != nil {
			m.due = min(m.due, a.sent+Instant(p.timeout(&m.cfg)))
		}
	}
	return dst, m.due
}

// stalled says whether now is so much later than Poll was due that the caller
// cannot have read all answers.
func (m *Monitor) stalled(now Instant) bool { return now-m.due > Instant(2*m.cfg.Suspect) }

// pace sets the intervals of the paths that a group uses or may need.
func (m *Monitor) pace(g *group) {
	faster := func(p *path, d time.Duration) { p.interval = min(p.interval, d) }
	if g.choice != nil {
		faster(g.choice, m.cfg.InUse)
	}
	for _, l := range g.linger {
		if faster(l.path, m.cfg.InUse); l.path.run > 0 {
			faster(l.path, m.cfg.Suspect)
		}
	}
	if !g.alarmed {
		return
	}
	for _, p := range g.order {
		faster(p, m.cfg.Suspect)
	}
}

// Answer takes the answer to a probe. It returns false, and has no effect, if the
// probe was never sent, is answered already, is not among the last 64 of the
// path, or the path is gone. Choices may change.
func (m *Monitor) Answer(id PathID, sequence uint64, h Health, now Instant) bool {
	now = m.at(now)
	p := m.byID[id]
	if p == nil || !p.answer(&m.cfg, sequence, h, now, !m.stalled(now)) {
		m.stats.Refused++
		return false
	}
	m.stats.Answers++
	switch {
	case p.health != 0:
		p.good = false
	case !p.good:
		p.good, p.goodSince = true, now
		jitter := time.Duration(m.chance.Int64N(int64(m.cfg.HoldJitter) + 1))
		p.goodUntil = now + Instant(m.cfg.Hold+jitter)
	}
	for _, g := range m.groups {
		m.decide(g, now)
		if p.good && g.candidate(&m.cfg, now) == p && g.mayReturn(&m.cfg, now) {
			g.returned(&m.cfg, now)
			m.leave(g, p, Event{Reason: ReasonFailback}, now)
		}
	}
	return true
}

// Heard says that an authenticated packet other than an answer came by a path,
// at an instant that may lie in the past: it is enough to tell of the latest
// packet before each Poll.
func (m *Monitor) Heard(id PathID, now Instant) {
	m.at(now)
	if p := m.byID[id]; p != nil {
		if now = bounded(now); !p.hasHeard || now > p.heard {
			p.heard, p.hasHeard = now, true
		}
	}
}

// decide leaves a choice that must be left, tells of lingering flows that are
// lost, and raises or ends the group's alarm.
func (m *Monitor) decide(g *group, now Instant) {
	if to := g.refuge(&m.cfg, now); to != nil {
		m.leave(g, to, ailment(g.choice, now), now)
	}
	m.outlive(g, now)
	alarm := g.alarm()
	if alarm && !g.alarmed {
		for _, p := range g.order {
			p.urgent = true
		}
	}
	g.alarmed = alarm
}

// outlive ends the watch over paths on which flows linger: they are lost, or all
// have ended. Flows on a lost path wait while the choice is no better, or none.
func (m *Monitor) outlive(g *group, now Instant) {
	kept := g.linger[:0]
	for _, l := range g.linger {
		switch {
		case now >= l.until:
		case l.path.lost() && g.choice != nil && g.choice.rank() < l.path.rank():
			m.tell(g, l.path, ailment(l.path, now), now)
		default:
			kept = append(kept, l)
		}
	}
	clear(g.linger[len(kept):])
	g.linger = kept
}

// ailment describes why a path is left.
func ailment(p *path, now Instant) Event {
	v := Event{Detection: time.Duration(now - p.ailsSince), Lost: p.lost()}
	switch {
	case p.state == PathDead:
		v.Reason, v.Detection = ReasonDead, time.Duration(now-p.missSent)
	case p.health&HealthUplinkLost != 0:
		v.Reason = ReasonUnhealthy
	case p.health&HealthDraining != 0:
		v.Reason = ReasonDraining
	default:
		v.Reason = ReasonFull
	}
	return v
}

// leave changes a group's choice and tells of it as v says.
func (m *Monitor) leave(g *group, to *path, v Event, now Instant) {
	from := g.choice
	g.leave(to, v.Lost, m.cfg.Linger, now)
	v.Switched = true
	m.tell(g, from, v, now)
}

// tell adds an event about a path of a group.
func (m *Monitor) tell(g *group, from *path, v Event, now Instant) {
	v.At, v.Group, v.From = now, g.id, from.id
	if g.choice != nil {
		v.To = g.choice.id
	}
	m.events.put(v)
}
