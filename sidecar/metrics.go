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
	drops, sandboxes, bypassed, bypassedTotal, packets, bytes, rtt, alive, probes, answers, control *prometheus.Desc
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
		control:       d("control_reachable", "1 while the control plane answers."),
	}
}

// Describe implements prometheus.Collector.
func (s *Sidecar) Describe(ch chan<- *prometheus.Desc) {
	d := descs()
	for _, one := range []*prometheus.Desc{
		d.drops, d.sandboxes, d.bypassed, d.bypassedTotal, d.packets, d.bytes, d.rtt, d.alive, d.probes, d.answers, d.control,
	} {
		ch <- one
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
	one := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
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
	gauge(d.control, one(status.Control.Reachable))
	for _, n := range status.Networks {
		for _, p := range n.Paths {
			host := p.Gateway.Host
			counter(d.packets, p.Egress.Packets, n.ID, host, "egress")
			counter(d.packets, p.Ingress.Packets, n.ID, host, "ingress")
			counter(d.bytes, p.Egress.Bytes, n.ID, host, "egress")
			counter(d.bytes, p.Ingress.Bytes, n.ID, host, "ingress")
			gauge(d.rtt, float64(p.RTTMicros)/1e6, n.ID, host)
			gauge(d.alive, one(p.Alive), n.ID, host)
			counter(d.probes, p.Probes, n.ID, host)
			counter(d.answers, p.Answers, n.ID, host)
		}
	}
}
