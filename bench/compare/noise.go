package compare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/machine"
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

// quiet measures one variant in one scenario, again where that was noisy. The last
// measurement counts, and what must not happen in any.
func (b *bench) quiet(ctx context.Context, c *chain, s scenario) (out sample, err error) {
	most := cmp.Or(b.cfg.attempts, attempts)
	before := figures{}
	for vain := range most {
		out, err = b.once(ctx, c, s)
		for _, name := range []string{figureWrong, figureShortFailed} {
			if _, has := out.Figures[name]; has {
				out.Figures[name] += before[name]
				before[name] = out.Figures[name]
			}
		}
		if err != nil || !out.Noisy {
			break
		}
		if vain < most-1 {
			b.line("again: %s of %s: %s", s.name, c.name, out.noise())
		}
	}
	return out, err
}

// once measures one variant in one scenario. With an error there may be some figures all the
// same.
func (b *bench) once(ctx context.Context, c *chain, s scenario) (sample, error) {
	var out sample
	// The share of the gateway's core that somebody uses while all gateways are stopped.
	idle, _, err := machine.Watch(ctx, b.cfg.Core, 200*time.Millisecond)
	if err != nil {
		return out, err
	}
	if err := c.signal(unix.SIGCONT); err != nil {
		return out, err
	}
	before, err := readUsage(c)
	if err != nil {
		return out, err
	}
	out.Figures, err = s.run(ctx, c, b.cfg)
	after, err2 := readUsage(c)
	err = errors.Join(err, err2, c.signal(unix.SIGSTOP))
	out.Stolen, out.Disturbed = after.stolen(before), idle
	out.Noisy = out.Stolen > machine.MaxStolen || idle > machine.MaxDisturbed
	return out, err
}
