package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

const (
	// maxChecks is how many dedicated addresses are checked at a time.
	maxChecks = 64
	// lostAfter is how many checks in a row fail until the uplink counts as lost:
	// one lost packet is no lost uplink.
	lostAfter = 2
	// minCheckTime and maxCheckTime bound how long targets have to answer; between
	// them it is half of the interval. Below lies the way to a target far away, above
	// the kernel's second SYN.
	minCheckTime = 100 * time.Millisecond
	maxCheckTime = time.Second
)

// health is what one network answers to probes. It is asked for every probe, and
// reads what others noted.
type health struct {
	draining *atomic.Bool   // the host's
	lost     [2]atomic.Bool // by the side of the pair: what leaves from there does not come back
	cut      atomic.Bool    // the host's kernel does not lead packets here, or not from here
	full     atomic.Bool
	drained  atomic.Bool // every IP that is held here is drained: new flows had better go to the sibling
}

// Health implements service.Health.
func (h *health) Health() packet.Health {
	var bits packet.Health
	if h.draining.Load() || h.drained.Load() {
		bits |= packet.HealthDraining
	}
	if h.uplinkLost() {
		bits |= packet.HealthUplinkLost
	}
	if h.full.Load() {
		bits |= packet.HealthFull
	}
	return bits
}

func (h *health) uplinkLost() bool { return h.cut.Load() || h.lost[0].Load() || h.lost[1].Load() }

// checks is what the networks' checks have in common.
type checks struct {
	targets  []netip.AddrPort
	interval time.Duration
	slots    chan struct{} // one for each address that is checked now
}

func newChecks(d config.Daemon) *checks {
	return &checks{
		targets: d.Health.Targets, interval: d.Health.Interval,
		slots: make(chan struct{}, maxChecks),
	}
}

// patience is how long targets have to answer.
func (c *checks) patience() time.Duration {
	return min(max(c.interval/2, minCheckTime), maxCheckTime)
}

// verdict is what a row of checks says of one address.
type verdict struct {
	failed int // in a row
}

// judge takes the result of a check in. It reports whether the uplink is lost, and
// whether the next check is due at once: when it decides.
func (v *verdict) judge(good bool) (lost, again bool) {
	if good {
		v.failed = 0
		return false, false
	}
	v.failed = min(v.failed+1, lostAfter)
	return v.failed == lostAfter, v.failed < lostAfter
}

// watch checks one address of the pair until ctx ends. Without targets nothing is
// checked.
func (n *network) watch(ctx context.Context, side int) error {
	c := n.checks
	if len(c.targets) == 0 {
		return nil
	}
	var v verdict
	wait := rand.N(c.interval) // not all networks in the same moment
	for {
		if err := pause(ctx, wait); err != nil {
			return err
		}
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		began := time.Now()
		err := n.reach(ctx, n.pair[side])
		<-c.slots
		if ctx.Err() != nil {
			return ctx.Err()
		}
		lost, again := v.judge(err == nil)
		n.noteUplink(side, lost, err)
		wait = c.interval
		if again {
			wait = c.patience()
		}
		wait = max(wait-time.Since(began), 0)
	}
}

// noteUplink keeps what the checks say, and tells the log when it changed.
func (n *network) noteUplink(side int, lost bool, err error) {
	if n.health.lost[side].Swap(lost) == lost {
		return
	}
	if lost {
		n.log.Error("uplink lost: what leaves from this address does not come back; sidecars are told to go elsewhere", "ip", n.pair[side], "error", err)
		return
	}
	n.log.Info("uplink is back", "ip", n.pair[side])
}

// reach asks all targets at once from one address; the first that answers is enough.
func (n *network) reach(ctx context.Context, from netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, n.checks.patience())
	defer cancel()
	answers := make(chan error, len(n.checks.targets))
	for _, to := range n.checks.targets {
		go func() { answers <- n.up.Check(ctx, from, to) }()
	}
	var failed []error
	good := false
	for range n.checks.targets {
		// All are waited for, so that none outlives the network; those that are
		// still under way when one has answered end by the context.
		err := <-answers
		if err == nil {
			good = true
			cancel()
		}
		failed = append(failed, err)
	}
	if good {
		return nil
	}
	return fmt.Errorf("none of %d targets answers: %w", len(failed), errors.Join(failed...))
}

// noteFull keeps whether an address that is held here has room for new flows.
func (n *network) noteFull() {
	full := false
	for side, held := range n.held {
		if held {
			s := n.tableStats(side)
			full = full || exhausted(s, n.sessions)
		}
	}
	n.health.full.Store(full)
}

// exhausted reports whether a table has no session left of those that it may
// have, or no port. Identifiers of echoes do not count: nobody moves for want of a ping.
// Nor do port blocks: where all are taken, who has one goes on as ever, and must
// not leave for another region because one sandbox more has none.
func exhausted(s nat.Stats, limit int) bool {
	return limit > 0 && sessions(s) >= limit ||
		s.FreePorts.Of(packet.TCP) == 0 || s.FreePorts.Of(packet.UDP) == 0
}
