package scenario

import (
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/bench/search"
)

// A peak says what kept the next rate from passing, and that it was not the gateway's only where that
// is so. It is no reason to doubt the figures.
func TestLimited(t *testing.T) {
	over := carried{asked: 283_000, Datagrams: search.Datagrams{Reached: 1, Lost: 0.004, Late: 0.004, Busy: 0.72}}
	held := carried{asked: 283_000, Datagrams: search.Datagrams{Reached: 0.9, Busy: 0.72}}
	full := carried{asked: 283_000, Datagrams: search.Datagrams{Reached: 1, Lost: 0.01, Late: 0.01, Dropped: 0.01, Busy: 0.72}}
	for _, c := range []struct {
		found      search.Found[carried]
		by         search.Limit
		want, mark string
	}{
		{search.Found[carried]{Over: &over}, search.LimitLoss,
			"LIMIT: peak: loss: at 283,000/s 0.40 % of the packets were lost on their way; the gateway's core was 72 % in use", ""},
		{search.Found[carried]{Over: &held, Bound: true}, search.LimitSource,
			"LIMIT: peak: the source was held up: at 283,000/s 90.00 % of the rate was all that was sent; the gateway's core was 72 % in use",
			"the source could do no more: the gateway's own limit is higher"},
		{search.Found[carried]{Over: &full, Bound: true}, search.LimitFar,
			"LIMIT: peak: the far side or the harness: at 283,000/s 1.00 % of the packets were lost by full sockets of who takes them in; the gateway's core was 72 % in use",
			"sockets of the far side or the harness were full: the gateway's own limit is higher"},
		{search.Found[carried]{Bound: true}, search.LimitNone, "LIMIT: peak: none was found: all rates passed that were tried",
			"the search ended there: the gateway's own limit is higher"},
	} {
		s := &step{Name: "peak"}
		limited(s, c.found)
		o := &outcome{Steps: []*step{s}}
		if notes := o.notes(); s.Limit.By != c.by || notes[len(notes)-1] != c.want || strings.Join(s.Marks, "") != c.mark {
			t.Errorf("%s, %q", s.Limit.By, notes)
		}
		if verdict, _ := o.verdict(); (verdict == "good") != (c.mark == "") {
			t.Errorf("%s: %s", c.by, verdict)
		}
		if s.breakOff(true); s.Limit != nil {
			t.Errorf("interrupted: %v", s.Limit)
		}
	}
}
