package far

import (
	"time"

	"github.com/sallyport-net/sallyport/bench/wire"
)

// generator sends what a run has ordered last, from the goroutine of its own, until
// the order is over, another takes its place, or the server ends.
type generator struct {
	server   *Server
	run      *run
	number   uint64
	pace     pace
	flows    int // the first of the run's joins, which have turns
	turn     int
	out      *outbox
	payloads [batch][]byte
}

// generate lets a run's order be done. The caller holds the lock.
func (s *Server) generate(r *run, h wire.Head, o wire.Order, now time.Time) wire.Reason {
	fresh, reason := s.table.generate(r, h, o)
	if !fresh || o.Rate == 0 {
		return reason
	}
	g := &generator{
		server: s, run: r, number: h.Sequence, flows: int(r.order.Flows),
		pace: newPace(float64(o.Rate), now, o.For),
		out:  newOutbox(s.sockets[0].raw),
	}
	for i := range g.payloads {
		g.payloads[i] = make([]byte, o.Size)
	}
	s.spawn(func() error { return s.unlessOver(g.work()) })
	return wire.ReasonNone
}

func (g *generator) work() error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		n, again, over := g.pace.take(now)
		if over || !g.collect(now, n) {
			return nil
		}
		if n == 0 {
			timer.Reset(again)
			select {
			case <-timer.C:
			case <-g.server.quit:
				return nil
			}
			continue
		}
		if err := g.out.flush(); err != nil {
			return err
		}
		g.count()
	}
}

// collect makes the next n packets. It is false when another order has come.
func (g *generator) collect(now time.Time, n int) bool {
	g.server.mu.Lock()
	defer g.server.mu.Unlock()
	if g.run.number != g.number || g.run.over {
		return false
	}
	g.run.used = now
	for i := range n {
		j := &g.run.joins[g.turn]
		if g.turn++; g.turn == g.flows {
			g.turn = 0
		}
		wire.Head{Kind: wire.KindGenerated, Flags: uint8(g.number), Flow: j.flow, Run: g.run.id, Sequence: j.sequence, Time: uint64(now.UnixNano())}.Put(g.payloads[i])
		j.sequence++
		g.out.add(&j.to, &j.from, g.payloads[i])
	}
	return true
}

func (g *generator) count() {
	sent, failed := g.out.take()
	g.server.counters.generated.Add(sent)
	g.server.counters.unsent.Add(failed)
	g.server.mu.Lock()
	defer g.server.mu.Unlock()
	g.run.tally.report.Generated += sent
	g.run.tally.report.Failed += failed
}
