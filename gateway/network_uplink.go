package gateway

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// openUplink opens the network's far side and leads the packets to its addresses there.
// On an error nothing is left behind.
func (n *network) openUplink(h *Host, w spec.Network, fragments packet.ReassemblyConfig) (err error) {
	held := heldOf(w, n.held)
	if err := n.hostSide.check(held); err != nil {
		return err
	}
	if h.cfg.Daemon.Uplink == config.UplinkTun {
		err = n.openTun(h.cfg.Daemon.Tun.NoOffload, held, fragments)
	} else {
		err = n.openSockets(h, w, held)
	}
	if err != nil {
		n.closeUplink()
	}
	return err
}

// openTun opens the kernel uplink. The kernel leads nothing to an interface that is not
// there, and the Forwarder writes nothing yet: between the two steps nothing can leave by a
// wrong way.
func (n *network) openTun(noOffload bool, held []netip.Addr, fragments packet.ReassemblyConfig) error {
	up, err := uplink.NewTun(uplink.TunConfig{Interface: linkName(n.id), Addresses: held, Fragments: fragments, NoOffload: noOffload, Log: n.log})
	if err != nil {
		return err
	}
	n.up = up
	return n.hostSide.lead(n.id, held, &n.health.cut)
}

// openSockets opens the uplink of sockets, which need the addresses on the host.
func (n *network) openSockets(h *Host, w spec.Network, held []netip.Addr) error {
	if err := n.hostSide.lead(n.id, held, &n.health.cut); err != nil {
		return err
	}
	up, err := uplink.NewSockets(uplink.SocketsConfig{
		Addresses: held, Gateway: w.Gateway(), MTU: tunnelMTU, Log: n.log,
		MaxSessions:              h.socketShare(),
		MaxPending:               h.cfg.Daemon.Limits.PendingConnects,
		MaxPendingPerDestination: h.cfg.Daemon.Limits.PendingConnectsPerDestination,
	})
	if err != nil {
		return err
	}
	n.up = up
	return nil
}

// closeUplink takes back what openUplink has done, also in part.
func (n *network) closeUplink() {
	restore := n.hostSide.leave(n.id)
	if n.up != nil {
		n.up.Close()
	}
	restore()
}
