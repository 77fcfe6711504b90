package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
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
//
// That does not settle all: an end may have taken the other's call before it sent its
// own, and not know it yet, or be called by one who has just answered. So an answer
// waits while a call of the same peer is worked on, and a call while an answer is.
// Neither is dropped: what came first may be forged.

const (
	// crossing is how long after a call one of the other end may still be from before
	// it arrived there: a round trip, and time to work on it.
	crossing = 300 * time.Millisecond
	// unravelling is how long WireGuard may work on a message. That takes it about a
	// millisecond, but a busy machine may let it wait.
	unravelling = 150 * time.Millisecond
	// longestHold is how long a message waits at most. Each that waits has those of the
	// other kind wait longer, of which one or two are in earnest.
	longestHold = 4 * unravelling
	// maxHeld is how many messages of a socket wait; more are dropped, and sent anew by
	// their senders.
	maxHeld = 64
	// jobsKept is of how many messages it is known that they are worked on: so many
	// within unravelling are a flood, in which handshakes fail anyway.
	jobsKept = 64
	// callsKept is from how many calls on it is looked which are over.
	callsKept = 64
	// ephemeralAt is where an initiation has its ephemeral key: after type and sender.
	ephemeralAt = 8
)

// calls are the initiations that were sent and not answered yet, by where they went,
// and the messages on which WireGuard may be at work. Its zero value is ready for use.
type calls struct {
	mu    sync.Mutex
	open  map[netip.AddrPort]call
	sweep int // from how many on it is looked which are over
	jobs  [jobsKept]job
	next  int // the oldest of jobs
}

// call is an initiation under way.
type call struct {
	ephemeral device.NoisePublicKey
	at        time.Time
	yielded   bool // the other end's call was taken
}

// job is a message that was handed to WireGuard, or will be.
type job struct {
	from   netip.AddrPort
	at     time.Time // when that is
	answer bool      // else a call
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

// judge says what becomes of a handshake message that came in, and of one that is held,
// when it shall be taken. A call is held against one other only, so that the other end
// is heard when it tries again.
func (c *calls) judge(b []byte, from netip.AddrPort, now time.Time) (fate, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer := isResponse(b)
	k, ok := c.open[from]
	fresh := ok && now.Sub(k.at) < crossing
	switch {
	case fresh && !answer && !k.yielded:
		if bytes.Compare(k.ephemeral[:], b[ephemeralAt:ephemeralAt+len(k.ephemeral)]) > 0 {
			delete(c.open, from)
			return refused, now
		}
		k.yielded = true
		c.open[from] = k
	case !fresh || answer:
		delete(c.open, from)
	}
	if answer && !ok {
		return taken, now // WireGuard has no work with an answer to nothing
	}
	due := c.busy(from, !answer, now)
	if due.Sub(now) > longestHold {
		due = now
	}
	c.jobs[c.next] = job{from, due, answer}
	c.next = (c.next + 1) % jobsKept
	if due.After(now) {
		return held, due
	}
	return taken, now
}

// busy is until when WireGuard may work on answers, or on calls, of a peer. The caller
// holds the lock.
func (c *calls) busy(from netip.AddrPort, answers bool, now time.Time) time.Time {
	until := now
	for i := range c.jobs {
		if j := &c.jobs[i]; j.answer == answers && j.from == from {
			if end := j.at.Add(unravelling); end.After(until) {
				until = end
			}
		}
	}
	return until
}

// answering is until when WireGuard may work on an answer of a peer. A call to it that
// goes out meanwhile may be mixed up with that.
func (c *calls) answering(from netip.AddrPort, now time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.busy(from, true, now)
}

// sieve is what a socket receives, without calls that are refused. One goroutine
// receives by it.
type sieve struct {
	calls  *calls
	socket *udpSocket
	inner  conn.ReceiveFunc
	held   []heldMessage // in the order in which they are due
}

// heldMessage is a call or an answer that waits.
type heldMessage struct {
	due     time.Time
	message [max(device.MessageInitiationSize, device.MessageResponseSize)]byte
	size    int
	from    *endpoint
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
			switch fate, due := s.calls.judge(b, e.to, time.Now()); fate {
			case refused:
				sizes[i] = 0
			case held:
				s.hold(b, e, due)
				sizes[i] = 0
			}
		}
		return n, err
	}
}

// hold has a message wait.
func (s *sieve) hold(b []byte, from *endpoint, due time.Time) {
	if len(s.held) == maxHeld {
		return
	}
	h := heldMessage{due: due, size: len(b), from: from}
	copy(h.message[:], b)
	at := len(s.held)
	for at > 0 && s.held[at-1].due.After(due) {
		at--
	}
	if s.held = slices.Insert(s.held, at, h); at == 0 {
		s.wake(due)
	}
}

// release hands out the messages that are due.
func (s *sieve) release(bufs [][]byte, sizes []int, eps []conn.Endpoint) int {
	n := 0
	for now := time.Now(); n < min(len(s.held), len(bufs)) && !s.held[n].due.After(now); n++ {
		h := &s.held[n]
		sizes[n], eps[n] = copy(bufs[n], h.message[:h.size]), h.from
	}
	var next time.Time // none
	if s.held = slices.Delete(s.held, 0, n); len(s.held) > 0 {
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
