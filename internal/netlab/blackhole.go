package netlab

import (
	"fmt"
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// Blackhole is a fault of a link, made by the router at one end of it: packets
// are lost, in one direction or in both. Unlike with [Link.SetUp] nobody can
// tell: the carrier stays, neighbours answer, no error comes back.
type Blackhole struct {
	// Router is the namespace that loses the packets. What it sends itself, and
	// what is addressed to it, passes.
	Router *Namespace
	// From is the link of the router whose packets are lost; empty for none.
	From string
	// To are the addresses to which packets are lost, from wherever they come:
	// those at the far end of the link, for its other direction.
	To []netip.Prefix
}

// Set makes the fault or mends it. It may be repeated.
func (b Blackhole) Set(on bool) error {
	if err := b.Router.lab.Err(); err != nil {
		return err
	}
	var p hostnet.Plan
	if b.From != "" {
		p.Drops = append(p.Drops, hostnet.Drop{From: b.From})
	}
	for _, to := range b.To {
		p.Drops = append(p.Drops, hostnet.Drop{To: to})
	}
	change := b.Router.host.Undo
	if on {
		change = b.Router.host.Apply
	}
	if err := change(p); err != nil {
		return fmt.Errorf("netlab: blackhole in %s, on=%t: %w", b.Router.name, on, err)
	}
	return nil
}
