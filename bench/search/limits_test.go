package search

import (
	"testing"
	"time"
)

// A rate of packets passes if all but a few arrive in time; one that does not is the source's
// limit if the gateway lost nothing and its core, or the rate, says so.
func TestLimits(t *testing.T) {
	l := Limits{Lost: 0.001, Reached: 0.97, Queue: time.Millisecond, Full: 0.9}
	for name, c := range map[string]struct {
		Datagrams
		passes, starved bool
	}{
		"all is well":                 {Datagrams{Reached: 1, Busy: 0.5}, true, true},
		"a queue is full":             {Datagrams{Reached: 1, Busy: 0.5, Queue: 2 * time.Millisecond}, false, false},
		"the gateway loses":           {Datagrams{Reached: 1, Busy: 0.5, Lost: 0.01, Late: 0.01}, false, false},
		"the far side does":           {Datagrams{Reached: 1, Busy: 0.5, Lost: 0.01, Late: 0.01, Dropped: 0.01}, false, true},
		"both do":                     {Datagrams{Reached: 1, Busy: 0.5, Lost: 0.02, Late: 0.02, Dropped: 0.01}, false, false},
		"the core is full":            {Datagrams{Reached: 1, Busy: 1, Late: 0.01}, false, false},
		"the source could do no more": {Datagrams{Reached: 0.5, Busy: 0.5}, false, true},
		"unseen, it could":            {Datagrams{Reached: 1, Busy: -1, Late: 0.01}, false, false},
		"unseen, the far side does":   {Datagrams{Reached: 1, Busy: -1, Lost: 0.01, Late: 0.01, Dropped: 0.01}, false, true},
		"unseen, it could do no more": {Datagrams{Reached: 0.5, Busy: -1}, false, true},
	} {
		if passes, starved := l.Passes(c.Datagrams), l.Starved(c.Datagrams); passes != c.passes || starved != c.starved {
			t.Errorf("%s: passes %t, starved %t", name, passes, starved)
		}
	}
}

// What is lost is late, too, and of nothing all is.
func TestWeigh(t *testing.T) {
	for in, want := range map[Counts]Datagrams{
		{Asked: 200, Sent: 100, Arrived: 75, InTime: 50, Dropped: 25}: {Reached: 0.5, Lost: 0.25, Late: 0.5, Dropped: 0.25},
		{Asked: 100, Sent: 100, Arrived: 75, InTime: 90}:              {Reached: 1, Lost: 0.25, Late: 0.25},
		{Asked: 100, Sent: 100, Arrived: 101, InTime: 101}:            {Reached: 1},
		{Asked: 100}: {Lost: 1, Late: 1},
		{}:           {Lost: 1, Late: 1},
	} {
		if got := in.Weigh(); got != want {
			t.Errorf("%+v are %+v, want %+v", in, got, want)
		}
	}
}

// Which rates of connections pass, and whose limit was found where one does not, by those who
// accept no failure and by those who accept some.
func TestConnectionLimits(t *testing.T) {
	strict := ConnectionLimits{Late: 0.001, Resent: 0.001, Full: 0.9}
	lax := ConnectionLimits{Failed: 0.001, Late: 0.001, Resent: 1, Full: 0.9, Unbegun: true}
	type verdict struct{ passes, starved bool }
	for name, c := range map[string]struct {
		change      func(*Connections)
		strict, lax verdict
	}{
		"all well":            {func(*Connections) {}, verdict{true, true}, verdict{true, false}},
		"one failed":          {func(c *Connections) { c.Failed = 1 }, verdict{false, false}, verdict{true, false}},
		"two failed":          {func(c *Connections) { c.Failed = 2 }, verdict{false, false}, verdict{false, false}},
		"one never began":     {func(c *Connections) { c.Skipped = 1 }, verdict{false, true}, verdict{true, true}},
		"some never began":    {func(c *Connections) { c.Skipped = 2 }, verdict{false, true}, verdict{false, true}},
		"one is late":         {func(c *Connections) { c.Late = 1 }, verdict{true, true}, verdict{true, false}},
		"some are late":       {func(c *Connections) { c.Late = 2 }, verdict{false, true}, verdict{false, false}},
		"each a little":       {func(c *Connections) { c.Late, c.Skipped = 1, 1 }, verdict{false, true}, verdict{false, true}},
		"the core was full":   {func(c *Connections) { c.Skipped, c.Busy = 2, 0.95 }, verdict{false, false}, verdict{false, false}},
		"nobody sees it":      {func(c *Connections) { c.Skipped, c.Busy = 2, -1 }, verdict{false, false}, verdict{false, false}},
		"much was sent again": {func(c *Connections) { c.Resent = 5 }, verdict{false, false}, verdict{true, false}},
		"a wrong source":      {func(c *Connections) { c.Wrong = 1 }, verdict{false, true}, verdict{false, false}},
	} {
		of := Connections{Due: 1000, Segments: 4000, Busy: 0.5}
		c.change(&of)
		if got := (verdict{strict.Passes(of), strict.Starved(of)}); got != c.strict {
			t.Errorf("%s, strictly: %+v", name, got)
		}
		if got := (verdict{lax.Passes(of), lax.Starved(of)}); got != c.lax {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// What does not pass has one limit, which is the gateway's core where that was full; and says by how
// much.
func TestBlame(t *testing.T) {
	l := Limits{Lost: 0.001, Reached: 0.97, Queue: time.Millisecond, Full: 0.9}
	for _, c := range []struct {
		d    Datagrams
		want Limit
		why  string
	}{
		{Datagrams{Reached: 1, Busy: 0.95}, LimitNone, "it passes"},
		{Datagrams{Reached: 0.5, Busy: 0.95, Lost: 0.01, Late: 0.02}, LimitCore, "1.00 % of the packets were lost on their way; the gateway's core was 95 % in use"},
		{Datagrams{Reached: 1, Busy: 0.5, Lost: 0.0125, Late: 0.02, Dropped: 0.0005}, LimitLoss, "1.20 % of the packets were lost on their way; the gateway's core was 50 % in use"},
		{Datagrams{Reached: 1, Busy: 0.95, Queue: 20 * time.Millisecond}, LimitCore, "half of the packets took 20ms longer than the fastest of the run; the gateway's core was 95 % in use"},
		{Datagrams{Reached: 1, Busy: -1, Queue: 20 * time.Millisecond}, LimitLatency, "half of the packets took 20ms longer than the fastest of the run"},
		{Datagrams{Reached: 1, Busy: 0.5, Lost: 0.01, Late: 0.01, Dropped: 0.01}, LimitFar, "1.00 % of the packets were lost by full sockets of who takes them in; the gateway's core was 50 % in use"},
		{Datagrams{Reached: 0.5, Busy: 0.5}, LimitSource, "50.00 % of the rate was all that was sent; the gateway's core was 50 % in use"},
		{Datagrams{Reached: 1, Busy: 0.5, Late: 0.01}, LimitSource, "1.00 % of the packets were late, and next to none lost; the gateway's core was 50 % in use"},
		{Datagrams{Reached: 1, Busy: -1, Late: 0.01}, LimitLatency, "1.00 % of the packets were late"},
		{Datagrams{Busy: -1, Lost: 1, Late: 1}, LimitLoss, "nothing arrived, and nobody says how much was sent"},
	} {
		if by, why := l.Blame(c.d); by != c.want || why != c.why {
			t.Errorf("%+v: %s, %q; want %s, %q", c.d, by, why, c.want, c.why)
		}
	}
	// The source is blamed where it is the limit, and nowhere else; so is the far side.
	for busy := -0.5; busy < 1.1; busy += 0.25 {
		for _, d := range []Datagrams{
			{Reached: 1}, {Reached: 0.5}, {Reached: 1, Late: 0.5}, {Reached: 1, Lost: 0.5, Late: 0.5}, {Reached: 1, Lost: 0.5, Late: 0.5, Dropped: 0.5},
			{Reached: 1, Queue: time.Second}, {Reached: 0.5, Lost: 0.5, Late: 0.5, Dropped: 0.5},
		} {
			d.Busy = busy
			by, _ := l.Blame(d)
			if others := by == LimitSource || by == LimitFar; !l.Passes(d) && busy < l.Full && others != l.Starved(d) {
				t.Errorf("%+v: %s, and the source could do no more: %t", d, by, l.Starved(d))
			}
		}
	}
}

// The same for connections.
func TestBlameConnections(t *testing.T) {
	strict := ConnectionLimits{Late: 0.001, Resent: 0.001, Full: 0.9}
	lax := ConnectionLimits{Failed: 0.001, Late: 0.001, Resent: 1, Full: 0.9, Unbegun: true}
	for name, c := range map[string]struct {
		change      func(*Connections)
		strict, lax Limit
		why         string // of the strict one
	}{
		"all well":            {func(*Connections) {}, LimitNone, LimitNone, "it passes"},
		"some failed":         {func(c *Connections) { c.Failed = 2 }, LimitFailures, LimitFailures, "2 of 1000 connections failed; the gateway's core was 50 % in use"},
		"some never began":    {func(c *Connections) { c.Skipped = 2 }, LimitSource, LimitSource, "2 of 1000 connections did not begin in time, as too many were open or the source was held up; the gateway's core was 50 % in use"},
		"some are late":       {func(c *Connections) { c.Late = 2 }, LimitSource, LimitLatency, "2 of 1000 connections failed or were late; the gateway's core was 50 % in use"},
		"the core was full":   {func(c *Connections) { c.Late, c.Busy = 2, 1.05 }, LimitCore, LimitCore, "2 of 1000 connections failed or were late; the gateway's core was 100 % in use"},
		"nobody sees it":      {func(c *Connections) { c.Skipped, c.Busy = 2, -1 }, LimitLatency, LimitLatency, "2 of 1000 connections did not begin in time, as too many were open or the source was held up"},
		"much was sent again": {func(c *Connections) { c.Resent = 8 }, LimitLoss, LimitNone, "0.20 % of the segments were sent again; the gateway's core was 50 % in use"},
		"a wrong source":      {func(c *Connections) { c.Wrong = 1 }, LimitFailures, LimitFailures, "segments came from somebody else, or damaged: 1; the gateway's core was 50 % in use"},
	} {
		of := Connections{Due: 1000, Segments: 4000, Busy: 0.5}
		c.change(&of)
		if by, why := strict.Blame(of); by != c.strict || why != c.why {
			t.Errorf("%s, strictly: %s, %q", name, by, why)
		}
		if by, _ := lax.Blame(of); by != c.lax {
			t.Errorf("%s: %s", name, by)
		}
	}
}
