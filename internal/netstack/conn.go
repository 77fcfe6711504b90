package netstack

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// copySize is how many bytes ReadFrom and WriteTo move at a time.
const copySize = 64 << 10

// Conn is a TCP connection of the stack. It is a net.Conn; further: CloseWrite,
// Abort, and the fast paths of io.Copy.
//
// Read returns io.EOF after the peer's FIN, and an error that is
// syscall.ECONNRESET after its RST, each after the data that came before.
type Conn struct {
	device        *Device
	ep            tcpip.Endpoint
	wq            *waiter.Queue
	local, remote netip.AddrPort

	deadlines

	readMu    sync.Mutex // one Read at a time
	readEntry waiter.Entry
	readable  chan struct{}
	slice     tcpip.SliceWriter // kept here so that Read does not allocate it

	writeMu    sync.Mutex // one Write at a time
	writeEntry waiter.Entry
	writable   chan struct{}
	payload    bytes.Reader
	patience   *time.Timer // of WriteWithin; nil before it waited

	closeOnce sync.Once
	closed    chan struct{}

	failMu  sync.Mutex
	failure error // the first hard error; the stack tells it only once
}

var (
	_ net.Conn      = (*Conn)(nil)
	_ io.ReaderFrom = (*Conn)(nil)
	_ io.WriterTo   = (*Conn)(nil)
)

func newConn(d *Device, ep tcpip.Endpoint, wq *waiter.Queue) *Conn {
	c := &Conn{device: d, ep: ep, wq: wq, deadlines: newDeadlines(), closed: make(chan struct{})}
	if a, err := ep.GetLocalAddress(); err == nil {
		c.local = addrPort(a.Addr, a.Port)
	}
	if a, err := ep.GetRemoteAddress(); err == nil {
		c.remote = addrPort(a.Addr, a.Port)
	}
	c.readEntry, c.readable = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	c.writeEntry, c.writable = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&c.readEntry)
	wq.EventRegister(&c.writeEntry)
	return c
}

// LocalAddrPort returns this end: for an intercepted connection, what the client wanted to reach.
func (c *Conn) LocalAddrPort() netip.AddrPort { return c.local }

// RemoteAddrPort returns the other end.
func (c *Conn) RemoteAddrPort() netip.AddrPort { return c.remote }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	n, err := c.read(b)
	if err != nil && err != io.EOF {
		err = opError("read", "tcp", c.local, c.remote, err)
	}
	return n, err
}

// read waits for data and copies what is there to b. The caller holds readMu.
func (c *Conn) read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	late := c.readBy.channel()
	for {
		if err := c.refused(late); err != nil {
			return 0, err
		}
		c.slice = b
		res, err := c.ep.Read(&c.slice, tcpip.ReadOptions{})
		c.slice = nil
		switch err.(type) {
		case nil:
			c.ep.ModerateRecvBuf(res.Count)
			return res.Count, nil
		case *tcpip.ErrWouldBlock:
			select {
			case <-c.readable:
			case <-late:
			case <-c.closed:
			}
		default:
			return 0, c.hardError(err, io.EOF)
		}
	}
}

// Write implements net.Conn. It returns when the stack has taken all of b, not when the peer has.
func (c *Conn) Write(b []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	n, err := c.write(b, 0)
	if err != nil {
		err = opError("write", "tcp", c.local, c.remote, err)
	}
	return n, err
}

// WriteWithin is Write, but where the stack takes nothing for d it returns how much
// it took until then, which is less than all, and no error.
func (c *Conn) WriteWithin(b []byte, d time.Duration) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	n, err := c.write(b, d)
	if err != nil {
		err = opError("write", "tcp", c.local, c.remote, err)
	}
	return n, err
}

// write hands b to the stack until it takes nothing for d; 0 is for all of it, as long as
// that takes. The caller holds writeMu.
func (c *Conn) write(b []byte, d time.Duration) (int, error) {
	late := c.writeBy.channel()
	sent := 0
	for sent < len(b) {
		if err := c.refused(late); err != nil {
			return sent, err
		}
		c.payload.Reset(b[sent:])
		n, err := c.ep.Write(&c.payload, tcpip.WriteOptions{})
		sent += int(n)
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			select {
			case <-c.writable:
			case <-c.until(d):
				return sent, nil
			case <-late:
			case <-c.closed:
			}
		default:
			return sent, c.hardError(err, syscall.EPIPE)
		}
	}
	c.payload.Reset(nil)
	return sent, nil
}

// until tells when a write has waited for d; never for 0.
func (c *Conn) until(d time.Duration) <-chan time.Time {
	if d == 0 {
		return nil
	}
	if c.patience == nil {
		c.patience = time.NewTimer(d)
	} else {
		c.patience.Reset(d)
	}
	return c.patience.C
}

// refused reports why an operation must not go on: closed, or too late.
func (c *Conn) refused(late <-chan struct{}) error {
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
	}
	select {
	case <-late:
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

// hardError converts the end of a connection. The stack tells the reason of a
// failed one once, to reader or writer, and says "closed" from then on; so it is
// remembered. closed is what a connection that did not fail returns.
func (c *Conn) hardError(err tcpip.Error, closed error) error {
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
	}
	c.failMu.Lock()
	defer c.failMu.Unlock()
	switch err.(type) {
	case *tcpip.ErrClosedForReceive, *tcpip.ErrClosedForSend, *tcpip.ErrNotConnected:
		if c.failure != nil {
			return c.failure
		}
		// The other direction was told and has not remembered it yet.
		if tcp.EndpointState(c.ep.State()) == tcp.StateError {
			return syscall.ECONNRESET
		}
		return closed
	}
	if c.failure == nil {
		c.failure = toError(err)
		if c.device.done.Err() != nil {
			c.failure = net.ErrClosed
		}
	}
	return c.failure
}

// CloseWrite sends FIN after what was written; reading goes on.
func (c *Conn) CloseWrite() error {
	if err := c.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		return opError("close", "tcp", c.local, c.remote, toError(err))
	}
	return nil
}

// Close ends the connection in the background: FIN after what was written, or RST
// when data was received that nobody read. Blocked calls return net.ErrClosed.
func (c *Conn) Close() error { return c.end(c.ep.Close) }

// Abort ends the connection at once: what was written and is not sent is
// lost, and the peer gets a RST. Blocked calls return net.ErrClosed.
func (c *Conn) Abort() {
	_ = c.end(func() {
		c.ep.Abort()
		c.ep.Close()
	})
}

// end runs how once and frees what the connection holds here.
func (c *Conn) end(how func()) error {
	err := net.ErrClosed
	c.closeOnce.Do(func() {
		err = nil
		close(c.closed)
		how()
		c.wq.EventUnregister(&c.readEntry)
		c.wq.EventUnregister(&c.writeEntry)
		c.stop()
	})
	if err != nil {
		return opError("close", "tcp", c.local, c.remote, err)
	}
	return nil
}

// WriteTo copies what is received to w until FIN or an error, in large pieces.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	buf := c.device.copyBuffer()
	defer c.device.copies.Put(buf)
	var total int64
	for {
		n, err := c.Read(*buf)
		if n > 0 {
			m, werr := w.Write((*buf)[:n])
			total += int64(m)
			if werr != nil {
				return total, werr
			}
			if m < n {
				return total, io.ErrShortWrite
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// ReadFrom sends what r yields until its end or an error, in large pieces. It does not send FIN.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	buf := c.device.copyBuffer()
	defer c.device.copies.Put(buf)
	var total int64
	for {
		n, err := r.Read(*buf)
		if n > 0 {
			m, werr := c.Write((*buf)[:n])
			total += int64(m)
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// copyBuffer returns a pooled buffer of copySize bytes.
func (d *Device) copyBuffer() *[]byte { return d.copies.Get().(*[]byte) }
