package failover

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// quick is a configuration in which holds and budgets pass within a history.
var quick = Config{
	Hold: 3 * time.Second, HoldJitter: time.Second, FailbackWindow: 15 * time.Second, Linger: 5 * time.Second,
}

// pair makes the usual three paths and two groups: each host of the active region
// is preferred by one, the passive region comes last.
func pair(w *world, l link) [3]PathID {
	var p [3]PathID
	for i := range p {
		q := l
		if i == 2 {
			q.rtt += 30 * time.Millisecond
		}
		p[i] = w.addPath(q)
	}
	w.setGroup(0, p[0], p[1], p[2])
	w.setGroup(1, p[1], p[0], p[2])
	return p
}

var sound = link{toGateway: true, back: true, rtt: time.Millisecond, jitter: time.Millisecond}

// histories is how many histories of each kind are simulated.
func histories() int {
	switch {
	case testing.Short():
		return 60
	case raceEnabled: // for what has no goroutines
		return 300
	}
	return 1500
}

// TestChaos lets paths die, come back, lose a direction, lag, lose packets, ail,
// lets the worker stall, and lets paths and groups come and go.
func TestChaos(t *testing.T) {
	reasons := map[Reason]int{}
	lingered, steps := 0, 0
	for seed := range uint64(histories()) {
		w := chaos(t, seed)
		for _, v := range w.events {
			reasons[v.Reason]++
			if !v.Switched {
				lingered++
			}
		}
		steps += int(w.count)
		if seed < 20 && chaos(t, seed).trace != w.trace {
			t.Fatalf("seed %d: the same history has different events (I9)", seed)
		}
	}
	t.Logf("%d happenings, reasons %v, %d lost later", steps, reasons, lingered)
	for r := ReasonDead; r <= ReasonRemoved; r++ {
		if reasons[r] < 10 {
			t.Errorf("the histories hardly leave paths because they are %v", r)
		}
	}
	if lingered < 10 {
		t.Error("the histories hardly lose paths on which flows linger")
	}
}

func chaos(t testing.TB, seed uint64) *world {
	w := newWorld(newChecked(t, quick, seed, 0), seed)
	w.lateness = w.upto(20 * time.Millisecond)
	l := sound
	l.rtt = w.upto(60 * time.Millisecond)
	if w.chance.IntN(2) == 0 {
		l.loss = 0.15 * w.chance.Float64() // up to 30 % of round trips
	}
	if w.chance.IntN(2) == 0 {
		l.traffic = 20 * time.Millisecond
	}
	pair(w, l)
	pace := 50*time.Millisecond + w.upto(3*time.Second)
	for w.now < 30_000*ms {
		w.run(w.now + Instant(w.upto(pace)))
		w.trouble(l)
	}
	return w
}

// trouble makes one thing happen.
func (w *world) trouble(fresh link) {
	ids := make([]PathID, 0, len(w.links))
	for p := range w.links {
		ids = append(ids, p)
	}
	slices.Sort(ids)
	p := ids[w.chance.IntN(len(ids))]
	l := w.links[p]
	switch w.chance.IntN(16) {
	case 0, 1:
		l.toGateway, l.back = false, false
	case 2:
		l.toGateway = false
	case 3:
		l.back = false
	case 4, 5, 6:
		l.toGateway, l.back, l.health = true, true, 0
	case 7:
		l.health = HealthUplinkLost
	case 8:
		l.health = HealthDraining
	case 9:
		l.health = HealthFull | Health(w.chance.IntN(8)&w.chance.Int())
	case 10:
		old := l.rtt
		l.rtt += w.upto(500 * time.Millisecond)
		w.after(w.upto(2*time.Second), func(Instant) { l.rtt = old })
	case 11, 12:
		w.stall(w.upto(2 * time.Second))
	case 13:
		w.churn(ids, fresh)
	default:
		for _, q := range ids { // all is well for some time
			*w.links[q] = fresh
		}
		w.run(w.now + Instant(w.upto(6*time.Second)))
	}
}

// churn changes the paths or groups.
func (w *world) churn(ids []PathID, fresh link) {
	if w.now < w.stalledUntil {
		return
	}
	pick := func() PathID { return ids[w.chance.IntN(len(ids))] }
	switch w.chance.IntN(6) {
	case 0:
		if len(ids) > 1 {
			w.removePath(pick())
		}
	case 1, 2:
		if len(ids) < 6 {
			p := w.addPath(fresh)
			w.setGroup(0, append([]PathID{p}, ids...)...)
		}
	case 3:
		w.setGroup(GroupID(w.chance.IntN(3)), pick(), pick(), pick())
	case 4:
		w.removeGroup(w.now, GroupID(w.chance.IntN(4)))
	default:
		w.setGroup(GroupID(w.chance.IntN(2)))
		w.run(w.now + Instant(w.upto(time.Second)))
		if w.now >= w.stalledUntil {
			w.setGroup(0, ids...)
		}
	}
}

// TestCalm checks I3 and I7: histories in which nothing may ever change.
func TestCalm(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(w *world) link
		each func(w *world)
	}{
		{"jitter below the floor", func(w *world) link {
			l := sound
			l.rtt, l.jitter = w.upto(10*time.Millisecond), 35*time.Millisecond
			return l
		}, func(*world) {}},
		{"two packets lost in a row", func(w *world) link {
			l := sound
			l.loss, l.streak = 0.3, 2
			return l
		}, func(*world) {}},
		{"four lost in a row under load", func(w *world) link {
			l := sound
			l.loss, l.streak, l.traffic = 0.5, 4, 4*time.Millisecond
			return l
		}, func(*world) {}},
		{"stalls", func(w *world) link {
			l := sound
			l.rtt = w.upto(80 * time.Millisecond)
			return l
		}, func(w *world) { w.stall(w.upto(time.Duration(1 << w.chance.IntN(33)))) }},
		{"long round trips", func(w *world) link {
			l := sound
			l.rtt, l.jitter = 100*time.Millisecond+w.upto(600*time.Millisecond), 100*time.Millisecond
			return l
		}, func(*world) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range uint64(histories() / 10) {
				w := newWorld(newChecked(t, quick, seed, 0), seed)
				pair(w, tt.make(w))
				for w.now < 20_000*ms {
					w.run(w.now + Instant(w.upto(time.Second)))
					tt.each(w)
				}
				if len(w.events) > 0 {
					t.Fatalf("seed %d: %+v", seed, w.events)
				}
			}
		})
	}
}

// TestDetection measures the time from a cut to the switch.
func TestDetection(t *testing.T) {
	all := func(w *world, p [3]PathID) {
		for _, q := range p[:2] {
			w.links[q].toGateway, w.links[q].back = false, false
		}
	}
	for _, tt := range []struct {
		name  string
		link  link
		fresh time.Duration // traffic
		cut   func(w *world, p [3]PathID)
		to    int
		p50   time.Duration
		most  time.Duration
	}{
		{"host killed, idle", sound, 0,
			func(w *world, p [3]PathID) { w.links[p[0]].toGateway, w.links[p[0]].back = false, false },
			1, 230 * time.Millisecond, 260 * time.Millisecond},
		{"host killed, under load", sound, 4 * time.Millisecond,
			func(w *world, p [3]PathID) { w.links[p[0]].toGateway, w.links[p[0]].back = false, false },
			1, 230 * time.Millisecond, 260 * time.Millisecond},
		{"cut to the gateway, answers to others arrive", sound, 5 * time.Millisecond,
			func(w *world, p [3]PathID) { w.links[p[0]].toGateway = false },
			1, 330 * time.Millisecond, 360 * time.Millisecond},
		{"cut from the gateway", sound, 5 * time.Millisecond,
			func(w *world, p [3]PathID) { w.links[p[0]].back = false },
			1, 230 * time.Millisecond, 260 * time.Millisecond},
		{"region killed", sound, 4 * time.Millisecond, all, 2, 230 * time.Millisecond, 260 * time.Millisecond},
		{"region killed, 40 ms away", link{toGateway: true, back: true, rtt: 40 * time.Millisecond, jitter: 4 * time.Millisecond},
			4 * time.Millisecond, all, 2, 420 * time.Millisecond, 560 * time.Millisecond},
		{"uplink lost", sound, 0,
			func(w *world, p [3]PathID) { w.links[p[0]].health = HealthUplinkLost },
			1, 70 * time.Millisecond, 110 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var took []time.Duration
			for seed := range uint64(300) {
				w := newWorld(newChecked(t, Config{}, seed, 0), seed)
				w.lateness = time.Millisecond
				l := tt.link
				l.traffic = tt.fresh
				p := pair(w, l)
				w.removeGroup(w.now, 1)
				w.run(2000*ms + Instant(w.upto(time.Second)))
				cut := w.now
				tt.cut(w, p)
				w.run(w.now + 1000*ms)
				if len(w.events) != 1 || w.events[0].To != p[tt.to] || !w.events[0].Lost {
					t.Fatalf("seed %d: %+v", seed, w.events)
				}
				took = append(took, time.Duration(w.events[0].At-cut))
			}
			slices.Sort(took)
			p50, p99, most := took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
			t.Logf("p50 %v, p99 %v, max %v", p50, p99, most)
			if p50 > tt.p50 || most > tt.most {
				t.Errorf("p50 %v, max %v; want at most %v, %v", p50, most, tt.p50, tt.most)
			}
		})
	}
}

// FuzzMonitor feeds arbitrary calls. The oracle checks each.
func FuzzMonitor(f *testing.F) {
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 2))
		b := make([]byte, 400)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newChecked(t, quick, 1, 0)
		now := Instant(0)
		var probes []Probe
		for len(b) >= 3 {
			op, x, y := b[0], b[1], b[2]
			b = b[3:]
			p := PathID(x % 8)
			switch op % 10 {
			case 0:
				if len(c.paths) < 6 {
					c.add(now)
				}
			case 1:
				c.remove(now, p)
			case 2:
				c.set(now, GroupID(op/10%3), p, PathID(y%8), PathID(y/8%8))
			case 3:
				c.removeGroup(now, GroupID(op/10%3))
			case 4:
				c.heard(now, p)
			case 5:
				c.answer(now, p, uint64(y), Health(op/10%8))
			case 6, 7:
				if len(probes) > 0 {
					s := probes[len(probes)-1-int(x)%len(probes)]
					c.answer(now, s.Path, s.Sequence, Health(y%16)&7*Health(y>>7))
				}
			default:
				now += Instant(y) * Instant(1+x%4) * ms
				sent, _ := c.poll(now)
				probes = append(probes, sent...)
				probes = probes[max(0, len(probes)-80):]
			}
		}
	})
}
