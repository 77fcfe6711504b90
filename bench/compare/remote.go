package compare

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// remoteAddress is where small packets go.
var remoteAddress = netip.AddrPortFrom(serverLink.Addr(), 9000)

// remoteBuffer is that of the socket, in bytes, so that the far side loses nothing.
const remoteBuffer = 64 << 20

// remote takes small packets on the server, and sends as many to where they came from.
type remote struct {
	conn     net.PacketConn
	pace     pacer
	received atomic.Uint64
	quit     chan struct{}
	done     sync.WaitGroup

	mu    sync.Mutex
	back  [flows]net.Addr // where each flow comes from
	known int
}

func newRemote(n *netlab.Namespace) (*remote, error) {
	c, err := n.ListenPacket("udp4", remoteAddress.String())
	if err != nil {
		return nil, fmt.Errorf("listen for small packets: %w", err)
	}
	r := &remote{conn: c, quit: make(chan struct{})}
	r.pace.woken = make(chan struct{}, 1)
	if err := r.enlarge(); err != nil {
		_ = c.Close()
		return nil, err
	}
	r.done.Go(r.receive)
	r.done.Go(r.send)
	return r, nil
}

// enlarge lets much wait in the socket, and take what the kernel joined as it is.
func (r *remote) enlarge() error {
	raw, err := r.conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, remoteBuffer),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, remoteBuffer),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1))
	})
	if err = errors.Join(cerr, err); err != nil {
		return fmt.Errorf("enlarge the server's socket: %w", err)
	}
	return nil
}

const (
	remoteBatch = 64
	payload     = smallSize - smallHeader
)

// receive counts until the socket is closed.
func (r *remote) receive() {
	messages := make([]ipv4.Message, remoteBatch)
	for i := range messages {
		messages[i].Buffers = [][]byte{make([]byte, 1<<16)}
	}
	p := ipv4.NewPacketConn(r.conn)
	for {
		n, err := p.ReadBatch(messages, 0)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the gateway's ICMP errors are no packets
		}
		packets := 0
		for _, m := range messages[:n] {
			packets += m.N / payload
			if m.N >= payload {
				r.learn(m.Buffers[0], m.Addr)
			}
		}
		r.received.Add(uint64(packets))
	}
}

// learn keeps where a flow comes from, by the first packet since forget.
func (r *remote) learn(b []byte, from net.Addr) {
	flow := int(b[0])<<8 | int(b[1])
	r.mu.Lock()
	defer r.mu.Unlock()
	if flow < flows && r.back[flow] == nil {
		r.back[flow] = from
		r.known++
	}
}

func (r *remote) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.back, r.known = [flows]net.Addr{}, 0
}

// knows is how many flows came since forget.
func (r *remote) knows() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known
}

// send sends at the pace until the remote is closed.
func (r *remote) send() {
	messages := make([]ipv4.Message, remoteBatch)
	for i := range messages {
		messages[i].Buffers = [][]byte{make([]byte, payload)}
	}
	p := ipv4.NewPacketConn(r.conn)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		first, n, wait := r.pace.take(time.Now(), remoteBatch)
		if n > 0 {
			r.mu.Lock()
			for i := range n {
				messages[i].Addr = r.back[(first+uint64(i))%flows]
			}
			r.mu.Unlock()
			for sent := 0; sent < n; {
				k, err := p.WriteBatch(messages[sent:n], 0)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				sent += max(k, 1) // an ICMP error of before costs one
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-r.pace.woken:
		case <-r.quit:
			return
		}
	}
}

func (r *remote) close() {
	close(r.quit)
	_ = r.conn.Close()
	r.done.Wait()
}
