package gateway

import (
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/tun"
)

// siteSlots is how many packets wait for a site or relay tunnel at most.
const siteSlots = 1024

// siteDevice is the packet device of a site or relay tunnel, or of a link: Read takes what the
// Forwarder has queued for it, Write gives the Forwarder what the tunnel brings.
// Neither waits for the other side.
type siteDevice struct {
	name   string
	mtu    int
	fwd    *Forwarder
	queue  replyQueue
	events chan tun.Event
	once   sync.Once
}

var _ tun.Device = (*siteDevice)(nil)

// newSiteDevice returns a device in which so many packets of the Forwarder may wait.
func newSiteDevice(name string, f *Forwarder, slots int) *siteDevice {
	d := &siteDevice{name: name, mtu: f.mtu, fwd: f, events: make(chan tun.Event, 1)}
	d.queue.init(slots)
	d.events <- tun.EventUp
	return d
}

// Read waits for packets and returns as many as there are room for. After Close it
// returns os.ErrClosed.
func (d *siteDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := d.queue.wait(bufs, sizes, offset)
	if n == 0 {
		return 0, os.ErrClosed
	}
	return n, nil
}

// Write takes one peer's packets, each at bufs[i][offset:]; the buffers are the
// caller's again on return. A packet that is dropped is counted, not an error.
func (d *siteDevice) Write(bufs [][]byte, offset int) (int, error) {
	d.fwd.fromSite(d, bufs, offset)
	return len(bufs), nil
}

// MTU returns the tunnel's MTU in bytes.
func (d *siteDevice) MTU() (int, error) { return d.mtu, nil }

// Name returns the device's name.
func (d *siteDevice) Name() (string, error) { return d.name, nil }

// File returns nil: there is no descriptor behind the device.
func (d *siteDevice) File() *os.File { return nil }

// Events returns the channel that wireguard-go learns from that the device is up.
func (d *siteDevice) Events() <-chan tun.Event { return d.events }

// BatchSize returns how many packets one Read carries at most.
func (d *siteDevice) BatchSize() int { return batchSize }

// Close ends Read; what is queued is lost. It may be called more than once.
func (d *siteDevice) Close() error {
	d.once.Do(func() {
		d.queue.close()
		close(d.events)
	})
	return nil
}
