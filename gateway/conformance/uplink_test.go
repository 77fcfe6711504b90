package conformance

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/internal/tundev"
)

// waiting is how many packets may wait in a raw uplink for the Forwarder.
const waiting = 4096

// rawUplink is an uplink without sockets: a TUN to which the kernel routes the
// dedicated IPs. Datagrams that come in fragments are put together, as uplinks
// must; what is longer than the way's MTU the kernel cuts.
type rawUplink struct {
	dev   *tundev.Device
	clock *clock
	queue chan []byte
	wake  chan struct{}
	done  chan struct{}
	close sync.Once
	// events is closed and never written: nothing here knows when a session ends.
	events chan uplink.Event

	received atomic.Uint64 // packets read from the TUN, fragments each
	// gate is held while the Forwarder works at what Read returned.
	gate *sync.Mutex
	held bool // by the one goroutine that reads
}

func newRawUplink(dev *tundev.Device, clock *clock, gate *sync.Mutex) *rawUplink {
	return &rawUplink{
		dev: dev, clock: clock, gate: gate,
		queue: make(chan []byte, waiting), wake: make(chan struct{}, 1), done: make(chan struct{}),
		events: make(chan uplink.Event),
	}
}

// pump carries packets from the TUN to Read until the device is closed.
func (u *rawUplink) pump(t *testing.T) {
	whole, err := packet.NewReassembler(packet.ReassemblyConfig{})
	if err != nil {
		t.Error(err)
		return
	}
	bufs, sizes := buffers(tundev.BatchSize)
	for {
		n, err := u.dev.Read(bufs, sizes, 0)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			t.Errorf("read from the uplink's TUN: %v", err)
			return
		}
		for i := range n {
			b := u.complete(whole, bufs[i][:sizes[i]])
			if b != nil {
				select {
				case u.queue <- b:
				case <-u.done:
					return
				}
			}
			u.received.Add(1)
		}
	}
}

// complete returns a copy of b, or of the datagram that the fragment b completes.
// What does not parse goes on as it is, because the Forwarder must bear it.
func (u *rawUplink) complete(r *packet.Reassembler, b []byte) []byte {
	var p packet.Packet
	if packet.Parse(&p, b) == packet.Pass && p.Kind == packet.KindFragment {
		now := u.clock.Now()
		r.Expire(now)
		b, _ = r.Add(&p, now)
		if b == nil {
			return nil
		}
	}
	return append([]byte(nil), b...)
}

func (u *rawUplink) Write(bufs [][]byte, offset int) (int, error) {
	// What the kernel refuses (a martian, a link that is down) is lost, as on any way.
	_, err := u.dev.Write(bufs, offset)
	if errors.Is(err, os.ErrClosed) {
		return 0, err
	}
	return len(bufs), nil
}

func (u *rawUplink) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	u.leave()
	var first []byte
	select {
	case <-u.done:
		return 0, os.ErrClosed
	case <-u.wake:
		return 0, nil
	case first = <-u.queue:
	}
	u.gate.Lock()
	u.held = true
	sizes[0] = copy(bufs[0][offset:], first)
	for n := 1; ; n++ {
		if n == len(bufs) {
			return n, nil
		}
		select {
		case b := <-u.queue:
			sizes[n] = copy(bufs[n][offset:], b)
		default:
			return n, nil
		}
	}
}

// leave opens the gate after what Read returned has been dealt with.
func (u *rawUplink) leave() {
	if u.held {
		u.held = false
		u.gate.Unlock()
	}
}

func (u *rawUplink) Wake() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

func (u *rawUplink) Close() (err error) {
	u.close.Do(func() {
		close(u.done)
		close(u.events)
		err = u.dev.Close()
	})
	return err
}

func (u *rawUplink) BatchSize() int              { return tundev.BatchSize }
func (u *rawUplink) Events() <-chan uplink.Event { return u.events }
func (u *rawUplink) Release(uplink.Flow)         {}
func (u *rawUplink) Stats() uplink.Stats         { return uplink.Stats{} }
func (u *rawUplink) String() string              { return "plain TUN" }

func (u *rawUplink) Check(context.Context, netip.Addr, netip.AddrPort) error { return nil }

// clock is the machine's, and can be put forward.
type clock struct {
	start time.Time
	ahead atomic.Int64
}

func newClock() *clock { return &clock{start: time.Now().Add(-time.Second)} }

func (c *clock) Now() packet.Instant {
	return packet.Instant(time.Since(c.start).Nanoseconds() + c.ahead.Load())
}

// advance puts the clock forward: the Forwarder's, nobody else's.
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// buffers are n buffers for whole datagrams, and room for their sizes.
func buffers(n int) ([][]byte, []int) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, 65535)
	}
	return bufs, make([]int, n)
}
