package nat

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

func port(i int) uint16 { return uint16(1024 + i) }

// C-4, C-11, A-2: at its cap of ports an inner address is refused, keeps what
// it has, and takes nothing from its neighbours.
func TestC4PortsPerAddress(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.Ports = 5 })
	at := map[int]netip.AddrPort{}
	for i := range 3 {
		at[i] = must2(l.udpOut(netip.AddrPortFrom(box.Addr(), port(i)), web))(l, packet.Pass)
	}
	must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	l.conn(box, web).open()
	must2(l.udpOut(box, web))(l, packet.SessionLimit)
	l.conn(box, other).mustSend(packet.SessionLimit, seg{flags: packet.SYN, seq: 1})
	must2(l.udpOut(netip.AddrPortFrom(box.Addr(), port(0)), other))(l, packet.Pass) // needs no port
	must2(l.udpOut(box2, web))(l, packet.Pass)
	for i, a := range at {
		if got := must2(l.udpIn(web, a))(l, packet.Pass); got.Port() != port(i) {
			t.Errorf("mapping %d was lost", i)
		}
	}
	l.Close(Flow{Proto: packet.UDP, External: at[0]}, l.now)
	must2(l.udpOut(box, web))(l, packet.Pass)
	if s := l.Stats(); s.Refused.Of(ReasonPorts) != 2 {
		t.Errorf("%d refusals counted, want 2", s.Refused.Of(ReasonPorts))
	}
	audit(t, l.Table)
}

// C-5: sessions per inner address, and per table.
func TestC5Sessions(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.Sessions, c.MaxSessions = 4, 6 })
	for i := range 4 {
		must2(l.udpOut(box, makeEndpoint(0xcb007101, port(i)).addrPort()))(l, packet.Pass)
	}
	must2(l.udpOut(box, web))(l, packet.SessionLimit)
	must2(l.udpOut(box2, web))(l, packet.Pass)
	l.conn(box2, web).open()
	must2(l.udpOut(box2, other))(l, packet.SessionLimit)
	if s := l.Stats(); s.Refused.Of(ReasonSessions) != 1 || s.Refused.Of(ReasonTableFull) != 1 {
		t.Errorf("refusals %v", s.Refused)
	}
	if n := l.Stats().Sessions.Of(packet.UDP); n != 5 {
		t.Errorf("%d sessions, want 5", n)
	}
}

// a scan of dead hosts stops at the cap of half-open connections; those
// that are open go on, and the slots come back with the timer.
func TestA24HalfOpen(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.HalfOpen = 10 })
	live := l.conn(box, web).open()
	for i := range 10 {
		l.conn(box, makeEndpoint(0xcb007101, port(i)).addrPort()).syn()
	}
	l.conn(box, other).mustSend(packet.SessionLimit, seg{flags: packet.SYN, seq: 1})
	l.conn(box2, other).syn()
	live.dataOut(10)
	live.finish()
	live.mustSend(packet.SessionLimit, seg{flags: packet.SYN, seq: live.out + 10}) // starting again is opening, too
	l.wait(241 * time.Second)
	l.settle()
	l.conn(box, other).open()
	if n := l.Stats().HalfOpen; n != 0 {
		t.Errorf("%d half-open, want none", n)
	}
	audit(t, l.Table)
}

// C-4: new sessions per second come from a bucket; existing sessions do not touch it.
func TestC4NewSessionRate(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.NewPerSecond, c.Limits.Burst = 10, 20 })
	n := 0
	fresh := func(from netip.Addr) packet.Outcome {
		n++
		_, o := l.udpOut(netip.AddrPortFrom(from, port(n)), web)
		return o
	}
	for range 20 {
		if o := fresh(box.Addr()); o != packet.Pass {
			t.Fatalf("within the burst: %v", o)
		}
	}
	if o := fresh(box.Addr()); o != packet.RateLimit {
		t.Errorf("beyond the burst: %v", o)
	}
	if o := fresh(box2.Addr()); o != packet.Pass {
		t.Errorf("a neighbour: %v", o)
	}
	must2(l.udpOut(netip.AddrPortFrom(box.Addr(), port(1)), web))(l, packet.Pass)
	l.wait(time.Second)
	passed := 0
	for range 20 {
		if fresh(box.Addr()) == packet.Pass {
			passed++
		}
	}
	if passed != 10 {
		t.Errorf("%d passed after a second, want 10", passed)
	}
	l.wait(1000 * time.Second)
	if l.settle(); l.Stats().Hosts != 0 {
		t.Error("addresses without sessions are remembered though their buckets are full")
	}
	audit(t, l.Table)
}

// Starting a closed connection again costs as much as a new one.
func TestRestartCostsAToken(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.NewPerSecond, c.Limits.Burst = 1, 3 })
	c := l.conn(box, web)
	for range 3 {
		c.open()
		c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: c.in})
	}
	c.mustSend(packet.RateLimit, seg{flags: packet.SYN, seq: c.out})
	c.state("reset")
}

// An address whose bucket is not full stays known, so that it cannot be refilled by going away.
func TestBucketOutlivesSessions(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.NewPerSecond, c.Limits.Burst = 1, 400 })
	for i := range 400 {
		must2(l.echoOut(netip.AddrPortFrom(box.Addr(), port(i)), web.Addr()))(l, packet.Pass)
	}
	l.wait(100 * time.Second)
	if l.settle(); l.sessions.live != 0 || l.Stats().Hosts != 1 {
		t.Fatalf("%d sessions and %d addresses, want 0 and 1", l.sessions.live, l.Stats().Hosts)
	}
	passed := 0
	for i := range 400 {
		if _, o := l.echoOut(netip.AddrPortFrom(box.Addr(), port(i)), web.Addr()); o == packet.Pass {
			passed++
		}
	}
	if passed != 100 {
		t.Errorf("%d passed, want the 100 of 100 s", passed)
	}
}

// C-4, A-2: what all inner addresses hold together is bounded, too; who is refused for
// it hears once a second for all, and nobody loses what exists.
func TestC4NetworkPorts(t *testing.T) {
	for _, mode := range []Mapping{AddressAndPortDependent, EndpointIndependent} {
		l := newLab(t, func(c *Config) { c.Network.Ports, c.TCPMapping = 4, mode })
		at := must2(l.udpOut(box, web))(l, packet.Pass)
		c := l.conn(box2, web).open()
		must2(l.echoOut(box2, web.Addr()))(l, packet.Pass)
		must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
		l.events()
		for range 3 {
			must2(l.udpOut(box2, web))(l, packet.SessionLimit)
			l.conn(box, web).mustSend(packet.SessionLimit, seg{flags: packet.SYN, seq: 1})
		}
		e := l.events()
		if len(e) != 1 || e[0].Kind != Refused || e[0].Reason != ReasonNetworkPorts || e[0].Inner != box2 || e[0].Remote != web {
			t.Errorf("mode %d: events %+v, want one refusal", mode, e)
		}
		must2(l.udpOut(box, other))(l, packet.Pass) // needs no port
		must2(l.udpIn(web, at))(l, packet.Pass)
		c.dataOut(1)
		audit(t, l.Table)
		if s := l.Stats(); s.Ports != 4 || s.Refused.Of(ReasonNetworkPorts) != 6 {
			t.Errorf("mode %d: %d ports, %d refusals", mode, s.Ports, s.Refused.Of(ReasonNetworkPorts))
		}
		l.Close(Flow{Proto: packet.UDP, External: at}, l.now)
		must2(l.udpOut(box2, web))(l, packet.Pass)
		if n := l.Revoke(box2.Addr(), l.now); n != 3 || l.Stats().Ports != 1 {
			t.Errorf("mode %d: %d sessions revoked, %d ports left", mode, n, l.Stats().Ports)
		}
	}
}

// half-open connections of all together; an inner address at its own limit
// is told of that one.
func TestA24NetworkHalfOpen(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Network.HalfOpen, c.Limits.HalfOpen = 5, 3 })
	for i := range 3 {
		l.conn(box, makeEndpoint(0xcb007101, port(i)).addrPort()).syn()
	}
	closed := l.conn(box2, web).open()
	closed.finish()
	l.conn(box2, other).syn()
	last := l.conn(box2, web2).syn()
	l.conn(box, other).mustSend(packet.SessionLimit, seg{flags: packet.SYN, seq: 1})
	closed.mustSend(packet.SessionLimit, seg{flags: packet.SYN, seq: closed.out + 10})
	if s := l.Stats(); s.Refused.Of(ReasonHalfOpen) != 1 || s.Refused.Of(ReasonNetworkHalfOpen) != 1 || s.HalfOpen != 5 {
		t.Errorf("refusals %v with %d half-open", s.Refused, s.HalfOpen)
	}
	last.mustRecv(packet.Pass, seg{flags: synAck, seq: last.in, ack: last.out})
	last.in++
	last.mustSend(packet.Pass, seg{flags: packet.ACK, seq: last.out, ack: last.in})
	closed.mustSend(packet.Pass, seg{flags: packet.SYN, seq: closed.out + 10})
	audit(t, l.Table)
}

// C-4: new sessions per second of all together, in both kinds of tables.
func TestC4NetworkRate(t *testing.T) {
	for _, kind := range []bool{false, true} {
		l := newLab(t, func(c *Config) {
			c.Network.NewPerSecond, c.Network.Burst = 10, 20
			if c.Identity = kind; kind {
				c.External = netip.Addr{}
			}
		})
		fresh := func(n int) (passed int) {
			for i := range n {
				o := l.egress(packet.BuildUDP(l.buf[:], makeEndpoint(0x0a000000+uint32(i), uint16(l.now>>20)).addrPort(), web, nil, 64, 0))
				switch o {
				case packet.Pass:
					passed++
				case packet.RateLimit:
				default:
					t.Fatal(o)
				}
			}
			return passed
		}
		if n := fresh(30); n != 20 {
			t.Errorf("identity %v: %d passed, want the burst of 20", kind, n)
		}
		if l.wait(time.Second); fresh(30) != 10 {
			t.Errorf("identity %v: not the 10 of a second passed", kind)
		}
		e := l.events()
		if n := l.Stats().Refused.Of(ReasonNetworkRate); n != 30 || e[20].Reason != ReasonNetworkRate || e[len(e)-1].Reason != ReasonNetworkRate || len(e) != 32 {
			t.Errorf("identity %v: %d refusals, %d events", kind, n, len(e))
		}
		audit(t, l.Table)
	}
}

// with the settings' defaults no inner address takes all ports, even when it lets
// all go at once and takes new ones while the old are on hold.
func TestA2DefaultPortsLeaveRoom(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.NewPerSecond = -1 })
	take := func() (n int) {
		for p := 1; p < 1<<16; p++ {
			if _, o := l.udpOut(netip.AddrPortFrom(box.Addr(), uint16(p)), web); o == packet.Pass {
				n++
			}
		}
		return n
	}
	first := take()
	if l.Revoke(box.Addr(), l.now) != first {
		t.Fatal("not all went")
	}
	take()
	if left := l.Stats().FreePorts.Of(packet.UDP); left < 64512/2-1024 {
		t.Errorf("%d ports are left of 64512", left)
	}
	must2(l.udpOut(box2, web))(l, packet.Pass)
}

// A negative limit is none.
func TestUnlimited(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits = Limits{-1, -1, -1, -1, 0} })
	for i := range 5000 {
		l.conn(box, makeEndpoint(0xcb007101+uint32(i), 443).addrPort()).syn()
	}
}

// A drained address gives out no new ports; what exists goes on.
func TestDraining(t *testing.T) {
	l := newLab(t, nil)
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	c := l.conn(box, web).open()
	l.SetDraining(true)
	must2(l.udpOut(box2, web))(l, packet.Draining)
	l.conn(box, other).mustSend(packet.Draining, seg{flags: packet.SYN, seq: 1})
	if got := must2(l.udpOut(box, other))(l, packet.Pass); got != at {
		t.Errorf("the mapping moved to %v", got)
	}
	c.dataOut(1)
	l.SetDraining(false)
	must2(l.udpOut(box2, web))(l, packet.Pass)
}

// U-5, T-5: settings that cannot be are refused with an error that names them.
func TestConfigErrors(t *testing.T) {
	for _, tt := range []struct {
		change func(*Config)
		names  string
	}{
		{func(c *Config) { c.External = netip.Addr{} }, "external address"},
		{func(c *Config) { c.External = netip.MustParseAddr("2001:db8::1") }, "not IPv4"},
		{func(c *Config) { c.External = netip.IPv4Unspecified() }, "0.0.0.0"},
		{func(c *Config) { c.External = netip.MustParseAddr("0.1.2.3") }, "0.1.2.3"},
		{func(c *Config) { c.External = netip.MustParseAddr("224.0.0.1") }, "multicast"},
		{func(c *Config) { c.External = netip.MustParseAddr("240.0.0.1") }, "reserved"},
		{func(c *Config) { c.External = netip.MustParseAddr("255.255.255.255") }, "broadcast"},
		{func(c *Config) { c.Seed = [32]byte{} }, "crypto/rand"},
		{func(c *Config) { c.Ports = PortRange{80, 90} }, "80-90"},
		{func(c *Config) { c.Ports = PortRange{5000, 4000} }, "5000-4000 ends before it begins"},
		{func(c *Config) { c.TCPMapping = 7 }, "TCP mapping 7: set AddressAndPortDependent"},
		{func(c *Config) { c.PortBlock = 100 }, "blocks of 100"},
		{func(c *Config) { c.PortBlock = 32 }, "blocks of 32"},
		{func(c *Config) { c.PortBlock = 8192 }, "blocks of 8192"},
		{func(c *Config) { c.MaxSessions = -1 }, "-1 sessions"},
		{func(c *Config) { c.MaxSessions = 1 << 30 }, "sessions"},
		{func(c *Config) { c.EventBuffer = -1 }, "event buffer"},
		{func(c *Config) { c.Limits.Burst = -5 }, "burst"},
		{func(c *Config) { c.Network.NewPerSecond, c.Network.Burst = 1, -5 }, "burst"},
		{func(c *Config) { c.Timers.UDP = 119 * time.Second }, "UDP"},               // U-5
		{func(c *Config) { c.Timers.TCPEstablished = time.Hour }, "TCPEstablished"}, // T-5
		{func(c *Config) { c.Timers.TCPClosing = 239 * time.Second }, "TCPClosing"}, // T-5
		{func(c *Config) { c.Timers.TCPOpening = time.Second }, "TCPOpening"},
		{func(c *Config) { c.Timers.ICMP = 59 * time.Second }, "ICMP"},              // I-2
		{func(c *Config) { c.Timers.Hold = -time.Second }, "Hold"},                  // C-8
		{func(c *Config) { c.Timers.UDP = 2 * longest }, "at most"},
	} {
		c := Config{External: external, Seed: [32]byte{1}}
		tt.change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), tt.names) {
			t.Errorf("error %v does not name %q", err, tt.names)
		}
	}
}
