package schedule

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whoever comes whenever: nothing is taken before it is due, nothing twice, those that were left
// out were overdue by more than the backlog, and nothing that is due is refused.
func TestSchedule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Schedule{
			Rate: rapid.Float64Range(1, 1e6).Draw(t, "rate"), From: time.Second,
			Total:   uint64(rapid.IntRange(1, 2000).Draw(t, "total")),
			Backlog: uint64(rapid.IntRange(1, 300).Draw(t, "backlog")),
		}
		var now time.Duration
		next := uint64(0)
		for range 10_000 {
			first, n := s.Take(now, rapid.IntRange(1, 128).Draw(t, "limit"))
			passed := s.Passed(now)
			switch {
			case first < next:
				t.Fatalf("%d again", first)
			case passed > 0 && s.Due(passed-1) > now, passed < s.Total && s.Due(passed) <= now:
				t.Fatalf("%d have been due by %v", passed, now)
			case n > 0 && s.Due(first+uint64(n)-1) > now:
				t.Fatalf("%v before it is due", s.Due(first+uint64(n)-1)-now)
			case first > next && passed-first > s.Backlog:
				t.Fatalf("%d wait, of whom at most %d should", passed-first, s.Backlog)
			case first > next && passed-next <= s.Backlog:
				t.Fatalf("%d were left out of %d, and %d may wait", first-next, passed-next, s.Backlog)
			case n == 0 && !s.Finished() && s.Next() <= now:
				t.Fatalf("nothing at %v, and one was due at %v", now, s.Next())
			}
			if next = first + uint64(n); s.Finished() {
				break
			}
			if n > 0 && rapid.Bool().Draw(t, "at once") {
				continue
			}
			now = max(now, s.Next())
			if rapid.IntRange(0, 9).Draw(t, "held up") == 0 {
				now += time.Duration(rapid.IntRange(0, int(time.Second)).Draw(t, "for"))
			}
			if rapid.IntRange(0, 49).Draw(t, "enough") == 0 {
				was := s.taken + s.skipped
				if n := s.Leave(); n != s.Total-was {
					t.Fatalf("%d are left out of %d after %d", n, s.Total, was)
				}
				break
			}
		}
		if _, n := s.Take(now, 1); n != 0 || !s.Finished() || s.taken+s.skipped != s.Total || s.Taken() != s.taken {
			t.Fatalf("not at an end: %d taken and %d left out of %d", s.taken, s.skipped, s.Total)
		}
	})
}

// Whoever comes when told to takes all, in order and none late.
func TestOnTime(t *testing.T) {
	for _, rate := range []float64{1, 3, 1000, 77_777, 1e6} {
		s := Schedule{Rate: rate, Total: uint64(2 * rate), Backlog: 1}
		now, waits := time.Duration(0), 0
		for !s.Finished() {
			if _, n := s.Take(now, 1); n == 0 {
				now = s.Next()
				waits++
			}
		}
		if s.skipped != 0 || s.Taken() != uint64(2*rate) || now > 2*time.Second || uint64(waits) >= s.Taken() {
			t.Errorf("at %v/s: %d taken, %d left out, in %v with %d waits", rate, s.Taken(), s.skipped, now, waits)
		}
	}
}

// What is due at the end of a time is not in it.
func TestCount(t *testing.T) {
	for _, c := range []struct {
		rate float64
		d    time.Duration
		want uint64
	}{
		{1000, time.Second, 1000}, {333, 3 * time.Second, 999}, {10, 100 * time.Millisecond, 1}, {10, 101 * time.Millisecond, 2},
		{1, 1500 * time.Millisecond, 2}, {3, time.Second, 3}, {0.1, time.Second, 1}, {0, time.Second, 0}, {5, 0, 0}, {1e6, 10 * time.Minute, 6e8},
	} {
		if n := Count(c.rate, c.d); n != c.want {
			t.Errorf("at %v/s in %v: %d, want %d", c.rate, c.d, n, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(0.01, 1e7).Draw(t, "rate")
		d := time.Duration(rapid.Int64Range(1, int64(10*time.Minute)).Draw(t, "for"))
		s := Schedule{Rate: rate}
		if n := Count(rate, d); n == 0 || s.Due(n) < d || s.Due(n-1) >= d {
			t.Fatalf("%d: the last is due at %v, the next at %v", n, s.Due(n-1), s.Due(n))
		}
	})
}

// The packet path asks for each batch.
func TestNoAllocs(t *testing.T) {
	s := Schedule{Rate: 1e6, Total: math.MaxUint64, Backlog: 64}
	now := time.Duration(0)
	if n := testing.AllocsPerRun(100, func() {
		now += time.Millisecond
		s.Take(now, 128)
		now = max(now, s.Next())
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
