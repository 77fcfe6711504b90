package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

var across = Decision{Peering, packet.Pass}

// TestPeering (C-6): rules decide about peered destinations as about any other, in
// every mode and region; only the verdict is another. What lies inside a peered
// range and is ours stays closed.
func TestPeering(t *testing.T) {
	database, web := to("10.40.0.5"), to("10.40.0.80")
	deny := Rule{CIDRs: cidrs("10.40.0.80/32"), Ports: []PortRange{{80, 80}}, Verdict: RuleReject}
	allow := Rule{CIDRs: cidrs("10.40.0.0/24"), Protocols: []packet.Proto{packet.TCP}, Verdict: RuleAllow}
	for name, row := range map[string]struct {
		mode  Mode
		rules []Rule
		p     *packet.Packet
		want  Decision
	}{
		"allow":                         {ModeAllow, nil, tcp(database, 5432), across},
		"allow, UDP":                    {ModeAllow, nil, udp(database, 53), across},
		"allow, echo":                   {ModeAllow, nil, echo(database), across},
		"allow, ICMP error":             {ModeAllow, nil, icmp(packet.KindICMPError, 3, database), across},
		"allow, denied by a rule":       {ModeAllow, []Rule{deny}, tcp(web, 80), refuse},
		"allow, another port":           {ModeAllow, []Rule{deny}, tcp(web, 443), across},
		"deny":                          {ModeDeny, nil, tcp(database, 5432), refuse},
		"deny, allowed in vain":         {ModeDeny, []Rule{allow}, tcp(database, 5432), refuse},
		"custom":                        {ModeCustom, nil, tcp(database, 5432), refuse},
		"custom, allowed":               {ModeCustom, []Rule{allow}, tcp(database, 5432), across},
		"custom, denial wins":           {ModeCustom, []Rule{allow, deny}, tcp(web, 80), refuse},
		"custom, dropped":               {ModeCustom, []Rule{allow, {Verdict: RuleDrop}}, tcp(database, 5432), silence},
		"beside it":                     {ModeAllow, nil, tcp(to("10.41.0.5"), 5432), private},
		"a host of ours inside it":      {ModeAllow, nil, tcp(to("10.40.9.9"), 22), own},
		"a whole private block":         {ModeAllow, nil, tcp(to("100.64.0.1"), 22), across},
		"fragment":                      {ModeAllow, nil, icmp(packet.KindFragment, 0, database), Decision{Drop, packet.Fragment}},
		"from a source not attached":    {ModeAllow, nil, from("10.0.0.8", tcp(database, 5432)), Decision{Drop, packet.Unattached}},
		"from the peered network":       {ModeAllow, nil, from("10.40.0.5", tcp(database, 5432)), Decision{Drop, packet.SpoofedSource}},
		"a sandbox beside":              {ModeAllow, nil, tcp(other, 5432), private},
		"the first address has no such": {ModeAllow, nil, tcp(firstIP, 5432), noSvc},
	} {
		for _, loopback := range []bool{false, true} {
			c := config(row.mode, row.rules...)
			c.Own = append(c.Own, to("10.40.9.9"))
			c.Peered, c.Loopback = cidrs("10.40.0.0/16", "100.64.0.0/10"), loopback
			if got := compile(t, c).With(sandbox, function).Decide(row.p); got != row.want {
				t.Errorf("%s, loopback %v: %v %v, want %v %v", name, loopback, got.Verdict, got.Outcome, row.want.Verdict, row.want.Outcome)
			}
		}
	}
}

func TestPeeredRangesAreChecked(t *testing.T) {
	for text, want := range map[string]string{
		"198.51.100.0/24": "not private", "0.0.0.0/0": "not private", "8.0.0.0/6": "not private",
		"127.0.0.0/8": "not private", "169.254.0.0/16": "not private", "224.0.0.0/4": "not private",
		"10.0.3.0/24": "overlaps the network 10.0.0.0/16", "10.0.0.0/8": "overlaps", "10.40.0.1/16": "write 10.40.0.0/16", "fd00::/64": "not an IPv4",
	} {
		c := config(ModeAllow)
		c.Peered = []netip.Prefix{netip.MustParsePrefix("10.40.0.0/16"), netip.MustParsePrefix(text)}
		if _, err := Compile(c); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestAttached(t *testing.T) {
	s := compile(t, config(ModeDeny)).With(sandbox, function)
	for a, want := range map[netip.Addr]bool{sandbox: true, other: false, firstIP: false, outside: false, {}: false} {
		if got := s.Attached(a); got != want {
			t.Errorf("%v: %v", a, got)
		}
	}
	if s.Without(sandbox).Attached(sandbox) {
		t.Error("a sandbox that is gone is attached")
	}
}
