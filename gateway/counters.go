package gateway

import (
	"sync/atomic"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Direction is seen from the sandbox: Egress leaves it, Ingress comes back.
type Direction uint8

// The two directions.
const (
	Egress Direction = iota
	Ingress
)

// String returns the value of the metrics' label "direction".
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Counters are one network's counts of packets. They only grow. Each packet that
// comes in counts once: as forwarded (a whole datagram for its fragments), as
// local, or as dropped. What the uplink drops after it was forwarded, it counts itself.
type Counters struct {
	packets [2]atomic.Uint64
	bytes   [2]atomic.Uint64
	drops   [2][packet.NumOutcomes]atomic.Uint64
	local   atomic.Uint64
	replies atomic.Uint64
	// remoteErrors are ICMP errors to remote ends.
	remoteErrors atomic.Uint64
}

func (c *Counters) drop(d Direction, o packet.Outcome) { c.drops[d][o].Add(1) }

func (c *Counters) dropMany(d Direction, o packet.Outcome, n int) { c.drops[d][o].Add(uint64(n)) }

func (c *Counters) forwarded(d Direction, packets, bytes int) {
	c.packets[d].Add(uint64(packets))
	c.bytes[d].Add(uint64(bytes))
}

// Packets returns how many packets were forwarded in direction d: to the uplink or a
// peered network, or back from it, those of the gateway's own services included. One
// that goes by way of both hosts of a network counts on each.
func (c *Counters) Packets(d Direction) uint64 { return c.packets[d].Load() }

// Bytes returns how many bytes of IP packets were forwarded in direction d.
func (c *Counters) Bytes(d Direction) uint64 { return c.bytes[d].Load() }

// Drops returns how many packets were dropped in direction d for reason o.
func (c *Counters) Drops(d Direction, o packet.Outcome) uint64 { return c.drops[d][o].Load() }

// Local returns how many packets of sandboxes went to the gateway's own services.
func (c *Counters) Local() uint64 { return c.local.Load() }

// Replies returns how many packets the gateway made itself for sandboxes.
func (c *Counters) Replies() uint64 { return c.replies.Load() }

// RemoteErrors returns how many ICMP errors the gateway sent to remote ends.
func (c *Counters) RemoteErrors() uint64 { return c.remoteErrors.Load() }
