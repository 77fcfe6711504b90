package compare

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/histogram"
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/bench/trial"
	"github.com/sallyport-net/sallyport/bench/wire"
)

// A rate of requests passes if all but a few are answered soon.
func TestEchoTrial(t *testing.T) {
	made := func(lost uint64, each time.Duration, reached, busy float64) echoTrial {
		h := histogram.New()
		for range 1000 {
			h.Record(each)
		}
		return echoTrial{Answers: traffic.Answers{Sent: traffic.Sent{Asked: 1000, Answered: 1000 - lost, Reached: reached, Latency: h}, Lost: lost}, busy: busy}
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

// Connections of a transfer that came from elsewhere than the pair count, that of control too.
func TestWrongConnections(t *testing.T) {
	said := func(control string, streams ...string) string {
		text := ""
		for i, s := range streams {
			text += strings.Repeat(",", min(i, 1)) + `{"socket": 5, "remote_host": "` + s + `", "remote_port": 47296}`
		}
		return `{"start": {"connected": [` + text + `], "accepted_connection": {"host": "` + control + `", "port": 1}}, "end": {}}`
	}
	a, b, other := pair[0].String(), pair[1].String(), "10.20.0.2"
	for text, want := range map[string]uint64{
		said(a, a, b): 0, said(a, a, other): 1, said(other, other, other): 3, said(other, a): 1,
	} {
		if n, err := wrongConnections([]byte(text)); n != want || err != nil {
			t.Errorf("%s: %d, %v; want %d", text, n, err, want)
		}
	}
	for _, text := range []string{"", "iperf3: error", `{"start": {"connected": []}, "error": "x"}`, said(a, "here")} {
		if n, err := wrongConnections([]byte(text)); err == nil {
			t.Errorf("%q: %d and no error", text, n)
		}
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

// Measurements stand below headings, in 80 columns, and what is to be known of one below it.
func TestRows(t *testing.T) {
	for _, s := range scenarios() {
		of := sample{Variant: variantWireGuard, Scenario: s.name, Figures: figures{}}
		for _, f := range s.figures {
			of.Figures[f.name] = 999.9
		}
		head, row := s.header(1, 100), s.row(of)
		if len(row) != 1 || len(head) != 3 || len(row[0]) != len(head[2]) || len(row[0]) >= 80 {
			t.Errorf("%q\n%q", head, row)
		}
	}
	s := datagramScenario("udp-out", "egress", way{false, smallSize})
	of := sample{Variant: variantTun, Noisy: true, Attempts: 3, Disturbed: 0.5, Figures: figures{figureProcessPacket: 1.234, figurePeak: 375.4, figureBound: 1},
		Limit: &trial.Limit{By: search.LimitSource, Rate: 391_234, Why: "91.00 % of the rate was all that was sent; the gateway's core was 82 % in use"}}
	got := strings.Join(append(s.header(2, 5), s.row(of)...), "\n")
	if want := `
udp-out, round 2 of 5
             process us core us lost, % peak k/s core us then  wrong
tun                1.23       -       -      375            -      -
  the source could do no more
  limit: the source was held up: at 391,234/s 91.00 % of the rate was all that was sent; the gateway's core was 82 % in use
  NOISY: core 0 was 50.0 % in use before the load, more than 5 % (the last of 3 attempts, all noisy)`; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// What must not happen counts from all times that something is measured, also where the last
// broke off without a figure.
func TestWith(t *testing.T) {
	before := figures{}
	for i, c := range []struct{ measured, want figures }{
		{nil, nil},
		{figures{figurePeak: 3}, figures{figurePeak: 3}},
		{figures{figureWrong: 0}, figures{figureWrong: 0}},
		{figures{figureWrong: 2, figurePeak: 4}, figures{figureWrong: 2, figurePeak: 4}},
		{figures{figureWrong: 0, figureShortFailed: 5}, figures{figureWrong: 2, figureShortFailed: 5}},
		{nil, figures{figureWrong: 2, figureShortFailed: 5}},
	} {
		if got := c.measured.with(before); !maps.Equal(got, c.want) {
			t.Errorf("%d: %v, want %v", i, got, c.want)
		}
	}
}
