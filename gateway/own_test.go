package gateway

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/policy"
)

// TestOwnAddresses: no sandbox reaches a gateway host, by whichever address workers
// do; and a host may be reached by IPv6.
func TestOwnAddresses(t *testing.T) {
	h := &Host{state: testState(testNetwork("net_a", 1), testNetwork("net_b", 3))}
	h.cfg.Daemon = testDaemon()
	h.cfg.Daemon.WireGuard.Address = netip.MustParseAddr("127.66.0.1")
	h.state.Regions[0].Hosts = append(h.state.Regions[0].Hosts, spec.Host{Name: "gw-b", Endpoint: netip.MustParseAddr("2001:db8::1"), Bypass: netip.MustParseAddr("127.77.0.9")})
	if err := h.state.Validate().Err(); err != nil {
		t.Fatal(err)
	}
	s, err := h.compile(h.state.Networks[0])
	if err != nil {
		t.Fatal(err)
	}
	s = s.With(alice, policy.Subject{})
	for to, want := range map[string]policy.Decision{
		"127.0.0.1":  {Verdict: policy.Reject, Outcome: packet.OwnAddress}, // the endpoint
		"127.66.0.1": {Verdict: policy.Reject, Outcome: packet.OwnAddress}, // what workers are told
		"127.77.0.9": {Verdict: policy.Reject, Outcome: packet.OwnAddress}, // the bypass address
		"127.77.0.3": {Verdict: policy.Reject, Outcome: packet.OwnAddress}, // of another network's pair
		"127.77.0.2": {Verdict: policy.Forward, Outcome: packet.Pass},      // of its own pair
		"127.66.0.2": {Verdict: policy.Forward, Outcome: packet.Pass},
	} {
		p := parsed(t, udp(t, at(alice, 1), at(netip.MustParseAddr(to), 51820), nil))
		if got := s.Decide(&p); got != want {
			t.Errorf("%s: %v, want %v", to, got, want)
		}
	}
}

// an address of the pair that the sibling holds is reached by the uplink, unless it
// is on this machine, too.
func TestSiblingsAddressHere(t *testing.T) {
	for address, want := range map[string]policy.Decision{
		"127.5.5.5":   {Verdict: policy.Reject, Outcome: packet.OwnAddress},
		"203.0.113.1": {Verdict: policy.Forward, Outcome: packet.Pass},
	} {
		n := testNetwork("net_a", 1)
		n.Pair[1] = netip.MustParseAddr(address)
		h := &Host{state: testState(n)}
		h.cfg.Daemon = testDaemon()
		r := &h.state.Regions[0]
		r.Pool = append(r.Pool, netip.MustParsePrefix("203.0.113.0/24")) // no loopback region
		r.Hosts = append(r.Hosts, spec.Host{Name: "gw-b", Endpoint: netip.MustParseAddr("192.0.2.9")})
		s, err := h.compile(n)
		if err != nil {
			t.Fatal(err)
		}
		p := parsed(t, udp(t, at(alice, 1), at(n.Pair[1], 22), nil))
		if got := s.With(alice, policy.Subject{}).Decide(&p); got != want {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
	}
}

// no sandbox reaches this machine by an address that nobody told the gateway of,
// but the network's own pair, behind which are its sandboxes.
func TestMachinesAddresses(t *testing.T) {
	h := &Host{state: testState(testNetwork("net_a", 1))}
	h.cfg.Daemon = testDaemon()
	n := h.state.Networks[0]
	h.machine = []netip.Addr{netip.MustParseAddr("203.0.113.77"), n.Pair[0]}
	verdict := func(to netip.Addr) policy.Decision {
		t.Helper()
		s, err := h.compile(n)
		if err != nil {
			t.Fatal(err)
		}
		p := parsed(t, udp(t, at(alice, 1), at(to, 22), nil))
		return s.With(alice, policy.Subject{}).Decide(&p)
	}
	pass, refused := policy.Decision{Verdict: policy.Forward, Outcome: packet.Pass}, policy.Decision{Verdict: policy.Reject, Outcome: packet.OwnAddress}
	r := &h.state.Regions[0]
	if own := h.machinesOwn(*r, n); len(own) > 0 {
		t.Errorf("in a loopback region %v are refused", own)
	}
	r.Pool = append(r.Pool, netip.MustParsePrefix("203.0.113.0/24")) // no loopback region
	for i, want := range []policy.Decision{refused, pass} {
		if got := verdict(h.machine[i]); got != want {
			t.Errorf("%v: %v, want %v", h.machine[i], got, want)
		}
	}
	found, err := machineAddresses()
	if err != nil || !slices.Contains(found, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("this machine's addresses are %v, %v; want 127.0.0.1 among them", found, err)
	}
}
