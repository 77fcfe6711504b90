package scenario

import (
	"context"
	"fmt"
	"time"

	"github.com/sallyport-net/sallyport/bench/tcp"
	"github.com/sallyport-net/sallyport/bench/wire"
)

const (
	streams = 4
	// maxResent is from how many segments sent again per GB on something loses packets.
	maxResent = 100
	usualMTU  = 1420
	// inTail is how much longer than a transfer lasts the far side sends: no stream ends before.
	inTail = 15 * time.Second
)

// bulk moves bytes by TCP, to the sandbox if in is set.
func (r *runner) bulk(ctx context.Context, o *outcome, in bool) error {
	c, err := r.crowd(ctx, mainGroup, crowdSize)
	if err != nil {
		return err
	}
	mtu := c.ends[0].Gateway.MTU
	if mtu == 0 {
		mtu = usualMTU
	}
	b, err := tcp.NewBulk(tcp.BulkConfig{Inner: c.inners[0], MTU: mtu})
	if err != nil {
		return err
	}
	defer b.Close()
	a, err := c.source.Attach(0, b)
	if err != nil {
		return err
	}
	defer a.Close()
	b.Use(a)
	return r.step(ctx, o, fmt.Sprintf("%d streams", streams), load{Sandboxes: 1, Flows: streams, Seconds: r.cfg.For.Seconds()}, func(s *step) error {
		if _, _, err := r.move(ctx, c, b, r.cfg.Try, in); err != nil { // keys and windows are warm after this
			return err
		}
		before, err := r.meter.Read(ctx)
		if err != nil {
			return err
		}
		moved, run, err := r.move(ctx, c, b, r.cfg.For, in)
		after, uerr := r.meter.Read(ctx)
		if err == nil {
			err = uerr
		}
		if gb := float64(moved.Bytes) / 1e9; gb > 0 {
			s.Figures[figureGbps] = 8 * gb / moved.Took.Seconds()
			spent := after.Since(before)
			process, core := r.meter.Seen()
			if process {
				s.Figures[figureProcessGB] = spent.Process.Seconds() / gb
			}
			if core {
				s.Figures[figureCoreGB] = spent.Core.Seconds() / gb
			}
			if !in { // inwards the far side's kernel knows
				s.Figures[figureResent] = float64(moved.Resent) / gb
			}
		} else if err == nil {
			s.fail("no byte arrived")
		}
		if s.Figures[figureResent] > maxResent {
			s.mark("more than %d segments per GB were sent again: something loses packets", maxResent)
		}
		report, rerr := c.source.Report(ctx, run, r.remotes[0])
		if rerr == nil {
			r.checkSources(s, report)
		}
		if err == nil {
			err = rerr
		}
		return err
	})
}

// move moves bytes in a run of its own, which a crowd that sends nothing meanwhile opens.
func (r *runner) move(ctx context.Context, opener *crowd, b *tcp.Bulk, d time.Duration, in bool) (m tcp.Moved, run uint64, err error) {
	run = newRun()
	if _, err := opener.source.Report(ctx, run, r.remotes[0]); err != nil {
		return m, run, err
	}
	t := tcp.Transfer{Remote: r.remotes[0], In: in, For: d}
	sealer := wire.NewSealer(r.key)
	for i := range streams {
		hello := headOf(wire.KindSink, run)
		if in {
			hello = sealer.Append(nil, wire.Control{
				Head: wire.Head{Kind: wire.KindSource, Run: run, Sequence: uint64(i)}, Until: time.Now().Add(wire.Validity),
				Order: wire.Order{For: d + inTail},
			})
		}
		t.Hellos = append(t.Hellos, hello)
	}
	m, err = b.Run(ctx, t)
	return m, run, err
}

// headOf is a message that is no more than its head.
func headOf(kind wire.Kind, run uint64) []byte {
	b := make([]byte, wire.HeadSize)
	wire.Head{Kind: kind, Run: run}.Put(b)
	return b
}
