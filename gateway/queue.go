package gateway

import (
	"net/netip"
	"sync"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// frameSize is the room for one packet in a queue, in bytes.
const frameSize = 1500

// frameQueue holds copies of packets between those who make them and the one who
// takes them. It is bounded, and its memory is made once. It must be set up by init.
type frameQueue struct {
	mu     sync.Mutex
	filled sync.Cond // there is something to take, or nothing ever will be
	slots  [][]byte
	sizes  []int
	head   int // next to take
	count  int
	closed bool
}

// init makes room for n packets.
func (q *frameQueue) init(n int) {
	q.filled.L = &q.mu
	q.slots, q.sizes = make([][]byte, n), make([]int, n)
	mem := make([]byte, n*frameSize)
	for i := range q.slots {
		q.slots[i] = mem[i*frameSize : (i+1)*frameSize : (i+1)*frameSize]
	}
}

// next returns the slot that the next packet is written to, nil when the queue is
// full or closed. The lock is held.
func (q *frameQueue) next() []byte {
	if q.count == len(q.slots) || q.closed {
		return nil
	}
	return q.slots[(q.head+q.count)%len(q.slots)]
}

// commit makes the slot that next returned part of the queue. The lock is held.
func (q *frameQueue) commit(n int) {
	q.sizes[(q.head+q.count)%len(q.slots)] = n
	q.count++
	q.filled.Signal()
}

// put queues a copy of b, in fragments where it is longer than mtu: all of it or
// nothing. The lock is held.
func (q *frameQueue) put(b []byte, mtu int) bool {
	if len(b) <= mtu {
		slot := q.next()
		if slot == nil || len(b) > len(slot) {
			return false
		}
		q.commit(copy(slot, b))
		return true
	}
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

// push queues a copy of b as put does.
func (q *frameQueue) push(b []byte, mtu int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.put(b, mtu)
}

// take copies queued packets into bufs and returns how many.
func (q *frameQueue) take(bufs [][]byte, sizes []int, offset int) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.move(bufs, sizes, offset)
}

// forget empties the packets to an address, and returns how many they were; whoever
// takes them finds no bytes.
func (q *frameQueue) forget(to netip.Addr) (n int) {
	dst := to.As4()
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.count {
		at := (q.head + i) % len(q.slots)
		if q.sizes[at] > 0 && [4]byte(q.slots[at][16:20]) == dst { // RFC 791 section 3.1: the destination
			q.sizes[at] = 0
			n++
		}
	}
	return n
}

// wait is take, but waits until there is something. It returns 0 after close.
func (q *frameQueue) wait(bufs [][]byte, sizes []int, offset int) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.count == 0 && !q.closed {
		q.filled.Wait()
	}
	if q.closed {
		return 0
	}
	return q.move(bufs, sizes, offset)
}

// move is take with the lock held.
func (q *frameQueue) move(bufs [][]byte, sizes []int, offset int) int {
	n := 0
	for n < len(bufs) && q.count > 0 {
		sizes[n] = copy(bufs[n][offset:], q.slots[q.head][:q.sizes[q.head]])
		q.head = (q.head + 1) % len(q.slots)
		q.count--
		n++
	}
	return n
}

// close ends waiting, and lets nothing in any more.
func (q *frameQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.filled.Broadcast()
}
