package gateway

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// TestRelayedRoundTrip: on the host with the site, packets that the other host relays
// are tracked like its own, and answers go back by the way that their flow's last packet came.
func TestRelayedRoundTrip(t *testing.T) {
	r := newPeeredRig(t, holdsSite)
	query, answer := udp(t, at(alice, 5000), database, []byte("query")), udp(t, database, at(alice, 5000), []byte("answer"))
	r.arrive(query)
	if p := one(t, r.tunneled()); p.Src != alice || p.Dst != database.Addr() || p.TTL != 64 { // the other host was the hop
		t.Errorf("the other side got %+v", p)
	}
	r.arrive(answer)
	if got := r.read(); len(got) != 0 {
		t.Errorf("this host's own tunnel got %+v", got)
	}
	if p := one(t, r.tunneled()); p.Dst != alice || p.Src != database.Addr() || p.TTL != 63 || !p.ChecksumOK() {
		t.Errorf("the other host got %+v", p)
	}
	r.write(bytes.Clone(query)) // it sends by this host now, in the same flow
	one(t, r.tunneled())
	r.arrive(bytes.Clone(answer))
	if p := one(t, r.read()); p.Dst != alice {
		t.Errorf("the sandbox got %+v", p)
	}
	r.arrive(udp(t, at(bob, 5000), database, nil)) // another's way is its own
	one(t, r.tunneled())
	r.arrive(bytes.Clone(answer))
	one(t, r.read())
	r.arrive(udp(t, at(alice, 5001), database, nil)) // so is that of each of its flows
	one(t, r.tunneled())
	r.arrive(bytes.Clone(answer))
	one(t, r.read())
	r.arrive(udp(t, database, at(alice, 5001), nil))
	if got := r.read(); len(got) != 0 {
		t.Errorf("this host's own tunnel got %+v", got)
	}
	one(t, r.tunneled())
	r.wantPassed(4, 5)
	r.wantCounts(map[string]uint64{"egress": 4, "ingress": 5})
}

// TestRelayedRefusals: the policy is asked again about what is relayed, and the
// sandbox is told by way of the other host.
func TestRelayedRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		packet []byte
		reason string
		told   packet.Kind
	}{
		"rule, SYN":       {segment(t, at(alice, 1), closedPort, packet.SYN, 1, 0), "policy_rejected", packet.KindICMPError},
		"rule, mid-flow":  {segment(t, at(alice, 1), closedPort, packet.ACK, 1, 1), "policy_rejected", packet.KindTCP},
		"no session":      {segment(t, at(alice, 1), database, packet.ACK, 1, 1), "no_session", packet.KindTCP},
		"not peered":      {udp(t, at(alice, 1), netip.MustParseAddrPort("10.50.0.1:1"), nil), "private_destination", packet.KindICMPError},
		"to the internet": {udp(t, at(alice, 1), origin, nil), "policy_dropped", 0},
		"to the services": {udp(t, at(alice, 1), at(gw, 53), nil), "policy_dropped", 0},
		"to a sandbox":    {udp(t, at(alice, 1), at(bob, 53), nil), "private_destination", packet.KindICMPError},
		"not attached":    {udp(t, at(stranger, 1), database, nil), "unattached", 0},
		"a sidecar's":     {udp(t, at(worker, 1), database, nil), "policy_dropped", 0},
		"the gateway's":   {udp(t, at(gw, 1), database, nil), "spoofed_source", 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newPeeredRig(t, holdsSite)
			r.arrive(c.packet)
			want := map[string]uint64{"egress " + c.reason: 1}
			if c.told == 0 {
				if got := r.tunneled(); len(got) != 0 {
					t.Errorf("the tunnel got %+v", got)
				}
			} else {
				want["replies"] = 1
				if p := one(t, r.tunneled()); p.Kind != c.told || p.Dst != alice {
					t.Errorf("the other host got %+v", p)
				}
			}
			if got := r.read(); len(got) != 0 {
				t.Errorf("this host's own tunnel got %+v", got)
			}
			r.wantPassed(0, 0)
			r.wantCounts(want)
		})
	}
}

// TestRelayedFragments: the other host cuts what is too large for the tunnel between
// the two, and this one tracks it whole.
func TestRelayedFragments(t *testing.T) {
	far, near := newPeeredRig(t, relaysToSite), newPeeredRig(t, holdsSite)
	payload := bytes.Repeat([]byte("x"), 4000)
	for _, part := range fragmentsOf(udp(t, at(alice, 5000), database, payload)) {
		far.write(part)
	}
	for _, p := range far.tunneled() {
		near.arrive(p.B)
	}
	if n := len(near.tunneled()); n != 3 {
		t.Fatalf("the other side got %d fragments, want 3: %v", n, near.counts())
	}
	for _, part := range fragmentsOf(udp(t, database, at(alice, 5000), payload)) {
		near.arrive(part)
	}
	for _, p := range near.tunneled() {
		far.arrive(p.B)
	}
	if got := far.read(); len(got) != 3 || got[0].Dst != alice {
		t.Errorf("the sandbox got %d fragments, want 3: %v", len(got), far.counts())
	}
	near.wantCounts(map[string]uint64{"egress": 1, "ingress": 1})
	far.wantCounts(map[string]uint64{"egress": 1, "ingress": 3}) // it does not put them together
}

// TestRelayHost: the host without the site is a hop on the way out, decides before it
// relays, and takes from the other host what that may send, and nothing else.
func TestRelayHost(t *testing.T) {
	r := newPeeredRig(t, relaysToSite)
	r.write(udp(t, at(alice, 5000), database, nil), segment(t, at(alice, 5000), database, packet.ACK, 1, 1), udp(t, at(bob, 5000), closedPort, nil))
	got := r.tunneled()
	if len(got) != 2 || got[0].Src != alice || got[0].TTL != 63 || got[1].Kind != packet.KindTCP {
		t.Fatalf("the site's host got %+v", got)
	}
	if p := one(t, r.read()); p.Kind != packet.KindICMPError || p.Dst != bob {
		t.Errorf("the sandbox is told %+v", p)
	}
	r.up.wakes.Store(0)
	note := make([]byte, 576)
	about := parsed(t, udp(t, at(alice, 5000), database, nil))
	note = note[:packet.BuildICMPError(note, 3, 1, 0, gw, &about)]
	r.arrive(
		udp(t, database, at(alice, 5000), []byte("answer")), note,
		fragmentsOf(udp(t, database, at(bob, 5000), make([]byte, 2000)))[1],
		// None of these:
		udp(t, database, at(stranger, 5000), nil), udp(t, at(gw, 53), at(alice, 5000), nil), udp(t, origin, at(alice, 5000), nil),
		udp(t, at(bob, 5000), at(alice, 5000), nil), udp(t, at(pair[0], 5000), at(alice, 5000), nil), udp(t, database, at(gw, 53), nil),
	)
	back := r.read()
	if len(back) != 3 || string(back[0].Data()) != "answer" || back[0].TTL != 64 || back[1].Kind != packet.KindICMPError || back[2].Dst != bob {
		t.Errorf("sandboxes got %+v", back)
	}
	if r.up.wakes.Load() == 0 {
		t.Error("a blocked Read was not woken")
	}
	if got := r.tunneled(); len(got) != 0 {
		t.Errorf("the site's host is told %+v", got)
	}
	if n := r.count.packets[Egress].Load(); n != 2 || len(r.up.sent) != 0 {
		t.Errorf("%d packets passed; the uplink got %d", n, len(r.up.sent))
	}
	r.wantCounts(map[string]uint64{"egress": 2, "egress policy_rejected": 1, "replies": 1, "ingress": 3, "ingress no_mapping": 6})
}

// TestSiteDevice: Read ends with the device, and what comes from a device that is no
// longer in use is dropped.
func TestSiteDevice(t *testing.T) {
	r := newPeeredRig(t, holdsSite)
	ended := make(chan error, 1)
	go func() {
		_, err := r.way.device.Read(readBuffers(), make([]int, batchSize), headroom)
		ended <- err
	}()
	r.f.setPeered(&peered{})
	r.arrive(udp(t, at(alice, 5000), database, nil), udp(t, database, at(alice, 5000), nil))
	r.wantCounts(map[string]uint64{"ingress closed": 2})
	for range 2 {
		if err := r.way.device.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	<-r.way.device.Events() // it was up
	if _, open := <-r.way.device.Events(); open {
		t.Error("events go on after Close")
	}
}
