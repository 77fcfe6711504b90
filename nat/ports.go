package nat

import (
	"math/bits"
	"math/rand/v2"
)

// dice draws from the table's cryptographic generator (P-3). What it draws
// depends on no packet, so ports tell nothing of inner ports (P-4).
type dice struct{ source *rand.ChaCha8 }

// below returns a uniform number below n, which must not be 0 (Lemire's
// multiplication with rejection).
func (d *dice) below(n uint32) uint32 {
	for {
		m := (d.source.Uint64() >> 32) * uint64(n)
		if low := uint32(m); low >= n || low >= -n%n {
			return uint32(m >> 32)
		}
	}
}

const (
	blockBits  = 10 // ports per block
	blockCount = 1 << (16 - blockBits)
	blockWords = 1 << (blockBits - 6)
)

// portSet is a set of 16-bit ports of which some are free. Ports that must
// never be given out are taken from the start and stay so.
type portSet struct {
	taken       [1 << 10]uint64 // bit set: not free
	spare       [blockCount]uint16
	free, total int // free now; free at first
	first, last uint16
}

// newPortSet returns the set in which the ports of r are free, but for the reserved.
func newPortSet(r PortRange, reserved []uint16) *portSet {
	s := &portSet{first: r.First, last: r.Last}
	for i := range s.taken {
		s.taken[i] = ^uint64(0)
	}
	for p := int(r.First); p <= int(r.Last); p++ {
		s.release(uint16(p))
	}
	for _, p := range reserved {
		s.take(p)
	}
	s.total = s.free
	return s
}

func (s *portSet) has(p uint16) bool { return s.taken[p>>6]>>(p&63)&1 == 0 }

// take makes p no longer free and says whether it was.
func (s *portSet) take(p uint16) bool {
	if !s.has(p) {
		return false
	}
	s.taken[p>>6] |= 1 << (p & 63)
	s.spare[p>>blockBits]--
	s.free--
	return true
}

// release makes p free. p must not be one that is never given out.
func (s *portSet) release(p uint16) {
	if s.has(p) {
		return
	}
	s.taken[p>>6] &^= 1 << (p & 63)
	s.spare[p>>blockBits]++
	s.free++
}

// guesses is how often a free port is sought by drawing from the whole range
// before the set is asked for it. Both ways are uniform over the free ports (P-2).
const guesses = 8

// pick returns a free port, each with the same probability, without taking it;
// false when none is free. Its cost is bounded at any occupancy (U-11).
func (s *portSet) pick(d *dice) (uint16, bool) {
	if s.free == 0 {
		return 0, false
	}
	span := uint32(s.last-s.first) + 1
	for range guesses {
		if p := s.first + uint16(d.below(span)); s.has(p) {
			return p, true
		}
	}
	return s.nth(int(d.below(uint32(s.free)))), true
}

// nth returns the n-th free port, counting from 0; n must be below free.
func (s *portSet) nth(n int) uint16 {
	b := 0
	for n >= int(s.spare[b]) {
		n -= int(s.spare[b])
		b++
	}
	for w := b * blockWords; ; w++ {
		word := ^s.taken[w]
		if c := bits.OnesCount64(word); n >= c {
			n -= c
			continue
		}
		for ; n > 0; n-- {
			word &= word - 1
		}
		return uint16(w<<6 + bits.TrailingZeros64(word))
	}
}

// space is the port space of one protocol whose mappings are
// endpoint-independent: which ports are free, and whose the others are.
type space struct {
	set   portSet
	pages [blockCount]*[1 << blockBits]uint32 // mapping by external port
}

// owner returns the number of the mapping that has port p, or 0.
func (s *space) owner(p uint16) uint32 {
	if s == nil {
		return 0
	}
	if page := s.pages[p>>blockBits]; page != nil {
		return page[p&(1<<blockBits-1)]
	}
	return 0
}

// room says whether assign has a place for p.
func (s *space) room(m Memory, p uint16) bool {
	page := &s.pages[p>>blockBits]
	if *page != nil {
		return true
	}
	a := allocate[uint32](m, 1<<blockBits)
	if a == nil {
		return false
	}
	*page = (*[1 << blockBits]uint32)(a)
	return true
}

// assign makes mapping m the owner of p, or nobody where m is 0. There must be room.
func (s *space) assign(p uint16, m uint32) {
	s.pages[p>>blockBits][p&(1<<blockBits-1)] = m
}

// tuple is an external TCP port towards a remote endpoint.
type tuple uint64

func makeTuple(port uint16, remote endpoint) tuple { return tuple(port)<<48 | tuple(remote) }

func (t tuple) port() uint16     { return uint16(t >> 48) }
func (t tuple) remote() endpoint { return endpoint(t & (1<<48 - 1)) }

// held is something freed that must not be given out yet.
type held struct {
	key   uint64 // a tuple, or which space<<16 | port
	until uint32 // tick
	next  uint32
}

func (h *held) link() *uint32 { return &h.next }

// queue holds freed things in the order of their deadlines, which is the order
// of their coming because all are held for the same time.
type queue struct {
	records    slab[held, *held]
	head, tail uint32
}

func (q *queue) len() int { return q.records.live }

func (q *queue) at(i uint32) *held { return q.records.at(i) }

// push adds one and returns its number, or 0 where there is no memory for it.
func (q *queue) push(key uint64, until uint32) uint32 {
	i, h := q.records.take()
	if i == 0 {
		return 0
	}
	h.key, h.until = key, until
	if q.tail == 0 {
		q.head = i
	} else {
		q.at(q.tail).next = i
	}
	q.tail = i
	return i
}

// pop removes the oldest.
func (q *queue) pop() {
	i := q.head
	if q.head = q.at(i).next; q.head == 0 {
		q.tail = 0
	}
	q.records.give(i)
}

// crowd is the port space of one remote endpoint to which so many TCP tuples
// are in use or on hold that drawing blindly no longer finds free ones. It is
// made by asking for every port in turn, a few at each new connection.
type crowd struct {
	set   portSet
	known uint32 // ports below it have been asked for
	// closed are the ports whose connection has ended with both FINs acknowledged, of closedCount.
	closed      [1 << 10]uint64
	closedCount int
	place       int // in Table.crowdRound
	// Where there are port blocks, the ports that are drawn are asked for instead of all in
	// turn. wanted is the tick at which the crowd was of use last.
	wanted uint32
}

const (
	crowdStep = 256 // ports asked for at each new connection
	// crowdLeave is the part of the ports that must be taken for a crowd to stay one.
	crowdLeave = 8
	// crowdReuse is the part of the ports that may be free when closed
	// connections' tuples are given out again: a tenth.
	crowdReuse = 10
)

// complete says whether every port has been asked for.
func (c *crowd) complete() bool { return c.known > uint32(c.set.last) }

// pickKnown draws among the free ports that have been asked for. So many others are
// taken that it has come to this, so that they will be nearly alike.
func (c *crowd) pickKnown(d *dice) (uint16, bool) {
	n := 0
	for w := range c.known >> 6 {
		n += bits.OnesCount64(^c.set.taken[w])
	}
	if n += bits.OnesCount64(^c.set.taken[c.known>>6] & (1<<(c.known&63) - 1)); n == 0 {
		return 0, false
	}
	return c.set.nth(int(d.below(uint32(n)))), true
}

func (c *crowd) setClosed(p uint16, on bool) {
	w, bit := &c.closed[p>>6], uint64(1)<<(p&63)
	switch was := *w&bit != 0; {
	case on && !was:
		*w |= bit
		c.closedCount++
	case !on && was:
		*w &^= bit
		c.closedCount--
	}
}

// nthClosed returns the n-th port whose connection is closed.
func (c *crowd) nthClosed(n int) uint16 {
	for w := range c.closed {
		word := c.closed[w]
		if k := bits.OnesCount64(word); n >= k {
			n -= k
			continue
		}
		for ; n > 0; n-- {
			word &= word - 1
		}
		return uint16(w<<6 + bits.TrailingZeros64(word))
	}
	return 0
}
