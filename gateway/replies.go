package gateway

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// replySlots is how many replies wait at most.
const replySlots = 512

// replyQueue holds what the gateway itself says to the sandboxes of one network
// until Forwarder.Read takes it.
type replyQueue struct {
	frameQueue
	budget errorBudget
}

func newReplyQueue() *replyQueue {
	q := &replyQueue{}
	q.init(replySlots)
	return q
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
