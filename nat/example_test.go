package nat_test

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// newTable makes a table with a fresh seed.
func newTable() (*nat.Table, error) {
	c := nat.Config{External: netip.MustParseAddr("198.51.100.7")}
	if _, err := rand.Read(c.Seed[:]); err != nil {
		return nil, err
	}
	return nat.New(c)
}

// A table meets packets in both directions, is asked to expire what is over, and tells
// what it did. All calls come from one goroutine, with one clock that goes forward.
func Example() {
	table, err := newTable()
	if err != nil {
		fmt.Println(err)
		return
	}
	box, resolver := netip.MustParseAddrPort("10.0.0.2:40000"), netip.MustParseAddrPort("203.0.113.53:53")
	now := packet.Instant(time.Hour) // any reading of a monotonic clock

	// Out: parse, then Egress. What does not pass is dropped.
	var p packet.Packet
	buf := make([]byte, 1500)
	n := packet.BuildUDP(buf, box, resolver, []byte("question"), 64, 0)
	if o := packet.Parse(&p, buf[:n]); o != packet.Pass {
		fmt.Println("malformed:", o)
	}
	fmt.Println("out:", table.Egress(&p, now), "from", p.Src)
	outside := netip.AddrPortFrom(p.Src, p.SrcPort) // a port by chance

	// In: the same with Ingress.
	n = packet.BuildUDP(buf, resolver, outside, []byte("answer"), 64, 0)
	if o := packet.Parse(&p, buf[:n]); o != packet.Pass {
		fmt.Println("malformed:", o)
	}
	fmt.Println("in:", table.Ingress(&p, now), "to", netip.AddrPortFrom(p.Dst, p.DstPort))

	// Time goes on. Expire goes some way at each call, so it is called again and again.
	now += packet.Instant(301 * time.Second)
	fmt.Println("expired:", table.Expire(now, 8192))

	// What happened waits for Drain.
	var events [64]nat.Event
	for n := table.Drain(events[:]); n > 0; n = table.Drain(events[:]) {
		for _, e := range events[:n] {
			fmt.Println(e.Kind, e.Inner, e.Reason)
		}
	}
	// Output:
	// out: pass from 198.51.100.7
	// in: pass to 10.0.0.2:40000
	// expired: 1
	// created 10.0.0.2:40000 none
	// closed 10.0.0.2:40000 expired
}

// A table is handed over to another of the same settings: its packets stop, the
// clock goes on by a tick, and then the export is written, step by step.
func ExampleTable_AppendExport() {
	old, err := newTable()
	if err != nil {
		fmt.Println(err)
		return
	}
	now := packet.Instant(time.Hour)
	var p packet.Packet
	buf := make([]byte, 1500)
	n := packet.BuildUDP(buf, netip.MustParseAddrPort("10.0.0.2:40000"), netip.MustParseAddrPort("203.0.113.53:53"), nil, 64, 0)
	packet.Parse(&p, buf[:n])
	old.Egress(&p, now)

	export := func() (all []byte) {
		const budget = 4096 // records a step: less than half a millisecond
		for c := (nat.ExportCursor{}); !c.Done(); {
			all, c = old.AppendExport(all, c, budget, now)
		}
		return all
	}
	sessions := func(b []byte) int {
		heir, err := newTable()
		if err == nil {
			err = heir.Import(b, now)
		}
		if err != nil {
			fmt.Println(err)
			return 0
		}
		all, _ := heir.AppendSessions(nil, 0, 4096)
		return len(all)
	}

	// In the tick of the packet the session is not part of an export yet.
	fmt.Println("at once:", sessions(export()))
	// No packet comes any more, and a tick is over.
	now += packet.Instant(100 * time.Millisecond)
	fmt.Println("a tick later:", sessions(export()))
	// Output:
	// at once: 0
	// a tick later: 1
}
