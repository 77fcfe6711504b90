package uplink

import (
	"sync"
	"sync/atomic"
)

// eventQueue is how many events may wait for the tables' owner.
const eventQueue = 4096

// events is the bounded channel of Uplink.Events.
type events struct {
	ch   chan Event
	lost atomic.Uint64

	mu     sync.RWMutex // held for writing to close ch
	closed bool
}

// emit appends e, or counts that there was no room.
func (q *events) emit(e Event) {
	q.mu.RLock()
	defer q.mu.RUnlock()
	if q.closed {
		return
	}
	select {
	case q.ch <- e:
	default:
		q.lost.Add(1)
	}
}

func (q *events) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	close(q.ch)
}

// budget is a number of things that may be had at once.
type budget struct {
	limit int64
	used  atomic.Int64
}

// take has one more, if there is one.
func (b *budget) take() bool {
	if b.used.Add(1) > b.limit {
		b.used.Add(-1)
		return false
	}
	return true
}

// give has one less.
func (b *budget) give() { b.used.Add(-1) }
