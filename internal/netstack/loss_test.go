package netstack

import (
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// losses loses segments of the connections that pass, by where they stand in
// their stream: the order in which the scheduler lets packets come changes
// nothing. It loses what carries certain octets of a stream, once or twice and
// never more, the FIN twice, and every hundredth segment without data.
//
// Nothing of the handshake is lost: [TestLostHandshake] does that. After it a
// stack rightly believes in a round trip of a second (RFC 6298, section 5.7), and
// gVisor's sends no SACK blocks once it sent its own FIN, so that each further
// loss in the other direction waits for a timeout that has grown to many seconds.
type losses struct {
	size   uint32   // octets of each stream
	places []uint32 // offsets in the stream whose segments are lost

	mu      sync.Mutex
	streams map[uint16]*stream // by source port
	lost    int                // data segments and FINs
}

// stream is one direction of a connection.
type stream struct {
	start uint32         // sequence number of the first octet
	lives map[uint32]int // by offset, how many more segments with this octet are lost
	acks  int            // segments without data
}

// newLosses loses a hundredth of the full segments of streams of size octets, repeatably.
func newLosses(size uint32) *losses {
	const segment = 1340
	l := &losses{size: size, streams: make(map[uint16]*stream)}
	r := rand.New(rand.NewPCG(1, 2))
	for n := size / segment / 100; n > 0; n-- {
		l.places = append(l.places, r.Uint32N(size))
	}
	return l
}

// lives returns how often each octet's segment is lost: every third twice, and the FIN.
func (l *losses) lives() map[uint32]int {
	lives := map[uint32]int{l.size: 2}
	for i, p := range l.places {
		lives[p] = 1
		if i%3 == 0 {
			lives[p] = 2
		}
	}
	return lives
}

// lose is for the wires of both directions.
func (l *losses) lose(pkt []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := header.TCP(header.IPv4(pkt).Payload())
	if h.Flags().Contains(header.TCPFlagSyn) {
		l.streams[h.SourcePort()] = &stream{start: h.SequenceNumber() + 1, lives: l.lives()}
		return false
	}
	s := l.streams[h.SourcePort()]
	first, length := h.SequenceNumber()-s.start, uint32(len(h.Payload()))
	if h.Flags().Contains(header.TCPFlagFin) {
		length++
	}
	if length == 0 {
		s.acks++
		return s.acks%100 == 0
	}
	hit := false
	for place, left := range s.lives {
		if place-first < length && left > 0 {
			s.lives[place]--
			hit = true
		}
	}
	if hit {
		l.lost++
	}
	return hit
}

// check says what was not lost in the end.
func (l *losses) check(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.streams) != 2 || l.lost < 2*len(l.places) {
		t.Errorf("%d segments of %d streams were lost, want at least %d of 2", l.lost, len(l.streams), 2*len(l.places))
	}
	for port, s := range l.streams {
		for place, left := range s.lives {
			if left > 0 {
				t.Errorf("what carries octet %d from port %d was to be lost %d times more", place, port, left)
			}
		}
	}
}

// TestLostHandshake loses each packet of a handshake once.
func TestLostHandshake(t *testing.T) {
	for _, tc := range []struct {
		name  string
		flags header.TCPFlags
	}{
		{"SYN", header.TCPFlagSyn},
		{"SYN-ACK", header.TCPFlagSyn | header.TCPFlagAck},
		{"ACK", header.TCPFlagAck},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // a second each until the stacks try again
			var lost atomic.Bool
			n := connect(t, clientConfig(), serverConfig(), func(pkt []byte) bool {
				return header.TCP(header.IPv4(pkt).Payload()).Flags() == tc.flags && lost.CompareAndSwap(false, true)
			})
			c, s := dialPair(t, n)
			exchange(t, c, s, 100_000)
			if !lost.Load() {
				t.Error("nothing was lost")
			}
		})
	}
}

// TestLostFIN loses a segment, closes the stream while that is mended, and loses the FIN
// twice: it must come in the end.
func TestLostFIN(t *testing.T) {
	const size = 100_000
	var start, lost uint32 // sequence numbers: of the first octet, of the lost segment
	fins := 2              // how many are still to be lost
	mending, closed := make(chan struct{}), make(chan struct{})
	n := connect(t, clientConfig(), serverConfig(), func(pkt []byte) bool {
		ip := header.IPv4(pkt)
		h := header.TCP(ip.Payload())
		if ip.SourceAddress() != address(clientAddr) {
			return false
		}
		seq := h.SequenceNumber()
		switch {
		case h.Flags().Contains(header.TCPFlagSyn):
			start = seq + 1
		case h.Flags().Contains(header.TCPFlagFin):
			fins--
			return fins >= 0
		case lost == 0 && seq-start > size/2 && len(h.Payload()) > 0:
			lost = seq
			return true
		case lost != 0 && seq == lost:
			close(mending)
			<-closed
			lost = start // which does not come again
		}
		return false
	})
	c, s := dialPair(t, n)
	if _, err := c.Write(pattern(1, size)); err != nil {
		t.Fatal(err)
	}
	<-mending
	c.CloseWrite()
	close(closed)
	if got, err := s.WriteTo(io.Discard); err != nil || got != size {
		t.Errorf("received %d of %d: %v", got, size, err)
	}
}
