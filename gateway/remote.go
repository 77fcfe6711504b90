package gateway

import (
	"math/rand/v2"
	"net/netip"
	"sync"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// What the gateway tells remote ends: that a packet of a live session does not fit the
// tunnel, or that its time is over. It is told from the dedicated IP and quotes
// the packet as it came, with the external address. Nobody else is told anything: what
// has no session, or is filtered, is dropped in silence (T-4, A-9). So an error goes
// only to who a sandbox talks to, about a packet that carried that one's address and
// port; forged, it makes at most twice its own bytes, within the bounds below.

// remoteErrorRoom is the largest ICMP error, in bytes (RFC 1812 section 4.3.2.3).
const remoteErrorRoom = 576

// remoteError is the scratch of one ICMP error to a remote end.
type remoteError struct {
	buf    [remoteErrorRoom]byte
	frames [1][]byte
	p      packet.Packet
}

// tellRemote tells the sender of p, which a table has restored, why it goes no further.
// external is where p was sent to. p is as it came afterwards.
func (f *Forwarder) tellRemote(e *remoteError, p *packet.Packet, external netip.AddrPort, o packet.Outcome, now packet.Instant) {
	var kind icmpError
	switch o {
	case packet.TTLExpired:
		kind = icmpError{typ: 11} // RFC 5508 section 7.2
	case packet.TooBig:
		kind = icmpError{typ: 3, code: 4, info: uint32(f.mtu)} // RFC 1191
	default:
		return
	}
	if p.Kind == packet.KindICMPError || !f.remoteError.allow(p.Src, now) {
		return
	}
	if f.sideOf(external.Addr()) < 0 { // the last check of what is said outwards
		f.counters.drop(Egress, packet.WrongSource)
		return
	}
	p.SetDestination(external)
	n := packet.BuildICMPError(e.buf[:], kind.typ, kind.code, kind.info, external.Addr(), p)
	if n == 0 {
		return
	}
	if side := f.sideOf(p.Src); side >= 0 {
		f.turnError(e, n, side, now)
		return
	}
	e.frames[0] = e.buf[:n]
	if _, err := f.uplink.Write(e.frames[:], 0); err == nil {
		f.counters.remoteErrors.Add(1)
	}
}

// turnError gives an error about a hairpin to the sandbox that sent the packet.
func (f *Forwarder) turnError(e *remoteError, n, side int, now packet.Instant) {
	if packet.Parse(&e.p, e.buf[:n]) != packet.Pass {
		return
	}
	t := &f.tables[side]
	t.mu.Lock()
	o := t.nat.Hairpin(&e.p, now)
	t.mu.Unlock()
	if o == packet.Pass && f.hairpinQueue().push(e.p.B, f.mtu) {
		f.counters.replies.Add(1)
		f.uplink.Wake()
	}
}

// The bounds of what remote ends are told, a network's own and a remote's own, as those
// of [errorBudget].
const (
	remoteErrors      = packet.Instant(1e7) // one in 10 ms
	remoteBurst       = 20
	remoteBuckets     = 1024                // a power of two
	allRemotesErrors  = packet.Instant(1e6) // one a millisecond
	allRemotesBurst   = 500
	allRemotesJitters = 3 // an error costs one to so many tokens
)

// remoteBudget counts what remote ends may still be told. Its zero value is full.
type remoteBudget struct {
	mu  sync.Mutex
	all bucket
	// remotes are found by a hash of the address, so that memory is bounded; the few
	// that meet share one.
	remotes [remoteBuckets]bucket
}

// allow takes one error to a remote end from its budget and from the network's. What the
// network's budget loses differs by chance, so that nobody reads from his own errors how
// many others got (A-9, CVE-2020-25705).
func (b *remoteBudget) allow(remote netip.Addr, now packet.Instant) bool {
	a := remote.As4()
	h := (uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])) * 0x9e3779b1
	b.mu.Lock()
	defer b.mu.Unlock()
	mine := &b.remotes[h>>22%remoteBuckets]
	if !mine.take(now, remoteErrors, remoteBurst) {
		return false
	}
	for range rand.IntN(allRemotesJitters) {
		b.all.take(now, allRemotesErrors, allRemotesBurst)
	}
	return b.all.take(now, allRemotesErrors, allRemotesBurst)
}
