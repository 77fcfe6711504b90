package main

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/sidecar"
)

// storm is a worker on which everything happens at a time.
type storm struct {
	*world
	seed    uint64
	victim  *netlab.Namespace // which gets nothing, whatever others send
	sent    atomic.Int64      // fuzzed packets that a kernel took
	refused atomic.Int64      // those that it refused while the sidecar was dead
	started atomic.Int64      // sandboxes that ran
	failed  atomic.Int64      // attempts that failed, with a reason
	kills   atomic.Int64
}

// TestSoakLeaks: only the pairs' addresses leave the gateway, no inner address is quoted
// in an ICMP error, and nothing but the tunnels leaves the worker, while sandboxes
// send what they like by raw sockets, others start and end, and the sidecar is killed
// again and again.
func TestSoakLeaks(t *testing.T) { byEach(t, leaks) }

func leaks(t *testing.T, by uplinkKind) {
	requireTun(t)
	s := &storm{world: newWorld(t, by), seed: newSeed(t)}
	s.up()
	s.victim = s.lab.Namespace("victim")
	short := 30 * time.Second
	if raceEnabled {
		short /= 3 // all else takes longer
	}
	length := netlab.Soak(t, short)
	ctx, cancel := context.WithTimeout(t.Context(), length+slowest)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { s.endAfter(ctx, length, cancel) })
	for name, f := range map[string]struct {
		at   *netlab.Capture
		leak func(netlab.Packet) bool
	}{
		"from iad1": {s.atIad1, s.leaksFromIad1}, "to the origin": {s.atOrigin, leaksToOrigin}, "from the worker": {s.atWorker, leaksFromWorker},
	} {
		all.Go(func() {
			if p, err := f.at.Wait(ctx, f.leak); err == nil {
				t.Errorf("a packet %s leaks: %v about %v > %v", name, p, p.QuotedSrc, p.QuotedDst)
			} else if ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	for i, kind := range []string{"", "", "veth", "veth", "tap"} {
		all.Go(func() { s.fuzz(ctx, uint64(i), kind) })
	}
	for i := range 3 {
		all.Go(func() { s.startAndEnd(ctx, rand.New(rand.NewPCG(s.seed, uint64(100+i)))) })
	}
	all.Go(func() { s.startByExec(ctx) })
	s.killAgain(ctx)
	all.Wait()
	t.Logf("%d fuzzed packets, %d refused without a sidecar; %d sandboxes ran, %d attempts failed; %d kills",
		s.sent.Load(), s.refused.Load(), s.started.Load(), s.failed.Load(), s.kills.Load())
	if !s.enough() {
		t.Error("that proves nothing")
	}
	b := s.sandbox(t, acmeFunction)
	allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair)
}

// slowest is how much longer it goes on where a busy machine has not shown enough.
const slowest = 40 * time.Second

// endAfter ends what has gone on for long enough, and has shown enough.
func (s *storm) endAfter(ctx context.Context, length time.Duration, end func()) {
	began := time.Now()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for ctx.Err() == nil && (time.Since(began) < length || !s.enough()) {
		<-look.C
	}
	end()
}

// enough says whether what happened proves anything: packets of fuzzers that went on to
// the origin, and others that found no sidecar; sandboxes that ran; sidecars that were killed.
func (s *storm) enough() bool {
	var fuzzed uint64
	for _, a := range acmePair {
		fuzzed += s.atOrigin.Sources()[netlab.Source{Out: true, Addr: a}]
	}
	return s.kills.Load() > 0 && s.sent.Load() > 1000 && s.refused.Load() > 0 && s.started.Load() > 0 && fuzzed > 100
}

// leaksFromIad1 is the uplink's filter: not (src EXT1 or src EXT2), but for the tunnels.
func (s *storm) leaksFromIad1(p netlab.Packet) bool {
	pairs := slices.Concat(acmePair, globexPair, quietPair)
	switch src := p.Src.Addr(); {
	case p.Out || p.EtherType == etherARP:
		return false
	case innerRange.Contains(p.QuotedSrc) || innerRange.Contains(p.QuotedDst):
		return true
	case src == iad1Addr:
		return !ofTunnel(p)
	default:
		return !slices.Contains(pairs, src)
	}
}

func leaksToOrigin(p netlab.Packet) bool {
	return p.Out && p.EtherType != etherARP && (innerRange.Contains(p.QuotedSrc) || innerRange.Contains(p.QuotedDst) ||
		!slices.Contains(slices.Concat(acmePair, globexPair, quietPair), p.Src.Addr()))
}

// leaksFromWorker: tunnels, and the kernel's word that nobody is there to take a datagram.
func leaksFromWorker(p netlab.Packet) bool {
	if p.Out || p.EtherType == etherARP {
		return false
	}
	tunnel := p.Proto == protoUDP && p.Dst.Port() >= 51820 && p.Dst.Port() <= 51899 || p.Proto == protoICMP && p.ICMPType == 3 && p.QuotedDst == workerAddr
	return p.Src.Addr() != workerAddr || p.Dst.Addr() != iad1Addr || !tunnel
}

const etherARP = 0x0806

// killAgain kills the sidecar at random and starts it again, until ctx ends, and leaves
// one running. In each life somebody is attached that must get nothing.
func (s *storm) killAgain(ctx context.Context) {
	r := rand.New(rand.NewPCG(s.seed, 1<<32))
	for {
		id, c := s.attachVictim(ctx)
		life, cancel := context.WithTimeout(ctx, 200*time.Millisecond+time.Duration(r.IntN(1500))*time.Millisecond)
		<-life.Done()
		cancel()
		if c != nil {
			for from, n := range c.Sources() {
				if !from.Out {
					s.t.Errorf("a sandbox of another network got %d packets from %v", n, from.Addr)
				}
			}
			_ = c.Close()
		}
		if ctx.Err() != nil {
			return
		}
		s.sidecar.end(s.t, syscall.SIGKILL)
		s.kills.Add(1)
		// Its network is small: a platform that knows of the death gives the address back.
		if id != "" {
			if err := s.api.Detach(s.t.Context(), id); err != nil {
				s.t.Errorf("the victim's attachment outlives its sidecar: %v", err)
			}
		}
		s.startSidecar()
		s.awaitSidecar()
	}
}

// attachVictim attaches the victim and watches its interface; "" and nil where time is over.
func (s *storm) attachVictim(ctx context.Context) (id string, c *netlab.Capture) {
	a, err := s.attach(ctx, quietFunction, s.victim.Net(), "")
	if err != nil {
		if ctx.Err() == nil {
			s.t.Errorf("the victim cannot be attached: %v", err)
		}
		return "", nil
	}
	if c, err = s.victim.Capture("tun0"); err != nil {
		s.t.Error(err)
	}
	return a.ID, c
}

// fuzz attaches a sandbox and sends from it, and again where the sidecar has ended.
func (s *storm) fuzz(ctx context.Context, id uint64, kind string) {
	ns, err := hostnet.NewNamespace()
	if err != nil {
		s.t.Error(err)
		return
	}
	defer func() { _ = ns.Close() }()
	f := &fuzzer{Rand: rand.New(rand.NewPCG(s.seed, id))}
	pace := time.NewTicker(tick)
	defer pace.Stop()
	for ctx.Err() == nil {
		b, err := s.attach(ctx, acmeFunction, ns, kind)
		if err != nil {
			s.failedBy(ctx, err)
			<-pace.C
			continue
		}
		f.own = b.Inner
		if err := s.sprayOn(ctx, f, b, pace); err != nil {
			s.t.Error(err)
			return
		}
	}
}

// sprayOn sends until the sandbox's interface is gone.
func (s *storm) sprayOn(ctx context.Context, f *fuzzer, b *attached, pace *time.Ticker) error {
	if b.Interface.Kind == "tap" {
		return s.sprayFrames(ctx, f, b, pace)
	}
	to, err := newSpray(b.ns, b.Interface.Name, b.Interface.Kind != "tun")
	if err != nil {
		if s.sidecarDied(err) {
			return nil
		}
		return err
	}
	defer to.close()
	for downs := 0; ctx.Err() == nil && downs < 4*burst; <-pace.C {
		for range burst {
			switch err := to.send(f, f.next()); {
			case err == nil:
				s.sent.Add(1)
				downs = 0
			case gone(err):
				if downs++; downs > burst {
					s.refused.Add(1)
				}
			}
		}
	}
	return nil
}

// sprayFrames sends as the monitor of a virtual machine does, by the TAP.
func (s *storm) sprayFrames(ctx context.Context, f *fuzzer, b *attached, pace *time.Ticker) error {
	tap, err := openTAP(b.ns, b.Interface.Name)
	if err != nil {
		return err
	}
	defer tap.Close()
	own, far := net.HardwareAddr(b.Interface.MAC), net.HardwareAddr(b.Interface.GatewayMAC)
	for ctx.Err() == nil && s.alive(b) {
		for range burst * 8 {
			if _, err := tap.Write(f.frame(f.next(), own, far)); err == nil {
				s.sent.Add(1)
			}
			if f.IntN(burst) == 0 {
				<-pace.C
			}
		}
	}
	return nil
}

// alive says whether the far end of a TAP's pair is there: the TAP itself stays.
func (s *storm) alive(b *attached) bool {
	return b.ns.Do(func() error {
		_, err := net.InterfaceByName("sallyport0")
		return err
	}) == nil
}

// sidecarDied says whether an error is that of an interface that went at once.
func (s *storm) sidecarDied(err error) bool {
	return gone(err) || strings.Contains(err.Error(), "no such network interface")
}

// startAndEnd attaches sandboxes one after the other. Each that is attached leaves from
// the pair, or nowhere; what cannot be attached says why.
func (s *storm) startAndEnd(ctx context.Context, r *rand.Rand) {
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for ; ctx.Err() == nil; <-pace.C {
		ns, err := hostnet.NewNamespace()
		if err != nil {
			s.t.Error(err)
			return
		}
		s.startOne(ctx, r, ns)
		_ = ns.Close()
	}
}

func (s *storm) startOne(ctx context.Context, r *rand.Rand, ns *hostnet.Namespace) {
	b, err := s.attach(ctx, globexFunction, ns, []string{"", "veth"}[r.IntN(2)])
	if err != nil {
		s.failedBy(ctx, err)
		return
	}
	within, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	from, err := b.whence(within)
	switch {
	case err != nil: // the sidecar was killed meanwhile, or time is over
		s.failed.Add(1)
	case len(from) != 1 || !slices.Contains(globexPair, from[0].Addr()):
		s.t.Errorf("a sandbox leaves from %v; want one of %v", from, globexPair)
	default:
		s.started.Add(1)
	}
	if r.IntN(2) == 0 { // else it ends with its namespace
		_ = sidecar.Detach(ctx, s.socket, b.ID)
	}
}

// startByExec starts sandboxes with commands one after the other.
func (s *storm) startByExec(ctx context.Context) {
	for ctx.Err() == nil {
		b, err := s.start(globexFunction)
		if err != nil {
			s.t.Error(err)
			return
		}
		a, err := b.ask(task{Do: "http", Target: at(originAddr, portHTTP), Within: time.Second})
		b.end()
		if err != nil || a.Failure != "" {
			s.failed.Add(1)
			continue
		}
		s.started.Add(1)
		allFrom(s.t, a.Sources, 1, globexPair)
	}
}

// failedBy judges why nothing was attached.
func (s *storm) failedBy(ctx context.Context, err error) {
	s.failed.Add(1)
	if text := err.Error(); ctx.Err() == nil && !strings.HasPrefix(text, "attach a sandbox: ") {
		s.t.Errorf("the reason is %q", text)
	}
}
