package uplink

import (
	"sync/atomic"
	"time"
)

// complaintInterval is how often the log is told that the host does not do what it should.
const complaintInterval = time.Minute

// complaints bounds what the log is told: what an operator may have to mend is logged,
// but not for every packet. Its zero value is ready.
type complaints struct {
	last atomic.Int64 // in nanoseconds of Unix time
}

// due reports whether the log may be told again, and takes that chance.
func (c *complaints) due() bool {
	now, last := time.Now().UnixNano(), c.last.Load()
	return now-last >= int64(complaintInterval) && c.last.CompareAndSwap(last, now)
}
