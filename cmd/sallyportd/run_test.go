package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/tunnel"
)

const (
	testToken = "0123456789abcdef-test"

	daemonYAML = `host: gw-a
region: iad1
secret_file: secret
desired_state: state.yaml
api:
  listen: unix://api.sock
  token_file: token
admin:
  listen: 127.0.0.1:0
wireguard:
  ports: 22810-22819
dns:
  upstreams: [127.0.0.1:5353]
`
	stateYAML = `teams:
  - id: acme
regions:
  - name: iad1
    pool: [127.77.0.0/24]
    hosts:
      - {name: gw-a, endpoint: 127.0.0.1}
networks:
  - id: net_a
    team: acme
    region: iad1
    cidr: 10.20.0.0/16
    pair: [127.77.0.1, 127.77.0.2]
  - id: net_b
    team: acme
    region: iad1
    cidr: 10.20.0.0/16
    pair: [127.77.0.3, 127.77.0.4]
projects:
  - id: prj_a
    team: acme
    environments:
      - {name: production, active: [net_a], builds: true}
`
)

// files writes a daemon's files, changed by replacing old by new, and returns
// the folder.
func files(t *testing.T, replace ...string) string {
	t.Helper()
	dir := t.TempDir()
	r := strings.NewReplacer(replace...)
	for name, text := range map[string]string{
		"d.yaml": r.Replace(daemonYAML), "state.yaml": r.Replace(stateYAML), "token": testToken + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// start loads and runs the daemon in dir until ctx ends.
func start(ctx context.Context, dir string) error {
	s, err := load(filepath.Join(dir, "d.yaml"))
	if err != nil {
		return err
	}
	var log bytes.Buffer
	return run(ctx, s, &log)
}

// TestRun brings the daemon up, attaches a sandbox through its API, and ends it.
func TestRun(t *testing.T) {
	dir := files(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- start(ctx, dir) }()

	client, err := api.NewClient(api.ClientConfig{Address: "unix://" + filepath.Join(dir, "api.sock"), Token: testToken})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for {
		s, err := client.Status(ctx)
		if err == nil && len(s.Networks) == 2 && len(s.Networks[0].Hosts) == 1 {
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("the daemon ended: %v", err)
		case <-ctx.Done():
			t.Fatalf("no status: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	resp, err := client.Attach(ctx, api.AttachRequest{
		Project: "prj_a", Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeGo,
		Region: "iad1", PublicKey: tunnel.NewKey().Public().String(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Gateways) != 1 || resp.Gateways[0].EgressIP != resp.Attachment.Egress ||
		resp.Network.MTU != spec.TunnelMTU || len(resp.Network.DNS) != 1 {
		t.Errorf("the answer lacks something: %+v", resp)
	}
	s, err := client.Status(ctx)
	if err != nil || s.Attachments != 1 {
		t.Errorf("status knows %d attachments (%v), want 1", s.Attachments, err)
	}
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("the daemon ended with %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "api.sock")); err == nil {
		t.Error("the socket outlives the daemon")
	}
	if info, err := os.Stat(filepath.Join(dir, "secret")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the secret is %v (%v), want mode 0600", info, err)
	}
}

// TestBadInput: every fault is named with its place and what would be right,
// and nothing is left running.
func TestBadInput(t *testing.T) {
	taken, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	busy := taken.LocalAddr().String()[strings.LastIndex(taken.LocalAddr().String(), ":")+1:]
	admin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()

	for name, c := range map[string]struct {
		replace []string
		want    []string // all must stand in the error
	}{
		"unknown key":        {[]string{"region: iad1\nsecret", "regoin: iad1\nsecret"}, []string{"d.yaml:2:", "regoin"}},
		"pair used twice":    {[]string{"127.77.0.3, 127.77.0.4", "127.77.0.1, 127.77.0.4"}, []string{"state.yaml:", "127.77.0.1", "net_a"}},
		"public CIDR":        {[]string{"cidr: 10.20.0.0/16\n    pair: [127.77.0.3", "cidr: 8.8.0.0/16\n    pair: [127.77.0.3"}, []string{"state.yaml:17:11: networks[1].cidr", "8.8.0.0/16", "RFC 1918"}},
		"CIDR too large":     {[]string{"cidr: 10.20.0.0/16\n    pair: [127.77.0.3", "cidr: 10.0.0.0/8\n    pair: [127.77.0.3"}, []string{"state.yaml:17:11: networks[1].cidr", "/16"}},
		"same passive":       {[]string{"active: [net_a]", "active: [net_a], passive: net_b"}, []string{"state.yaml:", "net_b", "region"}},
		"no such network":    {[]string{"active: [net_a]", "active: [net_zz]"}, []string{"state.yaml:", "net_zz"}},
		"no such host":       {[]string{"host: gw-a", "host: gw-z"}, []string{"d.yaml", "gw-z"}},
		"WireGuard port":     {[]string{"22810-22819", busy + "-" + busy, "  - id: net_b\n    team: acme\n    region: iad1\n    cidr: 10.20.0.0/16\n    pair: [127.77.0.3, 127.77.0.4]\n", ""}, []string{"net_a", busy, "in use"}},
		"too few ports":      {[]string{"22810-22819", "22810-22810"}, []string{"wireguard.ports"}},
		"admin port":         {[]string{"listen: 127.0.0.1:0", "listen: " + admin.Addr().String()}, []string{"admin.listen", admin.Addr().String(), "in use"}},
		"missing address":    {[]string{"127.77.0", "203.0.113"}, []string{"203.0.113.", "ip address add"}},
		"token not there":    {[]string{"token_file: token", "token_file: nothing"}, []string{"token", "nothing"}},
		"secret is no file":  {[]string{"secret_file: secret", "secret_file: ."}, []string{"secret"}},
		"peering overlaps":   {[]string{"projects:", "peerings:\n  - {id: peer_a, network: net_a, cidrs: [10.20.3.0/24], state: active}\nprojects:"}, []string{"10.20.3.0/24", "10.20.0.0/16"}},
		"not YAML":           {[]string{"teams:", "teams: [}"}, []string{"state.yaml:3:", "not YAML"}},
		"state without file": {[]string{"desired_state: state.yaml", "desired_state: gone.yaml"}, []string{"gone.yaml"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := files(t, c.replace...)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := start(ctx, dir)
			if err == nil {
				t.Fatal("the daemon took it")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error does not say %q:\n%v", w, err)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "api.sock")); err == nil {
				t.Error("a socket was left behind")
			}
			// Its WireGuard ports are free again.
			for _, port := range []string{"22810", "22814", "22819"} {
				l, err := net.ListenPacket("udp4", "0.0.0.0:"+port)
				if err != nil {
					t.Fatalf("half started: %v", err)
				}
				l.Close()
			}
		})
	}
}

// TestCommandLine: a missing flag is an error of its own, and help needs no file.
func TestCommandLine(t *testing.T) {
	cmd := command()
	cmd.SetArgs([]string{"run"})
	if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "config") {
		t.Errorf("error %v does not name the flag", err)
	}
	dir := files(t)
	var out bytes.Buffer
	cmd = command()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"check", "--config", filepath.Join(dir, "d.yaml")})
	if err := cmd.ExecuteContext(t.Context()); err != nil || !strings.Contains(out.String(), "good") {
		t.Errorf("check says %q, %v", out.String(), err)
	}
	if _, err := os.Stat(filepath.Join(dir, "secret")); err == nil {
		t.Error("check made a secret")
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "not 32 bytes") {
		t.Errorf("check says %v about a secret that is too short", err)
	}
}

// The reference files go together.
func TestReferenceFits(t *testing.T) {
	for _, name := range []string{"sallyportd.yaml", "sallyportd-tun.yaml", "sallyportd-gateway.yaml"} {
		if _, err := load(filepath.Join("../../deploy", name)); err != nil {
			t.Error(err)
		}
	}
}
