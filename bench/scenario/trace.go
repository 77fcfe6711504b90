package scenario

import (
	"sync"
	"time"
)

// trace is a count over time.
type trace struct {
	at     []time.Time
	counts []uint64
}

// traceSize is about how many readings a trace has, traceStep the least time between two.
const (
	traceSize = 2000
	traceStep = 10 * time.Millisecond
	// bins is about how many points a series has.
	bins = 60
)

// watch reads a count until stop is called, and tells the progress. rate is how fast it should
// grow, per second. A nil read is not watched, and its trace is empty.
func (r *runner) watch(takes time.Duration, rate float64, read func() uint64) (stop func() *trace) {
	t := &trace{}
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(max(traceStep, takes/traceSize))
		defer tick.Stop()
		for {
			now := time.Now()
			if read != nil {
				t.add(now, read())
				r.progress.Rate(t.speed(), t.lost(rate))
			}
			select {
			case <-tick.C:
			case <-quit:
				if read != nil {
					t.add(time.Now(), read())
				}
				return
			}
		}
	})
	return func() *trace {
		close(quit)
		done.Wait()
		return t
	}
}

// soon is how long a count must have grown for a loss to mean something.
const soon = 300 * time.Millisecond

// lost is about what part of a rate is missing so far; less than 0: nobody knows.
func (t *trace) lost(rate float64) float64 {
	last, begun := len(t.at)-1, t.begun()
	if begun.IsZero() || rate <= 0 || t.at[last].Sub(begun) < soon {
		return -1
	}
	return max(0, 1-float64(t.counts[last]-t.counts[0])/(rate*(t.at[last].Sub(begun)-lag).Seconds()))
}

// fresh reads a count that a load begins anew: what it was before the load is none.
func fresh(read func() uint64) func() uint64 {
	before, begun := read(), false
	return func() uint64 {
		n := read()
		if begun = begun || n != before; !begun {
			return 0
		}
		return n
	}
}

// add takes a reading. A count that falls was begun anew, at 0, after the reading before.
func (t *trace) add(now time.Time, n uint64) {
	if last := len(t.counts) - 1; last >= 0 && n < t.counts[last] {
		t.at, t.counts = append(t.at[:0], t.at[last]), append(t.counts[:0], 0)
	}
	t.at, t.counts = append(t.at, now), append(t.counts, n)
}

// speed is the rate of the last half second, per second.
func (t *trace) speed() float64 {
	last := len(t.at) - 1
	first := last
	for first > 0 && t.at[last].Sub(t.at[first]) < time.Second/2 {
		first--
	}
	d := t.at[last].Sub(t.at[first]).Seconds()
	if d <= 0 {
		return 0
	}
	return float64(t.counts[last]-t.counts[first]) / d
}

// begun is when the count began to grow; the zero time: it never did.
func (t *trace) begun() time.Time {
	for i := 1; i < len(t.at); i++ {
		if t.counts[i] > t.counts[0] {
			return t.at[i-1]
		}
	}
	return time.Time{}
}

// within is how much was counted until some time after it began.
func (t *trace) within(d time.Duration) (n uint64) {
	end := t.begun().Add(d)
	for i, at := range t.at {
		if !at.After(end) {
			n = t.counts[i] - t.counts[0]
		}
	}
	return n
}

// series are rates over time, each count being of so many units, until takes after it began.
func (t *trace) series(name, unit string, takes time.Duration, of float64) (s series) {
	s = series{Name: name, Unit: unit, Points: [][2]float64{}}
	begun := t.begun()
	if begun.IsZero() {
		return s
	}
	width := max(takes/bins, 2*traceStep)
	from := -1
	for i, at := range t.at {
		switch {
		case at.Before(begun):
		case from < 0:
			from = i
		case at.Sub(t.at[from]) >= width && at.Sub(begun) <= takes+width:
			d := at.Sub(t.at[from]).Seconds()
			s.Points = append(s.Points, [2]float64{at.Sub(begun).Seconds(), of * float64(t.counts[i]-t.counts[from]) / d})
			from = i
		}
	}
	return s
}
