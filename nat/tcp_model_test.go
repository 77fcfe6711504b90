package nat

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
	"pgregory.net/rapid"
)

// A model of what a table must know: honest hosts talk through it over paths that
// lose, double, delay and reorder, while somebody who guesses ports and sequence
// numbers throws segments in from both sides. What the table should know follows
// from what honest segments passed it, without a look at windows.

// link is one tuple, the hosts at its ends (outward: inside), and what the middle
// has seen of their connection.
type link struct {
	*conn
	hosts [2]*tcpHost
	seen  sight
	plan  int // programs' actions that are left
	turns int // connections that are left
}

// sight is what honest segments have told the middle.
type sight struct {
	known    bool
	isn      uint32 // of the SYN from inside
	answered bool   // SYN/ACK or SYN from outside: in, which acknowledges ours: theirs
	theirs   bool
	ours     bool // the SYN from outside is acknowledged
	pending  bool // a SYN from inside while the connection was open: isn2
	isn2     uint32
	end, ack [2]uint32
	fin      [2]bool
	finEnd   [2]uint32
	reset    bool
	// vague: new data came late, with an acknowledgement so old that it lies outside a
	// window that is small. Hosts refuse that, but which of two came first they see otherwise.
	vague bool
	until packet.Instant // when the table may forget it
}

type flight struct {
	at  packet.Instant
	k   *link
	d   int
	mid bool // it arrives at the middle, else at the host
	s   seg
	irs uint32 // what its sender has heard
}

type model struct {
	*lab
	dice                                    *rand.Rand
	links                                   []*link
	air                                     []flight
	loss                                    float64
	delay                                   time.Duration
	attacks                                 int // per hundred steps
	passed, forged, revived, renewed, vague int
}

func (m *model) chance(p float64) bool { return m.dice.Float64() < p }

// isn draws an initial sequence number, often one that will wrap.
func (m *model) isn() uint32 {
	switch m.dice.IntN(3) {
	case 0:
		return -uint32(m.dice.IntN(20_000))
	case 1:
		return 1<<31 - uint32(m.dice.IntN(20_000))
	}
	return m.dice.Uint32()
}

// dial begins the next connection of a link, from the same port.
func (m *model) dial(k *link) {
	m.air = slices.DeleteFunc(m.air, func(f flight) bool { return f.k == k }) // RFC 9293 section 3.4.3: what is old has gone
	k.turns--
	k.plan = 3 + m.dice.IntN(12)
	buffer := []uint32{10, 3000, 60_000, 1_000_000}[m.dice.IntN(4)]
	was := k.hosts[inward]
	first, last := m.isn(), m.isn()
	if was != nil {
		first, last = m.dice.Uint32(), m.dice.Uint32() // they wrap seldom, but lie far from the old ones
	}
	h := &tcpHost{iss: first, scale: m.dice.IntN(10) - 1, buffer: max(buffer, 1000), now: m.now}
	k.hosts[outward] = h
	if was == nil || was.failed || m.chance(0.5) { // else it knows the old one still
		k.hosts[inward] = &tcpHost{passive: true, high: last, scale: m.dice.IntN(10) - 1, buffer: buffer, now: m.now}
	} else if was.state == hostTimeWait {
		h.iss = was.rcv + uint32(m.dice.IntN(1<<20)) // RFC 6191
	}
	r := k.hosts[inward]
	if _, live := k.session(); !live && m.config.TCPMapping == EndpointIndependent && r.state == hostClosed && m.chance(0.3) {
		h.meets, h.expected = true, m.isn() // both at once, as soon as the remote knows the port
	}
	h.open()
	m.flush(k)
}

// flush puts what the hosts of a link have sent into the air.
func (m *model) flush(k *link) {
	for d, h := range k.hosts {
		for _, s := range h.out {
			m.fly(flight{k: k, d: d, mid: true, s: s, irs: h.irs})
		}
		h.out = h.out[:0]
	}
}

func (m *model) fly(f flight) {
	for n := 1; n > 0; n-- {
		if m.chance(m.loss) {
			continue
		}
		if m.chance(m.loss / 2) {
			n++
		}
		f.at = m.now + packet.Instant(time.Millisecond) + packet.Instant(m.dice.Int64N(int64(m.delay)))
		m.air = append(m.air, f)
	}
}

// step lets the next thing happen; false where nothing is left.
func (m *model) step() bool {
	next, at := -1, packet.Instant(1<<62)
	for i, f := range m.air {
		if f.at < at {
			next, at = i, f.at
		}
	}
	var ringing *tcpHost
	var of *link
	for _, k := range m.links {
		for _, h := range k.hosts {
			if h.timer != 0 && h.timer < at {
				ringing, of, at = h, k, h.timer
			}
		}
	}
	if next < 0 && ringing == nil {
		return false
	}
	m.now = max(m.now, at)
	for _, k := range m.links {
		k.hosts[0].now, k.hosts[1].now = m.now, m.now
	}
	if ringing != nil {
		ringing.tick()
		m.flush(of)
		return true
	}
	f := m.air[next]
	m.air = slices.Delete(m.air, next, next+1)
	if f.mid {
		m.cross(f)
		return true
	}
	f.k.hosts[1-f.d].receive(f.s)
	m.flush(f.k)
	return true
}

// act lets a program do something.
func (m *model) act(k *link) {
	h := k.hosts[m.dice.IntN(2)]
	if k.plan--; k.plan < 0 || h.state != hostEstablished && h.state != hostFinWait {
		return
	}
	switch m.dice.IntN(10) {
	case 0, 1, 2, 3:
		if !h.fin {
			h.written += uint32(m.dice.IntN(8000)) % (8 * k.hosts[0].buffer) % (8 * k.hosts[1].buffer)
		}
	case 4, 5:
		h.read()
	case 6, 7:
		h.fin = true
	case 8:
		if h.una == h.high && h.state == hostEstablished {
			h.emit(seg{flags: packet.ACK, seq: h.high - 1, ack: h.rcv, payload: m.dice.IntN(2)}) // a keepalive
		}
	case 9:
		if m.chance(0.3) {
			h.abort()
		}
	}
	h.push()
	m.flush(k)
}

// finish lets programs read and close until both hosts are done, and hosts that
// hear nothing ask.
func (m *model) finish(k *link, busy bool) {
	for _, h := range k.hosts {
		h.read()
		if h.fin = true; h.state == hostEstablished || h.state == hostFinWait {
			h.push()
			if !busy {
				h.emit(seg{flags: packet.ACK, seq: h.high - 1, ack: h.rcv})
			}
		}
	}
	m.flush(k)
}

// run lets a link's connection go on until it ends.
func (m *model) run() {
	m.Helper()
	for _, k := range m.links {
		m.dial(k)
	}
	for n := 0; n < 6000; n++ {
		busy := m.step()
		k := m.links[m.dice.IntN(len(m.links))]
		if m.dice.IntN(100) < m.attacks && n < 4000 {
			m.attack(k)
		}
		if m.chance(0.1) || !busy {
			m.act(k)
		}
		if !busy && m.chance(0.3) {
			m.wait(time.Duration(m.dice.Int64N(int64(7400 * time.Second)))) // nobody says anything
			if m.chance(0.5) {
				m.settle()
			}
		}
		crash := m.chance(0.001) && k.hosts[outward].state != hostSynReceived
		if ended := k.hosts[0].done() && k.hosts[1].done(); ended || crash {
			if k.turns > 0 {
				m.dial(k)
			} else if ended && !busy && m.allDone() {
				return
			}
		} else if k.plan < 0 {
			m.finish(k, busy)
		}
	}
	for _, k := range m.links {
		if !k.hosts[0].done() || !k.hosts[1].done() || k.turns > 0 {
			m.Fatalf("the hosts come to no end, %d turns before it: %+v and %+v; %d in the air", k.turns, *k.hosts[0], *k.hosts[1], len(m.air))
		}
	}
}

func (m *model) allDone() bool {
	for _, k := range m.links {
		if k.turns > 0 || !k.hosts[0].done() || !k.hosts[1].done() {
			return false
		}
	}
	return true
}

// modelRun is what may differ from one run of the model to another.
type modelRun struct {
	seed    uint64
	mode    Mapping
	loss    float64
	delay   time.Duration
	attacks int // in a hundred steps
}

func runModel(tb reporter, r modelRun) *model {
	tb.Helper()
	m := newModel(tb, r.seed, r.mode)
	m.loss, m.delay, m.attacks = r.loss, r.delay, r.attacks
	m.run()
	m.over()
	return m
}

var (
	modelModes   = []Mapping{AddressAndPortDependent, EndpointIndependent, identity}
	modelLosses  = []float64{0, 0.02, 0.1}
	modelDelays  = []time.Duration{time.Millisecond, 300 * time.Millisecond}
	modelAttacks = []int{0, 10, 30}
)

// T-2, T-5, S-1, S-2, S-3, S-5, X-1, X-3, A-6, A-10: the hosts and the table agree about
// every connection, whatever an attacker does.
func TestTCPModel(t *testing.T) {
	total := model{}
	for seed := range 432 {
		r := modelRun{
			uint64(seed), modelModes[seed%3], modelLosses[seed/3%3], modelDelays[seed/9%2], modelAttacks[seed/18%3],
		}
		t.Run(fmt.Sprintf("%+v", r), func(t *testing.T) {
			m := runModel(t, r)
			total.passed += m.passed
			total.forged += m.forged
			total.revived += m.revived
			total.renewed += m.renewed
			total.vague += m.vague
		})
	}
	if total.passed < 50_000 || total.forged < 10_000 || total.revived < 50 || total.renewed < 50 || total.vague > total.passed/1000 {
		t.Errorf("%d honest segments, %d forged, %d connections revived, %d renewed, %d vague: the model is idle",
			total.passed, total.forged, total.revived, total.renewed, total.vague)
	}
}

// The same with choices of a fuzzer, or of rapid.
func FuzzTCPModel(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) {
		runModel(t, modelRun{
			rapid.Uint64().Draw(t, "seed"), rapid.SampledFrom(modelModes).Draw(t, "mode"), rapid.SampledFrom(modelLosses).Draw(t, "loss"),
			rapid.SampledFrom(modelDelays).Draw(t, "delay"), rapid.SampledFrom(modelAttacks).Draw(t, "attacks"),
		})
	}))
}

func newModel(tb reporter, seed uint64, mode Mapping) *model {
	m := &model{dice: rand.New(rand.NewPCG(seed, 3)), lab: newLab(tb, func(c *Config) {
		c.Seed[9] = byte(seed)
		if mode == identity {
			c.Identity, c.External = true, netip.Addr{}
		} else {
			c.TCPMapping = mode
		}
	})}
	for i, to := range []netip.AddrPort{web, web2, web} {
		from := box
		if i == 2 {
			from = box2
		}
		k := &link{conn: m.conn(from, to), turns: 1 + m.dice.IntN(4)}
		if mode == identity {
			k.external = from
		}
		m.links = append(m.links, k)
	}
	return m
}

// over sees that nothing is left when all timers are over.
func (m *model) over() {
	m.Helper()
	m.wait(7441 * time.Second)
	m.settle()
	if s := m.Stats(); s.Sessions != (PerProtocol{}) || s.HalfOpen != 0 || s.Mappings != 0 {
		m.Fatalf("at the end %d sessions, %d half-open, %d mappings", s.Sessions.Of(packet.TCP), s.HalfOpen, s.Mappings)
	}
	audit(m, m.Table)
}
