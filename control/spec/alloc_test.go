package spec

import (
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// capacity is how many addresses can be in use at once.
func (a *Allocator) capacity() int { return int(a.size - firstOffset) }

func TestAllocatorGoesUpwards(t *testing.T) {
	a, err := NewAllocator(prefix("10.20.0.0/16"))
	if err != nil {
		t.Fatal(err)
	}
	if a.capacity() != 65533 {
		t.Errorf("capacity %d", a.capacity())
	}
	want := addr("10.20.0.2")
	for range a.capacity() {
		got, err := a.Allocate()
		if err != nil || got != want {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
		want = want.Next()
	}
	if want != addr("10.20.255.255") {
		t.Errorf("ended before %v: the broadcast address must stay unused", want)
	}
	if _, err := a.Allocate(); !errors.Is(err, ErrExhausted) {
		t.Errorf("full: got %v", err)
	}
	a.Free(addr("10.20.7.7"))
	a.Free(addr("10.20.0.2"))
	for _, want := range []string{"10.20.7.7", "10.20.0.2"} { // the longest free one first
		if got, err := a.Allocate(); err != nil || got != addr(want) {
			t.Errorf("got %v, %v, want %s", got, err, want)
		}
	}
}

func TestAllocatorRefuses(t *testing.T) {
	if _, err := NewAllocator(prefix("10.0.0.0/8")); err == nil {
		t.Error("a /8 passed")
	}
	a, err := NewAllocator(prefix("10.20.30.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"10.20.30.0", "10.20.30.1", "10.20.30.255", "10.20.29.255", "10.20.31.2", "0.0.0.0", "255.255.255.255", "fd00::2", "::ffff:10.20.30.4"} {
		if a.Take(addr(s)) == nil || a.Free(addr(s)) {
			t.Errorf("%s passed", s)
		}
	}
	if a.Take(netip.Addr{}) == nil {
		t.Error("no address passed")
	}
	if err := a.Take(addr("10.20.30.9")); err != nil || a.Take(addr("10.20.30.9")) == nil {
		t.Errorf("taken twice (%v)", err)
	}
	if !a.Free(addr("10.20.30.9")) || a.Free(addr("10.20.30.9")) || a.InUse() != 0 {
		t.Error("freed twice")
	}
}

// The allocator against a set and a search: nothing is handed out twice, nothing
// reserved, and it is full exactly when everything is in use.
func TestAllocatorAgainstModel(t *testing.T) {
	cidr := prefix("192.168.7.0/24")
	rapid.Check(t, func(t *rapid.T) {
		a, err := NewAllocator(cidr)
		if err != nil {
			t.Fatal(err)
		}
		used := make(map[netip.Addr]bool)
		some := rapid.Custom(func(t *rapid.T) netip.Addr {
			return netip.AddrFrom4([4]byte{192, 168, 7, rapid.Byte().Draw(t, "last byte")})
		})
		allowed := func(x netip.Addr) bool { b := x.As4()[3]; return b >= 2 && b != 255 }
		allocate := func(t *rapid.T) {
			got, err := a.Allocate()
			if full := len(used) == a.capacity(); full != (err != nil) {
				t.Fatalf("full: %v, error: %v", full, err)
			}
			if err != nil {
				return
			}
			if used[got] || !allowed(got) || !cidr.Contains(got) {
				t.Fatalf("%v handed out", got)
			}
			used[got] = true
		}
		t.Repeat(map[string]func(*rapid.T){
			"allocate": allocate,
			"many": func(t *rapid.T) {
				for range rapid.IntRange(1, 200).Draw(t, "n") {
					allocate(t)
				}
			},
			"take": func(t *rapid.T) {
				x := some.Draw(t, "address")
				if err := a.Take(x); (err == nil) != (allowed(x) && !used[x]) {
					t.Fatalf("take %v: %v", x, err)
				} else if err == nil {
					used[x] = true
				}
			},
			"free": func(t *rapid.T) {
				x := some.Draw(t, "address")
				if a.Free(x) != used[x] {
					t.Fatalf("free %v, in use: %v", x, used[x])
				}
				delete(used, x)
			},
			"": func(t *rapid.T) {
				if a.InUse() != len(used) {
					t.Fatalf("%d in use, want %d", a.InUse(), len(used))
				}
			},
		})
	})
}

// What was freed comes back in the order in which it was freed.
func TestAllocatorIsFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, err := NewAllocator(prefix("192.168.7.0/24"))
		if err != nil {
			t.Fatal(err)
		}
		for range a.capacity() {
			if _, err := a.Allocate(); err != nil {
				t.Fatal(err)
			}
		}
		order := rapid.SliceOfNDistinct(rapid.IntRange(2, 254), 1, 253, rapid.ID).Draw(t, "freed")
		for _, b := range order {
			a.Free(netip.AddrFrom4([4]byte{192, 168, 7, byte(b)}))
		}
		skip := rapid.IntRange(0, len(order)-1).Draw(t, "taken")
		if err := a.Take(netip.AddrFrom4([4]byte{192, 168, 7, byte(order[skip])})); err != nil {
			t.Fatal(err)
		}
		for i, b := range order {
			if i == skip {
				continue
			}
			if got, err := a.Allocate(); err != nil || got.As4()[3] != byte(b) {
				t.Fatalf("got %v, %v, want .%d", got, err, b)
			}
		}
	})
}

// Of every part of a network that workers with the same number of sandboxes make,
// each address of the pair gets its half, to within 2 % of a large network and a
// few addresses of a small one.
func TestEgressIndexIsBalanced(t *testing.T) {
	for _, cidr := range []string{"10.20.0.0/16", "172.16.5.0/24", "192.168.0.0/20", "10.255.255.0/24"} {
		for _, stride := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 32} {
			var count [2]int
			p := prefix(cidr)
			i := 0
			for a := p.Addr(); p.Contains(a); a = a.Next() {
				if i++; i%stride == 0 {
					count[EgressIndex(a)]++
				}
			}
			n := count[0] + count[1]
			if diff := max(count[0], count[1]) - n/2; diff > 3+n/50 {
				t.Errorf("%s, every %d: %v", cidr, stride, count)
			}
		}
	}
}

// U-2: the same address leaves from the same IP in every version: flows must not move by an update.
func TestEgressIndexIsStable(t *testing.T) {
	for a, want := range map[string]int{"10.20.0.1": 0, "10.20.0.2": 1, "10.20.0.3": 0, "10.20.255.254": 1, "172.16.5.7": 1, "192.168.1.77": 0} {
		if got := EgressIndex(addr(a)); got != want {
			t.Errorf("%s leaves from IP %d, was %d", a, got, want)
		}
	}
}

// U-2, C-2: every CIDR that a network may have is halved, to within 1 % and two addresses.
func TestEgressIndexIsUniform(t *testing.T) {
	for bits := 16; bits <= 24; bits++ {
		for _, start := range []string{"10.0.0.0", "10.117.0.0", "172.31.0.0", "192.168.0.0"} {
			p := netip.PrefixFrom(addr(start), bits)
			var count [2]int
			for a := p.Addr(); p.Contains(a); a = a.Next() {
				count[EgressIndex(a)]++
			}
			if diff := max(count[0], count[1]) - min(count[0], count[1]); diff > 4+(count[0]+count[1])/50 {
				t.Errorf("%v: %v", p, count)
			}
		}
	}
}

func BenchmarkAllocator(b *testing.B) {
	a, err := NewAllocator(prefix("10.20.0.0/16"))
	if err != nil {
		b.Fatal(err)
	}
	for range a.capacity() {
		if _, err := a.Allocate(); err != nil {
			b.Fatal(err)
		}
	}
	x := addr("10.20.99.99")
	for b.Loop() {
		a.Free(x)
		if x, err = a.Allocate(); err != nil {
			b.Fatal(err)
		}
	}
}
