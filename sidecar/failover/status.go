package failover

import "time"

// PathStatus is what is known of a path.
type PathStatus struct {
	State PathState
	// RTT is the smoothed round trip, Timeout how long an answer is waited for.
	// RTT is 0 before the first answer.
	RTT, Timeout time.Duration
	// Health is what the newest answer said.
	Health Health
	// Answered says when the last answer came, if there was any.
	Answered Instant
	// Run is the number of misses since the last answer.
	Run int
	// Good says whether every probe since GoodSince was answered without an
	// ailment. From GoodUntil on groups that prefer the path may return to it.
	Good                 bool
	GoodSince, GoodUntil Instant
	// Asked probes are answered, missed, void after a stall, or under way. Late
	// ones were answered after they had been missed or voided, and count in both.
	Asked, Answers, Misses, Late, Voided uint64
}

// GroupStatus is what is known of a group.
type GroupStatus struct {
	State GroupState
	// Choice is the path for new flows, Since when it became that.
	Choice PathID
	Since  Instant
	// Switches counts changes of the choice, Failbacks those among them that
	// went back to a preferred path.
	Switches, Failbacks uint64
}

// Choice returns the path that new flows of a group take. It returns false if
// there is no such group, or its order is empty.
func (m *Monitor) Choice(id GroupID) (PathID, bool) {
	if i, found := m.find(id); found && m.groups[i].choice != nil {
		return m.groups[i].choice.id, true
	}
	return 0, false
}

// Events appends to dst what happened since it was last called, oldest first.
// At most 64 events are kept, the latest; Stats counts those that were lost.
func (m *Monitor) Events(dst []Event) []Event { return m.events.drain(dst) }

// Path describes a path; it is in PathNone if there is none.
func (m *Monitor) Path(id PathID) PathStatus {
	p := m.byID[id]
	if p == nil {
		return PathStatus{}
	}
	return PathStatus{
		State: p.state, RTT: p.rtt, Timeout: p.timeout(&m.cfg), Health: p.health,
		Answered: p.answeredAt, Run: p.run,
		Good: p.good, GoodSince: p.goodSince, GoodUntil: p.goodUntil,
		Asked: p.asked, Answers: p.answers, Misses: p.misses, Late: p.late, Voided: p.voids,
	}
}

// Group describes a group as of the latest call that took the time.
func (m *Monitor) Group(id GroupID) GroupStatus {
	i, found := m.find(id)
	if !found {
		return GroupStatus{}
	}
	g := m.groups[i]
	s := GroupStatus{State: g.state(&m.cfg, m.now), Since: g.since, Switches: g.switches, Failbacks: g.failbacks}
	if g.choice != nil {
		s.Choice = g.choice.id
	}
	return s
}

// Stats returns the counters.
func (m *Monitor) Stats() Stats {
	s := m.stats
	s.EventsLost = m.events.lost
	return s
}
