package uplink

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// A check on a Tun is half a TCP handshake, made here: a SYN from a port below 1024,
// which no table ever gives out (U-3a), and a RST after whatever answers it. What comes
// to such a port is looked at only while a check waits.

const (
	// probePorts are the ports that checks use: 1 to probePorts.
	probePorts = 1023
	// probeRepeat is how long a SYN waits for its answer, as the kernel's first does.
	probeRepeat = time.Second
	probeWindow = 1024
)

// probe is a check that waits for its answer.
type probe struct {
	to       endpoint
	seq      uint32
	answered chan struct{} // closed by the answer
}

// probes are the checks under way, by the dedicated IP and port they ask from.
type probes struct {
	pending atomic.Int32 // how many there are, so that Read need not lock
	mu      sync.Mutex
	by      map[endpoint]*probe
	done    chan struct{} // closed when the uplink is
}

func (ps *probes) init() {
	ps.by, ps.done = make(map[endpoint]*probe), make(chan struct{})
}

func (ps *probes) close() { close(ps.done) }

// add puts p on a free port of a dedicated IP, of which it returns the endpoint.
func (ps *probes) add(from [4]byte, p *probe) (endpoint, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	first := rand.IntN(probePorts)
	for i := range probePorts {
		e := endpoint{from, uint16(1 + (first+i)%probePorts)}
		if ps.by[e] == nil {
			ps.by[e] = p
			ps.pending.Add(1)
			return e, nil
		}
	}
	return endpoint{}, fmt.Errorf("all %d ports below 1024 have a check under way", probePorts)
}

func (ps *probes) remove(e endpoint) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.by, e)
	ps.pending.Add(-1)
}

// catches reports whether the IPv4 packet b may answer a check.
func (ps *probes) catches(b []byte) bool {
	if ps.pending.Load() == 0 || packet.Proto(b[9]) != packet.TCP {
		return false
	}
	l4 := int(b[0]&15) * 4
	return len(b) >= l4+4 && binary.BigEndian.Uint16(b[l4+2:]) <= probePorts
}

// settle ends the check that p answers, and reports whether there is one. An answer
// names the number of the SYN, which only its receiver knows.
func (ps *probes) settle(p *packet.Packet) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	w := ps.by[endpoint{p.Dst.As4(), p.DstPort}]
	if w == nil || w.to != (endpoint{p.Src.As4(), p.SrcPort}) || p.Flags&packet.ACK == 0 || p.Ack != w.seq+1 ||
		p.Flags&(packet.SYN|packet.RST) == 0 {
		return false
	}
	select {
	case <-w.answered: // a second answer
	default:
		close(w.answered)
	}
	return true
}

// answer takes what catches has caught. What answers no check goes nowhere: a port below
// 1024 has no mapping.
func (t *Tun) answer(b []byte) {
	var p packet.Packet
	o := packet.Parse(&p, b)
	if o == packet.Pass && (p.Kind != packet.KindTCP || !p.ChecksumOK() || !t.probes.settle(&p)) {
		o = packet.NoMapping
	}
	if o != packet.Pass {
		t.inward[o].Add(1)
	}
}

// Check implements Uplink. It uses no socket: the dedicated IPs are not the host's own.
func (t *Tun) Check(ctx context.Context, from netip.Addr, to netip.AddrPort) error {
	if !from.Is4() || !t.holds(from.As4()) || !to.Addr().Is4() {
		return fmt.Errorf("check whether %v answers: %v is none of the uplink's addresses", to, from)
	}
	p := &probe{to: endpointOf(to), seq: rand.Uint32(), answered: make(chan struct{})}
	at, err := t.probes.add(from.As4(), p)
	if err != nil {
		return fmt.Errorf("check whether %v answers %v: %w", to, from, err)
	}
	defer t.probes.remove(at)
	// Whatever became of it, nothing of it stays at the remote end.
	defer t.sendProbe(at, p, packet.RST)
	again := time.NewTicker(probeRepeat)
	defer again.Stop()
	for {
		if err := t.sendProbe(at, p, packet.SYN); err != nil {
			return fmt.Errorf("check whether %v answers %v: %w", to, from, err)
		}
		select {
		case <-p.answered:
			return nil
		case <-t.probes.done:
			return os.ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("check whether %v answers %v: no answer to a SYN: %w", to, from, ctx.Err())
		case <-again.C:
		}
	}
}

// sendProbe sends the SYN of a check, or the RST behind it.
func (t *Tun) sendProbe(from endpoint, p *probe, flags packet.TCPFlags) error {
	h := packet.TCPHeader{Src: from.addrPort(), Dst: p.to.addrPort(), Flags: flags, Seq: p.seq, TTL: 64}
	if flags == packet.SYN {
		h.Window = probeWindow
	} else {
		h.Seq++
	}
	b := make([]byte, 64)
	n := packet.BuildTCP(b, h, nil)
	_, err := t.dev.Write([][]byte{b[:n]}, 0)
	if errors.Is(err, os.ErrClosed) {
		return os.ErrClosed
	}
	return err
}
