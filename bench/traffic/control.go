package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// Messages to far sides go as a sandbox's packets, and may be lost like them.
const (
	// messagePort is where they come from; no load uses it.
	messagePort = firstPort - 1
	// messageTries is how often one is sent, messageWait how long its answer is waited for.
	messageTries = 10
	messageWait  = 300 * time.Millisecond
	mailSize     = 16
	messageTTL   = 64
)

// ErrUnanswered says that a far side did not answer a message.
var ErrUnanswered = errors.New("the far side does not answer")

// mail holds answers to messages.
type mail chan []byte

func newMail() mail { return make(mail, mailSize) }

// put keeps a copy of an answer. Nobody waits long for one, so that there is room unless
// somebody repeats them; then they are lost.
func (m mail) put(b []byte) bool {
	select {
	case m <- slices.Clone(b):
	default:
	}
	return true
}

// Report asks a far side, as the first sandbox, what it counted of a run. The first
// time, this opens the run: only then its packets count and its echoes are answered.
func (s *Source) Report(ctx context.Context, run uint64, far netip.AddrPort) (wire.Report, error) {
	s.busy.Lock()
	defer s.busy.Unlock()
	r, err := s.report(ctx, run, far)
	return r, wrap(fmt.Sprintf("ask %v for its report", far), err)
}

func (s *Source) report(ctx context.Context, run uint64, far netip.AddrPort) (report wire.Report, err error) {
	_, err = s.exchange(ctx, far, wire.Control{Head: wire.Head{Kind: wire.KindReport, Run: run}}, &report)
	return report, err
}

// exchange sends a message until it is answered. The caller holds s.busy.
func (s *Source) exchange(ctx context.Context, far netip.AddrPort, c wire.Control, report *wire.Report) (wire.Control, error) {
	i := slices.IndexFunc(s.ends, func(e *end) bool { return len(e.inners) > 0 })
	if i < 0 {
		return c, errors.New("there is no sandbox to send from")
	}
	e := s.ends[i]
	from := netip.AddrPortFrom(e.inners[0], messagePort)
	c.Head.Time = uint64(s.now()) // tells it from those before
	for range messageTries {
		c.Until = time.Now().Add(wire.Validity)
		payload := s.sealer.Append(nil, c)
		b := make([]byte, headers+len(payload))
		b = b[:packet.BuildUDP(b, from, far, payload, messageTTL, 0)]
		select {
		case e.outbox <- b:
			e.alarm.wake()
		default:
		}
		timer := time.NewTimer(messageWait)
		answer, err := s.await(ctx, timer.C, c, report)
		timer.Stop()
		if !errors.Is(err, ErrUnanswered) {
			return answer, err
		}
	}
	began := time.Now()
	if err := e.tunnel.Rehandshake(e.key); err != nil {
		return c, err
	}
	if err := s.shaken(ctx, []*end{e}, began, handshake); errors.Is(err, ErrDead) {
		return c, fmt.Errorf("%w: %v passes no message on to %v and shakes hands no more; look whether it runs", ErrDead, e.gateway.Endpoint, far)
	}
	return c, fmt.Errorf("%w: %v, %d times; look whether it runs, has the same key, and is reached from the gateway, which must know the sandbox as %v", ErrUnanswered, far, messageTries, e.inners[0])
}

// await waits for the answer to a message.
func (s *Source) await(ctx context.Context, over <-chan time.Time, asked wire.Control, report *wire.Report) (c wire.Control, err error) {
	for {
		select {
		case b := <-s.mail:
			var v wire.Verdict
			if report != nil && len(b) == wire.ReportSize {
				c, *report, v = s.sealer.OpenReport(b, time.Now())
			} else {
				c, v = s.sealer.Open(b, time.Now())
			}
			if v != wire.Good || c.Head.Run != asked.Head.Run || c.Head.Time != asked.Head.Time {
				continue
			}
			if c.Head.Kind == wire.KindRefusal {
				return c, fmt.Errorf("the far side refuses: %v", c.Order.Reason)
			}
			return c, nil
		case <-over:
			return c, ErrUnanswered
		case <-ctx.Done():
			return c, context.Cause(ctx)
		}
	}
}

// joins are the flows of a run that told the far side where they are.
type joins struct {
	run uint64

	mu     sync.Mutex
	sealer *wire.Sealer
	joined []bool // by number on the wire
	count  int
}

// put writes the message of a flow, or nothing if it has joined.
func (j *joins) put(b []byte, l *lane, v visit) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.joined[v.number] {
		return 0
	}
	payload := j.sealer.Append(nil, wire.Control{
		Head:  wire.Head{Kind: wire.KindJoin, Flow: v.number, Run: j.run},
		Until: time.Now().Add(wire.Validity),
	})
	e := l.set.endpoints(v.flow)
	from := netip.AddrPortFrom(addressOf(e.inner), e.port)
	return packet.BuildUDP(b, from, netip.AddrPortFrom(addressOf(e.to.addr), e.to.port), payload, messageTTL, 0)
}

// answer takes in that a flow has joined. Whether it is sealed rightly does not matter:
// it came by the tunnel, and if it is wrong packets will be missing.
func (j *joins) answer(number uint16) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if int(number) < len(j.joined) && !j.joined[number] {
		j.joined[number] = true
		j.count++
	}
}

// left is how many have not joined.
func (j *joins) left() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.joined) - j.count
}

// Ingress is what came of an order to a far side to send.
type Ingress struct {
	Flows    int           // that joined
	Took     time.Duration // from the order to the last look
	Received Received
	// Report is the far side's, after that. Report.Generated is how many packets it sent.
	Report wire.Report
	// Lost is how many of those did not come.
	Lost uint64
}

const (
	// joinRate is how many flows join per second, joinTries how often all that have not
	// are asked again.
	joinRate  = 20_000
	joinTries = 5
)

// Generate lets the far side at the first of the load's remotes send to all of its
// flows, after each has said where it is. There may be 65,536 of them. With an error it
// returns what was measured until then.
func (s *Source) Generate(ctx context.Context, l Load) (Ingress, error) {
	s.busy.Lock()
	defer s.busy.Unlock()
	in, err := s.generate(ctx, l)
	return in, wrap("have packets sent back", err)
}

func (s *Source) generate(ctx context.Context, l Load) (in Ingress, err error) {
	r, err := s.prepare(l, 0)
	if err != nil {
		return in, err
	}
	if l = r.load; l.Flows > wireFlows {
		return in, fmt.Errorf("%d flows: the far side can tell %d apart", l.Flows, wireFlows)
	}
	far := l.Remotes[0]
	if _, err = s.report(ctx, l.Run, far); err != nil {
		return in, err
	}
	if in.Flows, err = s.joinAll(ctx, l); err != nil {
		return in, err
	}
	s.begin(r)
	defer r.stop()
	began := s.now()
	s.orders++
	_, err = s.exchange(ctx, far, wire.Control{
		Head:  wire.Head{Kind: wire.KindGenerate, Run: l.Run, Sequence: s.orders},
		Order: wire.Order{Rate: uint64(l.Rate), For: l.For, Size: uint16(l.Size - headers)},
	}, nil)
	if err == nil {
		err = s.listen(ctx, r)
	}
	in.Took, in.Received = s.now()-began, s.Received()
	if err != nil {
		return in, err
	}
	if in.Report, err = s.report(ctx, l.Run, far); err != nil {
		return in, err
	}
	in.Received = s.Received()
	got := in.Received.Arrived()
	in.Lost = in.Report.Generated - min(in.Report.Generated, got)
	return in, nil
}

// joinAll has all flows of a load say where they are.
func (s *Source) joinAll(ctx context.Context, l Load) (int, error) {
	l.Rate, l.Size = joinRate, wire.ControlSize+headers
	l.For = time.Duration(float64(l.Flows) / l.Rate * float64(time.Second))
	j := &joins{run: l.Run, sealer: wire.NewSealer(s.key), joined: make([]bool, l.Flows)}
	for range joinTries {
		r, err := s.prepare(l, wire.KindJoin)
		if err != nil {
			return 0, err
		}
		r.joins = j
		if err := s.perform(ctx, r); err != nil {
			return l.Flows - j.left(), err
		}
		if j.left() == 0 {
			return l.Flows, nil
		}
	}
	return l.Flows - j.left(), fmt.Errorf("%w: %d of %d flows could not join, in %d tries", ErrUnanswered, j.left(), l.Flows, joinTries)
}

// listen waits until what was ordered has come, or nothing more comes.
func (s *Source) listen(ctx context.Context, r *run) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	began, last := s.now(), uint64(0)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		now, n := s.now(), s.Received().Packets
		if now > began+r.load.For && n == last {
			return nil
		}
		last = n
		if now > began+r.load.For || r.load.Rate < pulses {
			continue
		}
		for _, l := range r.lanes {
			if l.set.count > 0 {
				l.quiet.asked(now)
			}
		}
		if q := r.silent(now); q != nil {
			return s.diagnose(ctx, q)
		}
	}
}
