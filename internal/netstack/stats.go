package netstack

import "sync/atomic"

// counters are what the device counts itself.
type counters struct {
	written                 [admitted + 1]atomic.Uint64 // packets given to Write, by verdict
	packetsOut              atomic.Uint64
	injected, injectRefused atomic.Uint64
	repliesDropped          atomic.Uint64
}

// Stats are counters since New, and two gauges.
type Stats struct {
	PacketsIn      uint64 // handed to the stack by Write
	PacketsOut     uint64 // returned by Read, injected ones included
	Injected       uint64 // taken by Inject
	InjectRefused  uint64 // refused by Inject: the queue was full, or the packet above the MTU
	RepliesDropped uint64 // resets and ICMP messages dropped: the queue and its reserve were full
	Malformed      uint64 // dropped by Write: not IPv4, or cut short
	BadChecksum    uint64 // dropped by Write: a wrong checksum
	Fragments      uint64 // dropped by Write: fragments, which the caller has to reassemble
	NotIntercepted uint64 // dropped by Write with Config.Intercept: neither TCP nor an ICMP error
	PendingDropped uint64 // SYNs dropped: Config.MaxPending requests were pending
	QueueDropped   uint64 // segments dropped: the receive queue of their connection was full
	Retransmits    uint64 // TCP segments sent again
	Timeouts       uint64 // retransmission timers that ran out
	ResetsSent     uint64 // TCP resets sent
	Connections    uint64 // gauge: TCP connections that are open
	Queued         int    // gauge: packets waiting for Read
}

// Stats returns the counters.
func (d *Device) Stats() Stats {
	s := d.stack.Stats()
	return Stats{
		PacketsIn:      d.counters.written[admitted].Load(),
		PacketsOut:     d.counters.packetsOut.Load(),
		Injected:       d.counters.injected.Load(),
		InjectRefused:  d.counters.injectRefused.Load(),
		RepliesDropped: d.counters.repliesDropped.Load(),
		Malformed:      d.counters.written[malformed].Load(),
		NotIntercepted: d.counters.written[notIntercepted].Load(),
		PendingDropped: s.TCP.ForwardMaxInFlightDrop.Value(),
		BadChecksum:    d.counters.written[badChecksum].Load(),
		Fragments:      d.counters.written[fragmented].Load(),
		QueueDropped:   s.DroppedPackets.Value(),
		Retransmits:    s.TCP.Retransmits.Value(),
		Timeouts:       s.TCP.Timeouts.Value(),
		ResetsSent:     s.TCP.ResetsSent.Value(),
		Connections:    s.TCP.CurrentConnected.Value(),
		Queued:         d.queue.len(),
	}
}
