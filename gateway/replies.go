package gateway

import (
	"sync"

	"github.com/sallyport-net/sallyport/internal/packet"
)

const (
	replySlots = 512
	replySize  = 1500
	// errorRate and errorBurst bound the ICMP errors and resets that the
	// gateway makes for one network, per second (RFC 1812 section 4.3.2.8).
	// The bucket is the network's own, so that nobody outside it can read
	// anything from it.
	errorRate  = 1000
	errorBurst = 500
)

// replyQueue holds what the gateway itself says to the sandboxes of one network
// until Forwarder.Read takes it. It is bounded, and its memory is made once.
type replyQueue struct {
	mu    sync.Mutex
	slots [replySlots][]byte
	sizes [replySlots]int
	head  int // next to take
	count int

	tokens int64 // nanotokens: errorRate tokens a second
	filled packet.Instant
}

const nanotoken = int64(1e9)

func newReplyQueue(now packet.Instant) *replyQueue {
	q := &replyQueue{tokens: errorBurst * nanotoken, filled: now}
	mem := make([]byte, replySlots*replySize)
	for i := range q.slots {
		q.slots[i] = mem[i*replySize : (i+1)*replySize : (i+1)*replySize]
	}
	return q
}

// next returns the slot that the next reply is written to, nil when full. The
// lock is held.
func (q *replyQueue) next() []byte {
	if q.count == replySlots {
		return nil
	}
	return q.slots[(q.head+q.count)%replySlots]
}

// commit makes the slot that next returned part of the queue.
func (q *replyQueue) commit(n int) {
	q.sizes[(q.head+q.count)%replySlots] = n
	q.count++
}

// allow takes one token of the error budget. The lock is held.
func (q *replyQueue) allow(now packet.Instant) bool {
	if d := int64(now - q.filled); d > 0 {
		q.tokens = min(q.tokens+min(d, nanotoken)*errorRate, errorBurst*nanotoken)
		q.filled = now
	}
	if q.tokens < nanotoken {
		return false
	}
	q.tokens -= nanotoken
	return true
}

// pushError queues an ICMP error about p. It reports whether it did: the rate,
// a full queue, or RFC 1812 section 4.3.2.7 may forbid it.
func (q *replyQueue) pushError(e icmpError, from *Forwarder, about *packet.Packet, now packet.Instant) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	slot := q.next()
	if slot == nil || !q.allow(now) {
		return false
	}
	n := packet.BuildICMPError(slot, e.typ, e.code, e.info, from.gateway, about)
	if n == 0 {
		return false
	}
	q.commit(n)
	return true
}

// pushRST queues a reset that answers p.
func (q *replyQueue) pushRST(about *packet.Packet, now packet.Instant) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	slot := q.next()
	if slot == nil || !q.allow(now) {
		return false
	}
	n := packet.BuildRST(slot, about)
	if n == 0 {
		return false
	}
	q.commit(n)
	return true
}

// push queues a copy of b, an answer of a local service.
func (q *replyQueue) push(b []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	slot := q.next()
	if slot == nil || len(b) > len(slot) {
		return false
	}
	q.commit(copy(slot, b))
	return true
}

// pushFragments queues b in fragments that fit mtu, all of them or none.
func (q *replyQueue) pushFragments(b []byte, mtu int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	before := q.count
	for at := 0; ; {
		slot := q.next()
		n := 0
		if slot != nil {
			n, at = packet.NextFragment(slot, b, mtu, at)
		}
		if n == 0 {
			q.count = before
			return false
		}
		q.commit(n)
		if at == 0 {
			return true
		}
	}
}

// take copies queued replies into bufs and returns how many.
func (q *replyQueue) take(bufs [][]byte, sizes []int, offset int) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < len(bufs) && q.count > 0 {
		sizes[n] = copy(bufs[n][offset:], q.slots[q.head][:q.sizes[q.head]])
		q.head = (q.head + 1) % replySlots
		q.count--
		n++
	}
	return n
}
