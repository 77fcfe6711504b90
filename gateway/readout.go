package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

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
	// MaxReadout is the largest number of rows of each list of a read-out.
	MaxReadout = 1024
	// standardReadout is the number where none is asked for.
	standardReadout = 32
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
	// Top is the number of rows of each list: 32 where it is 0, at most MaxReadout.
	Top int
}

// PortsReadout is the answer to a PortsQuery, an element per dedicated IP held here.
type PortsReadout struct {
	Network string    `json:"network"`
	IPs     []IPPorts `json:"ips"`
}

// IPPorts is the use of one dedicated IP. All lists have the most first.
type IPPorts struct {
	IP       netip.Addr `json:"ip"`
	Draining bool       `json:"draining,omitempty"`
	// Shared are ports that serve all destinations: those of UDP, echo identifiers, and
	// those of TCP where it is mapped endpoint-independently.
	Shared []PortUse `json:"shared"`
	// Busiest are the TCP destinations that take the most ports; one that is missing takes
	// no more than OthersAtMost.
	Busiest      []PortUse `json:"busiest"`
	OthersAtMost int       `json:"othersAtMost"`
	// Destination is the one that was asked for.
	Destination *DestinationUse `json:"destination,omitempty"`
	// Sandboxes are the inner addresses that hold the most ports.
	Sandboxes []SandboxUse `json:"sandboxes"`
}

// PortUse counts external ports. Held ones are free, but not given out yet.
type PortUse struct {
	Protocol    string         `json:"protocol"`
	Destination netip.AddrPort `json:"destination,omitzero"`
	Used        int            `json:"used"`
	Held        int            `json:"held"`
	Left        int            `json:"left"`
}

// DestinationUse is the use of one destination. Users is the number of inner addresses
// that have sessions with it, of which Sandboxes are the first.
type DestinationUse struct {
	PortUse
	Users     int        `json:"users"`
	Sandboxes []InnerUse `json:"sandboxes"`
}

// InnerUse is the number of sessions of an inner address with a destination.
type InnerUse struct {
	Inner    netip.Addr `json:"inner"`
	Sessions int        `json:"sessions"`
}

// SandboxUse is what an inner address holds.
type SandboxUse struct {
	Inner    netip.Addr `json:"inner"`
	Sessions int        `json:"sessions"`
	HalfOpen int        `json:"halfOpen"`
	Ports    int        `json:"ports"`
	TCP      uint64     `json:"tcp"`
	UDP      uint64     `json:"udp"`
	ICMP     uint64     `json:"icmp"`
}

// Ports says who uses the external ports of a network. It takes a few microseconds per
// thousand sessions under the tables' locks, and longer by its rests. The error wraps
// ErrNotServed or ErrBusy, or is that of ctx.
func (h *Host) Ports(ctx context.Context, q PortsQuery) (PortsReadout, error) {
	out := PortsReadout{Network: q.Network, IPs: []IPPorts{}}
	if q.Top = min(max(q.Top, 0), MaxReadout); q.Top == 0 {
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
	n := h.networks[id]
	h.mu.Unlock()
	if n == nil {
		return fmt.Errorf("network %q: %w", id, ErrNotServed)
	}
	return read(n)
}

func ipPorts(ip netip.Addr, draining bool, r nat.PortReport, q PortsQuery) IPPorts {
	u := IPPorts{
		IP: ip, Draining: draining, OthersAtMost: r.Missed,
		Shared: portUses(r.Spaces), Busiest: portUses(r.Busiest), Sandboxes: []SandboxUse{},
	}
	for _, s := range r.Sandboxes {
		u.Sandboxes = append(u.Sandboxes, SandboxUse{
			Inner: s.Inner, Sessions: s.Sessions, HalfOpen: s.HalfOpen, Ports: s.Ports,
			TCP: s.PerProtocol.Of(packet.TCP), UDP: s.PerProtocol.Of(packet.UDP), ICMP: s.PerProtocol.Of(packet.ICMP),
		})
	}
	if q.Destination.IsValid() {
		d := &DestinationUse{PortUse: portUse(r.Chosen), Users: len(r.By), Sandboxes: []InnerUse{}}
		for _, by := range r.By[:min(len(r.By), q.Top)] {
			d.Sandboxes = append(d.Sandboxes, InnerUse(by))
		}
		u.Destination = d
	}
	return u
}

func portUses(uses []nat.PortUse) []PortUse {
	out := make([]PortUse, 0, len(uses))
	for _, u := range uses {
		out = append(out, portUse(u))
	}
	return out
}

func portUse(u nat.PortUse) PortUse {
	return PortUse{Protocol: protocolName(u.Proto), Destination: u.Remote, Used: u.Used, Held: u.Held, Left: u.Left}
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
	// Limit is the number of sessions of a page: 0 stands for 32, at most MaxReadout.
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
	Sessions []SessionRow
	// Next goes on where this page ended; More is false after the last one.
	Next SessionCursor
	More bool
}

// SessionRow is one session.
type SessionRow struct {
	Protocol string         `json:"protocol"`
	Inner    netip.AddrPort `json:"inner"`
	External netip.AddrPort `json:"external"`
	Remote   netip.AddrPort `json:"remote"`
	State    string         `json:"state"`
	// Age is how long it has been there, and Expires when it goes if nothing more is
	// heard, in seconds.
	Age     int64 `json:"ageSeconds"`
	Expires int64 `json:"expiresInSeconds"`
}

// Sessions reads sessions of the tables of a network's pair. The error is as that
// of Ports.
func (h *Host) Sessions(ctx context.Context, q SessionsQuery) (SessionPage, error) {
	page := SessionPage{Sessions: []SessionRow{}}
	if q.Limit = min(max(q.Limit, 0), MaxReadout); q.Limit == 0 {
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

func sessionRow(s nat.Session, now packet.Instant) SessionRow {
	return SessionRow{
		Protocol: protocolName(s.Proto), Inner: s.Inner, External: s.External, Remote: s.Remote, State: s.State,
		Age:     int64(max(now-s.Created, 0) / packet.Instant(time.Second)),
		Expires: int64(max(s.Expires-now, 0) / packet.Instant(time.Second)),
	}
}
