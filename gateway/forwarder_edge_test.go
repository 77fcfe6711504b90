package gateway

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// TestLargeBatch: a batch of any size is forwarded whole and in order.
func TestLargeBatch(t *testing.T) {
	r := newRig(t)
	var packets [][]byte
	for i := range 3*batchSize + 7 {
		packets = append(packets, udp(t, at(alice, 5000), origin, []byte{byte(i >> 8), byte(i)}))
	}
	r.write(packets...)
	if len(r.up.sent) != len(packets) {
		t.Fatalf("uplink got %d packets, want %d", len(r.up.sent), len(packets))
	}
	for i, b := range r.up.sent {
		if p := parsed(t, b); !bytes.Equal(p.Data(), []byte{byte(i >> 8), byte(i)}) {
			t.Fatalf("packet %d carries %v", i, p.Data())
		}
	}
	r.up.queue = nil
	r.f.WriteLocal(repeat(udp(t, at(gw, 4000), resolver, nil), 2*batchSize+1), 0)
	if n := len(r.up.sent) - len(packets); n != 2*batchSize+1 {
		t.Errorf("uplink got %d queries, want %d", n, 2*batchSize+1)
	}
}

// repeat returns n copies of b.
func repeat(b []byte, n int) [][]byte {
	all := make([][]byte, n)
	for i := range all {
		all[i] = append([]byte(nil), b...)
	}
	return all
}

// fragmentsOf cuts a datagram for the tunnel's MTU.
func fragmentsOf(whole []byte) (parts [][]byte) {
	for at := 0; ; {
		buf := make([]byte, 1420)
		n, next := packet.NextFragment(buf, whole, 1420, at)
		parts = append(parts, buf[:n])
		if at = next; at == 0 {
			return parts
		}
	}
}

// TestFragmentsAmongOthers: several datagrams in fragments and whole packets share
// a batch, and each arrives as it was sent.
func TestFragmentsAmongOthers(t *testing.T) {
	r := newRig(t)
	var batch [][]byte
	var want [][]byte
	for i := range 5 {
		small := []byte{byte(i)}
		large := bytes.Repeat([]byte{byte('a' + i)}, 3000)
		whole := udp(t, at(bob, uint16(6000+i)), origin, large)
		batch = append(batch, udp(t, at(alice, uint16(5000+i)), origin, small))
		batch = append(batch, fragmentsOf(whole)...)
		want = append(want, small, large)
	}
	r.write(batch...)
	if len(r.up.sent) != len(want) {
		t.Fatalf("uplink got %d packets, want %d", len(r.up.sent), len(want))
	}
	for i, b := range r.up.sent {
		if p := parsed(t, b); !bytes.Equal(p.Data(), want[i]) || !p.ChecksumOK() {
			t.Errorf("packet %d of %d bytes is not the %d bytes that were sent", i, len(p.Data()), len(want[i]))
		}
	}
	r.wantCounts(map[string]uint64{"egress": 10})
}

// TestFragmentsExpire: a datagram that never gets whole is a drop with a reason.
func TestFragmentsExpire(t *testing.T) {
	r := newRig(t)
	parts := fragmentsOf(udp(t, at(alice, 5000), origin, make([]byte, 3000)))
	r.write(parts[0])
	r.clock.now += 31e9
	r.f.expireFragments(r.clock.now)
	r.write(parts[0])
	r.clock.now += 31e9
	r.write(parts[1]) // the first one's time is over as this one comes
	r.wantCounts(map[string]uint64{"egress fragment_limit": 2})
}

// fragments of those who may not send are refused like their other packets,
// and take none of the memory for fragments.
func TestA16FragmentsOfStrangers(t *testing.T) {
	r := newRig(t)
	for _, from := range []string{"10.20.200.200", "192.168.7.7", "127.0.0.1"} {
		r.write(fragmentsOf(udp(t, at(netip.MustParseAddr(from), 5000), origin, make([]byte, 1500)))...)
	}
	if used := r.f.fragmentBytes(); used != 0 {
		t.Errorf("%d bytes of fragments are kept", used)
	}
	r.wantCounts(map[string]uint64{"egress unattached": 2, "egress spoofed_source": 2, "egress martian": 2})
}

// TestLargeAnswerToServices: an answer of a resolver that is larger than the
// tunnel's MTU reaches the services whole.
func TestLargeAnswerToServices(t *testing.T) {
	r := newRig(t)
	r.f.WriteLocal([][]byte{udp(t, at(gw, 4000), resolver, []byte("upstream"))}, 0)
	p := parsed(t, r.up.sent[0])
	payload := bytes.Repeat([]byte("x"), 4000)
	r.up.queue = [][]byte{udp(t, resolver, at(p.Src, p.SrcPort), payload)}
	if got := r.read(); len(got) != 0 {
		t.Errorf("the tunnel got %d packets", len(got))
	}
	if len(r.local.got) != 1 || len(r.local.got[0]) != 4028 {
		t.Fatalf("services got %d packets", len(r.local.got))
	}
	r.wantCounts(map[string]uint64{"egress": 1, "ingress": 1})
}

// TestRepliesDoNotStarve: a flood of replies leaves room for what comes back.
func TestRepliesDoNotStarve(t *testing.T) {
	r := newRig(t)
	r.write(udp(t, at(alice, 5000), origin, nil))
	p := parsed(t, r.up.sent[0])
	r.f.WriteLocal(repeat(udp(t, at(gw, 53), at(bob, 1), nil), replySlots), 0)
	r.up.queue = repeat(udp(t, origin, at(p.Src, p.SrcPort), nil), 10)
	perAddress := map[netip.Addr]int{}
	for _, q := range r.read() {
		perAddress[q.Dst]++
	}
	if perAddress[alice] != 10 || perAddress[bob] != batchSize/2 {
		t.Errorf("one Read brought %v", perAddress)
	}
}

// TestServicesAreNotTold: an error about the gateway's own packet goes nowhere,
// and least of all into the tunnel.
func TestServicesAreNotTold(t *testing.T) {
	r := newRig(t)
	mid := packet.TCPHeader{Src: at(gw, 4000), Dst: resolver, Flags: packet.ACK, Seq: 1, Ack: 1, Window: 1000, TTL: 64}
	r.f.WriteLocal([][]byte{tcp(t, mid)}, 0)
	if got := r.read(); len(got) != 0 {
		t.Errorf("the tunnel got %+v", got)
	}
	r.wantCounts(map[string]uint64{"egress no_session": 1})
}

// TestErrorFromInside (I-5, A-18): a sandbox's ICMP error leaves with no inner address in it.
func TestErrorFromInside(t *testing.T) {
	r := newRig(t)
	r.write(udp(t, at(alice, 5000), origin, nil))
	p := parsed(t, r.up.sent[0])
	r.up.queue = [][]byte{udp(t, origin, at(p.Src, p.SrcPort), []byte("answer"))}
	answer := r.read()[0]
	b := make([]byte, 576)
	r.write(b[:packet.BuildICMPError(b, 3, 3, 0, alice, &answer)])
	if len(r.up.sent) != 2 {
		t.Fatalf("uplink got %d packets, want 2: %v", len(r.up.sent), r.counts())
	}
	e := parsed(t, r.up.sent[1])
	if own := pair[spec.EgressIndex(alice)]; e.Kind != packet.KindICMPError || e.Src != own || e.Inner.Dst != own || e.Inner.DstPort != p.SrcPort {
		t.Errorf("the error is %v -> %v about %v -> %v", e.Src, e.Dst, e.Inner.Src, e.Inner.Dst)
	}
	if bytes.Contains(e.B, alice.AsSlice()) {
		t.Error("it holds the inner address")
	}
}

// TestAfterClose: what comes late is refused, not lost in silence.
func TestAfterClose(t *testing.T) {
	r := newRig(t)
	if err := r.f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.f.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if n, err := r.f.Write([][]byte{frame(udp(t, at(alice, 1), origin, nil))}, headroom); n != 0 || err == nil {
		t.Errorf("Write after Close = %d, %v", n, err)
	}
	r.f.WriteLocal([][]byte{udp(t, at(gw, 4000), resolver, nil)}, 0)
	r.wantCounts(map[string]uint64{"egress closed": 1})
}
