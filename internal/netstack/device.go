package netstack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// BatchSize is the largest number of packets of one Read.
const BatchSize = 128

// nicID is the number of the stack's only interface.
const nicID = 1

// Config says what a Device is. The zero value of a field that has a default takes it.
type Config struct {
	// Addresses are the stack's own IPv4 addresses. It answers ICMP echo to them.
	Addresses []netip.Addr
	// MTU is the largest IP packet in bytes that is sent. Default 1420; at least 576.
	MTU int
	// Queue is how many packets may wait to be read before more are refused that are
	// injected. Whoever can wait does so from a batch on. Default 1024.
	Queue int
	// Intercept makes the stack answer as every address: SYNs to any address
	// and port go to Handler. Of other packets only ICMP errors are taken,
	// for the connections that exist; all else is dropped and counted, and
	// a TCP segment that belongs to no connection is answered by a reset.
	Intercept bool
	// Handler gets the connection requests. Needed when Intercept is set, else it must be nil.
	Handler TCPHandler
	// MaxPending is how many requests may be undecided or in their handshake; SYNs
	// beyond are dropped silently and counted, so that the client tries again. Default 1024.
	MaxPending int
	// HandshakeTimeout bounds Request.Accept. Default 30 s.
	HandshakeTimeout time.Duration
	// TimeWait is how long a connection that this side closed first stays in
	// TIME-WAIT. Default 60 s, and 1 s with Intercept, where a connection's
	// ports are not used again while the translator holds them.
	TimeWait time.Duration
	// ReceiveBuffer and SendBuffer are what a connection begins with, in bytes;
	// both grow with the measured rate up to MaxBuffer. Defaults 256 KiB, 256 KiB, 4 MiB.
	ReceiveBuffer, SendBuffer, MaxBuffer int
}

func (c Config) withDefaults() Config {
	set := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	set(&c.MTU, 1420)
	set(&c.Queue, 1024)
	set(&c.MaxPending, 1024)
	set(&c.ReceiveBuffer, 256<<10)
	set(&c.SendBuffer, 256<<10)
	set(&c.MaxBuffer, 4<<20)
	if c.HandshakeTimeout == 0 {
		c.HandshakeTimeout = 30 * time.Second
	}
	if c.TimeWait == 0 {
		c.TimeWait = time.Minute
		if c.Intercept {
			c.TimeWait = time.Second
		}
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.MTU < header.IPv4MinimumMTU || c.MTU > header.IPv4MaximumPayloadSize:
		return fmt.Errorf("MTU %d: must be %d to %d bytes", c.MTU, header.IPv4MinimumMTU, header.IPv4MaximumPayloadSize)
	case c.Queue < BatchSize:
		return fmt.Errorf("queue of %d packets: must hold at least one batch of %d", c.Queue, BatchSize)
	case c.MaxPending < 1:
		return fmt.Errorf("at most %d pending requests: must be at least 1", c.MaxPending)
	case c.HandshakeTimeout < 0 || c.TimeWait < 0:
		return fmt.Errorf("handshake timeout %v, TIME-WAIT %v: must not be negative", c.HandshakeTimeout, c.TimeWait)
	case c.ReceiveBuffer < tcp.MinBufferSize || c.SendBuffer < tcp.MinBufferSize || c.MaxBuffer < max(c.ReceiveBuffer, c.SendBuffer):
		return fmt.Errorf("buffers %d, %d, at most %d bytes: must be at least %d and within the maximum", c.ReceiveBuffer, c.SendBuffer, c.MaxBuffer, tcp.MinBufferSize)
	case c.Intercept && c.Handler == nil:
		return errors.New("intercepting needs a handler")
	case !c.Intercept && c.Handler != nil:
		return errors.New("a handler is given, but the stack does not intercept")
	case !c.Intercept && len(c.Addresses) == 0:
		return errors.New("no address: give at least one, or intercept")
	}
	for _, a := range c.Addresses {
		if !a.Is4() {
			return fmt.Errorf("address %v: must be IPv4", a)
		}
	}
	return nil
}

// Device is a TCP/IP stack seen as a tun.Device. Read must be called by one
// goroutine at a time (it serialises others); everything else may be called concurrently.
type Device struct {
	config   Config
	stack    *stack.Stack
	link     *link
	queue    *queue
	counters counters
	events   chan tun.Event
	raw      sync.Pool // *[]byte of injected packets
	copies   sync.Pool // *[]byte of copySize

	coalescers sync.Pool // *coalescer

	readMu  sync.Mutex
	taken   []outbound // what Read took from the queue
	takenAt int        // the first of them that is not read to its end
	current segmenter  // reads that one

	// gate is held for reading by all that enters the stack from outside, and
	// for writing by Close, after which nothing enters.
	gate   sync.RWMutex
	closed bool
	once   sync.Once
	done   context.Context    // ended by Close
	end    context.CancelFunc // ends done
	calls  sync.WaitGroup     // handshakes that someone waits for
}

var _ tun.Device = (*Device)(nil)

// quiet takes what gVisor would write to standard error: packets that it can do
// nothing with. Whoever sends us packets could fill a log with that.
type quiet struct{}

// Emit implements log.Emitter.
func (quiet) Emit(int, log.Level, time.Time, string, ...any) {}

// New returns a running stack. It must be closed.
func New(c Config) (*Device, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("netstack: %w", err)
	}
	log.SetTarget(quiet{})
	d := &Device{config: c, queue: newQueue(c.Queue, c.Queue/4), events: make(chan tun.Event, 1)}
	d.link = &link{mtu: c.MTU, queue: d.queue, counters: &d.counters, everywhere: c.Intercept}
	d.current.completes = c.Intercept
	d.done, d.end = context.WithCancel(context.Background())
	d.raw.New = func() any { b := make([]byte, 0, c.MTU); return &b }
	d.copies.New = func() any { b := make([]byte, copySize); return &b }
	d.coalescers.New = func() any { return &coalescer{link: d.link} }
	d.events <- tun.EventUp
	if err := d.start(); err != nil {
		d.Close()
		return nil, fmt.Errorf("netstack: %w", err)
	}
	return d, nil
}

// start makes and configures the stack.
func (d *Device) start() error {
	d.stack = stack.New(stack.Options{
		// Policy and translation decided about addresses before a packet
		// comes here; loopback ones are real in a region made of loopback addresses.
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocolWithOptions(ipv4.Options{AllowExternalLoopbackTraffic: true})},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := d.configureTCP(); err != nil {
		return err
	}
	if err := d.stack.CreateNIC(nicID, d.link); err != nil {
		return fmt.Errorf("add the interface: %v", err)
	}
	for _, a := range d.config.Addresses {
		pa := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: address(a).WithPrefix()}
		if err := d.stack.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("add address %v: %v", a, err)
		}
	}
	d.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	if !d.config.Intercept {
		return nil
	}
	every := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: everyAddress()}
	if err := d.stack.AddProtocolAddress(nicID, every, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("be every address: %v", err)
	}
	if err := d.stack.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("accept packets to every address: %v", err)
	}
	if err := d.stack.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("send from every address: %v", err)
	}
	d.intercept()
	return nil
}

// everyAddress is an address that nobody has, and a subnet that holds all.
func everyAddress() tcpip.AddressWithPrefix {
	return tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4([4]byte{0, 0, 0, 1}), PrefixLen: 0}
}

// configureTCP sets what all connections of the stack begin with.
//
// Loss recovery is that of RFC 6675, with SACK. The stack's default, RACK (RFC 8985),
// loses connections: its count of what is in flight leaves the FIN out once a
// loss was being mended, so that no timer is set when a tail probe repeats the FIN.
// Where the probe is lost too, the peer never learns that the stream has ended.
func (d *Device) configureTCP() error {
	c := d.config
	sack := tcpip.TCPSACKEnabled(true)
	cubic := tcpip.CongestionControlOption("cubic")
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	timeWait := tcpip.TCPTimeWaitTimeoutOption(c.TimeWait)
	recovery := tcpip.TCPRecovery(0) // no RACK
	options := []tcpip.SettableTransportProtocolOption{
		&recovery, &sack, &cubic, &moderate, &timeWait,
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: c.ReceiveBuffer, Max: c.MaxBuffer},
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: c.SendBuffer, Max: c.MaxBuffer},
	}
	for _, o := range options {
		if err := d.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set TCP option %T: %v", o, err)
		}
	}
	return nil
}

// enter lets the caller into the stack until it calls leave. It fails once the device is closed.
func (d *Device) enter() error {
	d.gate.RLock()
	if d.closed {
		d.gate.RUnlock()
		return os.ErrClosed
	}
	return nil
}

func (d *Device) leave() { d.gate.RUnlock() }

// Name returns "netstack".
func (d *Device) Name() (string, error) { return "netstack", nil }

// File returns nil: no descriptor stands behind the device.
func (d *Device) File() *os.File { return nil }

// MTU returns the largest IP packet in bytes that Read yields of the stack's own.
func (d *Device) MTU() (int, error) { return d.config.MTU, nil }

// BatchSize returns [BatchSize].
func (d *Device) BatchSize() int { return BatchSize }

// Events returns a channel that holds tun.EventUp and is closed by Close.
func (d *Device) Events() <-chan tun.Event { return d.events }

// Close resets all connections, closes all listeners and ends the stack's
// goroutines; a blocked Read returns os.ErrClosed. Packets not read are lost,
// the resets among them. It returns when nothing of the stack runs any more.
func (d *Device) Close() error {
	d.once.Do(d.shut)
	return nil
}

func (d *Device) shut() {
	// Whoever is blocked on the queue inside the stack gets out first.
	rest := d.queue.close()
	d.gate.Lock()
	d.closed = true
	d.gate.Unlock()
	for i := range rest {
		d.release(&rest[i])
	}
	d.end()
	d.calls.Wait()
	if d.stack != nil {
		d.stack.Close()
		d.stack.Wait()
	}
	d.readMu.Lock()
	for i := range d.taken[d.takenAt:] {
		d.release(&d.taken[d.takenAt+i])
	}
	d.taken, d.takenAt, d.current = nil, 0, segmenter{}
	d.readMu.Unlock()
	close(d.events)
}

// release gives back what o holds.
func (d *Device) release(o *outbound) {
	if o.pkt != nil {
		o.pkt.DecRef()
	}
	if o.raw != nil {
		d.raw.Put(o.raw)
	}
	*o = outbound{}
}

// address converts an IPv4 address.
func address(a netip.Addr) tcpip.Address { return tcpip.AddrFrom4(a.As4()) }

// localAddress converts an address and port to bind to. It names no interface: the
// stack checks that it has the address only then.
func localAddress(ap netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{Addr: address(ap.Addr()), Port: ap.Port()}
}

// fullAddress converts an address and port that is reached through the stack's interface.
func fullAddress(ap netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: address(ap.Addr()), Port: ap.Port()}
}

// addrPort converts back; an address that is not IPv4 becomes the zero AddrPort.
func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	if a.Len() != header.IPv4AddressSize {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.AddrFrom4(a.As4()), port)
}
