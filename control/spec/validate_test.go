package spec

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestValidStateIsValid(t *testing.T) {
	if err := valid().Validate().Err(); err != nil {
		t.Error(err)
	}
	if err := (State{}).Validate().Err(); err != nil {
		t.Errorf("nothing at all: %v", err)
	}
}

// Each row breaks one rule of a valid state and names the one problem that is found.
func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*State)
		path   string
		says   []string
	}{
		{"team twice", func(s *State) {
			s.Teams[1].ID = "team_a"
			s.Networks[2].Team, s.Projects[1].Team = "team_a", "team_a"
			s.Networks[2].Name, s.Projects[1].Name = "", ""
		}, "teams[1].id", []string{`"team_a"`, "twice"}},
		{"team name twice", func(s *State) { s.Teams[1].Name = "Acme" }, "teams[1].name", []string{"twice"}},
		{"team name with a bell", func(s *State) { s.Teams[1].Name = "a\ab" }, "teams[1].name", []string{"U+0007"}},
		{"name too long", func(s *State) { s.Networks[0].Name = strings.Repeat("x", 256) }, "networks[0].name", []string{"256 bytes"}},
		{"name not UTF-8", func(s *State) { s.Networks[0].Name = "\xff" }, "networks[0].name", []string{"UTF-8"}},
		{"ID syntax", func(s *State) { s.Networks[2].ID = "net/3"; s.Projects[1].Environments, s.Peerings = nil, nil }, "networks[2].id", []string{`"net/3" is not an ID`}},
		{"network twice", func(s *State) { s.Networks[2].ID = "net_2"; s.Projects[1].Environments = nil; s.Peerings = nil }, "networks[2].id", []string{"net_2", "twice"}},
		{"network name twice", func(s *State) { s.Networks[1].Name = "main" }, "networks[1].name", []string{"twice"}},
		{"network without a team", func(s *State) { s.Networks[2].Team = "team_x"; s.Projects[1].Environments = nil }, "networks[2].team", []string{"team_x"}},
		{"project twice", func(s *State) { s.Projects[1].ID = "prj_1" }, "projects[1].id", []string{"prj_1", "twice"}},
		{"project name twice", func(s *State) { s.Projects = append(s.Projects, Project{ID: "prj_3", Team: "team_b", Name: "shop"}) }, "projects[2].name", []string{"twice"}},
		{"peering twice", func(s *State) { s.Peerings[2].ID = "peer_1" }, "peerings[2].id", []string{"peer_1", "twice"}},
		{"peering without an ID", func(s *State) { s.Peerings[2].ID = "" }, "peerings[2].id", []string{"not an ID"}},

		{"draining another's address", func(s *State) { s.Networks[0].Draining = []netip.Addr{addr("192.0.2.200")} }, "networks[0].draining[0]", []string{"192.0.2.200", "not in the pair"}},
		{"draining both", func(s *State) { s.Networks[0].Draining = s.Networks[0].Pair[:] }, "networks[0].draining", []string{"2 addresses"}},

		{"region name", func(s *State) {
			s.Regions = append(s.Regions, Region{Name: "SFO 1", Pool: prefixes("203.0.113.64/28"), Hosts: s.Regions[0].Hosts[:0:0]})
			s.Regions[2].Hosts = []Host{{Name: "x", Endpoint: addr("192.0.2.9")}}
		}, "regions[2].name", []string{"SFO 1"}},
		{"region twice", func(s *State) {
			s.Regions = append(s.Regions, Region{Name: "iad1", Pool: prefixes("203.0.113.64/28"), Hosts: []Host{{Name: "x", Endpoint: addr("192.0.2.9")}}})
		}, "regions[2].name", []string{"twice"}},
		{"API without a path", func(s *State) { s.Regions[0].API = "unix://" }, "regions[0].api", []string{"unix:///path"}},
		{"API of another scheme", func(s *State) { s.Regions[0].API = "ftp://192.0.2.1:80" }, "regions[0].api", []string{"ftp"}},
		{"API without a port", func(s *State) { s.Regions[0].API = "http://192.0.2.1" }, "regions[0].api", nil},
		{"API with a line break", func(s *State) { s.Regions[0].API = "unix:///a\nb" }, "regions[0].api", nil},
		{"no pool", func(s *State) {
			s.Regions = append(s.Regions, Region{Name: "sfo1", Hosts: []Host{{Name: "x", Endpoint: addr("192.0.2.9")}}})
		}, "regions[2].pool", []string{"no addresses"}},
		{"private pool", func(s *State) { s.Regions[0].Pool = append(s.Regions[0].Pool, prefix("10.0.0.0/28")) }, "regions[0].pool[1]", []string{"private (RFC 1918)"}},
		{"pool around private", func(s *State) { s.Regions[0].Pool = append(s.Regions[0].Pool, prefix("172.0.0.0/8")) }, "regions[0].pool[1]", []string{"private (RFC 1918)"}},
		{"shared address space", func(s *State) { s.Regions[0].Pool = append(s.Regions[0].Pool, prefix("100.64.0.0/28")) }, "regions[0].pool[1]", []string{"100.64.0.0/10"}},
		{"loopback beside public", func(s *State) { s.Regions[0].Pool = append(s.Regions[0].Pool, prefix("127.0.0.0/28")) }, "regions[0].pool[1]", []string{"127.0.0.0/8"}},
		{"multicast pool", func(s *State) { s.Regions[0].Pool = append(s.Regions[0].Pool, prefix("224.0.0.0/28")) }, "regions[0].pool[1]", []string{"224.0.0.0/4"}},
		{"IPv6 pool", func(s *State) { s.Regions[0].Pool = append(s.Regions[0].Pool, prefix("2001:db8::/64")) }, "regions[0].pool[1]", []string{"not a valid IPv4"}},
		{"pool with host bits", func(s *State) { s.Regions[0].Pool = append(s.Regions[0].Pool, prefix("203.0.113.65/28")) }, "regions[0].pool[1]", []string{"203.0.113.64/28"}},
		{"pools overlap", func(s *State) { s.Regions[1].Pool = append(s.Regions[1].Pool, prefix("203.0.113.8/29")) }, "regions[1].pool[2]", []string{"203.0.113.8/29", "203.0.113.0/28", `"iad1"`}},
		{"pool overlaps itself", func(s *State) { s.Regions[0].Pool = append(s.Regions[0].Pool, prefix("203.0.113.8/29")) }, "regions[0].pool[1]", []string{"overlaps"}},
		{"no host", func(s *State) { s.Regions = append(s.Regions, Region{Name: "sfo1", Pool: prefixes("203.0.113.64/28")}) }, "regions[2].hosts", []string{"no host"}},
		{"host name", func(s *State) { s.Regions[0].Hosts[0].Name, s.Networks[0].Site.Host = "-gw", "-gw" }, "regions[0].hosts[0].name", []string{"-gw"}},
		{"host twice", func(s *State) {
			s.Regions[0].Hosts = append(s.Regions[0].Hosts, Host{Name: "gw-a", Endpoint: addr("192.0.2.9")})
		}, "regions[0].hosts[1].name", []string{"twice"}},
		{"host without an endpoint", func(s *State) { s.Regions[0].Hosts[0].Endpoint = netip.Addr{} }, "regions[0].hosts[0].endpoint", []string{"not the address"}},
		{"multicast endpoint", func(s *State) { s.Regions[0].Hosts[0].Endpoint = addr("224.0.0.1") }, "regions[0].hosts[0].endpoint", []string{"224.0.0.1"}},
		{"private bypass", func(s *State) { s.Regions[0].Hosts[0].Bypass = addr("10.0.0.1") }, "regions[0].hosts[0].bypass", []string{"10.0.0.1"}},
		{"bypass of two hosts", func(s *State) { s.Regions[1].Hosts[0].Bypass = addr("192.0.2.101") }, "regions[1].hosts[0].bypass", []string{`region "fra1"`, `region "iad1"`}},

		{"network's region", func(s *State) { s.Networks[2].Region = "nowhere"; s.Peerings = nil }, "networks[2].region", []string{"nowhere"}},
		{"CIDR missing", func(s *State) { s.Networks[2].CIDR = netip.Prefix{} }, "networks[2].cidr", []string{"not a valid"}},
		{"CIDR public", func(s *State) { s.Networks[2].CIDR = prefix("203.0.113.0/24") }, "networks[2].cidr", []string{"not private"}},
		{"CIDR small", func(s *State) { s.Networks[2].CIDR = prefix("10.0.0.0/25") }, "networks[2].cidr", []string{"/16 to /24"}},
		{"TCP mapping", func(s *State) { s.Networks[0].TCPMapping = "symmetric" }, "networks[0].tcpMapping", []string{"symmetric"}},
		{"port block", func(s *State) { s.Networks[0].PortBlock = 100 }, "networks[0].portBlock", []string{"100", "64 to 4096"}},
		{"port block too small", func(s *State) { s.Networks[0].PortBlock = 32 }, "networks[0].portBlock", []string{"32"}},
		{"port block too large", func(s *State) { s.Networks[0].PortBlock = 8192 }, "networks[0].portBlock", []string{"8192"}},
		{"UDP timer", func(s *State) { s.Networks[0].Timers.UDP = 119 * time.Second }, "networks[0].timers.udp", []string{"1m59s", "RFC 4787", "2m0s"}},
		{"TCP timer", func(s *State) { s.Networks[0].Timers.TCPEstablished = 2 * time.Hour }, "networks[0].timers.tcpEstablished", []string{"RFC 5382"}},
		{"transitory timer", func(s *State) { s.Networks[0].Timers.TCPTransitory = -1 }, "networks[0].timers.tcpTransitory", []string{"RFC 5382"}},
		{"ICMP timer", func(s *State) { s.Networks[0].Timers.ICMP = 10 * time.Second }, "networks[0].timers.icmp", []string{"RFC 5508"}},
		{"endless timer", func(s *State) { s.Networks[0].Timers.ICMP = 10000 * time.Hour }, "networks[0].timers.icmp", []string{"too long"}},
		{"negative limit", func(s *State) { s.Networks[0].Limits.PortsPerSandbox = -1 }, "networks[0].limits.portsPerSandbox", []string{"-1"}},
		{"vast limit", func(s *State) { s.Networks[0].Limits.NewFlowsPerSecondPerIP = 1 << 40 }, "networks[0].limits.newFlowsPerSecondPerIP", []string{"100000000"}},
		{"pair of one", func(s *State) { s.Networks[0].Pair[1] = addr("203.0.113.1") }, "networks[0].pair[1]", []string{"both addresses", "203.0.113.1"}},
		{"pair half missing", func(s *State) { s.Networks[0].Pair[1] = netip.Addr{} }, "networks[0].pair[1]", []string{"not an IPv4"}},
		{"pair outside the pool", func(s *State) { s.Networks[0].Pair[0] = addr("203.0.113.77") }, "networks[0].pair[0]", []string{"203.0.113.77", "203.0.113.0/28"}},
		{"pair of another network", func(s *State) { s.Networks[2].Pair[0] = addr("203.0.113.2") }, "networks[2].pair[0]", []string{"net_1", "net_3"}},
		{"pair is an endpoint", func(s *State) { s.Regions[0].Hosts[0].Endpoint = addr("203.0.113.1") }, "networks[0].pair[0]", []string{"endpoint", "net_1"}},
		{"pair is a bypass address", func(s *State) { s.Regions[0].Hosts[0].Bypass = addr("203.0.113.2") }, "networks[0].pair[1]", []string{"bypass", "net_1"}},
		{"one host named", func(s *State) { s.Networks[1].Hosts = []string{"gw-a"} }, "networks[1].hosts", []string{"1 hosts"}},
		{"unknown host", func(s *State) { s.Networks[1].Hosts[1] = "gw-z" }, "networks[1].hosts[1]", []string{"gw-z"}},
		{"101 projects", func(s *State) {
			for i := range MaxProjects {
				s.Projects = append(s.Projects, Project{ID: fmt.Sprintf("p%d", i), Team: "team_a", Environments: []Environment{
					{Name: "production", Active: []string{"net_1"}}, {Name: "preview", Active: []string{"net_1"}},
				}})
			}
		}, "networks[0]", []string{"101 projects"}},

		{"policy mode", func(s *State) { s.Networks[1].Policy.Mode = "block" }, "networks[1].policy.mode", []string{"block"}},
		{"rule's verdict", func(s *State) { s.Networks[1].Policy.Rules[0].Verdict = "" }, "networks[1].policy.rules[0].verdict", []string{"no verdict"}},
		{"rule's project", func(s *State) { s.Networks[1].Policy.Rules[0].Projects[0] = "prj_2" }, "networks[1].policy.rules[0].projects[0]", []string{"prj_2"}},
		{"rule's environment", func(s *State) { s.Networks[1].Policy.Rules[0].Environments[0] = "" }, "networks[1].policy.rules[0].environments[0]", nil},
		{"rule's kind", func(s *State) { s.Networks[1].Policy.Rules[0].Kinds[0] = "cron" }, "networks[1].policy.rules[0].kinds[0]", []string{"cron"}},
		{"rule's runtime", func(s *State) { s.Networks[1].Policy.Rules[0].Runtimes[0] = "Node" }, "networks[1].policy.rules[0].runtimes[0]", []string{"Node"}},
		{"rule's CIDR", func(s *State) { s.Networks[1].Policy.Rules[0].CIDRs[0] = prefix("2001:db8::/32") }, "networks[1].policy.rules[0].cidrs[0]", []string{"2001:db8::/32"}},
		{"rule's CIDR host bits", func(s *State) { s.Networks[1].Policy.Rules[0].CIDRs[0] = prefix("198.51.100.1/25") }, "networks[1].policy.rules[0].cidrs[0]", []string{"198.51.100.0/25"}},
		{"rule's port", func(s *State) { s.Networks[1].Policy.Rules[0].Ports[1] = PortRange{9, 8} }, "networks[1].policy.rules[0].ports[1]", []string{"9-8"}},
		{"rule's protocol", func(s *State) { s.Networks[1].Policy.Rules[0].Protocols = []Protocol{"tcp", "sctp"} }, "networks[1].policy.rules[0].protocols[1]", []string{"sctp"}},
		{"ports of ICMP", func(s *State) { s.Networks[1].Policy.Rules[0].Protocols[0] = ProtocolICMP }, "networks[1].policy.rules[0].ports", []string{"icmp has no ports"}},

		{"a sandbox's sessions", func(s *State) { s.Networks[2].Limits.SessionsPerSandbox = 1 << 28 }, "networks[2].limits.sessionsPerSandbox", []string{"sessionsPerIP"}},
		{"a sandbox's ports", func(s *State) { s.Networks[2].Limits.PortsPerSandbox = 1 << 28 }, "networks[2].limits.portsPerSandbox", []string{"portsPerIP"}},
		{"a sandbox's handshakes", func(s *State) { s.Networks[2].Limits.HalfOpenPerSandbox = 1 << 28 }, "networks[2].limits.halfOpenPerSandbox", []string{"halfOpenPerIP"}},
		{"a sandbox's rate", func(s *State) { s.Networks[2].Limits.NewFlowsPerSecond = 1e8 }, "networks[2].limits.newFlowsPerSecond", []string{"newFlowsPerSecondPerIP"}},
		{"less than a block", func(s *State) { s.Networks[2].PortBlock, s.Networks[2].Limits.PortsPerSandbox = 512, 511 }, "networks[2].limits.portsPerSandbox", []string{"512"}},

		{"project without a team", func(s *State) { s.Projects = append(s.Projects, Project{ID: "prj_3", Team: "x"}) }, "projects[2].team", []string{`"x"`}},
		{"environment name", func(s *State) { s.Projects[0].Environments[2].Name = "" }, "projects[0].environments[2].name", nil},
		{"environment twice", func(s *State) { s.Projects[0].Environments[2].Name = "preview" }, "projects[0].environments[2].name", []string{"preview", "twice"}},
		{"unknown network", func(s *State) { s.Projects[0].Environments[0].Active[0] = "net_9" }, "projects[0].environments[0].active[0]", []string{"net_9"}},
		{"another team's network", func(s *State) { s.Projects[0].Environments[0].Active[0] = "net_3" }, "projects[0].environments[0].active[0]", []string{"team_a", "team_b"}},
		{"two active in a region", func(s *State) {
			s.Networks = append(s.Networks, Network{ID: "net_4", Team: "team_a", Region: "iad1", CIDR: prefix("10.9.0.0/16"), Pair: pair("203.0.113.5", "203.0.113.6")})
			s.Projects[0].Environments[0].Active = []string{"net_1", "net_4"}
		}, "projects[0].environments[0].active[1]", []string{"net_1", "net_4", "iad1"}},
		{"passive unknown", func(s *State) { s.Projects[0].Environments[0].Passive = "net_9" }, "projects[0].environments[0].passive", []string{"net_9"}},
		{"passive in the active region", func(s *State) { s.Projects[0].Environments[0].Passive = "net_1" }, "projects[0].environments[0].passive", []string{"net_1", "iad1"}},
		{"passive of another team", func(s *State) { s.Projects[1].Environments[0].Passive = "net_2" }, "projects[1].environments[0].passive", []string{"team_a", "team_b"}},

		{"peering state", func(s *State) { s.Peerings[0].State = "open" }, "peerings[0].state", []string{"open"}},
		{"peering network", func(s *State) { s.Peerings[0].Network = "net_9" }, "peerings[0].network", []string{"net_9"}},
		{"peering without ranges", func(s *State) { s.Peerings[0].CIDRs = nil }, "peerings[0].cidrs", []string{"no range"}},
		{"peering public", func(s *State) { s.Peerings[0].CIDRs[1] = prefix("203.0.113.0/24") }, "peerings[0].cidrs[1]", []string{"not private"}},
		{"peering IPv6", func(s *State) { s.Peerings[0].CIDRs[1] = prefix("fd00::/64") }, "peerings[0].cidrs[1]", []string{"not a valid"}},
		{"peering host bits", func(s *State) { s.Peerings[0].CIDRs[1] = prefix("10.99.0.1/24") }, "peerings[0].cidrs[1]", []string{"10.99.0.0/24"}},
		{"peering overlaps its network", func(s *State) { s.Peerings[1].State = PeeringPending }, "peerings[1].cidrs[0]", []string{"10.20.3.0/24", "10.20.0.0/16", "net_1"}},
		{"peerings overlap", func(s *State) { s.Peerings[2].Network = "net_1" }, "peerings[2].cidrs[0]", []string{"10.30.0.0/16", "peer_1", "peer_3"}},
		{"peering holds its network", func(s *State) {
			s.Peerings = append(s.Peerings, Peering{ID: "peer_9", Network: "net_1", CIDRs: prefixes("10.20.0.0/15"), State: PeeringInitiating})
		}, "peerings[3].cidrs[0]", []string{"10.20.0.0/15", `peering "peer_9"`, "10.20.0.0/16", `network "net_1"`}},
		{"peering's range twice", func(s *State) { s.Peerings[0].CIDRs[1] = prefix("10.30.0.0/16") }, "peerings[0].cidrs[1]", []string{"10.30.0.0/16", "twice"}},
		{"peering overlaps itself", func(s *State) { s.Peerings[0].CIDRs[1] = prefix("10.30.7.0/24") }, "peerings[0].cidrs[1]", []string{"10.30.7.0/24", "10.30.0.0/16"}},
		{"peering without a key", func(s *State) { s.Peerings[0].PublicKey = "" }, "peerings[0].publicKey", []string{"peer_1", "active", "wg pubkey"}},
		{"provisioning without a key", func(s *State) { s.Peerings[0].PublicKey, s.Peerings[0].State = "", PeeringProvisioning }, "peerings[0].publicKey", []string{"provisioning"}},
		{"peering's key", func(s *State) { s.Peerings[0].PublicKey = "AAAA" }, "peerings[0].publicKey", []string{"44 characters"}},
		{"pending key", func(s *State) { s.Peerings[2].PublicKey = "AAAA" }, "peerings[2].publicKey", []string{"44 characters"}},
		{"key of two peerings", func(s *State) {
			s.Peerings = append(s.Peerings, Peering{ID: "peer_9", Network: "net_1", CIDRs: prefixes("10.31.0.0/16"), PublicKey: peerKey(1), State: PeeringPending})
		}, "peerings[3].publicKey", []string{`"peer_1"`, `"peer_9"`, `"net_1"`}},
		{"peering without a site", func(s *State) { s.Networks[0].Site = nil }, "peerings[0].network", []string{"peer_1", "net_1", "no site"}},
		{"endpoint without a port", func(s *State) { s.Peerings[0].Endpoint = netip.AddrPortFrom(addr("192.0.2.66"), 0) }, "peerings[0].endpoint", []string{"192.0.2.66:0"}},
		{"endpoint multicast", func(s *State) { s.Peerings[0].Endpoint = netip.MustParseAddrPort("[ff02::1]:51820") }, "peerings[0].endpoint", []string{"ff02::1"}},
		{"endpoint of no address", func(s *State) { s.Peerings[0].Endpoint = netip.MustParseAddrPort("0.0.0.0:51820") }, "peerings[0].endpoint", []string{"0.0.0.0"}},
		{"endpoint mapped", func(s *State) { s.Peerings[0].Endpoint = netip.MustParseAddrPort("[::ffff:192.0.2.66]:51820") }, "peerings[0].endpoint", nil},
		{"endpoint with a zone", func(s *State) { s.Peerings[0].Endpoint = netip.MustParseAddrPort("[fe80::1%eth0]:51820") }, "peerings[0].endpoint", nil},
		{"endpoint dedicated", func(s *State) { s.Peerings[0].Endpoint = netip.MustParseAddrPort("198.51.100.64:51820") }, "peerings[0].endpoint", []string{"198.51.100.64", "fra1"}},
		{"endpoint in a pool", func(s *State) { s.Peerings[0].Endpoint = netip.MustParseAddrPort("203.0.113.14:51820") }, "peerings[0].endpoint", []string{"203.0.113.14", "iad1"}},

		{"site's host", func(s *State) { s.Networks[1].Site = &Site{Host: "gw-z", Port: 1} }, "networks[1].site.host", []string{"gw-z", "gw-b, gw-a"}},
		{"site's host of another region", func(s *State) { s.Networks[0].Site.Host = "gw-b" }, "networks[0].site.host", []string{"gw-b"}},
		{"site's host without the pair", func(s *State) {
			s.Regions[1].Hosts = append(s.Regions[1].Hosts, Host{Name: "gw-c", Endpoint: addr("192.0.2.4")})
			s.Networks[1].Site = &Site{Host: "gw-c", Port: 1}
		}, "networks[1].site.host", []string{"gw-c", "net_2"}},
		{"site without a port", func(s *State) { s.Networks[0].Site.Port = 0 }, "networks[0].site.port", []string{"no port"}},
		{"port of two sites", func(s *State) { s.Networks[2].Site = &Site{Host: "gw-a", Port: 51700} }, "networks[2].site.port", []string{"net_1", "net_3", "51700", "iad1"}},
		{"51 peerings", func(s *State) {
			for i := range MaxPeerings {
				s.Peerings = append(s.Peerings, Peering{ID: fmt.Sprintf("q%d", i), Network: "net_1", State: PeeringPending, CIDRs: []netip.Prefix{prefix(fmt.Sprintf("10.40.%d.0/24", i))}})
			}
		}, "peerings[52]", []string{"more than 50"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := valid()
			tc.change(&s)
			problems := s.Validate()
			if len(problems) != 1 {
				t.Fatalf("got %d problems, want 1:\n%v", len(problems), problems.Err())
			}
			if problems[0].Path != tc.path {
				t.Errorf("got path %q, want %q (%v)", problems[0].Path, tc.path, problems[0])
			}
			for _, want := range tc.says {
				if !strings.Contains(problems[0].Message+problems[0].Remedy, want) {
					t.Errorf("%v does not say %q", problems[0], want)
				}
			}
			if problems[0].Message == "" || problems[0].Remedy == "" {
				t.Errorf("%v lacks a message or a remedy", problems[0])
			}
		})
	}
}

func TestValidateListsAll(t *testing.T) {
	s := valid()
	s.Teams[0].ID = "?"
	s.Networks[0].CIDR = prefix("10.0.0.0/8")
	s.Projects[1].Environments[0].Active[0] = "net_9"
	problems := s.Validate()
	if len(problems) < 5 { // the bad team is missed by two networks and a project too
		t.Errorf("got only %v", problems)
	}
	if got := strings.Count(problems.Error(), "\n"); got != len(problems)-1 {
		t.Errorf("got %d line breaks for %d problems", got, len(problems))
	}
}

func TestLoopbackRegion(t *testing.T) {
	s := State{
		Teams:    []Team{{ID: "t"}},
		Regions:  []Region{{Name: "lo1", Pool: prefixes("127.0.1.0/24"), Hosts: []Host{{Name: "here", Endpoint: addr("127.0.0.1"), Bypass: addr("127.0.2.1")}}}},
		Networks: []Network{{ID: "n", Team: "t", Region: "lo1", CIDR: prefix("10.0.0.0/24"), Pair: pair("127.0.1.1", "127.0.1.2")}},
	}
	if err := s.Validate().Err(); err != nil {
		t.Error(err)
	}
	if !s.Regions[0].Loopback() || valid().Regions[0].Loopback() || (Region{}).Loopback() {
		t.Error("a loopback region is one whose whole pool lies in 127.0.0.0/8")
	}
}

// Two networks may choose any ranges; a network and its open peerings may not
// overlap. The rule is held against a slow oracle that walks addresses.
func TestOverlapIsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.Custom(func(t *rapid.T) netip.Prefix {
			a := netip.AddrFrom4([4]byte{10, 0, byte(rapid.IntRange(0, 15).Draw(t, "third")), 0})
			return netip.PrefixFrom(a, rapid.IntRange(20, 24).Draw(t, "bits")).Masked()
		})
		s := valid()
		s.Networks[0].CIDR, s.Peerings = prefix("10.0.0.0/20"), nil
		s.Networks[2].CIDR = gen.Draw(t, "other network")
		s.Networks[0].CIDR = gen.Draw(t, "network")
		ranges := rapid.SliceOfN(gen, 0, 4).Draw(t, "peerings")
		open := []netip.Prefix{s.Networks[0].CIDR}
		overlap := false
		for i, r := range ranges {
			state := rapid.SampledFrom([]PeeringState{PeeringActive, PeeringPending, PeeringDeleted}).Draw(t, "state")
			s.Peerings = append(s.Peerings, Peering{ID: fmt.Sprint("p", i), Network: "net_1", CIDRs: []netip.Prefix{r}, PublicKey: peerKey(byte(i + 1)), State: state})
			if !state.Open() {
				continue
			}
			for _, o := range open {
				overlap = overlap || sharesThirdByte(o, r)
			}
			open = append(open, r)
		}
		if got := len(s.Validate()) > 0; got != overlap {
			t.Fatalf("overlap found: %v, there: %v (%v)", got, overlap, s.Validate())
		}
	})
}

// What is allowed beside what is refused above.
func TestPeeringsThatAreValid(t *testing.T) {
	for name, change := range map[string]func(*State){
		"pending without key and site": func(s *State) {
			s.Networks[0].Site = nil
			s.Peerings[0].PublicKey, s.Peerings[0].State = "", PeeringPending
		},
		"IPv6 endpoint":                   func(s *State) { s.Peerings[0].Endpoint = netip.MustParseAddrPort("[2001:db8::1]:51820") },
		"key and range of a deleted one":  func(s *State) { s.Peerings[1].PublicKey, s.Peerings[1].State = peerKey(1), PeeringDeleted },
		"key of another network":          func(s *State) { s.Peerings[2].PublicKey = peerKey(1) },
		"site port of another region":     func(s *State) { s.Networks[1].Site = &Site{Host: "gw-b", Port: 51700} },
		"site on either host of the pair": func(s *State) { s.Networks[1].Site = &Site{Host: "gw-a", Port: 1} },
		"50 peerings": func(s *State) {
			for i := range MaxPeerings - 1 {
				s.Peerings = append(s.Peerings, Peering{ID: fmt.Sprintf("q%d", i), Network: "net_1", State: PeeringPending, CIDRs: []netip.Prefix{prefix(fmt.Sprintf("10.40.%d.0/24", i))}})
			}
		},
	} {
		s := valid()
		change(&s)
		if err := s.Validate().Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Keys are unique among the open peerings of a network, ports among the sites of a
// region; both are held against slow oracles that compare all pairs.
func TestKeysAndPortsAreUnique(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := valid()
		s.Projects, s.Peerings = nil, nil
		want := 0
		for i := range s.Networks {
			n := &s.Networks[i]
			n.Policy = Policy{}
			n.Site = &Site{Host: s.HostsOf(*n)[rapid.IntRange(0, 1).Draw(t, "host")], Port: uint16(rapid.IntRange(1, 2).Draw(t, "port"))}
			for _, before := range s.Networks[:i] {
				if before.Region == n.Region && before.Site.Port == n.Site.Port {
					want++
					break
				}
			}
		}
		for i := range rapid.IntRange(0, 8).Draw(t, "peerings") {
			p := Peering{
				ID: fmt.Sprint("p", i), Network: rapid.SampledFrom([]string{"net_1", "net_3"}).Draw(t, "network"),
				CIDRs: []netip.Prefix{prefix(fmt.Sprintf("10.30.%d.0/24", i))}, PublicKey: peerKey(byte(rapid.IntRange(1, 4).Draw(t, "key"))),
				State: rapid.SampledFrom([]PeeringState{PeeringActive, PeeringProvisioning, PeeringPending, PeeringRejected}).Draw(t, "state"),
			}
			for _, before := range s.Peerings {
				if before.Network == p.Network && before.PublicKey == p.PublicKey && before.State.Open() && p.State.Open() {
					want++
					break
				}
			}
			s.Peerings = append(s.Peerings, p)
		}
		if got := s.Validate(); len(got) != want {
			t.Fatalf("%d problems, want %d: %v", len(got), want, got)
		}
	})
}

func sharesThirdByte(a, b netip.Prefix) bool {
	for i := range 256 {
		x := netip.AddrFrom4([4]byte{10, 0, byte(i), 0})
		if a.Contains(x) && b.Contains(x) {
			return true
		}
	}
	return false
}
