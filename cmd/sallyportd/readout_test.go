package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/gateway"
	"github.com/sallyport-net/sallyport/gateway/readout"
)

// TestReadoutRequests: read-outs are for this machine alone, and whoever asks wrongly is told
// what to write.
func TestReadoutRequests(t *testing.T) {
	handler := admin(new(gateway.Host), "")
	const ports, sessions = "/v1/networks/net_a/ports", "/v1/networks/net_a/sessions"
	for _, c := range []struct {
		from, path string
		status     int
		says       string
	}{
		{"192.0.2.1:4000", ports, http.StatusForbidden, "loopback"},
		{"192.0.2.1:4000", sessions, http.StatusForbidden, "loopback"},
		{"not an address", ports, http.StatusForbidden, "loopback"},
		{"127.0.0.2:4000", ports, http.StatusForbidden, "loopback"},
		{"[::1]:4000", ports, http.StatusNotFound, `"net_a"`},
		{"[::ffff:127.0.0.1]:4000", ports, http.StatusNotFound, "does not serve"},
		{"127.0.0.1:4000", sessions, http.StatusNotFound, "does not serve"},
		{"127.0.0.1:4000", ports + "?destination=192.0.2.5:5432&protocol=udp&top=1024", http.StatusNotFound, "does not serve"},
		{"127.0.0.1:4000", ports + "?destination=db:5432", http.StatusBadRequest, "192.0.2.5:5432"},
		{"127.0.0.1:4000", ports + "?destination=[::1]:5432", http.StatusBadRequest, "IPv4"},
		{"127.0.0.1:4000", ports + "?protocol=sctp&top=1025", http.StatusBadRequest, "tcp, udp or icmp\ntop"},
		{"127.0.0.1:4000", ports + "?protocol=icmp&destination=192.0.2.5", http.StatusBadRequest, "port 0 for echoes"},
		{"127.0.0.1:4000", ports + "?protocol=icmp&destination=192.0.2.5:0", http.StatusNotFound, "does not serve"},
		{"127.0.0.1:4000", ports + "?protocol=tcp&protocol=udp", http.StatusBadRequest, "protocol: it is there 2 times"},
		{"127.0.0.1:4000", ports + "?protocol=udp", http.StatusBadRequest, "destination"},
		{"127.0.0.1:4000", ports + "?dest=192.0.2.5:5432", http.StatusBadRequest, "no such parameter"},
		{"127.0.0.1:4000", sessions + "?inner=10.20.0.2&destination=192.0.2.5:5432&limit=9&after=1.77", http.StatusNotFound, "does not serve"},
		{"127.0.0.1:4000", sessions + "?inner=ten&limit=0", http.StatusBadRequest, "IPv4 address"},
		{"127.0.0.1:4000", sessions + "?after=2.1", http.StatusBadRequest, "next"},
		{"127.0.0.1:4000", sessions + "?after=1", http.StatusBadRequest, "next"},
	} {
		r := httptest.NewRequest(http.MethodGet, c.path, nil)
		r.RemoteAddr, r.Host = c.from, "127.0.0.1:9469"
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.says) {
			t.Errorf("%s from %s: %d %s, want %d and %q", c.path, c.from, w.Code, w.Body, c.status, c.says)
		}
	}
	for host, want := range map[string]int{"127.0.0.1:9469": http.StatusNotFound, "[::1]:9469": http.StatusNotFound, "localhost": http.StatusNotFound, "evil.example": http.StatusForbidden, "evil.example:9469": http.StatusForbidden} {
		r := httptest.NewRequest(http.MethodGet, ports, nil)
		r.RemoteAddr, r.Host = "127.0.0.1:4000", host
		w := httptest.NewRecorder()
		if handler.ServeHTTP(w, r); w.Code != want {
			t.Errorf("asked as %s: %d, want %d", host, w.Code, want)
		}
	}
	for _, by := range []string{"Forwarded", "Via", "X-Forwarded-For", "X-Real-IP"} {
		r := httptest.NewRequest(http.MethodGet, ports, nil)
		r.RemoteAddr, r.Host = "127.0.0.1:4000", "127.0.0.1:9469"
		r.Header.Set(by, "192.0.2.1")
		w := httptest.NewRecorder()
		if handler.ServeHTTP(w, r); w.Code != http.StatusForbidden {
			t.Errorf("by a proxy that says so in %s: %d", by, w.Code)
		}
	}
}

// A control plane alone has no such paths; the answer, which is net/http's, is what the
// sallyport command knows that by.
func TestReadoutsOfAControlPlane(t *testing.T) {
	for _, path := range []string{readout.PortsPath("net_a"), readout.SessionsPath("net_a")} {
		w := httptest.NewRecorder()
		admin(nil, "").ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusNotFound || strings.TrimSpace(w.Body.String()) != "404 page not found" {
			t.Errorf("%s: %d %q", path, w.Code, w.Body)
		}
	}
}
