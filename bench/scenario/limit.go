package scenario

import (
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/trial"
)

// limited notes why a search found no higher rate. A core that is full where the source ends is no
// reason to expect more of the gateway.
func limited[T trial.Blamed](s *step, f search.Found[T]) {
	s.Limit = trial.LimitOf(f)
	if f.Bound && s.Figures[figureBusy] < 100*full {
		s.mark("%s: the gateway's own limit is higher", s.Limit.Bound())
	}
}
