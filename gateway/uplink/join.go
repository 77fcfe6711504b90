package uplink

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netstack"
)

const (
	// pieceSize is how much is carried at a time, in bytes.
	pieceSize = 64 << 10
	// idleSize is the buffer that waits for the sandbox's next bytes while it is quiet.
	idleSize = 2 << 10
	// busyTime is how long a large buffer waits in its place after the last bytes.
	busyTime = time.Second
	// acknowledgeAfter is how long bytes of the remote end wait for the sandbox before the
	// kernel is asked to acknowledge what came since. It holds that back by itself while
	// nobody reads, up to 40 ms, and the remote end would send it again: Linux after two
	// round trips and 8 ms or less (RFC 8985, tail loss probe). While the sandbox takes
	// nothing it is twice as long each time: one that has stopped reading would cost the
	// gateway a thousand wake-ups a second for as long as it likes.
	acknowledgeAfter = time.Millisecond
)

// joined is a session whose bytes flow. End of stream crosses each way by itself, and
// so does a reset; back-pressure is that of the two connections' own buffers.
type joined struct {
	kernel *net.TCPConn
	conn   *netstack.Conn
	pieces *sync.Pool
	// failed says that the remote end reset the connection and a write has
	// learnt it, so that reading no longer will.
	failed atomic.Bool
}

// join carries bytes between the two ends until both directions are over, and
// closes them. It returns how many went to the sandbox.
func (s *Sockets) join(kernel *net.TCPConn, conn *netstack.Conn) int64 {
	j := &joined{kernel: kernel, conn: conn, pieces: &s.pieces}
	done := make(chan struct{})
	go func() {
		defer close(done)
		j.egress()
	}()
	sent := j.ingress()
	<-done
	// After an abort these do nothing.
	conn.Close()
	kernel.Close()
	return sent
}

// abort ends both connections at once, each with RST.
func abort(kernel *net.TCPConn, conn *netstack.Conn) {
	conn.Abort()
	reset(kernel)
}

// reset closes a kernel connection by RST.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // fails only on a closed connection
	c.Close()
}

// egress carries what the sandbox sends. While it is quiet a small buffer of its own
// waits, else a large one of the pool; the deadline that takes that back is
// moved once per busyTime, not for each read.
func (j *joined) egress() {
	idle := make([]byte, idleSize)
	var piece *[]byte
	defer func() { j.putPiece(piece) }()
	moved := false
	for {
		buf := idle
		if piece != nil {
			buf = *piece
		}
		n, err := j.conn.Read(buf)
		if n > 0 {
			moved = true
			if _, werr := j.kernel.Write(buf[:n]); werr != nil {
				j.lost()
				return
			}
			if n == idleSize && piece == nil {
				piece = j.pieces.Get().(*[]byte)
				j.conn.SetReadDeadline(time.Now().Add(busyTime))
				moved = false
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && moved:
			moved = false
			j.conn.SetReadDeadline(time.Now().Add(busyTime))
		case errors.Is(err, os.ErrDeadlineExceeded):
			j.conn.SetReadDeadline(time.Time{})
			j.putPiece(piece)
			piece = nil
		case err == io.EOF:
			// An error says that the remote end is gone, which reading finds out.
			_ = j.kernel.CloseWrite()
			return
		default:
			abort(j.kernel, j.conn)
			return
		}
	}
}

// lost ends the direction to a remote end that takes nothing more. What it sent
// before is still read; where there is nothing to come, ingress ends the session.
func (j *joined) lost() {
	j.failed.Store(true)
	// Reading ends at once if the connection is broken, but a closed one never would.
	_ = j.kernel.CloseRead()
}

func (j *joined) putPiece(p *[]byte) {
	if p != nil {
		j.pieces.Put(p)
	}
}

// ingress carries what the remote end sends and returns how much that was.
func (j *joined) ingress() (sent int64) {
	raw, err := j.kernel.SyscallConn()
	if err != nil {
		abort(j.kernel, j.conn)
		return 0
	}
	r := &kernelReader{pieces: j.pieces}
	defer r.release()
	try := r.try
	for {
		r.n = 0
		// Whoever works on the piece before runs first, while it is in the cache.
		runtime.Gosched()
		if err := raw.Read(try); err != nil {
			r.err = err
		}
		if r.n > 0 {
			sent += int64(r.n)
			if err := j.toSandbox((*r.piece)[:r.n], raw); err != nil {
				abort(j.kernel, j.conn)
				return sent
			}
			continue
		}
		if r.err != nil || j.failed.Load() {
			abort(j.kernel, j.conn)
			return sent
		}
		// An error says that the sandbox is gone, which egress finds out.
		_ = j.conn.CloseWrite()
		return sent
	}
}

// toSandbox hands a piece to the stack, and lets the remote end know what has arrived
// from it while that takes.
func (j *joined) toSandbox(piece []byte, raw syscall.RawConn) error {
	wait := acknowledgeAfter
	for {
		n, err := j.conn.WriteWithin(piece, wait)
		if piece = piece[n:]; err != nil || len(piece) == 0 {
			return err
		}
		if wait *= 2; n > 0 {
			wait = acknowledgeAfter
		}
		// What this fails of, reading finds out.
		_ = raw.Control(acknowledge)
	}
}

// acknowledge has the kernel send the acknowledgement that it holds back.
func acknowledge(fd uintptr) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
}

// kernelReader reads a kernel connection into pieces of the pool and holds none
// while there is nothing to read.
type kernelReader struct {
	pieces *sync.Pool
	piece  *[]byte
	n      int
	err    error
}

// try is called by the runtime when the connection may be readable; false waits.
// n is 0 and err nil at the end of the stream.
func (r *kernelReader) try(fd uintptr) bool {
	if r.piece == nil {
		r.piece = r.pieces.Get().(*[]byte)
	}
	for {
		r.n, r.err = unix.Read(int(fd), *r.piece)
		if r.err != unix.EINTR {
			break
		}
	}
	if r.err == unix.EAGAIN {
		r.n, r.err = 0, nil
		r.release()
		return false
	}
	r.n = max(r.n, 0)
	return true
}

func (r *kernelReader) release() {
	if r.piece != nil {
		r.pieces.Put(r.piece)
		r.piece = nil
	}
}
