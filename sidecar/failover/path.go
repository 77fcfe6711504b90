package failover

import "time"

// PathID names a path. Zero is no path. A PathID is given again only after its
// path was removed and no unread event names it.
type PathID uint8

// Health is a set of bits in which a gateway says what ails it. The values are
// those on the wire.
type Health uint8

// What may ail a gateway.
const (
	HealthUplinkLost Health = 1 << iota // nothing gets out: all its flows are lost
	HealthDraining                      // it will end: new flows should go elsewhere
	HealthFull                          // it takes no new flows
)

// PathState is what the probes of a path say.
type PathState uint8

const (
	// PathNone: there is no such path.
	PathNone PathState = iota
	// PathNew: no probe was answered yet, and fewer were missed than make a path
	// dead. Entered by AddPath, left with the first answer or by misses. A group
	// may begin with it; no group leaves another path for it while any
	// has answered.
	PathNew
	// PathGood: the newest probe that was judged was answered. Entered by
	// any answer. It may be chosen; whether it is healthy is another matter.
	PathGood
	// PathSuspect: at least one miss since the last answer, too few to be dead.
	// It stays the choice where it is; no group fails back to it.
	PathSuspect
	// PathDead: Misses in a row, or MissesBusy while other packets arrived.
	// Entered from PathNew and PathSuspect in Poll, left with any answer. No group
	// goes there while another path lives, but one may be stranded on it.
	PathDead
)

// String names the state.
func (s PathState) String() string {
	switch s {
	case PathNew:
		return "new"
	case PathGood:
		return "good"
	case PathSuspect:
		return "suspect"
	case PathDead:
		return "dead"
	default:
		return "none"
	}
}

// window is how many probes of a path are remembered.
const window = 64

// settling is after how many samples the round trip is smoothed.
const settling = 8

// maxForgiven is how many stalls a path is forgiven without an answer between.
const maxForgiven = 8

// outcome is what has become of a probe.
type outcome uint8

const (
	unsent   outcome = iota
	underWay         // may be answered, and will be judged
	missed           // judged; may still be answered
	voided           // will not be judged; may still be answered
	answered
)

// asked is a probe that was sent.
type asked struct {
	sequence uint64
	sent     Instant
	outcome  outcome
}

// path is what is known of one path. Of a pair of instants and conditions below,
// the instant means something only if the condition holds.
type path struct {
	id    PathID
	state PathState

	probes [window]asked // by sequence modulo window
	next   uint64        // sequence of the next probe
	judged uint64        // all sequences below are judged, void or answered
	sent   Instant       // when the last probe was sent; if asked > 0
	urgent bool          // the next probe is due at once

	interval time.Duration // between probes, as of the last Poll

	rtt     time.Duration // smoothed; if samples > 0
	samples int           // up to settling

	newest     uint64  // highest sequence that was answered; if answers > 0
	newestSent Instant // when that was sent
	answeredAt Instant // when the last answer came; if answers > 0
	health     Health  // of the newest answer
	ailsSince  Instant // sending of the first answer with this health; if health != 0

	run      int     // misses since the last answer
	missedAt Instant // when the first of the run was judged; if run > 0
	missSent Instant // when it was sent
	heard    Instant // when another packet came; if hasHeard
	hasHeard bool
	forgiven int // stalls since the last answer

	good      bool    // no miss and no ailment
	goodSince Instant // if good
	goodUntil Instant // from then on a group may return here; if good

	asked, answers, misses, late, voids uint64
}

// timeout is how long an answer is waited for.
func (p *path) timeout(cfg *Config) time.Duration {
	if p.samples == 0 {
		return missCeiling
	}
	return min(max(cfg.MissFloor, time.Duration(cfg.MissRTTs)*p.rtt), missCeiling)
}

// oldest returns the probe that will be judged next; nil: none is under way.
func (p *path) oldest() *asked {
	for ; p.judged < p.next; p.judged++ {
		a := &p.probes[p.judged%window]
		if a.outcome == underWay {
			return a
		}
	}
	return nil
}

// ask makes the next probe. It returns false while the window is full of
// probes that are not judged.
func (p *path) ask(now Instant) (Probe, bool) {
	slot := &p.probes[p.next%window]
	if slot.outcome == underWay {
		return Probe{}, false
	}
	*slot = asked{sequence: p.next, sent: now, outcome: underWay}
	p.sent, p.urgent = now, false
	p.next++
	p.asked++
	return Probe{Path: p.id, Sequence: slot.sequence}, true
}

// due says when the next probe should be sent.
func (p *path) due(now Instant) Instant {
	if p.asked == 0 || p.urgent {
		return now
	}
	return p.sent + Instant(p.interval)
}

// judge counts what was missed until now.
func (p *path) judge(cfg *Config, now Instant) {
	timeout := Instant(p.timeout(cfg))
	for a := p.oldest(); a != nil && a.sent+timeout <= now; a = p.oldest() {
		a.outcome = missed
		p.misses++
		p.good = false
		if p.answers > 0 && a.sequence < p.newest {
			continue // a later one was answered
		}
		p.run++
		if p.run == 1 {
			p.missedAt, p.missSent = now, a.sent
		}
		needed := cfg.Misses
		if p.hasHeard && p.heard >= p.missedAt {
			needed = cfg.MissesBusy
		}
		switch {
		case p.run >= needed:
			p.state = PathDead
		case p.state == PathGood:
			p.state = PathSuspect
		}
	}
}

// forgive voids the probes under way, unless that has been done too often.
func (p *path) forgive() {
	if p.oldest() == nil || p.forgiven >= maxForgiven {
		return
	}
	p.forgiven++
	for a := p.oldest(); a != nil; a = p.oldest() {
		a.outcome = voided
		p.voids++
	}
}

// answer takes the answer to a probe; measured says whether the time that it took
// says something about the path. It returns false, and nothing has changed, if no
// such probe waits for one.
func (p *path) answer(cfg *Config, sequence uint64, h Health, now Instant, measured bool) bool {
	a := &p.probes[sequence%window]
	if a.outcome == unsent || a.outcome == answered || a.sequence != sequence {
		return false
	}
	if measured && a.outcome != voided {
		p.sample(cfg, time.Duration(now-a.sent))
	}
	if a.outcome != underWay {
		p.late++
	}
	a.outcome = answered
	if p.answers == 0 || sequence > p.newest {
		if h != p.health {
			p.health, p.ailsSince = h, a.sent
		}
		p.newest, p.newestSent = sequence, a.sent
	}
	p.answers++
	p.answeredAt = now
	p.state, p.run, p.forgiven = PathGood, 0, 0
	return true
}

// sample feeds the smoothed round trip.
func (p *path) sample(cfg *Config, took time.Duration) {
	took = min(max(took, 1), p.timeout(cfg))
	switch {
	case p.samples == 0, p.samples < settling && took < p.rtt:
		p.rtt = took
	default:
		p.rtt += (took - p.rtt) / 8
	}
	p.samples = min(p.samples+1, settling)
}

// rank orders paths by what they are good for, the best first.
type rank uint8

const (
	rankFit     rank = iota // lives, without an ailment
	rankLimited             // lives, draining or full
	rankUnfit               // lives, but its uplink is lost
	rankNew                 // has never answered
	rankDead
)

func (p *path) rank() rank {
	switch {
	case p.state == PathDead:
		return rankDead
	case p.state == PathNew:
		return rankNew
	case p.health&HealthUplinkLost != 0:
		return rankUnfit
	case p.health&(HealthDraining|HealthFull) != 0:
		return rankLimited
	default:
		return rankFit
	}
}

// lost says whether the flows of the path are.
func (p *path) lost() bool {
	return p.state == PathDead || p.rank() == rankUnfit
}

// recent says whether a path without misses has proven itself lately.
func (p *path) recent(cfg *Config, now Instant) bool {
	return p.state == PathGood && now-p.newestSent <= Instant(2*cfg.Standby)
}
