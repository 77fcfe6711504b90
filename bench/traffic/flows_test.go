package traffic

import (
	"testing"

	"pgregory.net/rapid"
)

// Whatever the shape: each turn has one packet of each flow, no two flows have the same
// endpoints, the sequences of a number are counted without holes or steps back, and number
// and sequence tell the flow.
func TestFlows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sandboxes [][]uint32
		address, all := uint32(10<<24), 0
		for range rapid.IntRange(1, 5).Draw(t, "ends") {
			var s []uint32
			for range rapid.IntRange(1, 40).Draw(t, "sandboxes") {
				s = append(s, address)
				address++
			}
			sandboxes, all = append(sandboxes, s), all+len(s)
		}
		remotes := []remote{{1, 1}, {1, 2}, {2, 1}}[:rapid.IntRange(1, 3).Draw(t, "remotes")]
		flows := rapid.IntRange(1, all*len(remotes)*5).Draw(t, "flows")
		numbers := rapid.IntRange(all, 1000).Draw(t, "numbers")

		sets := spread(flows, numbers, sandboxes, remotes)
		seen := make(map[endpoints]bool, flows)
		numbered := make(map[uint16]int)
		for i := range sets {
			f := &sets[i]
			if f.count == 0 {
				continue
			}
			c := newCursor(f)
			next := make([]uint64, f.wires)
			last := -1
			for turn := range 3 {
				visited := make([]bool, f.count)
				for range f.count {
					v := c.next()
					if visited[v.flow] || v.flow == last && f.count > 1 {
						t.Fatalf("turn %d: flow %d again, after %d", turn, v.flow, last)
					}
					visited[v.flow], last = true, v.flow
					wire := int(v.number) - f.wireFirst
					if v.sequence != next[wire] {
						t.Fatalf("number %d has sequence %d, want %d", v.number, v.sequence, next[wire])
					}
					next[wire]++
					if flow, ok := f.find(v.number, v.sequence); !ok || flow != v.flow {
						t.Fatalf("number %d, sequence %d mean flow %d, want %d", v.number, v.sequence, flow, v.flow)
					}
					if turn == 0 {
						e := f.endpoints(v.flow)
						if seen[e] || e.port < firstPort {
							t.Fatalf("%+v are the endpoints of two flows, or have a low port", e)
						}
						seen[e] = true
						if by, ok := numbered[v.number]; ok && by != i {
							t.Fatalf("ends %d and %d have number %d", by, i, v.number)
						}
						numbered[v.number] = i
					}
				}
			}
			if _, ok := f.find(uint16(f.wireFirst+f.wires), 0); ok {
				t.Fatalf("number %d is none of end %d's", f.wireFirst+f.wires, i)
			}
		}
		if len(seen) != flows {
			t.Fatalf("%d flows, want %d", len(seen), flows)
		}
	})
}
