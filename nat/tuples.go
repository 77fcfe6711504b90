package nat

import (
	"unsafe"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// blindGuesses is how often a free tuple is drawn for before a crowd that is
// still being surveyed is surveyed further at once.
const blindGuesses = 64

// surveyMost is how many ports are asked for at once then: some hundred microseconds.
const surveyMost = 2048

// holdStep is how many due holds each new connection releases: more than it
// will ever add, so that what is due does not pile up between sweeps.
const holdStep = 4

// pickTuple returns an external port that is neither in use nor on hold
// towards remote, each such port with the same probability (P-1, P-2). isn is
// the initial sequence number of the connection that wants it.
func (t *Table) pickTuple(hi uint32, remote endpoint, isn uint32) (uint16, bool) {
	if t.blocks != nil {
		return t.pickOwnTuple(hi, remote, isn)
	}
	t.releaseHolds(holdStep)
	c := t.crowds[remote]
	if c == nil {
		if p, ok := t.guessTuple(remote, guesses); ok {
			return p, true
		}
		if c = t.newCrowd(remote); c == nil {
			return t.guessTuple(remote, blindGuesses)
		}
	}
	if !c.complete() {
		t.survey(remote, c, crowdStep)
	}
	if !c.complete() {
		if p, ok := t.guessTuple(remote, blindGuesses); ok {
			return p, true
		}
		if t.survey(remote, c, surveyMost); !c.complete() {
			return c.pickKnown(&t.dice)
		}
	}
	if c.set.free*crowdReuse < c.set.total && c.closedCount > 0 {
		if p, ok := t.pickClosed(remote, c, isn); ok {
			return p, true
		}
	}
	return c.set.pick(&t.dice)
}

// guessTuple draws ports until one is free towards remote, n times at most.
func (t *Table) guessTuple(remote endpoint, n int) (uint16, bool) {
	span := uint32(t.blank.last-t.blank.first) + 1
	for range n {
		p := t.blank.first + uint16(t.dice.below(span))
		if !t.blank.has(p) {
			continue
		}
		if !t.isTaken(remote, nil, p) {
			return p, true
		}
	}
	return 0, false
}

// pickClosed draws among the free tuples and those whose connection has seen
// both FINs. Where it falls on one of these, and the new initial sequence number is
// higher than all that the old connection sent, the remote can tell the two
// apart, and the old one ends early (RFC 6888 REQ-8, RFC 6191 section 2).
func (t *Table) pickClosed(remote endpoint, c *crowd, isn uint32) (uint16, bool) {
	for range 2 * guesses {
		n := int(t.dice.below(uint32(c.set.free + c.closedCount)))
		if n < c.set.free {
			return c.set.nth(n), true
		}
		p := c.nthClosed(n - c.set.free)
		if t.endClosed(makeTuple(p, remote), isn) {
			return p, true
		}
	}
	return 0, false
}

// endClosed ends a tuple's connection if it has seen both FINs, and a new one that begins
// at isn can be told from it.
func (t *Table) endClosed(tp tuple, isn uint32) bool {
	i, _ := t.tupleTaken(tp)
	if i == 0 {
		return false
	}
	s := t.sessions.at(i)
	if s.state != stateClosed || !after(isn, s.end[outward]) {
		return false
	}
	t.removeSession(i, ReasonReused)
	return true
}

// survey asks for the next n ports of a crowd whether they are taken.
func (t *Table) survey(remote endpoint, c *crowd, n int) {
	for ; n > 0 && !c.complete(); n-- {
		if p := uint16(c.known); t.blank.has(p) {
			t.isTaken(remote, c, p)
		}
		c.known++
	}
}

// isTaken says whether a port is in use or on hold towards remote, and lets a crowd (nil:
// nobody) know if it is.
func (t *Table) isTaken(remote endpoint, c *crowd, p uint16) bool {
	i, onHold := t.tupleTaken(makeTuple(p, remote))
	if i == 0 && !onHold {
		return false
	}
	if c != nil {
		c.set.take(p)
		if i != 0 && t.sessions.at(i).state == stateClosed {
			c.setClosed(p, true)
		}
	}
	return true
}

// tupleTaken returns the session that uses the tuple, or 0, and whether it is on hold.
func (t *Table) tupleTaken(tp tuple) (inUse uint32, onHold bool) {
	h := t.inboundHash(packet.TCP, tp.port(), tp.remote())
	if i := t.findInbound(h, packet.TCP, tp.port(), tp.remote()); i != 0 {
		return i, false
	}
	return 0, t.findHold(h, tp) != 0
}

func (t *Table) findHold(h uint64, tp tuple) uint32 {
	c := t.holdIndex.find(h)
	for i := c.next(); i != 0; i = c.next() {
		if t.tuples.at(i).key == uint64(tp) {
			return i
		}
	}
	return 0
}

// holdTuple keeps a tuple from being given out for the time of a hold (C-8).
// Holds take no more records than sessions may: beyond, the oldest ends early,
// which address-and-port-dependent filtering allows (RFC 6888 REQ-8 c).
func (t *Table) holdTuple(tp tuple) {
	h := t.inboundHash(packet.TCP, tp.port(), tp.remote())
	if t.findHold(h, tp) != 0 {
		return
	}
	if t.tuples.len() >= t.config.MaxSessions {
		t.releaseTuple()
		t.stats.HoldsShortened++
	}
	until := t.tick + 1 + t.ticks.hold
	if t.pushTuple(h, tp, until) {
		return
	}
	t.stats.HoldsShortened++
	if t.tuples.head != 0 {
		t.releaseTuple() // there is no memory for another
	}
	if c := t.crowds[tp.remote()]; !t.pushTuple(h, tp, until) && c != nil {
		c.set.release(tp.port())
	}
}

// pushTuple puts a tuple of hash h that is not in use on hold until a tick, the latest
// of all, and says whether there was memory for that.
func (t *Table) pushTuple(h uint64, tp tuple, until uint32) bool {
	if !t.holdIndex.room(h) {
		return false
	}
	i := t.tuples.push(uint64(tp), until)
	if i == 0 {
		return false
	}
	t.holdIndex.insert(h, i)
	if c := t.crowds[tp.remote()]; c != nil {
		c.set.take(tp.port())
	}
	return true
}

// releaseTuple ends the oldest hold of a tuple.
func (t *Table) releaseTuple() {
	i := t.tuples.head
	tp := tuple(t.tuples.at(i).key)
	t.holdIndex.remove(t.inboundHash(packet.TCP, tp.port(), tp.remote()), i)
	t.tuples.pop()
	if c := t.crowds[tp.remote()]; c != nil {
		c.set.release(tp.port())
	}
}

// holdPort keeps a taken port of a space from being given out for the time of a hold.
// Where there is no memory for that, the oldest hold ends early, or this one at once.
func (t *Table) holdPort(which int, p uint16) {
	key, until := uint64(which)<<16|uint64(p), t.tick+1+t.ticks.hold
	if t.heldPorts.push(key, until) != 0 {
		return
	}
	t.stats.HoldsShortened++
	if t.heldPorts.head != 0 {
		t.releasePort()
	}
	if t.heldPorts.push(key, until) == 0 {
		t.spaces[which].set.release(p)
	}
}

// releaseHolds ends the holds that are due, n of each kind at most, and returns
// how many.
func (t *Table) releaseHolds(n int) int {
	done := 0
	for k := 0; k < n && t.tuples.head != 0 && due(t.tuples.at(t.tuples.head).until, t.tick); k++ {
		t.releaseTuple()
		done++
	}
	for k := 0; k < n && t.heldPorts.head != 0; k++ {
		h := t.heldPorts.at(t.heldPorts.head)
		if !due(h.until, t.tick) {
			break
		}
		t.releasePort()
		done++
	}
	return done
}

// releasePort ends the oldest hold of a port of a space.
func (t *Table) releasePort() {
	h := t.heldPorts.at(t.heldPorts.head)
	t.spaces[h.key>>16].set.release(uint16(h.key))
	t.heldPorts.pop()
}

// newCrowd makes the crowd of a remote, or nil where there is no memory for it.
func (t *Table) newCrowd(remote endpoint) *crowd {
	a := allocate[crowd](t.config.Memory, 1)
	if a == nil {
		return nil
	}
	c := &a[0]
	c.set, c.known, c.place = *t.blank, uint32(t.blank.first), len(t.crowdRound)
	t.crowds[remote] = c
	t.crowdRound = append(t.crowdRound, remote)
	return c
}

// tendCrowds goes on with the round over the crowds, n at most: with unfinished
// surveys, and by forgetting what is no crowd any more.
func (t *Table) tendCrowds(n int) {
	for n = min(n, len(t.crowdRound)); n > 0; n-- {
		if t.crowdSweep++; t.crowdSweep >= len(t.crowdRound) {
			t.crowdSweep = 0
		}
		remote := t.crowdRound[t.crowdSweep]
		c := t.crowds[remote]
		few := (c.set.total-c.set.free)*crowdLeave <= c.set.total
		if t.blocks == nil && !c.complete() {
			t.survey(remote, c, crowdStep)
		} else if few && (t.blocks == nil || t.tick-c.wanted > ticksPerSecond) {
			last := t.crowdRound[len(t.crowdRound)-1]
			t.crowdRound[c.place], t.crowds[last].place = last, c.place
			t.crowdRound = t.crowdRound[:len(t.crowdRound)-1]
			delete(t.crowds, remote)
			free(t.config.Memory, unsafe.Slice(c, 1))
		}
	}
}
