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
	// kept is the part of the asked rate that a source must keep, for a try to say
	// something of the gateway.
	kept = 0.97
	// lag is how long a packet may be under way when the sending ends.
	lag = 20 * time.Millisecond
	// full is from what part of its time on a core counts as busy all the time.
	full = 0.9
)

// remoteAddress is where datagrams go.
var remoteAddress = netip.AddrPortFrom(serverLink.Addr(), 9000)

// datagrams are both sides of UDP through a tunnel of their own: a sandbox in this
// process, whose packets no kernel touches before the gateway's, so that the gateway is what
// reaches its limit first, and a far side.
type datagrams struct {
	source *traffic.Source
	far    *far.Server
	run    uint64 // of the last load
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
	if !d.far.Open(d.run) {
		return traffic.Load{}, errors.New("the far side has too many runs")
	}
	return traffic.Load{
		Run: d.run, Rate: rate, For: hold, Size: size, Flows: flows, Remotes: []netip.AddrPort{remoteAddress}, Unasked: true,
	}, nil
}

// counts is what both sides counted of a run: dropped is what the far side itself lost.
// What may be a duplicate has not arrived.
type counts struct{ sent, arrived, wrong, dropped uint64 }

// egress is what is known of packets that leave.
func (d *datagrams) egress() counts {
	r, _ := d.far.Report(d.run)
	return counts{arrived: r.Packets - r.Duplicates - r.Stale, wrong: wrongSources(r), dropped: r.Dropped}
}

// ingress is what is known of packets that come back.
func (d *datagrams) ingress() counts {
	r, _ := d.far.Report(d.run)
	got := d.source.Received()
	return counts{sent: r.Generated, arrived: got.Packets - got.Duplicates - got.Stale, wrong: wrongSources(r) + got.Wrong()}
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

// trial is what came of a rate.
type trial struct {
	rate, loss float64 // delivered per second; lost part of what was sent
	dropped    float64 // part of what was sent that the far side lost
	late       float64 // part of what was sent that had not arrived when the sending ended
	reached    float64 // part of the asked rate that was sent
	busy       float64 // part of the time in which the gateway's core was used, until then
	perPacket  cost    // of each that arrived
	wrong      uint64  // from or to a wrong address, or damaged
}

// Passes implements search.Outcome.
func (t trial) Passes() bool { return t.late <= lowLoss && t.reached >= kept }

// Starved implements search.Outcome. What the far side loses is no loss of the gateway's.
func (t trial) Starved() bool { return t.loss-t.dropped <= lowLoss && t.busy < full }

// way is a direction and size of datagrams.
type way struct {
	in   bool
	size int
}

// try sends at a rate for a while.
func (c *chain) try(ctx context.Context, w way, rate float64, hold time.Duration) (t trial, err error) {
	d := c.datagrams
	l, err := d.load(w.size, rate, hold)
	if err != nil {
		return t, err
	}
	before, err := readUsage(c)
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
	inTime := float64(look().arrived)
	then, err := readUsage(c)
	if err != nil {
		return t, err
	}
	sent, err := over()
	if err != nil {
		return t, err
	}
	if err := settle(ctx, look); err != nil {
		return t, err
	}
	after, err := readUsage(c)
	if err != nil {
		return t, err
	}
	all := look()
	n, got := float64(max(sent, all.sent)), float64(all.arrived)
	if n == 0 {
		return t, fmt.Errorf("no packet of %d bytes could be sent at %.0f/s", w.size, rate)
	}
	used, each := after.since(before), max(got, 1)
	return trial{
		rate: inTime / hold.Seconds(), loss: max(0, 1-got/n), dropped: float64(all.dropped) / n, late: max(0, 1-inTime/n), reached: n / hold.Seconds() / rate,
		busy:      then.since(before).core.Seconds() / (hold + lag).Seconds(),
		perPacket: cost{time.Duration(float64(used.process) / each), time.Duration(float64(used.core) / each)},
		wrong:     all.wrong,
	}, nil
}

// blast sends from the sandbox. over says how many packets were sent.
func (d *datagrams) blast(ctx context.Context, l traffic.Load) (over func() (uint64, error), err error) {
	sent, err := d.source.Blast(ctx, l)
	if err != nil {
		return nil, err
	}
	return func() (uint64, error) { return sent.Packets, nil }, pause(ctx, lag)
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
		if err := pause(ctx, time.Millisecond); err != nil {
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

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// settle waits until nothing more arrives.
func settle(ctx context.Context, look func() counts) error {
	const quiet = 30 * time.Millisecond
	for last := look().arrived; ; {
		if err := pause(ctx, quiet); err != nil {
			return err
		}
		n := look().arrived
		if n == last {
			return nil
		}
		last = n
	}
}

// udp measures datagrams of one way, first at a rate far below saturation, then at the
// highest that passes.
func udp(ctx context.Context, c *chain, cfg *Config, w way) (figures, error) {
	for range 2 { // warms up
		if _, err := c.try(ctx, w, float64(cfg.Rate), cfg.Try); err != nil {
			return nil, err
		}
	}
	fixed, err := c.try(ctx, w, float64(cfg.Rate), search.Steadily*cfg.Try)
	if err != nil {
		return nil, err
	}
	if fixed.loss == 1 {
		return nil, fmt.Errorf("of packets of %d bytes at %d/s none arrived", w.size, cfg.Rate)
	}
	f := figures{figureLoss: 100 * fixed.loss, figureProcessPacket: micros(fixed.perPacket.process), figureCorePacket: micros(fixed.perPacket.core)}
	wrong := fixed.wrong
	f[figureWrong] = float64(wrong)
	if fixed.dropped > lowLoss {
		return f, fmt.Errorf("at %d/s the far side itself lost %.1f %% of the packets: what is lost says nothing of the gateway", cfg.Rate, 100*fixed.dropped)
	}
	best, bound, err := search.Highest(search.Range{Least: minRate, Most: maxRate, Tries: tries, Hold: cfg.Try},
		func(rate float64, d time.Duration) (trial, error) {
			t, err := c.try(ctx, w, rate, d)
			wrong += t.wrong
			return t, err
		})
	f[figureWrong] = float64(wrong)
	if err != nil {
		return f, err
	}
	f[figurePeak] = best.rate / 1000
	f[figurePeakPacket] = micros(best.perPacket.core)
	if bound {
		f[figureBound] = 1
	}
	return f, nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
