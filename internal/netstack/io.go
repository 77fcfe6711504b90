package netstack

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
			c.add(b)
		}
	}
	c.flush()
	d.coalescers.Put(c)
	return len(bufs), nil
}

// Read fills bufs from offset on with packets that the stack sent and with
// injected ones, in order, and sizes with their lengths. It waits for the
// first. It returns 0 and no error after Wake, and os.ErrClosed after Close.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.readMu.Lock()
	defer d.readMu.Unlock()
	n, want := 0, min(len(bufs), BatchSize)
	if d.left() == 0 {
		taken, err := d.queue.take(d.taken[:0], want)
		d.taken, d.takenAt = taken, 0
		if err != nil {
			return 0, err
		}
	}
	for n < want && d.left() > 0 {
		if !d.current.busy() {
			d.current.begin(d.taken[d.takenAt])
		}
		size, last := d.current.next(bufs[n][offset:])
		sizes[n] = size
		n++
		if last {
			d.release(&d.taken[d.takenAt])
			d.takenAt++
			d.current.o = outbound{}
		}
	}
	d.counters.packetsOut.Add(uint64(n))
	return n, nil
}

// left returns how many things taken from the queue are not read to their end.
func (d *Device) left() int { return len(d.taken) - d.takenAt }

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
