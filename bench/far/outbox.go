package far

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/mmsg"
)

// batch is how many datagrams a system call takes in or sends.
const batch = 64

// outbox collects datagrams for one system call. It sends by a socket that others send
// by, too. Its owner serialises.
type outbox struct {
	raw      syscall.RawConn
	step     func(fd uintptr) bool
	msgs     [batch]mmsg.Message
	iovecs   [batch]unix.Iovec
	names    [batch]sockaddr
	controls [batch]local
	n, at    int
	// Since they were last taken: datagrams that the kernel took, and did not.
	sent, failed int
}

func newOutbox(raw syscall.RawConn) *outbox {
	o := &outbox{raw: raw}
	o.step = o.send
	for i := range o.msgs {
		h := &o.msgs[i].Header
		h.Iov, h.Name, h.Namelen = &o.iovecs[i], &o.names[i][0], unix.SizeofSockaddrInet6
		h.SetIovlen(1)
	}
	return o
}

// add takes a datagram up; payload must stay as it is until it is sent. A full outbox
// must be flushed before.
func (o *outbox) add(to *sockaddr, from *local, payload []byte) {
	o.names[o.n], o.controls[o.n] = *to, *from
	h := &o.msgs[o.n].Header
	h.Control = nil
	if from.n > 0 {
		h.Control = &o.controls[o.n].b[0]
	}
	h.SetControllen(from.n)
	o.iovecs[o.n].Base = &payload[0]
	o.iovecs[o.n].SetLen(len(payload))
	o.n++
}

func (o *outbox) full() bool { return o.n == batch }

// flush sends what was taken up; what the kernel refuses is counted and left out. The
// error is that of a closed socket.
func (o *outbox) flush() error {
	if o.n == 0 {
		return nil
	}
	o.at = 0
	err := o.raw.Write(o.step)
	clear(o.iovecs[:o.n]) // they are the caller's
	o.n = 0
	return err
}

// send is called by the netpoller; false waits until the socket has room.
func (o *outbox) send(fd uintptr) bool {
	for o.at < o.n {
		n, errno := mmsg.Send(fd, o.msgs[o.at:o.n])
		switch errno {
		case 0:
			o.at += n
			o.sent += n
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			o.at++
			o.failed++
		}
	}
	return true
}

// take returns how many were sent, and failed, since it was last called.
func (o *outbox) take() (sent, failed uint64) {
	sent, failed = uint64(o.sent), uint64(o.failed)
	o.sent, o.failed = 0, 0
	return sent, failed
}
