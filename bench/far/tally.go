package far

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/bench/wire"
)

// arrival is what the sequence of a datagram says of it.
type arrival uint8

const (
	fresh     arrival = iota // the greatest of its flow so far
	reordered                // missed until now
	duplicate
	stale // below what the window remembers
)

// window remembers which of the last windowSize sequence numbers came. Its zero value
// has seen none.
type window struct {
	next uint64 // one more than the greatest that came
	seen uint64 // bit i: next-1-i came
}

const windowSize = 64

// maxSequence is the greatest that is taken; no run comes that far.
const maxSequence = 1 << 62

// note takes in a sequence number up to maxSequence. missing is how many numbers were
// left out below it, if it is fresh.
func (w *window) note(sequence uint64) (a arrival, missing uint64) {
	if sequence >= w.next {
		step := sequence + 1 - w.next
		w.seen = w.seen<<step | 1 // a shift by 64 or more leaves none
		w.next = sequence + 1
		return fresh, step - 1
	}
	age := w.next - 1 - sequence
	if age >= windowSize {
		return stale, 0
	}
	if w.seen&(1<<age) != 0 {
		return duplicate, 0
	}
	w.seen |= 1 << age
	return reordered, 0
}

// pageFlows is how many flows a page has: few flows of high numbers take little memory.
const pageFlows = 256

type page [pageFlows]window

// budget is what flows of all runs may take together.
type budget struct{ pages, joins int }

// tally is what came of one run. Its owner serialises.
type tally struct {
	budget *budget
	pages  [1 << 16 / pageFlows]*page
	report wire.Report // but for its Sources
	// sources are found by looking at each, the last one first.
	sources [wire.MaxSources]wire.Source
	known   int
	last    int
}

// data takes in a datagram of a payload of size bytes, whose sequence is one. It is
// false where there is no room for the flow; then it is not counted.
func (t *tally) data(h wire.Head, size int) bool {
	p := t.pages[h.Flow/pageFlows]
	if p == nil {
		if t.budget.pages == 0 {
			return false
		}
		t.budget.pages--
		p = &page{}
		t.pages[h.Flow/pageFlows] = p
	}
	w := &p[h.Flow%pageFlows]
	r := &t.report
	if w.next == 0 {
		r.Flows++
	}
	r.Packets++
	r.Bytes += uint64(size)
	switch a, missing := w.note(h.Sequence); a {
	case fresh:
		r.Missing += missing
	case reordered:
		r.Reordered++
		r.Missing--
	case duplicate:
		r.Duplicates++
	case stale:
		r.Stale++
	}
	return true
}

// source counts n that came from an address.
func (t *tally) source(from netip.Addr, n int) {
	if t.known == 0 || t.sources[t.last].Addr != from {
		t.last = 0
		for t.last < t.known && t.sources[t.last].Addr != from {
			t.last++
		}
		if t.last == len(t.sources) {
			t.last = 0
			t.report.Others += uint64(n)
			return
		}
		if t.last == t.known {
			t.sources[t.last].Addr = from
			t.known++
		}
	}
	t.sources[t.last].Count += uint64(n)
}

// result returns what was counted so far.
func (t *tally) result() wire.Report {
	r := t.report
	r.Sources = append([]wire.Source(nil), t.sources[:t.known]...)
	return r
}

// release gives back what the run took of the budget.
func (t *tally) release() {
	for i, p := range t.pages {
		if p != nil {
			t.pages[i] = nil
			t.budget.pages++
		}
	}
}
