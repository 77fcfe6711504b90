package netstack

import (
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Write hands packets to the stack. The caller's buffers may be reused on
// return. It returns os.ErrClosed once the device is closed, and no other error:
// what the stack does not take is dropped and counted.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.leave()
	for _, b := range bufs {
		b = b[offset:]
		if !d.admit(b) {
			continue
		}
		d.counters.packetsIn.Add(1)
		d.link.deliver(stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)}))
	}
	return len(bufs), nil
}

// admit reports whether the stack may see b.
func (d *Device) admit(b []byte) bool {
	if len(b) < header.IPv4MinimumSize || b[0]>>4 != header.IPv4Version {
		d.counters.malformed.Add(1)
		return false
	}
	if !d.config.Intercept {
		return true
	}
	h := header.IPv4(b)
	switch h.TransportProtocol() {
	case header.TCPProtocolNumber:
		return true
	case header.ICMPv4ProtocolNumber:
		if l4 := int(h.HeaderLength()); len(b) > l4 && header.ICMPv4Type(b[l4]) == header.ICMPv4DstUnreachable {
			return true
		}
	}
	d.counters.notIntercepted.Add(1)
	return false
}

// Read fills bufs from offset on with packets that the stack sent and with
// injected ones, in order, and sizes with their lengths. It waits for the
// first. It returns 0 and no error after Wake, and os.ErrClosed after Close.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.readMu.Lock()
	defer d.readMu.Unlock()
	taken, err := d.queue.take(d.taken[:0], min(len(bufs), BatchSize))
	d.taken = taken
	n := 0
	for i := range taken {
		o := &taken[i]
		dst := bufs[n][offset:]
		size := 0
		if o.raw != nil {
			size = copy(dst, *o.raw)
		} else {
			size = copyPacket(dst, o.pkt)
		}
		sizes[n] = size
		d.release(o)
		n++
	}
	d.taken = d.taken[:0]
	d.counters.packetsOut.Add(uint64(n))
	return n, err
}

// copyPacket copies the bytes of pkt to dst and returns their number.
func copyPacket(dst []byte, pkt *stack.PacketBuffer) int {
	views, offset := pkt.AsViewList()
	n := 0
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if offset >= len(b) {
			offset -= len(b)
			continue
		}
		n += copy(dst[n:], b[offset:])
		offset = 0
	}
	return n
}

// Inject appends a copy of the IPv4 packet pkt to what Read returns, as though the
// stack had sent it. It never waits: it reports false, and counts it, when the queue is
// full, and false when the device is closed.
func (d *Device) Inject(pkt []byte) bool {
	raw := d.raw.Get().(*[]byte)
	*raw = append((*raw)[:0], pkt...)
	if !d.queue.offer(outbound{raw: raw, weight: 1}, 0) {
		d.raw.Put(raw)
		d.counters.injectRefused.Add(1)
		return false
	}
	d.counters.injected.Add(1)
	return true
}

// Wake lets a blocked Read, or else the next one, return at once even though there is no packet.
func (d *Device) Wake() { d.queue.wake() }

// Queued returns how many packets wait to be read.
func (d *Device) Queued() int { return d.queue.len() }
