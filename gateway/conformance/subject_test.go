package conformance

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/internal/tundev"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/policy"
)

// subject is what stands in the gateway's place, for one network.
type subject interface {
	// write takes packets of a sandbox, whose sources have been checked.
	write(batch ...[]byte)
	// read waits for packets to sandboxes, at most tundev.BatchSize, some of
	// size 0; os.ErrClosed after close.
	read(bufs [][]byte, sizes []int) (int, error)
	close()
}

// egress returns the dedicated IP by which an inner address leaves.
func egress(pair [2]netip.Addr, inner netip.Addr) netip.Addr { return pair[spec.EgressIndex(inner)] }

// ours is a Forwarder with its tables, policy and a raw uplink.
type ours struct {
	pair   [2]netip.Addr
	fwd    *gateway.Forwarder
	tables [2]*nat.Table
	out    gated
	up     *rawUplink // out, where it is one
	clock  *clock
	// gate is held by whoever works at the tables: nobody else may look.
	gate sync.Mutex
}

// nobody is the gateway's own services where there are none.
type nobody struct{}

func (nobody) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }

// newOurs returns a Forwarder whose far side is an interface of the gateway's.
func newOurs(t *testing.T, n *ground, link string, pair [2]netip.Addr) *ours {
	t.Helper()
	o := &ours{pair: pair, clock: n.clock}
	if n.tun {
		o.out = newTunUplink(t, n, link, pair, &o.gate)
	} else {
		o.up = newRawUplink(n.device(n.gateway, link, 1500), n.clock, &o.gate)
		o.out = o.up
		n.task(func() { o.up.pump(t) })
	}
	for i, ip := range pair {
		c := n.config
		c.External, c.Seed = ip, [32]byte{1, byte(i), ip.As4()[3]}
		var err error
		if o.tables[i], err = nat.New(c); err != nil {
			t.Fatal(err)
		}
	}
	own := []netip.Addr{gatewayWAN, pairA[0], pairA[1], pairB[0], pairB[1]}
	own = slices.DeleteFunc(own, func(a netip.Addr) bool { return slices.Contains(pair[:], a) })
	rules, err := policy.Compile(policy.Config{Network: inner16, Gateway: innerGateway, Own: own, Pair: pair[:], Mode: policy.ModeAllow})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{inner1, inner2, inner3} {
		rules = rules.With(a, policy.Subject{Kind: "function"})
	}
	o.fwd, err = gateway.NewForwarder(gateway.ForwarderConfig{
		Name: "conformance", Network: inner16, Gateway: innerGateway, Tables: o.tables, External: pair,
		Uplink: o.out, Local: nobody{}, Policy: rules, MTU: tunnelMTU, Clock: n.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *ours) write(batch ...[]byte) {
	o.gate.Lock()
	defer o.gate.Unlock()
	_, _ = o.fwd.Write(batch, 0) // fails when closed
}

func (o *ours) read(bufs [][]byte, sizes []int) (int, error) {
	n, err := o.fwd.Read(bufs, sizes, 0)
	o.out.leave()
	return n, err
}

func (o *ours) close() { _ = o.fwd.Close() }

// stats returns the counts of both tables together, as far as tests need them.
func (o *ours) stats() (s tally) {
	o.gate.Lock()
	defer o.gate.Unlock()
	for _, t := range o.tables {
		one := t.Stats()
		s.halfOpen += one.HalfOpen
		s.mappings += one.Mappings
		for _, proto := range []packet.Proto{packet.TCP, packet.UDP, packet.ICMP} {
			s.sessions += int(one.Sessions.Of(proto))
		}
		for out := range packet.Outcomes() {
			s.ingress[out] += one.Ingress.Of(out)
			s.egress[out] += one.Egress.Of(out)
		}
	}
	return s
}

// tally is what tables say of themselves.
type tally struct {
	sessions, mappings, halfOpen int
	egress, ingress              [packet.NumOutcomes]uint64
}

// sweep does what the gateway's keeper does between packets.
func (o *ours) sweep() {
	o.gate.Lock()
	defer o.gate.Unlock()
	events := make([]nat.Event, 1024)
	now := o.clock.Now()
	for _, t := range o.tables {
		t.Expire(now, 1<<21)
		for t.Drain(events) == len(events) {
		}
	}
}

// fill makes mappings of UDP from one inner address, until its table has only free
// ports left, and returns how many it made. They lead nowhere.
func (o *ours) fill(t *testing.T, from netip.Addr, free int) (made int) {
	t.Helper()
	b := make([]byte, 64)
	table := o.tables[spec.EgressIndex(from)]
	o.gate.Lock()
	defer o.gate.Unlock()
	for port := 1; port <= 65535; port++ {
		if int(table.Stats().FreePorts.Of(packet.UDP)) <= free {
			return made
		}
		n := packet.BuildUDP(b, netip.AddrPortFrom(from, uint16(port)), netip.AddrPortFrom(nowhere, 9), nil, 64, 7)
		var p packet.Packet
		if o := packet.Parse(&p, b[:n]); o != packet.Pass {
			t.Fatal(o)
		}
		if table.Egress(&p, o.clock.Now()) == packet.Pass {
			made++
		}
	}
	return made
}

// kernelNAT is the kernel's own NAT: conntrack and nftables between a TUN, on which
// the sandboxes are, and the gateway's link to the world.
type kernelNAT struct{ dev *tundev.Device }

func newKernelNAT(t *testing.T, gw *netlab.Namespace, dev *tundev.Device, pair [2]netip.Addr) *kernelNAT {
	t.Helper()
	var rules strings.Builder
	fmt.Fprintln(&rules, "table ip reference {\n chain post { type nat hook postrouting priority srcnat;")
	for _, a := range []netip.Addr{inner1, inner2, inner3} {
		fmt.Fprintf(&rules, "  oifname \"wan\" ip saddr %v snat to %v\n", a, egress(pair, a))
	}
	fmt.Fprintln(&rules, " }\n}")
	file := t.TempDir() + "/rules.nft"
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, gw, netlab.Program(t, "nft"), "-f", file)
	return &kernelNAT{dev}
}

func (k *kernelNAT) write(batch ...[]byte) { _, _ = k.dev.Write(batch, 0) }

func (k *kernelNAT) read(bufs [][]byte, sizes []int) (int, error) { return k.dev.Read(bufs, sizes, 0) }

func (k *kernelNAT) close() { _ = k.dev.Close() }

// deliver carries what a subject has for its sandboxes until it is closed.
func deliver(t *testing.T, s subject, sandboxes ...*sandbox) {
	bufs, sizes := buffers(tundev.BatchSize)
	one := make([][]byte, 1)
	for {
		n, err := s.read(bufs, sizes)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			t.Errorf("read from the subject: %v", err)
			return
		}
		for i := range n {
			if sizes[i] < 20 {
				continue
			}
			b := bufs[i][:sizes[i]]
			for _, to := range sandboxes {
				if netip.AddrFrom4([4]byte(b[16:])) == to.inner {
					one[0] = b
					_, _ = to.dev.Write(one, 0)
				}
			}
		}
	}
}
