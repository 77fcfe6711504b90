package trial

import (
	"fmt"
	"strings"

	"github.com/sallyport-net/sallyport/bench/machine"
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

// Amid has the limit say that others used the machine while it was looked for, and how (noise): what
// kept the rate from passing need not be the gateway then. Without noise it stays as it is, and so
// does one that is none, or that is a gateway which answers wrongly or not at all.
func (l *Limit) Amid(noise machine.Noise) {
	why := noise.Why()
	if len(why) == 0 || l.By == search.LimitNone || l.By == search.LimitFailures {
		return
	}
	l.By = search.LimitMachine
	l.Why += "; " + strings.Join(why, "; ")
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
	case search.LimitMachine:
		return "the machine was busy"
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
	case search.LimitMachine:
		return "the machine was busy with other things"
	case search.LimitNone:
		return "none was found"
	}
	return string(l.By)
}
