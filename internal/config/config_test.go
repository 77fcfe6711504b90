package config

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/policy"
)

const minimal = `host: gw-a
region: iad1
secret_file: secret
desired_state: state.yaml
api: {token_file: token}
dns: {upstreams: [192.0.2.53]}
`

func TestDaemonDefaults(t *testing.T) {
	d, err := ReadDaemon("/etc/sallyport/sallyportd.yaml", strings.NewReader(minimal))
	if err != nil {
		t.Fatal(err)
	}
	want := Daemon{
		Roles: Roles{Control: true, Gateway: true},
		Host:  "gw-a", Region: "iad1", SecretFile: "/etc/sallyport/secret", DesiredState: "/etc/sallyport/state.yaml",
		StateFile: "/etc/sallyport/gateway-state.json",
		API:       API{Network: "unix", Address: "/run/sallyport/api.sock", TokenFile: "/etc/sallyport/token"},
		Admin:     Admin{Listen: netip.MustParseAddrPort("127.0.0.1:9469")},
		WireGuard: WireGuard{Ports: spec.PortRange{First: 51820, Last: 52843}},
		Uplink:    "sockets",
		Limits:    Limits{1 << 20, 1 << 20, 65536, 200_000, 65536, 16384, 4096, 20000, 4 << 20, 256 << 10, 4096, 1024},
		Timers:    Timers{300 * time.Second, 7440 * time.Second, 240 * time.Second, 60 * time.Second},
		Drain:     500 * time.Millisecond,
		Health:    Health{Interval: time.Second},
		Log:       Log{"info", "text"},
	}
	upstreams := d.DNS.Upstreams
	d.DNS = DNS{}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got  %+v\nwant %+v", d, want)
	}
	if !slices.Equal(upstreams, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}) {
		t.Errorf("upstreams: %v", upstreams)
	}
}

// Each row is a file and the whole error.
func TestErrorsSayWhere(t *testing.T) {
	daemon := func(r io.Reader) error { _, err := ReadDaemon("d.yaml", r); return err }
	sidecar := func(r io.Reader) error { _, err := ReadSidecar("s.yaml", r); return err }
	state := func(r io.Reader) error { _, err := ReadState("w.yaml", r); return err }
	for _, tc := range []struct {
		name string
		read func(io.Reader) error
		text string
		want []string
	}{
		{"unknown key", daemon, minimal + "hots: x\n", []string{
			`d.yaml:7:1: hots: unknown key; the keys here are roles, host, region, secret_file, region_secret_file, state_file, desired_state, control, api, admin, wireguard, uplink, sockets, tun, dns, limits, timers, drain, health, log`}},
		{"unknown inner key", daemon, minimal + "log:\n  levle: info\n", []string{
			`d.yaml:8:3: log.levle: unknown key; the keys here are level, format`}},
		{"nothing", daemon, "", []string{
			`d.yaml:1:1: region: is missing; write the name of this host's region, such as iad1`,
			`d.yaml:1:1: desired_state: is missing; name the file with the desired state`,
			`d.yaml:1:1: api.token_file: is missing; name the file with the API's bearer token`,
			`d.yaml:1:1: host: is missing; write the name that this host has in the desired state, such as gw-a`,
			`d.yaml:1:1: secret_file: is missing; name the file with this host's 32-byte secret`,
			`d.yaml:1:1: dns.upstreams: names no resolver; list the IPv4 addresses of those that sandboxes' queries go to`}},
		{"several, by line", daemon, "timers:\n  icmp: 5s\n  udp: 10\n" + strings.Replace(minimal, "gw-a", "GW", 1) + "limits:\n  sessions_per_ip: 0\n  pending_connects: many\n", []string{
			`d.yaml:2:9: timers.icmp: 5s is less than RFC 5508 REQ-2 allows; write 1m0s or more`,
			`d.yaml:3:8: timers.udp: "10" is not a length of time; write one such as 300s or 5m`,
			`d.yaml:4:7: host: "GW" is not a name; use lower-case letters, digits, - and .; write the name that this host has in the desired state, such as gw-a`,
			`d.yaml:11:20: limits.sessions_per_ip: 0 cannot be; write 1 to 268435456: as many as one dedicated address may carry`,
			`d.yaml:12:21: limits.pending_connects: "many" is not a whole number; write one such as 1000`}},
		{"API on the network", daemon, strings.Replace(minimal, "{token_file: token}", "{token_file: token, listen: 192.0.2.1:9470}", 1), []string{
			`d.yaml:5:34: api.listen: 192.0.2.1:9470 is not a loopback address, and the API's token would cross the network in the clear; write unix:///path, or 127.0.0.1 and a port`}},
		{"API on all addresses", daemon, strings.Replace(minimal, "{token_file: token}", `{token_file: token, listen: "0.0.0.0:9470"}`, 1), []string{
			`d.yaml:5:34: api.listen: 0.0.0.0:9470 is not a loopback address, and the API's token would cross the network in the clear; write unix:///path, or 127.0.0.1 and a port`}},
		{"API port 0", daemon, strings.Replace(minimal, "{token_file: token}", `{token_file: token, listen: "127.0.0.1:0"}`, 1), []string{
			`d.yaml:5:34: api.listen: port 0 would be another one at each start; write a port, such as 127.0.0.1:9470`}},
		{"API nowhere", daemon, strings.Replace(minimal, "{token_file: token}", "{token_file: token, listen: localhost}", 1), []string{
			`d.yaml:5:34: api.listen: "localhost" is not an address to listen at; write unix:///path, or a loopback address and a port, such as 127.0.0.1:9470`}},
		{"uplink", daemon, minimal + "uplink: raw\n", []string{`d.yaml:7:9: uplink: there is no "raw"; use sockets or tun`}},
		{"another uplink's section", daemon, minimal + "tun: {interface: eth0}\n", []string{`d.yaml:7:6: tun: has no use: the uplink is sockets; remove it, or write uplink: tun`}},
		{"another uplink's section, the other way", daemon, minimal + "uplink: tun\nsockets: {}\n", []string{`d.yaml:8:10: sockets: has no use: the uplink is tun; remove it, or write uplink: sockets`}},
		{"addresses on no interface", daemon, minimal + "sockets: {add_addresses_to: a/b}\n", []string{`d.yaml:7:29: sockets.add_addresses_to: "a/b" is not the name of an interface; write one of at most 15 bytes, such as eth0 (` + "`ip link`" + ` lists them)`}},
		{"tun on nothing", daemon, minimal + "uplink: tun\ntun: {announce: arp, next_hop: 192.0.2.1, table: 254, hook_timeout: 1h}\n", []string{
			`d.yaml:8:17: tun.announce: arp needs an interface to answer on; name it as tun.interface`,
			`d.yaml:8:32: tun.next_hop: is on no interface; name it as tun.interface`,
			`d.yaml:8:50: tun.table: 254 is the kernel's own table, or none; write another number of 1 to 2147483647, such as 8300`,
			`d.yaml:8:69: tun.hook_timeout: 1h0m0s cannot be; write 100ms to 1m0s`,
		}},
		{"tun to nobody", daemon, minimal + "uplink: tun\ntun: {announce: bgp, interface: eth0123456789abc, next_hop: 224.0.0.1}\n", []string{
			`d.yaml:8:17: tun.announce: there is no "bgp"; use none or arp`,
			`d.yaml:8:33: tun.interface: "eth0123456789abc" is not the name of an interface; write one of at most 15 bytes, such as eth0 (` + "`ip link`" + ` lists them)`,
			`d.yaml:8:61: tun.next_hop: 224.0.0.1 is not the IPv4 address of a router; write one such as 192.0.2.1`,
		}},
		{"ports", daemon, minimal + "wireguard: {ports: 52000-51000, address: 0.0.0.0}\n", []string{
			`d.yaml:7:20: wireguard.ports: "52000-51000" is not a port or a range of ports; write one such as 443 or 1000-2000`,
			`d.yaml:7:42: wireguard.address: 0.0.0.0 is not the address of a host; write the one at which workers reach this host, or leave it out`}},
		{"resolvers", daemon, strings.Replace(minimal, "192.0.2.53", "192.0.2.53, '2001:db8::1', dns.example", 1), []string{
			`d.yaml:6:31: dns.upstreams[1]: "2001:db8::1" is not the IPv4 address of a resolver; write one such as 192.0.2.53 or 192.0.2.53:5353`,
			`d.yaml:6:46: dns.upstreams[2]: "dns.example" is not the IPv4 address of a resolver; write one such as 192.0.2.53 or 192.0.2.53:5353`}},
		{"one destination takes all", daemon, minimal + "limits: {pending_connects: 5}\n", []string{
			`d.yaml:7:9: limits.pending_connects_per_destination: 1024 is more than limits.pending_connects, 5: one dead destination could take all of them; write less`}},
		{"limits of sandboxes", daemon, minimal + "limits: {ports_per_sandbox: 0, half_open_per_ip: -1, fragment_bytes: 1000}\n", []string{
			`d.yaml:7:9: limits.fragment_bytes_per_sandbox: 262144 is more than limits.fragment_bytes, 1000: one sandbox could take all of them; write less`,
			`d.yaml:7:29: limits.ports_per_sandbox: 0 cannot be; write 1 to 268435456: as many as one sandbox may hold`,
			`d.yaml:7:50: limits.half_open_per_ip: -1 cannot be; write 1 to 268435456: as many as all sandboxes of one dedicated address may have waiting`}},
		{"log", daemon, minimal + "log: {level: loud, format: xml}\n", []string{
			`d.yaml:7:14: log.level: there is no "loud"; use debug or info or warn or error`,
			`d.yaml:7:28: log.format: there is no "xml"; use text or json`}},
		{"no role", daemon, minimal + "roles: []\n", []string{
			`d.yaml:7:8: roles: names no part of the daemon; write [control, gateway], or one of them`}},
		{"unknown role", daemon, minimal + "roles: [gateway, worker]\n", []string{
			`d.yaml:7:18: roles[1]: there is no "worker"; use control or gateway`}},
		{"control plane here and there", daemon, minimal + "control: {api: 'unix:///a', token_file: t}\n", []string{
			`d.yaml:7:10: control: has no use: this daemon is the control plane itself; remove it, or write roles: [gateway]`}},
		{"gateway alone, nothing else", daemon, "roles: [gateway]\n", []string{
			`d.yaml:1:1: region: is missing; write the name of this host's region, such as iad1`,
			`d.yaml:1:1: control.token_file: is missing; name the file with the API's bearer token`,
			`d.yaml:1:1: control.api: is missing; write where the region's control API is: unix:///path or http://127.0.0.1:port`,
			`d.yaml:1:1: host: is missing; write the name that this host has in the desired state, such as gw-a`,
			`d.yaml:1:1: secret_file: is missing; name the file with this host's 32-byte secret`,
			`d.yaml:1:1: dns.upstreams: names no resolver; list the IPv4 addresses of those that sandboxes' queries go to`}},
		{"gateway alone, with what the control plane has", daemon, minimal + "roles: [gateway]\ncontrol: {api: 'http://203.0.113.9:80', token_file: t}\n", []string{
			`d.yaml:4:16: desired_state: has no use: the control plane has it, and it runs elsewhere; remove it, or add control to roles`,
			`d.yaml:5:6: api: has no use: the control plane serves it, and it runs elsewhere; remove it, or add control to roles`,
			`d.yaml:8:16: control.api: 203.0.113.9:80 is not a loopback address, and the token would cross the network in the clear; write unix:///path or http://127.0.0.1:port`}},
		{"control plane alone, nothing else", daemon, "roles: [control]\n", []string{
			`d.yaml:1:1: region: is missing; write the name of this host's region, such as iad1`,
			`d.yaml:1:1: desired_state: is missing; name the file with the desired state`,
			`d.yaml:1:1: api.token_file: is missing; name the file with the API's bearer token`}},
		{"one file for two purposes", daemon, minimal + "state_file: ./secret\nregion_secret_file: secret\n", []string{
			`d.yaml:7:13: state_file: secret is a secret, and would be written over; name a file of its own`,
			`d.yaml:8:21: region_secret_file: secret is this host's own secret; name the file that all hosts of the region have a copy of`}},
		{"drain", daemon, minimal + "drain: 2m\n", []string{`d.yaml:7:8: drain: 2m0s cannot be; write 0s to 1m0s`}},
		{"health", daemon, minimal + "health: {interval: 1ms, targets: ['[2001:db8::1]:443', '0.0.0.0:1', '192.0.2.80:0', dns.example, '192.0.2.80:443']}\n", []string{
			`d.yaml:7:20: health.interval: 1ms cannot be; write 100ms to 1m0s`,
			`d.yaml:7:35: health.targets[0]: [2001:db8::1]:443 is not an IPv4 address and a port that can be connected to; write one such as 192.0.2.80:443`,
			`d.yaml:7:56: health.targets[1]: 0.0.0.0:1 is not an IPv4 address and a port that can be connected to; write one such as 192.0.2.80:443`,
			`d.yaml:7:69: health.targets[2]: 192.0.2.80:0 is not an IPv4 address and a port that can be connected to; write one such as 192.0.2.80:443`,
			`d.yaml:7:85: health.targets[3]: "dns.example" is not an IP address and a port; write one such as 127.0.0.1:9469`}},
		{"many targets", daemon, minimal + "health: {targets: [" + strings.Repeat("'192.0.2.80:443', ", 9) + "]}\n", []string{
			`d.yaml:7:19: health.targets: names 9 targets; name 8 or fewer: one that answers is enough`}},
		{"other regions", sidecar, "token_file: t\nregion: iad1\nregions:\n  iad1: {api: 'unix:///a', token_file: t}\n  CLE1: {api: 'unix:///a', token_file: t}\n  cle1:\n    api: https://api.example\n  fra1: {apy: x}\n", []string{
			`s.yaml:4:3: regions[iad1]: is this worker's own region; write its API as api and token_file`,
			`s.yaml:5:3: regions[CLE1]: "CLE1" is not the name of a region; use lower-case letters, digits, - and .`,
			`s.yaml:6:3: regions[cle1].token_file: is missing; name the file with the bearer token of that region's API`,
			`s.yaml:7:10: regions[cle1].api: "https://api.example" is not the address of a control API; write unix:///path or http://127.0.0.1:port`,
			`s.yaml:8:3: regions[fra1].token_file: is missing; name the file with the bearer token of that region's API`,
			`s.yaml:8:3: regions[fra1].api: is missing; write where that region's control API is: unix:///path or http://127.0.0.1:port`,
			`s.yaml:8:10: regions[fra1].apy: unknown key; the keys here are api, token_file`}},
		{"regions as a list", sidecar, "token_file: t\nregion: iad1\nregions: [cle1]\n", []string{
			`s.yaml:3:10: regions: a list stands where names are wanted; write one line per name, with what belongs to it below`}},
		{"failover", sidecar, "token_file: t\nregion: iad1\nfailover:\n  probe: 1ms\n  probe_standby: 2m\n  probe_suspect: 1s\n  misses: 0\n  misses_busy: 101\n  hold: 0s\n", []string{
			`s.yaml:4:10: failover.probe: 1ms cannot be; write 10ms to 10s`,
			`s.yaml:5:18: failover.probe_standby: 2m0s cannot be; write 10ms to 1m0s`,
			`s.yaml:6:18: failover.probe_suspect: 1s is more than failover.probe, 1ms: a suspect would be asked less often than before; write less`,
			`s.yaml:7:11: failover.misses: 0 cannot be; write 1 to 100`,
			`s.yaml:8:16: failover.misses_busy: 101 cannot be; write 1 to 100`,
			`s.yaml:9:9: failover.hold: 0s cannot be; write 10ms to 24h0m0s`}},
		{"failover out of order", sidecar, "token_file: t\nregion: iad1\nfailover: {probe: 2s, misses: 6}\n", []string{
			`s.yaml:3:11: failover.probe_standby: 1s is less than failover.probe, 2s: the gateways that wait would be asked more often than the one in use; write more`,
			`s.yaml:3:11: failover.misses_busy: 5 is less than failover.misses, 6: load would pass for death; write as many or more`}},
		{"long socket", sidecar, "token_file: t\nregion: iad1\nsocket: /" + strings.Repeat("x", 107) + "\n", []string{
			`s.yaml:3:9: socket: the path /` + strings.Repeat("x", 107) + ` has 108 bytes, more than the 107 that a unix socket can have; choose a shorter one`}},
		{"API of a sidecar", sidecar, "token_file: t\nregion: iad1\napi: http://203.0.113.9:80\n", []string{
			`s.yaml:3:6: api: 203.0.113.9:80 is not a loopback address, and the token would cross the network in the clear; write unix:///path or http://127.0.0.1:port`}},
		{"API of a sidecar, by name", sidecar, "token_file: t\nregion: iad1\napi: https://api.example\n", []string{
			`s.yaml:3:6: api: "https://api.example" is not the address of a control API; write unix:///path or http://127.0.0.1:port`}},
		{"text for a mapping", sidecar, "token_file: t\nregion: iad1\nlog: loud\n", []string{
			`s.yaml:3:6: log: a single value stands where keys are wanted; write keys such as level, format`}},
		{"truth for text", sidecar, "token_file: t\nregion: true\n", []string{
			`s.yaml:2:9: region: true is not text; write it in quotes if text is meant`}},
		{"syntax", state, "teams:\n  - id: [x\n", nil},
		{"tab", state, "teams:\n\t- id: x\n", nil},
		{"key twice", state, "teams: []\nteams: []\n", nil},
		{"two documents", state, "teams: []\n---\nregions: []\n", []string{`w.yaml:3:1: a second YAML document begins here; write one document per file`}},
		{"alias", state, "teams: &t []\nregions: *t\n", []string{
			`w.yaml:1:8: teams: anchors, aliases and tags are not read here; write the value out`,
			`w.yaml:2:10: regions: anchors, aliases and tags are not read here; write the value out`}},
		{"list for text", state, "teams:\n  - id: [x]\n", []string{`w.yaml:2:9: teams[0].id: a list is not text; write one such as "text"`}},
		{"mapping for a list", state, "teams:\n  id: x\n", []string{`w.yaml:2:3: teams: a mapping stands where a list is wanted; write [a, b], or one line with a dash per entry`}},
		{"address", state, "regions:\n  - name: iad1\n    pool: [203.0.113.0/28]\n    hosts: [{name: a, endpoint: gw.example}]\n", []string{
			`w.yaml:4:33: regions[0].hosts[0].endpoint: "gw.example" is not an IP address; write one such as 203.0.113.7`}},
		{"pair of three", state, "networks:\n  - pair: [203.0.113.1, 203.0.113.2, 203.0.113.3]\n", []string{
			`w.yaml:2:11: networks[0].pair: the list has 3 entries; write exactly 2`}},
		{"not a CIDR", state, "networks:\n  - cidr: 10.20/16\n", []string{`w.yaml:2:11: networks[0].cidr: "10.20/16" is not a valid CIDR; write one such as 10.20.0.0/16`}},
		{"port", state, "networks:\n  - site: {port: 70000, hots: gw-a}\n", []string{
			`w.yaml:2:18: networks[0].site.port: "70000" is not a port; write one such as 51820`,
			`w.yaml:2:25: networks[0].site.hots: unknown key; the keys here are host, port`}},
		{"builds", state, "projects:\n  - environments:\n      - builds: 'yes'\n", []string{
			`w.yaml:3:17: projects[0].environments[0].builds: "yes" is not a truth value; write one such as true or false`}},
		{"rules of the state", state, "teams: [{id: t}]\nprojects:\n  - id: p\n    team: x\n    environments:\n      - name: production\n        active:\n          - n\n", []string{
			`w.yaml:4:11: projects[0].team: there is no team "x"; name a team by its ID, or add it to teams`,
			`w.yaml:8:13: projects[0].environments[0].active[0]: there is no network "n"; name a network by its ID, or add it to networks`}},
		{"missing key, at what is around it", state, "teams:\n  - name: x\n", []string{
			`w.yaml:2:5: teams[0].id: "" is not an ID; use 1 to 64 letters, digits, - and _, beginning with a letter or digit`}},
		{"limits that contradict each other", daemon, minimal + "limits: {sessions_per_ip: 1000, sessions_per_sandbox: 1001}\n", []string{
			`d.yaml:7:55: limits.sessions_per_sandbox: 1001 for one sandbox is more than limits.sessions_per_ip, 1000, for all of them together; write less, or raise the other`}},
		{"a length of time in the state's values", state, "networks:\n- limits: {portsPerIP: 0, portsPerSandbox:}\n  timers: {udp: 0s, icmp: x}\n", []string{
			`w.yaml:3:27: networks[0].timers.icmp: "x" is not a length of time; write one such as 300s or 5m`}},
		{"a key that does not print", daemon, "\xef\xbb\xbf" + minimal + "\"\\e[31mhost\": x\nlog: {level: loud}\n", []string{
			`d.yaml:7:1: "\x1b[31mhost": unknown key; the keys here are roles, host, region, secret_file, region_secret_file, state_file, desired_state, control, api, admin, wireguard, uplink, sockets, tun, dns, limits, timers, drain, health, log`,
			`d.yaml:8:14: log.level: there is no "loud"; use debug or info or warn or error`}},
		{"too deep a list", state, "teams: " + strings.Repeat("[", maxDepth+1), []string{
			`w.yaml:1:72: more than 64 mappings and lists stand in one another here; is this the right file?`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.read(strings.NewReader(tc.text))
			var problems Problems
			if !errors.As(err, &problems) {
				t.Fatalf("got %v", err)
			}
			if tc.want == nil {
				if len(problems) != 1 || problems[0].Line < 2 || !strings.Contains(err.Error(), "not YAML: ") {
					t.Errorf("got %v", err)
				}
				return
			}
			if got := strings.Split(err.Error(), "\n"); !slices.Equal(got, tc.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}

// Each role is content with what it needs.
func TestRolesNeedTheirOwn(t *testing.T) {
	control, err := ReadDaemon("/e/d.yaml", strings.NewReader("roles: [control]\nregion: iad1\ndesired_state: w.yaml\napi: {token_file: token}\n"))
	if err != nil || control.Roles != (Roles{Control: true}) || control.Roles.String() != "control" || control.DesiredState != "/e/w.yaml" || control.StateFile != "" {
		t.Errorf("got %+v, %v", control, err)
	}
	gateway, err := ReadDaemon("/e/d.yaml", strings.NewReader("roles: [gateway]\nhost: gw-a\nregion: iad1\nsecret_file: /s/secret\nregion_secret_file: region\ncontrol: {api: 'unix://c.sock', token_file: token}\ndns: {upstreams: [192.0.2.53]}\nhealth: {targets: ['192.0.2.80:443']}\ndrain: 0s\n"))
	if err != nil || gateway.Roles != (Roles{Gateway: true}) || gateway.Roles.String() != "gateway" ||
		gateway.Control != (ControlPlane{API: "unix:///e/c.sock", TokenFile: "/e/token"}) || gateway.API != (API{}) ||
		gateway.StateFile != "/s/gateway-state.json" || gateway.RegionSecretFile != "/e/region" || gateway.Drain != 0 || len(gateway.Health.Targets) != 1 {
		t.Errorf("got %+v, %v", gateway, err)
	}
	both, err := ReadDaemon("/e/d.yaml", strings.NewReader(minimal+"roles: [gateway, control]\nstate_file: run/state.json\n"))
	if err != nil || both.Roles.String() != "control, gateway" || both.StateFile != "/e/run/state.json" {
		t.Errorf("got %+v, %v", both, err)
	}
}

func TestPathsBeginAtTheFile(t *testing.T) {
	s, err := ReadSidecar("/etc/sallyport/sidecar.yaml", strings.NewReader("token_file: ../token\nregion: iad1\nsocket: run/s.sock\napi: unix://run/api.sock\nadmin: {listen: '127.0.0.1:0'}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if s.TokenFile != "/etc/token" || s.Socket != "/etc/sallyport/run/s.sock" || s.API != "unix:///etc/sallyport/run/api.sock" || !s.Admin.Listen.IsValid() {
		t.Errorf("got %+v", s)
	}
	s, err = ReadSidecar("sidecar.yaml", strings.NewReader("token_file: /t\nregion: iad1\napi: http://127.0.0.1:9470\n"))
	if err != nil || s.TokenFile != "/t" || s.API != "http://127.0.0.1:9470" || s.Admin.Listen.IsValid() {
		t.Errorf("got %+v, %v", s, err)
	}
	d, err := ReadDaemon("/e/d.yaml", strings.NewReader(strings.Replace(minimal, "{token_file: token}", "{token_file: token, listen: 'unix://a.sock'}", 1)))
	if err != nil || d.API.Address != "/e/a.sock" {
		t.Errorf("got %+v, %v", d.API, err)
	}
	d, err = ReadDaemon("/e/d.yaml", strings.NewReader(strings.Replace(minimal, "{token_file: token}", "{token_file: token, listen: '[::1]:9470'}", 1)))
	if err != nil || d.API.Network != "tcp" || d.API.Address != "[::1]:9470" {
		t.Errorf("got %+v, %v", d.API, err)
	}
}

func TestStateTakesSingleAddresses(t *testing.T) {
	s, err := ReadState("w.yaml", strings.NewReader(`
regions:
- name: iad1
  pool: [203.0.113.1, 203.0.113.8/29]
  hosts:
  - {name: gw-a, endpoint: 192.0.2.1}
`))
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Regions[0].Pool; !slices.Equal(got, []netip.Prefix{netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("203.0.113.8/29")}) {
		t.Errorf("got %v", got)
	}
	if s, err := ReadState("w.yaml", strings.NewReader("teams:\nregions: ~\n")); err != nil || len(s.Teams) != 0 {
		t.Errorf("keys without values: %v, %v", s, err)
	}
}

func TestReaderFails(t *testing.T) {
	if _, err := ReadState("w.yaml", iotest.ErrReader(os.ErrPermission)); !errors.Is(err, os.ErrPermission) {
		t.Errorf("got %v", err)
	}
	if _, err := ReadState("w.yaml", io.LimitReader(zeros{}, maxFile+1)); err == nil || !strings.Contains(err.Error(), "MiB") {
		t.Errorf("got %v", err)
	}
}

// zeros is a file without end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// What a network says for itself goes before the daemon's settings. What the desired
// state lets it say is what the translator takes, down to the RFCs' floors.
func TestNATConfigOfNetwork(t *testing.T) {
	d, err := ReadDaemon("d.yaml", strings.NewReader(minimal))
	if err != nil {
		t.Fatal(err)
	}
	external := netip.MustParseAddr("203.0.113.1")
	n := spec.Network{
		TCPMapping: spec.MapEndpointIndependent, PortBlock: 64,
		Timers: spec.Timers{UDP: 120 * time.Second, TCPEstablished: 7440 * time.Second, TCPTransitory: 240 * time.Second, ICMP: 60 * time.Second},
		Limits: spec.Limits{SessionsPerIP: 91, PortsPerIP: 92, HalfOpenPerIP: 93, NewFlowsPerSecondPerIP: 94, SessionsPerSandbox: 85, PortsPerSandbox: 86, HalfOpenPerSandbox: 87, NewFlowsPerSecond: 88},
	}
	valid := func(change func(*spec.Network)) (inState, inTable bool) {
		w := n
		change(&w)
		w.ID = "net_x"
		inState = true
		for _, p := range (spec.State{Networks: []spec.Network{w}}).Validate() {
			if strings.Contains(p.Path, "timers") || strings.Contains(p.Path, "limits") || strings.Contains(p.Path, "portBlock") {
				inState = false
			}
		}
		c := NATConfig(d, w, external)
		c.Seed[0] = 1
		_, err := nat.New(c)
		return inState, err == nil
	}
	c := NATConfig(d, n, external)
	if c.TCPMapping != nat.EndpointIndependent || c.PortBlock != 64 || c.MaxSessions != 91 ||
		c.Network != (nat.NetworkLimits{Ports: 92, HalfOpen: 93, NewPerSecond: 94}) ||
		c.Limits != (nat.Limits{Sessions: 85, Ports: 86, HalfOpen: 87, NewPerSecond: 88}) ||
		c.Timers != (nat.Timers{UDP: n.Timers.UDP, TCPEstablished: n.Timers.TCPEstablished, TCPOpening: n.Timers.TCPTransitory, TCPClosing: n.Timers.TCPTransitory, ICMP: n.Timers.ICMP}) {
		t.Errorf("got %+v", c)
	}
	for name, change := range map[string]func(*spec.Network){
		"as it is":           func(*spec.Network) {},
		"UDP":                func(n *spec.Network) { n.Timers.UDP-- },
		"TCP established":    func(n *spec.Network) { n.Timers.TCPEstablished-- },
		"TCP transitory":     func(n *spec.Network) { n.Timers.TCPTransitory-- },
		"ICMP":               func(n *spec.Network) { n.Timers.ICMP-- },
		"blocks of 32":       func(n *spec.Network) { n.PortBlock = 32 },
		"blocks of 96":       func(n *spec.Network) { n.PortBlock = 96 },
		"blocks of 4096":     func(n *spec.Network) { n.PortBlock, n.Limits.PortsPerIP, n.Limits.PortsPerSandbox = 4096, 0, 0 },
		"blocks of 8192":     func(n *spec.Network) { n.PortBlock = 8192 },
		"most sessions":      func(n *spec.Network) { n.Limits.SessionsPerIP = 1 << 28 },
		"more than the most": func(n *spec.Network) { n.Limits.SessionsPerIP = 1<<28 + 1 },
	} {
		if inState, inTable := valid(change); inState != inTable {
			t.Errorf("%s: the desired state takes it: %v, the table: %v", name, inState, inTable)
		}
	}
}

// the host's own ports are reserved, and limits and timers are the configured ones.
func TestNATConfig(t *testing.T) {
	d, err := ReadDaemon("d.yaml", strings.NewReader(minimal+"wireguard: {ports: 51820-51822}\nadmin: {listen: '0.0.0.0:9469'}\nlimits: {sessions_per_ip: 1000, sessions_per_sandbox: 100, new_flows_per_second: 10, new_flows_per_second_per_ip: 30, ports_per_sandbox: 50, ports_per_ip: 500, half_open_per_sandbox: 20, half_open_per_ip: 200}\n"))
	if err != nil {
		t.Fatal(err)
	}
	external := netip.MustParseAddr("203.0.113.1")
	c := NATConfig(d, spec.Network{}, external)
	if !slices.Equal(c.Reserved, []uint16{51820, 51821, 51822, 9469}) {
		t.Errorf("reserved %v", c.Reserved)
	}
	if c.External != external || c.MaxSessions != 1000 || c.Limits != (nat.Limits{Sessions: 100, Ports: 50, HalfOpen: 20, NewPerSecond: 10}) ||
		c.Network != (nat.NetworkLimits{Ports: 500, HalfOpen: 200, NewPerSecond: 30}) ||
		c.Timers.UDP != 300*time.Second || c.Timers.TCPOpening != 240*time.Second || c.Timers.TCPClosing != 240*time.Second ||
		c.Timers.TCPEstablished != 7440*time.Second || c.Timers.ICMP != 60*time.Second {
		t.Errorf("got %+v", c)
	}
	c.Seed[0] = 1
	if _, err := nat.New(c); err != nil {
		t.Error(err)
	}
	d.Admin.Listen = netip.MustParseAddrPort("127.0.0.1:9469") // nobody outside can mistake that
	if got := NATConfig(d, spec.Network{}, external).Reserved; !slices.Equal(got, []uint16{51820, 51821, 51822}) {
		t.Errorf("reserved %v", got)
	}
	if NATConfig(Daemon{}, spec.Network{}, external).Reserved != nil {
		t.Error("ports are reserved that nobody configured")
	}
	if tcpMapping("") != nat.AddressAndPortDependent || tcpMapping(spec.MapEndpointIndependent) != nat.EndpointIndependent {
		t.Error("mappings are mixed up")
	}
}

func TestPolicyRules(t *testing.T) {
	cidr := netip.MustParsePrefix("198.51.100.0/24")
	mode, rules, err := PolicyRules(spec.Policy{Mode: spec.ModeCustom, Rules: []spec.Rule{
		{
			Projects: []string{"p"}, Environments: []string{"e"}, Kinds: []spec.Kind{spec.KindBuild}, Runtimes: []string{"go"}, CIDRs: []netip.Prefix{cidr},
			Ports: []spec.PortRange{{First: 1, Last: 2}}, Protocols: []spec.Protocol{"tcp", "udp", "icmp"}, Verdict: spec.VerdictAllow,
		},
		{Verdict: spec.VerdictReject}, {Verdict: spec.VerdictDrop},
	}})
	if err != nil || mode != policy.ModeCustom || len(rules) != 3 {
		t.Fatalf("got %v, %v, %v", mode, rules, err)
	}
	r := rules[0]
	if r.Projects[0] != "p" || r.Environments[0] != "e" || r.Kinds[0] != "build" || r.Runtimes[0] != "go" || r.CIDRs[0] != cidr ||
		r.Ports[0] != (policy.PortRange{First: 1, Last: 2}) || r.Protocols[0] != 6 || r.Protocols[1] != 17 || r.Protocols[2] != 1 {
		t.Errorf("got %+v", r)
	}
	if r.Verdict != policy.RuleAllow || rules[1].Verdict != policy.RuleReject || rules[2].Verdict != policy.RuleDrop {
		t.Errorf("verdicts are mixed up: %+v", rules)
	}
	for m, want := range map[spec.Mode]policy.Mode{"": policy.ModeAllow, "allow": policy.ModeAllow, "deny": policy.ModeDeny} {
		if got, _, err := PolicyRules(spec.Policy{Mode: m}); err != nil || got != want {
			t.Errorf("%q: got %v, %v", m, got, err)
		}
	}
	for _, p := range []spec.Policy{{Mode: "x"}, {Rules: []spec.Rule{{}}}, {Rules: []spec.Rule{{Protocols: []spec.Protocol{"x"}, Verdict: "allow"}}}} {
		if _, _, err := PolicyRules(p); err == nil {
			t.Errorf("%+v passed", p)
		}
	}
}

// Whatever the bytes: no panic, and an error that says where.
func FuzzReadState(f *testing.F) {
	for _, name := range []string{"desired-state.yaml", "sallyportd.yaml"} {
		b, err := os.ReadFile(deploy + "/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("a: &x [*x]"))
	f.Add([]byte("? {a: b}\n: c\n"))
	f.Add([]byte("teams: |\n  x\n"))
	f.Add([]byte("<<: {a: b}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, read := range []func() error{
			func() error { _, err := ReadState("x", strings.NewReader(string(b))); return err },
			func() error { _, err := ReadDaemon("x", strings.NewReader(string(b))); return err },
		} {
			var problems Problems
			if err := read(); err != nil && !errors.As(err, &problems) {
				t.Fatalf("an error that does not say where: %v", err)
			}
			for _, p := range problems {
				if p.Line < 1 || p.Column < 1 || p.Message == "" {
					t.Fatalf("%+v", p)
				}
			}
		}
	})
}
