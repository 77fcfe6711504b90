package config

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

// maxSocketPath is what sun_path holds (unix(7)), less the terminating zero.
const maxSocketPath = 107

// label checks a name that must be there.
func (d *document) label(key, value, remedy string) string {
	switch {
	case value == "":
		d.wrong(key, "is missing", remedy)
	case !spec.ValidLabel(value):
		d.wrong(key, fmt.Sprintf("%q is not a name", value), "use lower-case letters, digits, - and .; "+remedy)
	}
	return value
}

// file resolves a path that must be there.
func (d *document) file(key, value, remedy string) string {
	if value == "" {
		d.wrong(key, "is missing", remedy)
		return ""
	}
	return d.path(value)
}

// path takes a relative path from the folder of the file.
func (d *document) path(value string) string {
	if path.IsAbs(value) {
		return path.Clean(value)
	}
	return path.Join(path.Dir(d.name), value)
}

// socket resolves the path of a unix socket.
func (d *document) socket(key, value string) string {
	p := d.path(value)
	if len(p) > maxSocketPath {
		d.wrong(key, fmt.Sprintf("the path %s has %d bytes, more than the %d that a unix socket can have", p, len(p), maxSocketPath), "choose a shorter one")
	}
	return p
}

func (d *document) oneOf(key, value string, allowed ...string) string {
	if !slices.Contains(allowed, value) {
		d.wrong(key, fmt.Sprintf("there is no %q", value), "use "+strings.Join(allowed, " or "))
	}
	return value
}

func (d *document) log(raw rawLog) Log {
	return Log{
		Level:  d.oneOf("log.level", raw.Level, "debug", "info", "warn", "error"),
		Format: d.oneOf("log.format", raw.Format, "text", "json"),
	}
}

// api checks where the API is served: the token goes over the wire as it is, so
// that only a socket or the loopback interface will do.
func (d *document) api(raw rawAPI) API {
	const key = "api.listen"
	out := API{TokenFile: d.file("api.token_file", raw.TokenFile, "name the file with the API's bearer token")}
	if p, ok := strings.CutPrefix(raw.Listen, "unix://"); ok && p != "" {
		out.Network, out.Address = "unix", d.socket(key, p)
		return out
	}
	a, err := netip.ParseAddrPort(raw.Listen)
	switch {
	case err != nil:
		d.wrong(key, fmt.Sprintf("%q is not an address to listen at", raw.Listen), "write unix:///path, or a loopback address and a port, such as 127.0.0.1:9470")
	case !a.Addr().IsLoopback():
		d.wrong(key, fmt.Sprintf("%v is not a loopback address, and the API's token would cross the network in the clear", a), "write unix:///path, or 127.0.0.1 and a port")
	case a.Port() == 0:
		d.wrong(key, "port 0 would be another one at each start", "write a port, such as 127.0.0.1:9470")
	}
	out.Network, out.Address = "tcp", raw.Listen
	return out
}

// admin checks an address for metrics; zones have no place in it.
func (d *document) admin(key string, a netip.AddrPort) netip.AddrPort {
	if a.Addr().IsMulticast() || a.Addr().Zone() != "" {
		d.wrong(key, fmt.Sprintf("%v cannot be listened at", a), "write an address of this host and a port, such as 127.0.0.1:9469")
	}
	return a
}

func (d *document) wireGuard(raw rawWireGuard) WireGuard {
	if a := raw.Address; a.IsValid() && (a.IsUnspecified() || a.IsMulticast() || a.Zone() != "") {
		d.wrong("wireguard.address", fmt.Sprintf("%v is not the address of a host", a), "write the one at which workers reach this host, or leave it out")
	}
	if raw.Ports.First == 0 || raw.Ports.Last < raw.Ports.First {
		d.wrong("wireguard.ports", fmt.Sprintf("%v is not a range of ports", raw.Ports), "write one such as 51820-52843")
	}
	return WireGuard{Address: raw.Address, Ports: raw.Ports, NoGSO: !raw.GSO, NoGRO: !raw.GRO}
}

// upstreams reads the resolvers: an address, or an address and a port.
func (d *document) upstreams(raw []string) []netip.AddrPort {
	const port = 53
	if len(raw) == 0 {
		d.wrong("dns.upstreams", "names no resolver", "list the IPv4 addresses of those that sandboxes' queries go to")
	}
	out := make([]netip.AddrPort, 0, len(raw))
	for i, s := range raw {
		a, err := netip.ParseAddrPort(s)
		if alone, errAlone := netip.ParseAddr(s); errAlone == nil {
			a, err = netip.AddrPortFrom(alone, port), nil
		}
		if err != nil || !a.Addr().Is4() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
			d.wrong(fmt.Sprintf("dns.upstreams[%d]", i), fmt.Sprintf("%q is not the IPv4 address of a resolver", s), "write one such as 192.0.2.53 or 192.0.2.53:5353")
			continue
		}
		out = append(out, a)
	}
	return out
}

func (d *document) limits(raw rawLimits) Limits {
	for _, l := range []struct {
		key      string
		value    int
		max      int
		whatElse string
	}{
		{"sessions_per_ip", raw.SessionsPerIP, 1 << 28, "as many as one dedicated address may carry"},
		{"ports_per_ip", raw.PortsPerIP, 1 << 28, "as many as all sandboxes of one dedicated address may hold"},
		{"half_open_per_ip", raw.HalfOpenPerIP, 1 << 28, "as many as all sandboxes of one dedicated address may have waiting"},
		{"new_flows_per_second_per_ip", raw.NewFlowsPerSecondPerIP, 100_000_000, "as many as all sandboxes of one dedicated address may open"},
		{"sessions_per_sandbox", raw.SessionsPerSandbox, 1 << 28, "as many as one sandbox may hold"},
		{"ports_per_sandbox", raw.PortsPerSandbox, 1 << 28, "as many as one sandbox may hold"},
		{"half_open_per_sandbox", raw.HalfOpenPerSandbox, 1 << 28, "as many as one sandbox may have waiting"},
		{"new_flows_per_second", raw.NewFlowsPerSecond, 100_000_000, "as many as one sandbox may open"},
		{"fragment_bytes", raw.FragmentBytes, 1 << 30, "the bytes that one network's fragments may take"},
		{"fragment_bytes_per_sandbox", raw.FragmentBytesPerSandbox, 1 << 30, "the bytes that the fragments of one sandbox may take"},
		{"pending_connects", raw.PendingConnects, 1 << 20, "as many as one network may have waiting"},
		{"pending_connects_per_destination", raw.PendingConnectsPerDestination, 1 << 20, "as many as may wait for one destination"},
	} {
		if l.value < 1 || l.value > l.max {
			d.wrong("limits."+l.key, fmt.Sprintf("%d cannot be", l.value), fmt.Sprintf("write 1 to %d: %s", l.max, l.whatElse))
		}
	}
	if raw.PendingConnectsPerDestination > raw.PendingConnects && raw.PendingConnects >= 1 {
		d.wrong("limits.pending_connects_per_destination", fmt.Sprintf("%d is more than limits.pending_connects, %d: one dead destination could take all of them", raw.PendingConnectsPerDestination, raw.PendingConnects), "write less")
	}
	if raw.FragmentBytesPerSandbox > raw.FragmentBytes && raw.FragmentBytes >= 1 {
		d.wrong("limits.fragment_bytes_per_sandbox", fmt.Sprintf("%d is more than limits.fragment_bytes, %d: one sandbox could take all of them", raw.FragmentBytesPerSandbox, raw.FragmentBytes), "write less")
	}
	for _, l := range []struct {
		one, all           string
		oneValue, allValue int
	}{
		{"sessions_per_sandbox", "sessions_per_ip", raw.SessionsPerSandbox, raw.SessionsPerIP},
		{"ports_per_sandbox", "ports_per_ip", raw.PortsPerSandbox, raw.PortsPerIP},
		{"half_open_per_sandbox", "half_open_per_ip", raw.HalfOpenPerSandbox, raw.HalfOpenPerIP},
		{"new_flows_per_second", "new_flows_per_second_per_ip", raw.NewFlowsPerSecond, raw.NewFlowsPerSecondPerIP},
	} {
		if l.oneValue > l.allValue && l.allValue >= 1 {
			d.wrong("limits."+l.one, fmt.Sprintf("%d for one sandbox is more than limits.%s, %d, for all of them together", l.oneValue, l.all, l.allValue), "write less, or raise the other")
		}
	}
	return Limits(raw)
}

// longestTimer bounds every timer; above it lies a mistake in the unit.
const longestTimer = 30 * 24 * time.Hour

func (d *document) timers(raw rawTimers) Timers {
	for _, t := range []struct {
		key   string
		value time.Duration
		floor time.Duration
		rule  string
	}{
		{"udp", raw.UDP, 120 * time.Second, "RFC 4787 REQ-5"},
		{"tcp_established", raw.TCPEstablished, 7440 * time.Second, "RFC 5382 REQ-5"},
		{"tcp_transitory", raw.TCPTransitory, 240 * time.Second, "RFC 5382 REQ-5"},
		{"icmp", raw.ICMP, 60 * time.Second, "RFC 5508 REQ-2"},
	} {
		switch {
		case t.value < t.floor:
			d.wrong("timers."+t.key, fmt.Sprintf("%v is less than %s allows", t.value, t.rule), fmt.Sprintf("write %v or more", t.floor))
		case t.value > longestTimer:
			d.wrong("timers."+t.key, fmt.Sprintf("%v is too long", t.value), fmt.Sprintf("write %v or less", longestTimer))
		}
	}
	return Timers(raw)
}
