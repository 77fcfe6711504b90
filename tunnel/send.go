package tunnel

import (
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/sallyport-net/sallyport/internal/mmsg"
)

// A datagram that leaves: WireGuard hands over a batch for one endpoint -> runs of one
// size become messages of one iovec per datagram, which the kernel is to cut
// (UDP_SEGMENT) -> sendmmsg. Nothing is copied. Senders of several peers do not wait
// for each other, unless the kernel has no room: then they wait in the netpoller.

const (
	// maxSegments is how many datagrams every kernel cuts a message to (UDP_MAX_SEGMENTS).
	maxSegments = 64
	// maxDatagram is the largest payload of a UDP datagram over IPv4 (RFC 768), in bytes.
	maxDatagram = 65535 - 20 - 8
	// maxJoined is how much one message has at most that is to be cut, in bytes. A link
	// cuts what is shorter than its gso_max_size, by default 64 KiB with all headers, or
	// carries it whole as a veth does; the kernel cuts what is longer before the link. The
	// rest is room for the headers: IPv6, UDP, Ethernet and tags or an overlay.
	maxJoined = 64<<10 - 128
	// uncutCalls is how many calls of send a way that refused to have datagrams cut is
	// not asked again: some seconds of bulk.
	uncutCalls = 1 << 16
	// outBatch is how many datagrams one system call sends at most.
	outBatch = conn.IdealBatchSize
)

// outgoing is the state of one call of send. As with incoming, it is kept so that a
// call allocates nothing.
type outgoing struct {
	socket *udpSocket
	wait   func(fd uintptr) bool
	try    func(fd uintptr)

	bufs [][]byte
	to   *endpoint
	from source
	at   int  // datagrams that the kernel has, or that were lost
	cut  bool // runs are messages
	// refusal is why runs are not messages any more; 0: they are, or never were.
	refusal syscall.Errno
	full    bool // the socket's buffer is
	err     error

	msgs     []mmsg.Message
	ends     []int // where the run of each message ends in bufs
	iovecs   []unix.Iovec
	controls [][mmsg.ControlSize]byte
}

func newOutgoing(s *udpSocket) *outgoing {
	o := &outgoing{
		socket: s, msgs: make([]mmsg.Message, outBatch), ends: make([]int, outBatch),
		iovecs: make([]unix.Iovec, outBatch), controls: make([][mmsg.ControlSize]byte, outBatch),
	}
	o.wait, o.try = o.flush, func(fd uintptr) { o.full = !o.flush(fd) }
	return o
}

// send sends datagrams. The error is the first one; those that it kept from being sent
// are counted.
func (s *udpSocket) send(bufs [][]byte, e *endpoint) error {
	o := s.out.Get().(*outgoing)
	defer s.out.Put(o)
	o.bufs, o.to, o.from, o.at, o.refusal, o.full, o.err = bufs, e, e.source(), 0, 0, false, nil
	o.cut = o.mayCut()
	err := s.raw.Control(o.try)
	if err == nil && o.full {
		s.counts.full.Add(1)
		err = s.raw.Write(o.wait)
	}
	if err == nil {
		err = o.err
	}
	o.bufs, o.to = nil, nil
	return err
}

// mayCut says whether runs may be messages. A way that refused them once is tried
// again later: it may be another by then.
func (o *outgoing) mayCut() bool {
	if o.to.uncut.Load() > 0 {
		o.to.uncut.Add(-1)
		return false
	}
	return o.socket.gso.Load()
}

// flush sends what is left. False means that the kernel has no room for it.
func (o *outgoing) flush(fd uintptr) bool {
	for o.at < len(o.bufs) {
		n, used := o.fill()
		sent, errno := mmsg.Send(fd, o.msgs[:n])
		clear(o.iovecs[:used]) // they are the caller's
		switch errno {
		case 0:
			o.at = o.ends[sent-1]
			o.learn()
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			o.fails(errno)
		}
	}
	return true
}

// fill makes messages of what is left, and says how many, and of how many datagrams.
func (o *outgoing) fill() (n, used int) {
	for at := o.at; at < len(o.bufs) && used < len(o.iovecs); n++ {
		end, segment := o.run(at, min(len(o.bufs), at+len(o.iovecs)-used))
		h := &o.msgs[n].Header
		h.Name, h.Namelen = &o.to.name[0], o.to.nameSize()
		h.Iov = &o.iovecs[used]
		h.SetIovlen(end - at)
		for ; at < end; at, used = at+1, used+1 {
			if v := &o.iovecs[used]; len(o.bufs[at]) > 0 {
				v.Base = &o.bufs[at][0]
				v.SetLen(len(o.bufs[at]))
			}
		}
		o.ends[n] = end
		control := mmsg.AppendSegment(mmsg.AppendSource(o.controls[n][:0], o.from.addr, o.from.link), segment)
		h.Control = nil
		if len(control) > 0 {
			h.Control = &control[0]
		}
		h.SetControllen(len(control))
	}
	return n, used
}

// run finds where the run that begins at a datagram ends, and the size to cut it to; 0
// where it is one datagram. All have one size, but the last may be shorter.
func (o *outgoing) run(at, limit int) (end, segment int) {
	size := len(o.bufs[at])
	total := size
	for end = at + 1; o.cut && end < min(limit, at+maxSegments); end++ {
		next := len(o.bufs[end])
		if next == 0 || next > size || total+next > maxJoined || len(o.bufs[end-1]) < size {
			break
		}
		total += next
	}
	if end == at+1 {
		return end, 0
	}
	return end, size
}

// learn keeps runs from being messages again where the kernel refused them and took
// their datagrams one by one.
func (o *outgoing) learn() {
	switch o.refusal {
	case 0:
		return
	case unix.EIO:
		o.socket.cutsNoMore() // a link without checksum offload cannot cut (udp(7))
	default:
		o.to.uncut.Store(uncutCalls) // a datagram is larger than the way there takes at once
	}
	o.socket.counts.refusedRuns.Add(1)
	o.refusal = 0
}

// fails takes in why the first message was not sent, and does what there is to do.
func (o *outgoing) fails(errno syscall.Errno) {
	if o.cut && o.ends[0]-o.at > 1 && (errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE) {
		o.cut, o.refusal = false, errno
		return
	}
	if o.from != (source{}) && lostSource(errno) {
		o.to.ClearSrc()
		o.from, o.cut, o.refusal = source{}, o.mayCut(), 0
		return
	}
	if o.err == nil {
		o.err = errno
	}
	lost := len(o.bufs) - o.at // whatever it is, it is no better for the rest,
	if errno == unix.EMSGSIZE {
		lost = 1 // but for the size
	}
	o.socket.counts.lose(errno, lost)
	o.at += lost
}

// lostSource says whether an error may come of a local address that the host has
// no more, or that has no way to the peer.
func lostSource(errno syscall.Errno) bool {
	switch errno {
	case unix.EINVAL, unix.EADDRNOTAVAIL, unix.ENETUNREACH, unix.EHOSTUNREACH:
		return true
	}
	return false
}
