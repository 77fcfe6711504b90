package scenario

import (
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/trial"
)

// limited notes why a search found no higher rate.
func limited[T trial.Blamed](s *step, f search.Found[T]) {
	s.Limit, s.bound = trial.LimitOf(f), f.Bound
}

// bounded says, when the step's noise and figures are known, that its limit is not the gateway's
// own. A core that is full where the source ends is no reason to expect more of the gateway.
func (s *step) bounded() {
	if s.Limit == nil {
		return
	}
	if s.Limit.Amid(s.Noise.machine()); s.bound && s.Figures[figureBusy] < 100*full {
		s.mark("%s: the gateway's own limit is higher", s.Limit.Bound())
	}
}
