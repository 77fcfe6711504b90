package sidecar

import (
	"context"
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

// resident is a sandbox in a network.
type resident struct {
	sandbox *sandbox
	// there is how its addresses in that network differ from its own; nil: not at all.
	there *packet.Renumbering
}

// directory finds the sandbox of an inner address of one network.
type directory struct {
	mu sync.RWMutex
	by map[[4]byte]resident
}

func newDirectory() *directory { return &directory{by: make(map[[4]byte]resident)} }

func (d *directory) add(inner [4]byte, r resident) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.by[inner] = r
}

// remove takes a sandbox out, unless its address belongs to another one by now.
func (d *directory) remove(inner [4]byte, s *sandbox) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.by[inner].sandbox == s {
		delete(d.by, inner)
	}
}

func (d *directory) find(inner [4]byte) resident {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.by[inner]
}

// asker is who sends probes and takes the answers to them.
type asker interface {
	// answered takes a reply with the asker's nonce that came by the path. False
	// means that it answers nothing that was asked.
	answered(m packet.Probe, now packet.Instant) bool
}

// pathConfig is what a path is made of.
type pathConfig struct {
	gateway   netip.Addr // the network's first address
	mtu       int
	sandboxes *directory
	pool      *bufferPool // of the sidecar's own packets
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
	once   sync.Once
	ended  chan struct{} // closed with the path

	worker atomic.Uint32 // the sidecar's own address in the network, as a number
	// heard is when a packet came that was no probe's answer; a [packet.Instant], 0
	// for never.
	heard atomic.Int64
	// falseAnswers counts answers to probes that nobody sent, or that were answered.
	falseAnswers atomic.Uint64

	toGateway, toSandbox traffic

	probing sync.Mutex // guards what follows
	askers  map[uint64]asker
	proof   proof
}

var _ tun.Device = (*path)(nil)

// newPath makes a path whose probes come from the worker's own address. It ends
// with Close, which the tunnel calls that it is given to.
func newPath(cfg pathConfig, worker netip.Addr) *path {
	p := &path{
		pathConfig: cfg,
		queue:      newQueue(),
		taken:      make([]*buffer, pathBatch),
		events:     make(chan tun.Event),
		ended:      make(chan struct{}),
		askers:     make(map[uint64]asker),
	}
	p.proof.nonce = newNonce()
	p.setWorker(worker)
	return p
}

// setWorker changes the address that probes come from.
func (p *path) setWorker(worker netip.Addr) {
	b := worker.As4()
	p.worker.Store(binary.BigEndian.Uint32(b[:]))
}

// pathBatch is how many packets WireGuard reads and writes at once. It keeps 64 KiB for each
// in both directions, and a worker has a path for each network and gateway: with its own
// 128 an idle path has 27 MiB of the heap. With 32 a packet costs the same, or with small
// ones up to a tenth more; with 16 a third more.
const pathBatch = 32

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
		b.free()
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
	if r := p.sandboxes.find(dst); r.sandbox != nil {
		p.heard.Store(max(int64(p.clock.now()), 1))
		r.sandbox.deliver(p, r.there, bufs, offset)
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

// listen lets an asker have the answers with its nonce.
func (p *path) listen(nonce uint64, a asker) {
	p.probing.Lock()
	defer p.probing.Unlock()
	p.askers[nonce] = a
}

// ignore ends it. An answer may still be on its way to the asker.
func (p *path) ignore(nonce uint64) {
	p.probing.Lock()
	defer p.probing.Unlock()
	delete(p.askers, nonce)
}

// send queues a probe. One that the queue does not take is lost like any other.
func (p *path) send(m packet.Probe) {
	var payload [packet.ProbeSize]byte
	m.Put(payload[:])
	b := p.pool.get()
	var worker [4]byte
	binary.BigEndian.PutUint32(worker[:], p.worker.Load())
	from := netip.AddrPortFrom(netip.AddrFrom4(worker), packet.ProbePort)
	to := netip.AddrPortFrom(p.gateway, packet.ProbePort)
	b.n = packet.BuildUDP(b.b, from, to, payload[:], probeTTL, 0)
	if b.n == 0 || !p.queue.putUrgent(b) {
		b.free()
	}
}

// probeTTL lets a probe reach the gateway and no host behind it.
const probeTTL = 2

// probed takes a packet that is addressed to the worker and says whether it is
// the answer to a probe: from the gateway, by the tunnel through which it was
// asked, with the asker's nonce, and the first one. Anything else that looks like
// a probe is counted and has no effect.
func (p *path) probed(b []byte) bool {
	var v packet.Packet
	if packet.Parse(&v, b) != packet.Pass || v.Kind != packet.KindUDP || v.DstPort != packet.ProbePort {
		return false
	}
	m, ok := packet.ParseProbe(v.Data())
	if !ok {
		return false
	}
	if m.Type == packet.ProbeReply && v.Src == p.gateway && v.SrcPort == packet.ProbePort && v.ChecksumOK() && p.hand(m) {
		return true
	}
	p.falseAnswers.Add(1)
	return false
}

// hand gives an answer to who asked.
func (p *path) hand(m packet.Probe) bool {
	p.probing.Lock()
	if m.Nonce == p.proof.nonce {
		defer p.probing.Unlock()
		return p.proof.answer(m.Sequence)
	}
	a := p.askers[m.Nonce]
	p.probing.Unlock()
	return a != nil && a.answered(m, p.clock.now())
}

// prove returns when the gateway has answered a probe that was sent from now on.
func (p *path) prove(ctx context.Context) error {
	again := time.NewTicker(proofInterval)
	defer again.Stop()
	answered := make(chan struct{})
	p.probing.Lock()
	p.proof.wait(answered)
	p.probing.Unlock()
	defer func() {
		p.probing.Lock()
		defer p.probing.Unlock()
		delete(p.proof.waiters, answered)
	}()
	for {
		p.probing.Lock()
		m := p.proof.ask()
		p.probing.Unlock()
		p.send(m)
		select {
		case <-answered:
			return nil
		case <-p.ended:
			return os.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
	}
}
