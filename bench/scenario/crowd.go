package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/bench/traffic"
)

// Groups of sandboxes that have tunnels of their own, so that they send beside each other.
const (
	mainGroup = "main"
	sideGroup = "side"
	// talkGroup talks to the far side while the others send.
	talkGroup = "talk"
)

const (
	// workers is how many tunnels the sandboxes of a group share, attachers how many
	// sandboxes are attached at a time.
	workers   = 4
	attachers = 16
)

// members are a group's sandboxes: the i-th belongs to worker i modulo workers.
type members struct {
	keys    []keys
	inners  []netip.Addr
	gateway traffic.Gateway
}

// crowd is a number of sandboxes that send.
type crowd struct {
	source *traffic.Source
	ends   []traffic.End
	inners []netip.Addr // of all ends, in order
}

// crowd returns a group's first n sandboxes, attached and connected. It takes the place of
// the group's crowd of before. Where sandboxes are given, n is how many at least.
func (r *runner) crowd(ctx context.Context, group string, n int) (*crowd, error) {
	if c := r.crowds[group]; c != nil && (len(c.inners) == n || r.gateway.fixed() != nil) {
		return c, nil
	}
	ends, err := r.ends(ctx, group, n)
	if err != nil {
		return nil, err
	}
	if old := r.crowds[group]; old != nil {
		old.source.Close()
		delete(r.crowds, group)
	}
	c := &crowd{ends: ends}
	for _, e := range ends {
		c.inners = append(c.inners, e.Inners...)
	}
	if c.source, err = traffic.New(traffic.Config{Ends: ends, Place: r.gateway.place(), Key: r.key}); err != nil {
		return nil, err
	}
	if err := c.source.Connect(ctx); err != nil {
		c.source.Close()
		return nil, err
	}
	r.crowds[group] = c
	return c, nil
}

// ends are the tunnels of a group's first n sandboxes.
func (r *runner) ends(ctx context.Context, group string, n int) ([]traffic.End, error) {
	if fixed := r.gateway.fixed(); fixed != nil {
		count := 0
		for _, e := range fixed {
			count += len(e.Inners)
		}
		if group != mainGroup {
			return nil, fmt.Errorf("there is one tunnel: %w", errFixed)
		}
		return fixed, nil
	}
	m := r.members[group]
	if m == nil {
		m = &members{}
		r.members[group] = m
		for range workers {
			k, err := newKeys()
			if err != nil {
				return nil, err
			}
			m.keys = append(m.keys, k)
		}
	}
	if err := r.attachUpTo(ctx, m, n); err != nil {
		return nil, err
	}
	ends := make([]traffic.End, min(n, workers))
	for i := range ends {
		ends[i] = traffic.End{PrivateKey: m.keys[i].private, Gateway: m.gateway}
	}
	for i, inner := range m.inners[:n] {
		e := &ends[i%workers]
		e.Inners = append(e.Inners, inner)
	}
	return ends, nil
}

// attachUpTo attaches as many sandboxes as are missing.
func (r *runner) attachUpTo(ctx context.Context, m *members, n int) error {
	have := len(m.inners)
	if n <= have {
		return nil
	}
	began := time.Now()
	fresh := make([]attached, n-have)
	done := make(chan struct{}, len(fresh))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(attachers)
	go func() {
		count := 0
		for range done {
			count++
			r.progress.Rate(float64(count)/time.Since(began).Seconds(), -1)
		}
	}()
	for i := range fresh {
		group.Go(func() (err error) {
			fresh[i], err = r.gateway.attach(gctx, m.keys[(have+i)%workers].public)
			done <- struct{}{}
			return err
		})
	}
	err := group.Wait()
	close(done)
	if err != nil {
		return err
	}
	for _, a := range fresh {
		m.inners, m.gateway = append(m.inners, a.inner), a.gateway
		if err := r.samePair(a.pair); err != nil {
			return err
		}
	}
	return nil
}

// samePair takes the pair of the first sandbox, and says whether others have the same.
func (r *runner) samePair(pair []netip.Addr) error {
	if len(r.pair) == 0 {
		r.pair = pair
	}
	if !slices.Equal(r.pair, pair) {
		return errors.New("the sandboxes are not all of one network: name an environment with one active network")
	}
	return nil
}
