package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// tableDescs are the names of what is counted of one dedicated IP.
type tableDescs struct {
	sessions, mappings, halfOpen, left, held, blocks, crowded, refused, draining *prometheus.Desc
}

func newTableDescs(d func(name, help string, labels ...string) *prometheus.Desc) tableDescs {
	return tableDescs{
		sessions: d("sessions", "Live sessions of one dedicated IP.", "network", "ip"),
		mappings: d("mappings", "Live mappings of one dedicated IP.", "network", "ip"),
		halfOpen: d("half_open", "TCP connections of one dedicated IP whose handshake is not complete.", "network", "ip"),
		left:     d("ports_left", "External ports, or echo identifiers, that serve all destinations and are free. Of TCP only where it is mapped endpoint-independently.", "network", "ip", "protocol"),
		held:     d("ports_held", "Freed ports, and TCP ports towards one destination, that are not given out again yet.", "network", "ip"),
		blocks:   d("port_blocks_left", "Port blocks of one dedicated IP that are free, where its network has blocks.", "network", "ip"),
		crowded:  d("crowded_destinations", "Destinations towards which many TCP ports of one dedicated IP are taken.", "network", "ip"),
		refused:  d("flows_refused_total", "New flows that one dedicated IP refused, by reason.", "network", "ip", "reason"),
		draining: d("ip_draining", "1 while a dedicated IP is drained.", "network", "ip"),
	}
}

func (d tableDescs) all() []*prometheus.Desc {
	return []*prometheus.Desc{d.sessions, d.mappings, d.halfOpen, d.left, d.held, d.blocks, d.crowded, d.refused, d.draining}
}

// collect counts one IP of a network's pair.
func (d tableDescs) collect(n *network, side int, s nat.Stats, counter func(*prometheus.Desc, uint64, ...string), gauge func(*prometheus.Desc, float64, ...string)) {
	ip := n.pair[side].String()
	gauge(d.sessions, float64(sessions(s)), n.id, ip)
	gauge(d.mappings, float64(s.Mappings), n.id, ip)
	gauge(d.halfOpen, float64(s.HalfOpen), n.id, ip)
	for _, p := range []packet.Proto{packet.TCP, packet.UDP, packet.ICMP} {
		if p != packet.TCP || n.translation.mapping == spec.MapEndpointIndependent {
			gauge(d.left, float64(s.FreePorts.Of(p)), n.id, ip, protocolName(p))
		}
	}
	gauge(d.held, float64(s.HeldPorts+s.HeldTuples), n.id, ip)
	if n.translation.block > 0 {
		gauge(d.blocks, float64(s.FreeBlocks), n.id, ip)
	}
	gauge(d.crowded, float64(s.Crowded), n.id, ip)
	for r := range s.Refused {
		if count := s.Refused[r]; count > 0 {
			counter(d.refused, count, n.id, ip, nat.Reason(r).String())
		}
	}
	gauge(d.draining, truth(n.fwd.Draining(n.pair[side])), n.id, ip)
}
