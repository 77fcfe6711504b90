package conformance

import (
	"log/slog"
	"net/netip"
	"sync"
	"testing"

	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// gated is an uplink whose Read shuts a gate until what it returned has been dealt with.
type gated interface {
	uplink.Uplink
	leave()
}

// tunUplink is the gateway's own uplink on a TUN, with a gate.
type tunUplink struct {
	*uplink.Tun
	gate *sync.Mutex
	held bool // by the one goroutine that reads
}

var _ uplink.Trains = (*tunUplink)(nil)

func newTunUplink(t *testing.T, g *ground, link string, pair [2]netip.Addr, gate *sync.Mutex) *tunUplink {
	t.Helper()
	u := &tunUplink{gate: gate}
	err := g.gateway.Do(func() (err error) {
		u.Tun, err = uplink.NewTun(uplink.TunConfig{Interface: link, Addresses: pair[:], Log: slog.New(slog.DiscardHandler)})
		return err
	})
	if err != nil {
		netlab.NotRun(t, err.Error())
	}
	run(t, g.gateway, "ip", "link", "set", link, "mtu", "65535", "txqueuelen", "20000", "up")
	return u
}

func (u *tunUplink) ReadTrains(trains []packet.Train) (int, error) {
	u.leave()
	n, err := u.Tun.ReadTrains(trains)
	u.gate.Lock()
	u.held = true
	return n, err
}

// leave opens the gate.
func (u *tunUplink) leave() {
	if u.held {
		u.held = false
		u.gate.Unlock()
	}
}
