package nat

import (
	"math/rand/v2"
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

// An index agrees with a map, even where hashes share slots and halves.
func TestIndexAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := index{memory: heap{}}
		want := map[uint32]uint64{} // hash by number
		spread := rapid.Uint64Range(1, 40).Draw(t, "spread")
		dice := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		for i := uint32(1); i < 100; i++ {
			h := dice.Uint64N(spread)<<32 | dice.Uint64N(2)
			if dice.IntN(3) > 0 {
				x.insert(h, i)
				want[i] = h
			}
			if victim := 1 + dice.Uint32N(i); want[victim] != 0 && dice.IntN(2) == 0 {
				x.remove(want[victim], victim)
				delete(want, victim)
			}
			for n, h := range want {
				if !walk(&x, h)[n] {
					t.Fatalf("number %d is not found under %x", n, h)
				}
			}
		}
		for n := range walk(&x, 0) {
			if _, ok := want[n]; !ok {
				t.Fatalf("number %d is found, but was removed", n)
			}
		}
	})
}

func walk(x *index, h uint64) map[uint32]bool {
	found := map[uint32]bool{}
	c := x.find(h)
	for i := c.next(); i != 0; i = c.next() {
		found[i] = true
	}
	return found
}

// endpoints that an attacker may choose fall as evenly as others, and
// where they fall depends on the table's secret.
func TestA23KeyedHash(t *testing.T) {
	keys := []hashKey{{1, 2}, {1, 3}}
	same := 0
	shards, slots := make([]int, 64), make([]int, 64)
	for i := range uint64(64_000) {
		h := keys[0].sum(i<<16, i)
		shards[h%shardCount]++
		slots[h>>32%64]++
		if h>>40 == keys[1].sum(i<<16, i)>>40 {
			same++
		}
	}
	if x := chiSquare(shards); x > chi63 {
		t.Errorf("chi-square of shards is %.1f", x)
	}
	if x := chiSquare(slots); x > chi63 {
		t.Errorf("chi-square of slots is %.1f", x)
	}
	if same > 3 {
		t.Errorf("%d hashes of 64000 are alike under two keys", same)
	}
}

// A session is one cache line, so that a million of them and their indexes
// stay within 128 bytes each.
func TestRecordSizes(t *testing.T) {
	if n := unsafe.Sizeof(session{}); n != 64 {
		t.Errorf("a session takes %d bytes, want 64", n)
	}
	if n := unsafe.Sizeof(held{}); n != 16 {
		t.Errorf("a hold takes %d bytes, want 16", n)
	}
}
