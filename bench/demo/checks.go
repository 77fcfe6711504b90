package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// many is how many connections "many" are.
const many = 50

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
func expectations() []check {
	acme, worker := fmt.Sprintf("%v or %v", acmePair[0], acmePair[1]), workerLink.Addr()
	return []check{
		{"a function", acme, lookFrom(function, task{Do: doHTTP, Target: at(origin, portHTTP)})},
		{fmt.Sprintf("%d connections of one function", many), fmt.Sprintf("one address of the pair, %d ports", many), lookMany},
		{"more functions", fmt.Sprintf("%v and %v", acmePair[0], acmePair[1]), lookMore},
		{"a build container", acme, lookFrom(build, task{Do: doHTTP, Target: at(origin, portHTTP)})},
		{"an edge function bypasses", fmt.Sprintf("%v, listed and counted", worker), lookBypass(edge, spec.BypassEdge)},
		{"a build that is not included bypasses", fmt.Sprintf("%v, listed and counted", worker), lookBypass(optedOut, spec.BypassBuilds)},
		{"UDP", acme, lookFrom(function, task{Do: doUDP, Target: at(origin, portEcho)})},
		{"ICMP echo", acme + ", answered", lookPing},
		{"a name through the gateway's DNS", "asked from " + acme, lookFrom(function, task{Do: doLookup, Target: whence})},
		{"a destination that the policy refuses", fmt.Sprintf("an error within %v, nothing sent", refusalPatience), lookRefused},
		{"two networks with one CIDR", "one inner address twice, each its own pair", lookTwins},
		{"they do not see each other", "no way from one to the other's function", lookApart},
		{"packets of the gateway's host", "none but the pairs' and the tunnel's", lookGatewayLink},
		{"packets of the worker", "none but the tunnel's and the bypasses'", lookWorkerLink},
		{"sallyportd's own count of wrong sources", "0", lookMetric},
	}
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
		return allFrom(seen, acmePair), err
	}
}

func lookMany(_ context.Context, s *stage) (outcome, error) {
	seen, err := addresses(s.acme.do(task{Do: doHTTP, Target: at(origin, portHTTP), Count: many}))
	return allFromOne(seen, acmePair), err
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
			answers[i], err = s.once(ctx, who, task{Do: doHTTP, Target: at(origin, portHTTP)})
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
	return allFromBoth(all, acmePair), nil
}

// lookBypass looks whence a sandbox without a tunnel is seen, and whether the
// control API knows of it.
func lookBypass(who subject, reason string) func(context.Context, *stage) (outcome, error) {
	return func(ctx context.Context, s *stage) (o outcome, err error) {
		err = s.with(ctx, who, func(b *sandbox) error {
			seen, err := addresses(b.do(task{Do: doHTTP, Target: at(origin, portHTTP)}))
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
			o = allFrom(seen, pair{workerLink.Addr(), workerLink.Addr()})
			o.seen += fmt.Sprintf(", listed %d, counted %d: %s", listed, counted, reason)
			o.held = o.held && listed == 1 && counted == 1
			return nil
		})
		return o, err
	}
}

// lookPing asks the capture whence the echo request came: the far side is a
// kernel, which does not tell.
func lookPing(ctx context.Context, s *stage) (outcome, error) {
	if s.world.noPing != nil {
		return outcome{}, &impossibleError{fmt.Errorf("the gateway's ping_group_range cannot be set: %w", s.world.noPing)}
	}
	a, err := s.once(ctx, function, task{Do: doPing, Target: origin.String()})
	if _, err := addresses(a, err); err != nil {
		return outcome{}, err
	}
	const icmp, echoRequest = 1, 8
	var seen []netip.AddrPort
	for _, p := range s.world.fromGateway.Packets() {
		if !p.Out && p.Proto == icmp && p.ICMPType == echoRequest && p.Dst.Addr() == origin {
			seen = append(seen, p.Src)
		}
	}
	o := allFrom(seen, acmePair)
	o.seen += fmt.Sprintf(", answered in %v", a.Took.Round(100*time.Microsecond))
	return o, nil
}

func lookRefused(ctx context.Context, s *stage) (outcome, error) {
	a, err := s.once(ctx, function, task{Do: doHTTP, Target: at(refused, portHTTP)})
	if err != nil {
		return outcome{}, err
	}
	return refusal(a, packetsTo(s.world.fromGateway.Packets(), refused)), nil
}

// lookTwins looks at two functions with the same address.
func lookTwins(_ context.Context, s *stage) (outcome, error) {
	var inner, outer [2]netip.AddrPort
	for i, b := range []*sandbox{s.acme, s.globex} {
		own, err := addresses(b.do(task{Do: doAddress}))
		if err != nil {
			return outcome{}, err
		}
		seen, err := addresses(b.do(task{Do: doHTTP, Target: at(origin, portHTTP)}))
		if err != nil {
			return outcome{}, err
		}
		if len(own) != 1 || len(seen) != 1 {
			return outcome{fmt.Sprintf("inner %v, outer %v", own, seen), false}, nil
		}
		inner[i], outer[i] = own[0], seen[0]
	}
	return twins(inner, outer), nil
}

// lookApart has one network's function connect to an address at which only the
// other network has anybody, who listens.
func lookApart(ctx context.Context, s *stage) (o outcome, err error) {
	const port = 7000
	err = s.with(ctx, function, func(b *sandbox) error {
		own, err := addresses(b.do(task{Do: doListen, Target: fmt.Sprintf(":%d", port)}))
		if err != nil {
			return err
		}
		if len(own) != 1 {
			return fmt.Errorf("the function that listens has the addresses %v, not one", own)
		}
		target := at(own[0].Addr(), port)
		a, err := s.globex.do(task{Do: doHTTP, Target: target})
		o = outcome{"connected to " + target, false}
		if a.Failure != "" {
			o = outcome{target + ": " + lastWords(a.Failure), true}
		}
		return err
	})
	return o, err
}

func lookGatewayLink(_ context.Context, s *stage) (outcome, error) {
	return judgeCapture(s.world.fromGateway, ofGateway, byTunnel, byPair)
}

func lookWorkerLink(_ context.Context, s *stage) (outcome, error) {
	return judgeCapture(s.world.fromWorker, ofWorker(s.bypassed), byTunnel, byBypass)
}

// judgeCapture looks at all that a capture saw.
func judgeCapture(c *netlab.Capture, why func(netlab.Packet) string, reasons ...string) (outcome, error) {
	packets, stats := c.Packets(), c.Stats()
	if stats.Forgotten > 0 {
		return outcome{}, fmt.Errorf("%d of %d packets are no longer known one by one", stats.Forgotten, stats.Seen)
	}
	return onlyAllowed(packets, stats.Lost, why, reasons...), nil
}

// lookMetric reads the count that must be 0 the way a monitor does.
func lookMetric(ctx context.Context, s *stage) (outcome, error) {
	text, err := get(ctx, s.admin, "http://"+adminAddress+"/metrics")
	if err != nil {
		return outcome{}, err
	}
	return wrongSources(string(text))
}
