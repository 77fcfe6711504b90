package machine

import (
	"context"
	"time"
)

// Measurements count as noisy beyond these shares of the time.
const (
	MaxStolen    = 0.01 // of all cores', given to others by the hypervisor
	MaxDisturbed = 0.05 // of the gateway's core, used by others before
)

// Watch says how much of a core, or of [AllCores], is used, and of all cores stolen, in the
// time to come: shares from 0 to 1.
func Watch(ctx context.Context, core int, d time.Duration) (busy, stolen float64, err error) {
	one, all, err := readBoth(core)
	if err != nil {
		return 0, 0, err
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return 0, 0, context.Cause(ctx)
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
