package failover

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the timelines in testdata anew")

// TestTimelines tells whole stories, and compares each change of a state with
// the file of the story's name.
func TestTimelines(t *testing.T) {
	cfg := Config{Hold: 5 * time.Second, HoldJitter: 2 * time.Second}
	for _, tt := range []struct {
		name string
		tell func(w *world, p [3]PathID, say func(string))
	}{
		{"region", func(w *world, p [3]PathID, say func(string)) {
			w.run(3010 * ms)
			say("the active host is killed")
			w.cut(p[0])
			w.run(5000 * ms)
			say("its sibling is killed")
			w.cut(p[1])
			w.run(8000 * ms)
			say("the sibling comes back")
			w.mend(p[1])
			w.run(12_000 * ms)
			say("the active host comes back")
			w.mend(p[0])
			w.run(30_000 * ms)
		}},
		{"drain", func(w *world, p [3]PathID, say func(string)) {
			w.run(3050 * ms)
			say("the active host drains")
			w.links[p[0]].health = HealthDraining
			w.run(3550 * ms)
			say("the active host ends")
			w.cut(p[0])
			w.run(5000 * ms)
			say("the active host is there again")
			w.links[p[0]].health = 0
			w.mend(p[0])
			w.run(15_000 * ms)
		}},
		{"outage", func(w *world, p [3]PathID, say func(string)) {
			w.run(3050 * ms)
			say("the worker loses its network")
			for _, q := range p {
				w.cut(q)
			}
			w.run(6000 * ms)
			say("it is back, but the active host has no uplink")
			w.links[p[0]].health = HealthUplinkLost
			for _, q := range p {
				w.mend(q)
			}
			w.run(8000 * ms)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(newChecked(t, cfg, 1, 0), 1)
			var p [3]PathID
			for i := range p {
				l := steady
				l.rtt += time.Duration(i) * 10 * time.Millisecond
				p[i] = w.addPath(l)
			}
			w.setGroup(7, p[0], p[1], p[2])
			var told strings.Builder
			last, seen := "", 0
			look := func() {
				s := fmt.Sprintf("1 %-7v 2 %-7v 3 %-7v group %v on %d", w.m.Path(p[0]).State,
					w.m.Path(p[1]).State, w.m.Path(p[2]).State, w.m.Group(7).State, w.m.Group(7).Choice)
				if s != last {
					fmt.Fprintf(&told, "%8.3f  %s\n", time.Duration(w.now).Seconds(), s)
				}
				last = s
				for _, v := range w.events[seen:] {
					fmt.Fprintf(&told, "          event: %d to %d, %v, switched %v, lost %v, detected in %v\n",
						v.From, v.To, v.Reason, v.Switched, v.Lost, v.Detection)
				}
				seen = len(w.events)
			}
			for at := time.Duration(0); at < 30*time.Second; at += time.Millisecond {
				w.after(at, func(Instant) { look() })
			}
			tt.tell(w, p, func(s string) { fmt.Fprintf(&told, "-- %s\n", s) })
			compare(t, filepath.Join("testdata", tt.name+".timeline"), told.String())
		})
	}
}

func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the story is now\n%s\nand was in %s\n%s", got, file, want)
	}
}
