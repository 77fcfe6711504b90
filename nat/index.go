package nat

import "math/bits"

// hashKey is the secret of a table. Whoever chooses endpoints without knowing
// it cannot choose where they fall in an index.
type hashKey [2]uint64

// sum is SipHash-1-3 over the two words a and b. The length block is left out,
// because all inputs have the same length.
func (k *hashKey) sum(a, b uint64) uint64 {
	v0 := k[0] ^ 0x736f6d6570736575
	v1 := k[1] ^ 0x646f72616e646f6d
	v2 := k[0] ^ 0x6c7967656e657261
	v3 := k[1] ^ 0x7465646279746573
	v3 ^= a
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0 ^= a
	v3 ^= b
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0 ^= b
	v2 ^= 0xff
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	return v0 ^ v1 ^ v2 ^ v3
}

func sipRound(v0, v1, v2, v3 uint64) (uint64, uint64, uint64, uint64) {
	v0 += v1
	v1 = bits.RotateLeft64(v1, 13) ^ v0
	v0 = bits.RotateLeft64(v0, 32)
	v2 += v3
	v3 = bits.RotateLeft64(v3, 16) ^ v2
	v0 += v3
	v3 = bits.RotateLeft64(v3, 21) ^ v0
	v2 += v1
	v1 = bits.RotateLeft64(v1, 17) ^ v2
	v2 = bits.RotateLeft64(v2, 32)
	return v0, v1, v2, v3
}

const (
	shardCount = 128
	shardMin   = 8 // slots
	// leastFull is how full, in 1024ths, the first shard is when it doubles. Each next
	// one may be a 1024th fuller, so that they do not all double at once: from 64 to
	// 76 %, and half of that after.
	leastFull = 656
)

// index finds record numbers by hash. It is cut into shards, each an
// open-addressing array that doubles on its own, so that no insertion moves more than
// one shard: a pause of some hundred microseconds at a million records.
//
// A slot holds the upper half of the hash above the record number, 0 when
// empty. That half both places the slot and screens out other records, so a
// shard grows without touching records.
type index struct {
	memory Memory
	shards []shard // made at the first insertion
	moved  int     // slots, by shards that doubled
}

type shard struct {
	slots []uint64 // a power of two
	used  int
}

// cursor walks the candidates of one hash.
type cursor struct {
	slots    []uint64
	at, want uint32
}

// find begins a walk. The caller compares the record of each number that next
// returns with its key, until next returns 0.
func (x *index) find(h uint64) cursor {
	if x.shards == nil {
		return cursor{}
	}
	want := uint32(h >> 32)
	return cursor{x.shards[h%shardCount].slots, want, want}
}

func (c *cursor) next() uint32 {
	for len(c.slots) > 0 {
		v := c.slots[int(c.at)&(len(c.slots)-1)]
		if v == 0 {
			return 0
		}
		c.at++
		if uint32(v>>32) == c.want {
			return uint32(v)
		}
	}
	return 0
}

// home returns the slot where the walk of a hash begins.
func (x *index) home(h uint64) uint64 {
	if x.shards == nil {
		return 0
	}
	s := x.shards[h%shardCount].slots
	if len(s) == 0 {
		return 0
	}
	return s[int(h>>32)&(len(s)-1)]
}

// first returns the first candidate of a hash, or 0.
func (x *index) first(h uint64) uint32 {
	c := x.find(h)
	return c.next()
}

// room says whether one more can be inserted under h, and makes it so where there
// is memory.
func (x *index) room(h uint64) bool {
	if x.shards == nil {
		x.shards = make([]shard, shardCount)
	}
	n := h % shardCount
	s := &x.shards[n]
	return (s.used+1)*1024 <= len(s.slots)*(leastFull+int(n)) || x.grow(s)
}

// insert adds record i under h and says whether there was room. The caller knows that
// it isn't there.
func (x *index) insert(h uint64, i uint32) bool {
	if !x.room(h) {
		return false
	}
	s := &x.shards[h%shardCount]
	s.place(h>>32<<32 | uint64(i))
	s.used++
	return true
}

func (x *index) grow(s *shard) bool {
	old := s.slots
	slots := allocate[uint64](x.memory, max(shardMin, 2*len(old)))
	if slots == nil {
		return false
	}
	s.slots = slots
	for _, v := range old {
		if v != 0 {
			s.place(v)
		}
	}
	x.moved += len(old)
	free(x.memory, old)
	return true
}

// place puts v into the first empty slot from its home.
func (s *shard) place(v uint64) {
	mask := len(s.slots) - 1
	at := int(v>>32) & mask
	for s.slots[at] != 0 {
		at = (at + 1) & mask
	}
	s.slots[at] = v
}

// remove takes record i under h out, and moves later slots of the run back
// over the gap where that brings them no nearer than their home.
func (x *index) remove(h uint64, i uint32) {
	s := &x.shards[h%shardCount]
	mask := len(s.slots) - 1
	v := h>>32<<32 | uint64(i)
	gap := int(h>>32) & mask
	for s.slots[gap] != v {
		if s.slots[gap] == 0 {
			return
		}
		gap = (gap + 1) & mask
	}
	s.used--
	for at := (gap + 1) & mask; s.slots[at] != 0; at = (at + 1) & mask {
		home := int(s.slots[at]>>32) & mask
		if (at-home)&mask >= (at-gap)&mask {
			s.slots[gap] = s.slots[at]
			gap = at
		}
	}
	s.slots[gap] = 0
}
