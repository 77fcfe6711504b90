package failover

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// instant is a reading of CLOCK_MONOTONIC, which all processes of a machine
// share, in nanoseconds.
type instant int64

// now reads the clock.
func now() instant {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(fmt.Sprintf("read CLOCK_MONOTONIC: %v", err)) // Linux always has it
	}
	return instant(t.Nano())
}

// since is the time from t to u.
func (u instant) since(t instant) time.Duration { return time.Duration(u - t) }
