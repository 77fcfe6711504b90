// Package uplink is the far side of a network's Forwarder: translated packets go
// in, packets addressed to the network's dedicated IPs come out.
//
// [Sockets] is the uplink that needs no privilege beyond the addresses being on
// the host. It carries
//
//   - TCP by two connections per session: a userspace stack ends the sandbox's,
//     and a kernel socket bound to exactly the dedicated IP and port that the
//     translator chose reaches the remote end (tcp.go, join.go). The sandbox's
//     SYN is answered when the remote end has answered, and in the same way;
//   - UDP by one kernel socket per mapping, whose datagrams keep TTL, type of
//     service and DF in both directions where the kernel lets them (udp.go);
//   - ICMP echo by one ping socket per identifier, where the kernel allows them
//     (icmp.go).
//
// ICMP errors come from its sockets' error queues and are made anew, each with the
// type, code and sender of the one that arrived (errors.go). The kernel owns the
// addresses, so that it answers strangers itself and reassembles fragments.
//
// [Tun] is the one that needs /dev/net/tun and CAP_NET_ADMIN. It gives whole packets to
// the kernel, which routes them from a TUN interface; it carries [Trains]. The kernel is the
// next hop: it takes one from the TTL of every packet in each direction, cuts what is
// too long for its link or refuses it by ICMP 3/4, and has no say in ports or sessions.
package uplink

import (
	"context"
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/internal/tundev"
)

// Uplink carries the translated packets of one network.
//
// Write takes packets at bufs[i][offset:], whose sources are dedicated IPs; the
// buffers are the caller's again on return, and what cannot be carried is counted,
// not an error. It may be called by many goroutines at once and never waits for
// Read. After Close it returns [os.ErrClosed].
//
// A datagram that came through the tunnel in fragments is written whole, and may be larger than the
// link. The uplink knows the link's MTU and the Forwarder does not: what has no DF it
// cuts in order, and what has DF it refuses to the sender by ICMP 3/4 with that
// MTU, counted as packet.TooBig (RFC 4787 REQ-13). What fits the tunnel's MTU, 1420, must
// fit the link, or is treated the same.
//
// ICMP errors, too, are written: those of sandboxes, and the Forwarder's own about
// packets of live sessions that go no further. An uplink that cannot send them drops them.
//
// Read waits for packets that are addressed to dedicated IPs, writes them to
// bufs[i][offset:] and their lengths to sizes, and returns their number: 0 after
// Wake, [os.ErrClosed] after Close. It is called by one goroutine. A datagram
// that is longer than the tunnel's MTU is returned whole, because it can be
// translated only as a whole: buffers have room for 65,535 bytes behind offset,
// or longer ones are cut.
type Uplink interface {
	Write(bufs [][]byte, offset int) (int, error)
	Read(bufs [][]byte, sizes []int, offset int) (int, error)
	// Wake lets a blocked Read, or else the next one, return 0 packets.
	Wake()
	// BatchSize is the largest number of packets of one Read.
	BatchSize() int
	// Close ends everything; it is safe to call twice.
	Close() error
	// Events tells the owner of the translator's tables what they have to
	// know. The channel is bounded: what finds it full is lost and counted, and
	// the tables' own timers do the rest. Close closes it.
	Events() <-chan Event
	// Release is the way back: the table dropped this session or mapping, so
	// its socket is closed, a TCP connection by RST. Remote counts for TCP alone.
	// A flow that is not known is ignored.
	Release(f Flow)
	// Check finds out whether what leaves from a dedicated IP comes back: nil when
	// the remote end has taken or refused a TCP connection, until ctx ends. It
	// passes by the tables, and takes no port from them.
	Check(ctx context.Context, from netip.Addr, to netip.AddrPort) error
	Stats() Stats
	// String describes limits and offloads in one line.
	String() string
}

// Flow names a TCP session by both ends, and a UDP or ICMP mapping by External
// alone, whose port is the identifier of an ICMP echo.
type Flow struct {
	Proto            packet.Proto
	External, Remote netip.AddrPort
}

// EventKind says what an Event is.
type EventKind uint8

// The kinds of events.
const (
	// PortRefused: the kernel does not give the external port to this flow.
	// Nothing was sent; the packet was dropped, and the next one is expected to come
	// from another port.
	PortRefused EventKind = iota + 1
	// SessionClosed: a TCP session, or the attempt at one, ended by itself and
	// its kernel socket is closed. The event comes some seconds later (linger.go), when
	// the sandbox has had time to see the end, and not at all when the flow
	// has come back meanwhile: the table may drop the session at once.
	SessionClosed
)

// String returns the kind's name.
func (k EventKind) String() string {
	switch k {
	case PortRefused:
		return "port refused"
	case SessionClosed:
		return "session closed"
	}
	return "unknown"
}

// Event is what the uplink has learnt about a flow.
type Event struct {
	Kind EventKind
	Flow Flow
}

// Stats are counters since the start, and gauges.
type Stats struct {
	// Drops counts packets that were not carried, by reason. A refused SYN is one of them.
	Drops [packet.NumOutcomes]uint64
	// Inward are those of Drops of which the uplink knows that they came from outside.
	Inward [packet.NumOutcomes]uint64
	// EventsLost counts events that found the channel full.
	EventsLost uint64
	// TCP, UDP and ICMP are the kernel sockets open now, pending connects included in TCP.
	TCP, UDP, ICMP int
	// Pending is how many connects the remote end has not answered yet.
	Pending int
	// Offload is what the kernel granted an interface; sockets have none.
	Offload Offload
}

// Offload is what the kernel of a TUN interface does in the uplink's place.
type Offload = tundev.Offload
