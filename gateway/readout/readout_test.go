package readout

import (
	"encoding/json"
	"net/netip"
	"testing"
)

// The wire form is that of docs/operations.md, which other programs read.
func TestWireForm(t *testing.T) {
	db := netip.MustParseAddrPort("192.0.2.80:5432")
	inner, ip := netip.MustParseAddr("10.20.7.7"), netip.MustParseAddr("203.0.113.10")
	use := PortUse{Protocol: "tcp", Destination: db, Used: 3, Held: 1, Left: 96}
	for _, c := range []struct {
		v    any
		want string
	}{
		{Ports{Network: "net_a", IPs: []IPPorts{{
			IP: ip, Draining: true, Shared: []PortUse{{Protocol: "udp", Used: 2, Left: 98}}, Busiest: []PortUse{use}, OthersAtMost: 4,
			Destination: &DestinationUse{PortUse: use, Users: 1, Sandboxes: []InnerUse{{Inner: inner, Sessions: 3}}},
			Sandboxes:   []SandboxUse{{Inner: inner, Sessions: 5, HalfOpen: 1, Ports: 5, TCP: 3, UDP: 1, ICMP: 1}},
		}}}, `{"network":"net_a","ips":[{"ip":"203.0.113.10","draining":true,` +
			`"shared":[{"protocol":"udp","used":2,"held":0,"left":98}],` +
			`"busiest":[{"protocol":"tcp","destination":"192.0.2.80:5432","used":3,"held":1,"left":96}],"othersAtMost":4,` +
			`"destination":{"protocol":"tcp","destination":"192.0.2.80:5432","used":3,"held":1,"left":96,"users":1,"sandboxes":[{"inner":"10.20.7.7","sessions":3}]},` +
			`"sandboxes":[{"inner":"10.20.7.7","sessions":5,"halfOpen":1,"ports":5,"tcp":3,"udp":1,"icmp":1}]}]}`},
		{Sessions{Network: "net_a", Next: "1.77", Sessions: []Session{{
			Protocol: "tcp", Inner: netip.AddrPortFrom(inner, 40000), External: netip.AddrPortFrom(ip, 2000), Remote: db, State: "established", Age: 5, Expires: 7440,
		}}}, `{"network":"net_a","sessions":[{"protocol":"tcp","inner":"10.20.7.7:40000","external":"203.0.113.10:2000","remote":"192.0.2.80:5432",` +
			`"state":"established","ageSeconds":5,"expiresInSeconds":7440}],"next":"1.77"}`},
		{Sessions{Network: "net_a", Sessions: []Session{}}, `{"network":"net_a","sessions":[]}`},
	} {
		if got, err := json.Marshal(c.v); err != nil || string(got) != c.want {
			t.Errorf("got %s, %v\nwant %s", got, err, c.want)
		}
	}
}
