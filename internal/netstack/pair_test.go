package netstack

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait in the tests; it is reached only by a failing one.
const patience = 20 * time.Second

var (
	clientAddr = netip.MustParseAddr("192.0.2.1")
	serverAddr = netip.MustParseAddr("198.51.100.1")
)

// wire moves packets from one device to another until the first is closed.
type wire struct {
	from, to *Device
	lose     func(pkt []byte) bool // reports whether to lose a packet; may be nil
	pause    sync.Mutex            // held: nothing is read
	oversize atomic.Int64          // packets above the MTU
	packets  atomic.Int64
	batches  atomic.Int64
}

func (w *wire) run() error {
	const offset = 16
	bufs := make([][]byte, BatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, offset+2048)
	}
	sizes := make([]int, BatchSize)
	out := make([][]byte, 0, BatchSize)
	mtu, _ := w.from.MTU()
	for {
		w.pause.Lock()
		w.batches.Add(1)
		w.pause.Unlock()
		n, err := w.from.Read(bufs, sizes, offset)
		if err != nil {
			return err
		}
		out = out[:0]
		for i := range n {
			pkt := bufs[i][:offset+sizes[i]]
			if sizes[i] > mtu {
				w.oversize.Add(1)
			}
			if w.lose == nil || !w.lose(pkt[offset:]) {
				out = append(out, pkt)
			}
		}
		w.packets.Add(int64(n))
		if _, err := w.to.Write(out, offset); err != nil && !errors.Is(err, os.ErrClosed) {
			return err
		}
	}
}

// network is two devices wired back to back.
type network struct {
	client, server *Device
	out, back      *wire // from the client, to the client
}

// connect wires two new devices and closes them when the test ends.
func connect(t testing.TB, client, server Config, lose func([]byte) bool) *network {
	t.Helper()
	n := &network{client: open(t, client), server: open(t, server)}
	n.out = &wire{from: n.client, to: n.server, lose: lose}
	n.back = &wire{from: n.server, to: n.client, lose: lose}
	var running sync.WaitGroup
	for _, w := range []*wire{n.out, n.back} {
		running.Go(func() {
			if err := w.run(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("pump ended: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		n.client.Close()
		n.server.Close()
		running.Wait()
		if over := n.out.oversize.Load() + n.back.oversize.Load(); over > 0 {
			t.Errorf("%d packets above the MTU", over)
		}
	})
	return n
}

func open(t testing.TB, c Config) *Device {
	t.Helper()
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func clientConfig() Config { return Config{Addresses: []netip.Addr{clientAddr}} }
func serverConfig() Config { return Config{Addresses: []netip.Addr{serverAddr}} }

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// dialPair connects client to server through a listener.
func dialPair(t testing.TB, n *network) (client, server *Conn) {
	t.Helper()
	l, err := n.server.ListenTCP(netip.AddrPortFrom(serverAddr, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = n.client.DialTCP(testContext(t), netip.AddrPortFrom(clientAddr, 0), l.local)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server = c.(*Conn)
	deadline := time.Now().Add(patience)
	client.SetDeadline(deadline)
	server.SetDeadline(deadline)
	t.Cleanup(func() {
		client.Close()
		server.Close()
	})
	return client, server
}

func deadlineOf(t testing.TB) time.Time {
	deadline, _ := testContext(t).Deadline()
	return deadline
}
