package trial

import (
	"context"
	"time"

	"github.com/sallyport-net/sallyport/bench/machine"
)

// Usage is how much time was spent, up to some moment.
type Usage struct {
	// Process and Core are a gateway's process and core, as far as they are seen.
	Process, Core time.Duration
	// All is what all cores of this machine did.
	All machine.CPU
}

// Cost is what was spent between two moments, or for one thing.
type Cost struct{ Process, Core time.Duration }

// Since is what was spent since an earlier reading.
func (u Usage) Since(from Usage) Cost { return Cost{u.Process - from.Process, u.Core - from.Core} }

// Stolen is the part of all cores' time that the hypervisor gave to others since an earlier
// reading, from 0 to 1.
func (u Usage) Stolen(from Usage) float64 {
	_, stolen := u.All.Shares(from.All)
	return stolen
}

// Each is what each of n things cost, in microseconds; 0 where there were none.
func (c Cost) Each(n uint64) (process, core float64) {
	if n == 0 {
		return 0, 0
	}
	return Micros(c.Process) / float64(n), Micros(c.Core) / float64(n)
}

// Busy is the part of a time in which the core was used.
func (c Cost) Busy(d time.Duration) float64 { return c.Core.Seconds() / d.Seconds() }

// Micros are the microseconds of a duration, with fractions.
func Micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// Meter reads what a gateway spends.
type Meter interface {
	// Seen says whether the gateway's process and its core can be read.
	Seen() (process, core bool)
	// Read reads what is seen, and all cores of this machine.
	Read(ctx context.Context) (Usage, error)
}

// Local is the [Meter] of a process and a core of this machine.
type Local struct {
	PID  int // 0: not known
	Core int // by its number; less than 0: not known
}

// Seen implements [Meter].
func (l Local) Seen() (process, core bool) { return l.PID != 0, l.Core >= 0 }

// Read implements [Meter].
func (l Local) Read(context.Context) (u Usage, err error) {
	process, core := l.Seen()
	if process {
		if u.Process, err = machine.ReadProcess(l.PID); err != nil {
			return u, err
		}
	}
	if core {
		var c machine.CPU
		if c, err = machine.ReadCPU(l.Core); err != nil {
			return u, err
		}
		u.Core = c.Busy()
	}
	u.All, err = machine.ReadCPU(machine.AllCores)
	return u, err
}
