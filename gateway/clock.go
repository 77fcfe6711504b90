package gateway

import (
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// MonotonicClock reads the process's monotonic clock, counted from its making.
type MonotonicClock struct{ start time.Time }

// NewMonotonicClock returns a clock that starts at one second, so that no
// reading is zero.
func NewMonotonicClock() MonotonicClock {
	return MonotonicClock{start: time.Now().Add(-time.Second)}
}

// Now returns the nanoseconds since the start.
func (c MonotonicClock) Now() packet.Instant { return packet.Instant(time.Since(c.start)) }
