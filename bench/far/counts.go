package far

import "sync/atomic"

// Refusal is why something was not taken in.
type Refusal uint8

// Refusals.
const (
	RefusedForeign Refusal = iota // no message of ours, or damaged
	RefusedKind                   // a message that is for others to take in
	RefusedAddress                // came to an address that is not served
	RefusedRun                    // of a run that is not open
	RefusedFlow                   // no room for the flow, or a sequence out of range
	RefusedSeal                   // sealed with another key
	RefusedExpired                // a request that is no longer valid, or not yet
	RefusedRequest                // an authentic request that was not done, such as too high a rate
	RefusedSlow                   // a connection without a first message in time
	RefusedCrowd                  // a connection too many
	refusals
)

var refusalNames = [refusals]string{
	"foreign or damaged", "unknown kind", "address not served", "run not open", "flow or sequence out of bounds",
	"wrong seal", "expired", "request out of bounds", "no first message", "too many connections",
}

func (r Refusal) String() string { return refusalNames[r] }

// Counts is what a Server took in since its start.
type Counts struct {
	Runs        int    // that are known
	Datagrams   uint64 // that came, joined ones each for itself
	Answered    uint64 // datagrams that were sent in answer
	Generated   uint64 // datagrams that were sent by order
	Dropped     uint64 // datagrams that came and found the sockets' buffers full
	Unsent      uint64 // answers and generated ones that the kernel did not take
	Connections uint64
	Asked       uint64 // requests over TCP that were answered
	Sunk        uint64 // bytes of TCP that came
	Sourced     uint64 // bytes of TCP that the kernel took
	Refused     [refusals]uint64
}

// counters are those of Counts while it is at work.
type counters struct {
	datagrams, answered, generated, unsent atomic.Uint64
	connections, asked, sunk, sourced      atomic.Uint64
	refused                                [refusals]atomic.Uint64
}

func (c *counters) refuse(r Refusal) { c.refused[r].Add(1) }

func (c *counters) counts() Counts {
	n := Counts{
		Datagrams: c.datagrams.Load(), Answered: c.answered.Load(), Generated: c.generated.Load(), Unsent: c.unsent.Load(),
		Connections: c.connections.Load(), Asked: c.asked.Load(), Sunk: c.sunk.Load(), Sourced: c.sourced.Load(),
	}
	for i := range n.Refused {
		n.Refused[i] = c.refused[i].Load()
	}
	return n
}
