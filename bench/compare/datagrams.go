package compare

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/bench/far"
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/bench/trial"
	"github.com/sallyport-net/sallyport/bench/wire"
)

// Datagrams are of this many flows, which take turns packet by packet, so that next to
// nothing can be joined on the way.
const flows = 64

// Sizes of IP packets, in bytes.
const (
	smallSize = 64
	largeSize = innerMTU
	echoSize  = 128
)

// Rates that are tried, in packets per second, and the loss that passes.
const (
	minRate = 1000
	maxRate = 1 << 20
	lowLoss = 0.001
	tries   = 8
	// lag is how long a packet may be under way when the sending ends.
	lag = 20 * time.Millisecond
	// full is from what part of its time on a core counts as busy all the time.
	full = 0.9
)

// limits are those of datagrams and requests. Variants are compared beside each other, so that
// how full their queues are is not looked at.
func limits() search.Limits { return search.Limits{Lost: lowLoss, Reached: 0.97, Full: full} }

// remoteAddress is where datagrams go.
var remoteAddress = netip.AddrPortFrom(serverLink.Addr(), 9000)

// datagrams are both sides of UDP through a tunnel of their own: a sandbox in this
// process, whose packets no kernel touches before the gateway's, so that the gateway is what
// reaches its limit first, and a far side.
type datagrams struct {
	source *traffic.Source
	far    *far.Server
	run    uint64          // of the last load
	was    traffic.Overrun // when that began
}

func newDatagrams(ctx context.Context, c *chain, p *peer) (*datagrams, error) {
	d := &datagrams{}
	key := [wire.KeySize]byte{1} // nobody else is in the chain
	var err error
	if d.far, err = far.New(far.Config{Listen: remoteAddress, Key: key, In: c.server, Sockets: 1}); err != nil {
		return nil, err
	}
	d.source, err = traffic.New(traffic.Config{
		Ends: []traffic.End{{
			PrivateKey: p.private, Inners: []netip.Addr{p.inner},
			Gateway: traffic.Gateway{PublicKey: c.tunnel.public, Endpoint: c.tunnel.endpoint, MTU: c.tunnel.mtu},
		}},
		Place: c.sandbox, Key: key,
	})
	if err == nil {
		err = d.source.Connect(ctx)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *datagrams) close() {
	if d.source != nil {
		d.source.Close()
	}
	_ = d.far.Close() // what it could say is said by missing packets
}

// load begins a run at the far side.
func (d *datagrams) load(size int, rate float64, hold time.Duration) (traffic.Load, error) {
	d.run++
	d.was = d.source.Overrun()
	if !d.far.Open(d.run) {
		return traffic.Load{}, errors.New("the far side has too many runs")
	}
	return traffic.Load{
		Run: d.run, Rate: rate, For: hold, Size: size, Flows: flows, Remotes: []netip.AddrPort{remoteAddress}, Unasked: true,
	}, nil
}

// counts is what both sides counted of a run: dropped is what the side that takes the packets
// in lost itself.
// What may be a duplicate has not arrived.
type counts struct{ sent, arrived, wrong, dropped uint64 }

// egress is what is known of packets that leave.
func (d *datagrams) egress() counts {
	r, _ := d.far.Report(d.run)
	return counts{arrived: r.Arrived(), wrong: wrongSources(r), dropped: r.Dropped}
}

// ingress is what is known of packets that come back.
func (d *datagrams) ingress() counts {
	r, _ := d.far.Report(d.run)
	got := d.source.Received()
	return counts{sent: r.Generated, arrived: got.Arrived(), wrong: wrongSources(r) + got.Wrong(), dropped: d.source.Overrun().Since(d.was)}
}

// wrongSources is how many packets came to the far side from elsewhere than the pair.
func wrongSources(r wire.Report) uint64 {
	n := r.Others
	for _, s := range r.Sources {
		if !slices.Contains(pair[:], s.Addr) {
			n += s.Count
		}
	}
	return n
}

// carried is what came of a rate.
type carried struct {
	search.Datagrams
	asked, rate           float64 // per second, rate is what was delivered
	processEach, coreEach float64 // microseconds for each that arrived
	wrong                 uint64  // from or to a wrong address, or damaged
}

// Passes implements search.Outcome.
func (c carried) Passes() bool { return limits().Passes(c.Datagrams) }

// Starved implements search.Outcome.
func (c carried) Starved() bool { return limits().Starved(c.Datagrams) }

// Blame implements trial.Blamed.
func (c carried) Blame() (by search.Limit, why string) { return limits().Blame(c.Datagrams) }

// Offered implements trial.Blamed.
func (c carried) Offered() float64 { return c.asked }

// way is a direction and size of datagrams.
type way struct {
	in   bool
	size int
}

// try sends at a rate for a while.
func (c *chain) try(ctx context.Context, w way, rate float64, hold time.Duration) (t carried, err error) {
	d := c.datagrams
	l, err := d.load(w.size, rate, hold)
	if err != nil {
		return t, err
	}
	before, err := c.spent(ctx)
	if err != nil {
		return t, err
	}
	send, look := d.blast, d.egress
	if w.in {
		send, look = d.generate, d.ingress
	}
	over, err := send(ctx, l) // the sending is over, and lag
	if err != nil {
		return t, err
	}
	inTime := look().arrived
	then, err := c.spent(ctx)
	if err != nil {
		return t, err
	}
	sent, err := over()
	if err != nil {
		return t, err
	}
	if err := trial.Settle(ctx, func() (uint64, error) { return look().arrived, nil }); err != nil {
		return t, err
	}
	after, err := c.spent(ctx)
	if err != nil {
		return t, err
	}
	all := look()
	n := max(sent, all.sent)
	if n == 0 {
		return t, fmt.Errorf("no packet of %d bytes could be sent at %.0f/s", w.size, rate)
	}
	t.Datagrams = search.Counts{Asked: rate * hold.Seconds(), Sent: n, Arrived: all.arrived, InTime: inTime, Dropped: all.dropped}.Weigh()
	t.asked = rate
	t.Busy = then.Since(before).Busy(hold + lag)
	t.rate, t.wrong = float64(inTime)/hold.Seconds(), all.wrong
	t.processEach, t.coreEach = after.Since(before).Each(max(all.arrived, 1))
	return t, nil
}

// blast sends from the sandbox. over says how many packets were sent.
func (d *datagrams) blast(ctx context.Context, l traffic.Load) (over func() (uint64, error), err error) {
	sent, err := d.source.Blast(ctx, l)
	if err != nil {
		return nil, err
	}
	return func() (uint64, error) { return sent.Packets, nil }, trial.Pause(ctx, lag)
}

// generate lets the far side send. over waits until the sandbox's side has seen the end.
func (d *datagrams) generate(ctx context.Context, l traffic.Load) (over func() (uint64, error), err error) {
	type outcome struct {
		in  traffic.Ingress
		err error
	}
	done := make(chan outcome, 1)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		in, err := d.source.Generate(ctx, l)
		done <- outcome{in, err}
	}()
	over = func() (uint64, error) {
		defer cancel()
		o := <-done
		return o.in.Report.Generated, o.err
	}
	// The flows say first where they are: the time counts from the first packet on.
	for began := (time.Time{}); ; {
		if err := trial.Pause(ctx, time.Millisecond); err != nil {
			cancel()
			return nil, err
		}
		select {
		case o := <-done: // it has failed, or was done before anybody looked
			done <- o
			if o.err != nil {
				cancel()
				return nil, o.err
			}
			return over, nil
		default:
		}
		switch {
		case !began.IsZero() && time.Since(began) > l.For+lag:
			return over, nil
		case began.IsZero() && d.ingress().sent > 0:
			began = time.Now()
		}
	}
}

// errOwnLoss is why a measurement is made again: it would say nothing of the gateway.
var errOwnLoss = errors.New("harness's own sockets lost")

// udp measures datagrams of one way, first at a rate far below saturation, then at the
// highest that passes.
func udp(ctx context.Context, c *chain, cfg *Config, w way) (figures, *trial.Limit, error) {
	wrong := uint64(0) // at any rate
	for range 2 {      // warms up
		t, err := c.try(ctx, w, float64(cfg.Rate), cfg.Try)
		if err != nil {
			return nil, nil, err
		}
		wrong += t.wrong
	}
	fixed, err := c.try(ctx, w, float64(cfg.Rate), search.Steadily*cfg.Try)
	if err != nil {
		return nil, nil, err
	}
	if fixed.Lost == 1 {
		return nil, nil, fmt.Errorf("of packets of %d bytes at %d/s none arrived", w.size, cfg.Rate)
	}
	f := figures{figureLoss: 100 * fixed.Lost, figureProcessPacket: fixed.processEach, figureCorePacket: fixed.coreEach}
	wrong += fixed.wrong
	f[figureWrong] = float64(wrong)
	if fixed.Dropped > lowLoss {
		delete(f, figureLoss)
		return f, nil, fmt.Errorf("at %d/s the %w %.1f %% of the packets: what is lost says nothing of the gateway", cfg.Rate, errOwnLoss, 100*fixed.Dropped)
	}
	found, err := search.Highest(search.Range{Least: minRate, Most: maxRate, Tries: tries, Hold: cfg.Try},
		func(rate float64, d time.Duration) (carried, error) {
			t, err := c.try(ctx, w, rate, d)
			wrong += t.wrong
			return t, err
		})
	f[figureWrong] = float64(wrong)
	if err != nil {
		return f, nil, err
	}
	f[figurePeak] = found.Best.rate / 1000
	f[figurePeakPacket] = found.Best.coreEach
	if found.Bound {
		f[figureBound] = 1
	}
	return f, trial.LimitOf(found), nil
}
