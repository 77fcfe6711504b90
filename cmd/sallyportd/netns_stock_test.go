package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// stockPeer is a machine with WireGuard's own programs for a client.
type stockPeer struct {
	w      *world
	t      *testing.T
	device string
	attach api.AttachResponse
}

// newStockPeer attaches the laptop with a key of its own, and brings a tunnel up
// there by which everything goes.
func newStockPeer(t *testing.T, w *world) *stockPeer {
	t.Helper()
	private, public, err := netlab.NewWireGuardKey()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.api.Attach(t.Context(), api.AttachRequest{
		Project: "shop", Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeGo, Region: "iad1",
		PublicKey: public,
	})
	if err != nil {
		t.Fatal(err)
	}
	g := resp.Gateways[0]
	device := w.wireGuard(w.laptop, fmt.Sprintf("[Interface]\nPrivateKey = %s\n[Peer]\nPublicKey = %s\nEndpoint = %v\nAllowedIPs = 0.0.0.0/0\n",
		private, g.PublicKey, g.Endpoint))
	err = device.Up(resp.Network.MTU, []netip.Prefix{netip.PrefixFrom(resp.Attachment.Inner, 32)}, []netip.Prefix{hostnet.DefaultIPv4})
	if err != nil {
		t.Fatal(err)
	}
	return &stockPeer{w: w, t: t, device: device.Device(), attach: resp}
}

func output(t *testing.T, in *strings.Reader, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	if in != nil {
		cmd.Stdin = in
	}
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, b)
	}
	return string(b)
}

// try runs a program on the laptop.
func (p *stockPeer) try(name string, args ...string) (string, error) {
	var out strings.Builder
	cmd := exec.CommandContext(p.t.Context(), name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := p.w.laptop.Run(cmd)
	return out.String(), err
}

func (p *stockPeer) run(name string, args ...string) string {
	p.t.Helper()
	out, err := p.try(name, args...)
	if err != nil {
		p.t.Fatalf("%v: %s", err, out)
	}
	return out
}

// requireStock skips the test where WireGuard's own programs, or others, cannot run.
func requireStock(t *testing.T, others ...string) {
	t.Helper()
	netlab.RequireWireGuard(t)
	for _, name := range append(stockPrograms(), others...) {
		netlab.Program(t, name)
	}
}

func stockPrograms() []string { return []string{"wg-quick", "ip", "curl", "ping", "dig"} }

// stockUsable says why a stock client cannot run here.
func stockUsable() error {
	for _, name := range stockPrograms() {
		if _, err := exec.LookPath(name); err != nil {
			return err
		}
	}
	return netlab.WireGuardUsable()
}

// wireGuard makes a device on a machine, with a configuration for wg.
func (g *ground) wireGuard(n *netlab.Namespace, config string) *netlab.WireGuard {
	g.t.Helper()
	w, err := n.WireGuard(g.t.Context(), netlab.WireGuardConfig{})
	if err == nil {
		err = w.Configure(config)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	return w
}

// TestStockWireGuard: whoever speaks WireGuard is a client. WireGuard's own
// programs, attached by the API, carry curl, ping, dig and iperf3.
func TestStockWireGuard(t *testing.T) { byEach(t, stockWireGuard) }

func stockWireGuard(t *testing.T, by uplinkKind) {
	requireStock(t, "iperf3")
	w := newWorld(t, by)
	w.startGateway()
	w.awaitGateway()
	p := newStockPeer(t, w)
	egress := p.attach.Attachment.Egress
	isEgress := func(what, text string) {
		t.Helper()
		a, err := netip.ParseAddrPort(strings.TrimSpace(text))
		if err != nil || a.Addr() != egress {
			t.Errorf("%s: the origin saw %q; want %v", what, text, egress)
		}
	}
	began := time.Now()
	isEgress("curl", p.run("curl", "-sS", "--max-time", "10", "http://"+at(originAddr, portHTTP)+"/"))
	first := time.Since(began)

	p.run("ping", "-n", "-c", "5", "-i", "0.05", "-W", "2", originAddr.String())
	const echoRequest = 8
	if !slices.ContainsFunc(w.atOrigin.Packets(), func(p netlab.Packet) bool {
		return p.Out && p.Proto == protoICMP && p.ICMPType == echoRequest && p.Src.Addr() == egress
	}) {
		t.Errorf("no echo request came from %v", egress)
	}
	p.run("ping", "-n", "-c", "1", "-W", "2", innerGateway.String())

	dig := []string{"+short", "+time=3", "+tries=1", "@" + innerGateway.String()}
	if got := strings.TrimSpace(p.run("dig", append(dig, "www.origin.example")...)); got != originAddr.String() {
		t.Errorf("dig says %q", got)
	}
	if got := strings.Fields(p.run("dig", append(dig, "big.origin.example")...)); len(got) != bigNames {
		t.Errorf("dig says %d addresses, want %d", len(got), bigNames)
	}
	for _, q := range w.origin.asked.of("big.origin.example.") {
		if !slices.Contains(acmePair, q.from.Addr()) {
			t.Errorf("the name server was asked from %v", q.from)
		}
	}
	p.spoof()
	p.measure()
	t.Logf("the first request took %v, with the handshake", first.Round(time.Millisecond))
}

// spoof sends from an inner address that is not the laptop's.
func (p *stockPeer) spoof() {
	p.t.Helper()
	p.run("ip", "address", "add", "10.20.77.77/32", "dev", p.device)
	if out, err := p.try("ping", "-n", "-c", "2", "-i", "0.05", "-W", "1", "-I", "10.20.77.77", originAddr.String()); err == nil {
		p.t.Errorf("a spoofed source is answered: %s", out)
	}
	p.run("ip", "address", "del", "10.20.77.77/32", "dev", p.device)
}

// measure runs iperf3 both ways.
func (p *stockPeer) measure() {
	p.t.Helper()
	for _, way := range []struct {
		name  string
		flags []string
	}{{"from the laptop", nil}, {"to the laptop", []string{"--reverse"}}} {
		server := exec.Command("iperf3", "-s", "-1", "-B", originAddr.String(), "-p", "5201", "--forceflush")
		lines, err := server.StdoutPipe()
		if err != nil {
			p.t.Fatal(err)
		}
		if err := p.w.home.Start(server); err != nil {
			p.t.Fatal(err)
		}
		// It listens when it says so.
		text := make([]byte, 0, 4096)
		for !strings.Contains(string(text), "listening") {
			b := make([]byte, 1024)
			n, err := lines.Read(b)
			if err != nil {
				p.t.Fatalf("iperf3 -s says %q: %v", text, err)
			}
			text = append(text, b[:n]...)
		}
		out := p.run("iperf3", append([]string{"-c", originAddr.String(), "-p", "5201", "-J", "-n", "100M"}, way.flags...)...)
		_ = lines.Close()
		_ = server.Wait()
		var result struct {
			End struct {
				Received struct {
					Bytes float64 `json:"bytes"`
					Bits  float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			} `json:"end"`
		}
		if err := json.Unmarshal([]byte(out), &result); err != nil {
			p.t.Fatalf("iperf3 says %q: %v", out, err)
		}
		if result.End.Received.Bytes < 50e6 {
			p.t.Errorf("%s, %.0f bytes arrived", way.name, result.End.Received.Bytes)
		}
		p.t.Logf("%s: %.0f Mbit/s", way.name, result.End.Received.Bits/1e6)
	}
}
