package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// adminServer serves metrics and health.
type adminServer struct {
	listener net.Listener
	http     *http.Server
}

// listenAdmin opens the admin port, or returns nil where none is wanted.
func (s *Sidecar) listenAdmin(ctx context.Context) (*adminServer, error) {
	if !s.cfg.Admin.IsValid() {
		return nil, nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.Admin.String())
	if err != nil {
		return nil, fmt.Errorf("serve metrics at %v: free the port, or choose another (admin.listen): %w", s.cfg.Admin, err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(s, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.cfg.Log.Info("metrics are served", "address", l.Addr().String())
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", s.ready)
	return &adminServer{listener: l, http: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}}, nil
}

// ready says whether sandboxes can be attached: whether the control plane answers.
func (s *Sidecar) ready(w http.ResponseWriter, _ *http.Request) {
	c := s.status().Control
	if !c.Reachable {
		http.Error(w, "the control plane does not answer: "+c.Error, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

// run serves until ctx ends.
func (a *adminServer) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = a.http.Close() })
	defer stop()
	if err := a.http.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics at %v: %w", a.listener.Addr(), err)
	}
	return nil
}

// sidecarDescs are the names of what a sidecar counts. Labels carry ids of
// networks, names of hosts and reasons of closed sets, never addresses.
type sidecarDescs struct {
	drops, sandboxes, bypassed, bypassedTotal, packets, bytes, rtt, alive, probes, answers, falseAnswers, lost *prometheus.Desc
	passive, control                                                                                           *prometheus.Desc
}

func descs() sidecarDescs {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("sallyport_sidecar_"+name, help, labels, nil)
	}
	return sidecarDescs{
		drops:         d("drops_total", "Packets dropped, by reason; directions are seen from the sandbox.", "direction", "reason"),
		sandboxes:     d("sandboxes", "Sandboxes with a tunnel."),
		bypassed:      d("bypassed", "Sandboxes that bypass now, by reason.", "reason"),
		bypassedTotal: d("bypassed_total", "Sandboxes that bypassed since the start, by reason.", "reason"),
		packets:       d("path_packets_total", "Packets through a tunnel, probes among them.", "network", "gateway", "direction"),
		bytes:         d("path_bytes_total", "Bytes of IP packets through a tunnel.", "network", "gateway", "direction"),
		rtt:           d("path_rtt_seconds", "Smoothed round-trip time of probes.", "network", "gateway"),
		alive:         d("path_alive", "1 while the gateway answers probes.", "network", "gateway"),
		probes:        d("path_probes_total", "Probes sent.", "network", "gateway"),
		answers:       d("path_answers_total", "Probes answered.", "network", "gateway"),
		falseAnswers:  d("path_false_answers_total", "What looked like an answer to a probe and was none: forged, repeated, or far too late.", "network", "gateway"),
		lost:          d("path_lost_total", "Datagrams of a tunnel that this machine did not send, or could not take, by reason.", "network", "gateway", "reason"),
		passive:       d("passive_attachments", "Sandboxes by the state of their attachment to their passive network.", "state"),
		control:       d("control_reachable", "1 while the control plane answers.", "region"),
	}
}

// Describe implements prometheus.Collector.
func (s *Sidecar) Describe(ch chan<- *prometheus.Desc) {
	d := descs()
	for _, one := range []*prometheus.Desc{
		d.drops, d.sandboxes, d.bypassed, d.bypassedTotal, d.packets, d.bytes, d.rtt, d.alive, d.probes, d.answers, d.falseAnswers, d.lost,
		d.passive, d.control,
	} {
		ch <- one
	}
	for _, c := range s.switches.collectors() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (s *Sidecar) Collect(ch chan<- prometheus.Metric) {
	d := descs()
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	counter := func(desc *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), labels...)
	}
	list := s.listing()
	gauge(d.sandboxes, float64(list.Attached))
	for why, n := range list.Bypassed {
		gauge(d.bypassed, float64(n), why)
	}
	for why, n := range list.BypassedTotal {
		counter(d.bypassedTotal, n, why)
	}
	status := s.status()
	for direction, drops := range map[string]map[string]uint64{"egress": status.Egress, "ingress": status.Ingress} {
		for why, n := range drops {
			counter(d.drops, n, direction, why)
		}
	}
	gauge(d.control, oneIf(status.Control.Reachable), s.cfg.Region)
	for region, c := range status.Regions {
		gauge(d.control, oneIf(c.Reachable), region)
	}
	states := make(map[string]int)
	for _, box := range list.Sandboxes {
		if box.Passive.State != "" {
			states[box.Passive.State]++
		}
	}
	for state, n := range states {
		gauge(d.passive, float64(n), state)
	}
	s.collectPaths(status, gauge, counter)
	for _, c := range s.switches.collectors() {
		c.Collect(ch)
	}
}

// collectPaths reports tunnels and what they are used for. A passive network may be that of
// several networks here; its tunnels, which they share, are reported as its own, as
// the first of them sees them.
func (s *Sidecar) collectPaths(
	status Status,
	gauge func(*prometheus.Desc, float64, ...string),
	counter func(*prometheus.Desc, uint64, ...string),
) {
	d := descs()
	seen := make(map[[2]string]bool)
	for _, n := range status.Networks {
		for _, p := range n.Paths {
			network, host := p.Network, p.Gateway.Host
			if seen[[2]string{network, host}] {
				continue
			}
			seen[[2]string{network, host}] = true
			counter(d.packets, p.Egress.Packets, network, host, "egress")
			counter(d.packets, p.Ingress.Packets, network, host, "ingress")
			counter(d.bytes, p.Egress.Bytes, network, host, "egress")
			counter(d.bytes, p.Ingress.Bytes, network, host, "ingress")
			gauge(d.rtt, float64(p.RTTMicros)/1e6, network, host)
			gauge(d.alive, oneIf(p.Alive), network, host)
			counter(d.probes, p.Probes, network, host)
			counter(d.answers, p.Answers, network, host)
			counter(d.falseAnswers, p.FalseAnswers, network, host)
			for reason, n := range p.Lost {
				counter(d.lost, n, network, host, reason)
			}
		}
	}
}

// oneIf is a condition as a metric.
func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
