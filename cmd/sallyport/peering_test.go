package main

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

const (
	siteKey  = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk="
	otherKey = "BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU="
)

// newPeeredWorld is a world whose network has an active peering, and a request.
func newPeeredWorld(t *testing.T, change func(*spec.State, *spec.HostReport)) *world {
	t.Helper()
	w := newWorldWith(t, func(s *spec.State, r *spec.HostReport) {
		s.Networks[0].Site = &spec.Site{Host: "gw-a", Port: 51700}
		s.Peerings = []spec.Peering{
			{
				ID: "peer_b", Network: "net_1", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.30.0.0/16"), netip.MustParsePrefix("10.31.4.0/24")},
				PublicKey: otherKey, Endpoint: netip.MustParseAddrPort("192.0.2.66:51999"), State: spec.PeeringActive,
			},
			{
				ID: "peer_a", Network: "net_1", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.40.0.0/16")}, State: spec.PeeringPending,
				Requested: fixedClock{}.Now().Add(-time.Hour),
			},
		}
		r.Networks[0].Site = &spec.SiteReport{PublicKey: siteKey, Endpoint: netip.MustParseAddrPort("192.0.2.1:51700"), Peerings: []spec.PeeringReport{{
			ID: "peer_b", Handshake: fixedClock{}.Now(), Egress: spec.Traffic{Packets: 5}, Ingress: spec.Traffic{Packets: 4}, Foreign: 3,
		}}}
		change(s, r)
	})
	w.must(attachArgs("--public-key", hostKey)...) // by now the gateway has reported
	return w
}

func unchanged(*spec.State, *spec.HostReport) {}

// words is a text with one blank between the words of each line.
func words(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}

func TestPeeringList(t *testing.T) {
	w := newPeeredWorld(t, unchanged)
	want := `ID NETWORK KIND BY RANGES STATE SITE HOST LAST HANDSHAKE PACKETS OUT PACKETS IN FOREIGN SOURCE
peer_a net_1 wireguard - 10.40.0.0/16 pending-acceptance gw-a - 0 0 0
peer_b net_1 wireguard - 10.30.0.0/16, 10.31.4.0/24 active gw-a 2025-01-02 03:04:05 5 4 3`
	if got := words(w.must("peering", "list")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var list api.PeeringList
	if err := json.Unmarshal([]byte(w.must("peering", "list", "--output", "json")), &list); err != nil || len(list.Peerings) != 2 || list.Peerings[1].SitePublicKey != siteKey {
		t.Errorf("got %+v, %v", list, err)
	}
	if got := newWorld(t).must("peering", "list"); got != "there are no peerings\n" {
		t.Errorf("got %q", got)
	}
}

func TestPeeringShow(t *testing.T) {
	w := newPeeredWorld(t, unchanged)
	want := `ID peer_b
KIND wireguard
STATE active
NETWORK net_1
NETWORK CIDR 10.20.0.0/16
SITE HOST gw-a
SITE ENDPOINT 192.0.2.1:51700
SITE PUBLIC KEY ` + siteKey + `
THEIR RANGES 10.30.0.0/16, 10.31.4.0/24
THEIR ENDPOINT 192.0.2.66:51999
THEIR PUBLIC KEY ` + otherKey + `
ROUTE THEY NEED 10.20.0.0/16 to their side of the tunnel
LAST HANDSHAKE 2025-01-02 03:04:05
PACKETS OUT 5
PACKETS IN 4
FOREIGN SOURCE 3`
	if got := words(w.must("peering", "show", "peer_b")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := w.must("peering", "show", "peer_a"); cell(t, got, "STATE") != "pending-acceptance" || cell(t, got, "REQUESTED") != "2025-01-02 02:04:05" || cell(t, got, "THEIR PUBLIC KEY") != "-" {
		t.Errorf("got\n%s", got)
	}
	var p api.PeeringStatus
	if err := json.Unmarshal([]byte(w.must("peering", "show", "peer_b", "--output", "json")), &p); err != nil || p.ID != "peer_b" || p.Report == nil || p.Report.Foreign != 3 {
		t.Errorf("got %+v, %v", p, err)
	}
}

// TestPeeringKinds: each kind shows what it passes by and which routes the other side
// needs, and only that of WireGuard has a configuration for it.
func TestPeeringKinds(t *testing.T) {
	w := newPeeredWorld(t, func(s *spec.State, r *spec.HostReport) {
		s.Networks = append(s.Networks, spec.Network{
			ID: "net_2", Team: "team_a", Region: "iad1", CIDR: netip.MustParsePrefix("10.44.0.0/16"), Site: &spec.Site{Host: "gw-a", Port: 51701},
			Pair: [2]netip.Addr{netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")},
		})
		s.Peerings = append(s.Peerings,
			spec.Peering{ID: "peer_c", Network: "net_1", Kind: spec.ByInterface, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.50.0.0/16")}, Interface: "eth1", NextHop: netip.MustParseAddr("10.9.0.1"), State: spec.PeeringActive},
			spec.Peering{ID: "peer_d", Network: "net_1", Kind: spec.ByNetwork, PeerNetwork: "net_2", State: spec.PeeringActive},
			spec.Peering{ID: "peer_e", Network: "net_2", Kind: spec.ByNetwork, PeerNetwork: "net_1", State: spec.PeeringActive})
		s.Networks[len(s.Networks)-1].AcceptedPeerings = []spec.Acceptance{{Peering: "peer_d", Network: "net_1"}}
		r.Networks[0].Site.Peerings = append(r.Networks[0].Site.Peerings, spec.PeeringReport{ID: "peer_c", Egress: spec.Traffic{Packets: 7}, Foreign: 2, Trouble: "interface eth1 is down"})
	})
	list := words(w.must("peering", "list"))
	for _, want := range []string{
		"\npeer_c net_1 interface eth1 via 10.9.0.1 10.50.0.0/16 active, down gw-a - 7 0 2\n",
		"\npeer_d net_1 network net_2 10.44.0.0/16 active gw-a - 0 0 0",
		"\npeer_e net_2 network net_1 10.20.0.0/16 pending-acceptance by net_1 gw-a - 0 0 0",
	} {
		if !strings.Contains(list, want) {
			t.Errorf("there is no\n%s\nin\n%s", want, list)
		}
	}
	want := `ID peer_c
KIND interface
STATE active
NETWORK net_1
NETWORK CIDR 10.20.0.0/16
SITE HOST gw-a
INTERFACE eth1
NEXT HOP 10.9.0.1
THEIR RANGES 10.50.0.0/16
ROUTE THEY NEED 10.20.0.0/16 to the address of host gw-a on eth1, on 10.9.0.1
PACKETS OUT 7
PACKETS IN 0
FOREIGN SOURCE 2
DOWN interface eth1 is down`
	if got := words(w.must("peering", "show", "peer_c")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := words(w.must("status")); !strings.Contains(got, "net_1 (main) 3 active, 1 pending-acceptance, 1 down gw-a ") {
		t.Errorf("no word of a peering that is down in\n%s", got)
	}
	if got := w.must("peering", "show", "peer_d"); cell(t, got, "THEIR NETWORK") != "net_2" || cell(t, got, "THEIR RANGES") != "10.44.0.0/16" || cell(t, got, "ROUTE THEY NEED") != "none" {
		t.Errorf("got\n%s", got)
	}
	if got := w.must("peering", "show", "peer_e"); cell(t, got, "STATE") != "pending-acceptance" || cell(t, got, "TO BE ACCEPTED BY") != "network net_1, in its acceptedPeerings: {peering: peer_e, network: net_2}" {
		t.Errorf("got\n%s", got)
	}
	if _, err := w.sallyport("peering", "show", "peer_c", "--format", "wg-quick"); err == nil || !strings.Contains(err.Error(), "kind interface") {
		t.Errorf("a configuration for no WireGuard: %v", err)
	}
}

func TestStatusShowsSitesAndTroubles(t *testing.T) {
	w := newPeeredWorld(t, func(s *spec.State, r *spec.HostReport) {
		s.Networks = append(s.Networks, spec.Network{
			ID: "net_2", Team: "team_a", Region: "iad1", CIDR: netip.MustParsePrefix("10.20.0.0/16"),
			Pair: [2]netip.Addr{netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")},
		})
		s.Peerings = append(s.Peerings, spec.Peering{ID: "peer_c", Network: "net_2", State: spec.PeeringRejected})
		r.Draining, r.Networks[0].UplinkLost, r.Networks[0].Uplink = true, true, "tun"
	})
	out := words(w.must("status"))
	for _, want := range []string{
		"iad1 203.0.113.0/28 gw-a 192.0.2.1 2 2025-01-02 03:04:05 draining\n",
		"net_1 (main) gw-a 192.0.2.1:51820 tun lost 2 " + hostKey + "\n",
		"\nNETWORK PEERINGS SITE HOST SITE ENDPOINT FOREIGN SOURCE SITE PUBLIC KEY\n" +
			"net_1 (main) 1 active, 1 pending-acceptance gw-a 192.0.2.1:51700 3 " + siteKey + "\n" +
			"net_2 1 rejected - - - -\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no\n%s\nin\n%s", want, out)
		}
	}
}

// TestUplinkText: the column says which far side it is and whether anything comes back.
func TestUplinkText(t *testing.T) {
	for want, r := range map[string]spec.NetworkReport{
		"": {}, "lost": {UplinkLost: true}, "tun unchecked": {Uplink: "tun"},
		"sockets up": {Uplink: "sockets", UplinkChecked: true}, "sockets lost": {Uplink: "sockets", UplinkChecked: true, UplinkLost: true},
	} {
		if got := uplinkText(r); got != want {
			t.Errorf("%+v: got %q, want %q", r, got, want)
		}
	}
}
