package nat

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Records hold no pointers, so the garbage collector never looks inside a
// slab. They name each other by number; 0 is nobody.

// endpoint is an IPv4 address and port as a number: comparable, pointer-free,
// and a hash input as it is.
type endpoint uint64

func makeEndpoint(addr uint32, port uint16) endpoint {
	return endpoint(addr)<<16 | endpoint(port)
}

func (e endpoint) addr() uint32 { return uint32(e >> 16) }
func (e endpoint) port() uint16 { return uint16(e) }

func (e endpoint) addrPort() netip.AddrPort {
	return netip.AddrPortFrom(addrOf(e.addr()), e.port())
}

// number is the IPv4 address a in host order; a must be IPv4.
func number(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func addrOf(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// session is what is known of one (inner endpoint, external port, remote
// endpoint): a TCP connection, or a remote that a UDP or echo mapping has sent
// to and may therefore hear from. 64 bytes: one cache line.
type session struct {
	inner, remote         uint32
	innerPort, remotePort uint16 // of an echo: the inner identifier, and 0
	port                  uint16 // external port or identifier
	proto                 packet.Proto
	state                 state
	owner                 uint32 // the mapping where flags has mapped, else the host
	next, prev            uint32 // in the owner's list; next also links free records
	deadline              uint32 // tick at which it is gone
	created               uint32 // tick
	// What TCP has said, per direction (outward, inward).
	end [2]uint32 // sequence number behind the last byte sent (SND.NXT)
	ack [2]uint32 // highest acknowledgement sent; the peer's initial number before any
	win [2]uint16 // largest window offered; in units of its scale once opened
	// again is the sequence number behind a SYN that came from inside while the
	// connection was open, againScale its window scale. Valid where flags has renewing.
	again uint32
	// flags are the milestones of the handshake and of the close.
	flags sessionFlags
	scale uint8 // window scales offered: low nibble outward, high nibble inward

	againScale uint8
}

type sessionFlags uint8

const (
	mapped   sessionFlags = 1 << iota // belongs to a mapping
	synIn                             // the remote's SYN was seen
	ackedOut                          // the remote has acknowledged our SYN
	ackedIn                           // we have acknowledged the remote's SYN
	finOut                            // FIN from inside
	finIn                             // FIN from outside
	marked                            // see Table.Mark
	renewing                          // see session.again

	// opened: the handshake is complete.
	opened = synIn | ackedOut | ackedIn
)

func (s *session) link() *uint32 { return &s.next }

func (s *session) from() endpoint { return makeEndpoint(s.inner, s.innerPort) }
func (s *session) to() endpoint   { return makeEndpoint(s.remote, s.remotePort) }

// between says whether s is the session of a protocol between two endpoints.
func (s *session) between(p packet.Proto, from, to endpoint) bool {
	return s.from() == from && s.to() == to && s.proto == p
}

// answers says whether s is the session of a protocol between an external port
// and a remote.
func (s *session) answers(p packet.Proto, port uint16, remote endpoint) bool {
	return s.to() == remote && s.port == port && s.proto == p
}

// mapping is the endpoint-independent binding of an inner endpoint to an
// external port (RFC 4787 REQ-1). It has at least one session as long as it lives.
type mapping struct {
	inner           uint32
	innerPort, port uint16
	proto           packet.Proto // 0: free
	doomed          Reason       // why it ends; the inner index does not know it then
	_               [2]uint8
	owner           uint32 // host
	next, prev      uint32 // in the host's list; next also links free records
	sessions        uint32 // how many
	first           uint32 // head of their list
	deadline        uint32 // tick: the latest one of its sessions
}

func (m *mapping) link() *uint32 { return &m.next }

func (m *mapping) from() endpoint { return makeEndpoint(m.inner, m.innerPort) }

// of says whether m is the mapping of an inner endpoint. One that is doomed is not any
// more: the endpoint may have another one.
func (m *mapping) of(p packet.Proto, from endpoint) bool {
	return m.from() == from && m.proto == p && m.doomed == ReasonNone
}

// host is an inner address and what it holds.
type host struct {
	addr                      uint32
	next                      uint32 // links free records
	sessions, ports, halfOpen uint32
	conns                     uint32 // head of the list of sessions without a mapping
	mappings                  uint32 // head of the list of mappings
	blocks                    uint32 // head of the list of port blocks, by number + 1
	tokens, filled            uint32 // of its bucket, in tenths of a session; tick of the last filling
	told                      uint32 // tick of its last Refused event
	known, warned             bool   // record in use; told is valid
}

func (h *host) link() *uint32 { return &h.next }
