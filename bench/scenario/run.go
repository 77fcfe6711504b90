package scenario

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/progress"
	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/bench/trial"
	"github.com/sallyport-net/sallyport/bench/wire"
)

// Names of scenarios that others must know.
const (
	nameSandboxes = "sandboxes"
	nameSessions  = "sessions"
)

// scenario is something that is measured.
type scenario struct {
	name, title string
	// alone says that it needs no gateway of this run, and is not measured again.
	alone bool
	run   func(r *runner, ctx context.Context, o *outcome) error
}

// scenarios are all, in order. What compare measures too has the same name there.
func scenarios() []scenario {
	udp := func(name, direction string, size int, in bool) scenario {
		title := fmt.Sprintf("UDP, packets of %d bytes, %s", size, direction)
		return scenario{name: name, title: title, run: func(r *runner, ctx context.Context, o *outcome) error {
			return r.datagrams(ctx, o, size, in)
		}}
	}
	bulk := func(name, title string, in bool) scenario {
		return scenario{name: name, title: title, run: func(r *runner, ctx context.Context, o *outcome) error { return r.bulk(ctx, o, in) }}
	}
	return []scenario{
		bulk("tcp-out", fmt.Sprintf("TCP, %d streams, egress", streams), false),
		bulk("tcp-in", fmt.Sprintf("TCP, %d streams, ingress", streams), true),
		udp("udp-out", "egress", smallSize, false), udp("udp-in", "ingress", smallSize, true),
		udp("udp1420-out", "egress", fullSize, false), udp("udp1420-in", "ingress", fullSize, true),
		{name: "connections", title: "TCP connections: connect, one request, its answer, close", run: (*runner).connectionsOf},
		{name: "latency-idle", title: fmt.Sprintf("requests and answers of %d bytes, idle", echoSize), run: (*runner).latencyIdle},
		{name: "latency-half", title: fmt.Sprintf("requests and answers of %d bytes, beside half of the most that passes", echoSize), run: (*runner).latencyHalf},
		{name: nameSandboxes, title: "many sandboxes: cost per packet", run: (*runner).sandboxes},
		{name: "attach", title: fmt.Sprintf("attach storm: %d per second, to the first answered byte", attachRate), run: (*runner).storm},
		{name: nameSessions, title: "many sessions: cost per packet", run: (*runner).sessions},
		{name: "failover", title: "hosts are lost: until new connections are answered", alone: true, run: (*runner).failover},
		{name: "mixed", title: "mixed day: datagrams, requests, connections, transfers and attaches, with changing load", run: (*runner).mixed},
	}
}

// Scenarios are the names of all, in the order in which they run.
func Scenarios() (names []string) {
	for _, s := range scenarios() {
		names = append(names, s.name)
	}
	return names
}

// runner is a run.
type runner struct {
	cfg      *Config
	gateway  gateway
	chain    *chain // nil: the gateway ran before
	meter    meter
	progress *progress.Line
	result   *result
	began    time.Time
	key      [wire.KeySize]byte
	remotes  []netip.AddrPort // the far side's addresses, the first of which is asked
	pair     []netip.Addr
	members  map[string]*members
	crowds   map[string]*crowd
	repeats  trial.Repeats
	spent    bool    // a step would have been measured again with more repeats
	least    float64 // latency of datagrams so far, in microseconds; 0: not known
	peak     float64 // of small packets, per second and outwards; 0: not known
}

// Run measures. It returns an error if something could not be measured, was thrown away, or was
// wrong; what was measured is reported all the same.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	r := newRunner(&cfg)
	r.measure(ctx)
	r.progress.End()
	r.result.Seconds = time.Since(r.began).Seconds()
	r.result.Again.Used = cfg.Again - r.repeats.All
	err := r.result.write(&cfg)
	if n := r.result.faults(); n > 0 {
		err = errors.Join(fmt.Errorf("%s: %s", trial.Plural(n, "finding"), r.result.first()), err)
	}
	return err
}

// newRunner makes a run that has not begun.
func newRunner(cfg *Config) *runner {
	r := &runner{
		cfg: cfg, progress: progress.New(cfg.Progress, cfg.Terminal, cfg.Width), began: time.Now(),
		members: map[string]*members{}, crowds: map[string]*crowd{}, repeats: trial.Repeats{Each: againEach, All: cfg.Again},
	}
	r.result = &result{
		Version: resultVersion, Date: r.began.UTC().Round(time.Second), Command: cfg.Command, Sallyport: cfg.Version,
		Machine: machine.Here(), Load1: machine.LoadAverage(), Scenarios: []*outcome{}, Problems: []string{},
	}
	r.result.Again.Allowed = cfg.Again
	r.result.Gateway = about{Kind: cfg.kind(), Pair: []netip.Addr{}, Far: cfg.Far, CPU: "none"}
	return r
}

// first is the first of what makes the exit code differ from 0.
func (r *result) first() string {
	for _, o := range r.Scenarios {
		for _, s := range o.Steps {
			if len(s.Wrong) > 0 {
				return o.Name + ": " + s.Name + ": " + s.Wrong[0]
			}
			if s.Refused {
				return o.Name + ": " + s.Name + ": too noisy: " + strings.Join(s.Noise.Why, "; ")
			}
		}
		if len(o.Problems) > 0 {
			return o.Name + ": " + o.Problems[0]
		}
	}
	return slices.Concat(r.Problems, []string{"none"})[0]
}

// measure reaches the gateway and runs the scenarios.
func (r *runner) measure(ctx context.Context) {
	parent := ctx
	ctx, tell := context.WithCancelCause(ctx)
	defer tell(nil)
	r.meter = local{trial.Local{Core: testbed.AnyCore}} // nothing, until there is a gateway
	needed := slices.ContainsFunc(scenarios(), func(s scenario) bool { return !s.alone && slices.Contains(r.cfg.Scenarios, s.name) })
	if needed {
		stop := r.progress.Work("starting", 0)
		err := r.open(ctx, tell)
		stop()
		defer r.close(parent)
		if err != nil {
			r.problem(ctx, err)
			return
		}
	}
	r.all(ctx)
}

// all runs the scenarios, until nothing more can be measured.
func (r *runner) all(ctx context.Context) {
	n := 0
	for _, s := range scenarios() {
		if !slices.Contains(r.cfg.Scenarios, s.name) {
			continue
		}
		n++
		o := &outcome{Name: s.name, Title: s.title, Steps: []*step{}, once: s.alone}
		r.result.Scenarios = append(r.result.Scenarios, o)
		o.place = fmt.Sprintf("[%d/%d] %s", n, len(r.cfg.Scenarios), s.name)
		err := s.run(r, ctx, o)
		var left notRun
		if errors.As(err, &left) {
			o.NotRun = left.Error()
			r.progress.Print("%s  not run: %s", o.place, left)
			continue
		}
		if err != nil {
			o.Problems = append(o.Problems, oneLine(r.explain(ctx, err)))
			r.progress.Print("%s  FAILED: %s", o.place, o.Problems[0])
		}
		if ctx.Err() != nil || r.dead(err) {
			r.leave(ctx, s.name, err != nil)
			return
		}
	}
}

// leave says why the run ends with a scenario, where its user ended it, and that those
// behind were not begun. Those who watch may have been told why.
func (r *runner) leave(ctx context.Context, last string, told bool) {
	switch {
	case !r.interrupted(ctx):
	case told:
		r.result.Problems = append(r.result.Problems, oneLine(r.explain(ctx, ctx.Err())))
	default:
		r.problem(ctx, ctx.Err())
	}
	behind := false
	for _, s := range scenarios() {
		if behind && slices.Contains(r.cfg.Scenarios, s.name) {
			r.result.Scenarios = append(r.result.Scenarios, &outcome{Name: s.name, Title: s.title, NotRun: "the run had ended before", Steps: []*step{}})
		}
		behind = behind || s.name == last
	}
}

// notRun says why a scenario cannot be run, where that is no failure.
type notRun string

func (n notRun) Error() string { return string(n) }

// dead says that nothing more can be measured.
func (r *runner) dead(err error) bool {
	return errors.Is(err, traffic.ErrDead) || r.gateway != nil && r.gateway.gone() != nil
}

// explain prefers the reason to its consequences.
func (r *runner) explain(ctx context.Context, err error) error {
	if r.gateway != nil {
		if why := r.gateway.gone(); why != nil {
			return why
		}
	}
	if r.interrupted(ctx) {
		return fmt.Errorf("interrupted: %w", context.Cause(ctx))
	}
	return err
}

// interrupted says that who started the run ended it, rather than a gateway that died.
func (r *runner) interrupted(ctx context.Context) bool {
	return ctx.Err() != nil && (r.gateway == nil || r.gateway.gone() == nil)
}

func (r *runner) problem(ctx context.Context, err error) {
	text := oneLine(r.explain(ctx, err))
	r.result.Problems = append(r.result.Problems, text)
	r.progress.Print("FAILED: %s", text)
}

// open reaches the gateway, or builds it, and has a first sandbox answered.
func (r *runner) open(ctx context.Context, tell context.CancelCauseFunc) (err error) {
	cfg := r.cfg
	r.key, r.remotes = cfg.Key, remotesOf(cfg.Far, cfg.FarPrefix)
	l := local{trial.Local{PID: cfg.PID, Core: cfg.Core}}
	switch {
	case cfg.Chain:
		r.chain, err = newChain(ctx, cfg, tell)
		r.gateway = r.chain
		if err == nil {
			l.PID, r.key = r.chain.gateway.PID(), r.chain.key
			r.remotes = remotesOf(r.chain.facts.Far, chainRemotes())
		}
	case cfg.API != "":
		var o *operated
		if o, err = newOperated(cfg); err == nil {
			r.gateway = o
		}
	default:
		var s *stock
		if s, err = newStock(cfg); err == nil {
			r.gateway = s
		}
	}
	if err != nil {
		return err
	}
	if r.meter = l; cfg.Admin != "" {
		r.meter = newScraped(cfg.Admin)
	}
	r.result.Gateway = r.gateway.about()
	r.result.Gateway.CPU = r.meter.says()
	r.progress.Print("CPU of the gateway: %s", r.result.Gateway.CPU)
	if _, err := r.meter.Read(ctx); err != nil {
		return err
	}
	r.pair = r.result.Gateway.Pair
	c, err := r.crowd(ctx, mainGroup, 1)
	if err != nil {
		return err
	}
	r.result.Gateway.Pair, r.result.Gateway.Endpoint = r.pair, c.ends[0].Gateway.Endpoint
	return r.reachFar(ctx, c)
}

// reachFar has the far side answer at its first address, and at the last: what lies between
// is not there either, if its prefix is not routed to it or not served.
func (r *runner) reachFar(ctx context.Context, c *crowd) error {
	if _, err := c.source.Report(ctx, newRun(), r.remotes[0]); err != nil {
		return err
	}
	last := r.remotes[len(r.remotes)-1]
	if last == r.remotes[0] {
		return nil
	}
	_, err := c.source.Report(ctx, newRun(), last)
	if errors.Is(err, traffic.ErrUnanswered) {
		return fmt.Errorf("the far side answers at %v, but not at its further addresses (--far-prefix; `serve --prefix`): %w", r.remotes[0], err)
	}
	return err
}

// close ends all of it.
func (r *runner) close(ctx context.Context) {
	for _, c := range r.crowds {
		c.source.Close()
	}
	if r.gateway == nil {
		return
	}
	if err := r.gateway.close(ctx); err != nil {
		r.result.Problems = append(r.result.Problems, oneLine(err))
	}
}

// farAddresses is how many of the far side's addresses are used at most.
const farAddresses = 1000

// remotesOf are the far side's addresses, the first of which is asked.
func remotesOf(first netip.AddrPort, more netip.Prefix) []netip.AddrPort {
	list := []netip.AddrPort{first}
	if !more.IsValid() {
		return list
	}
	for a := more.Masked().Addr().Next(); more.Contains(a) && len(list) < farAddresses; a = a.Next() {
		list = append(list, netip.AddrPortFrom(a, first.Port()))
	}
	return list
}

// newRun draws a number for a run, which others cannot guess.
func newRun() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}

// checkSources holds the far side's report of source addresses against the pair.
func (r *runner) checkSources(s *step, report wire.Report) {
	if s.Sources == nil {
		s.Sources = &sources{Seen: []netip.Addr{}, Checked: len(r.pair) > 0}
	}
	for _, from := range report.Sources {
		if !slices.Contains(s.Sources.Seen, from.Addr) {
			s.Sources.Seen = append(s.Sources.Seen, from.Addr)
		}
		if s.Sources.Checked && !slices.Contains(r.pair, from.Addr) {
			s.Sources.Wrong += from.Count
			s.never("%d packets or connections came from %v, which is not of the pair %v", from.Count, from.Addr, r.pair)
		}
	}
	s.Sources.More += report.Others
	if s.Sources.Checked && report.Others > 0 {
		s.Sources.Wrong += report.Others
		s.never("%d packets or connections came from more addresses than the far side tells apart", report.Others)
	}
}
