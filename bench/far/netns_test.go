package far_test

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/far"
	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Enter(m)) }

// A thousand destinations are one far side, and each answers for itself.
func TestPrefixAnswersFromWhatWasAsked(t *testing.T) {
	lab := netlab.Test(t)
	client, server := lab.Namespace("client"), lab.Namespace("server")
	here, there := netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.80/24")
	lab.Connect(netlab.End{Namespace: client, Link: "eth0", Address: here}, netlab.End{Namespace: server, Link: "eth0", Address: there})
	served, routed := netip.MustParsePrefix("198.18.0.0/22"), netip.MustParsePrefix("198.18.0.0/21")
	client.Route(routed, there.Addr())
	if err := server.Run(exec.Command(netlab.Program(t, "ip"), "route", "add", "local", routed.String(), "dev", "lo")); err != nil {
		t.Fatal(err)
	}
	s := start(t, far.Config{Listen: netip.AddrPortFrom(there.Addr(), 9000), Prefixes: []netip.Prefix{served}, In: server})
	s.Open(1)
	dial := func(network string, to netip.Addr) *flow {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := client.Dial(ctx, network, netip.AddrPortFrom(to, s.Addr().Port()).String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		return use(t, c)
	}
	asked := uint64(0)
	visit := func(to netip.Addr) {
		u := dial("udp", to) // takes answers from there alone
		u.send(message(wire.Head{Kind: wire.KindEcho, Run: 1, Sequence: asked}, 36))
		if h, ok := wire.Decode(u.receive(patience)); !ok || h.Kind != wire.KindEchoAnswer || h.Sequence != asked {
			t.Fatalf("the echo of %v: %+v, %t", to, h, ok)
		}
		c := dial("tcp", to)
		c.send(message(wire.Head{Kind: wire.KindAsk, Run: 1, Sequence: asked}, wire.HeadSize))
		if h, ok := wire.Decode(c.all()); !ok || h.Kind != wire.KindAskAnswer || h.Sequence != asked {
			t.Fatalf("the answer of %v: %+v, %t", to, h, ok)
		}
		_, _ = u.Close(), c.Close()
		asked++
	}
	visit(there.Addr())
	for a := served.Addr(); served.Contains(a); a = a.Next() {
		visit(a)
	}
	// What is generated comes from where it was ordered.
	u := dial("udp", netip.MustParseAddr("198.18.2.2"))
	u.ask(wire.KindJoin, wire.Head{Run: 1, Flow: 2}, wire.Order{})
	u.ask(wire.KindGenerate, wire.Head{Run: 1, Sequence: 1}, wire.Order{Rate: 1000, For: time.Minute, Size: 36})
	if h, ok := wire.Decode(u.receive(patience)); !ok || h.Kind != wire.KindGenerated {
		t.Errorf("generated: %+v, %t", h, ok)
	}
	r, _ := s.Report(1)
	if asked != 1025 || r.Echoed != asked || r.Connections != asked || len(r.Sources) != 1 || r.Sources[0].Addr != here.Addr() || r.Dropped != 0 {
		t.Errorf("of %d: %+v", asked, r)
	}
	// It is a neighbour's, say.
	outside := netip.MustParseAddr("198.18.4.1")
	c := dial("tcp", outside)
	c.send(message(wire.Head{Kind: wire.KindAsk, Run: 1}, wire.HeadSize))
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("an address that is not served answers %d bytes", n)
	}
	dial("udp", outside).send(message(wire.Head{Kind: wire.KindEcho, Run: 1}, 36))
	await(t, "both are refused", func() bool { return s.Counts().Refused[far.RefusedAddress] == 2 })
}
