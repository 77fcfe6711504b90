package nat

import (
	"math/rand/v2"
	"slices"
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
		shards[h%64]++ // the lowest bits choose the shard
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

// the walks of endpoints that somebody chooses without the key, all that he likes
// of ports, remotes and patterns, are not longer than those of random ones.
func TestA23ProbeLengths(t *testing.T) {
	const n = 200_000
	key := hashKey{0x0123456789abcdef, 0xfedcba9876543210}
	dice := rand.New(rand.NewPCG(5, 6))
	random := probeLength(n, func(int) uint64 { return dice.Uint64() })
	at := func(port, remote uint64, rp uint64) uint64 { return key.sum(port<<48|remote<<16|rp, 6) }
	for name, hash := range map[string]func(i int) uint64{
		"one remote, all ports":     func(i int) uint64 { return at(uint64(i)&0xffff, 0xcb007101, uint64(i)>>16) },
		"one port, many remotes":    func(i int) uint64 { return at(4000, 0xcb000000+uint64(i), 443) },
		"remotes in steps of 2^16":  func(i int) uint64 { return at(uint64(i)>>14, uint64(i)<<18&0xffffffff, 443) },
		"few bits differ":           func(i int) uint64 { return at(1<<(i&15), 1<<(i>>4&31), uint64(i)>>9) },
		"both sides alike":          func(i int) uint64 { return at(uint64(i)&0xffff, uint64(i)*0x10001&0xffffffff, uint64(i)&0xffff) },
		"collide under another key": func(i int) uint64 { return at(collider(i)) },
	} {
		if got := probeLength(n, hash); float64(got) > 1.5*float64(random) {
			t.Errorf("%s: 99 of 100 walks take %d steps or fewer, of random ones %d", name, got, random)
		}
	}
}

// collider finds endpoints that fall into one slot of 64 under a key that is not the table's.
func collider(i int) (port, remote, remotePort uint64) {
	other := hashKey{1, 2}
	for k := uint64(0); ; k++ {
		if w := uint64(i)<<20 | k; other.sum(w, 6)>>32&63 == 7 {
			return w >> 48, w >> 16 & 0xffffffff, w & 0xffff
		}
	}
}

// probeLength puts n hashes into an index and returns how many slots 99 of 100
// lookups visit at most.
func probeLength(n int, hash func(int) uint64) int {
	x := index{memory: heap{}}
	hashes := make([]uint64, n)
	for i := range hashes {
		hashes[i] = hash(i)
		x.insert(hashes[i], uint32(i+1))
	}
	lengths := make([]int, n)
	for i, h := range hashes {
		slots := x.shards[h%shardCount].slots
		at := int(h >> 32)
		for ; uint32(slots[at&(len(slots)-1)]) != uint32(i+1); at++ {
			lengths[i]++
		}
	}
	slices.Sort(lengths)
	return lengths[n*99/100] + 1
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
