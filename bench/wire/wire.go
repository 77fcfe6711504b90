// Package wire is the language of the load-testing harness and its far side, which
// stands beyond the gateway that is measured: what a datagram of a load carries, and
// the requests by which the harness opens a run, has packets sent back to it, and
// asks what arrived.
//
// Every message begins with a [Head] of 32 bytes, so that one fits into the 36 bytes
// of payload that an IPv4 packet of 64 bytes has. Its first word is a checksum: a
// damaged head is no head.
//
//	 0       4    5     6    8      16         24     32
//	+-------+----+-----+----+------+----------+------+
//	| check |kind|flags|flow| run  | sequence | time |   big-endian
//	+-------+----+-----+----+------+----------+------+
//
// What makes the far side send more than it got, or tell, is a [Control]: it is sealed
// with a key that both sides have (HMAC-SHA256) and is valid for minutes. No answer
// over UDP is longer than its request, so that the far side amplifies nothing even for
// somebody who repeats what was sealed by others.
//
// A run, over UDP:
//
//	harness                      far side
//	Report            ------>    opens the run: only then its data counts, and its
//	                  <------    ReportAnswer   echoes are answered
//	Data, Data, ...   ------>    counts them, by flow and by source address
//	Echo              ------>
//	                  <------    EchoAnswer, of the same size
//	Join, of a flow   ------>    keeps where the flow comes from
//	                  <------    JoinAnswer
//	Generate          ------>
//	                  <------    GenerateAnswer, and Generated at a steady rate, by
//	                             turns to all flows that joined
//	Report            ------>
//	                  <------    ReportAnswer: what was counted so far
//
// Control messages may be lost like all others: whoever gets no answer repeats them,
// which does nothing a second time. A TCP connection begins with one message, too:
// Sink and all that follows is counted; Source and the far side sends; Ask and it
// answers and closes.
package wire

import (
	"encoding/binary"
	"hash/crc32"
)

// Kind says what a message is.
type Kind uint8

// Kinds over UDP.
const (
	// KindData is counted. Sequence counts from 0 in each flow.
	KindData Kind = 1 + iota
	// KindEcho is answered with the same bytes, as a KindEchoAnswer.
	KindEcho
	KindEchoAnswer
	// KindJoin is a Control by which a flow says where it wants generated packets: at
	// the address and port that the far side sees it come from.
	KindJoin
	KindJoinAnswer // with Order.Flows
	// KindGenerate is a Control that lets packets be sent to all flows that joined, with
	// Order's Rate, For and Size. Sequence numbers such orders of a run, from 1: a
	// greater one takes the place of the one before, the same one is answered only, a
	// smaller one is refused. A rate of 0 ends the sending.
	KindGenerate
	KindGenerateAnswer // with Order as it was taken on; Flows says to how many
	// KindGenerated is what was asked for with KindGenerate. Sequence counts from 0 in
	// each flow, over all orders of the run; Flags are the low bits of the order's number.
	KindGenerated
	// KindReport asks what was counted; the first of a run opens it.
	KindReport
	KindReportAnswer
	// KindRefusal is the answer to a Control that was sealed rightly but not done;
	// Order.Reason says why.
	KindRefusal
)

// Kinds that begin a TCP connection, and answers there.
const (
	// KindSink is a Head, after which everything is counted. Once the sender has closed
	// its side (FIN) it gets a KindSinkAnswer, whose Sequence is the bytes that came
	// after the head.
	KindSink Kind = 32 + iota
	KindSinkAnswer
	// KindSource is a Control after which the far side sends Order.Bytes, or as much as
	// goes in Order.For, and closes.
	KindSource
	// KindAsk is a Head that is answered with a KindAskAnswer of the same fields, after
	// which the far side closes.
	KindAsk
	KindAskAnswer
)

// HeadSize is the length of a head, in bytes.
const HeadSize = 32

// Head begins every message.
type Head struct {
	Kind     Kind
	Flags    uint8
	Flow     uint16 // numbered by the harness, from 0
	Run      uint64 // drawn by the harness; not to be guessed
	Sequence uint64
	Time     uint64 // of the sender's clock, in ns; answers have that of their request
}

// version is part of the checksum: other versions are not understood.
const version = 0x53504231

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func check(b []byte) uint32 { return crc32.Checksum(b[4:HeadSize], castagnoli) ^ version }

// Put writes the head into the first HeadSize bytes of b, which must be there.
func (h Head) Put(b []byte) {
	_ = b[HeadSize-1]
	b[4], b[5] = byte(h.Kind), h.Flags
	binary.BigEndian.PutUint16(b[6:], h.Flow)
	binary.BigEndian.PutUint64(b[8:], h.Run)
	binary.BigEndian.PutUint64(b[16:], h.Sequence)
	binary.BigEndian.PutUint64(b[24:], h.Time)
	binary.BigEndian.PutUint32(b, check(b))
}

// Decode reads a head from the beginning of b. It is false for what is none: too
// short, damaged, or of another version. What follows the head is not looked at.
func Decode(b []byte) (h Head, ok bool) {
	if len(b) < HeadSize || binary.BigEndian.Uint32(b) != check(b) {
		return Head{}, false
	}
	return Head{
		Kind: Kind(b[4]), Flags: b[5], Flow: binary.BigEndian.Uint16(b[6:]),
		Run: binary.BigEndian.Uint64(b[8:]), Sequence: binary.BigEndian.Uint64(b[16:]), Time: binary.BigEndian.Uint64(b[24:]),
	}, true
}
