package packet

import "encoding/binary"

// ProbePort is the UDP port on a network's first address where the gateway
// answers probes (the "echo" of RFC 862's port, with a message of our own).
const ProbePort = 7

// ProbeSize is the length in bytes of every probe. A reply is exactly as long
// as its request, so that nothing is amplified.
const ProbeSize = 32

// probeMagic begins every probe.
const probeMagic = 0x53615031 // "SaP1"

// probeVersion is the only version so far; others are not understood.
const probeVersion = 1

// ProbeType tells a question from its answer, so that two services that echo
// what they hear cannot keep each other busy.
type ProbeType uint8

// The types of a probe.
const (
	ProbeRequest ProbeType = 1
	ProbeReply   ProbeType = 2
)

// Health is a set of bits in which a gateway says, per dedicated IP, why
// traffic should rather not come to it. Zero is healthy; a receiver ignores
// bits that it does not know.
type Health uint8

// The health bits.
const (
	HealthUplinkLost Health = 1 << iota // the far side cannot be reached
	HealthDraining                      // existing flows go on, new ones should go elsewhere
	HealthFull                          // no external port or session is left
)

// Probe is one message of the health probe between sidecar and gateway.
type Probe struct {
	Type     ProbeType
	Health   Health // of a reply
	Nonce    uint64 // chosen by the asker at random, repeated in the reply
	Sequence uint64 // counted by the asker, repeated in the reply
}

// The layout, big-endian: magic 4, version 1, type 1, health 1, zero 1, nonce 8,
// sequence 8, zero 8.

// Put encodes m into the first ProbeSize bytes of b and returns ProbeSize; it
// returns 0 where b is shorter. It may overwrite the request that it answers.
func (m Probe) Put(b []byte) int {
	if len(b) < ProbeSize {
		return 0
	}
	b = b[:ProbeSize]
	clear(b)
	binary.BigEndian.PutUint32(b, probeMagic)
	b[4] = probeVersion
	b[5] = uint8(m.Type)
	b[6] = uint8(m.Health)
	binary.BigEndian.PutUint64(b[8:], m.Nonce)
	binary.BigEndian.PutUint64(b[16:], m.Sequence)
	return ProbeSize
}

// Reply returns the answer to the request m.
func (m Probe) Reply(h Health) Probe {
	return Probe{Type: ProbeReply, Health: h, Nonce: m.Nonce, Sequence: m.Sequence}
}

// ParseProbe decodes b, which must be exactly one probe, and says whether it is.
func ParseProbe(b []byte) (Probe, bool) {
	if len(b) != ProbeSize || binary.BigEndian.Uint32(b) != probeMagic || b[4] != probeVersion {
		return Probe{}, false
	}
	m := Probe{
		Type:     ProbeType(b[5]),
		Health:   Health(b[6]),
		Nonce:    binary.BigEndian.Uint64(b[8:]),
		Sequence: binary.BigEndian.Uint64(b[16:]),
	}
	return m, m.Type == ProbeRequest || m.Type == ProbeReply
}
