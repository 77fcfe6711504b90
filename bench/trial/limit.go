package trial

import (
	"fmt"

	"github.com/sallyport-net/sallyport/bench/progress"
	"github.com/sallyport-net/sallyport/bench/search"
)

// Limit is why a search found no higher rate.
type Limit struct {
	By search.Limit `json:"by"`
	// Rate is the one that did not pass, per second; 0: all passed that were tried.
	Rate float64 `json:"rate,omitempty"`
	// Why is how it showed, for people.
	Why string `json:"why"`
}

// Blamed is an outcome that says what kept its rate from passing, and by how much in a few words.
type Blamed interface {
	search.Outcome
	Blame() (by search.Limit, why string)
	// Offered is the rate, per second.
	Offered() float64
}

// LimitOf is the limit that a search found.
func LimitOf[T Blamed](f search.Found[T]) *Limit {
	if f.Over == nil {
		return &Limit{By: search.LimitNone, Why: "all rates passed that were tried"}
	}
	l := &Limit{Rate: (*f.Over).Offered()}
	l.By, l.Why = (*f.Over).Blame()
	return l
}

// String is the limit in a line.
func (l *Limit) String() string {
	if l.Rate == 0 {
		return l.title() + ": " + l.Why
	}
	return fmt.Sprintf("%s: at %s/s %s", l.title(), progress.Group(l.Rate), l.Why)
}

// Bound says where a search ended that did not come to the gateway's own limit.
func (l *Limit) Bound() string {
	switch l.By {
	case search.LimitNone:
		return "the search ended there"
	case search.LimitFar:
		return "sockets of the far side or the harness were full"
	}
	return "the source could do no more"
}

// title is what people call it.
func (l *Limit) title() string {
	switch l.By {
	case search.LimitCore:
		return "the gateway's core"
	case search.LimitSource:
		return "the source was held up"
	case search.LimitFar:
		return "the far side or the harness"
	case search.LimitNone:
		return "none was found"
	}
	return string(l.By)
}
