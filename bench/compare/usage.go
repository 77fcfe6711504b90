package compare

import (
	"time"

	"github.com/sallyport-net/sallyport/bench/machine"
)

// Measurements count as noisy beyond these shares of the cores' time.
const (
	maxStolen    = 0.01 // given to others by the hypervisor
	maxDisturbed = 0.05 // of the gateway's core, used by others before
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

// disturbance is the share of the gateway's core that somebody uses while all
// gateways are stopped.
func (b *bench) disturbance() (float64, error) {
	const look = 200 * time.Millisecond
	before, err := machine.ReadCPU(b.cfg.Core)
	if err != nil {
		return 0, err
	}
	time.Sleep(look)
	after, err := machine.ReadCPU(b.cfg.Core)
	busy, _ := after.Shares(before)
	return busy, err
}
