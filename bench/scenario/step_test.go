package scenario

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/bench/trial"
	"github.com/sallyport-net/sallyport/bench/wire"
)

// still is a machine on which nothing else ever runs, whose gateway spends nothing.
type still struct{}

func (still) Seen() (process, core bool)                { return false, false }
func (still) Read(context.Context) (trial.Usage, error) { return trial.Usage{}, nil }
func (still) says() string                              { return "nothing" }
func (still) memory() uint64                            { return 0 }
func (still) idle(ctx context.Context) (noise, error)   { return noise{}, context.Cause(ctx) }

// times is what came of a step each time it was measured.
type times struct {
	reached []float64 // what the source kept: less than 0.97 is noise
	broken  int       // the time that broke off; 0: none
	n       int
}

var errBroken = errors.New("it broke")

func (m *times) measure(r *runner) func(*step) error {
	return func(s *step) error {
		m.n++
		s.Figures[figureRate] = float64(m.n)
		s.Noise.Reached = m.reached[m.n-1]
		if m.n == m.broken {
			return errBroken
		}
		r.checkSources(s, wire.Report{Sources: []wire.Source{{Addr: pair[0], Count: 1}}})
		return nil
	}
}

// What was noisy is measured again, at most twice and as long as the run's repeats last; the last
// time counts, and what broke off does not.
func TestAgain(t *testing.T) {
	for name, c := range map[string]struct {
		times
		again          int
		once, strict   bool
		attempts, rate int
		noisy          bool
	}{
		"quiet":                   {times: times{reached: []float64{1}}, again: 9, attempts: 1, rate: 1},
		"noisy once":              {times: times{reached: []float64{0.5, 1}}, again: 9, attempts: 2, rate: 2},
		"noisy to the end":        {times: times{reached: []float64{0.5, 0.5, 0.6}}, again: 9, attempts: 3, rate: 3, noisy: true},
		"no repeats are left":     {times: times{reached: []float64{0.5, 0.5}}, again: 1, attempts: 2, rate: 2, noisy: true},
		"never again":             {times: times{reached: []float64{0.5}}, attempts: 1, rate: 1, noisy: true},
		"not to be repeated":      {times: times{reached: []float64{0.5}}, again: 9, once: true, attempts: 1, rate: 1, noisy: true},
		"broken":                  {times: times{reached: []float64{0.5}, broken: 1}, again: 9, attempts: 0, rate: 1, noisy: true},
		"broken when it is again": {times: times{reached: []float64{0.5, 0.5}, broken: 2}, again: 9, attempts: 1, rate: 1, noisy: true},
		"broken at last":          {times: times{reached: []float64{0.5, 0.5, 0.5}, broken: 3}, again: 9, attempts: 2, rate: 2, noisy: true},
		"strictly, noisy once":    {times: times{reached: []float64{0.5, 1}}, again: 9, strict: true, attempts: 2, rate: 2},
		"strictly, noisy at last": {times: times{reached: []float64{0.5, 0.5, 0.5}}, again: 9, strict: true, attempts: 3, noisy: true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := valid()
			var said bytes.Buffer
			cfg.Again, cfg.Strict, cfg.Progress = c.again, c.strict, &said
			r := newRunner(&cfg)
			r.meter, r.pair = still{}, pair
			o := &outcome{Name: "x", place: "x", once: c.once, Steps: []*step{{Name: "before"}}}
			measured := c.attempts
			if c.broken > 0 {
				measured++ // it is no attempt at a figure
			}
			err := r.step(t.Context(), o, "a step", load{}, c.measure(r))
			if (c.broken > 0) != errors.Is(err, errBroken) || len(o.Steps) != 2 || c.n != measured {
				t.Fatalf("%v after %d times, %d steps", err, c.n, len(o.Steps)-1)
			}
			s := o.Steps[1]
			if s.Attempts != c.attempts || int(s.Figures[figureRate]) != c.rate || s.Refused != (c.noisy && c.strict) || len(s.Wrong) > 0 {
				t.Errorf("%+v", s)
			}
			notes := strings.Join(o.notes(), "\n")
			if told := strings.Contains(notes, "the source kept"); told != (c.noisy || c.attempts > 1) {
				t.Errorf("it says %q", notes)
			}
			if all := strings.Contains(notes, "attempts, all noisy)"); all != (c.noisy && c.attempts > 1) {
				t.Errorf("it says %q", notes)
			}
			spent := c.again > 0 && c.again < againEach && c.noisy
			if told := strings.Contains(notes, "--again is used up"); told != spent {
				t.Errorf("it says %q", notes)
			}
			if told := strings.Contains(said.String(), "not measured again from here on: --again 1 is used up"); told != spent {
				t.Errorf("it said %q", said.String())
			}
			if verdict, _ := o.verdict(); (verdict == "good") == c.noisy {
				t.Errorf("it is %s: %q", verdict, notes)
			}
			if n := strings.Count(said.String(), "again: x  a step: the source kept 50 %"); n != measured-1 {
				t.Errorf("told %d times to be measured again:\n%s", n, said.String())
			}
		})
	}
}

// What no noise explains counts from all times; what was lost or failed does not.
func TestAgainWrong(t *testing.T) {
	cfg := valid()
	cfg.Again = 9
	r := newRunner(&cfg)
	r.meter, r.pair = still{}, pair
	stranger := netip.MustParseAddr("192.0.2.9")
	o := &outcome{}
	n := 0
	err := r.step(t.Context(), o, "a step", load{}, func(s *step) error {
		if n++; n == 1 {
			s.Noise.Reached = 0.5
			s.Figures[figureDuplicates] = 2
			s.never("2 packets came twice")
			s.fail("3 connections failed")
			r.checkSources(s, wire.Report{Sources: []wire.Source{{Addr: stranger, Count: 4}}})
			return nil
		}
		s.Figures[figureRate] = 7
		r.checkSources(s, wire.Report{Sources: []wire.Source{{Addr: pair[0], Count: 5}}})
		return nil
	})
	if err != nil || n != 2 || len(o.Steps) != 1 {
		t.Fatalf("%v, %d times, %d steps", err, n, len(o.Steps))
	}
	s := o.Steps[0]
	if len(s.Wrong) != 2 || s.Wrong[0] != "2 packets came twice" || !strings.Contains(s.Wrong[1], stranger.String()) {
		t.Errorf("wrong: %q", s.Wrong)
	}
	if s.Figures[figureDuplicates] != 2 || s.Figures[figureRate] != 7 || s.Sources.Wrong != 4 || !slices.Equal(s.Sources.Seen, []netip.Addr{pair[0], stranger}) {
		t.Errorf("%v, %+v", s.Figures, s.Sources)
	}
}
