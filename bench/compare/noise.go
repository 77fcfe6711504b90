package compare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/trial"
)

// watchFor is how long a machine is watched before a strict run.
const watchFor = 3 * time.Second

// watch says why a machine is too noisy to be measured on.
func watch(ctx context.Context, core int) error {
	busy, stolen, err := machine.Watch(ctx, core, watchFor)
	switch {
	case err != nil:
		return err
	case stolen > machine.MaxStolen:
		return fmt.Errorf("this machine is too noisy: its hypervisor gave %.1f %% of the time to others in %v, and at most %.0f %% are allowed; try again later, or without --strict", 100*stolen, watchFor, 100*machine.MaxStolen)
	case busy > machine.MaxDisturbed:
		return fmt.Errorf("this machine is too noisy: the gateway's core %d was %.0f %% in use in %v, and at most %.0f %% are allowed; end what runs there, choose another by --core, or measure without --strict", core, 100*busy, watchFor, 100*machine.MaxDisturbed)
	}
	return nil
}

// quiet measures one variant in one scenario, again where that was noisy or the harness itself
// lost packets. The last measurement counts, and what must not happen in any.
func (b *bench) quiet(ctx context.Context, c *chain, s scenario) (out sample, err error) {
	most := cmp.Or(b.cfg.attempts, attempts) - 1
	before := figures{}
	repeats := trial.Repeats{Each: most, All: most}
	times, _ := repeats.Measure(func() string {
		out, err = b.once(ctx, c, s)
		out.Figures = out.Figures.with(before)
		switch {
		case err == nil:
			return out.noise()
		case errors.Is(err, errOwnLoss):
			return err.Error()
		}
		return ""
	}, func(noise string) { b.progress.Print("again: %s of %s: %s", s.name, c.name, noise) })
	out.Attempts = times
	return out, err
}

// with adds what must not happen to what did before, and returns f with the sum of both: also
// where f has none, as a measurement broke off.
func (f figures) with(before figures) figures {
	for _, name := range []string{figureWrong, figureShortFailed} {
		n, has := f[name]
		before[name] += n
		if !has && before[name] == 0 {
			continue
		}
		if f == nil {
			f = figures{}
		}
		f[name] = before[name]
	}
	return f
}

// once measures one variant in one scenario. With an error there may be some figures all the
// same.
func (b *bench) once(ctx context.Context, c *chain, s scenario) (sample, error) {
	var out sample
	// The share of the gateway's core that somebody uses while all gateways are stopped.
	idle, err := machine.Disturbed(ctx, b.cfg.Core)
	if err != nil {
		return out, err
	}
	if err := c.signal(unix.SIGCONT); err != nil {
		return out, err
	}
	before, err := c.spent(ctx)
	if err != nil {
		return out, err
	}
	out.Figures, out.Limit, err = s.run(ctx, c, b.cfg)
	after, err2 := c.spent(ctx)
	err = errors.Join(err, err2, c.signal(unix.SIGSTOP))
	out.Core, out.Stolen, out.Disturbed = b.cfg.Core, after.Stolen(before), idle
	if out.Noisy = out.noise() != ""; out.Limit != nil {
		out.Limit.Amid(out.others())
	}
	return out, err
}
