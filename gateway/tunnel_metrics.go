package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-net/sallyport/tunnel"
)

// tunnelDescs are the names of what is counted of the sockets of a network's tunnel.
type tunnelDescs struct{ lost, dropped, errors, waits, uncut, offload, buffer, uplink *prometheus.Desc }

func newTunnelDescs(d func(name, help string, labels ...string) *prometheus.Desc) tunnelDescs {
	return tunnelDescs{
		lost:    d("tunnel_lost_total", "Datagrams of the network's WireGuard tunnel that this host did not send, or could not take, by reason.", "network", "reason"),
		dropped: d("tunnel_dropped_total", "Datagrams, those that the kernel had joined as one, that came while a socket of the network's WireGuard tunnel was full, or damaged.", "network"),
		errors:  d("tunnel_receive_errors_total", "Errors of receiving by the network's WireGuard tunnel.", "network"),
		waits:   d("tunnel_send_waits_total", "How often the network's WireGuard tunnel waited for room in its socket.", "network"),
		uncut:   d("tunnel_uncut_total", "How often the kernel refused to cut datagrams of the network's WireGuard tunnel, which then go one by one.", "network"),
		offload: d("tunnel_offload", "1 while the kernel cuts (gso) or joins (gro) datagrams of all sockets of the network's WireGuard tunnels here.", "network", "offload"),
		buffer:  d("tunnel_socket_buffer_bytes", "What the kernel gave the sockets of the network's WireGuard tunnels; the least of all.", "network", "direction"),
		uplink:  d("uplink_offload", "1 where the kernel takes and hands over vnet headers (vnet), segments of TCP (tso) and of UDP (uso) together; all 0 with uplink: sockets.", "network", "offload"),
	}
}

func (d tunnelDescs) all() []*prometheus.Desc {
	return []*prometheus.Desc{d.lost, d.dropped, d.errors, d.waits, d.uncut, d.offload, d.buffer, d.uplink}
}

// collectOffloads says what the kernel does for one network.
func (d tunnelDescs) collectOffloads(n *network, gauge func(*prometheus.Desc, float64, ...string)) {
	o, ok := n.offloads()
	if !ok {
		return // it is being closed
	}
	gauge(d.offload, truth(o.gso), n.id, "gso")
	gauge(d.offload, truth(o.gro), n.id, "gro")
	gauge(d.buffer, float64(o.receive), n.id, "receive")
	gauge(d.buffer, float64(o.send), n.id, "send")
	gauge(d.uplink, truth(o.uplink.VNet), n.id, "vnet")
	gauge(d.uplink, truth(o.uplink.TCP), n.id, "tso")
	gauge(d.uplink, truth(o.uplink.UDP), n.id, "uso")
}

// collect counts one tunnel.
func (d tunnelDescs) collect(id string, s tunnel.SocketStats, counter func(*prometheus.Desc, uint64, ...string)) {
	for reason, n := range s.Lost {
		counter(d.lost, n, id, reason)
	}
	counter(d.dropped, s.Dropped, id)
	counter(d.errors, s.ReceiveErrors, id)
	counter(d.waits, s.Full, id)
	counter(d.uncut, s.RefusedRuns, id)
}
