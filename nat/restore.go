package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"slices"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Import takes an export of [Table.AppendExport] in. The table must be empty, and
// have the external address, kind and TCP mapping of the one that was exported; its
// seed, timers and limits are its own. What it takes in keeps the time that it had
// left at its step, rounded up to a tick, whatever time has passed meanwhile; a hold
// no more than the table's own holds last.
//
// An export that is cut short, damaged, too long, of another version or table, or
// that contradicts itself or the table's settings is refused: the error says where
// and why, and the table is as before. No event tells of what came in; whoever needs
// each session reads them. They count as made ([Stats.Created]). Buckets of new
// sessions are full, and IP identifications begin anew. It takes about a microsecond
// for each session.
func (t *Table) Import(b []byte, now packet.Instant) error {
	if n := t.tuples.len() + t.heldPorts.len() + t.Stats().Blocks; t.sessions.live+n > 0 {
		return fmt.Errorf("nat: import for %s: the table holds %d sessions and %d holds already: import into a table that has just been made", t.config.who(), t.sessions.live, n)
	}
	if err := t.checkExport(b); err != nil {
		return fmt.Errorf("nat: import for %s: %w", t.config.who(), err)
	}
	t.clock(now)
	stats := t.stats
	r := restorer{Table: t}
	if err := r.records(b); err != nil {
		t.empty()
		t.stats = stats
		return fmt.Errorf("nat: import for %s: %w", t.config.who(), err)
	}
	return nil
}

// errNoMemory is of a table whose Memory has given out.
var errNoMemory = errors.New("there is no memory left: give the table more, or fewer sessions")

// again is what can be done about an export that is no good.
const again = "export again, and carry it over whole"

// checkExport checks what can be said without looking at the records. As damage may make
// the header say anything, what it says counts only when the whole is as it was written.
func (t *Table) checkExport(b []byte) error {
	least := headerSize + recordSize(recordEnd)
	switch {
	case len(b) <= len(exportMagic) || string(b[:len(exportMagic)]) != exportMagic:
		return fmt.Errorf("%d bytes do not begin as an export does: give what AppendExport wrote", len(b))
	case b[4] != exportVersion:
		return fmt.Errorf("the export has version %d, not %d: export with the version of the program that imports", b[4], exportVersion)
	case len(b) < least:
		return fmt.Errorf("the export ends at byte %d, before its trailer: %s", len(b), again)
	}
	sum := crc32.Checksum(b[:len(b)-4], crc32.MakeTable(crc32.Castagnoli))
	if got := binary.BigEndian.Uint32(b[len(b)-4:]); got != sum {
		return fmt.Errorf("the %d bytes have checksum %08x, but say %08x: they are cut short, too long or damaged; %s", len(b), sum, got, again)
	}
	return t.checkHeader(b)
}

// checkHeader checks that an export is of such a table as this one.
func (t *Table) checkHeader(b []byte) error {
	kind, mapping, address := b[5], Mapping(b[6]), binary.BigEndian.Uint32(b[8:])
	switch {
	case kind > 1 || mapping > EndpointIndependent || int(b[7]) > bits.Len(maxBlock):
		return fmt.Errorf("the header %x is none that AppendExport writes: %s", b[:headerSize], again)
	case kind != t.exportKind():
		return fmt.Errorf("the export is of %s, this is %s: import it into a table of its kind", kindName(kind), kindName(t.exportKind()))
	case mapping != t.config.TCPMapping:
		return fmt.Errorf("the export is of a table that maps TCP %v, this one does %v: give both the same TCPMapping", mapping, t.config.TCPMapping)
	case address != t.exportAddress():
		return fmt.Errorf("the export is of external address %v: import it into that one's table", addrOf(address))
	case b[7] != byte(bits.Len(uint(t.config.PortBlock))):
		return fmt.Errorf("the export is of a table with %s, this one has %s: give both the same PortBlock", blocksName(1<<b[7]>>1), blocksName(t.config.PortBlock))
	}
	return nil
}

func kindName(kind byte) string {
	if kind == 0 {
		return "a table that translates"
	}
	return "an identity table"
}

func blocksName(size int) string {
	if size == 0 {
		return "no port blocks"
	}
	return fmt.Sprintf("port blocks of %d", size)
}

// protoName names a protocol in errors.
func protoName(p packet.Proto) string {
	switch p {
	case packet.TCP:
		return "TCP"
	case packet.UDP:
		return "UDP"
	case packet.ICMP:
		return "ICMP echo"
	}
	return fmt.Sprintf("protocol %d", p)
}

// stateName names a state in errors.
func stateName(s state) string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprint(uint8(s))
}

// restorer fills a table from records.
type restorer struct {
	*Table
	holds  [2][]held // of tuples, of ports; next is where the record stands
	counts [4]uint32
}

// records takes all records in, and what they hold back at the end.
func (r *restorer) records(b []byte) error {
	for at := headerSize; ; {
		n := recordSize(b[at])
		switch {
		case n == 0:
			return fmt.Errorf("at byte %d: no record begins with %d: %s", at, b[at], again)
		case at+n > len(b):
			return fmt.Errorf("at byte %d: a record is cut short: %s", at, again)
		}
		if b[at] == recordEnd {
			if at+n != len(b) {
				return fmt.Errorf("at byte %d: %d bytes behind the trailer: %s", at+n, len(b)-at-n, again)
			}
			if err := r.finish(b[at+1:]); err != nil {
				return fmt.Errorf("at byte %d: %w", at, err)
			}
			return r.hold()
		}
		if err := r.record(b[at:at+n], at); err != nil {
			return fmt.Errorf("at byte %d: %w", at, err)
		}
		if at += n; at == len(b) {
			return fmt.Errorf("at byte %d: the trailer is missing: %s", at, again)
		}
	}
}

// finish compares the counts of the trailer.
func (r *restorer) finish(b []byte) error {
	for i, what := range [...]string{"sessions", "held tuples", "held ports", "blocks"} {
		if n := binary.BigEndian.Uint32(b[4*i:]); n != r.counts[i] {
			return fmt.Errorf("the trailer counts %d %s, but there are %d: %s", n, what, r.counts[i], again)
		}
	}
	return nil
}

// record takes one record in, which stands at byte at.
func (r *restorer) record(b []byte, at int) error {
	be := binary.BigEndian
	switch b[0] {
	case recordTuple:
		r.counts[1]++
		return r.keep(0, at, held{key: be.Uint64(b[1:]), until: be.Uint32(b[9:])})
	case recordPort:
		r.counts[2]++
		if b[1] >= spaceCount {
			return fmt.Errorf("a port is on hold of port space %d, of which there are %d: %s", b[1], spaceCount, again)
		}
		return r.keep(1, at, held{key: uint64(b[1])<<16 | uint64(be.Uint16(b[2:])), until: be.Uint32(b[4:])})
	}
	if b[0] == recordBlock {
		r.counts[3]++
		return r.block(be.Uint16(b[1:]), be.Uint32(b[3:]), be.Uint32(b[7:]))
	}
	r.counts[0]++
	s := session{
		proto: packet.Proto(b[1]), state: state(b[2]), flags: sessionFlags(b[3]),
		inner: be.Uint32(b[4:]), innerPort: be.Uint16(b[8:]),
		remote: be.Uint32(b[10:]), remotePort: be.Uint16(b[14:]),
		port: be.Uint16(b[16:]), deadline: be.Uint32(b[18:]), created: be.Uint32(b[22:]),
	}
	if (b[0] == recordTCP) != (s.proto == packet.TCP) {
		return fmt.Errorf("a session of %s in a record that is not for it: %s", protoName(s.proto), again)
	}
	if b[0] == recordTCP {
		for i, pair := range [...]*[2]uint32{&s.end, &s.ack} {
			pair[outward], pair[inward] = be.Uint32(b[26+8*i:]), be.Uint32(b[30+8*i:])
		}
		s.win = [2]uint16{outward: be.Uint16(b[42:]), inward: be.Uint16(b[44:])}
		s.again, s.scale, s.againScale = be.Uint32(b[46:]), b[50], b[51]
	}
	if err := r.session(&s); err != nil {
		return fmt.Errorf("session %d, %s, %v under port %d to %v: %w", r.counts[0], protoName(s.proto), s.from().addrPort(), s.port, s.to().addrPort(), err)
	}
	return nil
}

// longestTicks bounds what a record may have left.
func longestTicks() uint32 { return ticks(longest) + 1 }

// keep puts a hold aside until all sessions are there; the time that it has left
// stands in until.
func (r *restorer) keep(kind, at int, h held) error {
	switch {
	case r.config.Identity:
		return fmt.Errorf("a hold, where no ports are given out: %s", again)
	case (kind == 1 && h.key>>16 == tcpSpace || kind == 0) && (kind == 1) != (r.config.TCPMapping == EndpointIndependent):
		return fmt.Errorf("a hold of TCP that its mapping does not have: %s", again)
	case !r.blank.has(uint16(h.key >> (48 * (1 - kind)))):
		return fmt.Errorf("port %d is on hold, which this table gives to nobody: give both tables the same ports and reserved ones", uint16(h.key>>(48*(1-kind))))
	case h.until == 0 || h.until > longestTicks():
		return fmt.Errorf("a hold has %d ticks left: %s", h.until, again)
	case kind == 0 && len(r.holds[0]) >= r.config.MaxSessions:
		return fmt.Errorf("more than %d tuples are on hold: raise the limit of sessions to that of the table that was exported", r.config.MaxSessions)
	}
	h.until, h.next = r.tick+min(h.until, r.ticks.hold)+1, uint32(at)
	r.holds[kind] = append(r.holds[kind], h)
	return nil
}

// hold holds back what was put aside, the first to go first.
func (r *restorer) hold() error {
	for kind, all := range r.holds {
		slices.SortFunc(all, func(a, b held) int { return int(int32(a.until - b.until)) })
		for _, h := range all {
			restore := r.restoreTuple
			if kind == 1 {
				restore = r.restorePort
			}
			if err := restore(h); err != nil {
				return fmt.Errorf("at byte %d: port %d: %w", h.next, uint16(h.key>>(48*(1-kind))), err)
			}
		}
	}
	return nil
}

// errHeld is of a hold on what is in use, or on hold already.
var errHeld = errors.New("it is on hold twice, or in use: " + again)

// restoreTuple puts a tuple on hold.
func (r *restorer) restoreTuple(h held) error {
	tp := tuple(h.key)
	if inUse, onHold := r.tupleTaken(tp); inUse != 0 || onHold {
		return errHeld
	}
	if !r.pushTuple(r.inboundHash(packet.TCP, tp.port(), tp.remote()), tp, h.until) {
		return errNoMemory
	}
	return nil
}

// restorePort puts a port of a space on hold.
func (r *restorer) restorePort(h held) error {
	set := &r.space(int(h.key >> 16)).set
	if !set.take(uint16(h.key)) {
		return errHeld
	}
	if r.heldPorts.push(h.key, h.until) == 0 {
		set.release(uint16(h.key))
		return errNoMemory
	}
	return nil
}

// session takes a session in, whose deadline and birth are relative yet.
func (r *restorer) session(s *session) error {
	if err := r.checkSession(s); err != nil {
		return err
	}
	f := flow{proto: s.proto, from: s.from(), to: s.to()}
	shared := s.flags&mapped != 0
	if r.findInbound(r.inboundHash(f.proto, s.port, f.to), f.proto, s.port, f.to) != 0 && !r.config.Identity {
		return fmt.Errorf("another session has the same port and far side: %s", again)
	}
	if (r.config.Identity || s.proto == packet.TCP) && r.findOutbound(r.flowHash(f.proto, f.from, f.to), f.proto, f.from, f.to) != 0 {
		return fmt.Errorf("another session is between the same endpoints: %s", again)
	}
	m := uint32(0)
	if shared {
		m = r.findMapping(r.innerHash(f.proto, f.from), f.proto, f.from)
		switch {
		case m != 0 && r.mappings.at(m).port != s.port:
			return fmt.Errorf("the inner endpoint has port %d, too: %s", r.mappings.at(m).port, again)
		case m == 0 && !r.space(spaceOf(f.proto)).set.has(s.port):
			return fmt.Errorf("another inner endpoint has the port, too: %s", again)
		}
	}
	hi := r.hostOf(s.inner)
	if hi == 0 {
		return errNoMemory
	}
	if err := r.checkQuotas(r.hosts.at(hi), s, !r.config.Identity && m == 0); err != nil {
		return err
	}
	if !r.config.Identity && !r.ownBlock(hi, s.port) {
		return fmt.Errorf("the block of its port is another inner address's, too: %s", again)
	}
	if shared && m == 0 {
		if m = r.own(f, hi, s.port); m == 0 {
			return errNoMemory
		}
	}
	i, made := r.addSession(f, s.port, hi, m)
	if i == 0 {
		return errNoMemory
	}
	made.end, made.ack, made.win = s.end, s.ack, s.win
	made.flags, made.scale, made.again, made.againScale = s.flags, s.scale, s.again, s.againScale
	made.deadline, made.created = r.tick+1+s.deadline, r.tick-s.created
	r.enter(made, s.state)
	if m != 0 && s.proto != packet.TCP {
		if b := r.mappings.at(m); b.sessions == 1 || due(b.deadline, made.deadline) {
			b.deadline = made.deadline
		}
	}
	return nil
}

// block gives a block at rest to its owner.
func (r *restorer) block(b uint16, inner, left uint32) error {
	switch {
	case r.blocks == nil || int(b) >= len(r.blocks.all) || r.blocks.all[b].owner == never:
		return fmt.Errorf("block %d is none of this table's: give both tables the same ports and reserved ones", b)
	case r.blocks.all[b].owner != nobody:
		return fmt.Errorf("block %d rests and is in use, or is there twice: %s", b, again)
	case left == 0 || left > longestTicks() || inner == r.exportAddress():
		return fmt.Errorf("block %d of %v has %d ticks left: %s", b, addrOf(inner), left, again)
	}
	hi := r.hostOf(inner)
	if hi == 0 {
		return errNoMemory
	}
	r.giveBlock(hi, b)
	r.blocks.all[b].until = r.tick + min(left, r.ticks.hold) + 1
	return nil
}

// checkSession checks what a session says of itself.
func (r *restorer) checkSession(s *session) error {
	independent := !r.config.Identity && (s.proto != packet.TCP || r.config.TCPMapping == EndpointIndependent)
	switch {
	case s.proto != packet.TCP && s.proto != packet.UDP && s.proto != packet.ICMP:
		return fmt.Errorf("no such protocol is translated: %s", again)
	case s.deadline == 0 || s.deadline > longestTicks() || s.created == 0 || s.created > 1<<31-1:
		return fmt.Errorf("it has %d ticks left after %d: %s", s.deadline, s.created, again)
	case independent != (s.flags&mapped != 0):
		return fmt.Errorf("it should have a mapping or has one that it should not: %s", again)
	case r.config.Identity && s.port != s.innerPort:
		return fmt.Errorf("nothing is translated, but the ports differ: %s", again)
	case !r.config.Identity && !r.blank.has(s.port):
		return errors.New("this table gives the port to nobody: give both tables the same ports and reserved ones")
	case !r.config.Identity && s.inner == r.exportAddress() || r.config.Identity && s.inner == s.remote:
		return fmt.Errorf("no packet between these addresses passes: %s", again)
	}
	return checkState(s)
}

// checkState checks that a session's state is one that its flags lead to.
func checkState(s *session) error {
	if s.proto != packet.TCP {
		if s.state != stateLive || s.flags&^(mapped|marked) != 0 || s.proto == packet.ICMP && s.remotePort != 0 {
			return fmt.Errorf("state %s with flags %02x is none of its protocol: %s", stateName(s.state), s.flags, again)
		}
		return nil
	}
	ok := false
	switch s.state {
	case stateOpening:
		ok = s.flags&opened != opened
	case stateEstablished:
		ok = s.flags&opened == opened
	case stateClosing, stateClosed:
		ok = s.flags&(opened|finOut|finIn) == opened|finOut|finIn
	case stateReset:
		ok = true
	}
	if !ok {
		return fmt.Errorf("state %s with flags %02x is none of TCP: %s", stateName(s.state), s.flags, again)
	}
	return nil
}

// checkQuotas says which limit one more session would break, with a port where port is set.
func (r *restorer) checkQuotas(h *host, s *session, port bool) error {
	l, n := &r.config.Limits, &r.config.Network
	half := s.state == stateOpening
	for _, q := range [...]struct {
		have, limit int
		counts      bool
		what        string
	}{
		{r.sessions.live, r.config.MaxSessions, true, "sessions of the table"},
		{int(h.sessions), l.Sessions, true, "sessions of the inner address"},
		{int(h.ports), l.Ports, port, "ports of the inner address"},
		{int(h.halfOpen), l.HalfOpen, half, "half-open connections of the inner address"},
		{int(r.network.ports), n.Ports, port, "ports of the network"},
		{int(r.halfOpen), n.HalfOpen, half, "half-open connections of the network"},
	} {
		if q.counts && q.have >= q.limit {
			return fmt.Errorf("more than %d %s: raise that limit to what the exported table had", q.limit, q.what)
		}
	}
	return nil
}

// empty takes everything out of a table again, unheard.
func (t *Table) empty() {
	events := t.events
	t.events = newRing(t.config.Memory, 0, 0) // takes nothing, and no memory
	for i := uint32(1); i < t.sessions.top; i++ {
		if t.sessions.at(i).state != stateFree {
			t.removeSession(i, ReasonRevoked)
		}
	}
	t.events = events
	for t.tuples.head != 0 {
		t.releaseTuple()
	}
	for t.heldPorts.head != 0 {
		t.releasePort()
	}
	if t.blocks != nil {
		for b := range t.blocks.all {
			if o := t.blocks.all[b].owner; o != nobody && o != never {
				t.dropBlock(uint16(b))
			}
		}
	}
	for i := uint32(1); i < t.hosts.top; i++ {
		t.forget(i)
	}
}
