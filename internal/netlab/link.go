package netlab

import (
	"fmt"

	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// Link is a veth pair between two namespaces.
type Link struct{ a, b End }

// Connect makes a link and brings both ends up.
func (l *Lab) Connect(a, b End) *Link {
	l.build(fmt.Sprintf("connect %s %s with %s %s", a.Namespace, a.Link, b.Namespace, b.Link), func() error {
		err := hostnet.VethPair(
			hostnet.VethEnd{Namespace: a.Namespace.net, Name: a.Link},
			hostnet.VethEnd{Namespace: b.Namespace.net, Name: b.Link})
		if err != nil {
			return err
		}
		if err := a.Namespace.apply(a.plan()); err != nil {
			return err
		}
		return b.Namespace.apply(b.plan())
	})
	return &Link{a, b}
}

// SetUp cuts a link, silently for those beyond its ends, or mends it. Mending
// brings back the addresses and routes of both namespaces, which the kernel
// forgets when a link goes down.
func (l *Link) SetUp(up bool) error {
	for _, end := range []End{l.a, l.b} {
		if err := end.Namespace.host.SetUp(end.Link, up); err != nil {
			return err
		}
	}
	if !up {
		return nil
	}
	for _, end := range []End{l.a, l.b} {
		if err := end.Namespace.apply(hostnet.Plan{}); err != nil {
			return err
		}
	}
	return nil
}

// Lose makes the link lose all IPv4 packets towards one of its namespaces, or
// mends that. Nobody can tell: the carrier stays and neighbours answer. For a cut
// in both directions call it for both.
func (l *Link) Lose(towards *Namespace, on bool) error {
	end, err := l.end(towards)
	if err != nil {
		return err
	}
	p := hostnet.Plan{Drops: []hostnet.Drop{{From: end.Link, Local: true}}}
	change := towards.host.Undo
	if on {
		change = towards.host.Apply
	}
	if err := change(p); err != nil {
		return fmt.Errorf("netlab: lose packets to %s, on=%t: %w", towards, on, err)
	}
	return nil
}

// Limit makes a namespace send no faster than r by the link; the zero Rate ends
// that. Above a line's queue it makes a slow line.
func (l *Link) Limit(from *Namespace, r hostnet.Rate) error {
	end, err := l.end(from)
	if err != nil {
		return err
	}
	if err := from.host.Limit(end.Link, r); err != nil {
		return fmt.Errorf("netlab: in %s: %w", from, err)
	}
	return nil
}

func (l *Link) end(n *Namespace) (End, error) {
	if err := n.lab.Err(); err != nil {
		return End{}, err
	}
	for _, end := range []End{l.a, l.b} {
		if end.Namespace == n {
			return end, nil
		}
	}
	return End{}, fmt.Errorf("netlab: %s is no end of the link between %s and %s", n, l.a.Namespace, l.b.Namespace)
}

// Bridge makes a bridge in the namespace, brings it up, and makes links its
// ports. More ports may come in later calls. Address gives the bridge addresses.
func (n *Namespace) Bridge(name string, ports ...string) {
	n.lab.build("bridge "+name+" in "+n.name, func() error {
		if err := n.host.Bridge(name, ports...); err != nil {
			return err
		}
		return n.apply(hostnet.Plan{Links: []hostnet.Link{{Name: name, TxOffload: true}}})
	})
}
