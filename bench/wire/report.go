package wire

import (
	"encoding/binary"
	"net/netip"
)

// MaxSources is how many source addresses of a run are told apart. A pair of
// dedicated addresses has two.
const MaxSources = 16

// Report is what the far side counted of a run since it was opened.
type Report struct {
	// Of KindData.
	Packets, Bytes uint64 // that came, duplicates among them; bytes of UDP payload
	Duplicates     uint64 // came before, by flow and sequence
	Reordered      uint64 // came after a greater sequence of their flow
	Stale          uint64 // came so late that nobody can say whether they are duplicates
	// Missing is how many have not come although a greater sequence of their flow has.
	Missing uint64
	Flows   uint64 // that sent data

	Echoed uint64 // echoes answered, by as much as the kernel took

	// Of KindGenerated.
	Joined    uint64 // flows
	Generated uint64 // packets sent
	Failed    uint64 // packets that the kernel did not take

	// Dropped is what came to the far side and found its sockets' buffers full, of any
	// run, since this one was opened. Unless it is 0 the far side was too slow, and what
	// is missing says nothing of the gateway.
	Dropped uint64

	// Of TCP.
	Connections uint64 // of this run, accepted and understood
	Asked       uint64 // requests answered
	Sunk        uint64 // bytes that came to sinks
	Sourced     uint64 // bytes that the kernel took of sources

	// Sources are the addresses that data, echoes, joins and connections came from, in
	// the order in which they were first seen. Those beyond MaxSources are not told
	// apart: Others counts what came from them.
	Sources []Source
	Others  uint64
}

// Arrived is how many packets of KindData came, each once. What may be a duplicate has not.
func (r Report) Arrived() uint64 { return r.Packets - r.Duplicates - r.Stale }

// Source is an address, and the datagrams and connections that came from it.
type Source struct {
	Addr  netip.Addr
	Count uint64
}

const (
	reportCounters = 16
	sourceSize     = 16 + 8
	// ReportSize is the length of a report and of the request for one, in bytes.
	ReportSize = ControlSize + reportCounters*8 + 8 + MaxSources*sourceSize
)

// counters are all of them, in the order of the wire.
func (r *Report) counters() [reportCounters]*uint64 {
	return [...]*uint64{
		&r.Packets, &r.Bytes, &r.Duplicates, &r.Reordered, &r.Stale, &r.Missing, &r.Flows,
		&r.Echoed, &r.Joined, &r.Generated, &r.Failed, &r.Dropped,
		&r.Connections, &r.Asked, &r.Sunk, &r.Sourced,
	}
}

// append writes the report. Sources beyond MaxSources are added to Others.
func (r *Report) append(b []byte) []byte {
	for _, c := range r.counters() {
		b = binary.BigEndian.AppendUint64(b, *c)
	}
	others := r.Others
	for _, s := range r.Sources[min(MaxSources, len(r.Sources)):] {
		others += s.Count
	}
	b = binary.BigEndian.AppendUint64(b, others)
	for i := range MaxSources {
		var s Source
		if i < len(r.Sources) {
			s = r.Sources[i]
		}
		var addr [16]byte
		if s.Addr.IsValid() {
			addr = s.Addr.As16()
		}
		b = append(b, addr[:]...)
		b = binary.BigEndian.AppendUint64(b, s.Count)
	}
	return b
}

// read reads what append wrote; b has it.
func (r *Report) read(b []byte) {
	for _, c := range r.counters() {
		*c = binary.BigEndian.Uint64(b)
		b = b[8:]
	}
	r.Others = binary.BigEndian.Uint64(b)
	b = b[8:]
	r.Sources = nil
	for range MaxSources {
		addr, count := netip.AddrFrom16([16]byte(b)).Unmap(), binary.BigEndian.Uint64(b[16:])
		b = b[sourceSize:]
		if count > 0 {
			r.Sources = append(r.Sources, Source{addr, count})
		}
	}
}
