package nat

import "github.com/sallyport-net/sallyport/internal/packet"

// flow is a new session that somebody asks for.
type flow struct {
	proto    packet.Proto
	from, to endpoint
	isn      uint32 // TCP: its initial sequence number
}

// hostOf returns the record of an inner address, made where there is none, or 0
// where there is no memory for it.
func (t *Table) hostOf(addr uint32) uint32 {
	h := t.key.sum(uint64(addr), 0)
	if i := t.findHost(h, addr); i != 0 {
		return i
	}
	if !t.hostIndex.room(h) {
		return 0
	}
	i, r := t.hosts.take()
	if i == 0 {
		return 0
	}
	r.addr, r.known = addr, true
	r.tokens, r.filled = t.bucket(), t.tick
	t.hostIndex.insert(h, i)
	return i
}

func (t *Table) findHost(h uint64, addr uint32) uint32 {
	c := t.hostIndex.find(h)
	for i := c.next(); i != 0; i = c.next() {
		if t.hosts.at(i).addr == addr {
			return i
		}
	}
	return 0
}

// forget drops the record of an inner address that holds nothing and whose
// bucket is full, so that it would be made the same again.
func (t *Table) forget(i uint32) {
	h := t.hosts.at(i)
	if !h.known || h.sessions > 0 || h.blocks > 0 {
		return
	}
	if t.fill(h); h.tokens < t.bucket() {
		return
	}
	t.hostIndex.remove(t.key.sum(uint64(h.addr), 0), i)
	t.hosts.give(i)
}

// bucket is how many tokens a full bucket holds: one session costs as many
// tokens as a second has ticks, so that each tick adds the rate as it is.
func (t *Table) bucket() uint32 { return uint32(t.config.Limits.Burst) * ticksPerSecond }

// fill adds the tokens of the time since the last filling.
func (t *Table) fill(h *host) {
	h.fill(t.tick, t.config.Limits.NewPerSecond, t.bucket())
}

func (h *host) fill(tick uint32, rate int, bucket uint32) {
	passed := tick - h.filled
	h.filled = tick
	h.tokens = uint32(min(uint64(bucket), uint64(h.tokens)+uint64(passed)*uint64(rate)))
}

// fillNetwork is fill of the bucket that all inner addresses share.
func (t *Table) fillNetwork() {
	n := &t.config.Network
	t.network.fill(t.tick, n.NewPerSecond, uint32(n.Burst)*ticksPerSecond)
}

// admit says whether an inner address may have one more session, of a
// connection that is half-open where half is set, and one more port where port
// is set. Nothing is charged yet, and nothing is evicted (C-4, C-5, C-11).
func (t *Table) admit(h *host, f flow, port, half bool) packet.Outcome {
	l := &t.config.Limits
	switch {
	case port && t.draining:
		return t.refuse(h, f, ReasonDraining, packet.Draining)
	case t.sessions.live >= t.config.MaxSessions:
		return t.refuse(h, f, ReasonTableFull, packet.SessionLimit)
	case int(h.sessions) >= l.Sessions:
		return t.refuse(h, f, ReasonSessions, packet.SessionLimit)
	case port && int(h.ports) >= l.Ports:
		return t.refuse(h, f, ReasonPorts, packet.SessionLimit)
	case port && int(t.network.ports) >= t.config.Network.Ports:
		return t.refuse(&t.network, f, ReasonNetworkPorts, packet.SessionLimit)
	}
	return t.admitOpening(h, f, half)
}

// admitOpening is the part of admit that a connection which starts again in
// its old record must pass, too. An inner address meets its own limit first, so
// that whoever asks for too much is not refused on the account of all.
func (t *Table) admitOpening(h *host, f flow, half bool) packet.Outcome {
	if half && int(h.halfOpen) >= t.config.Limits.HalfOpen {
		return t.refuse(h, f, ReasonHalfOpen, packet.SessionLimit)
	}
	if half && int(t.halfOpen) >= t.config.Network.HalfOpen {
		return t.refuse(&t.network, f, ReasonNetworkHalfOpen, packet.SessionLimit)
	}
	if t.config.Limits.NewPerSecond != unlimited {
		if t.fill(h); h.tokens < ticksPerSecond {
			return t.refuse(h, f, ReasonRate, packet.RateLimit)
		}
	}
	if t.config.Network.NewPerSecond != unlimited {
		if t.fillNetwork(); t.network.tokens < ticksPerSecond {
			return t.refuse(&t.network, f, ReasonNetworkRate, packet.RateLimit)
		}
	}
	return packet.Pass
}

// charge takes the tokens of one new session.
func (t *Table) charge(h *host) {
	if t.config.Limits.NewPerSecond != unlimited {
		h.tokens -= ticksPerSecond
	}
	if t.config.Network.NewPerSecond != unlimited {
		t.network.tokens -= ticksPerSecond
	}
}

// refuse tells, once per second and inner address, that a flow was refused. For
// the limits of all together h is Table.network.
func (t *Table) refuse(h *host, f flow, why Reason, o packet.Outcome) packet.Outcome {
	t.stats.Refused[why]++
	if !h.warned || t.tick-h.told >= ticksPerSecond {
		h.warned, h.told = true, t.tick
		t.events.put(record{
			at: t.now, kind: Refused, reason: why, proto: f.proto,
			inner: f.from, remote: f.to, hasRemote: true,
		})
	}
	return o
}

// full refuses a flow because there is no memory for it.
func (t *Table) full(f flow) packet.Outcome {
	return t.refuse(&t.network, f, ReasonTableFull, packet.SessionLimit)
}

// exhausted tells, once per second, that no port was free (C-11 C).
func (t *Table) exhausted(f flow) packet.Outcome {
	t.stats.Refused[ReasonNoPorts]++
	if !t.warned || t.tick-t.told >= ticksPerSecond {
		t.warned, t.told = true, t.tick
		t.events.put(record{
			at: t.now, kind: Exhausted, reason: ReasonNoPorts, proto: f.proto,
			inner: f.from, remote: f.to, hasRemote: true,
		})
	}
	return packet.PortsExhausted
}
