package gateway

import (
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// report is what the control plane and the operator see of one network.
func (n *network) report(endpoint netip.AddrPort) spec.NetworkReport {
	c := &n.fwd.counters
	r := spec.NetworkReport{
		ID:         n.id,
		PublicKey:  n.public.String(),
		Endpoint:   endpoint,
		Egress:     spec.Traffic{Packets: c.Packets(Egress), Bytes: c.Bytes(Egress)},
		Ingress:    spec.Traffic{Packets: c.Packets(Ingress), Bytes: c.Bytes(Ingress)},
		Peers:      int(n.peers.Load()),
		Drops:      map[string]uint64{},
		UplinkLost: n.health.uplinkLost(),
	}
	up, wires := n.up.Stats(), n.linkDrops()
	for o := range packet.Outcomes() {
		if o == packet.Pass {
			continue
		}
		if d := c.Drops(Egress, o) + c.Drops(Ingress, o) + up.Drops[o] + wires[o]; d > 0 {
			r.Drops[o.String()] = d
		}
	}
	r.WrongSource = r.Drops[packet.WrongSource.String()]
	r.Site = n.siteReport(endpoint.Addr())
	for i := range n.pair {
		r.Sessions[i] = sessions(n.tableStats(i))
		r.Draining[i] = n.fwd.Draining(n.pair[i])
	}
	return r
}

func (n *network) tableStats(side int) (s nat.Stats) {
	n.fwd.withTable(n.pair[side], func(t *nat.Table) { s = t.Stats() })
	return s
}

// sessions are the live sessions of all protocols.
func sessions(s nat.Stats) int {
	return int(s.Sessions.Of(packet.TCP) + s.Sessions.Of(packet.UDP) + s.Sessions.Of(packet.ICMP))
}

// Describe implements prometheus.Collector.
func (h *Host) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range metrics() {
		ch <- d
	}
}

// metricDescs are the names of what a host counts. Labels carry ids of networks
// and reasons of the closed set, never addresses of customers' flows.
type metricDescs struct {
	packets, bytes, drops, local, replies, remote, lost, fragments, peers, sockets, pending, uplink, full, ready, draining, stateWrites, stateErrors *prometheus.Desc

	table  tableDescs
	tunnel tunnelDescs
	site   siteDescs
}

func descs() metricDescs {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("sallyport_"+name, help, labels, nil)
	}
	return metricDescs{
		packets:     d("packets_total", "Packets forwarded; directions are seen from the sandbox.", "network", "direction"),
		bytes:       d("bytes_total", "Bytes of IP packets forwarded.", "network", "direction"),
		drops:       d("drops_total", "Packets dropped, by reason. wrong_source must stay 0.", "network", "direction", "reason"),
		local:       d("local_packets_total", "Packets of sandboxes to the gateway's own services.", "network"),
		replies:     d("replies_total", "ICMP errors, resets and answers that the gateway made itself.", "network"),
		lost:        d("events_lost_total", "Ends of sessions that a full queue lost: their sockets or ports stay longer than they should.", "network"),
		remote:      d("remote_errors_total", "ICMP errors for remote ends that the gateway gave to its uplink: larger than the tunnel, time exceeded. An uplink of sockets drops them.", "network"),
		fragments:   d("fragment_bytes", "Memory of the network's datagrams from sandboxes that wait for more of their fragments.", "network"),
		peers:       d("wireguard_peers", "WireGuard peers of the network on this host.", "network"),
		sockets:     d("uplink_sockets", "Kernel sockets open for the network.", "network", "protocol"),
		pending:     d("uplink_pending_connects", "Connects that the far side has not answered yet.", "network"),
		uplink:      d("uplink_lost", "1 while what leaves from the network's addresses here does not come back.", "network"),
		full:        d("full", "1 while an address of the network here has no session or port left.", "network"),
		ready:       d("ready", "1 while the host serves its networks."),
		draining:    d("draining", "1 while the host tells sidecars to go elsewhere, before it ends."),
		stateWrites: d("state_file_writes_total", "State files written."),
		stateErrors: d("state_file_errors_total", "State files that could not be written, or were refused at the start."),
		table:       newTableDescs(d),
		tunnel:      newTunnelDescs(d),
		site:        newSiteDescs(d),
	}
}

func metrics() []*prometheus.Desc {
	d := descs()
	return append(append(d.table.all(), d.tunnel.all()...), []*prometheus.Desc{d.packets, d.bytes, d.drops, d.local, d.replies, d.remote, d.lost, d.fragments, d.peers, d.sockets, d.pending,
		d.uplink, d.full, d.ready, d.draining, d.stateWrites, d.stateErrors, d.site.packets, d.site.bytes, d.site.foreign, d.site.sessions, d.site.up}...)
}

// Collect implements prometheus.Collector.
func (h *Host) Collect(ch chan<- prometheus.Metric) {
	d := descs()
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	counter := func(desc *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(d.ready, truth(h.Ready()))
	gauge(d.draining, truth(h.draining.Load()))
	counter(d.stateWrites, h.keeper.writes.Load())
	counter(d.stateErrors, h.keeper.errors.Load())
	for _, n := range h.list() {
		id, c, up, wires := n.id, &n.fwd.counters, n.up.Stats(), n.linkDrops()
		for _, dir := range []Direction{Egress, Ingress} {
			counter(d.packets, c.Packets(dir), id, dir.String())
			counter(d.bytes, c.Bytes(dir), id, dir.String())
			for o := range packet.Outcomes() {
				drops := c.Drops(dir, o)
				if dir == Egress {
					drops += up.Drops[o] - up.Inward[o] + wires[o]
				} else {
					drops += up.Inward[o]
				}
				if o == packet.WrongSource || (o != packet.Pass && drops > 0) {
					counter(d.drops, drops, id, dir.String(), o.String())
				}
			}
		}
		counter(d.local, c.Local(), id)
		counter(d.replies, c.Replies(), id)
		counter(d.remote, c.RemoteErrors(), id)
		lost := up.EventsLost
		for i, held := range n.held {
			if held {
				s := n.tableStats(i)
				d.table.collect(n, i, s, counter, gauge)
				lost += s.EventsLost
			}
		}
		counter(d.lost, lost, id)
		gauge(d.fragments, float64(n.fwd.fragmentBytes()), id)
		gauge(d.peers, float64(n.peers.Load()), id)
		gauge(d.sockets, float64(up.TCP), id, "tcp")
		gauge(d.sockets, float64(up.UDP), id, "udp")
		gauge(d.sockets, float64(up.ICMP), id, "icmp")
		gauge(d.pending, float64(up.Pending), id)
		gauge(d.uplink, truth(n.health.uplinkLost()), id)
		gauge(d.full, truth(n.health.full.Load()), id)
		d.tunnel.collect(id, n.tun.SocketStats(), counter)
		d.tunnel.collectOffloads(n, gauge)
		d.site.collect(n, counter, gauge)
	}
}

// truth is how Prometheus writes a truth value.
func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
