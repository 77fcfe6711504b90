package tunnel

import (
	"fmt"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/sallyport-net/sallyport/internal/mmsg"
)

// A datagram that arrives: the goroutine hands its buffers to the netpoller's raw
// connection, which calls step with the descriptor -> recvmmsg takes what is there
// into slots of the socket's own, joined (UDP_GRO) or not -> each slot is cut into
// WireGuard's buffers -> only where nothing was there the goroutine waits. What finds
// no buffer stays in its slot for the next call. The call's state is kept in the
// struct and not in a closure, so that it allocates nothing.
//
// The slots are the socket's own, although that costs a copy (as scattering into
// WireGuard's buffers does where the size was not foreseen): what WireGuard hands in
// is 64 KiB each and goes round all of its pools, so that joined datagrams read
// there would make all of that memory resident.

const (
	// slots is how many datagrams, joined or not, one system call takes in at most: one
	// for each datagramsOfSlot that WireGuard takes at once.
	slots           = 16
	datagramsOfSlot = 8
	// slotSize is the largest payload of a UDP datagram, and what the kernel joins at most.
	slotSize = 1 << 16
	// maxReceiveErrors is how many errors in a row are passed over. The kernel reports
	// by them what became of datagrams sent earlier, each once.
	maxReceiveErrors = 16
)

// incoming is the state of one socket's receiver.
type incoming struct {
	socket *udpSocket
	step   func(fd uintptr) bool

	// Of the call.
	bufs  [][]byte
	sizes []int
	eps   []conn.Endpoint
	n     int // datagrams handed out
	err   error

	// Of the kernel. Messages from next to got wait to be cut; of the first one what is
	// before at has been.
	msgs           []mmsg.Message
	names          []sockaddr
	controls       [][mmsg.ControlSize]byte
	memory         []byte
	got, next, at  int
	segment        int       // of the one that is being cut
	from           *endpoint // the same
	known          endpoints
	errorsInSeries int
}

func newIncoming(s *udpSocket, batch int) *incoming {
	slots := min(max(batch/datagramsOfSlot, 1), slots)
	in := &incoming{
		socket: s, msgs: make([]mmsg.Message, slots), names: make([]sockaddr, slots),
		controls: make([][mmsg.ControlSize]byte, slots), memory: make([]byte, slots*slotSize),
	}
	in.step = in.drain
	iovecs := make([]unix.Iovec, slots)
	for i := range in.msgs {
		iovecs[i].Base = &in.memory[i*slotSize]
		iovecs[i].SetLen(slotSize)
		h := &in.msgs[i].Header
		h.Iov, h.Name, h.Control = &iovecs[i], &in.names[i][0], &in.controls[i][0]
		h.SetIovlen(1)
	}
	return in
}

// receive is a [conn.ReceiveFunc]. One goroutine calls it.
func (in *incoming) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	in.bufs, in.sizes, in.eps, in.n, in.err = bufs, sizes, eps, 0, nil
	in.cut()
	if in.n == 0 {
		// Whoever works on the datagrams before runs first, and more arrive meanwhile:
		// larger batches cost less for each.
		runtime.Gosched()
		if err := in.socket.raw.Read(in.step); err != nil {
			in.err = err
		}
	}
	in.bufs, in.sizes, in.eps = nil, nil, nil
	in.socket.counts.received.Add(uint64(in.n))
	return in.n, in.err
}

// drain is called by the netpoller; it reports whether receive is done.
func (in *incoming) drain(fd uintptr) bool {
	for {
		for i := range in.msgs {
			h := &in.msgs[i].Header
			h.Namelen = unix.SizeofSockaddrInet6
			h.SetControllen(mmsg.ControlSize)
		}
		n, errno := mmsg.Receive(fd, in.msgs)
		switch {
		case errno == unix.EAGAIN:
			return in.n > 0
		case errno == unix.EINTR:
			continue
		case errno != 0:
			if in.fails(errno) {
				return true
			}
			continue
		}
		in.errorsInSeries = 0
		in.got, in.next, in.at = n, 0, 0
		in.socket.counts.runs.Add(uint64(n))
		in.cut()
		if in.next < in.got || in.n == len(in.bufs) {
			return true
		}
		if n < len(in.msgs) && in.n > 0 {
			return true // no more was there a moment ago
		}
	}
}

// fails takes in an error of the kernel, and says whether it ends the call.
func (in *incoming) fails(errno syscall.Errno) bool {
	in.socket.counts.receiveErrors.Add(1)
	if in.errorsInSeries++; in.errorsInSeries <= maxReceiveErrors {
		return false
	}
	// Not the bare errno: WireGuard would give the socket up for good.
	in.err = fmt.Errorf("receive on UDP port %d: %w", in.socket.port, errno)
	return true
}

// cut hands out datagrams from the slots while there are buffers.
func (in *incoming) cut() {
	for ; in.next < in.got && in.n < len(in.bufs); in.next++ {
		size := int(in.msgs[in.next].Size)
		if in.at == 0 {
			if !in.open(size) {
				continue
			}
			if n := (size + in.segment - 1) / in.segment; in.n > 0 && in.n+n > len(in.bufs) {
				// The next call has it whole: what was sent together is joined again behind
				// the tunnel, if it stays together.
				return
			}
		}
		slot := in.memory[in.next*slotSize:][:size]
		for in.at < size {
			if in.n == len(in.bufs) {
				return
			}
			piece := slot[in.at:min(in.at+in.segment, size)]
			in.at += len(piece)
			b := in.bufs[in.n]
			if len(piece) > len(b) {
				in.socket.counts.lost[lossTruncated].Add(1)
				continue
			}
			in.sizes[in.n], in.eps[in.n] = copy(b, piece), in.from
			in.n++
		}
		in.at = 0
	}
}

// open reads what the kernel says of the next slot. False means that there is nothing
// to hand out.
func (in *incoming) open(size int) bool {
	h := &in.msgs[in.next].Header
	if h.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		in.socket.counts.lost[lossTruncated].Add(1)
		return false
	}
	if size == 0 {
		return false // WireGuard has no use for it
	}
	control := mmsg.Parse(in.controls[in.next][:min(uint64(h.Controllen), mmsg.ControlSize)])
	if in.from = in.known.of(&in.names[in.next], sourceOf(&control)); in.from == nil {
		return false
	}
	in.segment = size
	if control.Segment > 0 {
		in.segment = min(control.Segment, size)
	}
	return true
}
