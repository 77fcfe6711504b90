package uplink

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// endpoint is an IPv4 address and port without the pointer that netip.AddrPort
// holds, so that the collector need not look into maps keyed by it.
type endpoint struct {
	addr [4]byte
	port uint16
}

func endpointOf(a netip.AddrPort) endpoint { return endpoint{a.Addr().As4(), a.Port()} }

func (e endpoint) addrPort() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(e.addr), e.port)
}

// flowKey is a TCP session: both of its ends.
type flowKey struct{ external, remote endpoint }

func (k flowKey) flow() Flow {
	return Flow{Proto: packet.TCP, External: k.external.addrPort(), Remote: k.remote.addrPort()}
}

// mappingKey is a UDP or ICMP mapping; the port of ICMP is its identifier.
type mappingKey struct {
	external endpoint
	proto    packet.Proto
}

func (k mappingKey) flow() Flow { return Flow{Proto: k.proto, External: k.external.addrPort()} }
