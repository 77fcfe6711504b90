package uplink

import "sync"

const (
	// outletSlots and outletBytes bound the datagrams and errors that wait for
	// Read; as many TCP segments may wait in the stack.
	outletSlots = 1024
	outletBytes = 4 << 20
	// slotKept is the largest buffer that a slot keeps for its next packet, in bytes.
	slotKept = 2 << 10
)

// outlet is the queue of packets that do not come from the stack: the stack's own is
// kept full by a single download, since the stack waits rather than drops, and
// what is offered to it then is lost.
type outlet struct {
	mu    sync.Mutex
	slots [outletSlots][]byte
	head  int // next to take
	count int
	bytes int
}

// push appends a copy of pkt. first says that the queue was empty before, so that
// the reader may have to be woken.
func (o *outlet) push(pkt []byte) (first, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.count == outletSlots || o.bytes+len(pkt) > outletBytes {
		return false, false
	}
	slot := &o.slots[(o.head+o.count)%outletSlots]
	*slot = append((*slot)[:0], pkt...)
	o.count++
	o.bytes += len(pkt)
	return o.count == 1, true
}

// take moves packets to bufs, in order, and returns how many.
func (o *outlet) take(bufs [][]byte, sizes []int, offset int) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := min(len(bufs), o.count)
	for i := range n {
		slot := &o.slots[o.head]
		sizes[i] = copy(bufs[i][offset:], *slot)
		o.bytes -= len(*slot)
		if cap(*slot) > slotKept {
			*slot = nil
		}
		o.head = (o.head + 1) % outletSlots
	}
	o.count -= n
	return n
}
