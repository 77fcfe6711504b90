package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/bench/daemon"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// many is how many connections "many" are.
const many = 50

// portListen is where a function listens that must not be reached.
const portListen = 7000

// refusalPatience is how soon a sandbox must know that a destination is refused.
const refusalPatience = time.Second

// outcome is what a check saw, and whether that was expected.
type outcome struct {
	seen string
	held bool
}

// check is an expectation and how to look whether it holds. An error of look is
// a failure, too; an [*impossibleError] says that it cannot be seen here.
type check struct {
	name, expected string
	look           func(context.Context, *stage) (outcome, error)
}

// judge looks.
func (c check) judge(ctx context.Context, s *stage) result {
	r := result{Name: c.name, Expected: c.expected, Status: failed}
	o, err := c.look(ctx, s)
	var cannot *impossibleError
	switch {
	case errors.As(err, &cannot):
		r.Seen, r.Status = oneLine(cannot), impossible
	case err != nil:
		r.Seen = oneLine(err)
	default:
		if r.Seen = o.seen; o.held {
			r.Status = held
		}
	}
	return r
}

// expectations are what the demo shows, in this order: the captures are judged
// when everything else has sent its packets.
func expectations(p *plan) []check {
	acme := p.acme.either()
	web, echo := p.web.String(), p.echo.String()
	bypass := fmt.Sprintf("%v, listed and counted", p.worker)
	first := []check{
		{"a function", acme, lookFrom(function, task{Do: doHTTP, Target: web})},
		{fmt.Sprintf("%d connections of one function", many), fmt.Sprintf("one address of the pair, %d ports", many), lookMany},
		{"more functions", p.acme.both(), lookMore},
		{"a build container", acme, lookFrom(build, task{Do: doHTTP, Target: web})},
		{"an edge function bypasses", bypass, lookBypass(edge, spec.BypassEdge)},
		{"a build that is not included bypasses", bypass, lookBypass(optedOut, spec.BypassBuilds)},
		{"UDP", acme, lookFrom(function, task{Do: doUDP, Target: echo})},
		{"ICMP echo", acme + ", answered", lookPing},
		{"a name through the gateway's DNS", "asked from " + acme, lookName},
		{"a destination that the policy refuses", fmt.Sprintf("an error within %v, nothing sent", refusalPatience), lookRefused},
		{"two networks with one CIDR", "one inner address twice, each its own pair", lookTwins},
		{"they do not see each other", "no way from one to the other's function", lookApart},
	}
	last := []check{
		{"packets of " + hostA, "none but its addresses' and the tunnels'", lookGatewayLink(atA)},
		{"packets of " + hostB, "none but its addresses' and the tunnels'", lookGatewayLink(atB)},
		{"packets of " + hostC, "none but its addresses' and the tunnels'", lookGatewayLink(atC)},
		{"packets of the worker", "none but the tunnels' and the bypasses'", lookWorkerLink},
		{"the gateways' own count of wrong sources", "0", lookMetric},
	}
	return slices.Concat(first, peeringExpectations(), failoverExpectations(p), last)
}

// notHere is why something cannot be seen without namespaces.
func notHere(s *stage, why string) error {
	if s.world.confined() {
		return nil
	}
	return &impossibleError{errors.New(why)}
}

// addresses are what a task of a function is about, or why there are none.
func addresses(a answer, err error) ([]netip.AddrPort, error) {
	switch {
	case err != nil:
		return nil, err
	case a.Impossible != "":
		return nil, &impossibleError{errors.New(a.Impossible)}
	case a.Failure != "":
		return nil, errors.New(a.Failure)
	}
	return a.Addresses, nil
}

// lookFrom has a new sandbox of acme's do a task, and looks for the pair.
func lookFrom(who subject, t task) func(context.Context, *stage) (outcome, error) {
	return func(ctx context.Context, s *stage) (outcome, error) {
		seen, err := addresses(s.once(ctx, who, t))
		return allFrom(seen, s.plan.acme), err
	}
}

func lookMany(_ context.Context, s *stage) (outcome, error) {
	seen, err := addresses(s.acme.do(task{Do: doHTTP, Target: s.plan.web.String(), Count: many}))
	return allFromOne(seen, s.plan.acme), err
}

// lookMore starts functions at once. Of any three inner addresses in a row, not
// all leave from the same address of the pair, so that both must be seen.
func lookMore(ctx context.Context, s *stage) (outcome, error) {
	var answers [4]answer
	group, ctx := errgroup.WithContext(ctx)
	for i, runtime := range []string{spec.RuntimeNodeJS, spec.RuntimePython, spec.RuntimeGo, spec.RuntimeRuby} {
		group.Go(func() (err error) {
			who := function
			who.runtime = runtime
			answers[i], err = s.once(ctx, who, task{Do: doHTTP, Target: s.plan.web.String()})
			return err
		})
	}
	err := group.Wait()
	var all []netip.AddrPort
	for _, a := range answers {
		seen, failure := addresses(a, err)
		if failure != nil {
			return outcome{}, failure
		}
		all = append(all, seen...)
	}
	return allFromBoth(all, s.plan.acme), nil
}

// lookBypass looks whence a sandbox without a tunnel is seen, and whether the
// control API knows of it.
func lookBypass(who subject, reason string) func(context.Context, *stage) (outcome, error) {
	return func(ctx context.Context, s *stage) (o outcome, err error) {
		err = s.with(ctx, who, func(b *sandbox) error {
			seen, err := addresses(b.do(task{Do: doHTTP, Target: s.plan.web.String()}))
			if err != nil {
				return err
			}
			s.bypassed = append(s.bypassed, seen...)
			attachments, err := s.api.Attachments(ctx)
			if err != nil {
				return err
			}
			status, err := s.api.Status(ctx)
			if err != nil {
				return err
			}
			listed := 0
			for _, a := range attachments {
				if a.Bypass == reason && a.Runtime == who.runtime && a.Kind == who.kind {
					listed++
				}
			}
			counted := status.BypassesTotal[reason]
			o = allFrom(seen, pair{s.plan.worker, s.plan.worker})
			o.seen += fmt.Sprintf(", listed %d, counted %d: %s", listed, counted, reason)
			o.held = o.held && listed == 1 && counted == 1
			return nil
		})
		return o, err
	}
}

// lookPing asks the captures whence the echo request came: the far side is a
// kernel, which does not tell.
func lookPing(ctx context.Context, s *stage) (outcome, error) {
	if err := notHere(s, "a proxy carries no ICMP"); err != nil {
		return outcome{}, err
	}
	if s.world.noPing != nil {
		return outcome{}, &impossibleError{fmt.Errorf("the gateway's ping_group_range cannot be set: %w", s.world.noPing)}
	}
	a, err := s.once(ctx, function, task{Do: doPing, Target: s.plan.web.Addr().String()})
	if _, err := addresses(a, err); err != nil {
		return outcome{}, err
	}
	const icmp, echoRequest = 1, 8
	var seen []netip.AddrPort
	for _, c := range s.world.fromGateways {
		for _, p := range c.Packets() {
			if !p.Out && p.Proto == icmp && p.ICMPType == echoRequest && p.Dst.Addr() == s.plan.web.Addr() {
				seen = append(seen, p.Src)
			}
		}
	}
	o := allFrom(seen, s.plan.acme)
	o.seen += fmt.Sprintf(", answered in %v", a.Took.Round(100*time.Microsecond))
	return o, nil
}

// lookName looks a name up: as the sandbox's resolv.conf says, or by handing it to
// the proxy. The name server tells who asked it.
func lookName(ctx context.Context, s *stage) (outcome, error) {
	if s.world.confined() {
		seen, err := addresses(s.once(ctx, function, task{Do: doLookup, Target: whence}))
		return allFrom(seen, s.plan.acme), err
	}
	target := net.JoinHostPort(strings.TrimSuffix(zone, "."), fmt.Sprint(s.plan.web.Port()))
	if _, err := addresses(s.once(ctx, function, task{Do: doHTTP, Target: target})); err != nil {
		return outcome{}, err
	}
	return allFrom(s.origin.asked(), s.plan.acme), nil
}

func lookRefused(ctx context.Context, s *stage) (outcome, error) {
	a, err := s.once(ctx, function, task{Do: doHTTP, Target: s.plan.refused.String()})
	if err != nil {
		return outcome{}, err
	}
	if !s.world.confined() {
		return refusal(a, int(s.origin.unwanted.Load()), "connections made"), nil
	}
	sent := 0
	for _, c := range s.world.fromGateways {
		sent += packetsTo(c.Packets(), s.plan.refused.Addr())
	}
	return refusal(a, sent, "packets sent"), nil
}

// lookTwins looks at two functions with the same address.
func lookTwins(_ context.Context, s *stage) (outcome, error) {
	var outer [2]netip.AddrPort
	for i, b := range []*resident{s.acme, s.globex} {
		if s.world.confined() {
			own, err := addresses(b.do(task{Do: doAddress}))
			if err != nil {
				return outcome{}, err
			}
			if len(own) != 1 || own[0].Addr() != b.attachment.Inner {
				return outcome{fmt.Sprintf("a function of %s has the addresses %v", b.attachment.Project, own), false}, nil
			}
		}
		seen, err := addresses(b.do(task{Do: doHTTP, Target: s.plan.web.String()}))
		if err != nil {
			return outcome{}, err
		}
		outer[i] = seen[0]
	}
	return twins(s.plan, [2]netip.Addr{s.acme.attachment.Inner, s.globex.attachment.Inner}, outer), nil
}

// lookApart has one network's function connect to an address at which only the
// other network has anybody, who listens.
func lookApart(ctx context.Context, s *stage) (o outcome, err error) {
	if err := notHere(s, "nobody listens behind a proxy"); err != nil {
		return outcome{}, err
	}
	err = s.with(ctx, function, func(b *sandbox) error {
		own, err := addresses(b.do(task{Do: doListen, Target: fmt.Sprintf(":%d", portListen)}))
		if err != nil {
			return err
		}
		if len(own) != 1 {
			return fmt.Errorf("the function that listens has the addresses %v, not one", own)
		}
		target := netip.AddrPortFrom(own[0].Addr(), portListen).String()
		a, err := s.globex.do(task{Do: doHTTP, Target: target})
		o = outcome{"connected to " + target, false}
		if a.Failure != "" {
			o = outcome{target + ": " + lastWords(a.Failure), true}
		}
		return err
	})
	return o, err
}

// lookGatewayLink looks at all that came from a gateway's host.
func lookGatewayLink(i int) func(context.Context, *stage) (outcome, error) {
	return func(_ context.Context, s *stage) (outcome, error) {
		if err := notHere(s, "watching loopback takes CAP_NET_RAW"); err != nil {
			return outcome{}, err
		}
		return judgeCapture(s.world.fromGateways[i], ofGateway(s.plan, i), byTunnel, byPair)
	}
}

func lookWorkerLink(_ context.Context, s *stage) (outcome, error) {
	if err := notHere(s, "watching loopback takes CAP_NET_RAW"); err != nil {
		return outcome{}, err
	}
	return judgeCapture(s.world.fromWorker, ofWorker(s.plan, s.bypassed), byTunnel, byBypass)
}

// judgeCapture looks at all that a capture saw.
func judgeCapture(c *netlab.Capture, why func(netlab.Packet) string, reasons ...string) (outcome, error) {
	packets, stats := c.Packets(), c.Stats()
	if stats.Forgotten > 0 {
		return outcome{}, fmt.Errorf("%d of %d packets are no longer known one by one", stats.Forgotten, stats.Seen)
	}
	return onlyAllowed(packets, stats.Lost, why, reasons...), nil
}

// lookMetric reads the counts that must be 0 the way a monitor does.
func lookMetric(ctx context.Context, s *stage) (outcome, error) {
	sum := s.wrong
	for i := range s.gateways {
		n, err := s.wrongSources(ctx, i)
		if err != nil {
			return outcome{}, err
		}
		sum += n
	}
	return outcome{strconv.FormatFloat(sum, 'f', -1, 64), sum == 0}, nil
}

// wrongSources reads one gateway's count.
func (s *stage) wrongSources(ctx context.Context, i int) (float64, error) {
	text, err := daemon.Get(ctx, s.admins[i], s.adminURL(i, "/metrics"))
	if err != nil {
		return 0, err
	}
	sum, series, err := metricSum(string(text), dropsMetric, `reason="wrong_source"`)
	if err == nil && series == 0 {
		err = fmt.Errorf("%s exports no %sreason=\"wrong_source\"}", s.gateways[i].Name(), dropsMetric)
	}
	return sum, err
}
