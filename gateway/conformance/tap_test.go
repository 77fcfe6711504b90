package conformance

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// kept is how many packets a tap keeps.
const kept = 1 << 14

// sniffed is a packet as it was on the link.
type sniffed struct {
	// out: the machine sent it by this link. Of a TUN it is the way to the
	// descriptor; what the descriptor's owner wrote comes in.
	out bool
	b   []byte
}

// tap keeps whole packets of a link, the newest ones. The kernel loses none of them
// unnoticed.
type tap struct {
	name string
	file *os.File
	raw  syscall.RawConn
	done chan struct{}
	from [2]netip.Addr // of the oracle; zero while there is none

	mu      sync.Mutex
	buf     [65535]byte
	kept    []sniffed
	seen    int
	lost    uint64
	leaks   []string // the first few
	changed chan struct{}
}

// watch begins to capture on a link, until the test ends.
func (g *ground) watch(n *netlab.Namespace, link string) *tap {
	g.t.Helper()
	t := &tap{name: link + " of " + n.String(), done: make(chan struct{}), changed: make(chan struct{})}
	err := n.Do(func() (err error) {
		t.file, err = openTap(link)
		return err
	})
	if err != nil {
		g.t.Fatalf("capture on %s: %v", t.name, err)
	}
	if t.raw, err = t.file.SyscallConn(); err != nil {
		g.t.Fatal(err)
	}
	go t.follow()
	g.t.Cleanup(t.stop)
	return t
}

func openTap(link string) (*os.File, error) {
	fd, err := packetSocket(link, unix.ETH_P_ALL)
	if err != nil {
		return nil, err
	}
	const room = 64 << 20
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room)
	}
	return os.NewFile(uintptr(fd), "capture on "+link), nil
}

// packetSocket opens a packet socket on a link of the thread's namespace.
func packetSocket(link string, protocol uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	req, err := unix.NewIfreq(link)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(protocol), Ifindex: int(req.Uint32())})
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// htons is network byte order.
func htons(v uint16) uint16 { return v<<8 | v>>8 }

// follow takes in packets whenever the kernel says that there are some.
func (t *tap) follow() {
	defer close(t.done)
	_ = t.raw.Read(func(fd uintptr) bool { // fails when the file is closed, and not before
		t.mu.Lock()
		defer t.mu.Unlock()
		t.takeIn(int(fd))
		return false
	})
}

// takeIn takes what the kernel holds. The caller holds the lock.
func (t *tap) takeIn(fd int) {
	before := t.seen
	for {
		n, from, err := unix.Recvfrom(fd, t.buf[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			break
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Protocol == htons(unix.ETH_P_IP) {
			t.add(sniffed{ll.Pkttype == unix.PACKET_OUTGOING, t.buf[:n]})
		}
	}
	if stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		t.lost += uint64(stats.Drops)
	}
	if t.seen != before {
		close(t.changed)
		t.changed = make(chan struct{})
	}
}

// catchUp takes in what has passed by now, and leaves the lock held.
func (t *tap) catchUp() {
	t.mu.Lock()
	_ = t.raw.Control(func(fd uintptr) { t.takeIn(int(fd)) }) // fails when the tap is closed
}

// add keeps a packet. The caller holds the lock.
func (t *tap) add(s sniffed) {
	if t.from[0].IsValid() && !s.out {
		if err := leak(s.b, t.from); err != nil && len(t.leaks) < 20 {
			t.leaks = append(t.leaks, fmt.Sprintf("%v: %x", err, s.b[:min(len(s.b), 96)]))
		}
	}
	s.b = slices.Clone(s.b)
	if len(t.kept) < kept {
		t.kept = append(t.kept, s)
	} else {
		t.kept[t.seen%kept] = s
	}
	t.seen++
}

// mark says how many packets were seen: with since, those that come later.
func (t *tap) mark() int {
	t.catchUp()
	defer t.mu.Unlock()
	return t.seen
}

// since returns the packets seen after mark, without those that are too old.
func (t *tap) since(mark int) []sniffed {
	t.catchUp()
	defer t.mu.Unlock()
	var list []sniffed
	for i := max(mark, t.seen-len(t.kept)); i < t.seen; i++ {
		list = append(list, t.kept[i%kept])
	}
	return list
}

// await waits for a packet after mark that match is true of.
func (t *tap) await(ctx context.Context, mark int, match func(*packet.Packet, sniffed) bool) (sniffed, error) {
	for {
		t.mu.Lock()
		changed := t.changed
		t.mu.Unlock()
		for _, s := range t.since(mark) {
			var p packet.Packet
			if packet.Parse(&p, slices.Clone(s.b)) == packet.Pass && match(&p, s) {
				return s, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return sniffed{}, fmt.Errorf("no such packet on %s: %w", t.name, context.Cause(ctx))
		}
	}
}

// stop ends the capture.
func (t *tap) stop() {
	_ = t.file.Close()
	<-t.done
}

// judge makes the tap an oracle: everything that comes in must look as though it
// had been sent by one of the two dedicated IPs. The function that it returns says
// what did not, and whether all was seen.
func (t *tap) judge(pair [2]netip.Addr) func() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.from = pair
	return func() error {
		t.catchUp()
		defer t.mu.Unlock()
		if len(t.leaks) > 0 {
			return fmt.Errorf("%d packets must not have left (A-18), the first on %s: %s", len(t.leaks), t.name, t.leaks[0])
		}
		if t.lost > 0 {
			return fmt.Errorf("the capture on %s proves nothing: the kernel dropped %d packets", t.name, t.lost)
		}
		return nil
	}
}

// leak says why a packet must not leave a NAT with two addresses. It reads the
// bytes by itself: the code under test must not be its own judge.
func leak(b []byte, pair [2]netip.Addr) error {
	if len(b) < 20 || b[0]>>4 != 4 {
		return errors.New("not IPv4")
	}
	head := int(b[0]&15) * 4
	if head < 20 || len(b) < head || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
		return errors.New("lengths of the IP header")
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	switch {
	case sum(b[:head]) != 0:
		return errors.New("checksum of the IP header")
	case src != pair[0] && src != pair[1]:
		return fmt.Errorf("source %v", src)
	case b[8] == 0:
		return errors.New("TTL 0")
	case dst.IsPrivate() || dst.IsLoopback() || dst.IsMulticast() || dst.IsLinkLocalUnicast() || dst.IsUnspecified() || dst.As4()[0] >= 240:
		return fmt.Errorf("destination %v (A-15)", dst)
	}
	for o := b[20:head]; len(o) > 0; {
		switch {
		case o[0] == 0:
			o = nil
		case o[0] == 1:
			o = o[1:]
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return errors.New("broken options")
		case o[0] == 131 || o[0] == 137:
			return errors.New("source route (R-5)")
		default:
			if inside(o[2:o[1]]) {
				return errors.New("an option tells an inner address")
			}
			o = o[o[1]:]
		}
	}
	return leakTransport(b, head, pair)
}

// inside says whether bytes hold an address of the networks.
func inside(b []byte) bool {
	for i := 0; i+4 <= len(b); i++ {
		if inner16.Contains(netip.AddrFrom4([4]byte(b[i:]))) {
			return true
		}
	}
	return false
}

func leakTransport(b []byte, head int, pair [2]netip.Addr) error {
	fragment := binary.BigEndian.Uint16(b[6:])&0x3fff != 0
	m := b[head:]
	switch b[9] {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		return nil
	case unix.IPPROTO_ICMP:
	default:
		return fmt.Errorf("protocol %d", b[9])
	}
	if fragment || len(m) < 8 {
		return errors.New("ICMP in pieces")
	}
	switch m[0] {
	case 0, 8:
		return nil
	case 3, 11, 12:
	default:
		return fmt.Errorf("ICMP type %d", m[0])
	}
	q := m[8:]
	if len(q) < 28 || sum(m) != 0 || sum(q[:min(int(q[0]&15)*4, len(q))]) != 0 {
		return errors.New("broken ICMP error")
	}
	if to := netip.AddrFrom4([4]byte(q[16:])); to != pair[0] && to != pair[1] {
		return fmt.Errorf("an ICMP error about a packet to %v", to)
	}
	if inside(q[12:20]) {
		return errors.New("an ICMP error quotes an inner address")
	}
	return nil
}

// sum is the Internet checksum: 0 over bytes that hold their own.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// patience is how long a test waits for what must come. It is long because all packages
// may be tested at once on a small machine; only a failure takes it whole.
const patience = 30 * time.Second

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
