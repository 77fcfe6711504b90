package gateway

import (
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-net/sallyport/nat"
)

// siteDescs are the names of what is counted where a site tunnel is.
type siteDescs struct {
	packets, bytes, foreign, sessions, up *prometheus.Desc
}

func newSiteDescs(d func(name, help string, labels ...string) *prometheus.Desc) siteDescs {
	return siteDescs{
		packets:  d("peering_packets_total", "Packets of one peering connection, on the host of the site tunnel.", "network", "peering", "direction"),
		bytes:    d("peering_bytes_total", "Bytes of IP packets of one peering connection.", "network", "peering", "direction"),
		foreign:  d("peering_foreign_packets_total", "Packets of the other side that were dropped because their source is in none of its ranges.", "network", "peering"),
		sessions: d("peered_sessions", "Live sessions to peered networks, on the host of the site tunnel.", "network"),
		up:       d("peering_up", "0 while nothing can pass by a peering connection because its interface, or the other network, is not there; of kind wireguard always 1.", "network", "peering"),
	}
}

// collect counts one network.
func (d siteDescs) collect(n *network, counter func(*prometheus.Desc, uint64, ...string), gauge func(*prometheus.Desc, float64, ...string)) {
	s := n.siteReport(netip.Addr{})
	if s == nil {
		return
	}
	live := 0
	n.fwd.withPeered(func(t *nat.Table) { live = sessions(t.Stats()) })
	gauge(d.sessions, float64(live), n.id)
	for _, p := range s.Peerings {
		counter(d.packets, p.Egress.Packets, n.id, p.ID, Egress.String())
		counter(d.bytes, p.Egress.Bytes, n.id, p.ID, Egress.String())
		counter(d.packets, p.Ingress.Packets, n.id, p.ID, Ingress.String())
		counter(d.bytes, p.Ingress.Bytes, n.id, p.ID, Ingress.String())
		counter(d.foreign, p.Foreign, n.id, p.ID)
		gauge(d.up, truth(p.Trouble == ""), n.id, p.ID)
	}
}
