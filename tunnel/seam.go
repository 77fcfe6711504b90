package tunnel

import (
	"context"
	"fmt"
	"log/slog"

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

// bridge makes WireGuard's logger. Everything goes to debug: its messages name
// endpoints, and what it calls errors (no route, no such peer) is ordinary on a
// network that comes and goes. Where debug is off, nothing is even formatted.
func bridge(log *slog.Logger) *device.Logger {
	if log == nil || !log.Enabled(context.Background(), slog.LevelDebug) {
		return &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
	}
	return &device.Logger{
		Verbosef: func(format string, args ...any) { log.Debug(fmt.Sprintf(format, args...)) },
		Errorf:   func(format string, args ...any) { log.Debug(fmt.Sprintf(format, args...), "trouble", true) },
	}
}
