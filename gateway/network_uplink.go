package gateway

import (
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
		// The kernel leads nothing to an interface that is not there, and the Forwarder
		// writes nothing yet: between the two steps nothing can leave by a wrong way.
		n.up, err = uplink.NewTun(uplink.TunConfig{Interface: linkName(n.id), Addresses: held, Fragments: fragments, Log: n.log})
		if err == nil {
			err = n.hostSide.lead(n.id, held, &n.health.cut)
		}
	} else {
		// Sockets need the addresses on the host.
		if err = n.hostSide.lead(n.id, held, &n.health.cut); err == nil {
			n.up, err = uplink.NewSockets(uplink.SocketsConfig{
				Addresses: held, Gateway: w.Gateway(), MTU: tunnelMTU, Log: n.log,
				MaxSessions:              h.socketShare(),
				MaxPending:               h.cfg.Daemon.Limits.PendingConnects,
				MaxPendingPerDestination: h.cfg.Daemon.Limits.PendingConnectsPerDestination,
			})
		}
	}
	if err != nil {
		n.closeUplink()
	}
	return err
}

// closeUplink takes back what openUplink has done, also in part.
func (n *network) closeUplink() {
	restore := n.hostSide.leave(n.id)
	if n.up != nil {
		n.up.Close()
	}
	restore()
}
