package nat

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// RFC 6888 (carrier-grade NAT, BCP 127 as updated). What limits_test.go and
// ports_test.go prove already is not repeated here.

// C-1: of the 256 protocols of IP only ICMP, TCP and UDP are translated. SCTP,
// GRE, ESP and tunnels are dropped with a reason of their own before any table sees them.
func TestC1OtherProtocols(t *testing.T) {
	l := newLab(t, nil)
	for proto := range 256 {
		n := packet.BuildUDP(l.buf[:], box, web, make([]byte, 64), 64, 0)
		l.buf[9] = byte(proto)
		repaired := repair(l.buf[:n])
		var p packet.Packet
		o := packet.Parse(&p, repaired)
		switch packet.Proto(proto) {
		case packet.TCP, packet.UDP, packet.ICMP:
			if o == packet.BadProtocol {
				t.Errorf("protocol %d is not translated", proto)
			}
			continue
		}
		if o != packet.BadProtocol || p.Kind != packet.KindUnknown {
			t.Errorf("protocol %d: %v", proto, o)
		}
		if o := l.Egress(&p, l.now); o != packet.Malformed {
			t.Errorf("protocol %d was handed on all the same: %v", proto, o)
		}
	}
	if s := l.Stats(); s.Mappings != 0 || s.Hosts != 0 {
		t.Errorf("%d mappings and %d hosts", s.Mappings, s.Hosts)
	}
}

// C-3: a table takes any unicast address, so a pair may be any two.
func TestC3AnyAddress(t *testing.T) {
	for _, a := range []string{"1.0.0.1", "9.255.255.255", "100.64.0.1", "127.9.9.9", "192.0.2.0", "198.51.100.255", "223.255.255.254"} {
		own := netip.MustParseAddr(a)
		table, err := New(Config{External: own, Seed: [32]byte{1}})
		if err != nil {
			t.Errorf("%s: %v", a, err)
			continue
		}
		l := &lab{reporter: t, Table: table, now: packet.Instant(time.Hour)}
		l.parse(packet.BuildUDP(l.buf[:], box, web, nil, 64, 0))
		if o := table.Egress(&l.p, l.now); o != packet.Pass || l.p.Src != own {
			t.Fatalf("%s: %v from %v", a, o, l.p.Src)
		}
		l.parse(packet.BuildUDP(l.buf[:], web, netip.AddrPortFrom(own, l.p.SrcPort), nil, 64, 0))
		if o := table.Ingress(&l.p, l.now); o != packet.Pass || l.p.Dst != box.Addr() {
			t.Errorf("%s: %v to %v", a, o, l.p.Dst)
		}
	}
}

// C-5, A-2: whoever is at its caps and goes on asking, in every way that there is,
// takes no further memory: no record, no hold, and a bounded number of events.
func TestC5MemoryStopsAtTheCap(t *testing.T) {
	l := newLab(t, func(c *Config) {
		c.Limits = Limits{Sessions: 300, Ports: 200, HalfOpen: 50, NewPerSecond: -1}
		c.EventBuffer = 64
	})
	ask := func(n int) {
		for i := range n {
			l.udpOut(netip.AddrPortFrom(box.Addr(), uint16(i)), makeEndpoint(0xcb007100+uint32(i), 443).addrPort())
			l.conn(netip.AddrPortFrom(box.Addr(), uint16(i|1)), makeEndpoint(0xcb007200+uint32(i), 443).addrPort()).send(seg{flags: packet.SYN, seq: 1})
			l.echoOut(netip.AddrPortFrom(box.Addr(), uint16(i)), makeEndpoint(0xcb007300+uint32(i), 0).addrPort().Addr())
		}
	}
	ask(1000)
	size := func() string {
		return fmt.Sprint(l.sessions.top, l.mappings.top, l.hosts.top, l.tuples.len(), l.heldPorts.len(), len(l.crowds), l.Table.events.used <= 64, l.Stats().Sessions)
	}
	before := size()
	ask(20_000)
	if after := size(); after != before {
		t.Errorf("records %s became %s", before, after)
	}
	if s := l.Stats(); s.Sessions.Of(packet.TCP) > 50 || l.sessions.live > 300 || s.EventsLost != 0 && l.Table.events.used > 64 {
		t.Errorf("sessions %v, %d half-open, %d events", s.Sessions, s.HalfOpen, l.Table.events.used)
	}
	audit(t, l.Table)
}

// C-8: over hours of churn in a small pool no port or tuple is given out within
// 120 s of its end, unless it is a tuple that was closed by both FINs towards a
// crowded destination, which none is here.
func TestC8MeasuredReuseGap(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports, c.Limits = PortRange{2000, 2255}, endless })
	type use struct {
		proto  packet.Proto
		port   uint16
		remote netip.AddrPort
	}
	freed := map[use]packet.Instant{}
	reused, refused := 0, 0
	least := time.Duration(1 << 62)
	for i := range 20_000 {
		from := makeEndpoint(0x0a000002, uint16(1024+i%60000)).addrPort()
		c := l.conn(from, web)
		if c.send(seg{flags: packet.SYN, seq: uint32(i)}) != packet.Pass {
			refused++
		}
		if i%4 == 0 {
			l.udpOut(from, web)
			l.echoOut(from, web.Addr())
		}
		if i%3 == 0 {
			l.Revoke(from.Addr(), l.now)
		}
		l.wait(300 * time.Millisecond)
		l.Expire(l.now, 4096)
		for _, e := range l.events() {
			k := use{e.Proto, e.External.Port(), e.Remote}
			switch e.Kind {
			case Closed:
				freed[k] = e.At
			case Created:
				if at, was := freed[k]; was {
					reused++
					least = min(least, time.Duration(e.At-at))
				}
			}
		}
	}
	if reused < 1000 || refused < 1000 {
		t.Fatalf("%d reused and %d refused: the pool was not short", reused, refused)
	}
	if least < 120*time.Second || least > 121*time.Second {
		t.Errorf("the least gap is %v, want 120 s", least)
	}
}

// C-11: at each cap, and with no port left, a new flow is refused and every
// flow that there was goes on, in both directions.
func TestC11NothingIsEvicted(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"ports of the address":    func(c *Config) { c.Ports = PortRange{2000, 2099} },
		"sessions of the table":   func(c *Config) { c.MaxSessions = 100 },
		"sessions of a sandbox":   func(c *Config) { c.Limits.Sessions = 100 },
		"ports of a sandbox":      func(c *Config) { c.Limits.Ports = 100 },
		"new sessions per second": func(c *Config) { c.Limits.NewPerSecond, c.Limits.Burst = 1, 100 },
	} {
		l := newLab(t, change)
		from := func(i int) netip.AddrPort { return netip.AddrPortFrom(box.Addr(), uint16(1024+i)) }
		at := map[int]netip.AddrPort{}
		refused := 0
		for i := range 1000 {
			if seen, o := l.udpOut(from(i), web); o == packet.Pass {
				at[i] = seen
			} else {
				refused++
			}
		}
		if len(at) != 100 || refused != 900 {
			t.Errorf("%s: %d made, %d refused", name, len(at), refused)
		}
		for i, seen := range at {
			if again := must2(l.udpOut(from(i), web))(l, packet.Pass); again != seen {
				t.Errorf("%s: flow %d moved from %v to %v", name, i, seen, again)
			}
			if got := must2(l.udpIn(web, seen))(l, packet.Pass); got != from(i) {
				t.Errorf("%s: the answer for %v arrived at %v", name, from(i), got)
			}
		}
	}
}

// C-12: what is told of a mapping of UDP or ICMP has no destination. Of TCP it
// has one, as another connection may have the same external port.
func TestC12RecordsWithoutDestination(t *testing.T) {
	l := newLab(t, nil)
	must2(l.udpOut(box, web))(l, packet.Pass)
	must2(l.udpOut(box, other))(l, packet.Pass)
	must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	c := l.conn(box, web).syn()
	l.Revoke(box.Addr(), l.now)
	told := 0
	for _, e := range l.events() {
		if e.Kind != Created && e.Kind != Closed {
			continue
		}
		told++
		if want := (netip.AddrPort{}); e.Proto != packet.TCP && e.Remote != want || e.Proto == packet.TCP && e.Remote != c.remote {
			t.Errorf("%+v", e)
		}
	}
	if told != 6 { // one more remote of a UDP mapping is no record (C-14)
		t.Errorf("%d records, want two each of three mappings", told)
	}
}

// C-14: a mapping is told twice in its life, however many destinations it has
// and however long it lives.
func TestC14TwoRecordsPerMapping(t *testing.T) {
	l := newLab(t, nil)
	for i := range 5000 {
		must2(l.udpOut(box, makeEndpoint(0xcb007100+uint32(i), 53).addrPort()))(l, packet.Pass)
		l.wait(time.Second)
		l.Expire(l.now, 100)
	}
	l.wait(time.Hour)
	l.settle()
	if e := l.events(); len(e) != 2 || e[0].Kind != Created || e[1].Kind != Closed || e[0].External != e[1].External {
		t.Errorf("%d records of one mapping: %+v", len(e), e[:min(len(e), 4)])
	}
}
