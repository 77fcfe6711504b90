package scenario

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/trial"
)

// againEach is how often a noisy step is measured again at most.
const againEach = 2

// step measures: how noisy the machine is, then what f does; and all of that again while it was
// noisy and repeats are left. The last time counts. An error of f is returned with what was
// measured kept. If that comes when it is measured again the time before counts, which was whole.
func (r *runner) step(ctx context.Context, o *outcome, name string, l load, f func(s *step) error) (err error) {
	repeats := &r.repeats
	if o.once {
		repeats = &trial.Repeats{}
	}
	var s *step // what counts so far
	place, at := o.place+"  "+name, len(o.Steps)
	first := "" // why it was noisy
	broken := 0 // how often it broke off
	attempts, spent := repeats.Measure(func() string {
		before := s
		if before != nil {
			o.Steps = o.Steps[:at]
		}
		one := &step{Name: name, Load: l, Figures: values{}}
		err = r.attempt(ctx, o, one, f)
		ended := err != nil && !errors.Is(err, search.ErrNone)
		switch {
		case before == nil && len(o.Steps) > at:
			s = one
		case before != nil && ended:
			before.inherit(one)
			o.Steps = append(o.Steps[:at], before)
			before.mark("it was measured again, as it was noisy, and that was broken off")
		case before != nil:
			one.inherit(before)
			s = one
		}
		if ended {
			broken++
			return ""
		}
		return strings.Join(s.Noise.why(), "; ")
	}, func(noise string) {
		if first == "" {
			first = noise
		}
		r.progress.Print("again: %s: %s", place, noise)
	})
	if s == nil {
		return err
	}
	s.Attempts, s.spent = attempts-broken, spent && r.cfg.Again > 0
	if s.spent && !r.spent {
		r.spent = true
		r.progress.Print("noisy steps are not measured again from here on: --again %d is used up", r.cfg.Again)
	}
	r.judge(s, first)
	r.progress.Brief(place + s.short())
	return err
}

// attempt measures once. The step is in the outcome from when its load begins.
func (r *runner) attempt(ctx context.Context, o *outcome, s *step, f func(s *step) error) (err error) {
	s.At = time.Since(r.began).Seconds()
	if s.Noise, err = r.meter.idle(ctx); err != nil {
		return err
	}
	before, err := r.meter.Read(ctx)
	if err != nil {
		return err
	}
	stop := r.progress.Work(o.place+"  "+s.Name, time.Duration(s.Load.Seconds*float64(time.Second)))
	o.Steps = append(o.Steps, s)
	err = f(s)
	stop()
	if after, uerr := r.meter.Read(ctx); uerr == nil {
		s.Noise.Stolen = after.Stolen(before)
	} else {
		s.forgetCosts()
		if err == nil {
			err = uerr
		}
	}
	if err != nil && !errors.Is(err, search.ErrNone) {
		s.breakOff(r.interrupted(ctx))
	}
	return err
}

// judge marks or throws away what is noisy; first is why it was when it was measured first, if it
// was measured again.
func (r *runner) judge(s *step, first string) {
	s.Noise.Why = s.Noise.why()
	s.bounded()
	if len(s.Noise.Why) == 0 {
		if first != "" {
			s.also("it was measured %d times, as it was noisy before: %s", s.Attempts, first)
		}
		return
	}
	if r.cfg.Strict {
		s.Figures, s.Latency, s.Series, s.Limit, s.Refused = values{}, nil, nil, nil, true
		return
	}
	for _, w := range s.Noise.Why {
		s.mark("NOISY: %s%s", w, s.still())
	}
}

// still says how often a step that is noisy was measured, and why not once more where only the
// run's repeats were missing; empty: once, and nothing was missing.
func (s *step) still() string {
	text := trial.AllNoisy(s.Attempts)
	switch {
	case !s.spent:
		return text
	case text == "":
		return " (not measured again: --again is used up)"
	}
	return text + ", and --again is used up"
}

// never notes what a gateway must not do however noisy the machine is: it counts if it is measured
// again, too.
func (s *step) never(format string, args ...any) {
	s.fail(format, args...)
	s.lasting = append(s.lasting, s.Wrong[len(s.Wrong)-1])
}

// inherit takes over what counts of another attempt.
func (s *step) inherit(from *step) {
	for _, w := range from.lasting {
		if !slices.Contains(s.lasting, w) {
			s.Wrong, s.lasting = append(s.Wrong, w), append(s.lasting, w)
		}
	}
	for _, name := range []string{figureDuplicates, figureDamaged} {
		if n, has := from.Figures[name]; has && len(s.Figures) > 0 {
			s.Figures[name] += n
		}
	}
	switch {
	case from.Sources == nil:
	case s.Sources == nil:
		s.Sources = from.Sources
	default:
		s.Sources.More, s.Sources.Wrong = s.Sources.More+from.Sources.More, s.Sources.Wrong+from.Sources.Wrong
		for _, a := range from.Sources.Seen {
			if !slices.Contains(s.Sources.Seen, a) {
				s.Sources.Seen = append(s.Sources.Seen, a)
			}
		}
	}
}
