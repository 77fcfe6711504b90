package compare

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// Small packets are of this many flows, which take turns packet by packet, so that
// next to nothing can be joined to longer ones on the way.
const (
	flows       = 64
	smallSize   = 64 // of the IP packet, in bytes
	smallHeader = 20 + 8
	firstFlow   = 20000 // port of the first flow
)

// source is a sandbox of many flows in this process: WireGuard's own device without
// a kernel on its near side. A stock end costs more than a gateway does, and could
// not bring one to its limit.
type source struct {
	device *device.Device
	events chan tun.Event // stays empty: the device goes up when told to
	quit   chan struct{}
	once   sync.Once

	inner    [4]byte
	packets  [flows][smallSize]byte
	pace     pacer
	received atomic.Uint64 // packets that came back
}

var _ tun.Device = (*source)(nil)

func newSource(n *netlab.Namespace, t *tunnel, p *peer) (*source, error) {
	s := &source{events: make(chan tun.Event), quit: make(chan struct{}), inner: p.inner.As4()}
	s.pace.woken = make(chan struct{}, 1)
	for i := range s.packets {
		fillSmall(s.packets[i][:], netip.AddrPortFrom(p.inner, firstFlow+uint16(i)), remoteAddress, uint16(i))
	}
	config := ""
	for _, k := range []struct{ name, key string }{{"private_key", p.private}, {"public_key", t.public}} {
		b, err := base64.StdEncoding.DecodeString(k.key)
		if err != nil {
			return nil, fmt.Errorf("read a key: %w", err)
		}
		config += k.name + "=" + hex.EncodeToString(b) + "\n"
	}
	config += fmt.Sprintf("endpoint=%v\nallowed_ip=%v\n", t.endpoint, everything)
	s.device = device.NewDevice(s, conn.NewStdNetBind(), device.NewLogger(device.LogLevelSilent, ""))
	err := s.device.IpcSet(config)
	if err == nil {
		err = n.Do(s.device.Up) // its sockets belong to the namespace
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("start a source of small packets: %w", err)
	}
	return s, nil
}

func (s *source) close() { s.device.Close() }

// fillSmall makes a packet with right checksums. The flow's number begins the payload.
func fillSmall(b []byte, from, to netip.AddrPort, flow uint16) {
	src, dst := from.Addr().As4(), to.Addr().As4()
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], 0x4000) // DF
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b[:20]))
	u := b[20:]
	binary.BigEndian.PutUint16(u, from.Port())
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	binary.BigEndian.PutUint16(u[8:], flow)
	pseudo := sum(17+uint32(len(u)), b[12:20])
	binary.BigEndian.PutUint16(u[6:], ^sum(uint32(pseudo), u))
}

// sum is the ones' complement sum of 16-bit words (RFC 1071) of an even number of bytes.
func sum(s uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// Read hands out packets as fast as the pace allows. It implements tun.Device.
func (s *source) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		first, n, wait := s.pace.take(time.Now(), len(bufs))
		if n > 0 {
			for i := range n {
				sizes[i] = copy(bufs[i][offset:], s.packets[(first+uint64(i))%flows][:])
			}
			return n, nil
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-s.pace.woken:
		case <-s.quit:
			return 0, os.ErrClosed
		}
	}
}

// Write counts the small packets that came for this sandbox. It implements tun.Device.
func (s *source) Write(bufs [][]byte, offset int) (int, error) {
	var n uint64
	for _, b := range bufs {
		if b = b[offset:]; len(b) == smallSize && b[9] == 17 && [4]byte(b[16:20]) == s.inner {
			n++
		}
	}
	s.received.Add(n)
	return len(bufs), nil
}

// Close implements tun.Device.
func (s *source) Close() error {
	s.once.Do(func() {
		close(s.quit)
		close(s.events)
	})
	return nil
}

// MTU implements tun.Device.
func (s *source) MTU() (int, error) { return innerMTU, nil }

// Name implements tun.Device.
func (s *source) Name() (string, error) { return "source", nil }

// File implements tun.Device.
func (s *source) File() *os.File { return nil }

// Events implements tun.Device.
func (s *source) Events() <-chan tun.Event { return s.events }

// BatchSize implements tun.Device.
func (s *source) BatchSize() int { return conn.IdealBatchSize }

// pacer says when packets may leave. One goroutine takes, others set the pace.
type pacer struct {
	mu    sync.Mutex
	rate  float64 // per second; 0: none
	from  time.Time
	until time.Time
	taken uint64 // since from
	count uint64 // in all
	woken chan struct{}
}

const (
	paceWait = 100 * time.Microsecond // between looks while packets leave
	idleWait = time.Hour              // without a pace; set wakes
	backlog  = 5 * time.Millisecond   // what a source that was held up makes up for
)

// set starts a pace that ends by itself.
func (p *pacer) set(now time.Time, rate float64, d time.Duration) {
	p.mu.Lock()
	p.rate, p.from, p.until, p.taken = rate, now, now.Add(d), 0
	p.mu.Unlock()
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

// sent is how many packets left, ever.
func (p *pacer) sent() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// take takes up to limit packets that are due, the first of which has a number;
// if none is, it says how long to wait.
func (p *pacer) take(now time.Time, limit int) (first uint64, n int, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.After(p.until) {
		return 0, 0, idleWait
	}
	due := now.Sub(p.from).Seconds()*p.rate - float64(p.taken)
	if most := max(backlog.Seconds()*p.rate, flows); due > most {
		p.taken += uint64(due - most) // never made up for
		due = most
	}
	if due < 1 {
		return 0, 0, paceWait
	}
	n = min(int(due), limit)
	first = p.count
	p.taken += uint64(n)
	p.count += uint64(n)
	return first, n, 0
}
