package netstack

import (
	"sync"
	"time"
)

// deadline is a moment after which a channel is closed; it can be moved. The
// zero value is not usable; see newDeadline.
type deadline struct {
	mu     sync.Mutex
	passed chan struct{}
	timer  *time.Timer
}

func newDeadline() deadline { return deadline{passed: make(chan struct{})} }

// channel returns what is closed when the deadline passes. It must be asked
// for at the start of each operation.
func (d *deadline) channel() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.passed
}

// set moves the deadline; the zero time removes it.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	select {
	case <-d.passed:
		d.passed = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		close(d.passed)
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.timer == timer { // else the deadline was moved while this waited for the lock
			close(d.passed)
			d.timer = nil
		}
	})
	d.timer = timer
}

// stop frees the timer.
func (d *deadline) stop() { d.set(time.Time{}) }

// deadlines are the two of a net.Conn, with its methods for them.
type deadlines struct {
	readBy, writeBy deadline
}

func newDeadlines() deadlines {
	return deadlines{readBy: newDeadline(), writeBy: newDeadline()}
}

// SetDeadline implements net.Conn.
func (d *deadlines) SetDeadline(t time.Time) error {
	d.readBy.set(t)
	d.writeBy.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.readBy.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (d *deadlines) SetWriteDeadline(t time.Time) error {
	d.writeBy.set(t)
	return nil
}

// stop frees the timers.
func (d *deadlines) stop() {
	d.readBy.stop()
	d.writeBy.stop()
}
