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

// Measurements count as noisy beyond these shares of the cores' time.
const (
	maxStolen    = 0.01 // given to others by the hypervisor
	maxDisturbed = 0.05 // of the gateway's core, used by others before
)

// watchFor is how long a machine is watched before a strict run.
const watchFor = 3 * time.Second

// watch says why a machine is too noisy to be measured on.
func watch(ctx context.Context, core int) error {
	busy, stolen, err := shares(ctx, core, watchFor)
	switch {
	case err != nil:
		return err
	case stolen > maxStolen:
		return fmt.Errorf("this machine is too noisy: its hypervisor gave %.1f %% of the time to others in %v, and at most %.0f %% are allowed; try again later, or without --strict", 100*stolen, watchFor, 100*maxStolen)
	case busy > maxDisturbed:
		return fmt.Errorf("this machine is too noisy: the gateway's core %d was %.0f %% in use in %v, and at most %.0f %% are allowed; end what runs there, choose another by --core, or measure without --strict", core, 100*busy, watchFor, 100*maxDisturbed)
	}
	return nil
}

// shares are how much of a core was used and how much of all of them was stolen in the
// time to come.
func shares(ctx context.Context, core int, d time.Duration) (busy, stolen float64, err error) {
	read := func() (one, all machine.CPU, err error) {
		if one, err = machine.ReadCPU(core); err == nil {
			all, err = machine.ReadCPU(machine.AllCores)
		}
		return one, all, err
	}
	one, all, err := read()
	if err != nil {
		return 0, 0, err
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return 0, 0, context.Cause(ctx)
	}
	one2, all2, err := read()
	busy, _ = one2.Shares(one)
	_, stolen = all2.Shares(all)
	return busy, stolen, err
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
	idle, _, err := shares(ctx, b.cfg.Core, 200*time.Millisecond)
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
	out.Noisy = out.Stolen > maxStolen || idle > maxDisturbed
	return out, err
}
