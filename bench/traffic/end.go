package traffic

import (
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/tunnel"
)

// end is a WireGuard device's near side. Read makes packets where WireGuard encrypts
// them, Write looks at them where it decrypted them: none is copied.
type end struct {
	number int
	source *Source
	inners []netip.Addr // that it began with
	mtu    int
	batch  int // packets that are moved at once at most
	alarm  *alarm
	events chan tun.Event // stays empty: a tunnel is up until it is closed
	once   sync.Once

	tunnel  *tunnel.Tunnel
	key     tunnel.Key // the gateway's
	gateway Gateway
	shard   *shard

	outbox  chan []byte // messages to far sides
	run     atomic.Pointer[lane]
	clients atomic.Pointer[[]*Attachment]
	turn    int // whose client is asked first; of Read

	mu     sync.RWMutex
	owners map[uint32]owner // of addresses; what is not here is none of this end's

	// Of Write.
	packet  packet.Packet
	parcels []parcel
	handed  [][]byte
}

// owner says whose an address is.
type owner struct {
	client *Attachment // nil: loads' only
	began  bool        // the end began with it
}

// parcel are packets for a client: those of handed up to an index.
type parcel struct {
	to  *Attachment
	end int
}

var _ tun.Device = (*end)(nil)

// Read hands out packets: messages first, then those of clients, by turns and at most
// half of the buffers if a load is on, then what is due of the load. It implements
// tun.Device.
func (e *end) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		e.alarm.clear()
		n := e.post(bufs, sizes, offset)
		l := e.run.Load()
		limit := len(bufs)
		if l != nil {
			limit = max(n, limit/2)
		}
		more, again := e.ask(bufs[n:limit], sizes[n:limit], offset)
		n += more
		if l != nil {
			more, wait := l.fill(bufs[n:], sizes[n:], offset)
			n += more
			if again == 0 || wait > 0 && wait < again {
				again = wait
			}
		}
		if n > 0 {
			return n, nil
		}
		if err := e.alarm.wait(again); err != nil {
			return 0, os.ErrClosed
		}
	}
}

// post hands out messages that wait.
func (e *end) post(bufs [][]byte, sizes []int, offset int) (n int) {
	for n < len(bufs) {
		select {
		case m := <-e.outbox:
			sizes[n] = copy(bufs[n][offset:], m)
			n++
		default:
			return n
		}
	}
	return n
}

// ask asks each client for packets, and says when one wants to be asked again.
func (e *end) ask(bufs [][]byte, sizes []int, offset int) (n int, again time.Duration) {
	clients := *e.clients.Load()
	for i := range clients {
		if n == len(bufs) {
			break
		}
		more, wait := clients[(e.turn+i)%len(clients)].fill(bufs[n:], sizes[n:], offset)
		n += more
		if wait > 0 && (again == 0 || wait < again) {
			again = wait
		}
	}
	e.turn++
	return n, again
}

// Write takes in packets. It implements tun.Device; WireGuard calls it from one goroutine
// for each peer, and there is one.
func (e *end) Write(bufs [][]byte, offset int) (int, error) {
	now := e.source.now()
	e.parcels, e.handed = e.parcels[:0], e.handed[:0]
	e.mu.RLock()
	e.shard.mu.Lock()
	l := e.run.Load() // under the lock: counts and run are of one load
	for _, b := range bufs {
		e.take(b[offset:], l, now)
	}
	e.shard.mu.Unlock()
	e.mu.RUnlock()
	from := 0
	for _, p := range e.parcels {
		p.to.deliver(e.handed[from:p.end])
		from = p.end
	}
	clear(e.handed)
	return len(bufs), nil
}

// take takes in a packet. The caller holds the end's lock and the shard's.
func (e *end) take(b []byte, l *lane, now time.Duration) {
	p, counts := &e.packet, &e.shard.received
	if packet.Parse(p, b) != packet.Pass || p.Kind != packet.KindFragment && !p.ChecksumOK() {
		counts.Damaged++
		return
	}
	to, ours := e.owners[addressNumber(p.Dst)]
	if !ours {
		counts.Foreign++
		return
	}
	if p.Kind == packet.KindUDP {
		if h, ok := wire.Decode(p.Data()); ok && e.takeWire(p, h, l, now) {
			return
		}
	}
	switch {
	case to.client != nil:
		e.handed = append(e.handed, p.B)
		if n := len(e.parcels); n > 0 && e.parcels[n-1].to == to.client {
			e.parcels[n-1].end = len(e.handed)
		} else {
			e.parcels = append(e.parcels, parcel{to.client, len(e.handed)})
		}
	case p.Kind == packet.KindICMPError:
		counts.Errors++
	case p.Kind == packet.KindTCP:
		// Loads are datagrams: it is of a client that has left, here or at a source before with
		// the same addresses. A gateway repeats the end of a connection until it is acknowledged.
		counts.Old++
	default:
		counts.Strange++
	}
}

// takeWire takes in a datagram of a far side's, if it is a load's or an answer to a message.
func (e *end) takeWire(p *packet.Packet, h wire.Head, l *lane, now time.Duration) bool {
	switch h.Kind {
	case wire.KindReportAnswer, wire.KindGenerateAnswer, wire.KindRefusal:
		return e.source.mail.put(p.Data())
	}
	if l == nil || h.Run != l.run.load.Run {
		if e.source.knows(h.Run) {
			e.shard.received.Old++
			return true
		}
		return false
	}
	return l.take(p, h, e.shard, now)
}

// Close implements tun.Device.
func (e *end) Close() error {
	e.once.Do(func() {
		_ = e.alarm.close()
		close(e.events)
	})
	return nil
}

// MTU implements tun.Device.
func (e *end) MTU() (int, error) { return e.mtu, nil }

// Name implements tun.Device.
func (e *end) Name() (string, error) { return "traffic", nil }

// File implements tun.Device.
func (e *end) File() *os.File { return nil }

// Events implements tun.Device.
func (e *end) Events() <-chan tun.Event { return e.events }

// BatchSize implements tun.Device.
func (e *end) BatchSize() int { return e.batch }
