package search

import (
	"fmt"
	"time"
)

// Limit is what kept a rate from passing.
type Limit string

// The limits that there are.
const (
	LimitNone     Limit = "none"     // it passes
	LimitCore     Limit = "core"     // the gateway's core was in use all the time
	LimitLoss     Limit = "loss"     // packets were lost on their way
	LimitLatency  Limit = "latency"  // it took too long, beside a core that had time, or that nobody sees
	LimitFailures Limit = "failures" // connections failed, or were answered wrongly
	LimitSource   Limit = "source"   // the source was held up, and the gateway had time
	LimitFar      Limit = "far"      // sockets of the far side, or of who measures, were full
	LimitMachine  Limit = "machine"  // others used the machine: nobody knows what else it was
)

// Blame says what kept a rate from passing, and by how much in a few words.
func (l Limits) Blame(d Datagrams) (by Limit, why string) {
	if l.Passes(d) {
		return LimitNone, "it passes"
	}
	if by, why = l.seen(d); d.Busy >= l.Full {
		by = LimitCore
	}
	return by, why + beside(d.Busy)
}

// seen is what was seen of what does not pass, and what that says where the core had time.
func (l Limits) seen(d Datagrams) (by Limit, why string) {
	switch {
	case d.Reached == 0:
		by, why = LimitLoss, "nothing arrived, and nobody says how much was sent"
	case d.Lost-d.Dropped > l.Lost:
		by, why = LimitLoss, percent(d.Lost-d.Dropped)+" of the packets were lost on their way"
	case d.Queue > l.Queue:
		by, why = LimitLatency, fmt.Sprintf("half of the packets took %v longer than the fastest of the run", d.Queue.Round(100*time.Microsecond))
	case d.Dropped > l.Lost:
		by, why = LimitFar, percent(d.Dropped)+" of the packets were lost by full sockets of who takes them in"
	case d.Reached < l.Reached:
		by, why = LimitSource, percent(d.Reached)+" of the rate was all that was sent"
	case l.Starved(d):
		by, why = LimitSource, percent(d.Late)+" of the packets were late, and next to none lost"
	default:
		by, why = LimitLatency, percent(d.Late)+" of the packets were late"
	}
	return by, why
}

// Blame says what kept a rate from passing, and by how much in a few words.
func (l ConnectionLimits) Blame(c Connections) (by Limit, why string) {
	if l.Passes(c) {
		return LimitNone, "it passes"
	}
	if by, why = l.seen(c); c.Busy >= l.Full && c.Wrong == 0 {
		by = LimitCore
	}
	return by, why + beside(c.Busy)
}

// seen is what was seen of what does not pass, and what that says where the core had time.
func (l ConnectionLimits) seen(c Connections) (by Limit, why string) {
	of := func(n uint64, what string) string { return fmt.Sprintf("%d of %d connections %s", n, c.Due, what) }
	allowed := l.Failed * float64(c.Due)
	slow := LimitLatency
	if l.Starved(c) {
		slow = LimitSource
	}
	switch {
	case c.Wrong > 0:
		by, why = LimitFailures, fmt.Sprintf("segments came from somebody else, or damaged: %d", c.Wrong)
	case float64(c.Failed) > allowed:
		by, why = LimitFailures, of(c.Failed, "failed")
	case !l.settled(c):
		by, why = LimitLoss, percent(float64(c.Resent)/float64(c.Segments))+" of the segments were sent again"
	case c.Skipped > 0:
		by, why = slow, of(c.Skipped, "did not begin in time, as too many were open or the source was held up")
	default:
		by, why = slow, of(c.Failed+c.Late, "failed or were late")
	}
	return by, why
}

// beside is how much the gateway's core was in use, behind something else; empty: nobody sees it.
func beside(busy float64) string {
	if busy < 0 {
		return ""
	}
	return fmt.Sprintf("; the gateway's core was %.0f %% in use", 100*min(1, busy))
}

func percent(part float64) string { return fmt.Sprintf("%.2f %%", 100*part) }
