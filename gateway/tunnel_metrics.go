package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-net/sallyport/tunnel"
)

// tunnelDescs are the names of what is counted of the sockets of a network's tunnel.
type tunnelDescs struct{ lost, errors, waits, uncut *prometheus.Desc }

func newTunnelDescs(d func(name, help string, labels ...string) *prometheus.Desc) tunnelDescs {
	return tunnelDescs{
		lost:   d("tunnel_lost_total", "Datagrams of the network's WireGuard tunnel that this host did not send, or could not take, by reason.", "network", "reason"),
		errors: d("tunnel_receive_errors_total", "Errors of receiving by the network's WireGuard tunnel.", "network"),
		waits:  d("tunnel_send_waits_total", "How often the network's WireGuard tunnel waited for room in its socket.", "network"),
		uncut:  d("tunnel_uncut_total", "How often the kernel refused to cut datagrams of the network's WireGuard tunnel, which then go one by one.", "network"),
	}
}

func (d tunnelDescs) all() []*prometheus.Desc {
	return []*prometheus.Desc{d.lost, d.errors, d.waits, d.uncut}
}

// collect counts one tunnel.
func (d tunnelDescs) collect(id string, s tunnel.SocketStats, counter func(*prometheus.Desc, uint64, ...string)) {
	for reason, n := range s.Lost {
		counter(d.lost, n, id, reason)
	}
	counter(d.errors, s.ReceiveErrors, id)
	counter(d.waits, s.Full, id)
	counter(d.uncut, s.RefusedRuns, id)
}
