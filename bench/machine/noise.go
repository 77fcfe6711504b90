package machine

import (
	"context"
	"fmt"
	"time"
)

// Measurements count as noisy beyond these shares of the time.
const (
	MaxStolen    = 0.01 // of all cores', given to others by the hypervisor
	MaxDisturbed = 0.05 // of the gateway's core, used by others before
)

// Noise is how far others had a part in a measurement, as shares from 0 to 1.
type Noise struct {
	// Core is the gateway's, or [AllCores] where it has none to itself.
	Core int
	// Disturbed is how much of Core was in use before the load, Stolen how much of all cores'
	// time the hypervisor gave to others.
	Disturbed, Stolen float64
}

// Why says what makes a measurement noisy, with the figures; of one that is not, nothing.
func (n Noise) Why() (list []string) {
	if n.Stolen > MaxStolen {
		list = append(list, fmt.Sprintf("the hypervisor gave %.1f %% of all cores' time to others, more than %.0f %%", 100*n.Stolen, 100*MaxStolen))
	}
	if n.Disturbed > MaxDisturbed {
		what := fmt.Sprintf("core %d was", n.Core)
		if n.Core == AllCores {
			what = "all cores together were"
		}
		list = append(list, fmt.Sprintf("%s %.1f %% in use before the load, more than %.0f %%", what, 100*n.Disturbed, 100*MaxDisturbed))
	}
	return list
}

// Before a load a core is looked at for a glance, and for a stare in all if it seems to be in use.
// The kernel counts a core's time in ticks of 10 ms, each whole for what runs when it comes: one is
// a fifteenth of a glance, more than [MaxDisturbed], and a fiftieth of a stare, less: it takes three.
const (
	glance = 150 * time.Millisecond
	stare  = 500 * time.Millisecond
)

// Disturbed says how much of a core, or of [AllCores], is used in the time to come, in which there
// is to be no load: a share from 0 to 1, which a single tick does not take beyond [MaxDisturbed].
func Disturbed(ctx context.Context, core int) (float64, error) {
	return disturbed(func(d time.Duration) (CPU, error) {
		if err := wait(ctx, d); err != nil {
			return CPU{}, err
		}
		return ReadCPU(core)
	})
}

// disturbed judges by readings, each some time after the one before.
func disturbed(after func(time.Duration) (CPU, error)) (busy float64, err error) {
	from, err := after(0)
	if err != nil {
		return 0, err
	}
	for _, d := range []time.Duration{glance, stare - glance} {
		to, err := after(d)
		if err != nil {
			return 0, err
		}
		if busy, _ = to.Shares(from); busy <= MaxDisturbed {
			break
		}
	}
	return busy, nil
}

// wait returns why ctx ended before a time was over.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Watch says how much of a core, or of [AllCores], is used, and of all cores stolen, in the
// time to come: shares from 0 to 1.
func Watch(ctx context.Context, core int, d time.Duration) (busy, stolen float64, err error) {
	one, all, err := readBoth(core)
	if err != nil {
		return 0, 0, err
	}
	if err := wait(ctx, d); err != nil {
		return 0, 0, err
	}
	one2, all2, err := readBoth(core)
	if err != nil {
		return 0, 0, err
	}
	busy, _ = one2.Shares(one)
	_, stolen = all2.Shares(all)
	return busy, stolen, nil
}

func readBoth(core int) (one, all CPU, err error) {
	if one, err = ReadCPU(core); err == nil {
		all, err = ReadCPU(AllCores)
	}
	return one, all, err
}
