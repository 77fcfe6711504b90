package trial

import (
	"context"
	"time"
)

// Pause waits, or returns why ctx ended before.
func Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// quiet is how long nothing may arrive for a count to be final.
const quiet = 30 * time.Millisecond

// Settle reads a count until it grows no more. An error of read, or of ctx, ends it.
func Settle(ctx context.Context, read func() (uint64, error)) error {
	last, err := read()
	for err == nil {
		if err = Pause(ctx, quiet); err != nil {
			return err
		}
		var n uint64
		if n, err = read(); n == last {
			return err
		}
		last = n
	}
	return err
}
