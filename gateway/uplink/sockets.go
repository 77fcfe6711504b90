package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// Sockets is the uplink made of kernel sockets. See the package comment.
//
// Its goroutines: one that waits for all sockets of mappings, one per TCP connect
// under way, two per TCP session, and those of the stack.
type Sockets struct {
	cfg     SocketsConfig
	log     *slog.Logger
	held    [][4]byte // cfg.Addresses
	gateway [4]byte
	ping    bool // the kernel gives ping sockets
	line    string

	device  *netstack.Device
	outlet  outlet
	dialer  net.Dialer
	batches sync.Pool // *batch
	pieces  sync.Pool // *[]byte of pieceSize

	sockets      budget
	tcp          sessions
	mappings     mappings
	poller       *poller
	rx           receiver // the poller's
	segmentation atomic.Bool

	errors limiter
	events events
	linger linger
	drops  [packet.NumOutcomes]atomic.Uint64

	complaints complaints

	ctx     context.Context // ended by Close
	end     context.CancelFunc
	closing sync.Once
}

var _ Uplink = (*Sockets)(nil)

// NewSockets returns an uplink that is up. It tries each dedicated address, so
// that one that is missing on the host is an error that names it.
func NewSockets(cfg SocketsConfig) (*Sockets, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("sockets uplink: %w", err)
	}
	cfg = cfg.withinSessions()
	for _, a := range cfg.Addresses {
		if err := CheckAddress(a); err != nil {
			return nil, fmt.Errorf("sockets uplink: %w", err)
		}
	}
	s := &Sockets{cfg: cfg, log: cfg.Log, gateway: cfg.Gateway.As4(), ping: pingAllowed()}
	for _, a := range cfg.Addresses {
		s.held = append(s.held, a.As4())
	}
	s.line = describe(cfg, s.ping)
	s.sockets.limit = int64(cfg.MaxSessions)
	reserveDescriptors(cfg.MaxSessions)
	s.errors.start = time.Now()
	s.events.ch = make(chan Event, eventQueue)
	s.mappings.by = make(map[mappingKey]*mapping)
	s.tcp.init(cfg, &s.sockets)
	s.linger.init(&s.events, &s.tcp)
	s.segmentation.Store(true)
	s.batches.New = func() any { return new(batch) }
	s.pieces.New = func() any { b := make([]byte, pieceSize); return &b }
	s.ctx, s.end = context.WithCancel(context.Background())
	// No keep-alive: whether a silent session still lives is the table's business.
	s.dialer = net.Dialer{Timeout: cfg.ConnectTimeout, KeepAlive: -1, Control: reuseAddress}
	var err error
	if s.device, err = netstack.New(netstack.Config{
		MTU: cfg.MTU, Intercept: true, Handler: s, MaxPending: 2*cfg.MaxPending + 1, Queue: outQueue,
	}); err == nil {
		s.poller, err = newPoller(s.ready)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("sockets uplink: %w", err)
	}
	return s, nil
}

// outQueue is how many packets may wait for Read.
const outQueue = 2048

// reuseAddress lets one external port be bound by the connections to many destinations.
func reuseAddress(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(err, failed)
}

// batch is the scratch of one Write. It belongs to one call at a time.
type batch struct {
	packets [netstack.BatchSize]packet.Packet
	tcp     [][]byte
	msg     message
}

// Write implements Uplink.
func (s *Sockets) Write(bufs [][]byte, offset int) (int, error) {
	if s.ctx.Err() != nil {
		return 0, os.ErrClosed
	}
	b := s.batches.Get().(*batch)
	defer s.batches.Put(b)
	for rest := bufs; len(rest) > 0; {
		part := rest[:min(len(rest), len(b.packets))]
		rest = rest[len(part):]
		if err := s.writeBatch(b, part, offset); err != nil {
			return 0, err
		}
	}
	return len(bufs), nil
}

// writeBatch sorts packets by what carries them. Consecutive UDP packets of a flow
// are sent together where they are alike.
func (s *Sockets) writeBatch(b *batch, bufs [][]byte, offset int) error {
	for i := range bufs {
		s.parse(&b.packets[i], bufs[i][offset:])
	}
	b.tcp = b.tcp[:0]
	for i, next := 0, 0; i < len(bufs); i = next {
		next = i + 1
		p := &b.packets[i]
		switch p.Kind {
		case packet.KindTCP:
			if s.admit(p) {
				b.tcp = append(b.tcp, bufs[i])
			}
		case packet.KindUDP:
			if s.segmentation.Load() {
				for next < len(bufs) && joins(b.packets[i:next], &b.packets[next]) {
					next++
				}
			}
			s.sendRun(&b.msg, b.packets[i:next])
		case packet.KindICMPQuery:
			s.sendEcho(&b.msg, p)
		}
	}
	var err error
	if len(b.tcp) > 0 {
		_, err = s.device.Write(b.tcp, offset)
	}
	clear(b.tcp)
	return err
}

// parse fills in p, or leaves it KindUnknown and counts why: what is broken, and
// above all a source that is none of the addresses. Checksums are verified
// because the kernel writes new ones (the stack does it itself).
func (s *Sockets) parse(p *packet.Packet, b []byte) {
	o := packet.Parse(p, b)
	switch {
	case o != packet.Pass:
	case !s.holds(p.Src.As4()):
		o = packet.WrongSource
	case p.Kind == packet.KindFragment:
		o = packet.Fragment
	case p.Kind == packet.KindICMPError:
		// No socket sends one.
		o = packet.ICMPUnavailable
	case p.Kind != packet.KindTCP && !p.ChecksumOK():
		o = packet.MalformedL4
	}
	if o != packet.Pass {
		p.Kind = packet.KindUnknown
		s.drop(o)
	}
}

func (s *Sockets) holds(a [4]byte) bool {
	for _, h := range s.held {
		if a == h {
			return true
		}
	}
	return false
}

// Read implements Uplink. Where both the stack and the sockets of mappings have
// packets, neither keeps the other waiting.
func (s *Sockets) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := s.outlet.take(bufs[:(len(bufs)+1)/2], sizes, offset)
	if n == 0 {
		k, err := s.device.Read(bufs, sizes, offset)
		if k == 0 && err == nil {
			k = s.outlet.take(bufs, sizes, offset)
		}
		return k, err
	}
	// Woken in advance, the stack's Read does not wait.
	s.device.Wake()
	k, err := s.device.Read(bufs[n:], sizes[n:], offset)
	if err != nil {
		return 0, err
	}
	return n + k, nil
}

// Wake implements Uplink.
func (s *Sockets) Wake() { s.device.Wake() }

// BatchSize implements Uplink.
func (s *Sockets) BatchSize() int { return s.device.BatchSize() }

// Events implements Uplink.
func (s *Sockets) Events() <-chan Event { return s.events.ch }

// Release implements Uplink.
func (s *Sockets) Release(f Flow) {
	if !f.External.Addr().Is4() {
		return
	}
	external := endpointOf(f.External)
	if f.Proto != packet.TCP {
		if m := s.mappings.take(mappingKey{external, f.Proto}); m != nil {
			s.closeMapping(m)
		}
		return
	}
	if f.Remote.Addr().Is4() {
		s.tcp.release(flowKey{external, endpointOf(f.Remote)})
	}
}

// Stats implements Uplink.
func (s *Sockets) Stats() Stats {
	st := Stats{
		EventsLost: s.events.lost.Load(),
		UDP:        int(s.mappings.gauge(packet.UDP).Load()),
		ICMP:       int(s.mappings.gauge(packet.ICMP).Load()),
	}
	st.TCP, st.Pending = s.tcp.count()
	for i := range s.drops {
		st.Drops[i] = s.drops[i].Load()
	}
	return st
}

// String implements Uplink.
func (s *Sockets) String() string { return s.line }

// Close implements Uplink. TCP sessions end by RST on both sides. It waits for
// everything of the uplink to end, so it must not be called from what it ends.
func (s *Sockets) Close() error {
	s.closing.Do(func() {
		s.end()
		s.linger.close()
		s.tcp.shutDown()
		if s.device != nil {
			s.device.Close()
		}
		s.tcp.served.Wait()
		for _, m := range s.mappings.shutDown() {
			s.closeMapping(m)
		}
		if s.poller != nil {
			s.poller.close()
		}
		s.events.close()
	})
	return nil
}

// complain logs what an operator may have to mend, such as an address that is
// gone, but not for every packet.
func (s *Sockets) complain(err error) {
	if s.complaints.due() {
		s.log.Warn("the kernel refused a socket or packet of a dedicated address: is the address still on the host, and is there a route?", "error", err)
	}
}
