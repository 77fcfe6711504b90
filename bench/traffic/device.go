package traffic

import (
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// AttachDevice has a packet device, such as a TCP/IP stack of this process, be sandboxes of
// an end: what it sends leaves, what comes for the addresses is written to it. Packets on
// their way out are copied once. Closing the attachment closes the device.
func (s *Source) AttachDevice(number int, d tun.Device, inners ...netip.Addr) (*Attachment, error) {
	p := &pump{device: d, taken: make(chan struct{}, 1)}
	a, err := s.Attach(number, p, inners...)
	if err != nil {
		return nil, err
	}
	p.attachment = a
	a.device = p
	size, err := d.MTU()
	if err != nil {
		a.Close()
		return nil, err
	}
	p.running.Go(func() { p.run(d.BatchSize(), size) })
	return a, nil
}

// pump reads a device, and holds what was read until the end asks for it.
type pump struct {
	device     tun.Device
	attachment *Attachment
	running    sync.WaitGroup
	taken      chan struct{} // the batch is all gone

	mu       sync.Mutex
	bufs     [][]byte
	sizes    []int
	next, to int // of bufs, that wait
}

// run reads until the device is closed. One batch waits at a time: a device that sends
// more blocks whoever sends.
func (p *pump) run(batch, mtu int) {
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	memory := make([]byte, batch*mtu)
	for i := range bufs {
		bufs[i] = memory[i*mtu:][:mtu:mtu]
	}
	p.mu.Lock()
	p.bufs, p.sizes = bufs, sizes
	p.mu.Unlock()
	for {
		n, err := p.device.Read(bufs, sizes, 0)
		if err != nil {
			return
		}
		if n == 0 {
			continue
		}
		p.mu.Lock()
		p.next, p.to = 0, n
		p.mu.Unlock()
		p.attachment.Wake()
		if _, open := <-p.taken; !open {
			return
		}
	}
}

// Fill implements Client.
func (p *pump) Fill(bufs [][]byte, sizes []int, offset int) (n int, _ time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == p.to {
		return 0, 0
	}
	for ; p.next < p.to && n < len(bufs); p.next++ {
		sizes[n] = copy(bufs[n][offset:], p.bufs[p.next][:p.sizes[p.next]])
		n++
	}
	if p.next == p.to {
		p.taken <- struct{}{} // has room: one batch, one token
	}
	return n, 0
}

// Deliver implements Client.
func (p *pump) Deliver(packets [][]byte) { _, _ = p.device.Write(packets, 0) }

// close ends it. Fill is not called any more.
func (p *pump) close() {
	_ = p.device.Close()
	close(p.taken)
	p.running.Wait()
}
