package netlab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// Bounds of a capture's memory.
const (
	keptPackets   = 1 << 16 // the newest packets that Packets returns
	talliedSource = 1 << 14 // the distinct sources that Sources returns
)

// Packet is what a capture keeps of a packet: its headers.
type Packet struct {
	At  time.Time // when the kernel saw it
	Out bool      // it leaves the namespace by the link, rather than arriving
	// EtherType tells IPv4 (0x0800), IPv6 (0x86dd), ARP (0x0806) and others
	// apart. The fields below are valid for IPv4 and IPv6 only.
	EtherType uint16
	Proto     uint8
	// Src and Dst have port 0 where there is none to be seen, as in fragments
	// but the first. An ICMP echo has its identifier as both ports.
	Src, Dst netip.AddrPort
	// Length in bytes from the IP header on. With segmentation offload it may
	// exceed the MTU.
	Length int
	// Fragment says that it is part of a fragmented datagram.
	Fragment bool
	TCPFlags uint8 // FIN 1, SYN 2, RST 4, PSH 8, ACK 16
	// ICMPType and ICMPCode of ICMP and ICMPv6.
	ICMPType, ICMPCode uint8
	// QuotedSrc and QuotedDst are of the packet that an ICMP error is about.
	QuotedSrc, QuotedDst netip.Addr
}

func (p Packet) String() string {
	arrow := "in "
	if p.Out {
		arrow = "out"
	}
	if !p.Src.IsValid() {
		return fmt.Sprintf("%s ethertype %#04x, %d bytes", arrow, p.EtherType, p.Length)
	}
	return fmt.Sprintf("%s %v > %v protocol %d, %d bytes, TCP flags %#02x, ICMP %d/%d", arrow, p.Src, p.Dst, p.Proto, p.Length, p.TCPFlags, p.ICMPType, p.ICMPCode)
}

// Source is a key of the tally that Sources returns.
type Source struct {
	Out  bool
	Addr netip.Addr // the zero value for what is not IP
}

// CaptureStats says how complete a capture is.
type CaptureStats struct {
	Seen      uint64 // packets read
	Lost      uint64 // packets that the kernel had no room for: they are in no list
	Forgotten uint64 // packets read, tallied, and too old for Packets
	Untallied uint64 // packets of sources beyond the bound of Sources
}

// Complete says whether the tally of sources holds every packet that passed, so
// that an empty list proves that there was none; if not, it says why.
func (s CaptureStats) Complete() error {
	if s.Lost != 0 || s.Untallied != 0 {
		return fmt.Errorf("netlab: the capture is not complete: the kernel dropped %d packets, %d came from more than %d sources", s.Lost, s.Untallied, talliedSource)
	}
	return nil
}

// Capture collects the headers of all packets on a link, in both directions.
// Its methods may be called by many goroutines. Each takes in first what the
// kernel holds, so that a packet that was sent before the call is seen by it.
type Capture struct {
	file *os.File
	done chan struct{}

	mu      sync.Mutex
	ring    *ring // nil after Close
	kept    []Packet
	next    int // where the next packet goes once kept is full
	sources map[Source]uint64
	stats   CaptureStats
	changed chan struct{} // closed and replaced when packets came
}

// Capture starts to capture on a link. Close it, or let the lab do so.
func (n *Namespace) Capture(link string) (*Capture, error) {
	c := &Capture{done: make(chan struct{}), changed: make(chan struct{}), sources: make(map[Source]uint64)}
	err := n.Do(func() (err error) {
		c.file, c.ring, err = openRing(link)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlab: capture on %s of %s: %w", link, n.name, err)
	}
	raw, err := c.file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, c.ring.close(), c.file.Close())
	}
	n.mu.Lock()
	n.captures = append(n.captures, c)
	n.mu.Unlock()
	go c.follow(raw)
	return c, nil
}

// follow empties the ring whenever the kernel says that there is something in it.
func (c *Capture) follow(raw syscall.RawConn) {
	defer close(c.done)
	_ = raw.Read(func(uintptr) bool { // fails when the file is closed, and not before
		c.mu.Lock()
		defer c.mu.Unlock()
		c.takeIn()
		return c.ring == nil
	})
}

// takeIn moves what the kernel holds into the lists. The caller holds the lock.
func (c *Capture) takeIn() {
	if c.ring == nil {
		return
	}
	before := c.stats.Seen
	for {
		p, ok := c.ring.next()
		if !ok {
			break
		}
		c.add(p)
	}
	c.stats.Lost += c.ring.lost()
	if c.stats.Seen != before {
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

func (c *Capture) add(p Packet) {
	c.stats.Seen++
	if len(c.kept) < keptPackets {
		c.kept = append(c.kept, p)
	} else {
		c.kept[c.next] = p
		c.next = (c.next + 1) % keptPackets
		c.stats.Forgotten++
	}
	s := Source{p.Out, p.Src.Addr()}
	if _, ok := c.sources[s]; !ok && len(c.sources) >= talliedSource {
		c.stats.Untallied++
		return
	}
	c.sources[s]++
}

// Packets returns the packets kept, oldest first: the newest 65,536.
func (c *Capture) Packets() []Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takeIn()
	return append(append(make([]Packet, 0, len(c.kept)), c.kept[c.next:]...), c.kept[:c.next]...)
}

// Sources returns how many packets each source address sent in each direction,
// since the start. It misses nothing if Stats().Complete() is nil.
func (c *Capture) Sources() map[Source]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takeIn()
	return maps.Clone(c.sources)
}

// Stats returns the counters as they stand.
func (c *Capture) Stats() CaptureStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takeIn()
	return c.stats
}

// Wait returns the first packet for which match is true, whether it is kept
// already or comes later. match must not call the capture.
func (c *Capture) Wait(ctx context.Context, match func(Packet) bool) (Packet, error) {
	var after uint64 // packets looked at so far
	for {
		c.mu.Lock()
		c.takeIn()
		oldest := c.stats.Seen - uint64(len(c.kept))
		for i := max(after, oldest); i < c.stats.Seen; i++ {
			if p := c.kept[(c.next+int(i-oldest))%len(c.kept)]; match(p) {
				c.mu.Unlock()
				return p, nil
			}
		}
		after = c.stats.Seen
		changed, stats, closed := c.changed, c.stats, c.ring == nil
		c.mu.Unlock()
		if closed {
			return Packet{}, fmt.Errorf("netlab: no such packet among the %d captured (%d lost): %w", stats.Seen, stats.Lost, os.ErrClosed)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Packet{}, fmt.Errorf("netlab: no such packet among the %d captured (%d lost): %w", stats.Seen, stats.Lost, context.Cause(ctx))
		}
	}
}

// Close ends the capture and wakes Wait. What was captured can still be read.
func (c *Capture) Close() error {
	c.mu.Lock()
	if c.ring == nil {
		c.mu.Unlock()
		return nil
	}
	c.takeIn()
	err := c.ring.close()
	c.ring = nil
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	err = errors.Join(err, c.file.Close())
	<-c.done
	return err
}
