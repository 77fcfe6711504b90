package gateway

import (
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/gaissmai/bart"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/policy"
)

// otherSide reads a site tunnel's device as WireGuard does, and answers each datagram
// as a peered network would, or gives it to the network's other host.
type otherSide struct {
	device *siteDevice
	mu     sync.Mutex
	asked  uint64
	given  uint64
	wrong  []netip.AddrPort
	came   chan struct{} // something came since it was looked at last
	done   chan struct{}
}

func startOtherSide(d *siteDevice) *otherSide {
	o := &otherSide{device: d, came: make(chan struct{}, 1), done: make(chan struct{})}
	go o.run()
	return o
}

func (o *otherSide) run() {
	defer close(o.done)
	var bufs [][]byte
	for range batchSize {
		bufs = append(bufs, make([]byte, headroom+frameSize))
	}
	sizes := make([]int, batchSize)
	for {
		n, err := o.device.Read(bufs, sizes, headroom)
		if err != nil {
			return
		}
		var answers [][]byte
		o.mu.Lock()
		for i := range n {
			if b := o.take(bufs[i][headroom : headroom+sizes[i]]); b != nil {
				answers = append(answers, b)
			}
		}
		o.mu.Unlock()
		select {
		case o.came <- struct{}{}:
		default:
		}
		if len(answers) > 0 {
			if _, err := o.device.Write(answers, headroom); err != nil {
				return
			}
		}
	}
}

// take looks at one packet and returns the answer to it, if one is due.
func (o *otherSide) take(b []byte) []byte {
	var p packet.Packet
	if packet.Parse(&p, b) != packet.Pass {
		o.wrong = append(o.wrong, netip.AddrPort{})
		return nil
	}
	switch {
	case peeredRange.Contains(p.Src) || p.Kind == packet.KindICMPError && p.Src == gw:
		o.given++
	case !network16.Contains(p.Src) || !peeredRange.Contains(p.Dst):
		o.wrong = append(o.wrong, at(p.Src, p.SrcPort))
	default:
		o.asked++
		answer := make([]byte, headroom+28)
		packet.BuildUDP(answer[headroom:], at(p.Dst, p.DstPort), at(p.Src, p.SrcPort), nil, 64, 9)
		return answer
	}
	return nil
}

// await waits until both a peered network and the other host have got something.
func (o *otherSide) await(t *testing.T) {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		o.mu.Lock()
		both := o.asked > 0 && o.given > 0
		o.mu.Unlock()
		if both {
			return
		}
		select {
		case <-o.came:
		case <-late:
			t.Fatal("the other side, or the other host, got nothing within 10 s")
		}
	}
}

// TestPeeredConcurrent: sandboxes of both hosts send to the internet and to a peered
// network whose peering comes and goes, and are attached and revoked meanwhile. Every
// packet counts once, nothing leaves untranslated by the uplink or translated by the
// site tunnel, and what is over at last has no state, whatever was under way.
func TestPeeredConcurrent(t *testing.T) {
	const rounds, perRound = 150, 16
	c := newCrowd(t)
	compile := func(ranges ...netip.Prefix) *policy.Snapshot {
		s, err := policy.Compile(policy.Config{Network: network16, Gateway: gw, Pair: pair[:], Mode: policy.ModeAllow, Peered: ranges})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range c.sandboxes {
			s = s.With(a, policy.Subject{})
		}
		return s
	}
	with, without := compile(peeredRange), compile()
	table, err := newPeeredTable(nat.Config{Identity: true, Seed: [32]byte{9}})
	if err != nil {
		t.Fatal(err)
	}
	count := &peeringCounters{}
	way := &peered{ranges: new(bart.Fast[*lane]), device: newSiteDevice("site", c.f, siteSlots), table: table}
	way.ranges.Insert(peeredRange, &lane{peeringCounters: count, device: way.device, mtu: c.f.mtu})
	gone := &peered{ranges: new(bart.Fast[*lane]), device: way.device, table: table}
	c.f.setPeered(way)
	c.f.SetPolicy(with, nil)
	back, far := startReader(c.f), startOtherSide(way.device)

	var writers, changer sync.WaitGroup
	stop := make(chan struct{})
	for i, inner := range c.sandboxes {
		var batch [][]byte
		for k := range perRound {
			to := []netip.AddrPort{origin, database}[k%2]
			if i%2 == 1 {
				to = database // by way of the other host
			}
			batch = append(batch, frame(udp(t, at(inner, uint16(2000+k)), to, []byte("payload"))))
		}
		write := []func([][]byte, int) (int, error){c.f.Write, way.device.Write}[i%2]
		writers.Go(func() {
			for range rounds {
				bufs := make([][]byte, len(batch))
				for k := range batch {
					bufs[k] = append([]byte(nil), batch[k]...)
				}
				if _, err := write(bufs, headroom); err != nil {
					t.Errorf("Write: %v", err)
				}
			}
		})
	}
	end := func() {
		c.f.SetPolicy(without, nil)
		c.f.setPeered(gone)
		c.f.revokePeered(peeredRange)
	}
	changer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			end()
			c.f.setPeered(way)
			c.f.SetPolicy(with.Without(c.sandboxes[i%4]), nil)
			c.f.Revoke(c.sandboxes[i%4])
			c.f.SetPolicy(with, nil)
		}
	})
	writers.Wait()
	close(stop)
	changer.Wait()
	for i, write := range []func([][]byte, int) (int, error){c.f.Write, way.device.Write} { // once in peace
		if _, err := write([][]byte{frame(udp(t, at(c.sandboxes[i], 1), database, nil))}, headroom); err != nil {
			t.Errorf("Write: %v", err)
		}
	}
	far.await(t)
	end()
	c.f.withPeered(func(tb *nat.Table) {
		some, _ := tb.AppendSessions(nil, 0, 1<<20)
		for _, s := range some {
			t.Errorf("%v has a session after the peering ended", s.Inner)
		}
	})
	counted := c.f.counters.Packets(Egress)
	for o := range packet.Outcomes() {
		counted += c.f.counters.Drops(Egress, o)
	}
	if want := uint64(len(c.sandboxes)*rounds*perRound + 2); counted != want {
		t.Errorf("%d packets counted, want %d: %v", counted, want, c.counts())
	}
	way.device.Close()
	<-far.done
	if c.echo.wrong != 0 || len(far.wrong) != 0 || c.f.counters.Drops(Egress, packet.WrongSource) != 0 {
		t.Errorf("the uplink got %d packets from wrong sources, the site tunnel %v; %v", c.echo.wrong, far.wrong, c.counts())
	}
	c.f.Close()
	if <-back.done; back.err != os.ErrClosed {
		t.Errorf("Read: %v", back.err)
	}
}
