package tundev

import (
	"errors"
	"os"
	"sync/atomic"
	"time"
)

// waker interrupts the goroutine that reads.
//
// The reader says that it waits before it looks whether it was asked; who wakes asks
// before it looks whether somebody waits. So one of them always sees the other.
type waker struct {
	asked   atomic.Bool // a Wake that no Read has answered yet
	waiting atomic.Bool // the reader waits for the descriptor, or is about to
}

// Wake lets a blocked Read, or else the next one, return without waiting: with the packets
// that are there, which may be none. Anyone may call it at any time.
func (d *Device) Wake() {
	d.waker.asked.Store(true)
	if d.waker.waiting.CompareAndSwap(true, false) {
		_ = d.file.SetReadDeadline(time.Unix(1, 0)) // fails when closed, which wakes as well
	}
}

// wait says whether the reader has to wait for the descriptor, which has nothing.
func (w *waker) wait() bool {
	w.waiting.Store(true)
	if w.asked.Swap(false) {
		w.waiting.Store(false)
		return false
	}
	return true
}

// run has the netpoller call r.step until that is done. A deadline is a Wake, perhaps one
// of the past that came late: either way the descriptor is looked at once more.
func (r *reader) run() error {
	w := &r.dev.waker
	err := r.raw.Read(r.step)
	for errors.Is(err, os.ErrDeadlineExceeded) {
		_ = r.dev.file.SetReadDeadline(time.Time{})
		w.asked.Store(true)
		err = r.raw.Read(r.step)
	}
	w.waiting.Store(false)
	w.asked.Store(false)
	return err
}
