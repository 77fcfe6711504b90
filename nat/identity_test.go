package nat

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// twin has the same ports as box.
var twin = ap("10.0.0.9:40000")

func newIdentityLab(tb reporter, change func(*Config)) *lab {
	tb.Helper()
	return newLab(tb, func(c *Config) {
		c.Identity, c.External = true, netip.Addr{}
		if change != nil {
			change(c)
		}
	})
}

func TestIdentityConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"External":   func(c *Config) { c.External = external },
		"Ports":      func(c *Config) { c.Ports = PortRange{2000, 3000} },
		"Reserved":   func(c *Config) { c.Reserved = []uint16{2000} },
		"TCPMapping": func(c *Config) { c.TCPMapping = EndpointIndependent },
		"seed":       func(c *Config) { c.Seed = [32]byte{} },
	} {
		c := Config{Identity: true, Seed: [32]byte{1}}
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	l := newIdentityLab(t, nil)
	if l.External().IsValid() || l.Stats().FreePorts != (PerProtocol{}) {
		t.Errorf("external %v, free ports %v", l.External(), l.Stats().FreePorts)
	}
}

// C-6: two inner addresses that use the same ports to one remote are told apart, and
// neither is changed.
func TestIdentityKeepsTwinsApart(t *testing.T) {
	l := newIdentityLab(t, nil)
	a, b := l.conn(box, web).open(), l.conn(twin, web)
	b.out, b.in = 50_000, 90_000
	b.open()
	a.dataOut(100)
	a.dataIn(50)
	b.dataIn(70)
	b.dataOut(10)
	for _, from := range []netip.AddrPort{box, twin} {
		if seen := must2(l.udpOut(from, web))(l, packet.Pass); seen != from {
			t.Errorf("%v is seen as %v", from, seen)
		}
		must2(l.echoOut(from, web.Addr()))(l, packet.Pass)
		if at := must2(l.udpIn(web, from))(l, packet.Pass); at != from {
			t.Errorf("the answer to %v arrived at %v", from, at)
		}
		if at := must2(l.echoTo(web.Addr(), from))(l, packet.Pass); at != from {
			t.Errorf("the echo of %v arrived at %v", from, at)
		}
	}
	if s := l.Stats(); s.Sessions != (PerProtocol{2, 2, 2}) || s.Mappings+s.HeldPorts+s.HeldTuples != 0 {
		t.Errorf("%+v", s)
	}
	audit(t, l.Table)
	// What one of them ends is the other's still.
	if n := l.Revoke(twin.Addr(), l.now); n != 3 {
		t.Errorf("%d sessions revoked, want 3", n)
	}
	a.dataIn(1)
	b.mustRecv(packet.NoMapping, seg{flags: packet.ACK, seq: b.in, ack: b.out})
	b.mustSend(packet.NoSession, seg{flags: packet.ACK, seq: b.out, ack: b.in})
	audit(t, l.Table)
}

// The other side begins nothing, whatever it sends.
func TestIdentityOnlyInsideBegins(t *testing.T) {
	l := newIdentityLab(t, nil)
	c := l.conn(box, web)
	c.external = box
	c.mustRecv(packet.NoMapping, seg{flags: packet.SYN, seq: 1})
	c.mustRecv(packet.NoMapping, seg{flags: synAck, seq: 1, ack: 1})
	must2(l.udpIn(web, box))(l, packet.NoMapping)
	must2(l.echoTo(web.Addr(), box))(l, packet.NoMapping)
	request := packet.BuildICMPEcho(l.buf[:], packet.Echo{Src: web.Addr(), Dst: box.Addr(), Ident: 7, TTL: 64}, nil)
	if o := l.ingress(request); o != packet.NoMapping {
		t.Errorf("an echo request: %v", o)
	}
	must2(l.udpOut(box, web))(l, packet.Pass)
	for _, from := range []netip.AddrPort{other, web2} {
		must2(l.udpIn(from, box))(l, packet.NoMapping)
	}
	must2(l.udpIn(web, box2))(l, packet.NoMapping)
	must2(l.udpIn(web, netip.AddrPortFrom(box.Addr(), 1)))(l, packet.NoMapping)
	must2(l.udpOut(box, box))(l, packet.SpoofedSource)
	must2(l.udpIn(box, box))(l, packet.Martian)
	if s := l.Stats(); s.Sessions != (PerProtocol{udpSpace: 1}) || s.Hosts != 1 {
		t.Errorf("%+v", s)
	}
}

// The state machine and the checks of sequence numbers are those of other tables.
func TestIdentityTracksTCP(t *testing.T) {
	l := newIdentityLab(t, nil)
	c := l.conn(box, web).open()
	c.mustRecv(packet.Filtered, seg{flags: packet.RST, seq: c.in + 1<<20})
	c.state("established")
	c.finish()
	c.syn() // again, from the same port
	c.state("opening")
	c.mustRecv(packet.Filtered, seg{flags: rstAck, ack: c.out + 5})
	c.mustRecv(packet.Pass, seg{flags: rstAck, ack: c.out})
	c.state("reset")
	l.wait(time.Hour)
	l.settle()
	c.state("")
	audit(t, l.Table)
}

// Errors of both directions pass unchanged where they quote a packet of a session.
func TestIdentityICMPErrors(t *testing.T) {
	l := newIdentityLab(t, nil)
	c := l.conn(box, web).open()
	sent := bytes.Clone(l.buf[:l.build(box, web, seg{flags: packet.ACK, seq: c.out, ack: c.in})])
	late := bytes.Clone(l.buf[:l.build(box, web, seg{flags: packet.ACK, seq: c.out + 1<<20, ack: c.in})])
	must2(l.udpOut(box, web))(l, packet.Pass)
	udp := bytes.Clone(l.p.B)
	must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	echo := bytes.Clone(l.p.B)
	must2(l.udpIn(web, box))(l, packet.Pass)
	answer := bytes.Clone(l.p.B)
	must2(l.echoTo(web.Addr(), box))(l, packet.Pass)
	reply := bytes.Clone(l.p.B)
	stray := bytes.Clone(l.buf[:packet.BuildUDP(l.buf[:], twin, web, nil, 64, 0)])

	for name, row := range map[string]struct {
		typ, code uint8
		info      uint32
		to        netip.Addr
		quote     []byte
		want      packet.Outcome
	}{
		"TCP":                   {3, 4, 1400, box.Addr(), sent, packet.Pass},
		"TCP, not in flight":    {3, 4, 1400, box.Addr(), late, packet.Filtered},
		"MTU not believed":      {3, 4, 500, box.Addr(), sent, packet.Filtered},
		"UDP":                   {3, 3, 0, box.Addr(), udp, packet.Pass},
		"echo":                  {11, 0, 0, box.Addr(), echo, packet.Pass},
		"no session":            {3, 3, 0, twin.Addr(), stray, packet.NoMapping},
		"to another than sent":  {3, 3, 0, twin.Addr(), udp, packet.NoMapping},
		"about what was coming": {3, 3, 0, web.Addr(), answer, packet.NoMapping},
	} {
		if o := l.ingress(l.errorAbout(row.typ, row.code, row.info, router, row.to, row.quote)); o != row.want {
			t.Errorf("in, %s: %v, want %v", name, o, row.want)
		}
	}
	for name, row := range map[string]struct {
		from  netip.Addr
		quote []byte
		want  packet.Outcome
	}{
		"UDP":                {box.Addr(), answer, packet.Pass},
		"echo reply":         {box.Addr(), reply, packet.Pass},
		"echo request":       {box.Addr(), echo, packet.NoMapping},
		"by somebody else":   {twin.Addr(), answer, packet.NoMapping},
		"about what it sent": {box.Addr(), udp, packet.NoMapping},
	} {
		if o := l.egress(l.errorAbout(3, 3, 0, row.from, web.Addr(), row.quote)); o != row.want {
			t.Errorf("out, %s: %v, want %v", name, o, row.want)
		}
	}
}

// Each session is told at its birth and at its end; remotes are revoked by prefix.
func TestIdentityEventsAndRevoking(t *testing.T) {
	l := newIdentityLab(t, nil)
	must2(l.udpOut(box, web))(l, packet.Pass)
	must2(l.echoOut(box, other.Addr()))(l, packet.Pass)
	kept := l.conn(twin, ap("203.0.112.1:443")).open()
	at := l.now
	if n := l.RevokeRemote(netip.PrefixFrom(web.Addr(), 24), l.now); n != 2 {
		t.Errorf("%d sessions revoked, want 2", n)
	}
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("::/0"), netip.MustParsePrefix("10.0.0.0/8")} {
		if n := l.RevokeRemote(p, l.now); n != 0 {
			t.Errorf("%v: %d sessions revoked", p, n)
		}
	}
	kept.dataIn(1)
	l.Close(Flow{packet.TCP, twin, kept.remote}, l.now)
	l.Close(Flow{packet.TCP, twin, kept.remote}, l.now)
	l.Close(Flow{Proto: packet.TCP, External: twin}, l.now)
	l.PortRefused(Flow{packet.TCP, twin, kept.remote}, l.now)
	ping := netip.AddrPortFrom(other.Addr(), 0)
	want := []Event{
		{Kind: Created, Proto: packet.UDP, Inner: box, External: box, Remote: web, At: at},
		{Kind: Created, Proto: packet.ICMP, Inner: box, External: box, Remote: ping, At: at},
		{Kind: Created, Proto: packet.TCP, Inner: twin, External: twin, Remote: kept.remote, At: at},
		{Kind: Closed, Proto: packet.UDP, Inner: box, External: box, Remote: web, Reason: ReasonRevoked, At: at},
		{Kind: Closed, Proto: packet.ICMP, Inner: box, External: box, Remote: ping, Reason: ReasonRevoked, At: at},
		{Kind: Closed, Proto: packet.TCP, Inner: twin, External: twin, Remote: kept.remote, Reason: ReasonUplinkClosed, At: at},
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
	audit(t, l.Table)
}

// Quotas hold as in other tables, but for ports, of which there are none.
func TestIdentityLimits(t *testing.T) {
	l := newIdentityLab(t, func(c *Config) {
		c.Limits = Limits{Sessions: 5, Ports: 1, HalfOpen: 2, NewPerSecond: -1}
		c.MaxSessions = 8
	})
	from := func(a netip.AddrPort, n int) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), uint16(1000+n)) }
	for n, want := range []packet.Outcome{packet.Pass, packet.Pass, packet.SessionLimit} {
		l.conn(from(box, n), web).mustSend(want, seg{flags: packet.SYN})
	}
	for n, want := range []packet.Outcome{packet.Pass, packet.Pass, packet.Pass, packet.SessionLimit} {
		must2(l.udpOut(from(box, n), web))(l, want)
	}
	for n, want := range []packet.Outcome{packet.Pass, packet.Pass, packet.Pass, packet.SessionLimit} {
		must2(l.udpOut(from(twin, n), web))(l, want)
	}
	s := l.Stats()
	if s.Refused.Of(ReasonHalfOpen) != 1 || s.Refused.Of(ReasonSessions) != 1 || s.Refused.Of(ReasonTableFull) != 1 {
		t.Errorf("refused %v", s.Refused)
	}
	l.wait(301 * time.Second)
	l.settle()
	l.SetDraining(true)
	must2(l.udpOut(box, web))(l, packet.Draining)
	l.SetDraining(false)
	must2(l.udpOut(box, web))(l, packet.Pass)
	l.SetDraining(true)
	must2(l.udpOut(box, web))(l, packet.Pass)
	audit(t, l.Table)
}

func TestIdentityAllocatesNothing(t *testing.T) {
	l := newIdentityLab(t, func(c *Config) { c.Limits.NewPerSecond = -1 })
	must2(l.udpOut(box, web))(l, packet.Pass)
	must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	c := l.conn(box, web).open()
	i := 0
	for name, f := range map[string]func(){
		"TCP out":  func() { c.send(seg{flags: packet.ACK, seq: c.out, ack: c.in}) },
		"TCP in":   func() { c.recv(seg{flags: packet.ACK, seq: c.in, ack: c.out}) },
		"UDP out":  func() { l.udpOut(box, web) },
		"UDP in":   func() { l.udpIn(web, box) },
		"filtered": func() { l.udpIn(other, box) },
		"echo out": func() { l.echoOut(box, web.Addr()) },
		"echo in":  func() { l.echoTo(web.Addr(), box) },
		"new UDP":  func() { i++; l.udpOut(inside(i), remote(i)) },
		"expire":   func() { l.wait(1e9); l.Expire(l.now, 1000) },
	} {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkIdentity is one datagram out and its answer, among 200,000 sessions.
func BenchmarkIdentity(b *testing.B) {
	l := newIdentityLab(b, func(c *Config) {
		c.Limits = Limits{Sessions: -1, Ports: -1, HalfOpen: -1, NewPerSecond: -1}
	})
	p := &population{n: 200_000, lab: l}
	datagram := func(from, to netip.AddrPort) *packet.Packet {
		p.datagram(0, from, to)
		packet.Parse(&p.p, p.bufs[0][:p.sizes[0]])
		return &p.p
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		k := int(uint64(i) * 0x9e3779b97f4a7c15 >> 20 % uint64(p.n)) // an order that no cache foresees
		if l.Egress(datagram(inside(k), remote(k)), l.now) != packet.Pass {
			b.Fatal("dropped")
		}
		if l.Ingress(datagram(remote(k), inside(k)), l.now) != packet.Pass {
			b.Fatal("dropped")
		}
	}
}
