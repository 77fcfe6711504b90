package snat

import (
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// maxWaiting is how many packets may wait at a side. A batch has 128; what the stack
// itself has to say waits for the next one.
const maxWaiting = 1024

// side is an interface of the stack. What leaves by it waits to be taken.
type side struct {
	mtu        int
	dispatcher atomic.Pointer[stack.NetworkDispatcher]

	mu      sync.Mutex
	waiting []*stack.PacketBuffer // a reference to each is held
	first   int                   // those before are taken
}

var _ stack.LinkEndpoint = (*side)(nil)

// deliver gives a packet to the stack, which forwards it before this returns.
func (s *side) deliver(b []byte) {
	if len(b) == 0 || header.IPVersion(b) != header.IPv4Version {
		return
	}
	pkt := newPacket(b)
	if d := s.dispatcher.Load(); d != nil {
		(*d).DeliverNetworkPacket(header.IPv4ProtocolNumber, pkt)
	}
	pkt.DecRef()
}

// WritePackets implements stack.LinkEndpoint.
func (s *side) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, pkt := range list.AsSlice() {
		if len(s.waiting)-s.first >= maxWaiting {
			return i, &tcpip.ErrNoBufferSpace{}
		}
		s.waiting = append(s.waiting, pkt.IncRef())
	}
	return list.Len(), nil
}

// count is how many packets may be taken now, up to a limit.
func (s *side) count(limit int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return min(limit, len(s.waiting)-s.first)
}

// take copies the first packet that waits, and returns its length: 0 if it has no room.
// Only whoever counted may take.
func (s *side) take(room []byte) (n int) {
	s.mu.Lock()
	pkt := s.waiting[s.first]
	s.waiting[s.first] = nil
	if s.first++; s.first == len(s.waiting) {
		s.waiting, s.first = s.waiting[:0], 0
	}
	s.mu.Unlock()
	defer pkt.DecRef()
	if pkt.Size() > len(room) {
		return 0
	}
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		n += copy(room[n:], b[skip:])
		skip = 0
	}
	return n
}

// Attach is called by the stack with itself, and with nil when it lets go.
func (s *side) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		s.dispatcher.Store(nil)
		return
	}
	s.dispatcher.Store(&d)
}

// IsAttached implements stack.LinkEndpoint.
func (s *side) IsAttached() bool { return s.dispatcher.Load() != nil }

// MTU is the largest IP packet in bytes.
func (s *side) MTU() uint32 { return uint32(s.mtu) }

// SetMTU does nothing: the MTU is fixed.
func (*side) SetMTU(uint32) {}

// Capabilities says that the stack need not verify what is only forwarded. That it
// completes checksums on the way out is needed: WireGuard's TUN joins nothing else.
func (*side) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// MaxHeaderLength is 0: there is no link header.
func (*side) MaxHeaderLength() uint16 { return 0 }

// LinkAddress is empty: there is no link address.
func (*side) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress does nothing.
func (*side) SetLinkAddress(tcpip.LinkAddress) {}

// ARPHardwareType says that there is no ARP.
func (*side) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader does nothing.
func (*side) AddHeader(*stack.PacketBuffer) {}

// ParseHeader does nothing.
func (*side) ParseHeader(*stack.PacketBuffer) bool { return true }

// Wait returns at once: the interface has no goroutine.
func (*side) Wait() {}

// Close does nothing; what waits is collected with the device.
func (*side) Close() {}

// SetOnCloseAction does nothing.
func (*side) SetOnCloseAction(func()) {}
