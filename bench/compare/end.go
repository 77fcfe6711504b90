package compare

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/bench/tcp"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// end is a sandbox's end of a tunnel in this process, whose packets are those of
// short connections.
type end struct {
	device *device.Device
	events chan tun.Event // stays empty: the device goes up when told to
	client atomic.Pointer[tcp.Connections]
	woken  chan struct{}
	quit   chan struct{}
	once   sync.Once
}

var _ tun.Device = (*end)(nil)

func newEnd(n *netlab.Namespace, t *tunnel, p *peer) (*end, error) {
	e := &end{events: make(chan tun.Event), woken: make(chan struct{}, 1), quit: make(chan struct{})}
	config := ""
	for _, k := range []struct{ name, key string }{{"private_key", p.private}, {"public_key", t.public}} {
		b, err := base64.StdEncoding.DecodeString(k.key)
		if err != nil {
			return nil, fmt.Errorf("read a key: %w", err)
		}
		config += k.name + "=" + hex.EncodeToString(b) + "\n"
	}
	config += fmt.Sprintf("endpoint=%v\nallowed_ip=%v\n", t.endpoint, everything)
	e.device = device.NewDevice(e, conn.NewStdNetBind(), device.NewLogger(device.LogLevelSilent, ""))
	err := e.device.IpcSet(config)
	if err == nil {
		err = n.Do(e.device.Up) // its sockets belong to the namespace
	}
	if err != nil {
		e.close()
		return nil, fmt.Errorf("start a source of connections: %w", err)
	}
	return e, nil
}

func (e *end) close() { e.device.Close() }

// nap is the least time between two looks.
const nap = 100 * time.Microsecond

// use chooses whose packets come and go.
func (e *end) use(c *tcp.Connections) { e.client.Store(c) }

// Wake implements tcp.Waker.
func (e *end) Wake() {
	select {
	case e.woken <- struct{}{}:
	default:
	}
}

// Read implements tun.Device.
func (e *end) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var again time.Duration
		if c := e.client.Load(); c != nil {
			n, wait := c.Fill(bufs, sizes, offset)
			if n > 0 {
				return n, nil
			}
			again = wait
		}
		if again == 0 {
			again = time.Hour
		}
		timer.Reset(max(again, nap))
		select {
		case <-timer.C:
		case <-e.woken:
		case <-e.quit:
			return 0, os.ErrClosed
		}
	}
}

// Write implements tun.Device.
func (e *end) Write(bufs [][]byte, offset int) (int, error) {
	c := e.client.Load()
	if c == nil {
		return len(bufs), nil
	}
	packets := make([][]byte, len(bufs))
	for i, b := range bufs {
		packets[i] = b[offset:]
	}
	c.Deliver(packets)
	return len(bufs), nil
}

// Close implements tun.Device.
func (e *end) Close() error {
	e.once.Do(func() {
		close(e.quit)
		close(e.events)
	})
	return nil
}

// MTU implements tun.Device.
func (e *end) MTU() (int, error) { return innerMTU, nil }

// Name implements tun.Device.
func (e *end) Name() (string, error) { return "connections", nil }

// File implements tun.Device.
func (e *end) File() *os.File { return nil }

// Events implements tun.Device.
func (e *end) Events() <-chan tun.Event { return e.events }

// BatchSize implements tun.Device.
func (e *end) BatchSize() int { return conn.IdealBatchSize }
