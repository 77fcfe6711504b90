package tunnel

import (
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
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
}

// socketCounts are the same while they change.
type socketCounts struct {
	lost          [losses]atomic.Uint64
	receiveErrors atomic.Uint64
	full          atomic.Uint64
	refusedRuns   atomic.Uint64
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
	}
	for reason := range losses {
		s.Lost[reason.String()] = c.lost[reason].Load()
	}
	return s
}

// SocketStats reads the counts of the tunnel's sockets.
func (t *Tunnel) SocketStats() SocketStats { return t.bind.counts.read() }
