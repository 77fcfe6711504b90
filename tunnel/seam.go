package tunnel

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// alwaysUp is a packet device whose Up and Down events do not reach WireGuard.
// They would open the UDP socket before the port is set, or close it behind the
// tunnel's back.
type alwaysUp struct {
	tun.Device
	events chan tun.Event
}

// newAlwaysUp wraps a device. The goroutine that passes events on ends when the
// device closes its own channel of events, which its Close does.
func newAlwaysUp(dev tun.Device) *alwaysUp {
	d := &alwaysUp{Device: dev, events: make(chan tun.Event, 1)}
	go d.forward()
	return d
}

// forward passes on that the MTU changed. The channel has room for one, and one
// is enough: the reader asks for the newest MTU.
func (d *alwaysUp) forward() {
	defer close(d.events)
	for e := range d.Device.Events() {
		if e&tun.EventMTUUpdate == 0 {
			continue
		}
		select {
		case d.events <- tun.EventMTUUpdate:
		default:
		}
	}
}

// Events is the filtered channel.
func (d *alwaysUp) Events() <-chan tun.Event { return d.events }

// What WireGuard says of a packet that a peer sent with a source outside its
// allowed addresses, before it drops it. It is said nowhere else: WireGuard has no
// counter of them.
const (
	disallowed4 = "IPv4 packet with disallowed source address from %v"
	disallowed6 = "IPv6 packet with disallowed source address from %v"
)

// disallowed counts such packets for the peers that a tunnel knows.
type disallowed struct {
	peers sync.Map // *device.Peer -> *atomic.Uint64
}

// know begins to count for a peer, unless it is known.
func (d *disallowed) know(p *device.Peer) { d.peers.LoadOrStore(p, new(atomic.Uint64)) }

func (d *disallowed) forget(p *device.Peer) { d.peers.Delete(p) }

// of returns the count of a peer; 0 where it is not known.
func (d *disallowed) of(p *device.Peer) uint64 {
	if n, ok := d.peers.Load(p); ok {
		return n.(*atomic.Uint64).Load()
	}
	return 0
}

// note counts, where a message of WireGuard says what is counted. It formats nothing.
func (d *disallowed) note(format string, args []any) {
	if format != disallowed4 && format != disallowed6 || len(args) != 1 {
		return
	}
	if n, ok := d.peers.Load(args[0]); ok {
		n.(*atomic.Uint64).Add(1)
	}
}

// bridge makes WireGuard's logger. Everything goes to debug: its messages name
// endpoints, and what it calls errors (no route, no such peer) is ordinary on a
// network that comes and goes. Where debug is off, nothing is even formatted.
func bridge(log *slog.Logger, count *disallowed) *device.Logger {
	if log == nil || !log.Enabled(context.Background(), slog.LevelDebug) {
		return &device.Logger{
			Verbosef: func(format string, args ...any) { count.note(format, args) },
			Errorf:   device.DiscardLogf,
		}
	}
	return &device.Logger{
		Verbosef: func(format string, args ...any) {
			count.note(format, args)
			log.Debug(fmt.Sprintf(format, args...))
		},
		Errorf: func(format string, args ...any) { log.Debug(fmt.Sprintf(format, args...), "trouble", true) },
	}
}
