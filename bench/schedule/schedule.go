// Package schedule says what is due at a moment where packets, connections or the like are due
// at a fixed rate, whatever became of those before: an open loop.
package schedule

import "time"

// Schedule is a number of things due one after another, and how far it was kept. Times are
// counted from wherever the caller's clock begins. Its zero value is finished. One caller at a
// time; nothing here allocates.
type Schedule struct {
	// Rate is how many are due per second.
	Rate float64
	// From is when the first is due.
	From time.Duration
	// Total is how many there are.
	Total uint64
	// Backlog is how many that are overdue are made up for at most. The rest is left out.
	Backlog uint64

	taken, skipped uint64
}

// Count is how many are due in a time that begins with the first and does not include its end.
func Count(rate float64, d time.Duration) uint64 {
	if rate <= 0 || d <= 0 {
		return 0
	}
	s := Schedule{Rate: rate}
	n := uint64(d.Seconds() * rate)
	for s.Due(n) < d {
		n++
	}
	for n > 0 && s.Due(n-1) >= d {
		n--
	}
	return n
}

// Due is when the one at a position is due, counted from 0.
func (s *Schedule) Due(position uint64) time.Duration {
	return s.From + time.Duration(float64(position)/s.Rate*float64(time.Second))
}

// position is the next one's.
func (s *Schedule) position() uint64 { return s.taken + s.skipped }

// Next is when the next one is due. There is none where the schedule is finished.
func (s *Schedule) Next() time.Duration { return s.Due(s.position()) }

// Finished says whether there is nothing left.
func (s *Schedule) Finished() bool { return s.position() == s.Total }

// Taken is how many were taken.
func (s *Schedule) Taken() uint64 { return s.taken }

// Passed is how many have been due by now.
func (s *Schedule) Passed(now time.Duration) uint64 {
	if now < s.From || s.Total == 0 {
		return 0
	}
	n := uint64((now-s.From).Seconds()*s.Rate) + 1
	// The same rounding as that of Due, for a caller that waited until then.
	if s.Due(n) <= now {
		n++
	} else if s.Due(n-1) > now {
		n--
	}
	return min(n, s.Total)
}

// Take takes up to limit that are due, the first of which has a position. If n is 0, none is
// before [Schedule.Next].
func (s *Schedule) Take(now time.Duration, limit int) (first uint64, n int) {
	passed := s.Passed(now)
	if waiting := passed - min(passed, s.position()); waiting > s.Backlog {
		s.skipped += waiting - s.Backlog // never made up for
	}
	first = s.position()
	if passed <= first {
		return first, 0
	}
	n = int(min(passed-first, uint64(limit)))
	s.taken += uint64(n)
	return first, n
}

// Leave leaves out all that is left, and says how many that are.
func (s *Schedule) Leave() uint64 {
	n := s.Total - s.position()
	s.skipped += n
	return n
}
