package nat

import (
	"fmt"
	"math/bits"
)

// With [Config.PortBlock] an inner address has its external ports only from blocks of its
// own, so that who had a port is known from one record per block (L-3, C-14). All
// protocols share its blocks. A block is taken when none of those that it has holds a free
// port, at random among the free ones, and ports are drawn uniformly among the free
// ones of its blocks: whoever knows one port guesses the next one easier by as much as
// the block is smaller than the range. A block rests when nothing uses it any more. It
// stays its owner's, who may use it again, until no port in it can be on hold; then it
// is free.

// The sizes that a block may have: whole words of a portSet, and not so large that
// a few inner addresses have all.
const minBlock, maxBlock = 64, 4096

// maxBlockCrowds bounds the crowds that are made because blocks are full, which small
// ones are soon: 5 MiB. Beyond, another block is taken though the ones before may have
// a port left.
const maxBlockCrowds = 256

// nobody and never stand for the owner of a block: it is free, or has no usable port.
const nobody, never = 0, ^uint32(0)

// portBlock is a run of ports that belongs to one inner address.
type portBlock struct {
	owner      uint32 // its host, nobody or never
	used       uint32 // mappings, and TCP connections that are mapped by destination
	until      uint32 // tick at which it is free if nothing uses it till then
	next, prev uint16 // in its owner's list, by number; see blockSet.end
}

// blockSet is how the ports are cut into blocks. Block b begins at port b * size.
type blockSet struct {
	size        int
	all         []portBlock
	free, total int // blocks with ports that may be used
}

// noBlock ends a list of blocks.
const noBlock = ^uint16(0)

// checkBlock checks the size of blocks.
func (c *Config) checkBlock() error {
	if n := c.PortBlock; n != 0 && (n < minBlock || n > maxBlock || n&(n-1) != 0) {
		return fmt.Errorf("nat: port blocks of %d ports cannot be: set a power of two from %d to %d, or 0 for none", n, minBlock, maxBlock)
	}
	return nil
}

// newBlockSet cuts the free ports of a set into blocks.
func newBlockSet(size int, ports *portSet) *blockSet {
	s := &blockSet{size: size, all: make([]portBlock, (1<<16)/size)}
	for b := range s.all {
		s.all[b].owner = never
		if s.count(&ports.taken, ^uint64(0), uint16(b)) > 0 {
			s.all[b].owner = nobody
			s.free++
		}
	}
	s.total = s.free
	return s
}

// of returns the block of a port.
func (s *blockSet) of(port uint16) uint16 { return uint16(int(port) / s.size) }

// words are the words of a port bitmap that belong to block b.
func (s *blockSet) words(bitmap *[1 << 10]uint64, b uint16) []uint64 {
	n := s.size / 64
	return bitmap[int(b)*n : (int(b)+1)*n]
}

// count is how many bits of block b are set in a bitmap, each turned over by flip.
func (s *blockSet) count(bitmap *[1 << 10]uint64, flip uint64, b uint16) (n int) {
	for _, w := range s.words(bitmap, b) {
		n += bits.OnesCount64(w ^ flip)
	}
	return n
}

// firstBlock returns the head of a host's list.
func (h *host) firstBlock() uint16 { return uint16(h.blocks - 1) }

// pickOwn draws one of the bits that are set, turned over by flip, in the blocks of a
// host, each with the same probability.
func (t *Table) pickOwn(h *host, bitmap *[1 << 10]uint64, flip uint64) (uint16, bool) {
	s := t.blocks
	total := 0
	for b := h.firstBlock(); b != noBlock; b = s.all[b].next {
		total += s.count(bitmap, flip, b)
	}
	if total == 0 {
		return 0, false
	}
	n := int(t.dice.below(uint32(total)))
	b := h.firstBlock()
	for {
		k := s.count(bitmap, flip, b)
		if n < k {
			break
		}
		n -= k
		b = s.all[b].next
	}
	for i, w := range s.words(bitmap, b) {
		w ^= flip
		if k := bits.OnesCount64(w); n >= k {
			n -= k
			continue
		}
		for ; n > 0; n-- {
			w &= w - 1
		}
		return uint16(int(b)*s.size + i*64 + bits.TrailingZeros64(w)), true
	}
	return 0, false
}

// pickPort returns a free port of a space for host hi, without taking it.
func (t *Table) pickPort(hi uint32, sp *space) (uint16, bool) {
	if t.blocks == nil {
		return sp.set.pick(&t.dice)
	}
	h := t.hosts.at(hi)
	p, ok := t.pickOwn(h, &sp.set.taken, ^uint64(0))
	for n := 0; !ok && n < freshMost && t.takeBlock(hi); n++ {
		p, ok = t.pickOwn(h, &sp.set.taken, ^uint64(0))
	}
	return p, ok
}

// freshMost is how many blocks are taken for one packet. A fresh one may have no port
// left that is not on hold, as PortRefused holds any; whoever meets so many of these
// is refused, and the next packet goes on with the blocks after them.
const freshMost = 4

// ownLooks is how many ports of an inner address's blocks are drawn and looked at for one
// packet, and freshLooks how many of fresh ones: some hundred microseconds.
const ownLooks, freshLooks = 1024, 256

// pickOwnTuple is pickTuple from blocks of host hi. For one packet no more than guesses,
// ownLooks and freshLooks ports together are looked at. Where so many draws find none
// free, nearly all are taken: then a block is taken although the ones before may have
// a port left, and where no block is free, the packet is refused. What has been looked
// at is remembered while one asks every second: the 63rd packet finds the last port.
func (t *Table) pickOwnTuple(hi uint32, remote endpoint, isn uint32) (uint16, bool) {
	t.releaseHolds(holdStep)
	h, s := t.hosts.at(hi), t.blocks
	c := t.crowds[remote]
	if c == nil {
		if p, ok := t.guessOwn(h, remote); ok {
			return p, true
		}
		if len(t.crowds) < maxBlockCrowds {
			c = t.newCrowd(remote)
		}
	}
	looks := blindGuesses
	if c != nil {
		c.wanted, looks = t.tick, ownLooks-1
		if p, ok := t.pickOwn(h, &c.set.taken, ^uint64(0)); ok && !t.isTaken(remote, c, p) {
			return p, true // what is known was right, as it mostly is
		}
	}
	if p, ok, _ := t.drawOwn(remote, c, h.firstBlock(), noBlock, looks); ok {
		return p, true
	}
	looks = freshLooks
	for n := 0; n < freshMost && looks > 0 && t.takeBlock(hi); n++ {
		fresh := h.firstBlock()
		p, ok, looked := t.drawOwn(remote, c, fresh, s.all[fresh].next, looks)
		if ok {
			return p, true
		}
		looks -= looked
	}
	if c == nil {
		return 0, false
	}
	return t.pickOwnClosed(h, remote, c, isn)
}

// guessOwn draws ports of a host's blocks until one is free towards remote, guesses times
// at most.
func (t *Table) guessOwn(h *host, remote endpoint) (uint16, bool) {
	n := uint32(0)
	for b := h.firstBlock(); b != noBlock; b = t.blocks.all[b].next {
		n++
	}
	for k := 0; k < guesses && n > 0; k++ {
		b := h.firstBlock()
		for skip := t.dice.below(n); skip > 0; skip-- {
			b = t.blocks.all[b].next
		}
		p := uint16(int(b)*t.blocks.size + int(t.dice.below(uint32(t.blocks.size))))
		if !t.blank.has(p) {
			continue
		}
		if !t.isTaken(remote, nil, p) {
			return p, true
		}
	}
	return 0, false
}

// drawOwn draws a port that is free towards remote, each with the same probability, from
// the blocks of a list from one to before another. Drawn are ports of which a crowd (nil:
// nobody) does not know that they are taken. Looks of them are looked at, at most.
func (t *Table) drawOwn(remote endpoint, c *crowd, from, to uint16, looks int) (port uint16, ok bool, looked int) {
	known := t.blank
	if c != nil {
		known = &c.set
	}
	var left portSet
	t.gather(&left, known, from, to)
	for looked < looks && left.free > 0 {
		p := left.nth(int(t.dice.below(uint32(left.free))))
		looked++
		if !t.isTaken(remote, c, p) {
			return p, true, looked
		}
		left.take(p)
	}
	return 0, false, looked
}

// gather makes the set of those ports of a list of blocks that are free in another.
func (t *Table) gather(set, in *portSet, from, to uint16) {
	for i := range set.taken {
		set.taken[i] = ^uint64(0)
	}
	for b := from; b != to; b = t.blocks.all[b].next {
		copy(t.blocks.words(&set.taken, b), t.blocks.words(&in.taken, b))
	}
	for i, w := range set.taken {
		n := bits.OnesCount64(^w)
		set.spare[i/blockWords] += uint16(n)
		set.free += n
	}
}

// pickOwnClosed draws among the connections of a host's blocks that have seen both FINs
// one that may end early, as pickClosed.
func (t *Table) pickOwnClosed(h *host, remote endpoint, c *crowd, isn uint32) (uint16, bool) {
	for range guesses {
		p, ok := t.pickOwn(h, &c.closed, 0)
		if !ok {
			return 0, false
		}
		if t.endClosed(makeTuple(p, remote), isn) {
			return p, true
		}
	}
	return 0, false
}

// takeBlock gives host hi a block, drawn among the free ones; false where there is none.
func (t *Table) takeBlock(hi uint32) bool {
	s := t.blocks
	if s.free == 0 {
		if t.releaseBlocks(); s.free == 0 {
			return false
		}
	}
	n := t.dice.below(uint32(s.free))
	for b := range s.all {
		if s.all[b].owner != nobody {
			continue
		}
		if n == 0 {
			t.giveBlock(hi, uint16(b))
			t.tellBlock(BlockAllocated, uint16(b), t.hosts.at(hi).addr)
			return true
		}
		n--
	}
	return false
}

// giveBlock puts a free block at the head of a host's list. It rests until it is used.
func (t *Table) giveBlock(hi uint32, b uint16) {
	s, h := t.blocks, t.hosts.at(hi)
	s.free--
	s.all[b] = portBlock{owner: hi, until: t.tick + 1 + t.ticks.hold, next: h.firstBlock(), prev: noBlock}
	if next := s.all[b].next; next != noBlock {
		s.all[next].prev = b
	}
	h.blocks = uint32(b) + 1
}

// ownBlock makes the block of a port its host's, if it is free; false where it is another's.
func (t *Table) ownBlock(hi uint32, port uint16) bool {
	if t.blocks == nil {
		return true
	}
	b := t.blocks.of(port)
	if t.blocks.all[b].owner == nobody {
		t.giveBlock(hi, b)
	}
	return t.blocks.all[b].owner == hi
}

// useBlock notes that a mapping, or a connection mapped by its destination, has a port.
func (t *Table) useBlock(port uint16) {
	if t.blocks != nil {
		t.blocks.all[t.blocks.of(port)].used++
	}
}

// leaveBlock notes that it has gone, and lets the block rest with the last one.
func (t *Table) leaveBlock(port uint16) {
	if t.blocks == nil {
		return
	}
	b := &t.blocks.all[t.blocks.of(port)]
	if b.used--; b.used == 0 {
		b.until = t.tick + 1 + t.ticks.hold
	}
}

// releaseBlocks frees the blocks that have rested for the time of a hold.
func (t *Table) releaseBlocks() {
	if t.blocks == nil {
		return
	}
	for i := range t.blocks.all {
		if b := &t.blocks.all[i]; b.owner != nobody && b.owner != never && b.used == 0 && due(b.until, t.tick) {
			t.tellBlock(BlockReleased, uint16(i), t.hosts.at(b.owner).addr)
			t.dropBlock(uint16(i))
		}
	}
}

// dropBlock takes a block out of its owner's list.
func (t *Table) dropBlock(i uint16) {
	s := t.blocks
	b := s.all[i]
	if b.next != noBlock {
		s.all[b.next].prev = b.prev
	}
	if b.prev != noBlock {
		s.all[b.prev].next = b.next
	} else {
		t.hosts.at(b.owner).blocks = uint32(b.next+1) & 0xffff
	}
	s.all[i] = portBlock{}
	s.free++
}

// span returns the first port of a block that lies in the range, and how many do.
func (t *Table) span(b uint16) (first uint16, n int) {
	from, to := int(b)*t.blocks.size, (int(b)+1)*t.blocks.size-1
	from, to = max(from, int(t.blank.first)), min(to, int(t.blank.last))
	return uint16(from), to - from + 1
}

// tellBlock emits an event about a block. How many ports it has stands where other
// events have a remote.
func (t *Table) tellBlock(k EventKind, b uint16, inner uint32) {
	first, n := t.span(b)
	t.events.put(record{at: t.now, kind: k, port: first, inner: makeEndpoint(inner, 0), remote: endpoint(n)})
}
