package compare

import (
	"testing"
	"time"
)

// A gateway and a source that each have a limit, of which the gateway's is lower when it
// has to last.
func TestHighest(t *testing.T) {
	const d = time.Second
	for name, c := range map[string]struct {
		source, gateway, lasting float64 // packets per second
		bound                    bool
	}{
		"the gateway is the limit":             {500_000, 200_000, 200_000, false},
		"the source is":                        {100_000, 900_000, 900_000, true},
		"the gateway is, where it has to last": {200_000, 900_000, 150_000, false},
	} {
		best, bound, err := highest(d, func(rate float64, hold time.Duration) (trial, error) {
			limit := c.gateway
			if hold > d {
				limit = c.lasting
			}
			sent := min(rate, c.source)
			got := min(sent, limit)
			// What the gateway cannot take waits in buffers: none is lost.
			return trial{rate: got, late: 1 - got/sent, reached: sent / rate, busy: got / limit}, nil
		})
		want := min(c.source, c.gateway, c.lasting)
		if err != nil || best.rate > want || best.rate < 0.9*want || bound != c.bound {
			t.Errorf("%s: %.0f/s, bound %t (%v); want about %.0f/s, bound %t", name, best.rate, bound, err, want, c.bound)
		}
	}
}
