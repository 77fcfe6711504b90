package tundev

import (
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Both directions work the same way: the goroutine hands its batch to the
// netpoller's raw connection, which calls step with the descriptor; step does
// system calls until the batch is done or the kernel answers EAGAIN, and only
// then does the goroutine wait. The batch is kept in the struct and not in a
// closure, so that a call allocates nothing.

// reader is the state of Device.Read and Device.ReadTrains.
type reader struct {
	mu   sync.Mutex
	dev  *Device
	raw  syscall.RawConn
	step func(fd uintptr) bool // one of the next two
	// drain and collect are the steps of Read and of ReadTrains.
	drain, collect func(fd uintptr) bool

	bufs   [][]byte
	sizes  []int
	offset int
	trains []packet.Train
	n      int
	err    error
	// doubts is how often it is still to be looked whether an interface that went down
	// exists: of one that goes, the kernel tells a packet socket only that it goes down.
	doubts int

	frame *frameScratch // nil while the device is idle
	slab  *slabScratch  // nil while the device is idle
}

const (
	doubtInterval = 100 * time.Millisecond
	maxDoubts     = 50
)

func (r *reader) init(d *Device) {
	r.dev = d
	r.collect = r.collectTrains
	if r.drain = r.drainPackets; d.offloads.VNet {
		r.drain = r.drainTrains
	}
}

// open gets the raw connection, once.
func (r *reader) open() (err error) {
	if r.raw == nil {
		r.raw, err = r.dev.file.SyscallConn()
	}
	return err
}

// Read waits for packets and then takes all that are there, at most BatchSize; none where
// [Device.Wake] ended the waiting. Trains are cut to the MTU.
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
	if err := r.open(); err != nil {
		return 0, d.explain(err)
	}
	r.bufs, r.sizes, r.offset = bufs[:min(len(bufs), BatchSize)], sizes, offset
	r.step = r.drain
	n, err := r.work()
	r.bufs, r.sizes = nil, nil
	if r.frame != nil && !r.frame.cutter.More() {
		r.release()
	}
	return n, err
}

// work runs the step and says what came of it.
func (r *reader) work() (int, error) {
	d := r.dev
	r.n, r.err = 0, nil
	err := r.run()
	if r.n > 0 {
		return r.n, nil // an error that stays comes again with the next call
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

// release gives back the memory of Read, in which nothing is left.
func (r *reader) release() {
	r.frame.train = packet.Train{}
	r.frame.cutter = packet.Cutter{}
	r.dev.scratch.frames.Put(r.frame)
	r.frame = nil
}

// fails says whether err ends the step, and then whether the reader has what it waited for.
func (r *reader) fails(fd int, err error) (ends, done bool) {
	switch {
	case err == nil, err == unix.EINTR:
		return false, false
	case err == unix.EAGAIN:
		if r.doubts > 0 {
			if r.doubts--; !r.dev.medium.survives(fd, unix.ENETDOWN) {
				r.err = unix.ENETDOWN
				return true, true
			}
			time.AfterFunc(doubtInterval, r.dev.Wake)
		}
		return true, r.n > 0 || !r.dev.waker.wait()
	case r.dev.medium.survives(fd, err):
		r.doubts = maxDoubts
		return false, false
	}
	r.err = err
	return true, true
}

// drainPackets is called by the netpoller; it reports whether Read is done.
func (r *reader) drainPackets(fd uintptr) bool {
	d := r.dev
	for r.n < len(r.bufs) {
		b := r.bufs[r.n]
		n, err := d.medium.receive(int(fd), b[min(r.offset, len(b)):])
		if ends, done := r.fails(int(fd), err); ends {
			return done
		}
		switch {
		case err != nil || n == 0:
		case n > d.mtu:
			d.count.tooBig.Add(1)
		default:
			r.sizes[r.n] = n
			r.n++
			d.count.read.Add(1)
			d.count.readBytes.Add(uint64(n))
		}
	}
	return true
}

// drainTrains is drainPackets where packets have a vnet header.
func (r *reader) drainTrains(fd uintptr) bool {
	d := r.dev
	if r.frame == nil {
		r.frame = d.scratch.takeFrame()
	}
	f := r.frame
	packets, bytes, done := 0, 0, true
	for r.n < len(r.bufs) {
		if f.cutter.More() {
			n := r.cut(f)
			bytes += n
			if n > 0 {
				packets++
			}
			continue
		}
		n, err := rawRead(int(fd), f.bytes[:])
		ends := false
		if ends, done = r.fails(int(fd), err); ends {
			if !done {
				r.release()
			}
			break
		}
		done = true
		if err == nil && d.judge(f.bytes[:n], &f.train, &f.cutter) {
			d.start(&f.train, &f.cutter)
		}
	}
	d.count.read.Add(uint64(packets))
	d.count.readBytes.Add(uint64(bytes))
	return done
}

// cut hands out the next packet of a train, and says how many bytes it has: 0 where the
// reader's buffer is too short for what is left of the train.
func (r *reader) cut(f *frameScratch) int {
	b := r.bufs[r.n]
	b = b[min(r.offset, len(b)):]
	if f.cutter.Size() > len(b) {
		r.dev.count.tooBig.Add(uint64(f.cutter.Drop()))
		return 0
	}
	n := f.cutter.Next(b)
	r.sizes[r.n] = n
	r.n++
	return n
}

// Write hands every packet of bufs (each from offset on) to the kernel and
// returns how many it took. Where the kernel takes trains, packets that follow each other
// are joined first. Empty packets are skipped. It waits while the kernel
// says that the descriptor is busy; a packet for which the kernel has no buffer
// (ENOBUFS) is dropped and counted, as a full queue is no fault; after any other
// error the rest is written nevertheless and the first error is returned. The
// buffers are the caller's again when Write returns; what is in them may have changed.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	w := &d.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begin()
	defer w.end()
	for rest := bufs; len(rest) > 0 && w.fatal == nil; {
		part := rest[:min(len(rest), BatchSize)]
		rest = rest[len(part):]
		w.work(w.gather(part, offset))
	}
	return w.packets, w.failure()
}

// gather makes trains of packets.
func (w *writer) gather(bufs [][]byte, offset int) []packet.Train {
	s, count := w.scratch, w.dev.count
	n := 0
	joins := w.dev.offloads.TCP && len(bufs) > 1
	for _, b := range bufs {
		b = b[min(offset, len(b)):]
		switch {
		case len(b) == 0:
		case !isIPv4(b):
			count.notIPv4.Add(1)
		case len(b) > w.dev.mtu:
			count.tooBig.Add(1)
		case joins:
			// What is refused here has no kind and goes out as it is.
			packet.Parse(&s.packets[n], b)
			n++
		default:
			s.trains[n] = packet.Train{Head: b}
			n++
		}
	}
	s.used = max(s.used, n)
	if joins {
		return s.coalescer.Coalesce(s.packets[:n])
	}
	return s.trains[:n]
}
