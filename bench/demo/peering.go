package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sallyport-net/sallyport/bench/daemon"
	"github.com/sallyport-net/sallyport/control/api"
)

// peeringExpectations are about the private network that acme is peered with.
func peeringExpectations() []check {
	return []check{
		{"a peered private database", "the functions' own addresses, by either host", lookPeered},
		{"it cannot start a connection itself", "none comes about, and its packets are counted", lookInward},
	}
}

// maxResidents bounds how many functions are started until each host has one: of
// any three inner addresses in a row, not all leave by the same.
const maxResidents = 4

// activeOn finds a function of acme's whose active host is one of the two, and
// starts functions until there is one.
func (s *stage) activeOn(ctx context.Context, i int) (*resident, error) {
	for {
		started := 0
		for _, r := range s.residents {
			if r.attachment.Network != networkAcme {
				continue
			}
			started++
			if s.plan.gatewayOf(r.attachment.Egress) == i {
				return r, nil
			}
		}
		if started >= maxResidents {
			return nil, fmt.Errorf("none of %d functions has %s for its active host", started, s.plan.gateways[i].Name)
		}
		if _, err := s.settle(ctx, function); err != nil {
			return nil, err
		}
	}
}

// lookPeered connects the office as its owner would: with what the control API
// tells. Then functions of both hosts, of which one has the site tunnel, ask the
// database who they are.
func lookPeered(ctx context.Context, s *stage) (outcome, error) {
	var site api.PeeringStatus
	err := until(ctx, "the control API knows the site tunnel", func(ctx context.Context) (err error) {
		if site, err = s.api.Peering(ctx, peeringOffice); err == nil && (site.SitePublicKey == "" || !site.SiteEndpoint.IsValid()) {
			err = errors.New("its key and endpoint are not reported")
		}
		return err
	})
	if err != nil {
		return outcome{}, err
	}
	if err := s.office.connect(ctx, s.world, site); err != nil {
		return outcome{}, err
	}
	var asked []caller
	for _, i := range []int{atA, atB} {
		r, err := s.activeOn(ctx, i)
		if err != nil {
			return outcome{}, err
		}
		seen, err := addresses(r.do(task{Do: doHTTP, Target: s.plan.database.String()}))
		if err != nil {
			return outcome{}, fmt.Errorf("by %s: %w", s.plan.gateways[i].Name, err)
		}
		asked = append(asked, caller{s.plan.gateways[i].Name, r.attachment.Inner, seen})
	}
	arrivals, lost := s.office.watched.seen()
	return untranslated(asked, arrivals, lost), nil
}

// caller is a function that asked the private database.
type caller struct {
	host  string
	inner netip.Addr
	seen  []netip.AddrPort
}

// untranslated holds if the database saw each function's own address, and
// nothing else came out of the office's tunnel.
func untranslated(asked []caller, arrivals []arrival, lost int) outcome {
	o := outcome{held: lost == 0 && len(arrivals) > 0}
	var texts []string
	for _, c := range asked {
		texts = append(texts, words(distinct(c.seen))+" by "+c.host)
		o.held = o.held && len(c.seen) > 0 && slices.Equal(distinct(c.seen), []netip.Addr{c.inner})
		o.held = o.held && slices.ContainsFunc(arrivals, func(a arrival) bool { return a.from.Addr() == c.inner })
	}
	others := 0
	for _, a := range arrivals {
		if !slices.ContainsFunc(asked, func(c caller) bool { return c.inner == a.from.Addr() }) {
			others++
		}
	}
	o.held = o.held && others == 0
	o.seen = fmt.Sprintf("%s; its capture: %d packets, %d others", strings.Join(texts, ", "), len(arrivals), others)
	return o
}

// lookInward has the office connect to a function, which listens where it can.
func lookInward(ctx context.Context, s *stage) (outcome, error) {
	r, err := s.activeOn(ctx, atA)
	if err != nil {
		return outcome{}, err
	}
	if s.world.confined() {
		if _, err := addresses(r.do(task{Do: doListen, Target: fmt.Sprintf(":%d", portListen)})); err != nil {
			return outcome{}, err
		}
	}
	if s.office.stack == nil {
		return outcome{}, errors.New("the office has no network")
	}
	before, err := s.strangers(ctx)
	if err != nil {
		return outcome{}, err
	}
	target := netip.AddrPortFrom(r.attachment.Inner, portListen)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dialled := make(chan error, 1)
	go func() {
		c, err := s.office.stack.DialTCP(ctx, netip.AddrPortFrom(s.plan.database.Addr(), 0), target)
		if err == nil {
			_ = c.Close()
		}
		dialled <- err
	}()
	var after float64
	counted := until(ctx, "the gateway counts the office's packet as dropped", func(ctx context.Context) (err error) {
		if after, err = s.strangers(ctx); err == nil && after == before {
			err = errors.New("it counts none")
		}
		return err
	})
	cancel()
	if err := <-dialled; err == nil {
		return outcome{fmt.Sprintf("connected to %v", target), false}, nil
	}
	return outcome{fmt.Sprintf("no connection to %v, %v packets dropped", target, after-before), counted == nil}, counted
}

// strangers counts what gw-a dropped of acme's because no sandbox had asked for it.
func (s *stage) strangers(ctx context.Context) (float64, error) {
	text, err := daemon.Get(ctx, s.admins[atA], s.adminURL(atA, "/metrics"))
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for _, reason := range []string{"no_mapping", "no_session", "filtered"} {
		n, _, err := metricSum(string(text), dropsMetric, `direction="ingress"`, `network="`+networkAcme+`"`, `reason="`+reason+`"`)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
