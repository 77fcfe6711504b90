package compare

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/handshake"
	"github.com/sallyport-net/sallyport/bench/histogram"
	"github.com/sallyport-net/sallyport/bench/tcp"
	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/bench/wire"
)

// A rate of requests passes if all but a few are answered soon.
func TestEchoTrial(t *testing.T) {
	made := func(lost uint64, each time.Duration, reached, busy float64) echoTrial {
		var h histogram.Histogram
		for range 1000 {
			h.Record(each)
		}
		return echoTrial{traffic.Answers{Sent: traffic.Sent{Asked: 1000, Answered: 1000 - lost, Reached: reached, Latency: &h}, Lost: lost}, busy}
	}
	for name, c := range map[string]struct {
		echoTrial
		passes, starved bool
	}{
		"all is well":                 {made(0, time.Millisecond, 1, 0.5), true, true},
		"many are lost":               {made(10, time.Millisecond, 1, 1), false, false},
		"answers wait in buffers":     {made(0, 50*time.Millisecond, 1, 1), false, false},
		"the source could do no more": {made(0, time.Millisecond, 0.5, 0.5), false, true},
	} {
		if c.Passes() != c.passes || c.Starved() != c.starved {
			t.Errorf("%s: passes %t, starved %t", name, c.Passes(), c.Starved())
		}
	}
}

// A rate of packets passes if all but a few arrive in time.
func TestTrial(t *testing.T) {
	for name, c := range map[string]struct {
		trial
		passes, starved bool
	}{
		"all is well":                 {trial{reached: 1, busy: 0.5}, true, true},
		"the gateway loses":           {trial{reached: 1, busy: 0.5, loss: 0.01, late: 0.01}, false, false},
		"the far side does":           {trial{reached: 1, busy: 0.5, loss: 0.01, late: 0.01, dropped: 0.01}, false, true},
		"both do":                     {trial{reached: 1, busy: 0.5, loss: 0.02, late: 0.02, dropped: 0.01}, false, false},
		"the core is full":            {trial{reached: 1, busy: 1, late: 0.01}, false, false},
		"the source could do no more": {trial{reached: 0.5, busy: 0.5}, false, true},
	} {
		if c.Passes() != c.passes || c.Starved() != c.starved {
			t.Errorf("%s: passes %t, starved %t", name, c.Passes(), c.Starved())
		}
	}
}

// Half of the load is the comparator's, and found once.
func TestHalfLoad(t *testing.T) {
	h := &halfLoad{comparator: variantWireGuard}
	if _, err := h.find(context.Background(), &chain{name: variantTun}, &Config{}); !errors.Is(err, errNoHalf) {
		t.Errorf("without the comparator: %v", err)
	}
	h.rate = 12
	if rate, err := h.find(context.Background(), &chain{name: variantTun}, &Config{}); rate != 12 || err != nil {
		t.Errorf("%v, %v", rate, err)
	}
}

func TestWrongSources(t *testing.T) {
	r := wire.Report{Others: 2, Sources: []wire.Source{{Addr: pair[0], Count: 10}, {Addr: pair[1], Count: 5}, {Addr: netip.MustParseAddr("10.20.0.2"), Count: 3}}}
	if n := wrongSources(r); n != 5 {
		t.Errorf("%d wrong, want 5", n)
	}
}

// What the user has chosen stays as it is in a quick run.
func TestQuicken(t *testing.T) {
	c := valid()
	c.Quicken(func(flag string) bool { return flag == "rounds" || flag == "try" })
	want := valid()
	if c.Rounds != want.Rounds || c.Try != want.Try || slices.Equal(c.Variants, want.Variants) || c.Bulk == want.Bulk || c.validate() != nil {
		t.Errorf("%+v", c)
	}
}

// A machine that is watched until somebody has enough is not judged.
func TestWatchEnds(t *testing.T) {
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	if err := watch(ctx, 0); !errors.Is(err, enough) {
		t.Errorf("after its end: %v", err)
	}
}

// TestShortTrial says which rates of connections pass, and whose limit was found where one does not.
func TestShortTrial(t *testing.T) {
	made := func(change func(*shortTrial)) shortTrial {
		tr := shortTrial{made: tcp.Made{Counts: handshake.Counts{Begun: 1000, OK: 1000, Sent: 4000}}, busy: 0.5}
		change(&tr)
		return tr
	}
	for name, c := range map[string]struct {
		change          func(*shortTrial)
		passes, starved bool
	}{
		"all well":            {func(*shortTrial) {}, true, true},
		"one failed":          {func(tr *shortTrial) { tr.made.OK, tr.made.Reset = 999, 1 }, false, false},
		"some never began":    {func(tr *shortTrial) { tr.made.Skipped = 1 }, false, true},
		"some are late":       {func(tr *shortTrial) { tr.made.Late = 2 }, false, true},
		"the core was full":   {func(tr *shortTrial) { tr.made.Late, tr.busy = 2, 0.95 }, false, false},
		"much was sent again": {func(tr *shortTrial) { tr.made.Resent = 5 }, false, false},
		"a wrong source":      {func(tr *shortTrial) { tr.wrong = 1 }, false, true},
	} {
		if tr := made(c.change); tr.Passes() != c.passes || tr.Starved() != c.starved {
			t.Errorf("%s: passes %t, starved %t", name, tr.Passes(), tr.Starved())
		}
	}
}
