package compare

import (
	"time"

	"github.com/sallyport-net/sallyport/bench/machine"
)

// usage is how much time was used, up to some moment.
type usage struct {
	process   time.Duration // of the gateway's process; 0: it has none
	core, all machine.CPU   // the gateway's core, and all
}

// cost is what was used between two moments.
type cost struct{ process, core time.Duration }

func readUsage(c *chain) (u usage, err error) {
	if c.gatewayPID != 0 {
		if u.process, err = machine.ReadProcess(c.gatewayPID); err != nil {
			return u, err
		}
	}
	if u.core, err = machine.ReadCPU(c.core); err != nil {
		return u, err
	}
	u.all, err = machine.ReadCPU(machine.AllCores)
	return u, err
}

func (u usage) since(from usage) cost {
	return cost{u.process - from.process, u.core.Since(from.core).Busy()}
}

func (u usage) stolen(from usage) float64 {
	_, stolen := u.all.Shares(from.all)
	return stolen
}
