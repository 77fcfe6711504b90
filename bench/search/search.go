// Package search finds the highest rate that a gateway carries. It only decides what
// to try next: the trying, and the clock, are the caller's.
package search

import (
	"errors"
	"math"
	"time"
)

// Outcome is what came of a rate that was tried.
type Outcome interface {
	// Passes says whether the rate could be held for ever: what buffers take on does not count.
	Passes() bool
	// Starved says of a trial that does not pass that the gateway had time left and lost
	// nothing: the source could do no more.
	Starved() bool
}

// Range is where a rate is looked for.
type Range struct {
	// Least and Most are rates per second.
	Least, Most float64
	// Tries is how many rates are tried, Hold for how long each.
	Tries int
	Hold  time.Duration
}

// Steadily is how much longer than tries the rate is held that is reported.
const Steadily = 3

// ErrNone says that not even the least rate passed.
var ErrNone = errors.New("packets are lost at any rate")

// Highest finds the highest rate that passes, by halves of its logarithm, and holds
// it for longer, or the next below that passes then. bound says that the source could do no
// more, rather than the gateway: that it was what failed last, or that nothing failed up to
// the end of the range. An error of try ends it; the last trial is returned with it.
func Highest[T Outcome](r Range, try func(rate float64, hold time.Duration) (T, error)) (best T, bound bool, err error) {
	low, high := math.Log(r.Least), math.Log(r.Most)
	bound = true
	for range r.Tries {
		middle := (low + high) / 2
		t, err := try(math.Exp(middle), r.Hold)
		if err != nil {
			return t, false, err
		}
		if t.Passes() {
			low = middle
		} else {
			high, bound = middle, t.Starved()
		}
	}
	for rate := math.Exp(low); rate > r.Least/2; rate *= 0.95 {
		if best, err = try(rate, Steadily*r.Hold); err != nil || best.Passes() {
			return best, bound, err
		}
		bound = best.Starved()
	}
	return best, false, ErrNone
}
