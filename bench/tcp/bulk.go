package tcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport-net/sallyport/internal/netstack"
)

// Bulk is a sandbox that moves bytes by TCP, by a network stack of its own: a traffic.Client,
// which is to be attached to a source's end for that sandbox. Its methods may be called by
// anyone.
type Bulk struct {
	inner netip.Addr
	stack *netstack.Device
	done  chan struct{} // closed when pump has ended

	mu     sync.Mutex
	room   *sync.Cond // parcel is empty, or nothing will ever be taken from it
	parcel parcel     // what the stack wants to send
	waker  Waker
	closed bool
}

// parcel is a batch of packets that waits to be taken.
type parcel struct {
	bufs  [][]byte
	sizes []int
	at, n int // those from at to n are left
}

// BulkConfig says whose stack it is.
type BulkConfig struct {
	Inner netip.Addr // the sandbox's address
	MTU   int        // of the tunnel, in bytes
}

// NewBulk makes a stack. Close it.
func NewBulk(c BulkConfig) (*Bulk, error) {
	stack, err := netstack.New(netstack.Config{Addresses: []netip.Addr{c.Inner}, MTU: c.MTU, TimeWait: time.Second})
	if err != nil {
		return nil, fmt.Errorf("make a sandbox's network stack: %w", err)
	}
	b := &Bulk{inner: c.Inner, stack: stack, done: make(chan struct{})}
	b.room = sync.NewCond(&b.mu)
	b.parcel.sizes = make([]int, netstack.BatchSize)
	for range netstack.BatchSize {
		b.parcel.bufs = append(b.parcel.bufs, make([]byte, c.MTU))
	}
	go b.pump()
	return b, nil
}

// pump takes what the stack sends, a batch at a time, which stays until Fill has taken all of it.
// So the stack waits for the tunnel, and nothing is lost between the two.
func (b *Bulk) pump() {
	defer close(b.done)
	p := &b.parcel
	for {
		n, err := b.stack.Read(p.bufs, p.sizes, 0)
		if err != nil {
			return // closed
		}
		b.mu.Lock()
		p.at, p.n = 0, n
		if b.waker != nil && n > 0 {
			b.waker.Wake()
		}
		for p.at < p.n && !b.closed {
			b.room.Wait()
		}
		b.mu.Unlock()
	}
}

// Deliver takes packets for the sandbox.
func (b *Bulk) Deliver(packets [][]byte) {
	_, _ = b.stack.Write(packets, 0) // fails when closed
}

// Fill writes packets that wait into bufs, from offset on, and their lengths into sizes, and
// returns how many. When more come it wakes.
func (b *Bulk) Fill(bufs [][]byte, sizes []int, offset int) (n int, again time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &b.parcel
	for ; n < len(bufs) && p.at < p.n; n++ {
		sizes[n] = copy(bufs[n][offset:], p.bufs[p.at][:p.sizes[p.at]])
		p.at++
	}
	if p.at == p.n {
		b.room.Signal()
	}
	return n, 0
}

// Use says what is woken when there is something to send. It must be there before a run.
func (b *Bulk) Use(w Waker) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waker = w
}

// Close ends the stack and its connections.
func (b *Bulk) Close() error {
	b.mu.Lock()
	b.closed = true
	b.room.Signal()
	b.mu.Unlock()
	err := b.stack.Close()
	<-b.done
	return err
}

// Transfer is what is moved.
type Transfer struct {
	Remote netip.AddrPort
	// In says that the far side sends; else the sandbox does.
	In  bool
	For time.Duration
	// Hellos are what the streams send first, one for each: how they tell the far side what it
	// is to do.
	Hellos [][]byte
}

// Moved is what came of a transfer.
type Moved struct {
	// Bytes of payload that were received, or acknowledged: all that was written while For lasted
	// and was taken by the far side, hellos left out.
	Bytes uint64
	Took  time.Duration // from the moment when all streams were connected
	// Resent are segments that the sandbox sent again; the far side's are not known here.
	Resent uint64
}

// Streams and their buffers are bounded.
const (
	maxStreams = 1024
	chunk      = 256 << 10 // bytes of one read or write
	// connectPatience bounds how long all streams take to connect, drain how long they may take to
	// end after the time.
	connectPatience = 10 * time.Second
	drain           = 10 * time.Second
)

// Run moves bytes. What was moved until then is returned with an error, too.
func (b *Bulk) Run(ctx context.Context, t Transfer) (Moved, error) {
	if len(t.Hellos) < 1 || len(t.Hellos) > maxStreams || t.For <= 0 {
		return Moved{}, fmt.Errorf("%d streams for %v cannot be: 1 to %d, for a while", len(t.Hellos), t.For, maxStreams)
	}
	conns, err := b.connect(ctx, t)
	defer func() {
		for _, c := range conns {
			c.Abort()
		}
	}()
	if err != nil {
		return Moved{}, err
	}
	before, began := b.stack.Stats().Retransmits, time.Now()
	var moved atomic.Uint64
	var all sync.WaitGroup
	errs := make([]error, len(conns))
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.Abort()
		}
	})
	defer stop()
	end := began.Add(t.For)
	for i, c := range conns {
		all.Go(func() {
			if t.In {
				errs[i] = receive(c, end, &moved)
			} else {
				errs[i] = send(c, end, &moved)
			}
		})
	}
	all.Wait()
	m := Moved{Bytes: moved.Load(), Took: time.Since(began), Resent: b.stack.Stats().Retransmits - before}
	if err := context.Cause(ctx); err != nil {
		return m, err
	}
	return m, errors.Join(errs...)
}

// connect opens all streams. Those that are open are returned with an error, too.
func (b *Bulk) connect(ctx context.Context, t Transfer) (conns []*netstack.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	for _, hello := range t.Hellos {
		c, err := b.stack.DialTCP(ctx, netip.AddrPortFrom(b.inner, 0), t.Remote)
		if err != nil {
			return conns, fmt.Errorf("connect stream %d to %v: %w", len(conns)+1, t.Remote, err)
		}
		conns = append(conns, c)
		if _, err := c.Write(hello); err != nil {
			return conns, fmt.Errorf("greet %v: %w", t.Remote, err)
		}
	}
	return conns, nil
}

// receive counts what comes until the time is over.
func receive(c *netstack.Conn, end time.Time, moved *atomic.Uint64) error {
	if err := c.SetReadDeadline(end); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for time.Now().Before(end) {
		n, err := c.Read(buf)
		moved.Add(uint64(n))
		var late interface{ Timeout() bool }
		switch {
		case err == nil:
		case errors.As(err, &late) && late.Timeout():
			return nil
		case errors.Is(err, io.EOF):
			return errors.New("the far side ended a stream before its time")
		default:
			return fmt.Errorf("receive: %w", err)
		}
	}
	return nil
}

// send sends until the time is over, and waits until the far side has taken all of it.
func send(c *netstack.Conn, end time.Time, moved *atomic.Uint64) error {
	if err := c.SetDeadline(end.Add(drain)); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	n := uint64(0)
	for time.Now().Before(end) {
		k, err := c.Write(buf)
		n += uint64(k)
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	if err := c.CloseWrite(); err != nil {
		return fmt.Errorf("end a stream: %w", err)
	}
	// It closes, perhaps after an answer, when it has taken everything.
	if _, err := io.Copy(io.Discard, c); err != nil {
		return fmt.Errorf("wait until the far side has taken all: %w", err)
	}
	moved.Add(n)
	return nil
}
