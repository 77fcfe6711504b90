package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

var (
	network  = netip.MustParsePrefix("10.0.0.0/16")
	firstIP  = netip.MustParseAddr("10.0.0.1")
	sandbox  = netip.MustParseAddr("10.0.0.7")
	other    = netip.MustParseAddr("10.0.0.8")
	outside  = netip.MustParseAddr("198.51.100.20")
	hostIP   = netip.MustParseAddr("203.0.113.1")
	function = Subject{Project: "shop", Environment: "production", Kind: "function", Runtime: "nodejs"}
)

func cidrs(list ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func config(mode Mode, rules ...Rule) Config {
	return Config{
		Network: network, Gateway: firstIP, Mode: mode, Rules: rules,
		Own: []netip.Addr{hostIP, netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("10.9.9.9")},
	}
}

func compile(t testing.TB, c Config) *Snapshot {
	t.Helper()
	s, err := Compile(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tcp, udp and echo make parsed packets; the source is the sandbox.
func tcp(dst netip.Addr, port uint16) *packet.Packet {
	return &packet.Packet{Kind: packet.KindTCP, Proto: packet.TCP, Src: sandbox, Dst: dst, SrcPort: 40000, DstPort: port, Flags: packet.SYN}
}

func udp(dst netip.Addr, port uint16) *packet.Packet {
	return &packet.Packet{Kind: packet.KindUDP, Proto: packet.UDP, Src: sandbox, Dst: dst, SrcPort: 40000, DstPort: port}
}

func echo(dst netip.Addr) *packet.Packet {
	return &packet.Packet{Kind: packet.KindICMPQuery, Proto: packet.ICMP, Src: sandbox, Dst: dst, SrcPort: 7, ICMPType: 8}
}

func icmp(kind packet.Kind, typ uint8, dst netip.Addr) *packet.Packet {
	return &packet.Packet{Kind: kind, Proto: packet.ICMP, Src: sandbox, Dst: dst, ICMPType: typ}
}

func from(src string, p *packet.Packet) *packet.Packet {
	p.Src = netip.MustParseAddr(src)
	return p
}

func to(s string) netip.Addr { return netip.MustParseAddr(s) }

var (
	pass    = Decision{Forward, packet.Pass}
	toLocal = Decision{Local, packet.Pass}
	refuse  = Decision{Reject, packet.PolicyRejected}
	silence = Decision{Drop, packet.PolicyDropped}
	noSvc   = Decision{Reject, packet.NoLocalService}
	private = Decision{Reject, packet.PrivateDestination}
	own     = Decision{Reject, packet.OwnAddress}
	martian = Decision{Drop, packet.Martian}
	refused = Decision{Reject, packet.Martian}
)

// only attached inner addresses of the network send.
func TestSources(t *testing.T) {
	s := compile(t, config(ModeAllow)).With(sandbox, function)
	for name, row := range map[string]struct {
		p    *packet.Packet
		want Decision
	}{
		"attached":                      {tcp(outside, 443), pass},
		"not attached":                  {from("10.0.0.8", tcp(outside, 443)), Decision{Drop, packet.Unattached}},
		"the gateway's address (A-16)":  {from("10.0.0.1", tcp(outside, 443)), Decision{Drop, packet.SpoofedSource}},
		"another private one":           {from("10.1.0.7", tcp(outside, 443)), Decision{Drop, packet.SpoofedSource}},
		"a dedicated address (A-14)":    {from("192.0.2.10", tcp(outside, 443)), Decision{Drop, packet.SpoofedSource}},
		"0.0.0.0 (R-3)":                 {from("0.0.0.0", tcp(outside, 443)), martian},
		"loopback (R-3)":                {from("127.0.0.1", tcp(outside, 443)), martian},
		"multicast (R-3)":               {from("224.0.0.1", tcp(outside, 443)), martian},
		"broadcast (R-3)":               {from("255.255.255.255", tcp(outside, 443)), martian},
		"unattached before destination": {from("10.0.0.8", tcp(hostIP, 443)), Decision{Drop, packet.Unattached}},
		"unattached fragment":           {from("10.0.0.8", icmp(packet.KindFragment, 0, outside)), Decision{Drop, packet.Unattached}},
		"fragment":                      {icmp(packet.KindFragment, 0, outside), Decision{Drop, packet.Fragment}},
		"not parsed":                    {icmp(packet.KindUnknown, 0, outside), Decision{Drop, packet.Malformed}},
		"LAND (A-14)":                   {tcp(sandbox, 40000), private},
	} {
		if got := s.Decide(row.p); got != row.want {
			t.Errorf("%s: %v %v, want %v %v", name, got.Verdict, got.Outcome, row.want.Verdict, row.want.Outcome)
		}
	}
}

// TestAlwaysDenied is: no mode and no rule opens these.
func TestAlwaysDenied(t *testing.T) {
	closed := map[string]Decision{
		"0.0.0.0": martian, "0.1.2.3": martian, "224.0.0.251": martian, "239.255.255.250": martian, "240.0.0.1": martian,
		"255.255.255.255": martian, "127.0.0.1": refused, "127.255.255.255": refused, "169.254.169.254": refused, "169.254.0.1": refused,
		"10.0.0.8": private, "10.0.0.0": private, "10.0.255.255": private, "10.1.0.1": private, "172.16.0.1": private,
		"172.31.255.255": private, "192.168.1.1": private, "100.64.0.1": private, "100.127.255.255": private,
		"203.0.113.1": own, "192.0.2.10": own, "10.9.9.9": own,
	}
	open := []string{"1.0.0.1", "9.255.255.255", "11.0.0.1", "126.1.1.1", "128.0.0.1", "169.253.1.1", "172.15.1.1", "172.32.0.1",
		"192.167.1.1", "192.169.1.1", "100.63.1.1", "100.128.0.1", "223.255.255.1", "203.0.113.2", "192.0.2.11"}
	for name, c := range map[string]Config{
		"allow": config(ModeAllow),
		"custom, all allowed": config(ModeCustom, Rule{Verdict: RuleAllow}, Rule{CIDRs: cidrs("0.0.0.0/0"), Verdict: RuleAllow},
			Rule{CIDRs: cidrs("169.254.169.254/32", "127.0.0.1/32", "10.0.0.8/32", "203.0.113.1/32"), Verdict: RuleAllow}),
	} {
		s := compile(t, c).With(sandbox, function).With(other, function)
		for a, want := range closed {
			for _, p := range []*packet.Packet{tcp(to(a), 443), udp(to(a), 53), udp(to(a), 7), echo(to(a)), icmp(packet.KindICMPError, 3, to(a))} {
				if got := s.Decide(p); got != want {
					t.Errorf("%s: %s proto %d: %v %v", name, a, p.Proto, got.Verdict, got.Outcome)
				}
			}
		}
		for _, a := range open {
			if got := s.Decide(tcp(to(a), 443)); got != pass {
				t.Errorf("%s: %s: %v %v", name, a, got.Verdict, got.Outcome)
			}
		}
	}
}

// a region of loopback addresses reaches these and nothing else.
func TestLoopbackRegion(t *testing.T) {
	c := config(ModeAllow, Rule{CIDRs: cidrs("127.0.9.0/24"), Verdict: RuleReject})
	c.Loopback = true
	c.Own = []netip.Addr{to("127.0.0.10"), to("127.0.0.11")}
	s := compile(t, c).With(sandbox, function)
	for a, want := range map[string]Decision{
		"127.0.0.1": pass, "127.255.1.2": pass, "127.0.0.10": own, "127.0.0.11": own, "127.0.9.1": refuse,
		"198.51.100.20": refused, "128.0.0.1": refused, "126.255.255.255": refused, "169.254.169.254": refused,
		"0.0.0.0": martian, "224.0.0.1": martian, "192.168.0.1": private, "10.0.0.8": private, "10.0.0.1": noSvc,
	} {
		if got := s.Decide(tcp(to(a), 443)); got != want {
			t.Errorf("%s: %v %v", a, got.Verdict, got.Outcome)
		}
	}
	if got := s.Decide(udp(firstIP, 53)); got != toLocal {
		t.Errorf("DNS: %v", got)
	}
}

// the rules govern the network's own pair; what is own stays closed.
func TestPair(t *testing.T) {
	pair := []netip.Addr{to("192.0.2.20"), to("192.0.2.21")}
	for _, loopback := range []bool{false, true} {
		c := config(ModeAllow, Rule{CIDRs: cidrs("192.0.2.21/32"), Verdict: RuleReject})
		c.Pair, c.Loopback = pair, loopback
		c.Own = append(c.Own, to("192.0.2.22"))
		s := compile(t, c).With(sandbox, function)
		for a, want := range map[string]Decision{"192.0.2.20": pass, "192.0.2.21": refuse, "192.0.2.22": own} {
			if got := s.Decide(udp(to(a), 443)); got != want {
				t.Errorf("loopback %v: %s: %v %v", loopback, a, got.Verdict, got.Outcome)
			}
		}
		c.Own = append(c.Own, pair[0])
		if got := compile(t, c).With(sandbox, function).Decide(udp(pair[0], 443)); got != own {
			t.Errorf("an address of a host: %v %v", got.Verdict, got.Outcome)
		}
		for range compile(t, c).With(sandbox, function).Subjects() {
			break // an iterator that is left early must not go on
		}
	}
}

// block by block, rules that allow everything give what the class of
// the address gives, in a region of the Internet and in one of loopback.
func TestEveryBlockIsAnsweredByItsClass(t *testing.T) {
	want := map[packet.Class]Decision{
		packet.ClassGlobal: pass, packet.ClassLoopback: refused, packet.ClassLinkLocal: refused,
		packet.ClassThisNetwork: martian, packet.ClassMulticast: martian, packet.ClassReserved: martian, packet.ClassBroadcast: martian,
		packet.ClassPrivate: private, packet.ClassShared: private,
	}
	c := config(ModeAllow)
	for _, loopback := range []bool{false, true} {
		if c.Loopback = loopback; loopback {
			want[packet.ClassGlobal], want[packet.ClassLoopback] = refused, pass
		}
		s := compile(t, c).With(sandbox, function)
		for block := range 1 << 16 {
			a := netip.AddrFrom4([4]byte{byte(block >> 8), byte(block), 255, 255})
			if got := s.Decide(tcp(a, 443)); got != want[packet.ClassOf(a)] {
				t.Errorf("loopback %v: %v (%v): %v %v", loopback, a, packet.ClassOf(a), got.Verdict, got.Outcome)
			}
		}
	}
}

func TestLocalServices(t *testing.T) {
	for _, mode := range []Mode{ModeAllow, ModeCustom, ModeDeny} {
		s := compile(t, config(mode)).With(sandbox, function)
		dns := refuse
		if mode == ModeAllow {
			dns = toLocal
		}
		for name, row := range map[string]struct {
			p    *packet.Packet
			want Decision
		}{
			"probe":        {udp(firstIP, packet.ProbePort), toLocal},
			"echo":         {echo(firstIP), toLocal},
			"DNS":          {udp(firstIP, 53), dns},
			"DNS on TCP":   {tcp(firstIP, 53), dns},
			"echo on TCP":  {tcp(firstIP, 7), noSvc},
			"SSH":          {tcp(firstIP, 22), noSvc},
			"WireGuard":    {udp(firstIP, 51820), noSvc},
			"echo reply":   {icmp(packet.KindICMPQuery, 0, firstIP), noSvc},
			"an ICMP fail": {icmp(packet.KindICMPError, 3, firstIP), noSvc},
		} {
			if got := s.Decide(row.p); got != row.want {
				t.Errorf("mode %d, %s: %v %v", mode, name, got.Verdict, got.Outcome)
			}
		}
	}
}

func TestDNSFollowsTheRules(t *testing.T) {
	for _, row := range []struct {
		name     string
		mode     Mode
		rules    []Rule
		udp, tcp Decision
	}{
		{"CIDRs only", ModeCustom, []Rule{{CIDRs: cidrs("198.51.100.0/24"), Verdict: RuleAllow}}, refuse, refuse},
		{"every CIDR is still only CIDRs", ModeCustom, []Rule{{CIDRs: cidrs("0.0.0.0/0"), Verdict: RuleAllow}}, refuse, refuse},
		{"a peer's CIDR around the network", ModeCustom, []Rule{{CIDRs: cidrs("10.0.0.0/8"), Verdict: RuleAllow}}, refuse, refuse},
		{"the first address by name", ModeCustom, []Rule{{CIDRs: cidrs("10.0.0.1/32"), Verdict: RuleAllow}}, toLocal, toLocal},
		{"everything", ModeCustom, []Rule{{Verdict: RuleAllow}}, toLocal, toLocal},
		{"the port", ModeCustom, []Rule{{Ports: []PortRange{{53, 53}}, Protocols: []packet.Proto{packet.UDP}, Verdict: RuleAllow}}, toLocal, refuse},
		{"another port", ModeCustom, []Rule{{Ports: []PortRange{{443, 443}}, Verdict: RuleAllow}}, refuse, refuse},
		{"another's rule", ModeCustom, []Rule{{Projects: []string{"blog"}, Verdict: RuleAllow}}, refuse, refuse},
		{"allowed, but the mode denies all", ModeDeny, []Rule{{Verdict: RuleAllow}}, refuse, refuse},
		{"silenced", ModeDeny, []Rule{{Verdict: RuleDrop}}, silence, silence},
		{"foreign CIDR denied", ModeAllow, []Rule{{CIDRs: cidrs("198.51.100.0/24"), Verdict: RuleReject}}, toLocal, toLocal},
		{"private space denied", ModeAllow, []Rule{{CIDRs: cidrs("10.0.0.0/8", "192.168.0.0/16"), Verdict: RuleReject}}, toLocal, toLocal},
		{"the network denied", ModeAllow, []Rule{{CIDRs: cidrs("10.0.0.0/16"), Verdict: RuleReject}}, refuse, refuse},
		{"the internet denied", ModeAllow, []Rule{{CIDRs: cidrs("0.0.0.0/0"), Verdict: RuleReject}}, refuse, refuse},
		{"half the internet denied", ModeAllow, []Rule{{CIDRs: cidrs("0.0.0.0/1"), Verdict: RuleDrop}}, silence, silence},
		{"everything denied", ModeAllow, []Rule{{Verdict: RuleDrop}}, silence, silence},
		{"everything denied to others", ModeAllow, []Rule{{Kinds: []string{"build"}, Verdict: RuleDrop}}, toLocal, toLocal},
		{"port 53 of TCP denied", ModeAllow, []Rule{{Ports: []PortRange{{1, 100}}, Protocols: []packet.Proto{packet.TCP}, Verdict: RuleReject}}, toLocal, refuse},
	} {
		s := compile(t, config(row.mode, row.rules...)).With(sandbox, function)
		if got := s.Decide(udp(firstIP, 53)); got != row.udp {
			t.Errorf("%s: UDP %v %v", row.name, got.Verdict, got.Outcome)
		}
		if got := s.Decide(tcp(firstIP, 53)); got != row.tcp {
			t.Errorf("%s: TCP %v %v", row.name, got.Verdict, got.Outcome)
		}
		if got := s.Decide(udp(firstIP, packet.ProbePort)); got != toLocal {
			t.Errorf("%s: the probe is %v", row.name, got)
		}
	}
}

func TestRules(t *testing.T) {
	allow := Rule{CIDRs: cidrs("198.51.100.0/24"), Ports: []PortRange{{443, 443}, {8000, 8999}}, Verdict: RuleAllow}
	for _, row := range []struct {
		name  string
		mode  Mode
		rules []Rule
		p     *packet.Packet
		want  Decision
	}{
		{"allow, no rule", ModeAllow, nil, tcp(outside, 443), pass},
		{"custom, no rule", ModeCustom, nil, tcp(outside, 443), refuse},
		{"deny, no rule", ModeDeny, nil, echo(outside), refuse},
		{"deny ignores what allows", ModeDeny, []Rule{{Verdict: RuleAllow}}, tcp(outside, 443), refuse},
		{"custom, allowed", ModeCustom, []Rule{allow}, tcp(outside, 443), pass},
		{"custom, allowed range", ModeCustom, []Rule{allow}, udp(outside, 8999), pass},
		{"custom, beyond the range", ModeCustom, []Rule{allow}, udp(outside, 9000), refuse},
		{"custom, below the range", ModeCustom, []Rule{allow}, udp(outside, 7999), refuse},
		{"custom, another network", ModeCustom, []Rule{allow}, tcp(to("198.51.101.1"), 443), refuse},
		{"ports match no ICMP", ModeCustom, []Rule{allow}, echo(outside), refuse},
		{"a CIDR matches ICMP", ModeCustom, []Rule{{CIDRs: cidrs("198.51.100.0/24"), Verdict: RuleAllow}}, echo(outside), pass},
		{"and ICMP errors", ModeCustom, []Rule{{CIDRs: cidrs("198.51.100.0/24"), Verdict: RuleAllow}}, icmp(packet.KindICMPError, 3, outside), pass},
		{"protocol", ModeCustom, []Rule{{Protocols: []packet.Proto{packet.UDP}, Verdict: RuleAllow}}, tcp(outside, 443), refuse},
		{"denied", ModeAllow, []Rule{{CIDRs: cidrs("198.51.100.0/24"), Verdict: RuleReject}}, tcp(outside, 443), refuse},
		{"dropped", ModeAllow, []Rule{{CIDRs: cidrs("198.51.100.0/24"), Verdict: RuleDrop}}, tcp(outside, 443), silence},
		{"a wide deny wins over a narrow allow", ModeCustom, []Rule{
			{CIDRs: cidrs("198.51.100.20/32"), Verdict: RuleAllow}, {CIDRs: cidrs("198.51.0.0/16"), Verdict: RuleReject}}, tcp(outside, 443), refuse},
		{"the first that denies", ModeAllow, []Rule{
			{CIDRs: cidrs("198.51.100.20/32"), Verdict: RuleDrop}, {Verdict: RuleReject}}, tcp(outside, 443), silence},
		{"deny of another port", ModeCustom, []Rule{
			{Ports: []PortRange{{25, 25}}, Verdict: RuleDrop}, {Verdict: RuleAllow}}, tcp(outside, 443), pass},
		{"port 65535", ModeCustom, []Rule{{Ports: []PortRange{{65535, 65535}}, Verdict: RuleAllow}}, tcp(outside, 65535), pass},
		{"port 1", ModeCustom, []Rule{{Ports: []PortRange{{1, 1}}, Verdict: RuleAllow}}, tcp(outside, 1), pass},
		{"project", ModeCustom, []Rule{{Projects: []string{"blog", "shop"}, Verdict: RuleAllow}}, tcp(outside, 443), pass},
		{"all four must match", ModeCustom, []Rule{{
			Projects: []string{"shop"}, Environments: []string{"production"}, Kinds: []string{"function"}, Runtimes: []string{"python"}, Verdict: RuleAllow}},
			tcp(outside, 443), refuse},
	} {
		s := compile(t, config(row.mode, row.rules...)).With(sandbox, function)
		if got := s.Decide(row.p); got != row.want {
			t.Errorf("%s: %v %v", row.name, got.Verdict, got.Outcome)
		}
	}
}

// TestPersistence: a snapshot does not change, whatever is made from it.
func TestPersistence(t *testing.T) {
	empty := compile(t, config(ModeCustom, Rule{Projects: []string{"shop"}, Verdict: RuleAllow}))
	one := empty.With(sandbox, function)
	renamed := one.With(sandbox, Subject{Project: "blog"})
	gone := renamed.With(other, function).Without(sandbox)
	none := Decision{Drop, packet.Unattached}
	for i, row := range []struct {
		s             *Snapshot
		first, second Decision
	}{{empty, none, none}, {one, pass, none}, {renamed, refuse, none}, {gone, none, pass}} {
		if got := row.s.Decide(tcp(outside, 443)); got != row.first {
			t.Errorf("snapshot %d: %v %v", i, got.Verdict, got.Outcome)
		}
		if got := row.s.Decide(from("10.0.0.8", tcp(outside, 443))); got != row.second {
			t.Errorf("snapshot %d, the other: %v %v", i, got.Verdict, got.Outcome)
		}
	}
	if len(one.classes) != 1 || len(renamed.classes) != 2 || len(gone.classes) != 2 {
		t.Errorf("%d, %d and %d classes", len(one.classes), len(renamed.classes), len(gone.classes))
	}
	for _, a := range []netip.Addr{firstIP, outside, {}, to("::1")} {
		if one.With(a, function) != one {
			t.Errorf("%v was attached", a)
		}
	}
	if got := one.Without(other).Without(netip.Addr{}).Decide(tcp(outside, 443)); got != pass {
		t.Errorf("removing who is not there: %v", got)
	}
}

// The caller keeps its lists, and may change them.
func TestCompileCopies(t *testing.T) {
	c := config(ModeAllow, Rule{CIDRs: cidrs("198.51.100.0/24"), Verdict: RuleReject})
	s := compile(t, c)
	c.Rules[0].CIDRs[0] = netip.MustParsePrefix("203.0.113.0/24")
	c.Rules[0].Verdict = RuleDrop
	if got := s.With(sandbox, function).Decide(tcp(outside, 443)); got != refuse {
		t.Errorf("%v %v", got.Verdict, got.Outcome)
	}
}

func TestCompileRefuses(t *testing.T) {
	rule := func(r Rule) Config {
		if r.Verdict == 0 {
			r.Verdict = RuleAllow
		}
		return config(ModeAllow, Rule{Verdict: RuleAllow}, r)
	}
	edit := func(f func(*Config)) Config {
		c := config(ModeAllow)
		f(&c)
		return c
	}
	for _, row := range []struct {
		want string
		c    Config
	}{
		{"network invalid Prefix", edit(func(c *Config) { c.Network = netip.Prefix{} })},
		{"write 10.0.0.0/16", edit(func(c *Config) { c.Network = netip.MustParsePrefix("10.0.0.1/16") })},
		{"not an IPv4 CIDR", edit(func(c *Config) { c.Network = netip.MustParsePrefix("fd00::/64") })},
		{"outside the network", edit(func(c *Config) { c.Gateway = to("10.1.0.1") })},
		{"outside the network", edit(func(c *Config) { c.Gateway = netip.Addr{} })},
		{"no mode 3", edit(func(c *Config) { c.Mode = 3 })},
		{"address 0 of the pair", edit(func(c *Config) { c.Pair = []netip.Addr{to("10.0.0.9")} })},
		{"own address 1", edit(func(c *Config) { c.Own[1] = to("::1") })},
		{"rule 1: an empty project", rule(Rule{Projects: []string{"a", ""}})},
		{"rule 1: an empty runtime", rule(Rule{Runtimes: []string{""}})},
		{"rule 1: destination 198.51.100.1/24 has bits set below its prefix length: write 198.51.100.0/24", rule(Rule{CIDRs: cidrs("198.51.100.1/24")})},
		{"rule 1: destination ::/0 is not an IPv4 CIDR", rule(Rule{CIDRs: cidrs("::/0")})},
		{"rule 1: destination invalid Prefix", rule(Rule{CIDRs: make([]netip.Prefix, 1)})},
		{"rule 1: ports 9-8 are no range", rule(Rule{Ports: []PortRange{{9, 8}}})},
		{"rule 1: ports 0-8 are no range", rule(Rule{Ports: []PortRange{{0, 8}}})},
		{"rule 1: protocol 47 is not translated", rule(Rule{Protocols: []packet.Proto{47}})},
		{"rule 1: ICMP has no ports", rule(Rule{Protocols: []packet.Proto{packet.ICMP}, Ports: []PortRange{{1, 2}}})},
		{"rule 1: there is no verdict 9", rule(Rule{Verdict: 9})},
		{"rule 0: there is no verdict 0", config(ModeAllow, Rule{})},
	} {
		s, err := Compile(row.c)
		if err == nil || s != nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%v, want %q", err, row.want)
		}
	}
	_, err := Compile(config(ModeAllow, Rule{}, Rule{Verdict: RuleAllow}, Rule{Verdict: 9}))
	if err == nil || !strings.Contains(err.Error(), "rule 0") || !strings.Contains(err.Error(), "rule 2") {
		t.Errorf("not all wrong rules are named: %v", err)
	}
}

// Every final decision has a reason, and only refusals have another than Pass.
func TestDecisionsAreExplained(t *testing.T) {
	for d := decision(0); d < numDecisions; d++ {
		got := d.Decision()
		switch unfinished := d == undecided || d == byRules || d == byRulesPeered; {
		case unfinished:
			if got != (Decision{Drop, packet.Unspecified}) {
				t.Errorf("decision %d: %v", d, got)
			}
		case got.Outcome == packet.Unspecified, (got.Outcome == packet.Pass) != (got.Verdict == Forward || got.Verdict == Local || got.Verdict == Peering):
			t.Errorf("decision %d: %v %v", d, got.Verdict, got.Outcome)
		}
	}
	if (Decision{}).Verdict != Drop {
		t.Error("the zero decision does not drop")
	}
	for v, want := range map[Verdict]string{Drop: "drop", Forward: "forward", Local: "local", Reject: "reject", Peering: "peering", 99: "unknown"} {
		if v.String() != want {
			t.Errorf("%d is %q", v, v)
		}
	}
}
