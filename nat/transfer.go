package nat

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// An export is a table as bytes: sessions and what is on hold, with the time that
// each has left. Another table of the same external address takes it in and goes
// on with the same ports, timers and sequence numbers. Numbers are big-endian.
//
//	header   "SPNT", version, kind, TCP mapping, length in bits of the size of port
//	         blocks, external address
//	records  session of TCP, other session, held tuple, held port, block; any number of each
//	trailer  counts of each kind, CRC-32C of all before it
//
// States and flags of sessions stand in it by their numbers, so that the version changes
// when these do.
//
// An export is written in steps, between which packets go on. It holds what was
// there when it began and is still there when its step comes: what was made since
// then is left out. So all that an export holds existed together, at its beginning,
// and nothing in it contradicts anything else. Each record is as it is at its step.
// A mapping is not written: it is what its sessions have in common.
//
// A TCP connection that goes on after its step may leave the window that the export
// knows. So whoever hands a table over stops its packets first, waits for a tick, and
// exports then: nothing is left out, and nothing has moved on.

const (
	exportMagic   = "SPNT"
	exportVersion = 1
	headerSize    = 12
)

// The kinds of records; each begins with its kind.
const (
	recordTCP   = 1 // a connection: what a datagram record has, then what TCP has said
	recordOther = 2 // a session of UDP or echo
	recordTuple = 3 // a TCP tuple on hold
	recordPort  = 4 // a port of a space on hold
	recordBlock = 5 // a port block at rest: nothing uses it, but it is not free yet
	recordEnd   = 255
)

// recordSizes are the sizes in bytes with the kind.
func recordSize(kind byte) int {
	switch kind {
	case recordOther:
		return 26
	case recordTCP:
		return 26 + 26
	case recordTuple:
		return 13
	case recordPort:
		return 8
	case recordBlock:
		return 11
	case recordEnd:
		return 21
	}
	return 0
}

// ExportStepBytes is what a record that AppendExport looks at takes at most; header
// and trailer fit in another 40 bytes.
const ExportStepBytes = 26 + 26

// exportStage is what the next step of an export writes.
type exportStage uint8

const (
	exportBegin exportStage = iota
	exportSessions
	exportTuples
	exportPorts
	exportBlocks
	exportEnd
	exportDone
)

// ExportCursor says how far an export has come; its zero value begins one. An export
// that is given up needs no end.
type ExportCursor struct {
	stage  exportStage
	next   uint32 // the record to look at next
	began  uint32 // tick
	counts [4]uint32
	sum    uint32 // of what has been written
}

// Done reports whether the export is complete.
func (c ExportCursor) Done() bool { return c.stage == exportDone }

// AppendExport goes on with an export: it looks at as many records as budget says,
// 1 at least, appends what it writes to dst, and returns that with where it stands. A
// record takes some 50 ns and [ExportStepBytes] at most, so that 4096 take less than
// half a millisecond where dst has room for them. The bytes of all steps in a row, until
// the cursor is done, are the export; the table only reads itself, but for the clock.
//
// An export holds what existed before the tick of 100 ms in which it begins: what is
// made in that tick or later is left out, even by a packet before the first step. So
// whoever hands a table over stops its packets, lets now go on by 100 ms, and only then
// begins. A connection that goes on after its step may be refused where it is imported.
func (t *Table) AppendExport(dst []byte, c ExportCursor, budget int, now packet.Instant) ([]byte, ExportCursor) {
	t.clock(now)
	from := len(dst)
	if c.stage == exportBegin {
		dst = t.appendHeader(dst)
		c.stage, c.next, c.began = exportSessions, 1, t.tick
	}
	for budget = max(budget, 1); budget > 0 && c.stage < exportEnd; budget-- {
		if c.next >= t.exportTop(c.stage) {
			c.stage, c.next = c.stage+1, 1
			continue
		}
		was := len(dst)
		if dst = t.appendRecord(dst, c); len(dst) > was {
			c.counts[c.stage-exportSessions]++
		}
		c.next++
	}
	if c.stage == exportEnd && budget > 0 {
		dst = append(dst, recordEnd)
		for _, n := range c.counts {
			dst = binary.BigEndian.AppendUint32(dst, n)
		}
		c.stage = exportDone
		c.sum = crc32.Update(c.sum, crc32.MakeTable(crc32.Castagnoli), dst[from:])
		return binary.BigEndian.AppendUint32(dst, c.sum), c
	}
	if len(dst) > from {
		c.sum = crc32.Update(c.sum, crc32.MakeTable(crc32.Castagnoli), dst[from:])
	}
	return dst, c
}

// appendHeader writes what an export is of. Its bytes are the same for all tables
// that may take it in.
func (t *Table) appendHeader(dst []byte) []byte {
	dst = append(dst, exportMagic...)
	dst = append(dst, exportVersion, t.exportKind(), byte(t.config.TCPMapping), byte(bits.Len(uint(t.config.PortBlock))))
	return binary.BigEndian.AppendUint32(dst, t.exportAddress())
}

func (t *Table) exportKind() byte {
	if t.config.Identity {
		return 1
	}
	return 0
}

// exportAddress is the external address; 0 where there is none.
func (t *Table) exportAddress() uint32 {
	if t.config.Identity {
		return 0
	}
	return number(t.config.External)
}

// exportTop is the number behind the last record of a stage.
func (t *Table) exportTop(s exportStage) uint32 {
	switch s {
	case exportSessions:
		return t.sessions.top
	case exportTuples:
		return t.tuples.records.top
	case exportPorts:
		return t.heldPorts.records.top
	}
	if t.blocks == nil {
		return 1
	}
	return uint32(len(t.blocks.all)) + 1 // they count from 0
}

// appendRecord writes the record at the cursor, if it is part of the export.
func (t *Table) appendRecord(dst []byte, c ExportCursor) []byte {
	if c.stage == exportSessions {
		s := t.sessions.at(c.next)
		if s.state == stateFree || due(s.deadline, t.tick) || due(c.began, s.created) ||
			s.flags&mapped != 0 && t.mappings.at(s.owner).doomed != ReasonNone {
			return dst
		}
		return t.appendSession(dst, s)
	}
	if c.stage == exportBlocks {
		return t.appendBlock(dst, c)
	}
	q := &t.tuples
	if c.stage == exportPorts {
		q = &t.heldPorts
	}
	h := q.at(c.next)
	if h.key == 0 || due(h.until, t.tick) || due(c.began, h.until-1-t.ticks.hold) {
		return dst
	}
	left := h.until - t.tick
	if c.stage == exportTuples {
		dst = binary.BigEndian.AppendUint64(append(dst, recordTuple), h.key)
	} else {
		dst = append(dst, recordPort, byte(h.key>>16))
		dst = binary.BigEndian.AppendUint16(dst, uint16(h.key))
	}
	return binary.BigEndian.AppendUint32(dst, left)
}

// appendBlock writes a block at rest; what uses the others says whose they are.
func (t *Table) appendBlock(dst []byte, c ExportCursor) []byte {
	b := &t.blocks.all[c.next-1]
	if b.owner == nobody || b.owner == never || b.used > 0 || due(b.until, t.tick) || due(c.began, b.until-1-t.ticks.hold) {
		return dst
	}
	dst = binary.BigEndian.AppendUint16(append(dst, recordBlock), uint16(c.next-1))
	dst = binary.BigEndian.AppendUint32(dst, t.hosts.at(b.owner).addr)
	return binary.BigEndian.AppendUint32(dst, b.until-t.tick)
}

// appendSession writes a session.
func (t *Table) appendSession(dst []byte, s *session) []byte {
	kind := byte(recordOther)
	if s.proto == packet.TCP {
		kind = recordTCP
	}
	be := binary.BigEndian
	dst = append(dst, kind, byte(s.proto), byte(s.state), byte(s.flags))
	dst = be.AppendUint16(be.AppendUint32(dst, s.inner), s.innerPort)
	dst = be.AppendUint16(be.AppendUint32(dst, s.remote), s.remotePort)
	dst = be.AppendUint16(dst, s.port)
	dst = be.AppendUint32(dst, s.deadline-t.tick)
	dst = be.AppendUint32(dst, t.tick-s.created)
	if kind == recordOther {
		return dst
	}
	for _, pair := range [...][2]uint32{s.end, s.ack} {
		dst = be.AppendUint32(be.AppendUint32(dst, pair[outward]), pair[inward])
	}
	dst = be.AppendUint16(be.AppendUint16(dst, s.win[outward]), s.win[inward])
	return append(be.AppendUint32(dst, s.again), s.scale, s.againScale)
}
