package netstack

import (
	"os"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// outbound is one thing to be read: a packet of the stack, which may be a large
// TCP segment that yields several packets, or a packet that was injected.
type outbound struct {
	pkt    *stack.PacketBuffer // a reference is held; nil for an injected packet
	raw    *[]byte             // injected packet, from the device's pool
	weight int                 // packets at the MTU that this yields; at least 1
	waits  bool                // its sender would have waited, so that it counts as sent
}

// queue holds what the stack sent until it is read. Its size is counted in
// packets at the MTU, so that large segments do not stretch it; the last one to
// enter may overshoot a limit by its own weight.
//
// Those that can wait do so as soon as a batch of theirs is there: more in the queue
// would leave the cache before it is read, and a sender that waits here holds its
// connection, so that its turn must not be long in coming.
type queue struct {
	limit   int // beyond it injected packets are refused, and senders wait
	senders int // of packets whose senders wait: beyond it they do
	reserve int // what replies may use beyond the limit

	mu      sync.Mutex
	ready   sync.Cond // something to read, woken, or closed
	room    sync.Cond // below the limit again, or closed
	ring    []outbound
	head    int
	count   int
	weight  int
	sent    int // the part of weight whose senders would have waited
	waiting int // senders waiting for room
	woken   bool
	closed  bool
}

func newQueue(limit, reserve int) *queue {
	q := &queue{limit: limit, senders: min(limit, BatchSize), reserve: reserve, ring: make([]outbound, 64)}
	q.ready.L = &q.mu
	q.room.L = &q.mu
	return q
}

// put waits for room and appends o. It reports false when the queue is closed.
func (q *queue) put(o outbound) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.full() && !q.closed {
		q.waiting++
		q.room.Wait()
		q.waiting--
	}
	o.waits = true
	ok := q.append(o)
	q.pass()
	return ok
}

// full says whether senders wait.
func (q *queue) full() bool { return q.weight >= q.limit || q.sent >= q.senders }

// pass wakes a sender that waits, if there is room. That one wakes the next: a few large
// segments fill the queue, and all others that woke would wait again, behind the rest.
func (q *queue) pass() {
	if q.waiting > 0 && !q.full() {
		q.room.Signal()
	}
}

// offer appends o without waiting, unless the queue holds more than the limit and extra.
func (q *queue) offer(o outbound, extra int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.weight < q.limit+extra && q.append(o)
}

// append adds o at the end. The caller holds q.mu.
func (q *queue) append(o outbound) bool {
	if q.closed {
		return false
	}
	if q.count == len(q.ring) {
		grown := make([]outbound, 2*len(q.ring))
		n := copy(grown, q.ring[q.head:])
		copy(grown[n:], q.ring[:q.head])
		q.ring, q.head = grown, 0
	}
	q.ring[(q.head+q.count)&(len(q.ring)-1)] = o
	q.count++
	q.weight += o.weight
	if o.waits {
		q.sent += o.weight
	}
	if q.count == 1 {
		q.ready.Signal()
	}
	return true
}

// take moves what there is to dst, in order, until the weight moved reaches
// want. If there is nothing and it may wait, it does, until there is
// something or a wake-up. It returns os.ErrClosed once the queue is closed.
func (q *queue) take(dst []outbound, want int, wait bool) ([]outbound, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for wait && q.count == 0 && !q.woken && !q.closed {
		q.ready.Wait()
	}
	if q.closed {
		return dst, os.ErrClosed
	}
	if wait {
		q.woken = false
	}
	moved := 0
	for q.count > 0 && moved < want {
		o := &q.ring[q.head]
		moved += o.weight
		if o.waits {
			q.sent -= o.weight
		}
		dst = append(dst, *o)
		*o = outbound{}
		q.head = (q.head + 1) & (len(q.ring) - 1)
		q.count--
	}
	q.weight -= moved
	q.pass()
	return dst, nil
}

// wake lets take return once without anything.
func (q *queue) wake() {
	q.mu.Lock()
	q.woken = true
	q.ready.Signal()
	q.mu.Unlock()
}

// close ends all waiting and returns what was queued.
func (q *queue) close() []outbound {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	q.closed = true
	rest := make([]outbound, 0, q.count)
	for ; q.count > 0; q.count-- {
		rest = append(rest, q.ring[q.head])
		q.head = (q.head + 1) & (len(q.ring) - 1)
	}
	q.ring, q.weight, q.sent = nil, 0, 0
	q.ready.Broadcast()
	q.room.Broadcast()
	return rest
}

// len returns how many packets at the MTU are queued.
func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.weight
}
