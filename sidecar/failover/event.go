package failover

import "time"

// Reason says why a group left a path.
type Reason uint8

// The reasons.
const (
	ReasonDead      Reason = iota + 1 // it answers no more
	ReasonUnhealthy                   // its uplink is lost
	ReasonDraining                    // it will end
	ReasonFull                        // it takes no new flows
	ReasonFailback                    // a preferred path was good for its hold
	ReasonRemoved                     // it was removed, or left the order
)

// String names the reason, as a metric's label.
func (r Reason) String() string {
	switch r {
	case ReasonDead:
		return "dead"
	case ReasonUnhealthy:
		return "unhealthy"
	case ReasonDraining:
		return "draining"
	case ReasonFull:
		return "full"
	case ReasonFailback:
		return "failback"
	case ReasonRemoved:
		return "removed"
	default:
		return "unknown"
	}
}

// Event says that a group left a path, or that flows that lingered on a path
// which it had left before are lost now.
type Event struct {
	At    Instant
	Group GroupID
	// From is the path that was left.
	From PathID
	// To is the choice now; 0: the order is empty.
	To     PathID
	Reason Reason
	// Switched is false where the choice has been To before: From is a path that
	// was left without loss earlier, and has been lost now.
	Switched bool
	// Detection is the time from the sending of the first missed probe, or of
	// the first probe whose answer said what ails the gateway, to the
	// decision. It is 0 for ReasonFailback and ReasonRemoved.
	Detection time.Duration
	// Lost says that the group's flows on From are lost: dead, uplink lost, or gone.
	// Otherwise they go on there, and only new flows go to To.
	Lost bool
}

// maxEvents is how many events wait to be read. An event concerns one group, so a
// caller that reads after each call and has fewer groups misses none.
const maxEvents = 64

// events is a ring of those that wait to be read.
type events struct {
	ring  [maxEvents]Event
	first int
	n     int
	lost  uint64
}

// put adds an event, in place of the oldest if there is no room.
func (e *events) put(v Event) {
	if e.n == maxEvents {
		e.first = (e.first + 1) % maxEvents
		e.n--
		e.lost++
	}
	e.ring[(e.first+e.n)%maxEvents] = v
	e.n++
}

// drain appends all events to dst, oldest first.
func (e *events) drain(dst []Event) []Event {
	for ; e.n > 0; e.n-- {
		dst = append(dst, e.ring[e.first])
		e.first = (e.first + 1) % maxEvents
	}
	return dst
}

// names says whether an unread event names the path.
func (e *events) names(p PathID) bool {
	for i := range e.n {
		v := &e.ring[(e.first+i)%maxEvents]
		if v.From == p || v.To == p {
			return true
		}
	}
	return false
}
