package traffic

import "testing"

// Runs that were dropped are taken to have been as long as those that came.
func TestOverrun(t *testing.T) {
	before := Overrun{received: 100, runs: 100, dropped: 7}
	for _, c := range []struct {
		after Overrun
		want  uint64
	}{
		{before, 0},
		{Overrun{received: 500, runs: 110, dropped: 10}, 120},
		{Overrun{received: 100, runs: 100, dropped: 10}, 3}, // nothing came: at least these
		{Overrun{received: 110, runs: 110, dropped: 10}, 3},
		{Overrun{}, 0},
	} {
		if n := c.after.Since(before); n != c.want {
			t.Errorf("%+v: %d, want %d", c.after, n, c.want)
		}
	}
	_, ends := newGateway(t, newSink(), 1, 1)
	s := newSource(t, Config{Ends: ends})
	if o := s.Overrun(); o.received == 0 || o.runs == 0 || o.dropped != 0 {
		t.Errorf("after a handshake: %+v", o)
	}
}
