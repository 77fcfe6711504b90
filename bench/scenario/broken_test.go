package scenario

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/histogram"
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/traffic"
)

// A report that could not be written is said before anything is measured.
func TestWritable(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "a.json"): "", filepath.Join(dir, "nowhere", "a.json"): "nowhere", dir: "no file", os.DevNull: "",
	} {
		c := valid()
		c.JSON = path
		err := c.validate()
		if (want == "") != (err == nil) || err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--json")) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A step that the user interrupts is said to be, and has no figures; one that a fault broke
// off keeps what there was.
func TestBrokenOff(t *testing.T) {
	s := &step{Name: "peak", Figures: values{figureRate: 7}, Latency: &latency{}, Noise: noise{Reached: 0.1}}
	s.breakOff(true)
	if !s.Broken || len(s.Figures) != 0 || s.Latency != nil || len(s.Noise.why()) != 0 || len(s.Marks) != 1 {
		t.Errorf("interrupted: %+v", s)
	}
	if rows := (&outcome{Steps: []*step{s}}).rows(); rows[1][0] != "peak (broken off)" {
		t.Errorf("the table: %v", rows)
	}
	s = &step{Figures: values{figureRate: 7}}
	if s.breakOff(false); !s.Broken || s.Figures[figureRate] != 7 || len(s.Marks) != 1 {
		t.Errorf("by a fault: %+v", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &runner{}
	if r.interrupted(ctx) {
		t.Error("interrupted before it was")
	}
	if cancel(); !r.interrupted(ctx) || !strings.HasPrefix(r.explain(ctx, errors.New("x")).Error(), "interrupted") {
		t.Error("not interrupted after it was")
	}
}

// Sessions that never were are a finding.
func TestUnopened(t *testing.T) {
	s := &step{}
	if unopened(s, carried{sent: 1000, Datagrams: search.Datagrams{Lost: lowLoss / 2}}, 1000); len(s.Wrong) != 0 {
		t.Errorf("%v", s.Wrong)
	}
	if unopened(s, carried{sent: 1000, Datagrams: search.Datagrams{Lost: 0.32}}, 1000); len(s.Wrong) != 1 || !strings.Contains(s.Wrong[0], "sessions_per_sandbox") {
		t.Errorf("%v", s.Wrong)
	}
}

// A source that left packets out opened fewer.
func TestShort(t *testing.T) {
	s := &step{}
	if unopened(s, carried{sent: 900}, 1000); len(s.Wrong) != 1 || !strings.Contains(s.Wrong[0], "900 packets") {
		t.Errorf("%v", s.Wrong)
	}
}

// A rate that only fills queues does not pass, and is not for want of a faster source.
func TestQueued(t *testing.T) {
	of := func(d ...time.Duration) *latency {
		h := histogram.New()
		for _, one := range d {
			h.Record(one)
		}
		return latencyOf(h)
	}
	r := &runner{}
	for _, c := range []struct {
		l      *latency
		passes bool
	}{
		{nil, true},
		{of(40*time.Millisecond, 45*time.Millisecond, 50*time.Millisecond), true},
		{of(134*time.Millisecond, 134*time.Millisecond), false},
		{of(50*time.Millisecond, 51*time.Millisecond), true},
	} {
		one := carried{Datagrams: search.Datagrams{Reached: 1, Queue: r.queued(c.l)}}
		if one.Passes() != c.passes || !c.passes && one.Starved() {
			t.Errorf("%+v: %v longer passes: %t", c.l, one.Queue, one.Passes())
		}
	}
}

// Quantiles of too few values are not told, and a finished step has one short line.
func TestFew(t *testing.T) {
	h := histogram.New()
	for range 20 {
		h.Record(150 * time.Microsecond)
	}
	s := &step{Name: "peak", Figures: values{figureRate: 20000, figureLoss: 0.01}, Latency: latencyOf(h)}
	if l := s.Latency; l.P99 != 0 || l.P999 != 0 || l.P90 == 0 || l.P50 == 0 {
		t.Errorf("of 20: %+v", l)
	}
	for range 180 {
		h.Record(150 * time.Microsecond)
	}
	if l := latencyOf(h); l.P99 == 0 || l.P999 != 0 {
		t.Errorf("of 200: %+v", l)
	}
	text := s.short()
	if !strings.HasPrefix(text, "  20,000/s  0.010 % lost  p50 ") {
		t.Errorf("%q", text)
	}
}

// What this process's own sockets lost is no loss of the gateway's: the rate does not pass, the
// gateway is not blamed, and the step is noisy.
func TestOwnLosses(t *testing.T) {
	r := &runner{meter: local{}}
	l := traffic.Load{Rate: 10_000, For: time.Second, Size: smallSize}
	received := traffic.Received{Packets: 9000}
	for own, ours := range map[uint64]bool{0: false, 100: false, 1000: true} {
		got := r.weigh(carried{in: true, sent: 10_000, received: received, own: own, trace: &trace{}}, l)
		if got.Passes() || got.Starved() != ours {
			t.Errorf("%d lost here: passes %t, starved %t: %+v", own, got.Passes(), got.Starved(), got.Datagrams)
		}
		s := &step{Figures: values{}}
		r.fill(s, got, l)
		if noisy := len(s.Noise.why()) > 0; noisy != (own > 0) || len(s.Marks) != min(1, int(own)) || s.Figures[figureLoss] < 9.9 {
			t.Errorf("%d lost here: noise %q, marks %q, %v", own, s.Noise.why(), s.Marks, s.Figures)
		}
	}
}
