package sidecar

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/sallyport-net/sallyport/internal/packet"
)

var testInner = netip.MustParseAddr("10.0.0.5")

// Flows stay on the path that they were given first, while other flows get the
// present one, and memory is bounded. The oracle remembers everything.
func TestFlowsAreSticky(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := newFlowTable(0)
		oracle := map[flowKey]uint8{}
		now := packet.Instant(0)
		for range rapid.IntRange(1, 300).Draw(t, "packets") {
			// Within flowIdle nothing may be forgotten.
			now += packet.Instant(rapid.IntRange(0, int(flowIdle/300)).Draw(t, "gap"))
			key := flowKey{local: rapid.Uint16Range(0, 20).Draw(t, "port"), proto: packet.UDP}
			chosen := rapid.Uint8Range(0, 2).Draw(t, "chosen")
			want, known := oracle[key]
			if !known {
				want = chosen
				oracle[key] = chosen
			}
			if got := table.path(key, chosen, now); got != want {
				t.Fatalf("flow %v takes path %d, want %d", key, got, want)
			}
		}
	})
}

func TestFlowTableIsBounded(t *testing.T) {
	table := newFlowTable(0)
	keep := flowKey{proto: packet.TCP, port: 443}
	table.path(keep, 1, 0)
	for i := range 10 * maxFlows {
		table.path(flowKey{remote: [4]byte{192, 0, byte(i >> 16), byte(i >> 8)}, local: uint16(i), proto: packet.UDP}, 0, 1)
		if i%1000 == 0 && table.path(keep, 0, 1) != 1 {
			t.Fatalf("a flow in use was forgotten after %d others", i)
		}
		if n := table.len(); n > 2*maxFlows {
			t.Fatalf("%d flows are remembered, want at most %d", n, 2*maxFlows)
		}
	}
}

func TestIdleFlowsAreForgotten(t *testing.T) {
	table := newFlowTable(0)
	key := flowKey{proto: packet.TCP}
	table.path(key, 1, 0)
	table.path(flowKey{proto: packet.UDP}, 0, flowIdle)
	table.path(flowKey{proto: packet.UDP}, 0, 2*flowIdle)
	if got := table.path(key, 2, 2*flowIdle); got != 2 {
		t.Errorf("path %d after twice the idle time, want the present one, 2", got)
	}
}

func TestFlowTableAllocatesNothing(t *testing.T) {
	table := newFlowTable(0)
	i := uint16(0)
	if n := testing.AllocsPerRun(2000, func() {
		i = (i + 1) % 64
		table.path(flowKey{local: i}, 0, 1)
	}); n > 0.1 { // the maps grow a few times at first
		t.Errorf("%v allocations per packet", n)
	}
}

func udp(src, dst string, payload int) []byte {
	b := make([]byte, 28+payload)
	packet.BuildUDP(b, netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), make([]byte, payload), 64, 0)
	return b
}

func TestInspect(t *testing.T) {
	good := udp("10.0.0.5:1000", "192.0.2.1:53", 10)
	edit := func(f func(b []byte)) []byte {
		b := append([]byte(nil), good...)
		f(b)
		return b
	}
	withPorts := flowKey{remote: [4]byte{192, 0, 2, 1}, local: 1000, port: 53, proto: packet.UDP}
	without := flowKey{remote: [4]byte{192, 0, 2, 1}, proto: packet.UDP}
	for name, c := range map[string]struct {
		b    []byte
		want packet.Outcome
		key  flowKey
	}{
		"good":             {good, packet.Pass, withPorts},
		"trailing bytes":   {append(edit(func([]byte) {}), 1, 2), packet.Pass, withPorts},
		"first fragment":   {edit(func(b []byte) { b[6] = 0x20 }), packet.Pass, without},
		"later fragment":   {edit(func(b []byte) { b[6], b[7] = 0, 9 }), packet.Pass, without},
		"ICMP":             {edit(func(b []byte) { b[9] = 1 }), packet.Pass, flowKey{remote: withPorts.remote, proto: packet.ICMP}},
		"no ports":         {edit(func(b []byte) { b[3] = 22 }), packet.Pass, without},
		"empty":            {nil, packet.Malformed, flowKey{}},
		"short":            {good[:19], packet.Malformed, flowKey{}},
		"short header":     {edit(func(b []byte) { b[0] = 0x44 }), packet.Malformed, flowKey{}},
		"total too long":   {edit(func(b []byte) { b[3]++ }), packet.Malformed, flowKey{}},
		"total too short":  {edit(func(b []byte) { b[2], b[3] = 0, 19 }), packet.Malformed, flowKey{}},
		"IPv6":             {edit(func(b []byte) { b[0] = 0x60 }), packet.NotIPv4, flowKey{}},
		"spoofed":          {udp("10.0.0.6:1000", "192.0.2.1:53", 10), packet.SpoofedSource, flowKey{}},
		"nobody's source":  {udp("0.0.0.0:68", "192.0.2.1:67", 10), packet.SpoofedSource, flowKey{}},
		"this network":     {udp("10.0.0.5:68", "0.0.0.0:67", 10), packet.Martian, flowKey{}},
		"multicast":        {udp("10.0.0.5:68", "224.0.0.251:5353", 10), packet.Martian, flowKey{}},
		"broadcast":        {udp("10.0.0.5:68", "255.255.255.255:67", 10), packet.Martian, flowKey{}},
		"reserved":         {udp("10.0.0.5:68", "240.0.0.1:67", 10), packet.Martian, flowKey{}},
		"metadata service": {udp("10.0.0.5:68", "169.254.169.254:80", 10), packet.Pass, flowKey{remote: [4]byte{169, 254, 169, 254}, local: 68, port: 80, proto: packet.UDP}},
	} {
		key, got := inspect(c.b, testInner.As4())
		if got != c.want || key != c.key {
			t.Errorf("%s: %v, %v; want %v, %v", name, key, got, c.key, c.want)
		}
	}
}

// Whatever bytes come in, only packets with the sandbox's source pass, and none
// that is not one host's.
func FuzzInspect(f *testing.F) {
	f.Add(udp("10.0.0.5:1000", "192.0.2.1:53", 10))
	f.Add(udp("10.0.0.6:1000", "192.0.2.1:53", 0))
	f.Add([]byte{0x45})
	f.Fuzz(func(t *testing.T, b []byte) {
		key, outcome := inspect(b, testInner.As4())
		if outcome != packet.Pass {
			return
		}
		if b[0]>>4 != 4 || [4]byte(b[12:]) != testInner.As4() {
			t.Errorf("%x passes", b)
		}
		class := packet.ClassOf(netip.AddrFrom4(key.remote))
		if class == packet.ClassMulticast || class == packet.ClassBroadcast || class == packet.ClassReserved || class == packet.ClassThisNetwork {
			t.Errorf("destination %v of class %v passes", key.remote, class)
		}
	})
}
