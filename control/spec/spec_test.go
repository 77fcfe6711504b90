package spec

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
)

// valid is a state in which every kind of thing occurs.
func valid() State {
	return State{
		Teams: []Team{{ID: "team_a", Name: "Acme"}, {ID: "team_b"}},
		Regions: []Region{
			{
				Name: "iad1", Pool: prefixes("203.0.113.0/28"), API: "unix:///run/sallyport/api.sock",
				Hosts: []Host{{Name: "gw-a", Endpoint: addr("192.0.2.1"), Bypass: addr("192.0.2.101")}},
			},
			{
				Name: "fra1", Pool: prefixes("198.51.100.0/28", "198.51.100.64/32"),
				Hosts: []Host{{Name: "gw-a", Endpoint: addr("192.0.2.2")}, {Name: "gw-b", Endpoint: addr("192.0.2.3")}},
			},
		},
		Networks: []Network{
			{ID: "net_1", Name: "main", Team: "team_a", Region: "iad1", CIDR: prefix("10.20.0.0/16"), Pair: pair("203.0.113.1", "203.0.113.2"), Site: &Site{Host: "gw-a", Port: 51700}},
			{
				ID: "net_2", Name: "standby", Team: "team_a", Region: "fra1", CIDR: prefix("10.20.0.0/16"), Pair: pair("198.51.100.1", "198.51.100.64"),
				Hosts: []string{"gw-b", "gw-a"}, TCPMapping: MapEndpointIndependent,
				Policy: Policy{Mode: ModeCustom, Rules: []Rule{{
					Projects: []string{"prj_1"}, Environments: []string{"production"}, Kinds: []Kind{KindFunction}, Runtimes: []string{"nodejs"},
					CIDRs: prefixes("198.51.100.128/25"), Ports: []PortRange{{443, 443}, {1000, 2000}}, Protocols: []Protocol{ProtocolTCP}, Verdict: VerdictAllow,
				}}},
			},
			{
				ID: "net_3", Name: "main", Team: "team_b", Region: "iad1", CIDR: prefix("10.20.0.0/16"), Pair: pair("203.0.113.3", "203.0.113.4"),
				PortBlock: 512, Timers: Timers{120 * time.Second, 7440 * time.Second, 240 * time.Second, 60 * time.Second},
				Limits: Limits{1001, 1002, 1003, 1004, 605, 606, 607, 608},
			},
		},
		Projects: []Project{
			{ID: "prj_1", Name: "shop", Team: "team_a", Environments: []Environment{
				{Name: "production", Active: []string{"net_1"}, Passive: "net_2", Builds: true},
				{Name: "preview", Active: []string{"net_1", "net_2"}},
				{Name: "lonely"},
			}},
			{ID: "prj_2", Name: "shop", Team: "team_b", Environments: []Environment{{Name: "production", Active: []string{"net_3"}}}},
		},
		Peerings: []Peering{
			{ID: "peer_1", Network: "net_1", CIDRs: prefixes("10.30.0.0/16", "100.64.1.0/24"), PublicKey: peerKey(1), Endpoint: netip.MustParseAddrPort("192.0.2.66:51820"), State: PeeringActive, Requested: time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)},
			{ID: "peer_2", Network: "net_1", CIDRs: prefixes("10.20.3.0/24"), State: PeeringFailed},
			{ID: "peer_3", Network: "net_3", CIDRs: prefixes("10.30.0.0/16"), State: PeeringPending},
		},
	}
}

// peerKey is the n-th public key of another side.
func peerKey(n byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{n}, 32)) }

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func pair(a, b string) [2]netip.Addr {
	return [2]netip.Addr{addr(a), addr(b)}
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, prefix(s))
	}
	return out
}

func TestStateRoundTrips(t *testing.T) {
	before := valid()
	for name, codec := range map[string]struct {
		marshal   func(any) ([]byte, error)
		unmarshal func([]byte, any) error
	}{
		"json": {json.Marshal, json.Unmarshal},
		"yaml": {yaml.Marshal, func(b []byte, v any) error { return yaml.UnmarshalWithOptions(b, v, yaml.Strict()) }},
	} {
		text, err := codec.marshal(before)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var after State
		if err := codec.unmarshal(text, &after); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
		a, _ := json.Marshal(before)
		b, _ := json.Marshal(after)
		if string(a) != string(b) {
			t.Errorf("%s: came back different\n%s\n%s", name, a, b)
		}
		if err := after.Validate().Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckCIDR(t *testing.T) {
	for in, want := range map[string]string{
		"10.20.0.0/16":        "",
		"10.20.30.0/24":       "",
		"172.31.0.0/16":       "",
		"192.168.0.0/16":      "",
		"10.20.0.0":           "not a valid",
		"10.20.0.0/33":        "not a valid",
		"fd00::/16":           "not a valid",
		"::ffff:10.0.0.0/112": "not a valid",
		"10.20.0.1/16":        "not a valid",
		"":                    "not a valid",
		"203.0.113.0/24":      "not private",
		"172.32.0.0/16":       "not private",
		"172.0.0.0/8":         "not private",
		"100.64.0.0/16":       "not private",
		"127.0.0.0/16":        "not private",
		"10.0.0.0/7":          "not private",
		"10.0.0.0/15":         "prefix length",
		"10.20.30.128/25":     "prefix length",
		"192.168.7.1/32":      "prefix length",
	} {
		p, _ := netip.ParsePrefix(in) // what is none is the zero value
		problem, bad := checkCIDR(p)
		if bad != (want != "") || !strings.Contains(problem.Message, want) {
			t.Errorf("%q: got %v, want %q", in, problem, want)
		}
	}
}

func TestPortRange(t *testing.T) {
	for in, want := range map[string]PortRange{"443": {443, 443}, "1000-2000": {1000, 2000}, "1-65535": {1, 65535}, "7-7": {7, 7}} {
		if got, err := ParsePortRange(in); err != nil || got != want {
			t.Errorf("%q: got %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "0", "65536", "-1", "1-", "-", "2000-1000", "1-2-3", "http", "0-5", " 443", "+1"} {
		if got, err := ParsePortRange(in); err == nil {
			t.Errorf("%q was read as %v", in, got)
		}
	}
}

func TestPeeringExpires(t *testing.T) {
	asked := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		state PeeringState
		after time.Duration
		want  PeeringState
	}{
		{PeeringPending, PeeringExpiry - 1, PeeringPending},
		{PeeringPending, PeeringExpiry, PeeringExpired},
		{PeeringInitiating, PeeringExpiry, PeeringExpired},
		{PeeringActive, 100 * PeeringExpiry, PeeringActive},
		{PeeringProvisioning, PeeringExpiry, PeeringProvisioning},
		{PeeringRejected, PeeringExpiry, PeeringRejected},
	} {
		p := Peering{State: tc.state, Requested: asked}
		if got := (State{}).PeeringStateAt(p, asked.Add(tc.after)); got != tc.want {
			t.Errorf("%s after %v: got %s, want %s", tc.state, tc.after, got, tc.want)
		}
	}
	if got := (State{}).PeeringStateAt(Peering{State: PeeringPending}, asked); got != PeeringPending {
		t.Errorf("without a request's time: got %s", got)
	}
}

func TestCheckPublicKey(t *testing.T) {
	good := "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
	if err := CheckPublicKey(good); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{
		"", "x", good[:43], good + "=", good + "\n", strings.Replace(good, "=", "A", 1), strings.Replace(good, "g=", "h=", 1),
		"-" + good[1:], strings.Repeat("A", 43) + "=", strings.Repeat("A", 48),
	} {
		if CheckPublicKey(bad) == nil {
			t.Errorf("%q passed for a key", bad)
		}
	}
}

func TestResolve(t *testing.T) {
	s := valid()
	base := Query{Project: "prj_1", Environment: "production", Kind: KindFunction, Runtime: "nodejs", Region: "iad1"}
	with := func(change func(*Query)) Query { q := base; change(&q); return q }

	got, err := Resolve(s, base)
	if err != nil || got.Network.ID != "net_1" || got.Passive == nil || got.Passive.ID != "net_2" || got.Bypass != "" {
		t.Fatalf("got %+v, %v", got, err)
	}
	for name, tc := range map[string]struct {
		q       Query
		network string
		bypass  string
	}{
		"another region":          {with(func(q *Query) { q.Environment, q.Region = "preview", "fra1" }), "net_2", ""},
		"unheard of runtime":      {with(func(q *Query) { q.Runtime = "zig0.13" }), "net_1", ""},
		"build included":          {with(func(q *Query) { q.Kind = KindBuild }), "net_1", ""},
		"build not included":      {with(func(q *Query) { q.Kind, q.Environment = KindBuild, "preview" }), "", BypassBuilds},
		"passive":                 {with(func(q *Query) { q.Passive, q.Region = true, "fra1" }), "net_2", ""},
		"passive edge":            {with(func(q *Query) { q.Passive, q.Region, q.Runtime = true, "fra1", RuntimeEdge }), "", BypassEdge},
		"edge":                    {with(func(q *Query) { q.Runtime = RuntimeEdge }), "", BypassEdge},
		"edge without a network":  {with(func(q *Query) { q.Runtime, q.Environment = RuntimeEdge, "lonely" }), "", BypassEdge},
		"build without a network": {with(func(q *Query) { q.Kind, q.Environment = KindBuild, "lonely" }), "", BypassBuilds},
	} {
		got, err := Resolve(s, tc.q)
		if err != nil || got.Network.ID != tc.network || got.Bypass != tc.bypass || tc.q.Passive && got.Passive != nil {
			t.Errorf("%s: got %q, %q, %v", name, got.Network.ID, got.Bypass, err)
		}
	}

	var field *FieldError
	for _, q := range []Query{
		with(func(q *Query) { q.Kind = "cron" }), with(func(q *Query) { q.Kind = "" }), with(func(q *Query) { q.Runtime = "" }),
		with(func(q *Query) { q.Runtime = "NodeJS" }), with(func(q *Query) { q.Runtime = "edge " }), with(func(q *Query) { q.Project = "../x" }),
		with(func(q *Query) { q.Environment = "" }), with(func(q *Query) { q.Region = "IAD1" }),
	} {
		if _, err := Resolve(s, q); !errors.As(err, &field) {
			t.Errorf("%+v: got %v", q, err)
		}
	}
	var project *UnknownProjectError
	if _, err := Resolve(s, with(func(q *Query) { q.Project = "prj_9" })); !errors.As(err, &project) {
		t.Errorf("unknown project: got %v", err)
	}
	var env *UnknownEnvironmentError
	if _, err := Resolve(s, with(func(q *Query) { q.Environment = "staging" })); !errors.As(err, &env) || len(env.Known) != 3 {
		t.Errorf("unknown environment: got %v", err)
	}
	var none *NoNetworkError
	if _, err := Resolve(s, with(func(q *Query) { q.Region = "fra1" })); !errors.As(err, &none) || len(none.Regions) != 1 || none.Regions[0] != "iad1" {
		t.Errorf("no network: got %v", err)
	}
	var passive *NoPassiveError
	if _, err := Resolve(s, with(func(q *Query) { q.Passive = true })); !errors.As(err, &passive) || passive.Elsewhere != "fra1" || !strings.Contains(err.Error(), `in region "fra1", not in "iad1"`) {
		t.Errorf("passive elsewhere: got %v", err)
	}
	if _, err := Resolve(s, with(func(q *Query) { q.Passive, q.Environment = true, "preview" })); !errors.As(err, &passive) || passive.Elsewhere != "" || !strings.Contains(err.Error(), "no passive network") {
		t.Errorf("no passive network: got %v", err)
	}
}

func TestHostsOf(t *testing.T) {
	s := valid()
	for id, want := range map[string][2]string{"net_1": {"gw-a", "gw-a"}, "net_2": {"gw-b", "gw-a"}} {
		n, _ := s.Network(id)
		if got := s.HostsOf(n); got != want {
			t.Errorf("%s: got %v, want %v", id, got, want)
		}
	}
	n, _ := s.Network("net_2")
	n.Hosts = nil
	if got := s.HostsOf(n); got != [2]string{"gw-a", "gw-b"} {
		t.Errorf("two hosts: got %v", got)
	}
	if got := s.HostsOf(Network{Region: "nowhere"}); got != [2]string{} {
		t.Errorf("no region: got %v", got)
	}
}

func TestGatewayAddress(t *testing.T) {
	n := Network{CIDR: prefix("10.20.0.0/16")}
	if got := n.Gateway(); got != addr("10.20.0.1") {
		t.Errorf("got %v", got)
	}
}
