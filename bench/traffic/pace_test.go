package traffic

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whoever comes whenever: a packet never leaves before it is due, none twice, and those
// that were left out were overdue by more than the backlog.
func TestPace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(1, 1e6).Draw(t, "rate")
		total := rapid.IntRange(1, 2000).Draw(t, "packets")
		p := pace{rate: rate, from: time.Second, total: uint64(total)}
		p.backlog = uint64(rapid.IntRange(1, 300).Draw(t, "backlog"))
		var now time.Duration
		next := uint64(0)
		for range 10_000 {
			first, n, wait := p.take(now, rapid.IntRange(1, 128).Draw(t, "limit"))
			if first < next {
				t.Fatalf("packet %d again", first)
			}
			if n > 0 {
				if last := p.due(first + uint64(n) - 1); last > now {
					t.Fatalf("%v before it is due", last-now)
				}
				if first > next && p.passed(now)-first > p.backlog {
					t.Fatalf("%d wait, of whom at most %d should", p.passed(now)-first, p.backlog)
				}
			}
			if next = first + uint64(n); p.finished() {
				break
			}
			if n > 0 && rapid.Bool().Draw(t, "at once") {
				continue
			}
			held := time.Duration(0)
			if rapid.IntRange(0, 9).Draw(t, "held up") == 0 {
				held = time.Duration(rapid.IntRange(0, int(time.Second)).Draw(t, "for"))
			}
			now += wait + held
		}
		if !p.finished() || p.taken+p.skipped != p.total {
			t.Fatalf("not at an end: %d sent and %d left out of %d", p.taken, p.skipped, p.total)
		}
	})
}

// Whoever comes when told to sends all, and waits no longer than needed.
func TestPaceOnTime(t *testing.T) {
	for _, rate := range []float64{1, 3, 1000, 77_777, 1e6} {
		p := pace{rate: rate, total: uint64(2 * rate), backlog: 1}
		now, waits := time.Duration(0), 0
		for !p.finished() {
			_, n, wait := p.take(now, 1)
			if n == 0 {
				now += wait
				waits++
			}
		}
		if p.skipped != 0 || p.taken != uint64(2*rate) || now > 2*time.Second || uint64(waits) >= p.taken {
			t.Errorf("at %v/s: %d sent, %d left out, in %v with %d waits", rate, p.taken, p.skipped, now, waits)
		}
	}
}
