package uplink

import (
	"sync"
	"time"
)

// A session whose sockets are closed may not be over for the sandbox: the stack
// still holds what the sandbox has not acknowledged, and the table drops what
// it no longer knows. So the table is told later: after a time in which even a slow
// sandbox takes what a short session sent, or else a longer one for the
// stack's largest buffer of 4 MiB. Both are shorter than the time for which a table
// holds a released port (120 s), so that the flow is not another one by then; where
// the sandbox itself began it anew, the table is not told.
const (
	shortSession = 32 << 10
	lingerShort  = 5 * time.Second
	lingerLong   = 100 * time.Second
	// lingerMost bounds how many wait; beyond it the table hears of the oldest early.
	lingerMost = 1 << 16
)

// linger holds back the events of sessions that are over.
type linger struct {
	events   *events
	sessions *sessions

	mu     sync.Mutex
	queues [2]lingerQueue // short, long
	closed bool
}

// lingerQueue is a queue of sessions that all wait equally long.
type lingerQueue struct {
	wait    time.Duration
	waiting []lingering // by due
	timer   *time.Timer // nil while nothing waits
}

type lingering struct {
	key flowKey
	due time.Time
}

func (l *linger) init(e *events, s *sessions) {
	l.events, l.sessions = e, s
	l.queues[0].wait, l.queues[1].wait = lingerShort, lingerLong
}

// tell says that a session is over, unless it lives again.
func (l *linger) tell(key flowKey) {
	if !l.sessions.knows(key) {
		l.events.emit(Event{SessionClosed, key.flow()})
	}
}

// add has the table told of a session that sent n bytes to the sandbox.
func (l *linger) add(key flowKey, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	q := &l.queues[0]
	if n > shortSession {
		q = &l.queues[1]
	}
	if len(q.waiting) == lingerMost {
		l.tell(q.waiting[0].key)
		q.waiting = q.waiting[1:]
	}
	q.waiting = append(q.waiting, lingering{key, time.Now().Add(q.wait)})
	if q.timer == nil {
		q.timer = time.AfterFunc(q.wait, func() { l.expire(q, time.Now()) })
	}
}

// expire tells of the sessions of q that are due.
func (l *linger) expire(q *lingerQueue, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(q.waiting) > 0 && !q.waiting[0].due.After(now) {
		l.tell(q.waiting[0].key)
		q.waiting = q.waiting[1:]
	}
	if len(q.waiting) == 0 {
		q.waiting, q.timer = nil, nil
		return
	}
	q.timer.Reset(q.waiting[0].due.Sub(now))
}

// close forgets all.
func (l *linger) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for i := range l.queues {
		q := &l.queues[i]
		if q.timer != nil {
			q.timer.Stop()
		}
		q.waiting = nil
	}
}
