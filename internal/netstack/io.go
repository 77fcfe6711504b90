package netstack

import (
	"fmt"
	"io"
)

// Write hands packets to the stack. The caller's buffers may be reused on
// return. It returns os.ErrClosed once the device is closed, and no other error:
// what the stack does not take is dropped and counted.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.leave()
	c := d.coalescers.Get().(*coalescer)
	for _, b := range bufs {
		b, v := d.admit(b[offset:])
		d.counters.written[v].Add(1)
		if v == admitted {
			if d.config.Intercept && beginsAnew(b) {
				c.flush()
				d.makeWay(b)
			}
			c.add(b)
		}
	}
	c.flush()
	d.coalescers.Put(c)
	return len(bufs), nil
}

// Read fills bufs from offset on with packets that the stack sent and with
// injected ones, in order, and sizes with their lengths. It waits for the
// first. It returns 0 and no error after Wake, and os.ErrClosed after Close. Each
// buffer must hold a packet of the MTU behind offset.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.readMu.Lock()
	defer d.readMu.Unlock()
	n, want := 0, min(len(bufs), BatchSize)
	for _, b := range bufs[:want] {
		if len(b)-offset < d.config.MTU {
			return 0, fmt.Errorf("netstack: read into %d bytes behind offset %d: must hold the MTU of %d: %w", len(b)-offset, offset, d.config.MTU, io.ErrShortBuffer)
		}
	}
	for n < want {
		if d.takenAt == len(d.taken) {
			// Wait for the first packet only.
			taken, err := d.queue.take(d.taken[:0], want-n, n == 0)
			d.taken, d.takenAt = taken, 0
			if err != nil {
				return 0, err
			}
			if len(taken) == 0 {
				break
			}
		}
		size, last := d.next(bufs[n][offset:])
		sizes[n] = size
		n++
		if last {
			d.release(&d.taken[d.takenAt])
			d.takenAt++
		}
	}
	d.counters.packetsOut.Add(uint64(n))
	return n, nil
}

// next copies one packet of what was taken first to dst.
func (d *Device) next(dst []byte) (size int, last bool) {
	if !d.current.busy {
		d.current.begin(d.taken[d.takenAt])
	}
	return d.current.next(dst)
}

// Inject appends a copy of the IPv4 packet pkt to what Read returns, as though the
// stack had sent it. It never waits: it reports false, and counts it, when the
// queue is full, the packet is larger than the MTU, or the device is closed.
func (d *Device) Inject(pkt []byte) bool {
	if len(pkt) > d.config.MTU {
		d.counters.injectRefused.Add(1)
		return false
	}
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
