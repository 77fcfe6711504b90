package main

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/gateway"
	"github.com/sallyport-net/sallyport/gateway/readout"
	"github.com/sallyport-net/sallyport/internal/allowance"
	"github.com/sallyport-net/sallyport/internal/config"
)

func listenAdmin(a netip.AddrPort) (net.Listener, error) {
	l, err := net.Listen("tcp", a.String())
	if err != nil {
		return nil, fmt.Errorf("listen on admin.listen %s: %w: free the port or choose another", a, err)
	}
	return l, nil
}

// admin is what the operator's machines ask: metrics and health, and on this machine
// read-outs of the tables. Without a gateway, host is nil: a control plane is ready once
// it serves. Profiles have a token of their own, or are not served.
func admin(host *gateway.Host, token string) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{PidFn: func() (int, error) { return os.Getpid(), nil }}))
	registry.MustRegister(machineMetrics()...)
	if host != nil {
		registry.MustRegister(host)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if host != nil && !host.Ready() {
			http.Error(w, "not ready: networks are coming up or going down", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	profiles := http.Handler(http.HandlerFunc(noProfiles))
	if token != "" {
		profiles = newProfiler(token)
	}
	mux.Handle("GET /debug/pprof/{kind}", profiles)
	if host != nil {
		mux.HandleFunc("GET "+readout.PortsPath("{network}"), local(readPorts(host)))
		mux.HandleFunc("GET "+readout.SessionsPath("{network}"), local(readSessions(host)))
	}
	return mux
}

// machineMetrics say what the machine and its control groups allow, as at the start.
func machineMetrics() []prometheus.Collector {
	here := allowance.Here()
	gauge := func(name, help string, v float64, labels prometheus.Labels) prometheus.Collector {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "sallyport_" + name, Help: help, ConstLabels: labels})
		g.Set(v)
		return g
	}
	return []prometheus.Collector{
		gauge("machine_info", "Always 1; the label is the kernel's release.", 1, prometheus.Labels{"kernel": here.Kernel}),
		gauge("cores_allowed", "Cores that the process may run on (affinity).", float64(here.Cores), nil),
		gauge("cpu_quota_cores", "Cores that the control groups let the process have at a time; 0: no quota.", here.Cgroup.CPU.Value, nil),
		gauge("cgroup_memory_bytes", "Memory that the control groups let the process have; 0: no limit.", float64(here.Cgroup.Memory.Value), nil),
	}
}

// adminSide is what the operator's machines ask, and where.
type adminSide struct {
	listener net.Listener
	handler  http.Handler
}

// adminToken reads the token for profiles; empty: there is none. The API's is refused:
// workers have that one.
func adminToken(d config.Daemon) (string, error) {
	if d.Admin.TokenFile == "" {
		return "", nil
	}
	token, err := api.ReadAdminTokenFile(d.Admin.TokenFile)
	if err != nil {
		return "", fmt.Errorf("admin.token_file: %w", err)
	}
	key, file := "control.token_file", d.Control.TokenFile
	if d.Roles.Control {
		key, file = "api.token_file", d.API.TokenFile
	}
	if other, err := api.ReadTokenFile(file); err == nil && other == token {
		return "", fmt.Errorf("admin.token_file: %s holds the token of %s, too, which workers have: write one of its own, as `head -c 24 /dev/urandom | base64` makes it", d.Admin.TokenFile, key)
	}
	return token, nil
}
