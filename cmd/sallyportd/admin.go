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

	"github.com/sallyport-net/sallyport/gateway"
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
// it serves.
func admin(host *gateway.Host) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{PidFn: func() (int, error) { return os.Getpid(), nil }}))
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
	if host != nil {
		mux.HandleFunc("GET /v1/networks/{network}/ports", local(readPorts(host)))
		mux.HandleFunc("GET /v1/networks/{network}/sessions", local(readSessions(host)))
	}
	return mux
}
