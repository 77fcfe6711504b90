package spec

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// kinds is a valid state with a connection of each kind: net_1 reaches net_4 of another
// team, and a link of its site's host.
func kinds() State {
	s := valid()
	s.Networks = append(s.Networks, Network{
		ID: "net_4", Team: "team_b", Region: "iad1", CIDR: prefix("10.44.0.0/16"), Pair: pair("203.0.113.5", "203.0.113.6"), Site: &Site{Host: "gw-a", Port: 51997},
		AcceptedPeerings: []Acceptance{{"peer_net", "net_1"}},
	})
	s.Peerings = append(s.Peerings,
		Peering{ID: "peer_if", Network: "net_1", Kind: ByInterface, CIDRs: prefixes("10.50.0.0/16"), Interface: "eth1", NextHop: addr("10.9.0.1"), State: PeeringActive},
		Peering{ID: "peer_net", Network: "net_1", Kind: ByNetwork, PeerNetwork: "net_4", State: PeeringActive})
	return s
}

func TestKindsAreValid(t *testing.T) {
	s := kinds()
	if err := s.Validate().Err(); err != nil {
		t.Fatal(err)
	}
	s.Peerings = append(s.Peerings,
		Peering{ID: "peer_back", Network: "net_4", Kind: ByNetwork, PeerNetwork: "net_1", State: PeeringActive},
		Peering{ID: "peer_if4", Network: "net_4", Kind: ByInterface, CIDRs: prefixes("10.50.0.0/16"), Interface: "eth1", State: PeeringActive})
	if err := s.Validate().Err(); err != nil {
		t.Errorf("the opposite direction, and another network on the same link: %v", err)
	}
}

func TestValidateKinds(t *testing.T) {
	const byInterface, byNetwork = 3, 4
	for _, tc := range []struct {
		name   string
		change func(*State)
		path   string
		says   []string
	}{
		{"kind", func(s *State) { s.Peerings[byInterface].Kind = "vpn" }, "peerings[3].kind", []string{"vpn", "wireguard"}},
		{"key of an interface", func(s *State) { s.Peerings[byInterface].PublicKey = peerKey(9) }, "peerings[3].publicKey", []string{"peer_if", "interface", "leave it out"}},
		{"endpoint of a network", func(s *State) { s.Peerings[byNetwork].Endpoint = netip.MustParseAddrPort("192.0.2.66:1") }, "peerings[4].endpoint", []string{"peer_net"}},
		{"interface of a tunnel", func(s *State) { s.Peerings[0].Interface = "eth1" }, "peerings[0].interface", []string{"peer_1", "wireguard"}},
		{"next hop of a tunnel", func(s *State) { s.Peerings[0].NextHop = addr("10.9.0.1") }, "peerings[0].nextHop", nil},
		{"network of a tunnel", func(s *State) { s.Peerings[0].PeerNetwork = "net_4" }, "peerings[0].peerNetwork", nil},
		{"ranges of a network", func(s *State) { s.Peerings[byNetwork].CIDRs = prefixes("10.44.0.0/16") }, "peerings[4].cidrs", []string{"other network's CIDR"}},
		{"no interface", func(s *State) { s.Peerings[byInterface].Interface = "" }, "peerings[3].interface", []string{"eth1"}},
		{"loopback", func(s *State) { s.Peerings[byInterface].Interface = "lo" }, "peerings[3].interface", []string{`"lo"`}},
		{"interface with a slash", func(s *State) { s.Peerings[byInterface].Interface = "../eth" }, "peerings[3].interface", nil},
		{"next hop multicast", func(s *State) { s.Peerings[byInterface].NextHop = addr("224.0.0.1") }, "peerings[3].nextHop", []string{"224.0.0.1"}},
		{"next hop IPv6", func(s *State) { s.Peerings[byInterface].NextHop = addr("fe80::1") }, "peerings[3].nextHop", nil},
		{"next hop inside", func(s *State) { s.Peerings[byInterface].NextHop = addr("10.20.0.1") }, "peerings[3].nextHop", []string{"net_1", "10.20.0.0/16"}},
		{"interface without ranges", func(s *State) { s.Peerings[byInterface].CIDRs = nil }, "peerings[3].cidrs", []string{"no range"}},
		{"interface overlaps a tunnel", func(s *State) { s.Peerings[byInterface].CIDRs = prefixes("10.30.7.0/24") }, "peerings[3].cidrs[0]", []string{"peer_if", "peer_1"}},
		{"interface overlaps a network", func(s *State) {
			s.Peerings[byInterface], s.Peerings[byNetwork] = s.Peerings[byNetwork], s.Peerings[byInterface]
			s.Peerings[byNetwork].CIDRs = prefixes("10.44.1.0/24")
		}, "peerings[4].cidrs[0]", []string{"peer_if", "net_4", "peer_net"}},
		{"interface twice", func(s *State) {
			s.Peerings = append(s.Peerings, Peering{ID: "peer_x", Network: "net_1", Kind: ByInterface, CIDRs: prefixes("10.51.0.0/16"), Interface: "eth1", State: PeeringActive})
		}, "peerings[5].interface", []string{"peer_if", "peer_x", "net_1", "VLAN"}},
		{"interface of two with one CIDR", func(s *State) {
			s.Networks[2].Site = &Site{Host: "gw-a", Port: 51990}
			s.Peerings = append(s.Peerings, Peering{ID: "peer_x", Network: "net_3", Kind: ByInterface, CIDRs: prefixes("10.51.0.0/16"), Interface: "eth1", State: PeeringPending})
		}, "peerings[5].interface", []string{"peer_if", "net_1", "peer_x", "net_3", "10.20.0.0/16"}},
		{"interface without a site", func(s *State) {
			s.Peerings = append(s.Peerings, Peering{ID: "peer_x", Network: "net_3", Kind: ByInterface, CIDRs: prefixes("10.51.0.0/16"), Interface: "eth2", State: PeeringActive})
		}, "peerings[5].network", []string{"net_3", "no site"}},
		{"no network", func(s *State) { s.Networks[3].AcceptedPeerings = nil; s.Peerings[byNetwork].PeerNetwork = "" }, "peerings[4].peerNetwork", []string{"names none"}},
		{"unknown network", func(s *State) { s.Networks[3].AcceptedPeerings = nil; s.Peerings[byNetwork].PeerNetwork = "net_9" }, "peerings[4].peerNetwork", []string{"net_9", "wireguard"}},
		{"itself", func(s *State) { s.Networks[3].AcceptedPeerings = nil; s.Peerings[byNetwork].PeerNetwork = "net_1" }, "peerings[4].peerNetwork", []string{"both sides"}},
		{"network elsewhere", func(s *State) {
			s.Peerings[byNetwork].PeerNetwork, s.Networks[1].CIDR = "net_2", prefix("10.45.0.0/16")
			s.Networks[3].AcceptedPeerings = nil
		}, "peerings[4].peerNetwork", []string{"iad1", "fra1"}},
		{"network of the same CIDR", func(s *State) { s.Networks[3].CIDR = prefix("10.20.0.0/17") }, "peerings[4].peerNetwork", []string{"net_1", "net_4", "10.20.0.0/16"}},
		{"network without a site", func(s *State) { s.Networks[3].Site = nil }, "peerings[4].peerNetwork", []string{"net_4", "no site"}},
		{"sites apart", func(s *State) {
			s.Regions[0].Hosts = append(s.Regions[0].Hosts, Host{Name: "gw-x", Endpoint: addr("192.0.2.99")})
			s.Networks[3].Hosts, s.Networks[3].Site.Host = []string{"gw-x", "gw-a"}, "gw-x"
		}, "peerings[4].peerNetwork", []string{"gw-a", "gw-x", "relay"}},
		{"the same network twice", func(s *State) {
			again := s.Peerings[byNetwork]
			again.ID = "peer_x"
			s.Peerings = append(s.Peerings, again)
		}, "peerings[5].peerNetwork", []string{"peer_net", "peer_x"}},
		{"overlap on the accepting side", func(s *State) {
			s.Peerings = append([]Peering{{ID: "peer_x", Network: "net_4", CIDRs: prefixes("10.20.9.0/24"), State: PeeringPending}}, s.Peerings...)
		}, "peerings[5].peerNetwork", []string{"peer_x", "net_1", "10.20.9.0/24"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := kinds()
			tc.change(&s)
			problems := s.Validate()
			if len(problems) == 0 {
				t.Fatal("nothing is wrong")
			}
			if problems[0].Path != tc.path {
				t.Errorf("found %v; want it at %s", problems, tc.path)
			}
			for _, want := range tc.says {
				if text := problems[0].Error(); !strings.Contains(text, want) {
					t.Errorf("%q is not in %q", want, text)
				}
			}
		})
	}
}

// The limit counts connections of all kinds, on both sides.
func TestLimitOfBothSides(t *testing.T) {
	s := kinds()
	s.Peerings = s.Peerings[4:]
	for i := range MaxPeerings {
		s.Peerings = append(s.Peerings, Peering{ID: fmt.Sprintf("p%d", i), Network: "net_4", CIDRs: prefixes(fmt.Sprintf("10.60.%d.0/24", i)), State: PeeringPending})
	}
	problems := s.Validate()
	if len(problems) != 1 || problems[0].Path != "peerings[50]" || !strings.Contains(problems[0].Message, "net_4") {
		t.Errorf("got %v", problems)
	}
}

func TestRangesOf(t *testing.T) {
	s := kinds()
	for _, tc := range []struct {
		peering int
		network string
		want    []netip.Prefix
	}{
		{0, "net_1", s.Peerings[0].CIDRs}, {0, "net_4", nil}, {3, "net_1", prefixes("10.50.0.0/16")},
		{4, "net_1", prefixes("10.44.0.0/16")}, {4, "net_4", prefixes("10.20.0.0/16")}, {4, "net_3", nil},
	} {
		if got := s.RangesOf(s.Peerings[tc.peering], tc.network); !slices.Equal(got, tc.want) {
			t.Errorf("peering %d of %s: got %v, want %v", tc.peering, tc.network, got, tc.want)
		}
	}
}

// drawKinds draws networks on one host or two, and connections of all kinds among few
// ranges and interfaces, so that clashes are frequent.
func drawKinds(t *rapid.T) State {
	s := valid()
	s.Networks, s.Projects, s.Peerings = nil, nil, nil
	s.Regions[0].Hosts = []Host{{Name: "gw-a", Endpoint: addr("192.0.2.1")}, {Name: "gw-b", Endpoint: addr("192.0.2.2")}}
	count := rapid.IntRange(2, 5).Draw(t, "networks")
	for i := range count {
		s.Networks = append(s.Networks, Network{
			ID: fmt.Sprint("net_", i), Team: "team_a", Region: "iad1",
			CIDR: prefix(fmt.Sprintf("10.%d.0.0/16", 20+rapid.IntRange(0, 5).Draw(t, "cidr"))),
			Pair: pair(fmt.Sprintf("203.0.113.%d", 1+2*i), fmt.Sprintf("203.0.113.%d", 2+2*i)), Hosts: []string{"gw-a", "gw-b"},
			Site: &Site{Host: rapid.SampledFrom([]string{"gw-a", "gw-a", "gw-b"}).Draw(t, "host"), Port: uint16(51000 + i)},
		})
	}
	for i := range rapid.IntRange(1, 6).Draw(t, "peerings") {
		p := Peering{
			ID: fmt.Sprint("peer_", i), Network: fmt.Sprint("net_", rapid.IntRange(0, count-1).Draw(t, "of")),
			Kind: rapid.SampledFrom([]PeeringKind{ByWireGuard, ByInterface, ByNetwork}).Draw(t, "kind"), State: PeeringActive,
		}
		if p.Kind == ByNetwork {
			p.PeerNetwork = fmt.Sprint("net_", rapid.IntRange(0, count-1).Draw(t, "to"))
		} else {
			p.CIDRs = prefixes(fmt.Sprintf("10.%d.0.0/16", 20+rapid.IntRange(0, 15).Draw(t, "range")))
		}
		switch p.Kind {
		case ByWireGuard:
			p.PublicKey = peerKey(byte(i + 1))
		case ByInterface:
			p.Interface = rapid.SampledFrom([]string{"eth1", "eth2"}).Draw(t, "interface")
		}
		s.Peerings = append(s.Peerings, p)
	}
	return s
}

// clash is the rule, one pair at a time: it names what two connections, or a connection
// and its network, have in common that they may not.
func clash(s State) string {
	type end struct {
		network string
		cidr    netip.Prefix
		begins  bool
		p       Peering
	}
	var ends []end
	for _, p := range s.Peerings {
		n, _ := s.Network(p.Network)
		if p.Kind != ByNetwork {
			ends = append(ends, end{p.Network, p.CIDRs[0], true, p})
			continue
		}
		o, _ := s.Network(p.PeerNetwork)
		if n.ID == o.ID || n.Site.Host != o.Site.Host {
			return "networks of " + p.ID
		}
		ends = append(ends, end{n.ID, o.CIDR, true, p}, end{o.ID, n.CIDR, false, p})
	}
	for i, e := range ends {
		n, _ := s.Network(e.network)
		if e.cidr.Overlaps(n.CIDR) {
			return "own range of " + e.p.ID
		}
		for _, f := range ends[:i] {
			opposite := e.p.Kind == ByNetwork && f.p.Kind == ByNetwork && e.p.Network == f.p.PeerNetwork && e.p.PeerNetwork == f.p.Network
			if e.network == f.network && e.cidr.Overlaps(f.cidr) && !opposite {
				return "ranges of " + e.p.ID + " and " + f.p.ID
			}
			m, _ := s.Network(f.network)
			if e.p.Kind == ByInterface && f.p.Kind == ByInterface && e.p.Interface == f.p.Interface && n.Site.Host == m.Site.Host && n.CIDR.Overlaps(m.CIDR) {
				return "interface of " + e.p.ID + " and " + f.p.ID
			}
		}
	}
	return ""
}

// A state is valid exactly when no two connections clash, whatever their kinds.
func TestKindsClash(t *testing.T) {
	good, bad := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		s := drawKinds(t)
		want, got := clash(s), s.Validate()
		if (want == "") != (len(got) == 0) {
			t.Fatalf("clash %q, found %v", want, got)
		}
		if want == "" {
			good++
			if len(s.Peerings) > 1 {
				slices.Reverse(s.Peerings) // the order does not count
				if err := s.Validate().Err(); err != nil {
					t.Fatal(err)
				}
			}
		} else {
			bad++
		}
	})
	if good == 0 || bad == 0 {
		t.Errorf("%d valid states and %d others: nothing is proven", good, bad)
	}
}
