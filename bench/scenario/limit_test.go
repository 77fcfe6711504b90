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
	busy := carried{asked: 283_000, Datagrams: search.Datagrams{Reached: 1, Lost: 0.004, Late: 0.004, Busy: 0.97}}
	others := noise{Disturbed: 0.6}
	for _, c := range []struct {
		found      search.Found[carried]
		noise      noise
		busy       float64 // at the peak, in percent
		by         search.Limit
		want, mark string
	}{
		{search.Found[carried]{Over: &over}, noise{}, 70, search.LimitLoss,
			"LIMIT: peak: loss: at 283,000/s 0.40 % of the packets were lost on their way; the gateway's core was 72 % in use", ""},
		{search.Found[carried]{Over: &held, Bound: true}, noise{}, 70, search.LimitSource,
			"LIMIT: peak: the source was held up: at 283,000/s 90.00 % of the rate was all that was sent; the gateway's core was 72 % in use",
			"the source could do no more: the gateway's own limit is higher"},
		{search.Found[carried]{Over: &full, Bound: true}, noise{}, 70, search.LimitFar,
			"LIMIT: peak: the far side or the harness: at 283,000/s 1.00 % of the packets were lost by full sockets of who takes them in; the gateway's core was 72 % in use",
			"sockets of the far side or the harness were full: the gateway's own limit is higher"},
		{search.Found[carried]{Over: &held, Bound: true}, noise{}, 95, search.LimitSource,
			"LIMIT: peak: the source was held up: at 283,000/s 90.00 % of the rate was all that was sent; the gateway's core was 72 % in use", ""},
		{search.Found[carried]{Over: &busy}, noise{}, 96, search.LimitCore,
			"LIMIT: peak: the gateway's core: at 283,000/s 0.40 % of the packets were lost on their way; the gateway's core was 97 % in use", ""},
		{search.Found[carried]{Over: &busy}, others, 96, search.LimitMachine,
			"LIMIT: peak: the machine was busy with other things: at 283,000/s 0.40 % of the packets were lost on their way; the gateway's core was 97 % in use; core 0 was 60.0 % in use before the load, more than 5 %", ""},
		{search.Found[carried]{Over: &held, Bound: true}, others, 70, search.LimitMachine,
			"LIMIT: peak: the machine was busy with other things: at 283,000/s 90.00 % of the rate was all that was sent; the gateway's core was 72 % in use; core 0 was 60.0 % in use before the load, more than 5 %",
			"the machine was busy: the gateway's own limit is higher"},
		{search.Found[carried]{Bound: true}, noise{}, 70, search.LimitNone, "LIMIT: peak: none was found: all rates passed that were tried",
			"the search ended there: the gateway's own limit is higher"},
	} {
		s := &step{Name: "peak", Noise: c.noise, Figures: values{}}
		limited(s, c.found)
		s.Figures[figureBusy] = c.busy // after the search, as that is when it is known
		s.bounded()
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
