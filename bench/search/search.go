// Package search finds the highest rate that a gateway carries. It only decides which rates
// pass, by limits that the caller states, and what to try next: the trying, and the clock, are
// the caller's.
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
var ErrNone = errors.New("no rate passes, not even the lowest that was tried")

// Found is what a search came to.
type Found[T Outcome] struct {
	// Best came of the highest rate that passes; with an error, of the one that was tried last.
	Best T
	// Over came of the rate above it that did not pass; nil: all passed that were tried.
	Over *T
	// Bound says that the source could do no more, rather than the gateway: that it was what
	// failed last, or that nothing failed up to the end of the range.
	Bound bool
}

// Highest finds the highest rate that passes, by halves of its logarithm, and holds
// it for longer, or the next below that passes then. A rate at which the source was
// starved is tried twice. An error of try ends it; the last trial is returned with it.
func Highest[T Outcome](r Range, try func(rate float64, hold time.Duration) (T, error)) (f Found[T], err error) {
	low, high := math.Log(r.Least), math.Log(r.Most)
	f.Bound = true
	for range r.Tries {
		middle := (low + high) / 2
		t, err := try(math.Exp(middle), r.Hold)
		if err == nil && !t.Passes() && t.Starved() { // a busy machine holds a source up, once
			t, err = try(math.Exp(middle), r.Hold)
		}
		if err != nil {
			return Found[T]{Best: t}, err
		}
		if t.Passes() {
			low = middle
		} else {
			high = middle
			f.Over, f.Bound = &t, t.Starved()
		}
	}
	for rate := math.Exp(low); rate > r.Least/2; rate *= 0.95 {
		t, err := try(rate, Steadily*r.Hold)
		f.Best = t
		if err != nil || t.Passes() {
			return f, err
		}
		f.Over, f.Bound = &t, t.Starved()
	}
	f.Bound = false
	return f, ErrNone
}
