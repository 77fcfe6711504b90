package netstack

import (
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// link is the stack's only network interface: it queues what the stack sends
// and hands over what Device.Write got.
type link struct {
	mtu        int
	queue      *queue
	counters   *counters
	dispatcher atomic.Pointer[stack.NetworkDispatcher]
	everywhere bool // the stack answers as every address
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// SupportedGSO says that TCP segments above the MTU are taken; Device.Read cuts them.
func (*link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// GSOMaxSize is the largest packet in bytes that is taken, which the IP header's length field bounds.
func (*link) GSOMaxSize() uint32 { return maxRunSize }

// WritePackets queues packets of the stack. See the package comment for when
// it waits and when it drops.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range list.AsSlice() {
		o := outbound{pkt: pkt.IncRef(), weight: weight(pkt)}
		switch {
		case isReply(pkt):
			if !l.queue.offer(o, l.queue.reserve) {
				l.counters.repliesDropped.Add(1)
				pkt.DecRef()
			}
		case !l.queue.put(o):
			pkt.DecRef()
			return i, &tcpip.ErrClosedForSend{}
		}
	}
	return list.Len(), nil
}

// isReply reports whether pkt may have been made inside Device.Write, which
// must not wait: a TCP reset or an ICMP message.
func isReply(pkt *stack.PacketBuffer) bool {
	switch pkt.TransportProtocolNumber {
	case header.TCPProtocolNumber:
		h := header.TCP(pkt.TransportHeader().Slice())
		return len(h) >= header.TCPMinimumSize && h.Flags().Contains(header.TCPFlagRst)
	case header.ICMPv4ProtocolNumber:
		return true
	}
	return false
}

// deliver gives one packet to the stack and drops the caller's reference.
func (l *link) deliver(pkt *stack.PacketBuffer) {
	if d := l.dispatcher.Load(); d != nil {
		(*d).DeliverNetworkPacket(header.IPv4ProtocolNumber, pkt)
	}
	pkt.DecRef()
}

// Attach is called by the stack with itself, and with nil when it lets go.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool { return l.dispatcher.Load() != nil }

// MTU is the largest IP packet in bytes.
func (l *link) MTU() uint32 { return uint32(l.mtu) }

// SetMTU does nothing: the MTU is fixed at New.
func (*link) SetMTU(uint32) {}

// Capabilities says that the checksums of what the link delivers are verified.
//
// A stack that answers as every address calls the link a loopback. To such a one every address
// within its own address's subnet is its own (see [everyAddress]). Otherwise it makes an
// address for each destination and, for each packet, looks through all that there are.
// What it leaves out for a loopback are the checksums of TCP; Device.Read completes them.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	if l.everywhere {
		return stack.CapabilityRXChecksumOffload | stack.CapabilityLoopback
	}
	return stack.CapabilityRXChecksumOffload
}

// MaxHeaderLength is 0: there is no link header.
func (*link) MaxHeaderLength() uint16 { return 0 }

// LinkAddress is empty: there is no link address.
func (*link) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress does nothing.
func (*link) SetLinkAddress(tcpip.LinkAddress) {}

// ARPHardwareType says that there is no ARP.
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader does nothing.
func (*link) AddHeader(*stack.PacketBuffer) {}

// ParseHeader does nothing.
func (*link) ParseHeader(*stack.PacketBuffer) bool { return true }

// Wait returns at once: the link has no goroutine.
func (*link) Wait() {}

// Close does nothing; Device.Close closes the queue.
func (*link) Close() {}

// SetOnCloseAction does nothing.
func (*link) SetOnCloseAction(func()) {}
