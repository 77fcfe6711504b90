package scenario

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/control/api"
)

func valid() Config {
	return Config{
		Scenarios: Scenarios(), Chain: true, Uplink: "sockets", Core: testbed.AnyCore, Rate: 1000, For: time.Second, Try: 100 * time.Millisecond,
		Sandboxes: []int{1, 50}, Sessions: []int{500},
	}
}

func TestConfig(t *testing.T) {
	c := valid()
	if err := c.validate(); err != nil {
		t.Error(err)
	}
	far := netip.MustParseAddrPort("192.0.2.80:9000")
	for want, spoil := range map[string]func(*Config){
		"no scenario":          func(c *Config) { c.Scenarios = []string{"magic"} },
		"nothing to measure":   func(c *Config) { c.Scenarios = nil },
		"name one gateway":     func(c *Config) { c.Chain = false },
		"name one":             func(c *Config) { c.WireGuard = "wg.conf" },
		"give --token-file":    func(c *Config) { c.Chain, c.API = false, "unix:///a" },
		"sallyport-bench serv": func(c *Config) { c.Chain, c.WireGuard = false, "wg.conf" },
		"give --far":           func(c *Config) { c.Chain, c.WireGuard, c.Far = false, "wg.conf", far },
		"leave out --far":      func(c *Config) { c.Far, c.Key = far, [wire.KeySize]byte{1} },
		"no IPv4 address":      func(c *Config) { c.Far = netip.MustParseAddrPort("[2001:db8::1]:9") },
		"--far-prefix":         func(c *Config) { c.FarPrefix = netip.MustParsePrefix("198.18.0.0/15") },
		"no uplink":            func(c *Config) { c.Uplink = "magic" },
		"give one":             func(c *Config) { c.PID, c.Admin = 1, "http://127.0.0.1:1" },
		"--rate":               func(c *Config) { c.Rate = 1 },
		"--for":                func(c *Config) { c.For = 0 },
		"--try":                func(c *Config) { c.Try = time.Hour },
		"--sandboxes":          func(c *Config) { c.Sandboxes = []int{1, 0} },
		"--sessions":           func(c *Config) { c.Sessions = []int{1 << 21} },
	} {
		c := valid()
		spoil(&c)
		if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestParseWireGuard(t *testing.T) {
	const good = "[Interface]\nPrivateKey = a= # a comment\nAddress = 10.0.0.2/24, fd00::2/64\naddress=10.0.0.3\nMTU = 1380\nDNS = 10.0.0.1\n\n[Peer]\nPublicKey = b=\nAllowedIPs = 0.0.0.0/0\nEndpoint = 192.0.2.1:51820\n"
	end, err := parseWireGuard(good)
	if err != nil {
		t.Fatal(err)
	}
	if end.PrivateKey != "a=" || end.Gateway.PublicKey != "b=" || end.Gateway.MTU != 1380 || end.Gateway.Endpoint != netip.MustParseAddrPort("192.0.2.1:51820") || len(end.Inners) != 2 {
		t.Errorf("%+v", end)
	}
	for want, text := range map[string]string{
		"0 peers":       "",
		"2 peers":       good + "[Peer]\n",
		"lacks":         strings.Replace(good, "PrivateKey", "Private", 1),
		"not resolved":  strings.Replace(good, "192.0.2.1:", "gw.example:", 1),
		"IPv4 addresse": strings.Replace(strings.Replace(good, "10.0.0.2/24, ", "", 1), "address=10.0.0.3\n", "", 1),
		"preshared":     good + "PresharedKey = x\n",
		"line 1 is no":  "what\n" + good,
		`address "a"`:   good + "[Interface]\nAddress = a\n",
	} {
		if _, err := parseWireGuard(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// CPU time is read of metrics; what is no metrics says so.
func TestScraped(t *testing.T) {
	answer, code := "# HELP x\nprocess_cpu_seconds_total 12.5\n", http.StatusOK
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			t.Errorf("asked for %s", r.URL)
		}
		w.WriteHeader(code)
		_, _ = w.Write([]byte(answer))
	}))
	defer s.Close()
	m := newScraped(s.URL + "/")
	if process, _, err := m.read(t.Context()); err != nil || process != 12500*time.Millisecond {
		t.Errorf("%v, %v", process, err)
	}
	answer = "something else\n"
	if _, _, err := m.read(t.Context()); err == nil || !strings.Contains(err.Error(), "admin listener") {
		t.Error(err)
	}
	code = http.StatusForbidden
	if _, _, err := m.read(t.Context()); err == nil || !strings.Contains(err.Error(), "403") {
		t.Error(err)
	}
}

// A gateway that cannot be reached: the reason is said and in the JSON document.
func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := valid()
	c.Chain, c.API, c.TokenFile, c.Project, c.Environment, c.Region = false, "unix://"+filepath.Join(dir, "api.sock"), token, "shop", "production", "iad1"
	c.Far, c.Key, c.JSON = netip.MustParseAddrPort("192.0.2.80:9000"), [wire.KeySize]byte{1}, filepath.Join(dir, "a.json")
	err := Run(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "is sallyportd running here") {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(c.JSON); err != nil || !strings.Contains(string(b), "is sallyportd running here") {
		t.Errorf("%v: %s", err, b)
	}
}

// One sandbox that cannot be detached keeps no other attached, and is said.
func TestDetachAll(t *testing.T) {
	var asked atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer s.Close()
	client, err := api.NewClient(api.ClientConfig{Address: s.URL, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	const n = 5 * detachers
	o := &operated{client: client, more: make(chan string, n)}
	for range n {
		o.more <- "id"
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // as after Ctrl-C
	if err := o.close(ctx); err == nil || asked.Load() < n {
		t.Errorf("%d of %d were detached: %v", asked.Load(), n, err)
	}
}
