package tundev

import (
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Both directions work the same way: the goroutine hands its batch to the
// netpoller's raw connection, which calls step with the descriptor; step does
// system calls until the batch is done or the kernel answers EAGAIN, and only
// then does the goroutine wait. The batch is kept in the struct and not in a
// closure, so that a call allocates nothing.

// reader is the state of Device.Read.
type reader struct {
	mu   sync.Mutex
	dev  *Device
	raw  syscall.RawConn
	step func(fd uintptr) bool

	bufs   [][]byte
	sizes  []int
	offset int
	n      int
	err    error
}

func (r *reader) init(d *Device) {
	r.dev = d
	r.step = r.drain
}

// Read waits for packets and then takes all that are there, at most BatchSize; none where
// [Device.Wake] ended the waiting.
// Packets that are not IPv4 or too long are dropped, counted, and not seen here.
// An error means that the device is of no more use: os.ErrClosed after Close, or
// what the kernel said when the interface was taken away.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if len(bufs) == 0 {
		return 0, nil
	}
	if len(sizes) < len(bufs) {
		return 0, fmt.Errorf("tundev: read: %d sizes for %d buffers: %w", len(sizes), len(bufs), io.ErrShortBuffer)
	}
	r := &d.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.raw == nil {
		raw, err := d.file.SyscallConn()
		if err != nil {
			return 0, d.explain(err)
		}
		r.raw = raw
	}
	r.bufs, r.sizes, r.offset, r.n, r.err = bufs[:min(len(bufs), BatchSize)], sizes, offset, 0, nil
	err := r.run()
	r.bufs, r.sizes = nil, nil
	if r.n > 0 {
		return r.n, nil // an error that stays comes again with the next Read
	}
	if err == nil {
		err = r.err
	}
	if err == nil {
		return 0, nil
	}
	if err = d.explain(err); err != os.ErrClosed {
		err = fmt.Errorf("tundev: read from %s: %w", d.file.Name(), err)
	}
	return 0, err
}

// drain is called by the netpoller; it reports whether Read is done.
func (r *reader) drain(fd uintptr) bool {
	d := r.dev
	for r.n < len(r.bufs) {
		b := r.bufs[r.n]
		n, err := d.medium.receive(int(fd), b[min(r.offset, len(b)):])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return r.n > 0 || !d.waker.wait()
		case err != nil:
			if d.medium.survives(int(fd), err) {
				continue
			}
			r.err = err
			return true
		case n > 0:
			if n > d.mtu {
				d.count.tooBig.Add(1)
				continue
			}
			r.sizes[r.n] = n
			r.n++
			d.count.read.Add(1)
			d.count.readBytes.Add(uint64(n))
		}
	}
	return true
}

// writer is the state of Device.Write.
type writer struct {
	mu   sync.Mutex
	dev  *Device
	raw  syscall.RawConn
	step func(fd uintptr) bool

	bufs   [][]byte
	offset int
	i, n   int
	err    error
}

func (w *writer) init(d *Device) {
	w.dev = d
	w.step = w.flush
}

// Write hands every packet of bufs (each from offset on) to the kernel and
// returns how many it took. Empty packets are skipped. It waits while the kernel
// says that the descriptor is busy; a packet for which the kernel has no buffer
// (ENOBUFS) is dropped and counted, as a full queue is no fault; after any other
// error the rest is written nevertheless and the first error is returned. The
// buffers are the caller's again when Write returns.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	w := &d.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.raw == nil {
		raw, err := d.file.SyscallConn()
		if err != nil {
			return 0, d.explain(err)
		}
		w.raw = raw
	}
	w.bufs, w.offset, w.i, w.n, w.err = bufs, offset, 0, 0, nil
	err := w.raw.Write(w.step)
	w.bufs = nil
	if err == nil {
		err = w.err
	}
	if err == nil {
		return w.n, nil
	}
	if err = d.explain(err); err != os.ErrClosed {
		err = fmt.Errorf("tundev: write to %s: %w", d.file.Name(), err)
	}
	return w.n, err
}

// flush is called by the netpoller; it reports whether Write is done.
func (w *writer) flush(fd uintptr) bool {
	for w.i < len(w.bufs) {
		b := w.bufs[w.i]
		b = b[min(w.offset, len(b)):]
		if len(b) > 0 {
			err := w.one(int(fd), b)
			if err == unix.EAGAIN {
				return false
			}
			if err == unix.EINTR {
				continue
			}
			if err != nil && w.err == nil {
				w.err = err
			}
		}
		w.i++
	}
	return true
}

// one sends one packet and counts what became of it.
func (w *writer) one(fd int, b []byte) error {
	count := w.dev.count
	if !isIPv4(b) {
		count.notIPv4.Add(1)
		return nil
	}
	if len(b) > w.dev.mtu {
		count.tooBig.Add(1)
		return nil
	}
	switch err := w.dev.medium.send(fd, b); err {
	case nil:
		w.n++
		count.written.Add(1)
		count.writtenBytes.Add(uint64(len(b)))
		return nil
	case unix.EAGAIN, unix.EINTR:
		return err
	case unix.ENOBUFS:
		count.queueFull.Add(1)
		return nil
	default:
		count.writeErrors.Add(1)
		return err
	}
}
