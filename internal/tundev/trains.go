package tundev

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Offload says in a few words what the kernel does in the device's place.
func (d *Device) Offload() Offload { return d.offloads }

// ReadTrains waits for trains and then takes all that are there and for which it has room:
// at most len(trains), or about 60 KiB and the train behind them. Single packets have a whole
// checksum. Where trains come as such they are Partial. The bytes are the device's, may be
// changed, and are valid until the next call. What Read says of drops, errors and Wake goes
// for trains, too. A device is read either by Read or by ReadTrains.
func (d *Device) ReadTrains(trains []packet.Train) (int, error) {
	if len(trains) == 0 {
		return 0, nil
	}
	r := &d.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.open(); err != nil {
		return 0, d.explain(err)
	}
	if r.slab != nil {
		r.slab.used = 0
	}
	r.trains = trains
	r.step = r.collect
	n, err := r.work()
	r.trains = nil
	return n, err
}

// collectTrains is called by the netpoller; it reports whether ReadTrains is done.
func (r *reader) collectTrains(fd uintptr) bool {
	d := r.dev
	if r.slab == nil {
		r.slab = d.scratch.takeSlab()
		r.slab.used = 0
	}
	s := r.slab
	for r.n < len(r.trains) && s.used < enoughBytes {
		n, err := r.collectOne(int(fd), s)
		if ends, done := r.fails(int(fd), err); ends {
			if !done {
				s.cutter = packet.Cutter{}
				d.scratch.slabs.Put(s)
				r.slab = nil
			}
			return done
		}
		s.used += (n + 15) &^ 15
	}
	return true
}

// collectOne reads one train into the slab. It returns how much of the slab that uses.
func (r *reader) collectOne(fd int, s *slabScratch) (n int, err error) {
	d, room := r.dev, s.bytes[s.used:]
	t := &r.trains[r.n]
	if d.offloads.VNet {
		if n, err = rawRead(fd, room[:vnetLen+maxMTU]); err != nil || !d.judge(room[:n], t, &s.cutter) {
			return 0, err
		}
	} else {
		if n, err = d.medium.receive(fd, room[:maxMTU]); err != nil || n == 0 {
			return 0, err
		}
		*t = packet.Train{Head: room[:n:n]}
	}
	packets, largest := t.Segments()
	if largest > d.mtu {
		d.count.tooBig.Add(uint64(packets))
		return 0, nil
	}
	r.n++
	d.count.read.Add(uint64(packets))
	d.count.readBytes.Add(uint64(t.Bytes()))
	return n, nil
}

// judge makes t a train of a packet with its vnet header, or counts why not.
func (d *Device) judge(b []byte, t *packet.Train, c *packet.Cutter) bool {
	if len(b) < vnetLen || !isIPv4(b[vnetLen:]) {
		d.count.notIPv4.Add(1)
		return false
	}
	if !(*vnetHeader)(b).train(b[vnetLen:len(b):len(b)], t, c) {
		d.count.malformed.Add(1)
		return false
	}
	return true
}

// start makes a Cutter ready for t, or counts why not.
func (d *Device) start(t *packet.Train, c *packet.Cutter) bool {
	o := c.Start(t, d.mtu)
	switch o {
	case packet.Pass:
	case packet.TooBig:
		n, _ := t.Segments()
		d.count.tooBig.Add(uint64(n))
	default:
		d.count.malformed.Add(1)
	}
	return o == packet.Pass
}

// writer is the state of Device.Write and Device.WriteTrains.
type writer struct {
	mu   sync.Mutex
	dev  *Device
	raw  syscall.RawConn
	step func(fd uintptr) bool

	trains  []packet.Train
	i       int // of the train that is being written
	way     way
	scratch *outScratch

	lost    bool  // a packet of that train
	whole   int   // trains that were written whole
	packets int   // that were written
	err     error // the first of those of packets
	fatal   error // the poller's
}

// way is how a train is written.
type way uint8

const (
	unprepared way = iota // not yet known
	direct                // a single packet: by the medium
	vectored              // as a whole, behind a vnet header
	pieces                // packet by packet
)

func (w *writer) init(d *Device) {
	w.dev = d
	w.step = w.flush
}

// WriteTrains hands every train to the kernel, each by one system call where the kernel takes
// trains, or this one, and else packet by packet. It returns how many trains the kernel has
// taken whole. The largest packet of a train must not exceed the MTU; TCP is cut smaller. What
// Write says of errors goes for trains, too. The checksum fields of heads are changed; else
// trains and bytes are the caller's as they were.
func (d *Device) WriteTrains(trains []packet.Train) (int, error) {
	w := &d.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begin()
	defer w.end()
	w.work(trains)
	return w.whole, w.failure()
}

// begin readies the writer for a call.
func (w *writer) begin() {
	w.scratch = w.dev.scratch.takeOut()
	w.whole, w.packets, w.err, w.fatal = 0, 0, nil, nil
	if w.raw == nil {
		w.raw, w.fatal = w.dev.file.SyscallConn()
	}
}

func (w *writer) end() {
	w.dev.scratch.giveOut(w.scratch)
	w.scratch = nil
}

// work writes trains.
func (w *writer) work(trains []packet.Train) {
	if w.fatal != nil || len(trains) == 0 {
		return
	}
	w.trains, w.i, w.way, w.lost = trains, 0, unprepared, false
	w.fatal = w.raw.Write(w.step)
	w.trains = nil
}

// failure is the error of a call.
func (w *writer) failure() error {
	d, err := w.dev, w.fatal
	if err == nil {
		err = w.err
	}
	if err == nil {
		return nil
	}
	if err = d.explain(err); err != os.ErrClosed {
		err = fmt.Errorf("tundev: write to %s: %w", d.file.Name(), err)
	}
	return err
}

// flush is called by the netpoller; it reports whether all trains are written.
func (w *writer) flush(fd uintptr) bool {
	for w.i < len(w.trains) {
		t := &w.trains[w.i]
		if w.way == unprepared && !w.prepare(t) {
			w.i++
			continue
		}
		more, err := w.send(int(fd), t)
		switch err {
		case nil:
		case unix.EAGAIN:
			return false
		case unix.EINTR:
			continue
		case unix.EINVAL:
			if w.way == vectored && t.Size > 0 {
				w.begins(pieces) // kernels differ in what makes sense to them
				continue
			}
			w.refused(t, err)
		case unix.ENOBUFS:
			w.lost = true
			w.dev.count.queueFull.Add(uint64(w.loss(t)))
		default:
			w.refused(t, err)
		}
		if !more {
			if !w.lost {
				w.whole++
			}
			w.i++
			w.way, w.lost = unprepared, false
		}
	}
	return true
}

// refused counts what of t could not be sent.
func (w *writer) refused(t *packet.Train, err error) {
	w.lost = true
	w.dev.count.writeErrors.Add(uint64(w.loss(t)))
	if w.err == nil {
		w.err = err
	}
}

// begins has the train, whose cutter is ready, be written in a way.
func (w *writer) begins(way way) {
	w.way, w.scratch.piece = way, nil
}

// loss returns how many packets are lost where t could not be sent the way it was tried.
func (w *writer) loss(t *packet.Train) int {
	if w.way != vectored {
		return 1
	}
	n, _ := t.Segments()
	return n
}

// prepare finds the way of a train; there is none where it is dropped.
func (w *writer) prepare(t *packet.Train) bool {
	d, s := w.dev, w.scratch
	if len(t.Head) == 0 {
		return false
	}
	if !isIPv4(t.Head) {
		d.count.notIPv4.Add(1)
		return false
	}
	if !d.start(t, &s.cutter) {
		return false
	}
	o := d.offloads
	train := t.Size > 0 || t.Partial
	switch {
	case !o.VNet && !train && len(t.Rest) == 0:
		w.begins(direct)
	case !o.VNet, len(t.Rest) > maxRest, t.Size > 0 && !o.TCP, t.Size > 0 && !o.UDP && packet.Proto(t.Head[9]) == packet.UDP:
		w.begins(pieces)
	default:
		w.begins(vectored)
		s.header.put(t, s.cutter.Payload())
	}
	return true
}

// send writes a train, or one packet of it, and says whether there are more.
func (w *writer) send(fd int, t *packet.Train) (more bool, err error) {
	s := w.scratch
	switch w.way {
	case vectored:
		err = w.vector(fd, t.Head, t.Rest)
		if err == nil {
			n, _ := t.Segments()
			w.wrote(n, t.Bytes())
		}
		return false, err
	case pieces:
		if len(s.piece) == 0 {
			s.piece = w.next()
		}
		more = s.cutter.More()
		n := len(s.piece)
		if w.dev.offloads.VNet {
			s.header = vnetHeader{}
			err = w.vector(fd, s.piece, nil)
		} else {
			err = w.dev.medium.send(fd, s.piece)
		}
		if err == unix.EAGAIN || err == unix.EINTR {
			return true, err
		}
		s.piece = nil
		if err == nil {
			w.wrote(1, n)
		}
		return more, err
	}
	if err = w.dev.medium.send(fd, t.Head); err == nil {
		w.wrote(1, len(t.Head))
	}
	return false, err
}

// next cuts the next packet of the train.
func (w *writer) next() []byte {
	s := w.scratch
	if s.pieces == nil {
		s.pieces = make([]byte, maxMTU)
	}
	return s.pieces[:s.cutter.Next(s.pieces)]
}

func (w *writer) wrote(packets, bytes int) {
	w.packets += packets
	w.dev.count.written.Add(uint64(packets))
	w.dev.count.writtenBytes.Add(uint64(bytes))
}

// vector writes the header of the scratch, head and rest by one system call.
func (w *writer) vector(fd int, head []byte, rest [][]byte) error {
	s := w.scratch
	v := append(s.vectors[:0], vector(s.header[:]), vector(head))
	for _, b := range rest {
		if len(b) > 0 {
			v = append(v, vector(b))
		}
	}
	_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)))
	runtime.KeepAlive(v)
	clear(v)
	if errno != 0 {
		return errno
	}
	return nil
}

func vector(b []byte) unix.Iovec {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return v
}

// rawRead is a read that the scheduler is not told of, since the descriptor never blocks:
// telling costs more than most reads.
func rawRead(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
