package sidecar

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// clock reads nanoseconds since the sidecar began, monotonic.
type clock struct{ base time.Time }

func (c clock) now() packet.Instant { return packet.Instant(time.Since(c.base)) }

// directory finds the sandbox of an inner address of one network.
type directory struct {
	mu sync.RWMutex
	by map[[4]byte]*sandbox
}

func newDirectory() *directory { return &directory{by: make(map[[4]byte]*sandbox)} }

func (d *directory) add(s *sandbox) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.by[s.inner] = s
}

// remove takes a sandbox out, unless its address belongs to another one by now.
func (d *directory) remove(s *sandbox) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.by[s.inner] == s {
		delete(d.by, s.inner)
	}
}

func (d *directory) find(inner [4]byte) *sandbox {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.by[inner]
}

// pathConfig is what a path is made of.
type pathConfig struct {
	gateway   netip.Addr // the network's first address
	mtu       int
	sandboxes *directory
	pool      *bufferPool
	clock     clock
	count     *counters
}

// path is the packet device of one tunnel: what WireGuard reads from it was
// queued by the sandboxes of the network, what WireGuard writes to it goes to the
// sandbox that it is addressed to, and to no other. It also sends the
// sidecar's probes and takes their answers.
type path struct {
	pathConfig
	queue  *queue
	taken  []*buffer // belongs to the goroutine that reads
	events chan tun.Event
	kick   chan struct{} // a probe is wanted now
	once   sync.Once
	ended  chan struct{} // closed with the path

	worker atomic.Uint32 // the sidecar's own address in the network, as a number

	toGateway, toSandbox traffic

	probing sync.Mutex // guards what follows
	prober  prober
	waiters map[chan struct{}]uint64 // who waits for the answer to this probe or a later one
}

var _ tun.Device = (*path)(nil)

// newPath makes a path that probes from the worker's own address. It ends with
// Close, which the tunnel calls that it is given to.
func newPath(cfg pathConfig, worker netip.Addr) *path {
	p := &path{
		pathConfig: cfg,
		queue:      newQueue(),
		taken:      make([]*buffer, pathBatch),
		events:     make(chan tun.Event),
		kick:       make(chan struct{}, 1),
		ended:      make(chan struct{}),
		waiters:    make(map[chan struct{}]uint64),
	}
	var nonce [8]byte
	_, _ = rand.Read(nonce[:]) // never fails: it ends the program instead
	p.prober.nonce = binary.BigEndian.Uint64(nonce[:])
	p.prober.answered = cfg.clock.now()
	p.setWorker(worker)
	go p.probe()
	return p
}

// setWorker changes the address that probes come from.
func (p *path) setWorker(worker netip.Addr) {
	b := worker.As4()
	p.worker.Store(binary.BigEndian.Uint32(b[:]))
}

// pathBatch is how many packets WireGuard reads and writes at once: as many as
// its UDP sockets take.
const pathBatch = 128

// File is nil: there is no descriptor.
func (p *path) File() *os.File { return nil }

// MTU is that of the sandboxes' interfaces.
func (p *path) MTU() (int, error) { return p.mtu, nil }

// Name says what the device is.
func (p *path) Name() (string, error) { return "path", nil }

// Events never says anything; it is closed with the path.
func (p *path) Events() <-chan tun.Event { return p.events }

// BatchSize is pathBatch.
func (p *path) BatchSize() int { return pathBatch }

// Close ends the path: readers get os.ErrClosed, sandboxes put no more.
func (p *path) Close() error {
	p.once.Do(func() {
		close(p.ended)
		if n := p.queue.close(); n > 0 {
			p.count.egress.add(packet.Closed, n)
		}
		close(p.events)
	})
	return nil
}

// Read waits for packets of sandboxes and copies them into bufs.
func (p *path) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	taken := p.taken[:min(len(bufs), len(p.taken))]
	n := p.queue.take(taken)
	if n == 0 {
		return 0, os.ErrClosed
	}
	bytes := 0
	for i, b := range taken[:n] {
		sizes[i] = copy(bufs[i][offset:], b.b[:b.n])
		bytes += sizes[i]
		p.pool.put(b)
		taken[i] = nil
	}
	p.toGateway.add(n, bytes)
	return n, nil
}

// Write hands packets from the gateway to the sandboxes that they are addressed
// to, those that follow each other at once.
func (p *path) Write(bufs [][]byte, offset int) (int, error) {
	bytes := 0
	for i := 0; i < len(bufs); {
		dst, ok := destination(bufs[i], offset)
		if !ok {
			p.count.ingress.add(packet.NotIPv4, 1)
			i++
			continue
		}
		end := i
		for ; end < len(bufs); end++ {
			next, ok := destination(bufs[end], offset)
			if !ok || next != dst {
				break
			}
			bytes += len(bufs[end]) - offset
		}
		p.deliver(dst, bufs[i:end], offset)
		i = end
	}
	p.toSandbox.add(len(bufs), bytes)
	return len(bufs), nil
}

// destination reads the destination address of a packet.
func destination(b []byte, offset int) ([4]byte, bool) {
	if len(b) < offset+ipv4MinHeader || b[offset]>>4 != 4 {
		return [4]byte{}, false
	}
	return [4]byte(b[offset+ipv4OffDst:]), true
}

// deliver hands packets to one destination.
func (p *path) deliver(dst [4]byte, bufs [][]byte, offset int) {
	if s := p.sandboxes.find(dst); s != nil {
		s.deliver(bufs, offset)
		return
	}
	if binary.BigEndian.Uint32(dst[:]) != p.worker.Load() {
		p.count.ingress.add(packet.Unattached, len(bufs))
		return
	}
	for _, b := range bufs {
		if !p.probed(b[offset:]) {
			p.count.ingress.add(packet.NoLocalService, 1)
		}
	}
}

// probe sends probes in the rhythm that is wanted until the path is closed.
func (p *path) probe() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-p.ended:
			return
		case <-p.kick:
		case <-timer.C:
		}
		timer.Reset(time.Duration(p.sendProbe()))
	}
}

// sendProbe queues one probe and says when the next is due. One that the queue
// does not take is lost like any other.
func (p *path) sendProbe() packet.Instant {
	p.probing.Lock()
	m := p.prober.ask(p.clock.now())
	due := probeSlow
	if len(p.waiters) > 0 {
		due = probeFast
	}
	p.probing.Unlock()

	var payload [packet.ProbeSize]byte
	m.Put(payload[:])
	b := p.pool.get()
	var worker [4]byte
	binary.BigEndian.PutUint32(worker[:], p.worker.Load())
	from := netip.AddrPortFrom(netip.AddrFrom4(worker), packet.ProbePort)
	to := netip.AddrPortFrom(p.gateway, packet.ProbePort)
	b.n = packet.BuildUDP(b.b, from, to, payload[:], probeTTL, 0)
	if b.n == 0 || !p.queue.putUrgent(b) {
		p.pool.put(b)
	}
	return due
}

// probeTTL lets a probe reach the gateway and no host behind it.
const probeTTL = 2

// probed takes a packet that is addressed to the worker and says whether it is
// the answer to a probe.
func (p *path) probed(b []byte) bool {
	var v packet.Packet
	if packet.Parse(&v, b) != packet.Pass || v.Kind != packet.KindUDP ||
		v.Src != p.gateway || v.SrcPort != packet.ProbePort || v.DstPort != packet.ProbePort {
		return false
	}
	payload := v.B[v.L4+udpHeader:]
	m, ok := packet.ParseProbe(payload[:min(v.Payload, len(payload))])
	if !ok {
		return false
	}
	p.probing.Lock()
	defer p.probing.Unlock()
	if !p.prober.answer(m, p.clock.now()) {
		return false
	}
	for w, wanted := range p.waiters {
		if m.Sequence >= wanted {
			close(w)
			delete(p.waiters, w)
		}
	}
	return true
}

// udpHeader is the length of a UDP header (RFC 768).
const udpHeader = 8

// prove waits until the gateway has answered a probe that is sent from now on.
func (p *path) prove(ctx context.Context) error {
	answered := make(chan struct{})
	p.probing.Lock()
	p.waiters[answered] = p.prober.next + 1
	p.probing.Unlock()
	select {
	case p.kick <- struct{}{}:
	default: // one is due already
	}
	select {
	case <-answered:
		return nil
	case <-p.ended:
		return os.ErrClosed
	case <-ctx.Done():
		p.probing.Lock()
		delete(p.waiters, answered)
		p.probing.Unlock()
		return ctx.Err()
	}
}

// pathHealth is what a path's probes say.
type pathHealth struct {
	Alive   bool
	RTT     time.Duration // smoothed; 0 before the first answer
	Silence time.Duration // since the last answer, or since the path was made
	Health  packet.Health // of the last answer
	Asked   uint64
	Answers uint64
}

// healthNow reads the state of the probes.
func (p *path) healthNow() pathHealth {
	now := p.clock.now()
	p.probing.Lock()
	defer p.probing.Unlock()
	return pathHealth{
		Alive:   p.prober.alive(now),
		RTT:     time.Duration(p.prober.rtt),
		Silence: time.Duration(now - p.prober.answered),
		Health:  p.prober.health,
		Asked:   p.prober.next,
		Answers: p.prober.answers,
	}
}
