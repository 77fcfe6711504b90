package scenario

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/bench/trial"
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
	c.Scenarios = []string{"udp-in", "tcp-out", "udp-in"}
	if err := c.validate(); err != nil || !slices.Equal(c.Scenarios, []string{"udp-in", "tcp-out"}) {
		t.Errorf("named twice: %q, %v", c.Scenarios, err)
	}
	far := netip.MustParseAddrPort("192.0.2.80:9000")
	running := func(c *Config) {
		c.Chain, c.WireGuard, c.Far, c.Key = false, "wg.conf", far, [wire.KeySize]byte{1}
	}
	for want, spoil := range map[string]func(*Config){
		"no scenario":               func(c *Config) { c.Scenarios = []string{"magic"} },
		"nothing to measure":        func(c *Config) { c.Scenarios = nil },
		"name one gateway":          func(c *Config) { c.Chain = false },
		"name one":                  func(c *Config) { c.WireGuard = "wg.conf" },
		"give --token-file":         func(c *Config) { c.Chain, c.API = false, "unix:///a" },
		"sallyport-bench serv":      func(c *Config) { c.Chain, c.WireGuard = false, "wg.conf" },
		"give --far":                func(c *Config) { c.Chain, c.WireGuard, c.Far = false, "wg.conf", far },
		"leave out --far":           func(c *Config) { c.Far, c.Key = far, [wire.KeySize]byte{1} },
		"no IPv4 address":           func(c *Config) { c.Far = netip.MustParseAddrPort("[2001:db8::1]:9") },
		"--far-prefix":              func(c *Config) { c.FarPrefix = netip.MustParsePrefix("198.18.0.0/15") },
		"no uplink":                 func(c *Config) { c.Uplink = "magic" },
		"give one":                  func(c *Config) { running(c); c.PID, c.Admin = 1, "http://127.0.0.1:1" },
		"leave out --pid":           func(c *Config) { c.PID = 1 },
		"leave out --pid and --ad":  func(c *Config) { c.Admin = "http://127.0.0.1:1" },
		"--whole could keep":        func(c *Config) { c.Whole = true },
		"cannot be both":            func(c *Config) { c.JSON, c.HTML = "a", "./a" },
		"such process":              func(c *Config) { running(c); c.PID = 1 << 30 },
		"the harness itself":        func(c *Config) { running(c); c.PID = os.Getpid() },
		"--again":                   func(c *Config) { c.Again = -1 },
		"--rate":                    func(c *Config) { c.Rate = 1 },
		"--for":                     func(c *Config) { c.For = 0 },
		"--try":                     func(c *Config) { c.Try = time.Hour },
		"there is no core 1048576":  func(c *Config) { c.Core = 1 << 20 },
		"core -2 for the gateway":   func(c *Config) { c.Core = -2 },
		"no core 70000: this mach":  func(c *Config) { running(c); c.Core = 70000 },
		"0 sandboxes cannot be: ch": func(c *Config) { c.Sandboxes = []int{1, 0} },
		"--sandboxes":               func(c *Config) { c.Sandboxes = []int{1, 0} },
		"--sessions":                func(c *Config) { c.Sessions = []int{1 << 21} },
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
	if u, err := m.Read(t.Context()); err != nil || u.Process != 12500*time.Millisecond {
		t.Errorf("%v, %v", u.Process, err)
	}
	answer = "something else\n"
	if _, err := m.Read(t.Context()); err == nil || !strings.Contains(err.Error(), "admin listener") {
		t.Error(err)
	}
	code = http.StatusForbidden
	if _, err := m.Read(t.Context()); err == nil || !strings.Contains(err.Error(), "403") {
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
	var table bytes.Buffer
	c.Out = &table
	err := Run(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "is sallyportd running here") {
		t.Errorf("got %v", err)
	}
	if want := "Gateway: api, not reached; far side 192.0.2.80:9000; CPU: "; !strings.Contains(table.String(), want) {
		t.Errorf("%q is not in:\n%s", want, table.String())
	}
	if b, err := os.ReadFile(c.JSON); err != nil || !strings.Contains(string(b), "is sallyportd running here") {
		t.Errorf("%v: %s", err, b)
	}
	c.JSON, c.Whole = filepath.Join(dir, "b.json"), true
	beside := filepath.Join(dir, "b.partial.json")
	if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), beside) {
		t.Errorf("a file that was to stay whole: %v", err)
	}
	if _, err := os.Stat(c.JSON); !os.IsNotExist(err) {
		t.Errorf("it was written: %v", err)
	}
	if b, err := os.ReadFile(beside); err != nil || !strings.Contains(string(b), "is sallyportd running here") {
		t.Errorf("%v: %s", err, b)
	}
}

// The process whose time counts is named.
func TestSays(t *testing.T) {
	self := os.Getpid()
	comm, err := machine.ProcessName(self)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("process %d (%s)", self, comm)
	for want, l := range map[string]trial.Local{
		name + " and core 3": {PID: self, Core: 3}, "core 0": {Core: 0}, "none": {Core: testbed.AnyCore},
		name + ", without the kernel's part for what arrives": {PID: self, Core: testbed.AnyCore},
	} {
		if got := (local{l}).says(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
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
