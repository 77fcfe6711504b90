package gateway

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// withDF sets DF in a packet.
func withDF(b []byte) []byte {
	b[6] |= 0x40
	b[10], b[11] = 0, 0
	fixHeader(b)
	return b
}

// U-13: a packet of a live session that does not fit the tunnel and must not be cut:
// the remote end is told the tunnel's MTU from the dedicated IP, with the packet quoted as
// it came. What has no session, or is filtered, is told nothing.
func TestR11InboundTooBig(t *testing.T) {
	r := newRig(t)
	ext := r.external(at(alice, 5000))
	r.up.sent = nil
	large := withDF(udp(t, origin, ext, make([]byte, 1472)))
	stranger := netip.AddrPortFrom(origin.Addr(), origin.Port()^1)
	r.up.queue = [][]byte{bytes.Clone(large), withDF(udp(t, stranger, ext, make([]byte, 1472))),
		withDF(udp(t, origin, at(ext.Addr(), ext.Port()^1), make([]byte, 1472)))}
	if got := r.read(); len(got) != 0 {
		t.Errorf("the sandbox got %d packets", len(got))
	}
	if len(r.up.sent) != 1 {
		t.Fatalf("the uplink got %d packets, want 1: %v", len(r.up.sent), r.counts())
	}
	e := parsed(t, r.up.sent[0])
	if e.Kind != packet.KindICMPError || e.ICMPType != 3 || e.ICMPCode != 4 || e.Src != ext.Addr() || e.Dst != origin.Addr() ||
		binary.BigEndian.Uint16(e.B[e.L4+6:]) != 1420 {
		t.Errorf("the remote end is told %+v", e)
	}
	if quote := e.B[e.L4+8:]; !bytes.Equal(quote, large[:len(quote)]) || len(e.B) != 576 {
		t.Errorf("%d bytes, which quote % x, want % x", len(e.B), quote[:28], large[:28])
	}
	r.wantCounts(map[string]uint64{"egress": 1, "ingress too_big": 1, "ingress filtered": 1, "ingress no_mapping": 1})
	if n := r.f.counters.RemoteErrors(); n != 1 {
		t.Errorf("%d errors to remote ends counted", n)
	}
}

// time exceeded on the way back, the same way.
func TestR1InboundTTL(t *testing.T) {
	r := newRig(t)
	ext := r.external(at(alice, 5000))
	r.up.sent = nil
	late := udp(t, origin, ext, []byte("late"))
	late[8], late[10], late[11] = 1, 0, 0
	fixHeader(late)
	r.up.queue = [][]byte{bytes.Clone(late)}
	r.read()
	if len(r.up.sent) != 1 {
		t.Fatalf("the uplink got %d packets", len(r.up.sent))
	}
	e := parsed(t, r.up.sent[0])
	if e.ICMPType != 11 || e.Src != ext.Addr() || !bytes.Equal(e.B[e.L4+8:], late) {
		t.Errorf("the remote end is told %+v", e)
	}
	r.wantCounts(map[string]uint64{"egress": 1, "ingress ttl_expired": 1})
}

// no error about an error, however large it is, and none from an address that is not held here.
func TestR6RemoteErrorsAboutNothing(t *testing.T) {
	r := newRig(t)
	ext := r.external(at(alice, 5000))
	left := parsed(t, r.up.sent[0])
	r.up.sent = nil
	about := make([]byte, 576)
	e := about[:packet.BuildICMPError(about, 3, 1, 0, origin.Addr(), &left)]
	e[8], e[10], e[11] = 1, 0, 0 // its time is over
	fixHeader(e)
	r.up.queue = [][]byte{e}
	r.read()
	p := parsed(t, udp(t, origin, ext, nil))
	foreign := at(neighbour, ext.Port())
	r.f.tellRemote(&r.f.rx.tells, &p, foreign, packet.TooBig, 1)
	if len(r.up.sent) != 0 || r.f.counters.RemoteErrors() != 0 {
		t.Errorf("%d errors left", len(r.up.sent))
	}
	r.wantCounts(map[string]uint64{"egress": 1, "ingress ttl_expired": 1, "egress wrong_source": 1})
}

// one remote end has a bound of its own, all together theirs, which nobody can
// count exactly.
func TestR8RemoteErrorsAreLimited(t *testing.T) {
	r := newRig(t)
	ext := r.external(at(alice, 5000))
	r.up.sent = nil
	for range 3 {
		r.up.queue = repeat(withDF(udp(t, origin, ext, make([]byte, 1472))), batchSize)
		r.read()
	}
	if len(r.up.sent) != remoteBurst {
		t.Errorf("%d errors at once, want %d", len(r.up.sent), remoteBurst)
	}
	var b remoteBudget
	allowed := 0
	for i := range 4 * allRemotesBurst {
		if b.allow(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 1) {
			allowed++
		}
	}
	if allowed < allRemotesBurst/allRemotesJitters || allowed >= allRemotesBurst {
		t.Errorf("%d errors to as many remote ends, want fewer than %d and at least a third", allowed, allRemotesBurst)
	}
}

// R-11, U-13: towards the internet the link is the uplink's business: what the tunnel brings fits
// any link of 1420 bytes, and a datagram that came in fragments is handed over whole, with its DF, to be
// cut in order or refused.
func TestR11OutboundWhole(t *testing.T) {
	r := newRig(t)
	whole := udp(t, at(alice, 5000), origin, make([]byte, 3000))
	r.write(fragmentsOf(whole)...)
	if len(r.up.sent) != 1 || len(r.up.sent[0]) != len(whole) {
		t.Fatalf("the uplink got %d packets", len(r.up.sent))
	}
	if p := parsed(t, r.up.sent[0]); p.DF {
		t.Error("it may not be cut")
	}
}

// TestNoAllocationsTold: telling remote ends allocates nothing.
func TestNoAllocationsTold(t *testing.T) {
	r := newRig(t)
	ext := r.external(at(alice, 5000))
	r.f.uplink = &countingUplink{fakeUplink: r.up}
	b := withDF(udp(t, origin, ext, make([]byte, 1472)))
	queue := [][]byte{b, udp(t, origin, ext, nil)}
	bufs, sizes := readBuffers(), make([]int, batchSize)
	if n := testing.AllocsPerRun(100, func() {
		r.clock.now += 1e9
		r.up.queue = queue
		if _, err := r.f.Read(bufs, sizes, headroom); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
	if n := r.f.counters.RemoteErrors(); n < 100 {
		t.Errorf("%d were told", n)
	}
}
