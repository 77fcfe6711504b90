package tunnel

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

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
// allowed addresses, before it drops it, and of the calls of either end. It is said
// nowhere else: WireGuard has no counter of the one, and no time of the others.
const (
	disallowed4 = "IPv4 packet with disallowed source address from %v"
	disallowed6 = "IPv6 packet with disallowed source address from %v"
	calling     = "%v - Sending handshake initiation"
	called      = "%v - Received handshake initiation"
)

// sightings are what was said of the peers that a tunnel knows.
type sightings struct {
	peers sync.Map // *device.Peer -> *sighting
}

type sighting struct {
	disallowed atomic.Uint64
	heard      atomic.Pointer[time.Time] // the peer's last call; nil: none
	called     atomic.Pointer[time.Time] // ours to it
}

// know begins to look at a peer, unless it is known. A new one may have been called
// since it began to be set, and may have answered.
func (s *sightings) know(p *device.Peer, began time.Time) {
	fresh := new(sighting)
	fresh.called.Store(&began)
	s.peers.LoadOrStore(p, fresh)
}

func (s *sightings) forget(p *device.Peer) { s.peers.Delete(p) }

// disallowed returns the count of a peer; 0 where it is not known.
func (s *sightings) disallowed(p *device.Peer) uint64 {
	if seen, ok := s.peers.Load(p); ok {
		return seen.(*sighting).disallowed.Load()
	}
	return 0
}

// initiations are when a peer called last and when it was called; zero where there
// was none, or the peer is not known.
func (s *sightings) initiations(p *device.Peer) (heard, called time.Time) {
	seen, ok := s.peers.Load(p)
	if !ok {
		return heard, called
	}
	if at := seen.(*sighting).heard.Load(); at != nil {
		heard = *at
	}
	if at := seen.(*sighting).called.Load(); at != nil {
		called = *at
	}
	return heard, called
}

// note takes in a message of WireGuard. It formats nothing.
func (s *sightings) note(format string, args []any) {
	switch format {
	case disallowed4, disallowed6, calling, called:
	default:
		return
	}
	if len(args) != 1 {
		return
	}
	p, ok := s.peers.Load(args[0])
	if !ok {
		return
	}
	seen, now := p.(*sighting), time.Now()
	switch format {
	case called:
		seen.heard.Store(&now)
	case calling:
		seen.called.Store(&now)
	default:
		seen.disallowed.Add(1)
	}
}

// bridge makes WireGuard's logger. Everything goes to debug: its messages name
// endpoints, and what it calls errors (no route, no such peer) is ordinary on a
// network that comes and goes. Where debug is off, nothing is even formatted.
func bridge(log *slog.Logger, seen *sightings) *device.Logger {
	if log == nil || !log.Enabled(context.Background(), slog.LevelDebug) {
		return &device.Logger{
			Verbosef: func(format string, args ...any) { seen.note(format, args) },
			Errorf:   device.DiscardLogf,
		}
	}
	return &device.Logger{
		Verbosef: func(format string, args ...any) {
			seen.note(format, args)
			log.Debug(fmt.Sprintf(format, args...))
		},
		Errorf: func(format string, args ...any) { log.Debug(fmt.Sprintf(format, args...), "trouble", true) },
	}
}
