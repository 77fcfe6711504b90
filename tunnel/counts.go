package tunnel

import (
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/mmsg"
)

// loss is why a tunnel's datagram was not sent, or not received.
type loss uint8

const (
	lossRefused   loss = iota // the host's firewall forbids it (EPERM, EACCES)
	lossNoRoute               // the host has no way to the peer
	lossNoMemory              // the kernel has no buffer for it, or its link's queue is full
	lossTooBig                // it is larger than the kernel takes
	lossOther                 // any other error of sending
	lossTruncated             // it, or what the kernel says of it, did not fit the memory to receive it
	losses
)

// String is the reason as a metric's label.
func (l loss) String() string {
	return [losses]string{"refused", "no_route", "no_memory", "too_big", "other", "truncated"}[l]
}

// SocketStats are counts of a tunnel's UDP sockets, since it was made.
type SocketStats struct {
	// Lost are datagrams that were not sent or not received, by reason: all reasons that
	// there are.
	Lost map[string]uint64
	// ReceiveErrors are errors of receiving; a datagram need not be lost by one.
	ReceiveErrors uint64
	// Full is how often a sender waited for room in the socket.
	Full uint64
	// RefusedRuns is how often the kernel took several datagrams only one by one. It is
	// asked no more then, for that peer for a while or at all.
	RefusedRuns uint64
	// Received are datagrams that were taken in, and Runs what they came in: the kernel joins
	// those that come together (UDP_GRO).
	Received, Runs uint64
	// Dropped are runs that came while a socket was full, or damaged, where the kernel says.
	Dropped uint64
}

// socketCounts are the same while they change.
type socketCounts struct {
	lost          [losses]atomic.Uint64
	receiveErrors atomic.Uint64
	full          atomic.Uint64
	refusedRuns   atomic.Uint64
	received      atomic.Uint64
	runs          atomic.Uint64
	dropped       atomic.Uint64 // by sockets that are closed
}

// lose counts datagrams that the kernel did not send.
func (c *socketCounts) lose(errno syscall.Errno, datagrams int) {
	reason := lossOther
	switch errno {
	case unix.EPERM, unix.EACCES:
		reason = lossRefused
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EADDRNOTAVAIL, unix.ENETDOWN:
		reason = lossNoRoute
	case unix.ENOBUFS, unix.ENOMEM:
		reason = lossNoMemory
	case unix.EMSGSIZE:
		reason = lossTooBig
	}
	c.lost[reason].Add(uint64(datagrams))
}

func (c *socketCounts) read() SocketStats {
	s := SocketStats{
		Lost:          make(map[string]uint64, losses),
		ReceiveErrors: c.receiveErrors.Load(), Full: c.full.Load(), RefusedRuns: c.refusedRuns.Load(),
		Received: c.received.Load(), Runs: c.runs.Load(), Dropped: c.dropped.Load(),
	}
	for reason := range losses {
		s.Lost[reason.String()] = c.lost[reason].Load()
	}
	return s
}

// SocketStats reads the counts of the tunnel's sockets.
func (t *Tunnel) SocketStats() SocketStats { return t.bind.stats() }

func (b *bind) stats() SocketStats {
	b.mu.RLock()
	defer b.mu.RUnlock()
	s := b.counts.read()
	for _, socket := range []*udpSocket{b.v4, b.v6} {
		s.Dropped += socket.dropped()
	}
	return s
}

// dropped is what the kernel dropped of what came to an open socket, or to none.
func (s *udpSocket) dropped() (n uint64) {
	if s == nil {
		return 0
	}
	_ = s.raw.Control(func(fd uintptr) { // one that is being closed counts no more
		if drops, ok := mmsg.Dropped(fd); ok {
			n = uint64(drops)
		}
	})
	return n
}
