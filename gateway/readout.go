package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/gateway/readout"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// What an operator reads out of the tables: who uses the external ports, and every session
// (RFC 6888 REQ-10). Both go over a table in steps, each under its lock for less than
// half a millisecond, with a rest between them, so that packets hardly notice.

const (
	// readStep is how many records are looked at under a table's lock at a time: some
	// 100 ns each.
	readStep = 2048
	// readRest is the pause between two steps.
	readRest = time.Millisecond
	// standardReadout is the number where none is asked for.
	standardReadout = 32
	// servedNamed is how many of the networks that are served an error names.
	servedNamed = 8
)

// ErrBusy says that another read-out is under way: there is one at a time.
var ErrBusy = errors.New("another read-out is under way: ask again when it is over")

// ErrNotServed says that this host does not serve a network.
var ErrNotServed = errors.New("this host does not serve that network")

// PortsQuery asks who uses the external ports of a network on this host.
type PortsQuery struct {
	Network string
	// Protocol and Destination name a destination whose users are told; optional.
	Protocol    packet.Proto
	Destination netip.AddrPort
	// Top is the number of rows of each list: 32 where it is 0, at most readout.MaxRows.
	Top int
}

// Ports says who uses the external ports of a network. It takes a few microseconds per
// thousand sessions under the tables' locks, and longer by its rests. The error wraps
// ErrNotServed or ErrBusy, or is that of ctx.
func (h *Host) Ports(ctx context.Context, q PortsQuery) (readout.Ports, error) {
	out := readout.Ports{Network: q.Network, IPs: []readout.IPPorts{}}
	if q.Top = min(max(q.Top, 0), readout.MaxRows); q.Top == 0 {
		q.Top = standardReadout
	}
	err := h.readOut(q.Network, func(n *network) error {
		for side, ip := range n.pair {
			if !n.held[side] {
				continue
			}
			c := nat.NewCensus(nat.CensusConfig{Proto: q.Protocol, Remote: q.Destination, Top: q.Top})
			for done := false; !done; {
				n.fwd.withTable(ip, func(t *nat.Table) { done = t.Count(c, readStep, n.clock.Now()) })
				if err := pause(ctx, readRest); err != nil {
					return err
				}
			}
			out.IPs = append(out.IPs, ipPorts(ip, n.fwd.Draining(ip), c.Report(), q))
		}
		return nil
	})
	return out, err
}

// readOut runs one read-out at a time.
func (h *Host) readOut(id string, read func(*network) error) error {
	if !h.reading.CompareAndSwap(false, true) {
		return ErrBusy
	}
	defer h.reading.Store(false)
	h.mu.Lock()
	n, served := h.networks[id], []string(nil)
	if n == nil {
		served = slices.Sorted(maps.Keys(h.networks))
	}
	h.mu.Unlock()
	if n == nil {
		return fmt.Errorf("network %q: %w; %s", id, ErrNotServed, servedText(served))
	}
	return read(n)
}

// servedText names the networks that a host serves, the first of many.
func servedText(ids []string) string {
	switch n := len(ids); {
	case n == 0:
		return "it serves none now"
	case n > servedNamed:
		return fmt.Sprintf("it serves %s and %d more", strings.Join(ids[:servedNamed], ", "), n-servedNamed)
	}
	return "it serves " + strings.Join(ids, ", ")
}

func ipPorts(ip netip.Addr, draining bool, r nat.PortReport, q PortsQuery) readout.IPPorts {
	u := readout.IPPorts{
		IP: ip, Draining: draining, OthersAtMost: r.Missed,
		Shared: portUses(r.Spaces), Busiest: portUses(r.Busiest), Sandboxes: []readout.SandboxUse{},
	}
	for _, s := range r.Sandboxes {
		u.Sandboxes = append(u.Sandboxes, readout.SandboxUse{
			Inner: s.Inner, Sessions: s.Sessions, HalfOpen: s.HalfOpen, Ports: s.Ports,
			TCP: s.PerProtocol.Of(packet.TCP), UDP: s.PerProtocol.Of(packet.UDP), ICMP: s.PerProtocol.Of(packet.ICMP),
		})
	}
	if q.Destination.IsValid() {
		d := &readout.DestinationUse{PortUse: portUse(r.Chosen), Users: len(r.By), Sandboxes: []readout.InnerUse{}}
		for _, by := range r.By[:min(len(r.By), q.Top)] {
			d.Sandboxes = append(d.Sandboxes, readout.InnerUse(by))
		}
		u.Destination = d
	}
	return u
}

func portUses(uses []nat.PortUse) []readout.PortUse {
	out := make([]readout.PortUse, 0, len(uses))
	for _, u := range uses {
		out = append(out, portUse(u))
	}
	return out
}

func portUse(u nat.PortUse) readout.PortUse {
	return readout.PortUse{Protocol: protocolName(u.Proto), Destination: u.Remote, Used: u.Used, Held: u.Held, Left: u.Left}
}

// protocolName is a protocol as it stands in metrics and read-outs.
func protocolName(p packet.Proto) string {
	switch p {
	case packet.TCP:
		return "tcp"
	case packet.UDP:
		return "udp"
	}
	return "icmp"
}

// SessionsQuery asks for sessions of a network on this host.
type SessionsQuery struct {
	Network string
	// Inner and Destination leave out all sessions but theirs; both are optional.
	Inner       netip.Addr
	Destination netip.AddrPort
	// After is the Next of the page before; its zero value is the beginning.
	After SessionCursor
	// Limit is the number of sessions of a page: 0 stands for 32, at most readout.MaxRows.
	Limit int
}

// SessionCursor is a place in a read-out of sessions.
type SessionCursor struct {
	Side   int    // of the pair
	Record uint32 // of that table
}

// SessionPage is a part of a network's sessions on this host. What comes and goes between
// two pages may or may not be told.
type SessionPage struct {
	Sessions []readout.Session
	// Next goes on where this page ended; More is false after the last one.
	Next SessionCursor
	More bool
}

// Sessions reads sessions of the tables of a network's pair. The error is as that
// of Ports.
func (h *Host) Sessions(ctx context.Context, q SessionsQuery) (SessionPage, error) {
	page := SessionPage{Sessions: []readout.Session{}}
	if q.Limit = min(max(q.Limit, 0), readout.MaxRows); q.Limit == 0 {
		q.Limit = standardReadout
	}
	step := min(readStep, q.Limit)
	if q.Inner.IsValid() || q.Destination.IsValid() { // few of many
		step = readStep
	}
	err := h.readOut(q.Network, func(n *network) error {
		at := q.After
		some := make([]nat.Session, 0, step)
		for at.Side >= 0 && at.Side < len(n.pair) {
			if !n.held[at.Side] {
				at = SessionCursor{Side: at.Side + 1}
				continue
			}
			now := n.clock.Now()
			next := uint32(0)
			n.fwd.withTable(n.pair[at.Side], func(t *nat.Table) {
				some, next = t.AppendSessions(some[:0], at.Record, step)
			})
			before, again := len(page.Sessions), false
			for _, s := range some {
				if q.wants(s) {
					page.Sessions = append(page.Sessions, sessionRow(s, now))
				}
			}
			switch {
			case len(page.Sessions) > q.Limit: // again, in shorter steps: where a session is only its step says
				page.Sessions, next, step = page.Sessions[:before], at.Record, step/2
				again = true
			case len(some) == 0:
				step = min(2*step, readStep) // there are few of many records
			}
			if at.Record = next; next == 0 && !again {
				at.Side++
			}
			if len(page.Sessions) == q.Limit {
				page.Next, page.More = at, at.Side < len(n.pair)
				return nil
			}
			if err := pause(ctx, readRest); err != nil {
				return err
			}
		}
		return nil
	})
	return page, err
}

func (q *SessionsQuery) wants(s nat.Session) bool {
	return (!q.Inner.IsValid() || s.Inner.Addr() == q.Inner) && (!q.Destination.IsValid() || s.Remote == q.Destination)
}

func sessionRow(s nat.Session, now packet.Instant) readout.Session {
	return readout.Session{
		Protocol: protocolName(s.Proto), Inner: s.Inner, External: s.External, Remote: s.Remote, State: s.State,
		Age:     int64(max(now-s.Created, 0) / packet.Instant(time.Second)),
		Expires: int64(max(s.Expires-now, 0) / packet.Instant(time.Second)),
	}
}
