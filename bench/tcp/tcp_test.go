package tcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/bench/handshake"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/netstack"
)

func TestMain(m *testing.M) { os.Exit(netlab.Enter(verified{m})) }

// verified runs tests and says which goroutines are left.
type verified struct{ m *testing.M }

func (v verified) Run() int {
	code := v.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

var (
	inner  = netip.MustParseAddr("10.0.0.2")
	server = netip.MustParseAddr("192.0.2.80")
)

// client is what traffic.Client is.
type client interface {
	Deliver(packets [][]byte)
	Fill(bufs [][]byte, sizes []int, offset int) (n int, again time.Duration)
}

// wire carries packets between a client and a network stack, as a traffic source does.
type wire struct {
	client client
	stack  tun.Device
	woken  chan struct{}
	quit   chan struct{}
	done   sync.WaitGroup
}

func newWire(t *testing.T, c client, stack tun.Device) *wire {
	w := &wire{client: c, stack: stack, woken: make(chan struct{}, 1), quit: make(chan struct{})}
	w.done.Go(w.out)
	w.done.Go(w.in)
	t.Cleanup(func() {
		close(w.quit)
		_ = stack.Close()
		w.done.Wait()
	})
	return w
}

func (w *wire) Wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

func buffers() (bufs [][]byte, sizes []int) {
	for range netstack.BatchSize {
		bufs = append(bufs, make([]byte, 2000))
	}
	return bufs, make([]int, netstack.BatchSize)
}

func (w *wire) out() {
	bufs, sizes := buffers()
	packets := make([][]byte, 0, len(bufs))
	for {
		n, again := w.client.Fill(bufs, sizes, 7)
		packets = packets[:0]
		for i := range n {
			packets = append(packets, bufs[i][:7+sizes[i]])
		}
		if n > 0 {
			_, _ = w.stack.Write(packets, 7)
			continue
		}
		if again == 0 {
			again = time.Hour
		}
		select {
		case <-time.After(again):
		case <-w.woken:
		case <-w.quit:
			return
		}
	}
}

func (w *wire) in() {
	bufs, sizes := buffers()
	for {
		n, err := w.stack.Read(bufs, sizes, 0)
		if err != nil {
			return
		}
		packets := make([][]byte, n)
		for i := range n {
			packets[i] = bufs[i][:sizes[i]]
		}
		w.client.Deliver(packets)
	}
}

func newStack(t *testing.T) *netstack.Device {
	t.Helper()
	d, err := netstack.New(netstack.Config{Addresses: []netip.Addr{server, server.Next()}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// listen serves connections until the listener is closed.
func listen(t *testing.T, d *netstack.Device, at netip.AddrPort, serve func(net.Conn)) {
	l, err := d.ListenTCP(at)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				serve(c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
}

// TestConnections makes connections to a stack of somebody else's, to one port that is open
// and to one that is not.
func TestConnections(t *testing.T) {
	stack := newStack(t)
	var mu sync.Mutex
	served := 0
	open := netip.AddrPortFrom(server, 80)
	listen(t, stack, open, func(c net.Conn) {
		b := make([]byte, 3)
		if _, err := io.ReadFull(c, b); err == nil && string(b) == "ask" {
			mu.Lock()
			served++
			mu.Unlock()
			_, _ = c.Write([]byte("answer"))
		}
	})
	c, err := NewConnections(handshake.Config{
		Sandboxes: []netip.Addr{inner}, FirstPort: 20000, LastPort: 20999,
		Remotes: []netip.AddrPort{open, netip.AddrPortFrom(server.Next(), 81)}, Request: []byte("ask"), Answer: []byte("answer"), MSS: 1380,
	})
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(t, c, stack)
	m, err := c.Run(t.Context(), w, Load{Rate: 1000, For: 200 * time.Millisecond, Lag: time.Second})
	if err != nil || m.Begun+m.Skipped != 200 || m.Begun == 0 || m.OK+m.Refused != m.Begun {
		t.Errorf("open loop: %+v: %v", m.Counts, err)
	}
	// What a machine that stood still skips may have been due to either remote.
	if diff := int64(m.OK) - int64(m.Refused); max(diff, -diff) > int64(m.Skipped) {
		t.Errorf("open loop: %+v, want as many refused as not", m.Counts)
	}
	if n := uint64(served); n != m.OK || m.Connect.Count() != n || m.Exchange.Count() != n {
		t.Errorf("open loop: %+v, %d served", m.Counts, n)
	}
	m, err = c.Run(t.Context(), w, Load{Open: 4, For: 100 * time.Millisecond})
	if err != nil || m.Begun == 0 || m.OK+m.Refused != m.Begun || m.Sent < 100*time.Millisecond || m.Took < m.Sent {
		t.Errorf("closed loop: %+v: %v", m, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if _, err = c.Run(ctx, w, Load{Open: 4, For: time.Hour}); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("it goes on: %v", err)
	}
}

// TestBulk moves bytes both ways.
func TestBulk(t *testing.T) {
	stack := newStack(t)
	at := netip.AddrPortFrom(server, 80)
	listen(t, stack, at, func(c net.Conn) {
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		if b[0] == 'i' {
			_, _ = io.Copy(c, endless{})
		}
		_, _ = io.Copy(io.Discard, c)
	})
	b, err := NewBulk(BulkConfig{Inner: inner, MTU: 1420})
	if err != nil {
		t.Fatal(err)
	}
	b.Use(newWire(t, b, stack))
	for _, hello := range []string{"i", "o"} {
		m, err := b.Run(t.Context(), Transfer{Remote: at, In: hello == "i", For: 100 * time.Millisecond, Hellos: slices.Repeat([][]byte{[]byte(hello)}, 3)})
		if err != nil || m.Bytes < 1<<16 || m.Took < 100*time.Millisecond {
			t.Errorf("%s: %+v, %v", hello, m, err)
		}
	}
	if _, err := b.Run(t.Context(), Transfer{Remote: netip.AddrPortFrom(server, 81), For: time.Second, Hellos: [][]byte{nil}}); err == nil || !strings.Contains(err.Error(), ":81") {
		t.Errorf("nobody listens: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := b.Run(t.Context(), Transfer{Remote: at, For: time.Second, Hellos: [][]byte{nil}}); err == nil {
		t.Error("a closed stack connects")
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func TestRefused(t *testing.T) {
	if _, err := NewConnections(handshake.Config{}); err == nil {
		t.Error("connections of nobody")
	}
	if _, err := NewAnswerer(AnswererConfig{}); err == nil {
		t.Error("no answer")
	}
	if _, err := NewBulk(BulkConfig{Inner: inner, MTU: 1}); err == nil {
		t.Error("an MTU of a byte")
	}
	if _, err := NewAnswerer(AnswererConfig{AnswererConfig: handshake.AnswererConfig{Request: []byte{1}, Answer: []byte{1}}, Place: nowhere{}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a TUN that cannot be made: %v", err)
	}
	if got := Remotes(netip.MustParsePrefix("192.0.2.0/30"), 9, 80); len(got) != 3 || got[0].String() != "192.0.2.1:80" {
		t.Errorf("%v", got)
	}
}

type nowhere struct{}

func (nowhere) Do(func() error) error { return os.ErrNotExist }
