package main

import (
	"crypto/ecdh"
	"encoding/base64"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

func TestPeeringInWGQuick(t *testing.T) {
	w := newPeeredWorld(t, unchanged)
	want := `# Peering peer_b with network net_1: the other side of its site tunnel.
#
# The private key is the one whose public key is
#   ` + otherKey + `
# It is in /etc/wireguard/INTERFACE.key, where INTERFACE is the name of this file
# without .conf. That is how such a key is made (ours must be told of a new one):
#   umask 077; wg genkey > /etc/wireguard/INTERFACE.key; wg pubkey < /etc/wireguard/INTERFACE.key
#
# wg-quick routes 10.20.0.0/16 into the tunnel on this machine. It must forward packets
# (sysctl net.ipv4.ip_forward=1), and the other routers on this side need the route
#   ip route add 10.20.0.0/16 via ADDRESS-OF-THIS-MACHINE
#
# Packets may come from these ranges of this side; all others are dropped:
#   10.30.0.0/16
#   10.31.4.0/24
# Only the sandboxes of the network start connections.
[Interface]
PostUp = wg set %i private-key /etc/wireguard/%i.key
ListenPort = 51999
MTU = 1420

[Peer]
PublicKey = ` + siteKey + `
Endpoint = 192.0.2.1:51700
AllowedIPs = 10.20.0.0/16
PersistentKeepalive = 25
`
	if got := w.must("peering", "show", "peer_b", "--format", "wg-quick"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if _, err := w.sallyport("peering", "show", "peer_a", "--format", "wg-quick"); err == nil || !strings.Contains(err.Error(), "pending-acceptance: nothing passes") {
		t.Errorf("got %v", err)
	}
	calls := newPeeredWorld(t, func(s *spec.State, _ *spec.HostReport) { s.Peerings[0].Endpoint = netip.AddrPort{} })
	if got := calls.must("peering", "show", "peer_b", "--format", "wg-quick"); strings.Contains(got, "ListenPort") {
		t.Errorf("got\n%s", got)
	}
	silent := newPeeredWorld(t, func(_ *spec.State, r *spec.HostReport) { r.Networks[0].Site = nil })
	if out, err := silent.sallyport("peering", "show", "peer_b", "--format", "wg-quick"); err == nil || out != "" || !strings.Contains(err.Error(), `host "gw-a" has not reported the site tunnel`) {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestAttachInWGQuick(t *testing.T) {
	w := newWorld(t)
	text := w.must(attachArgs("--format", "wg-quick")...)
	a := w.store.List("", 1).Attachments[0]
	private := text[strings.Index(text, "PrivateKey = ")+len("PrivateKey = "):]
	private = private[:44]
	raw, err := base64.StdEncoding.DecodeString(private)
	if err != nil {
		t.Fatal(err)
	}
	if key, err := ecdh.X25519().NewPrivateKey(raw); err != nil || base64.StdEncoding.EncodeToString(key.PublicKey().Bytes()) != a.PublicKey {
		t.Errorf("the private key is not that of the attachment: %v", err)
	}
	want := `# Sandbox ` + a.ID + ` in network net_1: leaves from ` + a.Egress.String() + `, by gateway gw-a.
# ` + "`sallyport detach " + a.ID + "`" + ` ends it.
# A control plane that was started anew does not know it. Gateways do for 15 s;
# this keeps it attached, or brings it back if nobody has its address by then:
#   sallyport attach --project prj_1 --environment production --region iad1 --kind function --runtime nodejs --public-key ` + a.PublicKey + ` --resume ` + a.ID + ` --inner-address 10.20.0.2
# IPv6 is not carried. Where this machine has it, turn it off, or add ::/0 to
# AllowedIPs: then it ends in the tunnel and does not pass beside it.
[Interface]
PrivateKey = ` + private + `
Address = 10.20.0.2/32
DNS = 10.20.0.1
MTU = 1420

[Peer]
PublicKey = ` + hostKey + `
Endpoint = 192.0.2.1:51820
AllowedIPs = 0.0.0.0/0
PersistentKeepalive = 25
`
	if text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	given := w.must(attachArgs("--format", "wg-quick", "--public-key", otherKey)...)
	if strings.Contains(given, "\nPrivateKey") || !strings.Contains(given, "\n# PrivateKey = the one whose public key is "+otherKey+"\n") {
		t.Errorf("got\n%s", given)
	}
	// Where there is no tunnel, nothing stays attached, nor is printed.
	before := len(w.store.List("", 0).Attachments)
	out, err := w.sallyport(attachArgs("--format", "wg-quick", "--runtime", "edge")...)
	if err == nil || out != "" || !strings.Contains(err.Error(), "no tunnel to configure") || len(w.store.List("", 0).Attachments) != before {
		t.Errorf("got %q, %v", out, err)
	}
}

// A stock client's configuration says how it is attached again, as it was, to a
// control plane that does not know it any more.
func TestAttachAgain(t *testing.T) {
	text := newWorld(t).must(attachArgs("--format", "wg-quick")...)
	_, command, _ := strings.Cut(text, "#   sallyport ")
	command, _, _ = strings.Cut(command, "\n")
	args := strings.Fields(command)

	anew := newWorld(t)
	anew.must(attachArgs()...) // takes the address
	if out, err := anew.sallyport(args...); err == nil || out != "" || !strings.Contains(err.Error(), "start the sandbox anew") {
		t.Errorf("its address is another's: %q, %v", out, err)
	}
	anew = newWorld(t)
	for range 2 { // it may be asked twice
		again := anew.must(append(args, "--format", "wg-quick")...)
		_, before, _ := strings.Cut(text, "[Peer]")
		if _, peer, _ := strings.Cut(again, "[Peer]"); peer != before || !strings.Contains(again, "Address = 10.20.0.2/32") || !strings.Contains(again, command) {
			t.Errorf("got\n%s\nwant what it had:\n%s", again, text)
		}
	}
	if all := anew.store.List("", 0).Attachments; len(all) != 1 || !strings.Contains(command, all[0].ID) {
		t.Errorf("attached are %v", all)
	}
	for says, more := range map[string][]string{
		"--resume needs --public-key": {"--resume", "att-x", "--inner-address", "10.20.0.2"},
		"--inner-address":             {"--resume", "att-x"},
		"--resume":                    {"--inner-address", "10.20.0.2"},
	} {
		if out, err := anew.sallyport(attachArgs(more...)...); err == nil || out != "" || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %q, %v", more, out, err)
		}
	}
}

// What wg-quick reads, it runs as root: no answer may bring lines of its own.
func TestWGQuickTextIsNotInjected(t *testing.T) {
	good := api.AttachResponse{
		Attachment: spec.Attachment{
			ID: "att-x", Project: "prj_1", Environment: "production", Region: "iad1", Kind: spec.KindBuild, Runtime: "go",
			PublicKey: otherKey, Inner: netip.MustParseAddr("10.20.0.2"),
		},
		Network:  api.AttachedNetwork{ID: "net_1", DNS: []netip.Addr{netip.MustParseAddr("10.20.0.1")}, MTU: 1420},
		Gateways: []spec.Gateway{{Host: "gw-a", PublicKey: hostKey, Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), EgressIP: netip.MustParseAddr("203.0.113.1")}},
	}
	const bad = "x\nPostUp = reboot"
	for name, change := range map[string]func(*api.AttachResponse){
		"nothing": nil,
		"ID":      func(r *api.AttachResponse) { r.Attachment.ID = bad },
		"network": func(r *api.AttachResponse) { r.Network.ID = bad },
		"host":    func(r *api.AttachResponse) { r.Gateways[0].Host = "gw\x1b[2J" },
		"command": func(r *api.AttachResponse) { r.Attachment.Project = "x;reboot" },
		"own key": func(r *api.AttachResponse) { r.Attachment.PublicKey = "`reboot`" },
		"address": func(r *api.AttachResponse) {
			r.Attachment.Inner = netip.MustParseAddr("fe80::1").WithZone("$(reboot)")
		},
		"key": func(r *api.AttachResponse) { r.Gateways[0].PublicKey = "AAAA" },
		"zone": func(r *api.AttachResponse) {
			r.Gateways[0].Endpoint = netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone(bad), 1)
		},
		"endpoint": func(r *api.AttachResponse) { r.Gateways[0].Endpoint = netip.AddrPort{} },
		"DNS":      func(r *api.AttachResponse) { r.Network.DNS[0] = netip.MustParseAddr("fe80::1").WithZone(bad) },
		"gateways": func(r *api.AttachResponse) { r.Gateways = nil },
	} {
		r := good
		r.Gateways = append([]spec.Gateway(nil), good.Gateways...)
		r.Network.DNS = append([]netip.Addr(nil), good.Network.DNS...)
		if change != nil {
			change(&r)
		}
		var out strings.Builder
		c, err := sandboxConfig(r, "")
		if err == nil {
			err = c.print(&out)
		}
		if refused := err != nil && out.Len() == 0; refused != (change != nil) {
			t.Errorf("%s: got %q, %v", name, out.String(), err)
		}
	}
}

// WireGuard's own tools accept what is printed for them.
func TestToolsAcceptWGQuick(t *testing.T) {
	wg, quick := netlab.Program(t, "wg"), netlab.Program(t, "wg-quick")
	if os.Getuid() != 0 {
		netlab.NotRun(t, "wg-quick wants to be root even to read a file")
	}
	w := newPeeredWorld(t, unchanged)
	for name, args := range map[string][]string{
		"peering":              {"peering", "show", "peer_b", "--format", "wg-quick"},
		"sandbox":              attachArgs("--format", "wg-quick"),
		"sandbox with own key": attachArgs("--format", "wg-quick", "--public-key", otherKey),
		"nonsense":             nil,
	} {
		text := "[Interface]\nPrivatKey = x\n"
		if args != nil {
			text = w.must(args...)
		}
		file := filepath.Join(t.TempDir(), "sp0.conf")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		stripped, err := exec.Command(quick, "strip", file).Output()
		if err != nil {
			t.Fatalf("%s: wg-quick strip: %v", name, err)
		}
		if strings.Contains(string(stripped), "\nAddress") || strings.Contains(string(stripped), "\nPostUp") || strings.Contains(string(stripped), "\nMTU") {
			t.Errorf("%s: wg-quick has left its own settings:\n%s", name, stripped)
		}
		if err := os.WriteFile(file, stripped, 0o600); err != nil {
			t.Fatal(err)
		}
		// wg reads the file before it looks for the interface, which does not exist.
		out, err := exec.Command(wg, "setconf", "sallyport-none", file).CombinedOutput()
		if accepted := strings.Contains(string(out), "Unable to modify interface"); err == nil || accepted != (args != nil) {
			t.Errorf("%s: wg setconf: %v: %s", name, err, out)
		}
	}
}
