package sidecar

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/sidecar/failover"
)

var testInner = netip.MustParseAddr("10.0.0.5")

// Flows stay on the route that they were given first, while other flows get the
// present one, and memory is bounded. The oracle remembers everything.
func TestFlowsAreSticky(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := newFlowTable(0)
		oracle := map[flowKey]failover.PathID{}
		now := packet.Instant(0)
		for range rapid.IntRange(1, 300).Draw(t, "packets") {
			// Within flowIdle nothing may be forgotten.
			now += packet.Instant(rapid.IntRange(0, int(flowIdle/300)).Draw(t, "gap"))
			key := flowKey{local: rapid.Uint16Range(0, 20).Draw(t, "port"), proto: packet.UDP}
			chosen := failover.PathID(rapid.IntRange(1, 3).Draw(t, "chosen"))
			want, known := oracle[key]
			if !known {
				want = chosen
				oracle[key] = chosen
			}
			if got, ok := table.egress(key, segment{}, nil, chosen, now); got != want || !ok {
				t.Fatalf("flow %v takes route %d, %v; want %d", key, got, ok, want)
			}
		}
	})
}

// loose sends a packet that is no TCP segment.
func loose(table *flowTable, key flowKey, chosen failover.PathID, now packet.Instant) failover.PathID {
	id, _ := table.egress(key, segment{}, nil, chosen, now)
	return id
}

func TestFlowTableIsBounded(t *testing.T) {
	table := newFlowTable(0)
	keep := flowKey{proto: packet.UDP, port: 443}
	loose(table, keep, 2, 0)
	for i := range 10 * maxFlows {
		loose(table, flowKey{remote: [4]byte{192, 0, byte(i >> 16), byte(i >> 8)}, local: uint16(i), proto: packet.UDP}, 1, 1)
		if i%1000 == 0 && loose(table, keep, 1, 1) != 2 {
			t.Fatalf("a flow in use was forgotten after %d others", i)
		}
		if n := table.len(); n > 2*maxFlows {
			t.Fatalf("%d flows are remembered, want at most %d", n, 2*maxFlows)
		}
	}
}

func TestIdleFlowsAreForgotten(t *testing.T) {
	table := newFlowTable(0)
	key := flowKey{proto: packet.UDP}
	loose(table, key, 2, 0)
	loose(table, flowKey{proto: packet.ICMP}, 1, flowIdle)
	loose(table, flowKey{proto: packet.ICMP}, 1, 2*flowIdle)
	if got := loose(table, key, 3, 2*flowIdle); got != 3 {
		t.Errorf("route %d after twice the idle time, want the present one, 3", got)
	}
}

// A flow that was seen while there was no route gets one later.
func TestFlowWithoutRoute(t *testing.T) {
	table := newFlowTable(0)
	key := flowKey{proto: packet.UDP}
	if got := loose(table, key, 0, 0); got != 0 {
		t.Errorf("route %d where there is none", got)
	}
	if got := loose(table, key, 1, 0); got != 1 {
		t.Errorf("route %d, want 1", got)
	}
}

func TestFlowTableAllocatesNothing(t *testing.T) {
	table := newFlowTable(0)
	syn := make([]byte, 60)
	i := uint16(0)
	if n := testing.AllocsPerRun(2000, func() {
		i = (i + 1) % 64
		loose(table, flowKey{local: i}, 1, 1)
		key := flowKey{local: i, proto: packet.TCP}
		table.egress(key, segment{ok: true, flags: packet.SYN}, syn, 1, 1)
		table.egress(key, segment{ok: true, flags: packet.ACK, ack: uint32(i)}, nil, 1, 1)
	}); n > 0.1 { // the maps grow a few times at first
		t.Errorf("%v allocations per packet", n)
	}
}

// conversation is a TCP connection of a table, step by step.
type conversation struct {
	table *flowTable
	key   flowKey
}

func (c conversation) out(flags packet.TCPFlags, ack uint32, chosen failover.PathID) (failover.PathID, bool) {
	return c.table.egress(c.key, segment{ok: true, flags: flags, ack: ack}, []byte{0x45, byte(ack)}, chosen, 0)
}

func (c conversation) in(flags packet.TCPFlags, seq uint32, route failover.PathID) bool {
	return c.table.ingress(c.key, segment{ok: true, flags: flags, seq: seq}, route)
}

func (c conversation) state() flowState {
	f, _ := c.table.peek(c.key)
	return f.state
}

func TestConnectionStates(t *testing.T) {
	const ack, syn, fin, rst = packet.ACK, packet.SYN, packet.FIN, packet.RST
	type step struct {
		in    bool
		flags packet.TCPFlags
		want  flowState
	}
	for name, steps := range map[string][]step{
		"closed by the sandbox":    {{false, syn, flowOpening}, {true, syn | ack, flowOpen}, {false, ack, flowOpen}, {false, fin | ack, flowFinOut}, {false, ack, flowFinOut}, {true, fin | ack, flowClosed}, {false, ack, flowClosed}},
		"closed by the other":      {{false, syn, flowOpening}, {true, syn | ack, flowOpen}, {true, fin | ack, flowFinIn}, {false, ack, flowFinIn}, {false, fin | ack, flowClosed}},
		"refused":                  {{false, syn, flowOpening}, {true, rst | ack, flowClosed}, {false, syn, flowOpening}},
		"repeated":                 {{false, syn, flowOpening}, {false, syn, flowOpening}, {true, syn | ack, flowOpen}, {true, syn | ack, flowOpen}},
		"reset by the sandbox":     {{false, syn, flowOpening}, {true, syn | ack, flowOpen}, {false, rst, flowClosed}},
		"reset by the other":       {{false, syn, flowOpening}, {true, syn | ack, flowOpen}, {true, rst, flowClosed}},
		"seen in its midst":        {{false, ack, flowOpen}, {false, fin | ack, flowFinOut}},
		"answer that was unseen":   {{false, syn, flowOpening}, {false, ack, flowOpen}},
		"a new one, the same port": {{false, syn, flowOpening}, {true, syn | ack, flowOpen}, {false, syn, flowOpening}},
	} {
		c := conversation{newFlowTable(0), flowKey{proto: packet.TCP, local: 1}}
		for i, s := range steps {
			if s.in {
				c.in(s.flags, 100, 1)
			} else {
				c.out(s.flags, 7, 1)
			}
			if got := c.state(); got != s.want {
				t.Errorf("%s: after step %d state %d, want %d", name, i, got, s.want)
			}
		}
		opening := c.state() == flowOpening
		if (c.table.syns.used == 1) != opening || c.table.syns.used > 1 {
			t.Errorf("%s: %d SYNs are kept, and opening is %v", name, c.table.syns.used, opening)
		}
	}
}

// What becomes of a flow when its route is lost depends on how far it is.
func TestLostRoute(t *testing.T) {
	const ack, syn, fin = packet.ACK, packet.SYN, packet.FIN
	table := newFlowTable(0)
	of := func(port uint16) conversation { return conversation{table, flowKey{proto: packet.TCP, local: port}} }
	opening, open, idle, closed := of(1), of(2), of(3), of(4)
	for _, c := range []conversation{opening, open, idle, closed} {
		c.out(syn, 0, 1)
	}
	for _, c := range []conversation{open, idle, closed} {
		c.in(syn|ack, 99, 1)
	}
	open.out(ack, 500, 1)
	closed.out(fin|ack, 100, 1)
	closed.in(fin|ack, 100, 1)
	udp := flowKey{proto: packet.UDP, local: 5}
	loose(table, udp, 1, 0)

	if f, _ := table.peek(idle.key); f.ack != 100 {
		t.Errorf("the next byte of a connection that was just answered is %d, want 100", f.ack)
	}
	table.losing = []failover.PathID{1}
	if id, ok := open.out(ack, 501, 1); id != 1 || !ok {
		t.Error("a route that is lost, but chosen, is not used")
	}
	for name, c := range map[string]struct {
		conversation
		flags packet.TCPFlags
		ok    bool
	}{
		"opening": {opening, syn, true}, "open": {open, ack, false}, "idle": {idle, fin | ack, false}, "closed": {closed, ack, true},
	} {
		if id, ok := c.out(c.flags, 600, 2); ok != c.ok || ok && id != 2 {
			t.Errorf("%s: route %d, alive %v; want 2, %v", name, id, ok, c.ok)
		}
	}
	if id := loose(table, udp, 2, 0); id != 2 {
		t.Errorf("a datagram takes route %d, want 2", id)
	}
	table.losing = nil
	if _, ok := open.out(ack, 700, 2); ok {
		t.Error("a lost connection lives again after the sweep")
	}
	if _, ok := open.out(packet.RST, 700, 2); ok {
		t.Error("a reset of a lost connection goes on")
	}
	if !open.in(packet.RST, 700, 1) || open.state() != flowLost {
		t.Error("what a lost route brings later makes a connection forget that it is lost")
	}
	if id, ok := open.out(syn, 0, 2); id != 2 || !ok {
		t.Error("a new connection with the ports of a lost one does not open")
	}
	// The answer to a SYN that has moved must not come by the old route.
	if opening.in(syn|ack, 1, 1) || !opening.in(syn|ack, 1, 2) {
		t.Error("a SYN that moved is not answered by the new route alone")
	}
	if !of(9).in(syn|ack, 1, 1) {
		t.Error("what is unknown is refused")
	}
}

func TestConnectionsOfARoute(t *testing.T) {
	table := newFlowTable(0)
	c := conversation{table, flowKey{proto: packet.TCP, local: 1}}
	loose(table, flowKey{proto: packet.UDP}, 1, 0)
	if table.connections(1) {
		t.Error("a datagram is a connection")
	}
	c.out(packet.SYN, 0, 1)
	table.turn(0)
	if !table.connections(1) || table.connections(2) {
		t.Error("a connection that opens is not there, or elsewhere")
	}
	c.out(packet.RST, 0, 1) // the old generation still says that it opens
	if table.connections(1) {
		t.Error("a closed connection is still there")
	}
}

// Every SYN that is kept is the last of its connection; there are never too many,
// and room is used again.
func TestSYNStore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s synStore
		places := map[flowKey]uint32{}
		last := map[flowKey]byte{}
		for i := range rapid.IntRange(1, 2000).Draw(t, "steps") {
			key := flowKey{local: rapid.Uint16Range(0, 400).Draw(t, "port")}
			at, known := places[key]
			if !known {
				at = noSYN
			}
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				s.forget(key, at)
				delete(places, key)
			default:
				last[key] = byte(i)
				places[key] = s.keep(key, []byte{byte(i), 1}, at, 0)
			}
			used := 0
			for _, slot := range s.slots {
				if slot.n > 0 {
					used++
				}
			}
			if used != s.used || len(s.slots) > maxSYNs {
				t.Fatalf("%d of %d places are used, counted %d", used, len(s.slots), s.used)
			}
		}
		kept := 0
		for key, at := range places {
			if b := s.find(key, at, synFresh); b != nil {
				kept++
				if b[0] != last[key] {
					t.Fatalf("SYN %d is kept, the last was %d", b[0], last[key])
				}
			}
		}
		if kept != s.used || len(last) <= minSYNs && kept != len(places) {
			t.Fatalf("%d of %d SYNs are found, %d kept", kept, len(places), s.used)
		}
	})
	var s synStore
	if at := s.keep(flowKey{}, make([]byte, synSize+1), noSYN, 0); at != noSYN || s.used != 0 {
		t.Error("a SYN that is too long is kept")
	}
	at := s.keep(flowKey{}, []byte{1}, noSYN, 5)
	if s.find(flowKey{}, at, 5+synFresh) == nil || s.find(flowKey{}, at, 6+synFresh) != nil {
		t.Error("a SYN is sent again when it is old, or not when it is fresh")
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
		key, seg, got := inspect(c.b, testInner.As4())
		if got != c.want || key != c.key || seg.ok {
			t.Errorf("%s: %v, %v, %v; want %v, %v", name, key, seg, got, c.key, c.want)
		}
	}
}

func TestInspectSegments(t *testing.T) {
	b := make([]byte, 60)
	h := packet.TCPHeader{
		Src: netip.MustParseAddrPort("10.0.0.5:1000"), Dst: netip.MustParseAddrPort("192.0.2.1:80"),
		Seq: 7, Ack: 9, Flags: packet.FIN | packet.ACK, TTL: 64,
	}
	b = b[:packet.BuildTCP(b, h, []byte("x"))]
	key, seg, outcome := inspect(b, testInner.As4())
	want := segment{seq: 7, ack: 9, flags: packet.FIN | packet.ACK, ok: true}
	if outcome != packet.Pass || seg != want || key != (flowKey{remote: [4]byte{192, 0, 2, 1}, local: 1000, port: 80, proto: packet.TCP}) {
		t.Errorf("%v, %+v, %v", key, seg, outcome)
	}
	h.Src, h.Dst = h.Dst, h.Src
	packet.BuildTCP(b, h, []byte("x"))
	if back, got, ok := turning(b); !ok || back != key || got != want {
		t.Errorf("back: %v, %+v, %v", back, got, ok)
	}
	h.Flags = packet.PSH | packet.ACK
	packet.BuildTCP(b, h, []byte("x"))
	for name, b := range map[string][]byte{"data": b, "short": b[:39], "UDP": udp("192.0.2.1:80", "10.0.0.5:1000", 20), "empty": nil} {
		if _, _, ok := turning(b); ok {
			t.Errorf("%s: a connection begins or ends", name)
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
		turning(b)
		key, _, outcome := inspect(b, testInner.As4())
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
