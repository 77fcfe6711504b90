package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/daemon"
	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// tunnelFile is a file as wg-quick takes it.
func tunnelFile(private string, inner netip.Addr, public string, endpoint netip.AddrPort) string {
	return fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = %v/32\nMTU = 1420\n\n[Peer]\nPublicKey = %s\nAllowedIPs = 0.0.0.0/0\nEndpoint = %v\n",
		private, inner, public, endpoint)
}

// newKey is a key pair, in base64.
func newKey(t *testing.T) (private, public string) {
	t.Helper()
	private, public, err := netlab.NewWireGuardKey()
	if err != nil {
		t.Fatal(err)
	}
	return private, public
}

// wantPair checks that a run measured all of some scenarios, and that all packets came from a
// pair. wrong says that the run was told another pair.
func (r *told) wantPair(t *testing.T, pair []netip.Addr, wrong bool, scenarios ...string) {
	t.Helper()
	if len(r.Scenarios) != len(scenarios) || len(r.Problems) > 0 {
		t.Errorf("%d scenarios, problems %q", len(r.Scenarios), r.Problems)
	}
	for _, o := range r.Scenarios {
		if len(o.Steps) == 0 || len(o.Problems) > 0 || !slices.Contains(scenarios, o.Name) {
			t.Errorf("%s: %d steps, problems %q", o.Name, len(o.Steps), o.Problems)
		}
		for _, s := range o.Steps {
			src := s.Sources
			if len(s.Figures) == 0 || src == nil || !src.Checked || len(src.Seen) == 0 || (src.Wrong > 0) != wrong || wrong != (len(s.Wrong) > 0) {
				t.Errorf("%s, %s: figures %v, sources %+v, wrong %q", o.Name, s.Name, s.Figures, src, s.Wrong)
				continue
			}
			for _, a := range src.Seen {
				if !slices.Contains(pair, a) {
					t.Errorf("%s, %s: packets came from %v", o.Name, s.Name, a)
				}
			}
		}
	}
	if t.Failed() {
		t.Logf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// TestRunByAPI measures a gateway of ours that runs, by its control API, and leaves no sandbox
// attached. Then more sessions are asked for than it lets sandboxes have.
func TestRunByAPI(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.operated("limits: {sessions_per_sandbox: 1200}")
	r := w.run(t, w.byAPI("--scenarios", "tcp-out,tcp-in,attach")...)
	if r.code != 0 || r.Gateway.Kind != "api" || !slices.Equal(r.Gateway.Pair, testbed.Pair[:]) || !strings.Contains(r.stdout, "all of the pair") {
		t.Errorf("exit code %d, gateway %+v\n%s%s", r.code, r.Gateway, r.stdout, r.stderr)
	}
	r.wantPair(t, testbed.Pair[:], false, "tcp-out", "tcp-in", "attach")
	status, err := w.gateway.Client().Status(t.Context())
	if err != nil || status.Attachments != 0 {
		t.Errorf("%d sandboxes are still attached, %v", status.Attachments, err)
	}

	private, public := newKey(t)
	a, err := w.gateway.Attach(t.Context(), public)
	if err != nil {
		t.Fatal(err)
	}
	file := w.write("one.conf", tunnelFile(private, a.Attachment.Inner, a.Gateways[0].PublicKey, a.Gateways[0].Endpoint))
	args := []string{"--wireguard", file, "--key-file", w.keyFile, "--pair", "203.0.113.2,203.0.113.3", "--scenarios", "sessions", "--sessions", "500,2000"}
	r = w.run(t, args...)
	if r.code == 0 || len(r.Scenarios) != 1 || len(r.Scenarios[0].Steps) != 2 || !strings.Contains(r.stdout, "sessions_per_sandbox") {
		t.Fatalf("with too many sessions: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	few, many := r.Scenarios[0].Steps[0], r.Scenarios[0].Steps[1]
	never := func(finding string) bool { return strings.Contains(finding, "those sessions never were") }
	if len(few.Figures) == 0 || !slices.ContainsFunc(many.Wrong, never) || slices.ContainsFunc(few.Wrong, never) || many.Sources == nil || many.Sources.Wrong != 0 {
		t.Errorf("with too many sessions: %+v and %+v", few, many)
	}
}

// TestRunByFile measures a gateway of WireGuard's own programs and nftables by a WireGuard
// file. Then others are held to be its addresses.
func TestRunByFile(t *testing.T) {
	t.Parallel()
	netlab.RequireWireGuard(t)
	netlab.Program(t, "nft")
	w := newWorld(t)
	inner := netip.MustParseAddr("10.20.0.7")
	gatewayPrivate, gatewayPublic := newKey(t)
	private, public := newKey(t)
	device, err := w.bed.Gateway.WireGuard(t.Context(), netlab.WireGuardConfig{})
	if err == nil {
		err = device.Configure(fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = 51820\n[Peer]\nPublicKey = %s\nAllowedIPs = %v/32\n", gatewayPrivate, public, inner))
	}
	if err == nil {
		err = device.Up(1420, []netip.Prefix{netip.MustParsePrefix("10.20.0.1/16")}, nil)
	}
	if err == nil {
		nft := exec.Command("nft", "-f", "-")
		nft.Stdin = strings.NewReader(fmt.Sprintf("table ip nat { chain out { type nat hook postrouting priority srcnat; oifname %q masquerade; }; }", testbed.LinkOut))
		err = w.bed.Gateway.Run(nft)
	}
	if err != nil {
		t.Fatal(err)
	}
	file := w.write("wg.conf", tunnelFile(private, inner, gatewayPublic, netip.AddrPortFrom(testbed.GatewayIn.Addr(), 51820)))
	args := []string{"--wireguard", file, "--key-file", w.keyFile}
	own := []netip.Addr{testbed.GatewayOut.Addr()}

	r := w.run(t, append(args, "--pair", own[0].String(), "--scenarios", "tcp-out,tcp-in,latency-idle")...)
	if r.code != 0 || r.Gateway.Kind != "wireguard" {
		t.Errorf("exit code %d, gateway %+v\n%s%s", r.code, r.Gateway, r.stdout, r.stderr)
	}
	r.wantPair(t, own, false, "tcp-out", "tcp-in", "latency-idle")

	r = w.run(t, append(args, "--pair", "203.0.113.9", "--scenarios", "tcp-in,latency-idle")...)
	if r.code == 0 || !strings.Contains(r.stderr, "which is not of the pair") || !strings.Contains(r.stdout, "from others than the pair") {
		t.Errorf("with another pair: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	r.wantPair(t, own, true, "tcp-in", "latency-idle")

	r = w.run(t, append(args, "--scenarios", "latency-idle,latency-half")...)
	if r.code != 0 || len(r.Scenarios) != 2 || r.Scenarios[1].NotRun == "" || !strings.Contains(r.stdout, "not checked, as nobody said what the pair is") {
		t.Errorf("without a pair: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// TestRunAsksForWhatIsWrong: what a user gets wrong is said in words that tell where to look.
func TestRunAsksForWhatIsWrong(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.operated("")
	private, public := newKey(t)
	stranger, otherPublic := newKey(t)
	a, err := w.gateway.Attach(t.Context(), public)
	if err != nil {
		t.Fatal(err)
	}
	g, inner := a.Gateways[0], a.Attachment.Inner
	file := func(name, private string, inner netip.Addr, public string, endpoint netip.AddrPort) []string {
		return []string{"--wireguard", w.write(name, tunnelFile(private, inner, public, endpoint)), "--key-file", w.keyFile}
	}
	closed := netip.AddrPortFrom(g.Endpoint.Addr(), 9)
	otherKey := w.write("other-key", "12345678901234567890123456789012")
	var runs []*started
	cases := []struct {
		name, want string
		args       []string
	}{
		{"the gateway's port", "198.51.100.1:9: the gateway does not answer", file("port.conf", private, inner, g.PublicKey, closed)},
		{"the gateway's key", "has the public key " + otherPublic, file("key.conf", private, inner, otherPublic, g.Endpoint)},
		{"a key that is not let in", "lets the peer ", file("peer.conf", stranger, inner, g.PublicKey, g.Endpoint)},
		{"the sandbox's address", "must know the sandbox as 10.20.0.99", file("inner.conf", private, netip.MustParseAddr("10.20.0.99"), g.PublicKey, g.Endpoint)},
		{"a file that is none", "it has 0 peers: one is the gateway", []string{"--wireguard", w.keyFile, "--key-file", w.keyFile}},
		{"another key file than the far side's", "has the same key", w.byAPI("--key-file", otherKey)},
		{"the far side's port", "192.0.2.80:9001, 10 times; look whether it runs", w.byAPI("--far", "192.0.2.80:9001")},
		{"addresses that the far side has not", "--far-prefix", w.byAPI("--far-prefix", "198.18.1.0/28")},
		{"a token of nobody", "the token is not that of this control plane", w.byAPI("--token-file", w.write("token", "0123456789abcdef\n"))},
		{"a token too short", "write at least 16", w.byAPI("--token-file", w.write("short", "secret\n"))},
		{"no token", "no such file", w.byAPI("--token-file", w.file("none"))},
		{"no socket", "is sallyportd running here", w.byAPI("--api", "unix://"+w.file("none.sock"))},
		{"no listener", "nobody listens there", w.byAPI("--api", "http://127.0.0.1:1")},
		{"the project", `project "none" is not in the desired state`, w.byAPI("--project", "none")},
		{"the environment", `has no environment "none"`, w.byAPI("--environment", "none")},
		{"the region", `there is no region "none"`, w.byAPI("--region", "none")},
	}
	for _, c := range cases {
		runs = append(runs, w.start(t, append(c.args, "--scenarios", "sandboxes,sessions")...))
	}
	for i, c := range cases {
		r := runs[i].end(t)
		if r.code != 1 || !strings.Contains(r.stderr, c.want) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, want %q in\n%s", c.name, r.code, c.want, r.stderr)
		}
		if len(r.Problems) != 1 || r.Gateway.Kind == "" || !strings.Contains(r.stdout, "FAILED: ") {
			t.Errorf("%s: its JSON says %q of a gateway by %q\n%s", c.name, r.Problems, r.Gateway.Kind, r.stdout)
		}
	}
}

// TestRunKilled: the gateway is killed under load. What was measured before stays.
func TestRunKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.operated("")
	s := w.start(t, w.byAPI("--quiet=false", "--for", "1s", "--scenarios", "tcp-out,udp-out")...)
	var before uint64
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := daemon.Until(ctx, "the second scenario is under way", func(context.Context) error {
		said, err := os.ReadFile(s.errors.Name())
		if err != nil || !strings.Contains(string(said), "tcp-out") {
			return fmt.Errorf("it said %q, %w", said, err)
		}
		n, err := w.arrived()
		if before == 0 {
			before = n
		}
		if n < before+1000 { // more than those that warm up
			return fmt.Errorf("%d packets came, %w", n-before, err)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.gateway.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r := s.end(t)
	if r.code != 1 || !strings.Contains(r.stderr, "shakes hands no more; look whether it runs") || len(r.Scenarios) != 2 {
		t.Fatalf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	whole, broken := r.Scenarios[0], r.Scenarios[1]
	if len(whole.Steps) != 1 || whole.Steps[0].Broken || whole.Steps[0].Figures["gbps"] == 0 || whole.Steps[0].Sources == nil || whole.Steps[0].Sources.Wrong != 0 {
		t.Errorf("what was measured before is lost: %+v", whole)
	}
	if len(broken.Steps) != 1 || !broken.Steps[0].Broken || broken.Steps[0].Latency == nil || len(broken.Steps[0].Marks) < 2 || len(broken.Problems) != 1 {
		t.Errorf("the step in which it was killed: %+v", broken)
	}
	if len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "detach the sandboxes") {
		t.Errorf("problems %q", r.Problems)
	}
}
