package failover

import (
	"slices"
	"time"
)

// GroupID names a group of flows with the same order of paths. The caller
// chooses it.
type GroupID uint32

// GroupState says how a group stands to its choice.
type GroupState uint8

const (
	// GroupNone: there is no such group, or its order is empty.
	GroupNone GroupState = iota
	// GroupPreferred: the choice is the first of the order, and nothing is wrong.
	GroupPreferred
	// GroupAlarmed: the choice has missed a probe and is not dead. Entered by a
	// miss, left by an answer or by death. The choice must not change for it.
	GroupAlarmed
	// GroupStranded: the choice is dead, ails, or both, and there is no better
	// path. Entered when that is found out, left the moment that a better one
	// answers or the choice recovers. The choice stays.
	GroupStranded
	// GroupAway: the choice is not the first of the order. Left when a path
	// before it has been good for its hold.
	GroupAway
	// GroupHeld: as GroupAway, and a path before the choice has been good
	// for its hold, but the failbacks of the window are used up, or the path has
	// yet to answer once more. A dead choice is left nevertheless.
	GroupHeld
)

// String names the state.
func (s GroupState) String() string {
	switch s {
	case GroupPreferred:
		return "preferred"
	case GroupAlarmed:
		return "alarmed"
	case GroupStranded:
		return "stranded"
	case GroupAway:
		return "away"
	case GroupHeld:
		return "held"
	default:
		return "none"
	}
}

// lingering is a path that was left without loss.
type lingering struct {
	path  *path
	until Instant
}

// group is one order of paths and its choice.
type group struct {
	id      GroupID
	order   []*path // preferred first
	choice  *path   // nil: the order is empty
	since   Instant // of the choice
	alarmed bool
	linger  []lingering
	returns []Instant // the last failbacks, at most Config.Failbacks, oldest first

	switches, failbacks uint64
}

// first returns the path to begin with, after another went away or at the very
// beginning, when a path that has yet to answer is as good as any.
func (g *group) first(beginning bool) *path {
	var best *path
	var bestRank rank
	for _, p := range g.order {
		r := p.rank()
		if beginning && r == rankNew {
			r = rankFit
		}
		if best == nil || r < bestRank {
			best, bestRank = p, r
		}
	}
	return best
}

// refuge returns the path to leave the choice for; nil: it stays.
func (g *group) refuge(cfg *Config, now Instant) *path {
	if g.choice == nil {
		return nil
	}
	from := g.choice.rank()
	if from == rankFit || from == rankNew {
		return nil
	}
	var best *path
	hope := rankDead // of the best that has yet to prove itself
	for _, p := range g.order {
		r := p.rank()
		if p == g.choice || r >= from || r == rankNew {
			continue
		}
		proven := p.recent(cfg, now)
		if from == rankDead {
			proven = p.newestSent >= g.choice.missedAt
		}
		switch {
		case !proven:
			hope = min(hope, r)
		case best == nil || r < best.rank():
			best = p
		}
	}
	if from == rankDead && best != nil && hope < best.rank() {
		return nil // it will answer at once, or be dead soon, too
	}
	return best
}

// candidate returns the first path before the choice that has been good for
// its hold; nil while there is no choice. It waits for one that is preferred still
// more if that one's hold ends within the jitter, so that hosts that came back
// together cost one failback.
func (g *group) candidate(cfg *Config, now Instant) *path {
	if g.choice == nil {
		return nil
	}
	for _, p := range g.order {
		switch {
		case p == g.choice:
			return nil
		case !p.good:
		case p.goodUntil <= now:
			return p
		case p.goodUntil <= now+Instant(cfg.HoldJitter):
			return nil
		}
	}
	return nil
}

// mayReturn says whether the budget allows a failback.
func (g *group) mayReturn(cfg *Config, now Instant) bool {
	return len(g.returns) < cfg.Failbacks || now-g.returns[0] >= Instant(cfg.FailbackWindow)
}

// returned takes note of a failback.
func (g *group) returned(cfg *Config, now Instant) {
	if len(g.returns) >= cfg.Failbacks {
		g.returns = slices.Delete(g.returns, 0, 1)
	}
	g.returns = append(g.returns, now)
	g.failbacks++
}

// alarm says whether all paths should be probed fast: the choice may be
// dying, or there is a better one to be found.
func (g *group) alarm() bool {
	c := g.choice
	return c != nil && (c.run > 0 || c.answers > 0 && c.health&(HealthUplinkLost|HealthDraining) != 0)
}

// leave makes another path the choice, nil for none, and lets flows linger on
// the old one unless they are lost.
func (g *group) leave(to *path, lost bool, linger time.Duration, now Instant) {
	from := g.choice
	g.choice, g.since = to, now
	g.switches++
	if to != nil {
		g.forget(to)
	}
	if from != nil && !lost {
		g.linger = append(g.linger, lingering{path: from, until: now + Instant(linger)})
	}
}

// forget says that no flow that must be watched lingers on a path, and
// whether one did.
func (g *group) forget(p *path) bool {
	n := len(g.linger)
	g.linger = slices.DeleteFunc(g.linger, func(l lingering) bool { return l.path == p })
	return len(g.linger) < n
}

// state derives the group's state.
func (g *group) state(cfg *Config, now Instant) GroupState {
	c := g.choice
	switch {
	case c == nil:
		return GroupNone
	case c.state == PathDead, c.health != 0:
		return GroupStranded
	case c.run > 0:
		return GroupAlarmed
	case g.candidate(cfg, now) != nil:
		return GroupHeld
	case c != g.order[0]:
		return GroupAway
	default:
		return GroupPreferred
	}
}
