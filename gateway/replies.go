package gateway

import (
	"net/netip"
	"sync"

	"github.com/sallyport-net/sallyport/internal/packet"
)

const (
	replySlots = 512
	replySize  = 1500
)

// replyQueue holds what the gateway itself says to the sandboxes of one network
// until Forwarder.Read takes it. It is bounded, and its memory is made once.
type replyQueue struct {
	mu     sync.Mutex
	slots  [replySlots][]byte
	sizes  [replySlots]int
	head   int // next to take
	count  int
	budget errorBudget
}

func newReplyQueue() *replyQueue {
	q := &replyQueue{}
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

// pushError queues an ICMP error about p. It reports whether it did: the rate,
// a full queue, or RFC 1812 section 4.3.2.7 may forbid it.
func (q *replyQueue) pushError(e icmpError, from netip.Addr, about *packet.Packet, now packet.Instant) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	slot := q.next()
	if slot == nil || !q.budget.allow(about.Src, now) {
		return false
	}
	n := packet.BuildICMPError(slot, e.typ, e.code, e.info, from, about)
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
	if slot == nil || !q.budget.allow(about.Src, now) {
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

// The bounds of the ICMP errors and resets that the gateway makes (RFC 1812
// section 4.3.2.8). They are a network's own, so that nobody outside it can read
// anything from them, and a sandbox's own, so that one that floods does not
// silence the errors of the others.
const (
	networkErrors  = packet.Instant(1e6) // one a millisecond
	networkBurst   = 500
	sandboxErrors  = packet.Instant(1e7) // one in 10 ms
	sandboxBurst   = 100
	sandboxBuckets = 1024 // a power of two
)

// errorBudget counts what may still be sent. Its zero value is full.
type errorBudget struct {
	network bucket
	// sandboxes are found by the last bits of the inner address, so that
	// memory is bounded; the few that meet share one.
	sandboxes [sandboxBuckets]bucket
}

// allow takes one error about a packet of a sandbox from its budget and from the
// network's.
func (b *errorBudget) allow(inner netip.Addr, now packet.Instant) bool {
	a := inner.As4()
	mine := &b.sandboxes[(int(a[2])<<8|int(a[3]))%sandboxBuckets]
	return mine.take(now, sandboxErrors, sandboxBurst) && b.network.take(now, networkErrors, networkBurst)
}

// bucket is a token bucket, told as the moment when it is full again.
type bucket packet.Instant

// take has one token, of which one comes per interval and burst fit in.
func (b *bucket) take(now, interval packet.Instant, burst int) bool {
	next := max(packet.Instant(*b), now) + interval
	if next-now > packet.Instant(burst)*interval {
		return false
	}
	*b = bucket(next)
	return true
}
