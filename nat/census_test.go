package nat

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// count takes a census of at most budget records a step.
func (l *lab) count(c CensusConfig, budget int) PortReport {
	n := NewCensus(c)
	for !l.Count(n, budget, l.now) {
	}
	return n.Report()
}

// naive is what a census must find, counted with maps from everything at once. The lists
// are whole.
func naive(t *Table, c CensusConfig) (r PortReport) {
	busy, hosts, by := map[netip.AddrPort]*PortUse{}, map[netip.Addr]*SandboxUse{}, map[netip.Addr]int{}
	at := func(remote netip.AddrPort) *PortUse {
		if busy[remote] == nil {
			busy[remote] = &PortUse{Proto: packet.TCP, Remote: remote}
		}
		return busy[remote]
	}
	for i := uint32(1); i < t.hosts.top; i++ {
		if h := t.hosts.at(i); h.known {
			hosts[addrOf(h.addr)] = &SandboxUse{Inner: addrOf(h.addr)}
		}
	}
	independent := func(p packet.Proto) bool { return p != packet.TCP || t.config.TCPMapping == EndpointIndependent }
	spaces := [spaceCount]PortUse{{Proto: packet.TCP}, {Proto: packet.UDP}, {Proto: packet.ICMP}}
	seen := map[who]bool{}
	for i := uint32(1); i < t.sessions.top; i++ {
		s := t.sessions.at(i)
		if s.state == stateFree {
			continue
		}
		h := hosts[addrOf(s.inner)]
		h.Sessions++
		if s.state == stateOpening {
			h.HalfOpen++
		}
		if s.to().addrPort() == c.Remote && s.proto == c.Proto {
			by[addrOf(s.inner)]++
		}
		w := who{s.proto, s.from().addrPort()}
		if t.config.Identity || independent(s.proto) && seen[w] {
			continue
		}
		seen[w] = true
		h.Ports++
		h.PerProtocol[spaceOf(s.proto)]++
		if independent(s.proto) {
			spaces[spaceOf(s.proto)].Used++
		} else {
			at(s.to().addrPort()).Used++
		}
	}
	for i := t.tuples.head; i != 0; i = t.tuples.at(i).next {
		at(tuple(t.tuples.at(i).key).remote().addrPort()).Held++
	}
	for i := t.heldPorts.head; i != 0; i = t.heldPorts.at(i).next {
		spaces[t.heldPorts.at(i).key>>16].Held++
	}
	for i := range spaces {
		if u := &spaces[i]; !t.config.Identity && independent(u.Proto) {
			u.Left = t.blank.total - u.taken()
			r.Spaces = append(r.Spaces, *u)
		}
	}
	if asked := c.Remote.IsValid(); asked {
		r.Chosen = PortUse{Proto: c.Proto, Remote: c.Remote}
		for inner, n := range by {
			r.By = append(r.By, InnerUse{inner, n})
			r.Chosen.Used += n
		}
		if u := spaces[spaceOf(c.Proto)]; t.config.Identity || independent(c.Proto) {
			r.Chosen.Held, r.Chosen.Left = u.Held, u.Left
		} else {
			if u := busy[c.Remote]; u != nil {
				r.Chosen.Held = u.Held
			}
			r.Chosen.Left = t.blank.total - r.Chosen.taken()
		}
	}
	for _, u := range busy {
		u.Left = t.blank.total - u.taken()
		r.Busiest = append(r.Busiest, *u)
	}
	for _, u := range hosts {
		r.Sandboxes = append(r.Sandboxes, *u)
	}
	slices.SortFunc(r.By, func(a, b InnerUse) int { return cmp.Or(b.Sessions-a.Sessions, a.Inner.Compare(b.Inner)) })
	slices.SortFunc(r.Busiest, func(a, b PortUse) int {
		return cmp.Or(b.Used+b.Held-a.Used-a.Held, a.Remote.Compare(b.Remote))
	})
	slices.SortFunc(r.Sandboxes, func(a, b SandboxUse) int {
		return cmp.Or(b.Ports-a.Ports, b.Sessions-a.Sessions, a.Inner.Compare(b.Inner))
	})
	return r
}

// same compares a census with the naive count, of which it may have the first ones only.
func same(tb reporter, got, want PortReport, top int) {
	tb.Helper()
	cut := min(len(want.Busiest), top)
	missed := 0
	if cut < len(want.Busiest) {
		missed = want.Busiest[cut].taken()
	}
	if got.Missed != missed {
		tb.Fatalf("%d may be missed, should be %d", got.Missed, missed)
	}
	if !slices.Equal(got.Busiest, want.Busiest[:cut]) {
		tb.Fatalf("busiest %+v, should be %+v", got.Busiest, want.Busiest[:cut])
	}
	if hosts := want.Sandboxes[:min(len(want.Sandboxes), top)]; !slices.Equal(got.Sandboxes, hosts) {
		tb.Fatalf("sandboxes %+v, should be %+v", got.Sandboxes, hosts)
	}
	if !slices.Equal(got.Spaces, want.Spaces) || !slices.Equal(got.By, want.By) || got.Chosen != want.Chosen {
		tb.Fatalf("got %+v by %v and %+v, should be %+v by %v and %+v", got.Chosen, got.By, got.Spaces, want.Chosen, want.By, want.Spaces)
	}
}

// C-10: a census in steps of any size finds what a naive count finds.
func TestCensusAgainstNaiveCount(t *testing.T) {
	found := PortReport{}
	for seed := range 12 {
		o, dice := history(t, [...]Mapping{AddressAndPortDependent, EndpointIndependent, identity}[seed%3], seed, 200)
		for range 60 {
			for range 10 {
				o.command(dice.IntN)
			}
			c := CensusConfig{Proto: choose(dice.IntN, packet.TCP, packet.TCP, packet.UDP, packet.ICMP), Top: 1 + dice.IntN(4)}
			if dice.IntN(8) > 0 {
				c.Remote = ap(choose(dice.IntN, oracleRemote...))
			}
			if c.Proto == packet.ICMP && c.Remote.IsValid() {
				c.Remote = netip.AddrPortFrom(c.Remote.Addr(), 0)
			}
			r := o.count(c, 1+dice.IntN(50))
			same(o, r, naive(o.Table, c), c.Top)
			found.Chosen.Used += r.Chosen.Used
			found.Chosen.Held += r.Chosen.Held
			found.Missed += r.Missed
		}
	}
	if found.Chosen.Used < 100 || found.Chosen.Held < 100 || found.Missed < 100 {
		t.Errorf("%+v proves little", found)
	}
}

// Who uses the ports to db:5432, and how many are left: the busiest destination is found and
// counted exactly among more destinations than there are counters for, and what may be missed
// is said.
func TestCensusFindsTheBusiest(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits = Limits{-1, -1, -1, -1, 0} })
	db := ap("203.0.113.200:5432")
	dice := rand.New(rand.NewPCG(1, 2))
	to := map[netip.AddrPort]int{}
	for i := range 40_000 {
		remote := makeEndpoint(0xcb000000+uint32(dice.IntN(20_000)), 443).addrPort()
		if i%8 == 0 {
			remote = db
		}
		to[remote]++
		l.conn(makeEndpoint(0x0a000001+uint32(i>>3%5), uint16(1000+i)).addrPort(), remote).syn()
	}
	for range 100 { // some on hold
		for s := range l.Sessions() {
			if s.Remote == db {
				l.Close(Flow{s.Proto, s.External, db}, l.now)
				break
			}
		}
	}
	r := l.count(CensusConfig{Proto: packet.TCP, Remote: db}, 1000)
	want := PortUse{Proto: packet.TCP, Remote: db, Used: 4900, Held: 100, Left: 64512 - 5000}
	if r.Busiest[0] != want || r.Chosen != want {
		t.Errorf("busiest %+v, chosen %+v", r.Busiest[0], r.Chosen)
	}
	if r.Missed < 1 || r.Missed > 40_000/candidates {
		t.Errorf("%d may be missed", r.Missed)
	}
	for _, u := range r.Busiest {
		if to[u.Remote] != u.taken() {
			t.Errorf("%+v should have %d", u, to[u.Remote])
		}
		delete(to, u.Remote)
	}
	for remote, n := range to {
		if n > r.Missed {
			t.Errorf("%v with %d is missing, though no more than %d should be", remote, n, r.Missed)
		}
	}
	if len(r.By) != 5 || r.By[0].Sessions < 970 || len(r.Sandboxes) != 5 {
		t.Errorf("by %v, sandboxes %v", r.By, r.Sandboxes)
	}
	if len(l.count(CensusConfig{Top: 5000}, 1000).Busiest) > candidates {
		t.Error("the lists are not bounded")
	}
}

// What goes on between the steps breaks nothing, and what does not change is counted right.
func TestCensusAmidTraffic(t *testing.T) {
	for seed := range 6 {
		o, dice := history(t, [...]Mapping{AddressAndPortDependent, EndpointIndependent, identity}[seed%3], seed, 300)
		for range 20 {
			n := NewCensus(CensusConfig{Proto: packet.TCP, Remote: ap(oracleRemote[0])})
			for !o.Count(n, 1, o.now) {
				o.command(dice.IntN)
			}
			for _, u := range n.Report().Spaces {
				if u.Used < 0 || u.Held < 0 || u.Left < 0 || u.Left > oraclePorts {
					t.Fatalf("got %+v", u)
				}
			}
		}
	}
}

// C-10: a read-out in steps tells of every session once.
func TestC10SessionsInSteps(t *testing.T) {
	o, dice := history(t, AddressAndPortDependent, 4, 500)
	whole, end := o.AppendSessions(nil, 0, 1<<30)
	if len(whole) != o.sessionsLive() || end != 0 || len(whole) < 5 {
		t.Fatalf("%d sessions of %d, to be gone on with at %d", len(whole), o.sessionsLive(), end)
	}
	for range 20 {
		var some []Session
		steps := 0
		for at := uint32(0); steps == 0 || at != 0; steps++ {
			some, at = o.AppendSessions(some, at, 1+dice.IntN(9))
		}
		if !slices.Equal(some, whole) || steps < 2 {
			t.Fatalf("%d steps found %v, should be %v", steps, some, whole)
		}
	}
	empty := newLab(t, nil)
	if some, at := empty.AppendSessions(nil, 0, 10); len(some) != 0 || at != 0 {
		t.Errorf("an empty table has %v, to be gone on with at %d", some, at)
	}
}

func (o *oracle) sessionsLive() int { return len(o.sessions) }

// An op is one step of 2048 records of a table with a million sessions: the time for which
// it keeps a table's lock. The longest one's is the processor's.
func BenchmarkCensusStep(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := populate(b, 1_000_000)
	ask := CensusConfig{Proto: packet.TCP, Remote: remote(1), Top: candidates}
	var step effort
	c := NewCensus(ask)
	for b.Loop() {
		step.start()
		done := p.Count(c, 2048, p.now)
		step.stop()
		if done {
			c = NewCensus(ask)
		}
	}
	b.ReportMetric(float64(step.longest.Microseconds()), "us/longest")
}

// As BenchmarkCensusStep, of a read-out of all sessions.
func BenchmarkSessionsStep(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := populate(b, 1_000_000)
	var step effort
	at, buf := uint32(0), make([]Session, 0, 2048)
	for b.Loop() {
		step.start()
		_, at = p.AppendSessions(buf, at, 2048)
		step.stop()
	}
	b.ReportMetric(float64(step.longest.Microseconds()), "us/longest")
}
