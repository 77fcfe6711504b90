package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// When both ends call at the same moment, each of WireGuard's two initiations makes
// the other void: each end answers what it got, which ends its own call, so that
// neither answer is taken. Both then wait for 5 s. Worse, an end that has an answer
// and a call in work at once may mix the two, and has a session in which it hears
// nothing until the other end gives it up after 15 s.
//
// So of two calls that cross one stands: both ends see both of them, and the one with
// the greater ephemeral key is it. Its sender does not take the other one. This needs
// nothing of the other end: a stock peer answers the call that it got.

const (
	// crossing is how long after a call one of the other end may still be from before
	// it arrived there: a round trip, and time to work on it.
	crossing = 300 * time.Millisecond
	// callsKept is from how many calls on it is looked which are over.
	callsKept = 64
	// ephemeralAt is where an initiation has its ephemeral key: after type and sender.
	ephemeralAt = 8
)

// calls are the initiations that were sent and not answered yet, by where they went.
// Its zero value is ready for use.
type calls struct {
	mu    sync.Mutex
	open  map[netip.AddrPort]call
	sweep int // from how many on it is looked which are over
}

// call is an initiation under way.
type call struct {
	ephemeral device.NoisePublicKey
	at        time.Time
}

// sent notes a datagram that goes out, if it is an initiation.
func (c *calls) sent(b []byte, to netip.AddrPort, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open, c.sweep = make(map[netip.AddrPort]call), callsKept
	}
	if len(c.open) >= c.sweep {
		for at, k := range c.open {
			if now.Sub(k.at) >= crossing {
				delete(c.open, at)
			}
		}
		c.sweep = max(callsKept, 2*len(c.open))
	}
	k := call{at: now}
	copy(k.ephemeral[:], b[ephemeralAt:])
	c.open[to] = k
}

// refuses says whether a datagram that came in is a call that crosses one of ours
// which stands. A call is held against one datagram only, so that the other end is
// heard when it tries again.
func (c *calls) refuses(b []byte, from netip.AddrPort, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.open[from]
	if !ok {
		return false
	}
	delete(c.open, from)
	return isInitiation(b) && now.Sub(k.at) < crossing &&
		bytes.Compare(k.ephemeral[:], b[ephemeralAt:ephemeralAt+len(k.ephemeral)]) > 0
}

// filter makes empty what is refused; WireGuard drops that.
func (c *calls) filter(receive conn.ReceiveFunc) conn.ReceiveFunc {
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, err := receive(bufs, sizes, eps)
		for i, size := range sizes[:n] {
			b := bufs[i][:size]
			if !isInitiation(b) && !isResponse(b) {
				continue
			}
			if e, ok := eps[i].(*endpoint); ok && c.refuses(b, e.to, time.Now()) {
				sizes[i] = 0
			}
		}
		return n, err
	}
}

func isInitiation(b []byte) bool {
	return len(b) == device.MessageInitiationSize && binary.LittleEndian.Uint32(b) == device.MessageInitiationType
}

func isResponse(b []byte) bool {
	return len(b) == device.MessageResponseSize && binary.LittleEndian.Uint32(b) == device.MessageResponseType
}
