package nat

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// A census says who uses the external ports, and how many are left. It goes over a
// table's records in steps, between which packets go on, and keeps next to nothing
// of them: what counts is found in a first round and counted exactly in a second.
//
//	inner addresses  those with the most ports are kept, the first of a sorted list
//	1st round        destinations of TCP connections and their holds: candidates, by
//	                 the algorithm of Misra and Gries: each of a fixed number of
//	                 counters is some destination's; where a new one finds none, all are
//	                 lowered by one. Who occurs more often than they were lowered is there.
//	2nd round        connections and holds of candidates, one by one
//	mappings, holds  ports of protocols whose ports serve all destinations
//
// Each record counts as it is when its step comes.

// candidates is how many destinations have a counter: of two million connections and
// holds, none with 2048 or more is missed, a thirtieth of an address's ports.
const candidates = 1024

// CensusConfig is what a Census is asked. All fields may be zero.
type CensusConfig struct {
	// Proto and Remote are a destination of which all inner addresses are told. An
	// echo's port is 0.
	Proto  packet.Proto
	Remote netip.AddrPort
	// Top is how many destinations and inner addresses are told of besides: default
	// 32, at most 1024.
	Top int
}

// censusStage is what the next step of a census looks at.
type censusStage uint8

const (
	censusHosts censusStage = iota
	censusGuess
	censusGuessHeld
	censusConnections
	censusHeldTuples
	censusMappings
	censusHeldPorts
	censusDone
)

// Census is a count on its way. It is used with one table, and holds some hundred
// KiB, with a chosen destination a few MiB. What has a bound is made with it, so that
// no step has to.
type Census struct {
	top    int
	proto  packet.Proto
	chosen endpoint
	asked  bool // chosen is valid
	stage  censusStage
	next   uint32 // the record to look at next

	guesses map[endpoint]int // the first round: the number of a destination's counter
	counts  []guess
	unused  []int // counters that are nobody's
	lowered int   // how often all have been

	busy   map[endpoint]*PortUse // TCP destinations, exactly; each is an element of uses
	uses   []PortUse
	by     map[uint32]int // sessions with the chosen destination, by inner address
	hosts  []SandboxUse   // in the order of their ports, the most first
	known  map[uint32]int
	spaces [spaceCount]PortUse

	total          int  // ports towards one destination
	perDestination bool // those of TCP
}

// guess is a counter of the first round.
type guess struct {
	remote endpoint
	n      int // 0: nobody's
}

// NewCensus returns a census that has counted nothing yet.
func NewCensus(c CensusConfig) *Census {
	n := &Census{
		top: min(max(c.Top, 0), candidates), proto: c.Proto, next: 1,
		guesses: make(map[endpoint]int, candidates), counts: make([]guess, candidates),
		unused: make([]int, candidates),
		busy:   make(map[endpoint]*PortUse, candidates+1), uses: make([]PortUse, 0, candidates+1),
	}
	if n.top == 0 {
		n.top = 32
	}
	for i := range n.unused {
		n.unused[i] = i
	}
	n.hosts, n.known = make([]SandboxUse, 0, n.top), make(map[uint32]int, n.top)
	if n.chosen, n.asked = endpointOf(c.Remote); n.asked {
		n.by = make(map[uint32]int)
	}
	return n
}

// Count goes on with a census and reports whether it is complete. It looks at as many
// records as budget says, which take some 100 ns each; what takes longer counts more.
// With 2048 it takes less than half a millisecond.
func (t *Table) Count(c *Census, budget int, now packet.Instant) (done bool) {
	t.clock(now)
	for budget = max(budget, 1); budget > 0 && c.stage < censusDone; budget-- {
		if c.next >= t.censusTop(c.stage) {
			budget -= t.endStage(c)
			continue
		}
		budget -= t.countRecord(c, c.next)
		c.next++
	}
	return c.stage == censusDone
}

// censusTop is the number behind the last record of a stage.
func (t *Table) censusTop(s censusStage) uint32 {
	switch s {
	case censusHosts:
		return t.hosts.top
	case censusGuess, censusConnections:
		return t.sessions.top
	case censusMappings:
		return t.mappings.top
	case censusHeldPorts:
		return t.heldPorts.records.top
	}
	return t.tuples.records.top
}

// endStage goes on to the next stage, and returns what that took of a budget.
func (t *Table) endStage(c *Census) (cost int) {
	switch c.stage {
	case censusHosts:
		c.endHosts()
		cost = len(c.hosts)
	case censusGuessHeld:
		for remote := range c.guesses {
			c.await(remote)
		}
		if c.asked && c.proto == packet.TCP { // its holds count, too
			c.await(c.chosen)
		}
		cost = len(c.uses)
	}
	if c.stage, c.next = c.stage+1, 1; c.stage == censusDone {
		t.endCensus(c)
	}
	return cost
}

// await lets the second round count a destination.
func (c *Census) await(remote endpoint) {
	if c.busy[remote] == nil {
		c.uses = append(c.uses, PortUse{Proto: packet.TCP, Remote: remote.addrPort()})
		c.busy[remote] = &c.uses[len(c.uses)-1] // uses has room for all: it does not move
	}
}

// endCensus takes what needs no counting.
func (t *Table) endCensus(c *Census) {
	if t.config.Identity {
		return
	}
	c.total = t.blank.total
	for i, p := range [...]packet.Proto{tcpSpace: packet.TCP, udpSpace: packet.UDP, icmpSpace: packet.ICMP} {
		c.spaces[i].Proto, c.spaces[i].Left = p, c.total
		if sp := t.spaces[i]; sp != nil {
			c.spaces[i].Left = sp.set.free
		}
	}
	c.perDestination = t.config.TCPMapping == AddressAndPortDependent
}

// countRecord looks at one record and returns what that took beyond one of a budget.
func (t *Table) countRecord(c *Census, i uint32) int {
	switch c.stage {
	case censusHosts:
		if h := t.hosts.at(i); h.known {
			return c.addHost(h)
		}
	case censusGuess:
		if s := t.sessions.at(i); s.state != stateFree && s.flags&mapped == 0 && !t.config.Identity {
			return c.guess(s.to())
		}
	case censusGuessHeld:
		if h := t.tuples.at(i); h.key != 0 {
			return c.guess(tuple(h.key).remote())
		}
	case censusConnections:
		if s := t.sessions.at(i); s.state != stateFree {
			t.countSession(c, s)
		}
	case censusHeldTuples:
		if h := t.tuples.at(i); h.key != 0 {
			if u := c.busy[tuple(h.key).remote()]; u != nil {
				u.Held++
			}
		}
	case censusMappings:
		if m := t.mappings.at(i); m.proto != 0 {
			c.spaces[spaceOf(m.proto)].Used++
			if at, ok := c.known[m.inner]; ok {
				c.hosts[at].PerProtocol[spaceOf(m.proto)]++
			}
		}
	case censusHeldPorts:
		if h := t.heldPorts.at(i); h.key != 0 {
			c.spaces[h.key>>16].Held++
		}
	}
	return 0
}

// hostsPerUnit is how many inner addresses are moved in their list for a unit of a budget.
const hostsPerUnit = 16

// addHost keeps an inner address if it is one of those with the most ports.
func (c *Census) addHost(h *host) (cost int) {
	if len(c.hosts) == c.top && int(h.ports) < c.hosts[c.top-1].Ports {
		return 0
	}
	u := SandboxUse{Inner: addrOf(h.addr), Sessions: int(h.sessions), Ports: int(h.ports), HalfOpen: int(h.halfOpen)}
	at, _ := slices.BinarySearchFunc(c.hosts, u, compareSandboxes)
	if at == c.top {
		return 0
	}
	c.hosts = slices.Insert(c.hosts[:min(len(c.hosts), c.top-1)], at, u)
	return (len(c.hosts) - at) / hostsPerUnit
}

// endHosts numbers the inner addresses that were kept. One that went and came back
// meanwhile is there twice.
func (c *Census) endHosts() {
	c.hosts = slices.DeleteFunc(c.hosts, func(u SandboxUse) bool {
		_, twice := c.known[number(u.Inner)]
		if !twice {
			c.known[number(u.Inner)] = len(c.known)
		}
		return twice
	})
}

// countersPerUnit is how many counters are lowered for a unit of a budget.
const countersPerUnit = 64

// guess counts one occurrence of a destination in the first round.
func (c *Census) guess(remote endpoint) (cost int) {
	if i, there := c.guesses[remote]; there {
		c.counts[i].n++
		return 0
	}
	if last := len(c.unused) - 1; last >= 0 {
		i := c.unused[last]
		c.unused = c.unused[:last]
		c.guesses[remote], c.counts[i] = i, guess{remote, 1}
		return 0
	}
	c.lowered++
	for i := range c.counts {
		if g := &c.counts[i]; g.n > 1 {
			g.n--
		} else {
			delete(c.guesses, g.remote)
			*g = guess{}
			c.unused = append(c.unused, i)
		}
	}
	return candidates/countersPerUnit + len(c.unused)
}

// countSession is the second round.
func (t *Table) countSession(c *Census, s *session) {
	if c.asked && s.to() == c.chosen && s.proto == c.proto {
		c.by[s.inner]++
	}
	if s.flags&mapped != 0 || t.config.Identity {
		return
	}
	if u := c.busy[s.to()]; u != nil {
		u.Used++
	}
	if at, ok := c.known[s.inner]; ok {
		c.hosts[at].PerProtocol[tcpSpace]++
	}
}

// PortUse is how many external ports, or echo identifiers, are in use and on hold, and
// how many may yet be given out.
type PortUse struct {
	Proto packet.Proto
	// Remote is the destination; not valid where the ports serve all.
	Remote           netip.AddrPort
	Used, Held, Left int
}

// taken are the ports that are not left.
func (u PortUse) taken() int { return u.Used + u.Held }

// SandboxUse is what an inner address holds.
type SandboxUse struct {
	Inner                     netip.Addr
	Sessions, Ports, HalfOpen int         // as [Limits] count them
	PerProtocol               PerProtocol // of Ports
}

// InnerUse is how many sessions an inner address has with a destination. Where TCP is
// mapped by destination each has a port of its own.
type InnerUse struct {
	Inner    netip.Addr
	Sessions int
}

// PortReport is what a complete Census has found. All lists have the most first.
type PortReport struct {
	// Spaces are the ports that serve all destinations: of UDP and echo, and of TCP
	// where it is mapped independently of them. An identity table has none.
	Spaces []PortUse
	// Busiest are the destinations to which the most TCP ports are in use or on hold,
	// where TCP is mapped by destination. One that is missing has no more than Missed.
	Busiest []PortUse
	Missed  int
	// Chosen is the destination that was asked for, and By are all inner addresses that
	// have sessions with it. Used are its sessions; where its ports serve all
	// destinations, Held and Left are those of all.
	Chosen PortUse
	By     []InnerUse
	// Sandboxes are the inner addresses with the most ports.
	Sandboxes []SandboxUse
}

// Report returns what a complete census has found. It needs no table, and so no lock.
func (c *Census) Report() PortReport {
	r := PortReport{Sandboxes: c.hosts, Missed: c.lowered}
	for i, u := range c.spaces {
		if u.Proto != 0 && (i != tcpSpace || !c.perDestination) {
			r.Spaces = append(r.Spaces, u)
		}
	}
	if c.perDestination {
		r.Busiest = make([]PortUse, 0, len(c.busy))
		for remote, u := range c.busy {
			u.Left = max(c.total-u.taken(), 0)
			if _, there := c.guesses[remote]; there && u.taken() > 0 { // what is only asked for is not ranked
				r.Busiest = append(r.Busiest, *u)
			}
		}
		slices.SortFunc(r.Busiest, func(a, b PortUse) int {
			return cmp.Or(b.taken()-a.taken(), a.Remote.Compare(b.Remote))
		})
		if len(r.Busiest) > c.top {
			r.Missed = max(r.Missed, r.Busiest[c.top].taken())
			r.Busiest = r.Busiest[:c.top]
		}
	}
	if c.asked {
		c.reportChosen(&r)
	}
	return r
}

// reportChosen tells of the destination that was asked for.
func (c *Census) reportChosen(r *PortReport) {
	for inner, n := range c.by {
		r.By = append(r.By, InnerUse{addrOf(inner), n})
		r.Chosen.Used += n
	}
	slices.SortFunc(r.By, func(a, b InnerUse) int {
		return cmp.Or(b.Sessions-a.Sessions, a.Inner.Compare(b.Inner))
	})
	r.Chosen.Proto, r.Chosen.Remote = c.proto, c.chosen.addrPort()
	switch u := c.busy[c.chosen]; {
	case c.proto == packet.TCP && c.perDestination:
		r.Chosen.Held = u.Held
		r.Chosen.Left = max(c.total-r.Chosen.taken(), 0)
	default:
		r.Chosen.Held, r.Chosen.Left = c.spaces[spaceOf(c.proto)].Held, c.spaces[spaceOf(c.proto)].Left
	}
}

// compareSandboxes orders by ports, then by sessions, the most first.
func compareSandboxes(a, b SandboxUse) int {
	return cmp.Or(b.Ports-a.Ports, b.Sessions-a.Sessions, a.Inner.Compare(b.Inner))
}
