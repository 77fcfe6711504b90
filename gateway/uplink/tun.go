package uplink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/internal/tundev"
)

// TunConfig is what a Tun uplink is made of.
type TunConfig struct {
	// Interface is the name of the TUN interface that the uplink makes in the calling
	// thread's network namespace. It goes when the uplink is closed.
	Interface string
	// Addresses are the dedicated IPs that this host holds for the network. At least
	// one. They are not on the host, but routed to the interface.
	Addresses []netip.Addr
	// Fragments bounds the memory of datagrams that come in fragments.
	Fragments packet.ReassemblyConfig
	// NoOffload leaves segmentation and checksums to this process.
	NoOffload bool
	// Log gets what an operator has to know. Default slog.Default().
	Log *slog.Logger
}

// Tun is the uplink that hands whole packets to the host's kernel and lets it route
// them: a TUN interface of the network's own, on which the kernel sees the dedicated IPs
// as addresses of some host beyond. See the package comment.
type Tun struct {
	dev       *tundev.Device
	log       *slog.Logger
	name      string
	addresses string
	held      [][4]byte

	fragments *packet.Reassembler // of the goroutine that reads
	fragment  packet.Packet
	wholes    []byte    // datagrams of one ReadTrains that came in fragments
	start     time.Time // the zero of the reassembler's clock

	probes     probes
	batches    sync.Pool // *tunBatch
	complaints complaints
	drops      [packet.NumOutcomes]atomic.Uint64 // of packets on their way out
	inward     [packet.NumOutcomes]atomic.Uint64 // of packets from outside
	events     chan Event                        // closed by Close, never written
	closing    sync.Once
}

var _ Trains = (*Tun)(nil)

// tunBatch is the scratch of one write that leaves packets out.
type tunBatch struct {
	bufs   [][]byte
	trains []packet.Train
}

// NewTun makes the interface and returns an uplink on it. The interface is down and
// nothing leads to it: addresses, routes and forwarding are the caller's. Its MTU
// must become 65535, because the kernel hands over, and takes, datagrams that no
// link has to carry whole.
func NewTun(cfg TunConfig) (*Tun, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := checkAddresses(cfg.Addresses); err != nil {
		return nil, fmt.Errorf("tun uplink: %w", err)
	}
	fragments, err := packet.NewReassembler(cfg.Fragments)
	if err != nil {
		return nil, fmt.Errorf("tun uplink: %w", err)
	}
	dev, err := openTun(cfg.Interface, !cfg.NoOffload)
	if err != nil {
		return nil, fmt.Errorf("tun uplink: %w", err)
	}
	name, err := dev.Name()
	if err != nil {
		_ = dev.Close()
		return nil, fmt.Errorf("tun uplink: %w", err)
	}
	t := &Tun{
		dev: dev, log: cfg.Log, name: name, addresses: joinAddrs(cfg.Addresses),
		fragments: fragments, start: time.Now(), events: make(chan Event),
	}
	for _, a := range cfg.Addresses {
		t.held = append(t.held, a.As4())
	}
	t.probes.init()
	t.batches.New = func() any { return new(tunBatch) }
	return t, nil
}

// openTun makes the device, or says what is missing and what would do without.
func openTun(name string, offload bool) (*tundev.Device, error) {
	f, err := tundev.CreateTUN(name, offload)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w; `uplink: sockets` needs neither /dev/net/tun nor CAP_NET_ADMIN, only the dedicated addresses on the host", err)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w; the name is this network's, and no running gateway's: `ip link delete %s` removes what is there", err, name)
	}
	if err != nil {
		return nil, err
	}
	dev, err := tundev.FromTUN(f, tundev.Config{MTU: maxPacket, Offload: offload})
	if err != nil {
		_ = f.Close()
	}
	return dev, err
}

// CheckTun says what keeps this process from making TUN interfaces, but for the
// privilege. It makes none.
func CheckTun() error { return tundev.CheckTUN() }

// maxPacket is the longest IPv4 packet, in bytes (RFC 791).
const maxPacket = 65535

// Interface returns the name of the TUN interface.
func (t *Tun) Interface() string { return t.name }

// Write implements Uplink. The kernel is the next hop: what is too long for the link
// that it chooses it cuts, or refuses by an ICMP 3/4 of its own, which Read returns.
func (t *Tun) Write(bufs [][]byte, offset int) (int, error) {
	for i, b := range bufs {
		if !t.ours(b[min(offset, len(b)):]) {
			return t.writeSome(bufs, offset, i)
		}
	}
	_, err := t.dev.Write(bufs, offset)
	return t.wrote(len(bufs), err)
}

// writeSome writes the first n of bufs, which are ours, and what else is.
func (t *Tun) writeSome(bufs [][]byte, offset, n int) (int, error) {
	b := t.batches.Get().(*tunBatch)
	defer t.batches.Put(b)
	b.bufs = append(b.bufs[:0], bufs[:n]...)
	for _, buf := range bufs[n:] {
		if t.ours(buf[min(offset, len(buf)):]) {
			b.bufs = append(b.bufs, buf)
		} else {
			t.drop(packet.WrongSource)
		}
	}
	_, err := t.dev.Write(b.bufs, offset)
	clear(b.bufs)
	return t.wrote(len(bufs), err)
}

// WriteTrains implements Trains.
func (t *Tun) WriteTrains(trains []packet.Train) (int, error) {
	for i := range trains {
		if !t.ours(trains[i].Head) {
			return t.writeSomeTrains(trains, i)
		}
	}
	_, err := t.dev.WriteTrains(trains)
	return t.wrote(len(trains), err)
}

// writeSomeTrains is writeSome for trains.
func (t *Tun) writeSomeTrains(trains []packet.Train, n int) (int, error) {
	b := t.batches.Get().(*tunBatch)
	defer t.batches.Put(b)
	b.trains = append(b.trains[:0], trains[:n]...)
	for i := range trains[n:] {
		if train := &trains[n+i]; t.ours(train.Head) {
			b.trains = append(b.trains, *train)
		} else {
			segments := 1
			if len(train.Head) >= ipv4Len {
				segments, _ = train.Segments()
			}
			t.drops[packet.WrongSource].Add(uint64(segments))
		}
	}
	_, err := t.dev.WriteTrains(b.trains)
	clear(b.trains)
	return t.wrote(len(trains), err)
}

// wrote is the result of a write of n packets. What the kernel refuses is lost, as on any
// way, and counted by the device; only Close ends the uplink.
func (t *Tun) wrote(n int, err error) (int, error) {
	if errors.Is(err, os.ErrClosed) {
		return 0, os.ErrClosed
	}
	if err != nil && t.complaints.due() {
		t.log.Warn("the kernel refused a packet on the interface of this network: is the interface up?", "interface", t.name, "error", err)
	}
	return n, nil
}

// ours reports whether the packet b is from a dedicated IP. It is the last check
// before the kernel routes it: nothing else ever leaves.
func (t *Tun) ours(b []byte) bool {
	return len(b) >= ipv4Len && b[0]>>4 == 4 && t.holds([4]byte(b[12:]))
}

func (t *Tun) holds(a [4]byte) bool { return slices.Contains(t.held, a) }

// Read implements Uplink. An error other than [os.ErrClosed] says that the interface is
// gone: the uplink is of no more use.
func (t *Tun) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := t.dev.Read(bufs, sizes, offset)
	if err != nil {
		return 0, t.gone(err)
	}
	for i := range n {
		b := bufs[i][offset:]
		if isFragment(b) {
			sizes[i] = copy(b, t.complete(b[:sizes[i]]))
		} else if t.probes.catches(b[:sizes[i]]) {
			t.answer(b[:sizes[i]])
			sizes[i] = 0
		}
	}
	return n, nil
}

// ReadTrains implements Trains, and fails as Read does.
func (t *Tun) ReadTrains(trains []packet.Train) (int, error) {
	n, err := t.dev.ReadTrains(trains)
	if err != nil {
		return 0, t.gone(err)
	}
	kept := 0
	t.wholes = t.wholes[:0]
	for i := range n {
		b := trains[i].Head
		switch {
		case isFragment(b):
			whole := t.complete(b)
			if whole == nil {
				continue
			}
			trains[i] = packet.Train{Head: t.keep(whole)}
		case t.probes.catches(b):
			t.answer(b)
			continue
		}
		trains[kept] = trains[i]
		kept++
	}
	return kept, nil
}

// keptWholes is how many bytes of datagrams that came in fragments have room in the memory
// that stays: more than one Read brings of them, but for large ones.
const keptWholes = 2 * (maxPacket + 1)

// keep copies a datagram to where it is valid until the next ReadTrains: the
// reassembler's bytes are its own, and the next fragment may need them.
func (t *Tun) keep(whole []byte) []byte {
	if t.wholes == nil {
		t.wholes = make([]byte, 0, keptWholes)
	}
	at := len(t.wholes)
	if at+len(whole) > cap(t.wholes) {
		return bytes.Clone(whole)
	}
	t.wholes = append(t.wholes, whole...)
	return t.wholes[at:len(t.wholes):len(t.wholes)]
}

// gone is the error of a Read that failed.
func (t *Tun) gone(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return os.ErrClosed
	}
	t.log.Error("the interface of this network is gone or fails; it is made anew when the network is opened again", "interface", t.name, "error", err)
	return fmt.Errorf("interface %s is gone or fails: %w", t.name, err)
}

// isFragment reports whether the IPv4 packet b is a fragment (RFC 791 section 3.1).
func isFragment(b []byte) bool { return binary.BigEndian.Uint16(b[6:])&0x3fff != 0 }

// complete adds a fragment to its datagram, and returns that when it is whole; nil
// before. The bytes are the reassembler's until its next use.
func (t *Tun) complete(b []byte) []byte {
	now := packet.Instant(time.Since(t.start))
	if n := t.fragments.Expire(now); n > 0 {
		t.inward[packet.FragmentLimit].Add(uint64(n))
	}
	o := packet.Parse(&t.fragment, b)
	var whole []byte
	if o == packet.Pass {
		whole, o = t.fragments.Add(&t.fragment, now)
	}
	if o != packet.Pass {
		t.inward[o].Add(1)
	}
	return whole
}

func (t *Tun) drop(o packet.Outcome) { t.drops[o].Add(1) }

// Wake implements Uplink.
func (t *Tun) Wake() { t.dev.Wake() }

// BatchSize implements Uplink.
func (t *Tun) BatchSize() int { return t.dev.BatchSize() }

// Events implements Uplink: the kernel refuses no ports here, and sees no sessions.
func (t *Tun) Events() <-chan Event { return t.events }

// Release implements Uplink: there are no sockets.
func (t *Tun) Release(Flow) {}

// Stats implements Uplink.
func (t *Tun) Stats() Stats {
	s := Stats{Offload: t.dev.Offload()}
	for i := range t.drops {
		s.Inward[i] = t.inward[i].Load()
		s.Drops[i] = t.drops[i].Load() + s.Inward[i]
	}
	d := t.dev.Stats()
	s.Drops[packet.NotIPv4] += d.NotIPv4
	s.Drops[packet.TooBig] += d.TooBig
	s.Drops[packet.QueueFull] += d.QueueFull
	s.Drops[packet.Unreachable] += d.WriteErrors
	s.Drops[packet.Malformed] += d.Malformed
	return s
}

// String implements Uplink.
func (t *Tun) String() string {
	return fmt.Sprintf("tun %s for %s: offloads %s; the kernel routes, cuts and refuses by MTU, and is a hop of its own (TTL)", t.name, t.addresses, t.dev.Offload())
}

// Close implements Uplink. The interface goes, and its routes with it.
func (t *Tun) Close() error {
	var err error
	t.closing.Do(func() {
		err = t.dev.Close()
		t.probes.close()
		close(t.events)
	})
	return err
}
