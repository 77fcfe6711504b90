package sidecar

import "sync"

const (
	// queueLength is how many packets wait for one path at most.
	queueLength = 4096
	// queueShare is how many of them one sandbox may have, so that one that floods
	// delays others by no more than this, and all that flood get equal parts.
	queueShare = 256
	// queueUrgent is how many packets wait that go first: the sidecar's own probes.
	queueUrgent = 4
)

// buffer holds one packet on its way from a sandbox to a path.
type buffer struct {
	b     []byte // as long as the MTU
	n     int    // bytes of packet in b
	share *share // whose packet it is; nil for the sidecar's own
	home  *bufferPool
}

// bufferPool hands out buffers of one size.
type bufferPool struct{ pool sync.Pool }

func newBufferPool(mtu int) *bufferPool {
	p := &bufferPool{}
	p.pool.New = func() any { return &buffer{b: make([]byte, mtu), home: p} }
	return p
}

func (p *bufferPool) get() *buffer { return p.pool.Get().(*buffer) }

// free gives the buffer back to its pool.
func (b *buffer) free() {
	b.n, b.share = 0, nil
	b.home.pool.Put(b)
}

// share is one sandbox's part of one queue. It is guarded by the queue's lock.
type share struct {
	queued int
	gone   bool
}

// queue carries packets from the sandboxes to a path. Whoever puts waits while
// there is no room, which leaves the packets in the sandbox's own interface,
// where its kernel slows the programs down; nothing is lost here.
type queue struct {
	mu      sync.Mutex
	filled  sync.Cond // the taker waits for packets
	room    sync.Cond // putters wait for room
	waiting int       // putters that wait
	ring    [queueLength]*buffer
	head, n int
	urgent  [queueUrgent]*buffer
	nUrgent int
	closed  bool
}

func newQueue() *queue {
	q := &queue{}
	q.filled.L, q.room.L = &q.mu, &q.mu
	return q
}

// put appends the packets, which then belong to the queue, and waits for room
// for all of them. It returns false, and takes none, when the queue is closed
// or the sandbox is gone. There must be no more than queueShare.
func (q *queue) put(s *share, packets []*buffer) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed && !s.gone && (s.queued+len(packets) > queueShare || q.n+len(packets) > queueLength) {
		q.waiting++
		q.room.Wait()
		q.waiting--
	}
	if q.closed || s.gone {
		return false
	}
	for _, b := range packets {
		b.share = s
		q.ring[(q.head+q.n)%queueLength] = b
		q.n++
	}
	s.queued += len(packets)
	q.filled.Signal()
	return true
}

// putUrgent puts one packet before all others. It never waits; false means that
// it was not taken.
func (q *queue) putUrgent(b *buffer) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.nUrgent == queueUrgent {
		return false
	}
	q.urgent[q.nUrgent] = b
	q.nUrgent++
	q.filled.Signal()
	return true
}

// take waits for packets and moves as many as there are, at most len(dst), to
// dst. It returns 0 when the queue is closed.
func (q *queue) take(dst []*buffer) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed && q.n == 0 && q.nUrgent == 0 {
		q.filled.Wait()
	}
	if q.closed {
		return 0
	}
	n := copy(dst, q.urgent[:q.nUrgent])
	q.nUrgent = copy(q.urgent[:], q.urgent[n:q.nUrgent])
	for ; n < len(dst) && q.n > 0; n++ {
		b := q.ring[q.head]
		q.ring[q.head] = nil
		q.head = (q.head + 1) % queueLength
		q.n--
		b.share.queued--
		dst[n] = b
	}
	if q.waiting > 0 {
		q.room.Broadcast()
	}
	return n
}

// leave says that the sandbox is gone: it waits no longer and puts no more.
// What it has queued goes on.
func (q *queue) leave(s *share) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s.gone = true
	q.room.Broadcast()
}

// close wakes everyone. Packets that wait are dropped, and their number returned.
func (q *queue) close() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0
	}
	q.closed = true
	q.filled.Broadcast()
	q.room.Broadcast()
	return q.n
}
