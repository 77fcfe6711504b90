package gateway

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sallyport-net/sallyport/control/spec"
)

// entry is an attachment in short: id, worker, and the last bytes of its addresses.
func entry(id, key string, inner, worker byte) spec.Attachment {
	a := spec.Attachment{ID: id, Network: "net_a", PublicKey: key, Inner: netip.AddrFrom4([4]byte{10, 20, 0, inner})}
	if worker > 0 {
		a.Worker = netip.AddrFrom4([4]byte{10, 20, 0, worker})
	}
	return a
}

func full(store string, attached ...spec.Attachment) spec.Update {
	return spec.Update{Store: store, Revision: 1, Full: true, Attached: attached}
}

func more(store string, attached []spec.Attachment, detached ...string) spec.Update {
	return spec.Update{Store: store, Revision: 2, Attached: attached, Detached: detached}
}

// wantRoster compares who is known, and who of them is an orphan.
func wantRoster(t *testing.T, r *roster, attached, orphans string) {
	t.Helper()
	if got := fmt.Sprint(slices.Sorted(maps.Keys(r.attached))); got != "["+attached+"]" {
		t.Errorf("attached %s, want [%s]", got, attached)
	}
	if got := fmt.Sprint(slices.Sorted(maps.Keys(r.orphans))); got != "["+orphans+"]" {
		t.Errorf("orphans %s, want [%s]", got, orphans)
	}
}

// A store is exact about its own; whom another one does not name stays for the grace.
func TestRosterAdopts(t *testing.T) {
	now := time.Unix(1000, 0)
	a, b, c := entry("a", "k1", 1, 101), entry("b", "k1", 2, 101), entry("c", "k2", 3, 102)
	r := newRoster()
	r.update(full("one", a, b, c), now)
	r.update(full("one", a, b), now)
	wantRoster(t, &r, "a b", "") // the same store
	r.update(full("one", a, b, c), now)

	r.update(full("two", b), now)
	wantRoster(t, &r, "a b c", "a c")
	now = now.Add(adoptionGrace - time.Second)
	r.update(full("two", b), now) // once more: nothing has changed for those who wait
	wantRoster(t, &r, "a b c", "a c")
	if gone := r.expire(now); gone != nil {
		t.Errorf("%v went before the grace was over", gone)
	}
	r.update(more("two", []spec.Attachment{a}), now)
	wantRoster(t, &r, "a b c", "c")
	if gone := r.expire(now.Add(time.Second)); !slices.Equal(gone, []string{"c"}) {
		t.Errorf("%v went at the end of the grace, want c", gone)
	}
	wantRoster(t, &r, "a b", "")
}

// The grace does not run while the control plane is away, and begins anew with a
// third store.
func TestRosterHolds(t *testing.T) {
	now := time.Unix(1000, 0)
	r := newRoster()
	r.update(full("one", entry("a", "k1", 1, 0), entry("b", "k2", 2, 0)), now)
	r.update(full("two"), now)
	now = now.Add(adoptionGrace - 1)
	r.hold(now)
	now = now.Add(adoptionGrace - 1)
	r.update(full("three", entry("b", "k2", 2, 0)), now)
	if gone := r.expire(now.Add(adoptionGrace - 1)); gone != nil {
		t.Errorf("%v went before the grace was over", gone)
	}
	wantRoster(t, &r, "a b", "a")
	if gone := r.expire(now.Add(adoptionGrace)); !slices.Equal(gone, []string{"a"}) {
		t.Errorf("%v went, want a", gone)
	}
}

// Whom another store calls detached does not wait for the grace, in whichever update
// it says so.
func TestRosterDetaches(t *testing.T) {
	now := time.Unix(1000, 0)
	a, b, c := entry("a", "k1", 1, 101), entry("b", "k1", 2, 101), entry("c", "k2", 3, 102)
	r := newRoster()
	r.update(full("one", a, b, c), now)
	u := full("two", b)
	u.Detached = []string{"a", "never known"}
	r.update(u, now)
	wantRoster(t, &r, "b c", "c")
	u = full("two", b)
	u.Detached = []string{"a", "c"}
	r.update(u, now)
	wantRoster(t, &r, "b", "")

	r.update(full("three", a), now)
	if _, gone := r.update(more("three", nil, "b"), now); !slices.Equal(gone, []string{"b"}) {
		t.Errorf("%v went, want b", gone)
	}
	wantRoster(t, &r, "a", "")
}

// An address goes to whom the new store gives it, at once; a worker's own address
// is shared by its sandboxes.
func TestRosterDisplaces(t *testing.T) {
	for name, c := range map[string]struct {
		next              spec.Attachment
		attached, orphans string
		gone              []string
	}{
		"another address":                     {entry("x", "k9", 9, 109), "a b c x", "a b c", nil},
		"an inner address":                    {entry("x", "k9", 2, 109), "a c x", "a c", []string{"b"}},
		"an inner address, the same worker":   {entry("x", "k1", 2, 101), "a c x", "a c", []string{"b"}},
		"a worker's address, as an inner":     {entry("x", "k9", 102, 0), "a b x", "a b", []string{"c"}},
		"a worker's address, of another":      {entry("x", "k9", 9, 101), "c x", "c", []string{"a", "b"}},
		"an inner address, for a worker":      {entry("x", "k9", 9, 3), "a b x", "a b", []string{"c"}},
		"the same worker, one sandbox more":   {entry("x", "k1", 9, 101), "a b c x", "a b c", nil},
		"the same sandbox, another address":   {entry("a", "k1", 9, 101), "a b c", "b c", nil},
		"the same sandbox, another's address": {entry("a", "k1", 2, 101), "a c", "c", []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, way := range []string{"full", "more"} {
				r := newRoster()
				r.update(full("one", entry("a", "k1", 1, 101), entry("b", "k1", 2, 101), entry("c", "k2", 3, 102)), time.Unix(0, 0))
				var gone []string
				if way == "full" {
					r.update(full("two", c.next), time.Unix(0, 0))
				} else {
					r.update(full("two"), time.Unix(0, 0))
					_, gone = r.update(more("two", []spec.Attachment{c.next}), time.Unix(0, 0))
					slices.Sort(gone)
					if !slices.Equal(gone, c.gone) {
						t.Errorf("%v have to go, want %v", gone, c.gone)
					}
				}
				wantRoster(t, &r, c.attached, c.orphans)
			}
		})
	}
	r := newRoster()
	elsewhere := entry("x", "k9", 1, 0)
	elsewhere.Network = "net_b" // where the same address is another
	r.update(full("one", entry("a", "k1", 1, 0)), time.Unix(0, 0))
	r.update(full("two", elsewhere), time.Unix(0, 0))
	wantRoster(t, &r, "a x", "a")
	if _, gone := r.update(more("two", nil, "a", "unknown"), time.Unix(0, 0)); !slices.Equal(gone, []string{"a", "unknown"}) {
		t.Errorf("%v have to go", gone)
	}
	wantRoster(t, &r, "x", "")
}

// Whatever the updates: nobody has two owners, what the store last said is there,
// and after the grace nothing else is.
func TestRosterAgreesWithItsStore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, now := newRoster(), time.Unix(1000, 0)
		said := map[string]spec.Attachment{} // by the store
		store := 0
		free := func(a spec.Attachment) bool { // as a store gives addresses
			for id, o := range said {
				if id != a.ID && (o.Inner == a.Inner || o.Worker == a.Inner || o.Inner == a.Worker ||
					o.Worker == a.Worker && o.PublicKey != a.PublicKey) {
					return false
				}
			}
			return true
		}
		draw := func() (spec.Attachment, bool) {
			key := rapid.IntRange(0, 3).Draw(t, "key")
			a := entry(fmt.Sprint("id", rapid.IntRange(0, 7).Draw(t, "id")), fmt.Sprint("k", key),
				byte(rapid.IntRange(1, 8).Draw(t, "inner")), byte(rapid.IntRange(1, 12).Draw(t, "worker")))
			return a, a.Inner != a.Worker && free(a)
		}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 6).Draw(t, "seconds")) * time.Second)
			u := spec.Update{Revision: 1}
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				store++
				clear(said)
				fallthrough
			case 1:
				u.Full = true
			case 2:
				r.expire(now)
				continue
			case 3:
				for id := range said {
					u.Detached = append(u.Detached, id)
					delete(said, id)
					break
				}
			}
			if a, ok := draw(); ok {
				said[a.ID] = a
				u.Attached = append(u.Attached, a)
			}
			if u.Full {
				u.Attached = slices.Collect(maps.Values(said))
			}
			u.Store = fmt.Sprint("store", store)
			if r.store == "" || r.store != u.Store {
				u.Full, u.Attached = true, slices.Collect(maps.Values(said))
			}
			r.update(u, now)
			checkRoster(t, &r, said)
		}
		r.expire(r.until)
		if !maps.Equal(r.attached, said) || len(r.at) != 0 {
			t.Fatalf("after the grace %v, want %v; index %v", r.attached, said, r.at)
		}
	})
}

func checkRoster(t *rapid.T, r *roster, said map[string]spec.Attachment) {
	for id, a := range said {
		if r.attached[id] != a {
			t.Fatalf("%s is %+v, the store says %+v", id, r.attached[id], a)
		}
	}
	if len(r.attached) != len(said)+len(r.orphans) {
		t.Fatalf("%d attached, %d said by the store, %d orphans", len(r.attached), len(said), len(r.orphans))
	}
	for id, a := range r.attached {
		for other, b := range r.attached {
			if id != other && (a.Inner == b.Inner || a.Inner == b.Worker || a.Worker == b.Worker && a.PublicKey != b.PublicKey) {
				_, orphan := r.orphans[id]
				_, both := r.orphans[other]
				if orphan != both { // orphans among themselves are as their store had them
					t.Fatalf("%+v and %+v share an address", a, b)
				}
			}
		}
	}
}
