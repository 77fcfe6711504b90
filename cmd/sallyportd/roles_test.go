package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/tunnel"
)

const (
	controlYAML = `roles: [control]
region: iad1
desired_state: state.yaml
api: {listen: "unix://api.sock", token_file: token}
admin: {listen: "127.0.0.1:0"}
`
	gatewayYAML = `roles: [gateway]
host: gw-a
region: iad1
secret_file: secret
control: {api: "unix://api.sock", token_file: token}
admin: {listen: "127.0.0.1:0"}
wireguard: {ports: 22830-22839}
dns: {upstreams: ["127.0.0.1:5353"]}
drain: 300ms
`
)

// logText is a log that may be read while it is written.
type logText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// process is a daemon of one role that runs in this process.
type process struct {
	t     *testing.T
	log   logText
	end   context.CancelFunc
	ended chan error
}

func startRole(t *testing.T, file string) *process {
	t.Helper()
	s, err := load(file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p := &process{t: t, end: cancel, ended: make(chan error, 1)}
	go func() { p.ended <- run(ctx, s, &p.log) }()
	t.Cleanup(p.stop)
	return p
}

func (p *process) stop() {
	p.t.Helper()
	if p.ended == nil {
		return
	}
	p.end()
	select {
	case err := <-p.ended:
		if err != nil {
			p.t.Errorf("%v\n%s", err, p.log.String())
		}
	case <-time.After(15 * time.Second):
		p.t.Fatalf("did not end within 15 s\n%s", p.log.String())
	}
	p.ended = nil
}

var adminLine = regexp.MustCompile(`msg=serving .*admin=(\S+)`)

// get asks the admin listener, whose address is in the log; 0 while there is none.
func (p *process) get(path string) (int, string) {
	m := adminLine.FindStringSubmatch(p.log.String())
	if m == nil {
		return 0, ""
	}
	resp, err := http.Get("http://" + m[1] + path)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// awaitAnswer waits until the admin listener answers with a status and a text.
func (p *process) awaitAnswer(path string, status int, text string) {
	p.t.Helper()
	eventually(p.t, 15*time.Second, path, func() error {
		got, body := p.get(path)
		if got != status || !strings.Contains(body, text) {
			return fmt.Errorf("status %d, want %d with %q\n%s", got, status, text, p.log.String())
		}
		return nil
	})
}

// TestRolesApart: a control plane and a gateway in daemons of their own do what one
// does; the gateway outlives its control plane, starts without it, and tells a new
// one when it drains.
func TestRolesApart(t *testing.T) {
	dir := files(t)
	for name, text := range map[string]string{"control.yaml": controlYAML, "gateway.yaml": gatewayYAML} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	plane := startRole(t, filepath.Join(dir, "control.yaml"))
	plane.awaitAnswer("/readyz", http.StatusOK, "ready")
	if code, body := plane.get("/metrics"); code != http.StatusOK || strings.Contains(body, "sallyport_packets") || !strings.Contains(body, "sallyport_cores_allowed") {
		t.Errorf("metrics of a control plane: status %d", code)
	}
	for _, name := range []string{"secret", "gateway-state.json"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("the control plane made %s", name)
		}
	}
	gateway := startRole(t, filepath.Join(dir, "gateway.yaml"))
	gateway.awaitAnswer("/readyz", http.StatusOK, "ready")

	client, err := api.NewClient(api.ClientConfig{Address: "unix://" + filepath.Join(dir, "api.sock"), Token: testToken})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	resp, err := client.Attach(ctx, api.AttachRequest{
		Project: "prj_a", Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeGo,
		Region: "iad1", PublicKey: tunnel.NewKey().Public().String(),
	})
	if err != nil || len(resp.Gateways) != 1 || resp.Gateways[0].Host != "gw-a" {
		t.Fatalf("attached: %+v, %v\n%s", resp, err, gateway.log.String())
	}

	gateway.awaitAnswer("/v1/networks/net_a/ports?destination=192.0.2.5:5432", http.StatusOK, `"destination":{"protocol":"tcp"`)
	gateway.awaitAnswer("/v1/networks/net_a/sessions", http.StatusOK, `{"network":"net_a","sessions":[]}`)
	plane.stop()
	gateway.awaitAnswer("/metrics", http.StatusOK, `sallyport_wireguard_peers{network="net_a"} 1`)
	gateway.stop()
	if text := gateway.log.String(); !strings.Contains(text, "draining") {
		t.Errorf("the gateway did not drain:\n%s", text)
	}
	gateway = startRole(t, filepath.Join(dir, "gateway.yaml")) // nobody answers it
	gateway.awaitAnswer("/readyz", http.StatusOK, "ready")
	gateway.awaitAnswer("/metrics", http.StatusOK, `sallyport_wireguard_peers{network="net_a"} 1`)
	if text := gateway.log.String(); !strings.Contains(text, "starting with the state file") {
		t.Errorf("the log says nothing of the state file:\n%s", text)
	}

	plane = startRole(t, filepath.Join(dir, "control.yaml"))
	eventually(t, 15*time.Second, "the new control plane hears of the gateway", func() error {
		s, err := client.Status(ctx)
		if err == nil && len(s.Networks) == 2 && len(s.Networks[0].Hosts) == 1 {
			return nil
		}
		return errors.Join(errors.New("it has not reported"), err)
	})
	gateway.awaitAnswer("/metrics", http.StatusOK, `sallyport_wireguard_peers{network="net_a"} 1`) // nobody was cut
	gateway.end()
	gateway.awaitAnswer("/readyz", http.StatusServiceUnavailable, "not ready")
	gateway.stop()
	plane.stop()
}

// TestGatewayAlone: what a gateway's first start needs of its control plane is said.
func TestGatewayAlone(t *testing.T) {
	dir := files(t)
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	begin := func(file string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		s, err := load(file)
		if err != nil {
			return err
		}
		return run(ctx, s, io.Discard)
	}
	if err := begin(write("a.yaml", gatewayYAML)); err == nil || !strings.Contains(err.Error(), "desired state") {
		t.Errorf("no control plane: %v", err)
	}
	if err := begin(write("b.yaml", strings.Replace(gatewayYAML, "token_file: token", "token_file: nothing", 1))); err == nil || !strings.Contains(err.Error(), "control.token_file") {
		t.Errorf("no token: %v", err)
	}
	plane := startRole(t, write("control.yaml", controlYAML))
	plane.awaitAnswer("/readyz", http.StatusOK, "ready")
	if err := begin(write("c.yaml", strings.Replace(gatewayYAML, "host: gw-a", "host: gw-z", 1))); err == nil || !strings.Contains(err.Error(), `no host "gw-z"`) {
		t.Errorf("an unknown host: %v", err)
	}
	plane.stop()
	// Nothing of these is left.
	l, err := net.ListenPacket("udp4", "0.0.0.0:22830")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// TestSitePort: a site tunnel needs a port that its host keeps from translation.
func TestSitePort(t *testing.T) {
	for port, good := range map[string]bool{"22809": false, "22810": true, "22819": true, "22820": false} {
		dir := files(t, "pair: [127.77.0.1, 127.77.0.2]", "pair: [127.77.0.1, 127.77.0.2]\n    site: {host: gw-a, port: "+port+"}",
			"secret_file: secret", "secret_file: secret\nregion_secret_file: region")
		_, err := load(filepath.Join(dir, "d.yaml"))
		if good != (err == nil) {
			t.Errorf("port %s: %v", port, err)
		}
		if err != nil && (!strings.Contains(err.Error(), port) || !strings.Contains(err.Error(), "22810-22819") || !strings.Contains(err.Error(), "net_a")) {
			t.Errorf("port %s: %v; want port, range and network", port, err)
		}
	}
}

// TestPortsFit: the ports of site tunnels, and of those to them, are counted before
// anything starts.
func TestPortsFit(t *testing.T) {
	const first, second = "pair: [127.77.0.1, 127.77.0.2]", "pair: [127.77.0.3, 127.77.0.4]"
	hosts := []string{"      - {name: gw-a, endpoint: 127.0.0.1}", "      - {name: gw-a, endpoint: 127.0.0.1}\n      - {name: gw-b, endpoint: 127.0.0.2}"}
	for name, c := range map[string]struct {
		ports, first, second, says string
	}{
		"room for all":                {"22810-22814", "{host: gw-a, port: 22810}", "{host: gw-b, port: 22811}", ""},
		"a relay too many":            {"22810-22813", "{host: gw-a, port: 22810}", "{host: gw-b, port: 22811}", "22810-22813 has room for 4, but host gw-a needs 5: 2 for its networks, 2 for site tunnels, 1 for"},
		"another host's site outside": {"22810-22813", "{host: gw-a, port: 22810}", "{host: gw-b, port: 30000}", ""},
		"this host's site outside":    {"22810-22819", "{host: gw-a, port: 22820}", "{host: gw-b, port: 22811}", "network net_a has port 22820 on this host, outside of 22810-22819"},
	} {
		dir := files(t, append(hosts, "secret_file: secret", "secret_file: secret\nregion_secret_file: region", "22810-22819", c.ports,
			first, first+"\n    site: "+c.first, second, second+"\n    site: "+c.second)...)
		_, err := load(filepath.Join(dir, "d.yaml"))
		if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "wireguard.ports")) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

// TestRegionSecret: it is read like the host's, never made, and wanted where a
// network has a site.
func TestRegionSecret(t *testing.T) {
	site := []string{"pair: [127.77.0.1, 127.77.0.2]", "pair: [127.77.0.1, 127.77.0.2]\n    site: {host: gw-a, port: 22819}"}
	dir := files(t, site...)
	if _, err := load(filepath.Join(dir, "d.yaml")); err == nil || !strings.Contains(err.Error(), "region_secret_file") || !strings.Contains(err.Error(), "net_a") {
		t.Errorf("a site without a secret: %v", err)
	}
	dir = files(t, append(site, "secret_file: secret", "secret_file: secret\nregion_secret_file: region")...)
	s, err := load(filepath.Join(dir, "d.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "region")
	check := func(what, want string) {
		t.Helper()
		for _, err := range []error{s.checkFiles(), run(t.Context(), s, io.Discard)} {
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	check("no file", "copy it to every host of the region")
	if _, err := os.Stat(path); err == nil {
		t.Error("the daemon made a region's secret")
	}
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("too short", "32 bytes")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	check("open to others", "chmod 600")
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("ab", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.checkFiles(); err != nil {
		t.Error(err)
	}
	if b, err := regionSecret(path); err != nil || len(b) != 32 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// TestCheckRoles: check says what it has read, for each role.
func TestCheckRoles(t *testing.T) {
	dir := files(t)
	for role, c := range map[string][2]string{
		"control": {controlYAML, "good: control of region iad1, 2 networks in the desired state"},
		"gateway": {gatewayYAML, "good: gateway of host gw-a of region iad1, following unix://" + dir + "/api.sock"},
		"both":    {daemonYAML, "good: control, gateway of host gw-a of region iad1, 2 networks in the desired state"},
	} {
		file := filepath.Join(dir, role+".yaml")
		if err := os.WriteFile(file, []byte(c[0]), 0o600); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		cmd := command()
		cmd.SetOut(&out)
		cmd.SetArgs([]string{"check", "--config", file})
		if err := cmd.ExecuteContext(t.Context()); err != nil || !strings.Contains(out.String(), c[1]) {
			t.Errorf("%s: %q, %v", role, out.String(), err)
		}
		if err := os.Rename(filepath.Join(dir, "token"), filepath.Join(dir, "away")); err != nil {
			t.Fatal(err)
		}
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "token_file") {
			t.Errorf("%s without a token: %v", role, err)
		}
		if err := os.Rename(filepath.Join(dir, "away"), filepath.Join(dir, "token")); err != nil {
			t.Fatal(err)
		}
	}
}
