package search

import (
	"errors"
	"testing"
	"time"
)

// outcome is a trial of something that delivers at a rate, out of what was asked.
type outcome struct{ asked, sent, delivered, busy float64 }

func (o outcome) Passes() bool  { return o.delivered >= 0.999*o.sent && o.sent >= 0.97*o.asked }
func (o outcome) Starved() bool { return o.busy < 0.9 }

// A gateway and a source that each have a limit, of which the gateway's is lower when it
// has to last.
func TestHighest(t *testing.T) {
	r := Range{Least: 1000, Most: 1 << 20, Tries: 8, Hold: time.Second}
	for name, c := range map[string]struct {
		source, gateway, lasting float64 // packets per second
		bound                    bool
	}{
		"the gateway is the limit":             {500_000, 200_000, 200_000, false},
		"the source is":                        {100_000, 900_000, 900_000, true},
		"the gateway is, where it has to last": {200_000, 900_000, 150_000, false},
		"the end of the range is":              {4 << 20, 4 << 20, 4 << 20, true},
	} {
		found, err := Highest(r, func(rate float64, hold time.Duration) (outcome, error) {
			limit := c.gateway
			if hold > r.Hold {
				limit = c.lasting
			}
			sent := min(rate, c.source)
			got := min(sent, limit)
			return outcome{rate, sent, got, got / limit}, nil
		})
		best, bound := found.Best, found.Bound
		if over := found.Over; (over == nil) != (min(c.source, c.gateway, c.lasting) > r.Most) || over != nil && (over.Passes() || over.asked < best.asked) {
			t.Errorf("%s: %.0f/s passes, %+v does not", name, best.asked, over)
		}
		want := min(c.source, c.gateway, c.lasting, r.Most)
		if err != nil || best.delivered > want || best.delivered < 0.9*want || bound != c.bound {
			t.Errorf("%s: %.0f/s, bound %t (%v); want about %.0f/s, bound %t", name, best.delivered, bound, err, want, c.bound)
		}
	}
}

// What loses at any rate has no highest, and what breaks ends the search.
func TestHighestNone(t *testing.T) {
	r := Range{Least: 1000, Most: 10_000, Tries: 3, Hold: time.Second}
	if f, err := Highest(r, func(rate float64, _ time.Duration) (outcome, error) {
		return outcome{rate, rate, rate / 2, 1}, nil
	}); !errors.Is(err, ErrNone) || f.Bound || f.Over == nil || *f.Over != f.Best {
		t.Errorf("half is lost: %v, %+v", err, f)
	}
	broken, n := errors.New("broken"), 0
	found, err := Highest(r, func(rate float64, _ time.Duration) (outcome, error) {
		if n++; n == 2 {
			return outcome{asked: rate}, broken
		}
		return outcome{rate, rate, rate, 0}, nil
	})
	if !errors.Is(err, broken) || found.Best.asked == 0 || n != 2 {
		t.Errorf("after %d tries: %v, %+v", n, err, found)
	}
}

// A source that is held up once, at whatever rate, does not end the search below the gateway's limit.
func TestHighestAfterHiccup(t *testing.T) {
	r := Range{Least: 1000, Most: 1 << 20, Tries: 8, Hold: time.Second}
	const limit = 200_000
	for hiccup := range r.Tries {
		n := 0
		found, err := Highest(r, func(rate float64, _ time.Duration) (outcome, error) {
			sent := rate
			if n++; n == hiccup+1 {
				sent = rate / 2
			}
			got := min(sent, limit)
			return outcome{rate, sent, got, got / limit}, nil
		})
		if best := found.Best.delivered; err != nil || best > limit || best < 0.9*limit || found.Bound {
			t.Errorf("held up at try %d: %.0f/s, bound %t, %v", hiccup+1, best, found.Bound, err)
		}
	}
}
