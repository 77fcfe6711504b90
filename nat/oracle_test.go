package nat

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
	"pgregory.net/rapid"
)

// oracle says with maps and loops what a table must do. Where the table draws
// a port, the oracle checks that it may be drawn and goes on with it.
type oracle struct {
	*lab
	mode     Mapping
	mappings map[who]*oracleMapping
	sessions map[pair]*oracleSession
	held     map[where]uint32 // tick at which it is free again; no remote: the whole port
}

// who is an inner endpoint, where an external port towards a remote, pair an
// inner endpoint and a remote.
type who struct {
	proto packet.Proto
	inner netip.AddrPort
}

type pair struct {
	who
	remote netip.AddrPort
}

type where struct {
	proto  packet.Proto
	port   uint16
	remote netip.AddrPort
}

type oracleMapping struct {
	port uint16
}

type oracleSession struct {
	port     uint16
	deadline uint32
	state    string
	out, in  uint32    // TCP: next sequence numbers
	acked    [2]uint32 // TCP: the last acknowledgement of each direction
	fins     [2]bool
}

const oraclePorts = 6

var (
	oracleInner  = []string{"10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3", "10.0.0.2:1", "10.0.0.2:2", "10.0.0.2:3", "10.0.0.3:1"}
	oracleRemote = []string{"203.0.113.1:53", "203.0.113.1:443", "203.0.113.2:443"}
	oracleLimits = Limits{Sessions: 12, Ports: 9, HalfOpen: 4, NewPerSecond: -1}
)

const oracleMax = 26

// identity stands for an identity table where a Mapping is drawn.
const identity Mapping = 99

func newOracle(tb reporter, mode Mapping, seed int) *oracle {
	return &oracle{
		lab: newLab(tb, func(c *Config) {
			c.Limits, c.MaxSessions = oracleLimits, oracleMax
			if mode == identity {
				c.Identity, c.External = true, netip.Addr{}
			} else {
				c.Ports, c.TCPMapping = PortRange{2000, 2000 + oraclePorts - 1}, mode
			}
			c.Seed[8] = byte(seed)
		}),
		mode:     mode,
		mappings: map[who]*oracleMapping{}, sessions: map[pair]*oracleSession{}, held: map[where]uint32{},
	}
}

// lastTick is when ticks begin anew.
const lastTick = packet.Instant(1<<32) * packet.Instant(tickLength)

func (o *oracle) in(d time.Duration) uint32 { return tickOf(o.now) + 1 + uint32(d/tickLength) }

// independent says whether a protocol has mappings.
func (o *oracle) independent(p packet.Proto) bool {
	return o.mode != identity && (p != packet.TCP || o.mode == EndpointIndependent)
}

// seen is the endpoint by which the remote of a session knows it.
func (o *oracle) seen(k pair) netip.AddrPort {
	if o.mode == identity {
		return k.inner
	}
	return netip.AddrPortFrom(external, o.sessions[k].port)
}

// drop removes a session, with what goes along.
func (o *oracle) drop(k pair) {
	s := o.sessions[k]
	delete(o.sessions, k)
	switch {
	case o.mode == identity:
		return
	case !o.independent(k.proto):
		o.held[where{k.proto, s.port, k.remote}] = o.in(120 * time.Second)
		return
	}
	for other := range o.sessions {
		if other.who == k.who {
			return
		}
	}
	delete(o.mappings, k.who)
	o.held[where{proto: k.proto, port: s.port}] = o.in(120 * time.Second)
}

// pass lets the time reach now, in the oracle and in the table.
func (o *oracle) pass() {
	for k, until := range o.held {
		if due(until, tickOf(o.now)) {
			delete(o.held, k)
		}
	}
	for k, s := range o.sessions {
		if due(s.deadline, tickOf(o.now)) {
			o.drop(k)
		}
	}
	o.settle()
}

// free returns whether a port may be drawn.
func (o *oracle) free(port uint16, k pair) bool {
	w := where{k.proto, port, k.remote}
	if o.independent(k.proto) {
		w.remote = netip.AddrPort{}
	}
	if _, onHold := o.held[w]; onHold || port < 2000 || port >= 2000+oraclePorts {
		return false
	}
	for other, s := range o.sessions {
		if other.proto == k.proto && s.port == port && (o.independent(k.proto) || other.remote == k.remote) {
			return false
		}
	}
	return true
}

func (o *oracle) freeCount(k pair) int {
	n := 0
	for p := range uint16(oraclePorts) {
		if o.free(2000+p, k) {
			n++
		}
	}
	return n
}

// expect returns the outcome of a new flow as far as limits decide it.
func (o *oracle) expect(k pair, port bool) packet.Outcome {
	sessions, ports := 0, 0
	for other := range o.sessions {
		if other.inner.Addr() == k.inner.Addr() {
			sessions++
			if !o.independent(other.proto) && o.mode != identity {
				ports++
			}
		}
	}
	for w := range o.mappings {
		if w.inner.Addr() == k.inner.Addr() {
			ports++
		}
	}
	switch {
	case len(o.sessions) >= oracleMax, sessions >= oracleLimits.Sessions, port && ports >= oracleLimits.Ports:
		return packet.SessionLimit
	case k.proto == packet.TCP && o.halfOpen(k.inner.Addr()) >= oracleLimits.HalfOpen:
		return packet.SessionLimit
	}
	return packet.Pass
}

func (o *oracle) halfOpen(a netip.Addr) int {
	n := 0
	for k, s := range o.sessions {
		if k.inner.Addr() == a && s.state == "opening" {
			n++
		}
	}
	return n
}

// created checks the outcome of a packet that begins a flow and takes note of it.
func (o *oracle) created(k pair, got packet.Outcome, isn uint32) *oracleSession {
	o.Helper()
	m := o.mappings[k.who]
	want := o.expect(k, m == nil)
	free := o.freeCount(k)
	if want == packet.Pass && m == nil && free == 0 && got == packet.PortsExhausted {
		return nil
	}
	if got != want {
		o.Fatalf("%+v: %v, want %v", k, got, want)
	}
	if got != packet.Pass {
		return nil
	}
	port := o.p.SrcPort
	switch {
	case o.mode == identity:
	case m != nil && m.port != port:
		o.Fatalf("%+v got port %d, but its mapping has %d", k, port, m.port)
	case m == nil && !o.free(port, k):
		o.reused(k, port, free, isn)
	}
	if o.independent(k.proto) && m == nil {
		o.mappings[k.who] = &oracleMapping{port: port}
	}
	s := &oracleSession{port: port, state: "live"}
	o.sessions[k] = s
	return s
}

// reused removes the closed connection whose tuple was given out again.
func (o *oracle) reused(k pair, port uint16, free int, isn uint32) {
	o.Helper()
	for other, s := range o.sessions {
		if other.proto == packet.TCP && other.remote == k.remote && s.port == port && !o.independent(k.proto) {
			if s.state != "closed" || !after(isn, s.out) || free*10 >= oraclePorts {
				o.Fatalf("%+v took port %d from %+v %+v with %d ports free", k, port, other, s, free)
			}
			delete(o.sessions, other)
			return
		}
	}
	o.Fatalf("%+v got port %d, which is not free", k, port)
}

// compare checks that oracle and table know the same.
func (o *oracle) compare() {
	o.Helper()
	n := 0
	for s := range o.Sessions() {
		n++
		k := pair{who{s.Proto, s.Inner}, s.Remote}
		w := o.sessions[k]
		if w == nil {
			o.Fatalf("the table has %+v, which should not be", s)
		}
		if o.seen(k) != s.External || w.state != s.State || o.instantOf(w.deadline) != s.Expires {
			o.Fatalf("the table has %+v, which should be %+v", s, w)
		}
	}
	if n != len(o.sessions) {
		o.Fatalf("the table has %d sessions, should have %d", n, len(o.sessions))
	}
	s := o.Stats()
	ports, tuples := 0, 0
	for w := range o.held {
		if w.remote.IsValid() {
			tuples++
		} else {
			ports++
		}
	}
	if s.Mappings != len(o.mappings) || s.HeldPorts != ports || s.HeldTuples != min(tuples, oracleMax) {
		o.Fatalf("%d mappings, %d and %d on hold; should be %d, %d and %d", s.Mappings, s.HeldPorts, s.HeldTuples, len(o.mappings), ports, tuples)
	}
	audit(o, o.Table)
}

// datagram sends UDP or an echo request from inside.
func (o *oracle) datagram(k pair) {
	o.Helper()
	timer := 300 * time.Second
	var got packet.Outcome
	if k.proto == packet.ICMP {
		timer = 60 * time.Second
		_, got = o.echoOut(k.inner, k.remote.Addr())
	} else {
		_, got = o.udpOut(k.inner, k.remote)
	}
	s := o.sessions[k]
	if s == nil {
		if s = o.created(k, got, 0); s == nil {
			return
		}
	} else if got != packet.Pass || o.p.SrcPort != s.port {
		o.Fatalf("%+v: %v from port %d, want port %d", k, got, o.p.SrcPort, s.port)
	}
	s.deadline = o.in(timer)
}

// answer sends UDP or an echo reply from outside to a port.
func (o *oracle) answer(proto packet.Proto, remote netip.AddrPort, port uint16) {
	o.Helper()
	var at netip.AddrPort
	var got packet.Outcome
	if proto == packet.ICMP {
		at, got = o.echoIn(remote.Addr(), port)
	} else {
		at, got = o.udpIn(remote, netip.AddrPortFrom(external, port))
	}
	want, inner := o.arrives(proto, remote, port)
	if got != want || got == packet.Pass && at != inner {
		o.Fatalf("from %v to port %d: %v at %v, want %v at %v", remote, port, got, at, want, inner)
	}
}

// answerAt sends UDP or an echo reply from outside to an inner endpoint, which
// arrives there where the endpoint has sent to the remote.
func (o *oracle) answerAt(k pair) {
	o.Helper()
	var at netip.AddrPort
	var got packet.Outcome
	if k.proto == packet.ICMP {
		at, got = o.echoTo(k.remote.Addr(), k.inner)
	} else {
		at, got = o.udpIn(k.remote, k.inner)
	}
	want := packet.NoMapping
	if o.sessions[k] != nil {
		want = packet.Pass
	}
	if got != want || at != k.inner {
		o.Fatalf("%+v is answered: %v at %v, want %v", k, got, at, want)
	}
}

// arrives says what becomes of a packet from outside.
func (o *oracle) arrives(proto packet.Proto, remote netip.AddrPort, port uint16) (packet.Outcome, netip.AddrPort) {
	for k, s := range o.sessions {
		if k.proto == proto && k.remote == remote && s.port == port {
			return packet.Pass, k.inner
		}
	}
	for w, m := range o.mappings {
		if w.proto == proto && m.port == port {
			return packet.Filtered, netip.AddrPort{}
		}
	}
	return packet.NoMapping, netip.AddrPort{}
}

// chooser draws a number below n.
type chooser func(n int) int

func choose[T any](c chooser, from ...T) T { return from[c(len(from))] }

// command draws one thing to happen and makes it happen.
func (o *oracle) command(c chooser) {
	o.Helper()
	p := choose(c, packet.TCP, packet.TCP, packet.UDP, packet.ICMP)
	k := pair{who{p, ap(choose(c, oracleInner...))}, ap(choose(c, oracleRemote...))}
	if p == packet.ICMP {
		k.remote = netip.AddrPortFrom(k.remote.Addr(), 0)
	}
	verb := c(16)
	switch {
	case verb == 0:
		o.wait(time.Duration(c(1<<20)) * choose[time.Duration](c, 1, 10, 130) * time.Microsecond)
		if c(20) == 0 {
			o.wait(2 * time.Hour)
		}
		o.pass()
	case verb == 1:
		o.manage(c, k)
	case verb < 4 && p != packet.TCP && o.mode == identity:
		o.answerAt(k)
	case verb < 4 && p != packet.TCP:
		o.answer(p, k.remote, uint16(2000+c(oraclePorts+1)))
	case p != packet.TCP:
		o.datagram(k)
	case verb < 7:
		o.syn(k, uint32(1+c(1<<30)))
	case verb < 10:
		o.handshake(k)
	case verb < 12:
		o.finish(k)
	default:
		o.segment(k, c(2), choose(c, packet.ACK, packet.ACK, finAck, finAck, finAck, finAck, finAck, rstAck), c(2)*100)
	}
}

// manage closes, refuses or revokes something, of one inner address or of remotes.
func (o *oracle) manage(c chooser, k pair) {
	o.Helper()
	s := o.sessions[k]
	switch c(6) {
	case 0, 1:
		if s != nil {
			o.Close(Flow{k.proto, o.seen(k), k.remote}, o.now)
			o.drop(k)
		}
	case 2, 3:
		if s == nil {
			return
		}
		o.PortRefused(Flow{k.proto, o.seen(k), k.remote}, o.now)
		if o.mode == identity {
			return
		}
		for other := range o.sessions {
			if other == k || k.proto != packet.TCP && other.who == k.who {
				o.drop(other)
			}
		}
	case 4:
		n := 0
		for other := range o.sessions {
			if other.inner.Addr() == k.inner.Addr() {
				o.drop(other)
				n++
			}
		}
		if got := o.Revoke(k.inner.Addr(), o.now); got != n {
			o.Fatalf("%d sessions revoked, want %d", got, n)
		}
	case 5:
		if c(8) != 0 {
			return // it would leave little to look at
		}
		remote, n := netip.PrefixFrom(k.remote.Addr(), choose(c, 0, 8, 30, 31, 32, 32)), 0
		for other := range o.sessions {
			if remote.Contains(other.remote.Addr()) {
				o.drop(other)
				n++
			}
		}
		if got := o.RevokeRemote(remote, o.now); got != n {
			o.Fatalf("%d sessions to %v revoked, want %d", got, remote, n)
		}
	}
}

// the table agrees with the oracle on everything that both know, step by step.
func TestTableAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "choice") }
		o := newOracle(t, choose(c, AddressAndPortDependent, EndpointIndependent, identity), c(256))
		for range 60 {
			o.command(c)
			o.compare()
		}
	})
}

// The same over long histories, in which ports run out and come back.
func TestTableAgainstOracleAtLength(t *testing.T) {
	for seed := range 9 {
		dice := rand.New(rand.NewPCG(uint64(seed), 1))
		o := newOracle(t, [...]Mapping{AddressAndPortDependent, EndpointIndependent, identity}[seed%3], seed)
		if seed >= 3 { // a table that has been up for thirteen years sees its ticks wrap
			o.now = lastTick - packet.Instant(time.Hour)
		}
		for range 10_000 {
			o.command(dice.IntN)
			o.compare()
		}
		if seed >= 3 && o.now < lastTick {
			t.Errorf("seed %d: the ticks have not wrapped", seed)
		}
		s := o.Stats()
		for _, r := range []Reason{ReasonNoPorts, ReasonSessions, ReasonHalfOpen} {
			if s.Refused.Of(r) == 0 && (r != ReasonNoPorts || o.mode != identity) {
				t.Errorf("seed %d: nothing was refused for %v", seed, r)
			}
		}
		if o.mode == AddressAndPortDependent && (s.Refused.Of(ReasonPorts) == 0 || s.Ended.Of(ReasonReused) == 0) {
			t.Errorf("seed %d: refused %v, ended %v", seed, s.Refused, s.Ended)
		}
	}
}

// Without a sweep in between, nothing depends on when it comes but quotas and
// ports: no tuple is shared, and all that is known in several places agrees.
func TestTableWithoutSweep(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mode := rapid.SampledFrom([]Mapping{AddressAndPortDependent, EndpointIndependent}).Draw(t, "mode")
		l := newLab(t, func(c *Config) { c.Ports, c.TCPMapping, c.MaxSessions = PortRange{2000, 2011}, mode, 40 })
		for range rapid.IntRange(1, 200).Draw(t, "packets") {
			from, to := ap(rapid.SampledFrom(oracleInner).Draw(t, "inner")), ap(rapid.SampledFrom(oracleRemote).Draw(t, "remote"))
			l.wait(time.Duration(rapid.Int64Range(0, int64(40*time.Second)).Draw(t, "wait")))
			at := netip.AddrPortFrom(external, uint16(rapid.IntRange(1999, 2012).Draw(t, "port")))
			flags := rapid.SampledFrom([]packet.TCPFlags{packet.SYN, packet.SYN, synAck, packet.ACK, finAck, packet.RST}).Draw(t, "flags")
			seq := uint32(rapid.IntRange(0, 3).Draw(t, "seq"))
			c := l.conn(from, to)
			switch rapid.IntRange(0, 6).Draw(t, "verb") {
			case 0:
				l.udpOut(from, to)
			case 1:
				l.udpIn(to, at)
			case 2:
				l.echoOut(from, to.Addr())
			case 3:
				l.ingress(c.build(to, at, seg{flags: flags, seq: seq, ack: seq}))
			case 4:
				l.Expire(l.now, rapid.IntRange(0, 30).Draw(t, "budget"))
			default:
				c.send(seg{flags: flags, seq: seq, ack: seq})
			}
			audit(t, l.Table)
		}
	})
}
