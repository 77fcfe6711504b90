package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport-net/sallyport/bench/histogram"
	"github.com/sallyport-net/sallyport/bench/trial"
	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/packet"
)

const (
	attachRate = 100 // per second
	// knock is how often a new sandbox asks until it is answered, answerPatience how long.
	knock          = 2 * time.Millisecond
	answerPatience = 5 * time.Second
	knockPort      = 9999
	knockTTL       = 64
	ipUDP          = 20 + 8
)

// knocker asks the far side for new sandboxes, each until it is answered. It is a
// client of a source's end.
type knocker struct {
	run    uint64
	remote netip.AddrPort

	mu      sync.Mutex
	waiting map[uint64]*newcomer // by sequence
}

// newcomer is a sandbox that was just attached.
type newcomer struct {
	inner    netip.Addr
	next     time.Time // when to ask again
	answered chan time.Time
}

// add begins to ask for a sandbox.
func (k *knocker) add(sequence uint64, inner netip.Addr) *newcomer {
	n := &newcomer{inner: inner, answered: make(chan time.Time, 1)}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.waiting[sequence] = n
	return n
}

// remove gives up.
func (k *knocker) remove(sequence uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.waiting, sequence)
}

// Deliver implements traffic.Client.
func (k *knocker) Deliver(packets [][]byte) {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range packets {
		if len(b) < ipUDP {
			continue
		}
		h, ok := wire.Decode(b[ipUDP:])
		if n := k.waiting[h.Sequence]; ok && n != nil && h.Kind == wire.KindEchoAnswer && h.Run == k.run && n.inner == netip.AddrFrom4([4]byte(b[16:20])) {
			delete(k.waiting, h.Sequence)
			n.answered <- now
		}
	}
}

// Fill implements traffic.Client.
func (k *knocker) Fill(bufs [][]byte, sizes []int, offset int) (n int, again time.Duration) {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	for sequence, w := range k.waiting {
		if n == len(bufs) {
			break
		}
		if now.Before(w.next) {
			continue
		}
		w.next = now.Add(knock)
		var payload [wire.HeadSize]byte
		wire.Head{Kind: wire.KindEcho, Run: k.run, Sequence: sequence}.Put(payload[:])
		sizes[n] = packet.BuildUDP(bufs[n][offset:], netip.AddrPortFrom(w.inner, knockPort), k.remote, payload[:], knockTTL, 0)
		n++
	}
	if len(k.waiting) > 0 {
		again = knock
	}
	return n, again
}

// stormed is what came of attaches.
type stormed struct {
	mu            sync.Mutex
	attach, ready *histogram.Histogram
	done, failed  int
	why           error // the first
}

func newStormed() *stormed { return &stormed{attach: histogram.New(), ready: histogram.New()} }

// storm attaches sandboxes at a steady rate, and has each ask the far side until it is answered.
func (r *runner) storm(ctx context.Context, o *outcome) error {
	if r.gateway.fixed() != nil {
		return notRun(errFixed.Error())
	}
	c, err := r.crowd(ctx, mainGroup, crowdSize)
	if err != nil {
		return err
	}
	n := max(1, int(attachRate*r.cfg.For.Seconds()))
	l := load{Rate: attachRate, Sandboxes: n, Seconds: r.cfg.For.Seconds()}
	return r.step(ctx, o, fmt.Sprintf("%d attaches at %d/s", n, attachRate), l, func(s *step) error {
		before, err := r.meter.Read(ctx)
		if err != nil {
			return err
		}
		out := newStormed()
		if err := r.stormOnce(ctx, c, s, n, out); err != nil {
			return err
		}
		after, err := r.meter.Read(ctx)
		out.note(s)
		if err == nil {
			r.costs(s, after.Since(before), uint64(out.done))
		}
		return err
	})
}

// stormOnce attaches n sandboxes. Those that fail are counted.
func (r *runner) stormOnce(ctx context.Context, c *crowd, s *step, n int, out *stormed) error {
	k := &knocker{run: newRun(), remote: r.remotes[0], waiting: map[uint64]*newcomer{}}
	if _, err := c.source.Report(ctx, k.run, k.remote); err != nil {
		return err
	}
	worker := r.members[mainGroup].keys[0].public
	inner, err := r.gateway.attach(ctx, worker) // the client's first
	if err != nil {
		return err
	}
	hold, err := c.source.Attach(0, k, inner.inner)
	if err != nil {
		return err
	}
	defer hold.Close()
	var all sync.WaitGroup
	defer all.Wait()
	began := time.Now()
	for i := range n {
		due := began.Add(time.Duration(i) * time.Second / attachRate)
		if err := trial.Pause(ctx, time.Until(due)); err != nil {
			return err
		}
		all.Go(func() {
			a, err := r.gateway.attach(ctx, worker)
			if err != nil {
				out.miss(err)
				return
			}
			attachedAt := time.Now()
			w := k.add(uint64(i), a.inner)
			if err := hold.Add(a.inner); err != nil {
				out.miss(err)
				return
			}
			hold.Wake()
			out.take(ctx, w, due, attachedAt, func() { k.remove(uint64(i)) })
		})
		out.mu.Lock()
		done := out.done
		out.mu.Unlock()
		r.progress.Rate(float64(done)/time.Since(began).Seconds(), -1)
	}
	all.Wait()
	report, err := c.source.Report(ctx, k.run, k.remote)
	if err == nil {
		r.checkSources(s, report)
	}
	return err
}

// take waits until a sandbox is answered.
func (o *stormed) take(ctx context.Context, w *newcomer, due, attached time.Time, giveUp func()) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerPatience, fmt.Errorf("a sandbox was not answered %v after it was attached", answerPatience))
	defer cancel()
	select {
	case at := <-w.answered:
		o.mu.Lock()
		defer o.mu.Unlock()
		o.done++
		o.attach.Record(attached.Sub(due))
		o.ready.Record(at.Sub(due))
	case <-ctx.Done():
		giveUp()
		o.miss(context.Cause(ctx))
	}
}

func (o *stormed) miss(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failed++
	if o.why == nil {
		o.why = errors.New(oneLine(err))
	}
}

// note takes what came into a step.
func (o *stormed) note(s *step) {
	s.Figures[figureFailed] = float64(o.failed)
	if o.done > 0 {
		s.Figures[figureAttachP50], s.Figures[figureAttachP99] = millis(o.attach.Quantile(0.5)), millis(o.attach.Quantile(0.99))
		s.Figures[figureReady], s.Figures[figureReadyP99] = millis(o.ready.Quantile(0.5)), millis(o.ready.Quantile(0.99))
		s.Latency = latencyOf(o.ready)
	}
	if o.failed > 0 {
		s.fail("%d of %d sandboxes were not attached and answered: %v", o.failed, o.failed+o.done, o.why)
	}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
