package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
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
// nothing of the other end: a stock peer answers the call that it got. An end may have
// taken the other's call before it sent its own, and not know it yet: then an answer
// follows a call to which the receiver has yielded. It comes to nothing either way,
// but waits until the call was worked on. It is not dropped: the call may be forged.

const (
	// crossing is how long after a call one of the other end may still be from before
	// it arrived there: a round trip, and time to work on it.
	crossing = 300 * time.Millisecond
	// unravelling is how long an answer waits that follows a call: a peer has worked on
	// that by then, however busy the machine is.
	unravelling = 50 * time.Millisecond
	// maxHeld is how many answers of a socket wait; more are dropped, as void.
	maxHeld = 64
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
	yielded   bool // the other end's call was taken
}

// fate is what becomes of a handshake message that came in.
type fate uint8

const (
	taken   fate = iota
	refused      // dropped: it crosses a call of ours which stands
	held         // taken later
)

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

// judge says what becomes of a handshake message that came in. A call is held against
// one other only, so that the other end is heard when it tries again.
func (c *calls) judge(b []byte, from netip.AddrPort, now time.Time) fate {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.open[from]
	fresh := ok && now.Sub(k.at) < crossing
	switch {
	case fresh && isResponse(b) && k.yielded:
		delete(c.open, from)
		return held
	case fresh && isInitiation(b) && !k.yielded:
		if bytes.Compare(k.ephemeral[:], b[ephemeralAt:ephemeralAt+len(k.ephemeral)]) > 0 {
			delete(c.open, from)
			return refused
		}
		k.yielded = true
		c.open[from] = k
	case !fresh || isResponse(b):
		delete(c.open, from)
	}
	return taken
}

// sieve is what a socket receives, without calls that are refused. One goroutine
// receives by it.
type sieve struct {
	calls  *calls
	socket *udpSocket
	inner  conn.ReceiveFunc
	held   []heldAnswer // in the order in which they are due
}

// heldAnswer is an answer that waits.
type heldAnswer struct {
	due     time.Time
	message [device.MessageResponseSize]byte
	from    conn.Endpoint
}

// receive is what WireGuard receives by. What it makes empty, WireGuard drops.
func (s *sieve) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for {
		n, err := s.inner(bufs, sizes, eps)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if n = s.release(bufs, sizes, eps); n == 0 {
				continue
			}
			return n, nil
		}
		for i, size := range sizes[:n] {
			b := bufs[i][:size]
			if !isInitiation(b) && !isResponse(b) {
				continue
			}
			e, ok := eps[i].(*endpoint)
			if !ok {
				continue
			}
			switch now := time.Now(); s.calls.judge(b, e.to, now) {
			case refused:
				sizes[i] = 0
			case held:
				s.hold(b, e, now)
				sizes[i] = 0
			}
		}
		return n, err
	}
}

// hold has an answer wait.
func (s *sieve) hold(b []byte, from conn.Endpoint, now time.Time) {
	if len(s.held) == maxHeld {
		return
	}
	h := heldAnswer{due: now.Add(unravelling), from: from}
	copy(h.message[:], b)
	if s.held = append(s.held, h); len(s.held) == 1 {
		s.wake(h.due)
	}
}

// release hands out the answers that are due.
func (s *sieve) release(bufs [][]byte, sizes []int, eps []conn.Endpoint) int {
	n := 0
	for now := time.Now(); n < min(len(s.held), len(bufs)) && !s.held[n].due.After(now); n++ {
		sizes[n], eps[n] = copy(bufs[n], s.held[n].message[:]), s.held[n].from
	}
	var next time.Time // none
	if s.held = append(s.held[:0], s.held[n:]...); len(s.held) > 0 {
		next = s.held[0].due
	}
	s.wake(next)
	return n
}

// wake has the socket stop waiting for datagrams at a time; never at the zero one. A
// socket that is closed says so to whoever reads it.
func (s *sieve) wake(at time.Time) { _ = s.socket.udp.SetReadDeadline(at) }

func isInitiation(b []byte) bool {
	return len(b) == device.MessageInitiationSize && binary.LittleEndian.Uint32(b) == device.MessageInitiationType
}

func isResponse(b []byte) bool {
	return len(b) == device.MessageResponseSize && binary.LittleEndian.Uint32(b) == device.MessageResponseType
}
