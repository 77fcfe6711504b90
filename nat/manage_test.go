package nat

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// One event per mapping of UDP and ICMP, and per connection of TCP, at its birth and at its end.
func TestEvents(t *testing.T) {
	l := newLab(t, nil)
	udp := must2(l.udpOut(box, web))(l, packet.Pass)
	must2(l.udpOut(box, other))(l, packet.Pass)
	id := must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	c := l.conn(box, web).open()
	born := l.now
	l.wait(30 * time.Second)
	c.finOut()
	c.finIn()
	l.wait(1000 * time.Second)
	l.settle()
	echo := netip.AddrPortFrom(external, id)
	want := []Event{
		{Kind: Created, Proto: packet.UDP, Inner: box, External: udp, At: born},
		{Kind: Created, Proto: packet.ICMP, Inner: box, External: echo, At: born},
		{Kind: Created, Proto: packet.TCP, Inner: box, External: c.external, Remote: web, At: born},
		{Kind: Closed, Proto: packet.UDP, Inner: box, External: udp, Reason: ReasonExpired, At: l.now},
		{Kind: Closed, Proto: packet.ICMP, Inner: box, External: echo, Reason: ReasonExpired, At: l.now},
		{Kind: Closed, Proto: packet.TCP, Inner: box, External: c.external, Remote: web, Reason: ReasonFinished, At: l.now},
	}
	got := l.events()
	if len(got) != len(want) {
		t.Fatalf("%d events, want %d: %+v", len(got), len(want), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("event %d is %+v, want %+v", i, got[i], want[i])
		}
	}
	if s := l.Stats(); s.Ended.Of(ReasonExpired) != 3 || s.Ended.Of(ReasonFinished) != 1 || s.Ended.Of(numReasons) != 0 {
		t.Errorf("ended %v", s.Ended)
	}
}

// L-6: a full buffer loses the newest events and counts them; order is kept across its end.
func TestEventBufferIsBounded(t *testing.T) {
	l := newLab(t, func(c *Config) { c.EventBuffer = 10 })
	for round := range 3 {
		for i := range 15 {
			must2(l.udpOut(netip.AddrPortFrom(box.Addr(), port(15*round+i)), web))(l, packet.Pass)
		}
		small := make([]Event, 4)
		for i := 0; ; {
			n := l.Drain(small)
			if n == 0 {
				break
			}
			for _, e := range small[:n] {
				if e.Inner.Port() != port(15*round+i) {
					t.Fatalf("round %d: event %d is of %v", round, i, e.Inner)
				}
				i++
			}
		}
	}
	if lost := l.Stats().EventsLost; lost != 15 {
		t.Errorf("%d events lost, want 15", lost)
	}
}

// A revoked address may end more sessions than events wait: each is told all the
// same, after those that were there before, and the memory is given back.
func TestNoClosedEventIsLost(t *testing.T) {
	const n = 100
	l := newLab(t, func(c *Config) { c.EventBuffer, c.MaxSessions = 10, n })
	for i := range n {
		must2(l.udpOut(netip.AddrPortFrom(box.Addr(), port(i)), web))(l, packet.Pass)
	}
	small := make([]Event, 7)
	if k := l.Drain(small); k != len(small) {
		t.Fatalf("%d events", k)
	}
	if k := l.Revoke(box.Addr(), l.now); k != n {
		t.Fatalf("%d sessions revoked, want %d", k, n)
	}
	closed := make(map[uint16]bool)
	for k := l.Drain(small); k > 0; k = l.Drain(small) {
		for _, e := range small[:k] {
			if e.Kind == Created && len(closed) > 0 {
				t.Errorf("%+v after one that came later", e)
			}
			if e.Kind == Closed {
				closed[e.External.Port()] = true
			}
		}
	}
	if len(closed) != n {
		t.Errorf("%d mappings were told to be closed, want %d", len(closed), n)
	}
	if lost := l.Stats().EventsLost; lost != n-10 {
		t.Errorf("%d events lost, want the %d of creation", lost, n-10)
	}
	if k := len(l.Table.events.chunks); k > 1 {
		t.Errorf("%d chunks kept", k)
	}
	// Beyond what the table may have, Closed events are lost like others.
	for round := range 3 {
		for i := range n {
			must2(l.udpOut(netip.AddrPortFrom(box.Addr(), port(round*n+i)), web))(l, packet.Pass)
		}
		l.Revoke(box.Addr(), l.now)
	}
	if k := l.Table.events.used; k != 10+n {
		t.Errorf("%d events wait, want %d", k, 10+n)
	}
}

// Refusals are told once a second and address, exhaustion once a second (C-11 C).
func TestRefusalsAreToldOncePerSecond(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.Sessions, c.Ports = 1, PortRange{2000, 2001} })
	must2(l.udpOut(box, web))(l, packet.Pass)
	must2(l.udpOut(box2, web))(l, packet.Pass)
	l.events()
	third := ap("10.0.0.4:1")
	for range 10 {
		must2(l.udpOut(box, other))(l, packet.SessionLimit)
		must2(l.udpOut(box2, other))(l, packet.SessionLimit)
		must2(l.udpOut(third, other))(l, packet.PortsExhausted)
		l.wait(200 * time.Millisecond)
	}
	count := map[EventKind]int{}
	for _, e := range l.events() {
		count[e.Kind]++
		if e.Kind == Refused && (e.Reason != ReasonSessions || e.Remote != other) {
			t.Errorf("%+v", e)
		}
	}
	if count[Refused] != 4 || count[Exhausted] != 2 {
		t.Errorf("in two seconds: %v, want 4 refused of 2 addresses and 2 exhausted", count)
	}
}

// Revoke takes all state of one inner address, and of no other.
func TestRevoke(t *testing.T) {
	for _, mode := range []Mapping{AddressAndPortDependent, EndpointIndependent} {
		l := newLab(t, func(c *Config) { c.TCPMapping = mode })
		at := must2(l.udpOut(box, web))(l, packet.Pass)
		must2(l.udpOut(box, other))(l, packet.Pass)
		must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
		gone := l.conn(box, web).open()
		l.conn(box, other).syn()
		stays := must2(l.udpOut(box2, web))(l, packet.Pass)
		l.events()
		if n := l.Revoke(box.Addr(), l.now); n != 5 {
			t.Errorf("%d sessions revoked, want 5", n)
		}
		if n := l.Revoke(box.Addr(), l.now) + l.Revoke(other.Addr(), l.now) + l.Revoke(netip.IPv6Loopback(), l.now); n != 0 {
			t.Errorf("%d sessions revoked of addresses that have none", n)
		}
		must2(l.udpIn(web, at))(l, packet.NoMapping)
		gone.mustRecv(packet.NoMapping, seg{flags: packet.ACK, seq: gone.in, ack: gone.out})
		gone.mustSend(packet.NoSession, seg{flags: packet.ACK, seq: gone.out, ack: gone.in})
		must2(l.udpIn(web, stays))(l, packet.Pass)
		e := l.events()
		if len(e) != 4 {
			t.Errorf("%d events, want 2 of mappings and 2 of connections", len(e))
		}
		for _, e := range e {
			if e.Kind != Closed || e.Reason != ReasonRevoked || e.Inner != box {
				t.Errorf("%+v", e)
			}
		}
		audit(t, l.Table)
	}
}

// A refused port is not given out again for the time of a hold: of UDP the
// whole port, of TCP towards that destination.
func TestPortRefused(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports = PortRange{2000, 2001} })
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	l.PortRefused(Flow{Proto: packet.UDP, External: at}, l.now)
	again := must2(l.udpOut(box, web))(l, packet.Pass)
	if again == at {
		t.Error("the refused port was given out again")
	}
	must2(l.udpOut(box2, other))(l, packet.PortsExhausted)

	c := l.conn(box, web).syn()
	l.PortRefused(Flow{Proto: packet.TCP, External: c.external, Remote: web}, l.now)
	was := c.external
	c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: 1000}) // the retransmission
	if c.external == was {
		t.Error("the refused tuple was given out again")
	}
	d := l.conn(box2, web)
	d.mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
	l.conn(box2, other).syn()
	l.conn(box, other).syn() // both ports are free towards another destination

	id := must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	l.PortRefused(Flow{Proto: packet.ICMP, External: netip.AddrPortFrom(external, id)}, l.now)
	if got := must2(l.echoOut(box, web.Addr()))(l, packet.Pass); got == id {
		t.Error("the refused identifier was given out again")
	}
	audit(t, l.Table)
	l.wait(121 * time.Second)
	d.mustSend(packet.Pass, seg{flags: packet.SYN, seq: 1})
	must2(l.udpOut(box2, other))(l, packet.Pass)
}

// What the uplink says of flows that are not there, or not of this table, does no harm.
func TestUnknownFlows(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports, c.Reserved = PortRange{2000, 2009}, []uint16{2005} })
	must2(l.udpOut(box, web))(l, packet.Pass)
	for _, p := range []packet.Proto{packet.TCP, packet.UDP, packet.ICMP} {
		for _, a := range []string{"198.51.100.7:2005", "198.51.100.7:80", "198.51.100.8:2001", "198.51.100.7:0"} {
			for _, r := range []netip.AddrPort{{}, web} {
				l.PortRefused(Flow{p, ap(a), r}, l.now)
				l.Close(Flow{p, ap(a), r}, l.now)
			}
		}
	}
	if s := l.Stats(); s.HeldPorts+s.HeldTuples != 0 || s.Mappings != 1 {
		t.Errorf("%d ports and %d tuples are on hold", s.HeldPorts, s.HeldTuples)
	}
	// Free ports that the kernel refuses are on hold, once.
	free := ap("198.51.100.7:2001")
	if l.spaces[udpSpace].owner(2001) != 0 {
		free = ap("198.51.100.7:2002")
	}
	for range 3 {
		l.PortRefused(Flow{packet.UDP, free, netip.AddrPort{}}, l.now)
		l.PortRefused(Flow{packet.TCP, free, web}, l.now)
	}
	if s := l.Stats(); s.HeldPorts != 1 || s.HeldTuples != 1 {
		t.Errorf("%d ports and %d tuples are on hold, want 1 and 1", s.HeldPorts, s.HeldTuples)
	}
	audit(t, l.Table)
	l.wait(121 * time.Second)
	l.settle()
	audit(t, l.Table)
	if s := l.Stats(); s.HeldPorts+s.HeldTuples != 0 {
		t.Error("holds do not end")
	}
}

// Closing one remote of a UDP mapping leaves the others; the last one takes the mapping along.
func TestCloseOneRemote(t *testing.T) {
	l := newLab(t, nil)
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	must2(l.udpOut(box, other))(l, packet.Pass)
	l.Close(Flow{packet.UDP, at, web}, l.now)
	must2(l.udpIn(web, at))(l, packet.Filtered)
	must2(l.udpIn(other, at))(l, packet.Pass)
	l.Close(Flow{packet.UDP, at, other}, l.now)
	must2(l.udpIn(other, at))(l, packet.NoMapping)
	audit(t, l.Table)
}

// C-10: every session can be read out.
func TestSessionsReadOut(t *testing.T) {
	l := newLab(t, nil)
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	born := l.now
	l.wait(10 * time.Second)
	c := l.conn(box, web).open()
	got := map[packet.Proto]Session{}
	for s := range l.Sessions() {
		got[s.Proto] = s
	}
	want := map[packet.Proto]Session{
		packet.UDP: {packet.UDP, box, at, web, "live", born, born + packet.Instant(300*time.Second+tickLength)},
		packet.TCP: {packet.TCP, box, c.external, web, "established", l.now, l.now + packet.Instant(7440*time.Second+tickLength)},
	}
	for p, s := range want {
		if got[p] != s {
			t.Errorf("protocol %d: %+v, want %+v", p, got[p], s)
		}
	}
	if len(got) != 2 {
		t.Errorf("%d sessions, want 2", len(got))
	}
	l.wait(301 * time.Second)
	l.clock(l.now)
	for s := range l.Sessions() {
		if s.Proto != packet.TCP {
			t.Errorf("a session whose time is over: %+v", s)
		}
	}
	for range l.Sessions() {
		break
	}
}

// Expire works within its budget and gets round.
func TestExpireBudget(t *testing.T) {
	l := newLab(t, nil)
	const n = 10_000
	for i := range n {
		must2(l.udpOut(makeEndpoint(0x0a000002+uint32(i>>12), uint16(1024+i&0xfff)).addrPort(), web))(l, packet.Pass)
	}
	l.wait(301 * time.Second)
	calls, removed := 0, 0
	for removed < n {
		k := l.Expire(l.now, 800)
		if k > 100 {
			t.Fatalf("a budget of 800 removed %d sessions", k)
		}
		if calls++; calls > 1000 {
			t.Fatalf("%d of %d sessions removed in %d calls", removed, n, calls)
		}
		removed += k
	}
	if l.Stats().Mappings != 0 {
		t.Error("mappings are left")
	}
	audit(t, l.Table)
}

// The clock may begin anywhere, stand still, and be read out of order.
func TestClock(t *testing.T) {
	for _, start := range []packet.Instant{1, packet.Instant(50 * 365 * 24 * time.Hour), packet.Instant(1<<32-50) * packet.Instant(tickLength)} {
		l := newLab(t, nil)
		l.now = start
		at := must2(l.udpOut(box, web))(l, packet.Pass)
		l.now -= 1
		must2(l.udpIn(web, at))(l, packet.Pass)
		l.now = start
		l.wait(299 * time.Second)
		must2(l.udpIn(web, at))(l, packet.Pass)
		l.wait(1200 * time.Millisecond)
		must2(l.udpIn(web, at))(l, packet.NoMapping)
		if l.settle() != 1 {
			t.Error("the session did not expire")
		}
	}
}

// C-10: every outcome has a counter of its own, and each packet counts once.
func TestCounters(t *testing.T) {
	for o := range packet.Outcomes() {
		if int(o) >= countersSize {
			t.Fatalf("outcome %v shares the counter of another", o)
		}
	}
	l := newLab(t, nil)
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	must2(l.udpIn(web, at))(l, packet.Pass)
	must2(l.udpIn(web, at))(l, packet.Pass)
	must2(l.udpIn(other, at))(l, packet.Filtered)
	s := l.Stats()
	if s.Egress.Of(packet.Pass) != 1 || s.Ingress.Of(packet.Pass) != 2 || s.Ingress.Of(packet.Filtered) != 1 {
		t.Errorf("egress %v, ingress %v", s.Egress, s.Ingress)
	}
	for k := range EventKind(6) {
		if k.String() == "" {
			t.Errorf("event kind %d has no name", k)
		}
	}
	for r := range numReasons + 1 {
		if r.String() == "" || (r < numReasons) != (r.String() != "unknown") {
			t.Errorf("reason %d has the name %q", r, r)
		}
	}
	if l.External() != external {
		t.Error("the table forgot its address")
	}
}
