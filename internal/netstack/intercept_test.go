package netstack

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// handler answers requests with a function.
type handler func(*Request)

func (h handler) HandleTCP(r *Request) { h(r) }

func interceptConfig(h handler) Config { return Config{Intercept: true, Handler: h} }

// requests hands requests to the test, which decides them; the handler's goroutine waits for it.
func requests() (handler, <-chan *Request, func()) {
	arrived, decided := make(chan *Request), make(chan struct{})
	return func(r *Request) {
		arrived <- r
		<-decided
	}, arrived, func() { decided <- struct{}{} }
}

func TestInterceptAnyAddress(t *testing.T) {
	accepted := make(chan *Conn, 1)
	n := connect(t, clientConfig(), interceptConfig(func(r *Request) {
		c, err := r.Accept(context.Background())
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		accepted <- c
	}), nil)
	for _, remote := range []string{"203.0.113.7:443", "192.0.2.255:1", "8.8.8.8:53"} {
		want := netip.MustParseAddrPort(remote)
		c, err := n.client.DialTCP(testContext(t), netip.AddrPortFrom(clientAddr, 0), want)
		if err != nil {
			t.Fatal(err)
		}
		s := <-accepted
		if s == nil {
			t.FailNow()
		}
		if s.LocalAddrPort() != want || s.RemoteAddrPort() != c.LocalAddrPort() {
			t.Errorf("accepted %v for %v, want %v for %v", s.RemoteAddrPort(), s.LocalAddrPort(), c.LocalAddrPort(), want)
		}
		deadline := deadlineOf(t)
		c.SetDeadline(deadline)
		s.SetDeadline(deadline)
		exchange(t, c, s, 100_000)
		c.Close()
		s.Close()
	}
}

func TestRequestReset(t *testing.T) {
	n := connect(t, clientConfig(), interceptConfig(func(r *Request) {
		r.Reset()
		r.Reset() // decided once
		if _, err := r.Accept(context.Background()); !errors.Is(err, errDecided) {
			t.Errorf("accept after reset: %v", err)
		}
	}), nil)
	_, err := n.client.DialTCP(testContext(t), netip.AddrPortFrom(clientAddr, 0), anywhere)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v, want ECONNREFUSED", err)
	}
}

// syn is a connection request made by hand.
var syn = raw{
	src: netip.AddrPortFrom(clientAddr, 5000), dst: anywhere, flags: header.TCPFlagSyn, seq: 1000, window: 1 << 15,
	options: []byte{header.TCPOptionMSS, 4, 1360 >> 8, 1360 & 0xff},
}

// TestAnswerWaitsForAccept sees no answer until the handler accepts, one request for repeated
// SYNs, and a new one after a drop.
func TestAnswerWaitsForAccept(t *testing.T) {
	h, arrived, decided := requests()
	d := open(t, interceptConfig(h))
	out := newReader(t, d)
	write(t, d, syn.tcp(), syn.tcp())
	r := <-arrived
	if r.Source() != syn.src || r.Destination() != syn.dst {
		t.Errorf("request of %v to %v", r.Source(), r.Destination())
	}
	write(t, d, syn.tcp())
	if b := out.next(); b != nil {
		t.Errorf("answered before Accept: %x", b)
	}
	r.Drop()
	decided()
	if b := out.next(); b != nil {
		t.Errorf("answered after Drop: %x", b)
	}

	write(t, d, syn.tcp())
	r = <-arrived
	type result struct {
		c   *Conn
		err error
	}
	accepted := make(chan result)
	go func() {
		c, err := r.Accept(testContext(t))
		accepted <- result{c, err}
	}()
	ip, tcp := headers(t, out.wait())
	if tcp.Flags() != header.TCPFlagSyn|header.TCPFlagAck || tcp.AckNumber() != syn.seq+1 ||
		addrPort(ip.SourceAddress(), tcp.SourcePort()) != syn.dst || addrPort(ip.DestinationAddress(), tcp.DestinationPort()) != syn.src {
		t.Errorf("answer %v %v", ip, tcp)
	}
	ack := raw{src: syn.src, dst: syn.dst, flags: header.TCPFlagAck, seq: syn.seq + 1, ack: tcp.SequenceNumber() + 1, window: 1 << 15}
	write(t, d, ack.tcp())
	got := <-accepted
	if got.err != nil {
		t.Fatal(got.err)
	}
	decided()
	got.c.Abort()
	if _, tcp := headers(t, out.wait()); !tcp.Flags().Contains(header.TCPFlagRst) {
		t.Errorf("after Abort: %v, want RST", tcp.Flags())
	}
}

// TestSamePortAgain has a client that closed second begin anew from the same port at once,
// while the stack still has the connection of before in TIME-WAIT.
func TestSamePortAgain(t *testing.T) {
	accepted := make(chan *Conn, 1)
	c := interceptConfig(func(r *Request) {
		conn, err := r.Accept(testContext(t))
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		accepted <- conn
	})
	c.TimeWait = time.Hour
	d := open(t, c)
	out := newReader(t, d)
	answer := func(want header.TCPFlags) header.TCP {
		t.Helper()
		_, tcp := headers(t, out.wait())
		if tcp.Flags() != want {
			t.Fatalf("the stack sends %v, want %v", tcp.Flags(), want)
		}
		return tcp
	}
	const synAck, finAck, ack = header.TCPFlagSyn | header.TCPFlagAck, header.TCPFlagFin | header.TCPFlagAck, header.TCPFlagAck
	for i := range uint32(3) {
		client := raw{src: syn.src, dst: syn.dst, window: 1 << 15, seq: syn.seq + 1 + i*100_000}
		send := func(flags header.TCPFlags) {
			client.flags = flags
			write(t, d, client.tcp())
		}
		again := syn
		again.seq = client.seq - 1
		write(t, d, again.tcp())
		if i > 0 {
			// Of the connection of before; a client that waits for SYN/ACK ignores it.
			if tcp := answer(header.TCPFlagRst | ack); tcp.AckNumber() == client.seq {
				t.Error("the reset of before would end the new connection")
			}
		}
		client.ack = answer(synAck).SequenceNumber() + 1
		send(ack)
		conn := <-accepted
		if conn == nil {
			t.FailNow()
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		client.ack = answer(finAck).SequenceNumber() + 1
		send(finAck)
		answer(ack)
	}
}

// TestAcceptEnds accepts a client that has vanished: the caller's context, the handshake
// timeout and the device's end each end the wait.
func TestAcceptEnds(t *testing.T) {
	for _, tc := range []struct {
		name    string
		timeout time.Duration
		cancel  func(*Device, context.CancelFunc)
		want    error
	}{
		{"context", 0, func(_ *Device, cancel context.CancelFunc) { cancel() }, context.Canceled},
		{"timeout", 10 * time.Millisecond, nil, context.DeadlineExceeded},
		{"device", 0, func(d *Device, _ context.CancelFunc) { d.Close() }, os.ErrClosed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			accepted := make(chan error, 1)
			c := interceptConfig(func(r *Request) {
				_, err := r.Accept(ctx)
				accepted <- err
			})
			c.HandshakeTimeout = tc.timeout
			d := open(t, c)
			out := newReader(t, d)
			write(t, d, syn.tcp())
			out.wait() // SYN/ACK
			if tc.cancel != nil {
				tc.cancel(d, cancel)
			}
			if err := <-accepted; !errors.Is(err, tc.want) {
				t.Errorf("accept: %v, want %v", err, tc.want)
			}
		})
	}
}

func TestAcceptOfCancelledContext(t *testing.T) {
	accepted := make(chan error, 1)
	d := open(t, interceptConfig(func(r *Request) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := r.Accept(ctx)
		accepted <- err
	}))
	write(t, d, syn.tcp())
	if err := <-accepted; !errors.Is(err, context.Canceled) {
		t.Errorf("accept: %v", err)
	}
}

// TestMaxPending drops SYNs beyond the limit, and takes them again when there is room.
func TestMaxPending(t *testing.T) {
	h, arrived, decided := requests()
	c := interceptConfig(h)
	c.MaxPending = 1
	d := open(t, c)
	write(t, d, syn.tcp())
	first := <-arrived
	other := syn
	other.src = netip.AddrPortFrom(clientAddr, 5001)
	write(t, d, other.tcp())
	if st := d.Stats(); st.PendingDropped != 1 {
		t.Errorf("stats %+v", st)
	}
	first.Drop()
	decided()
	write(t, d, other.tcp())
	if r := <-arrived; r.Source() != other.src {
		t.Errorf("request of %v", r.Source())
	}
	decided()
}

// TestUnknownSegments sends what belongs to no connection: a reset comes back with the
// numbers of RFC 9293 section 3.5.2, but never for a reset.
func TestUnknownSegments(t *testing.T) {
	d := open(t, interceptConfig(func(r *Request) { t.Errorf("request of %v", r.Source()) }))
	out := newReader(t, d)
	seg := raw{src: syn.src, dst: anywhere, flags: header.TCPFlagAck, seq: 77, ack: 4711, payload: []byte("late")}
	write(t, d, seg.tcp())
	ip, tcp := headers(t, out.wait())
	if tcp.Flags() != header.TCPFlagRst || tcp.SequenceNumber() != 4711 || ip.SourceAddress() != address(anywhere.Addr()) {
		t.Errorf("answer %v, sequence %d from %v", tcp.Flags(), tcp.SequenceNumber(), ip.SourceAddress())
	}
	seg.flags = header.TCPFlagFin
	write(t, d, seg.tcp())
	if _, tcp := headers(t, out.wait()); tcp.Flags() != header.TCPFlagRst|header.TCPFlagAck || tcp.AckNumber() != 77+4+1 {
		t.Errorf("answer %v, acknowledgement %d", tcp.Flags(), tcp.AckNumber())
	}
	seg.flags = header.TCPFlagRst
	write(t, d, seg.tcp())
	if b := out.next(); b != nil {
		t.Errorf("a reset was answered: %x", b)
	}
}

// TestRepliesNeverBlockWrite fills the queue and its reserve with resets while nobody reads.
func TestRepliesNeverBlockWrite(t *testing.T) {
	c := interceptConfig(func(*Request) {})
	c.Queue = BatchSize
	d := open(t, c)
	seg := raw{src: syn.src, dst: anywhere, flags: header.TCPFlagAck}.tcp()
	const n = 2 * BatchSize
	for range n {
		write(t, d, seg)
	}
	if st := d.Stats(); st.Queued != BatchSize+BatchSize/4 || st.RepliesDropped != uint64(n-st.Queued) {
		t.Errorf("stats %+v", st)
	}
}

// TestNotIntercepted sends what an intercepting stack would answer in another's name.
func TestNotIntercepted(t *testing.T) {
	d := open(t, interceptConfig(func(r *Request) { r.Drop() }))
	out := newReader(t, d)
	r := raw{src: syn.src, dst: anywhere, payload: []byte{0, 1, 0, 1}}
	write(t, d, r.udp(), r.icmp(header.ICMPv4Echo, 0), r.icmp(header.ICMPv4Timestamp, 0), r.ip(47, make([]byte, 20)))
	write(t, d, r.icmp(header.ICMPv4DstUnreachable, header.ICMPv4PortUnreachable)) // about nothing that exists
	if b := out.next(); b != nil {
		t.Errorf("answered %x", b)
	}
	if st := d.Stats(); st.NotIntercepted != 4 || st.PacketsIn != 1 {
		t.Errorf("stats %+v", st)
	}
}

// TestInterceptLoopback intercepts between loopback addresses, of which a region for tests is made.
func TestInterceptLoopback(t *testing.T) {
	h, arrived, decided := requests()
	d := open(t, interceptConfig(h))
	out := newReader(t, d)
	r := syn
	r.src, r.dst = netip.MustParseAddrPort("127.0.0.2:5000"), netip.MustParseAddrPort("127.0.0.9:80")
	write(t, d, r.tcp())
	req := <-arrived
	if req.Destination() != r.dst {
		t.Errorf("request to %v", req.Destination())
	}
	req.Reset()
	decided()
	ip, tcp := headers(t, out.wait())
	if addrPort(ip.SourceAddress(), tcp.SourcePort()) != r.dst || !tcp.Flags().Contains(header.TCPFlagRst) {
		t.Errorf("answer %v from %v", tcp.Flags(), ip.SourceAddress())
	}
}

// TestPathMTU narrows the way to the client: an ICMP error about a segment makes the stack send smaller ones.
func TestPathMTU(t *testing.T) {
	const narrow = 900
	accepted := make(chan *Conn, 1)
	var server atomic.Pointer[Device]
	n := connect(t, clientConfig(), interceptConfig(func(r *Request) {
		c, _ := r.Accept(context.Background())
		accepted <- c
	}), func(b []byte) bool {
		ip := header.IPv4(b)
		if len(b) <= narrow || ip.SourceAddress() != address(anywhere.Addr()) {
			return false
		}
		quote := append([]byte{0, 0, narrow >> 8, narrow & 0xff}, b[:28]...)
		e := raw{src: netip.MustParseAddrPort("192.0.2.77:0"), dst: anywhere, payload: quote}.icmp(header.ICMPv4DstUnreachable, header.ICMPv4FragmentationNeeded)
		// The pump reads: it must not write to the device that it reads from.
		go server.Load().Write([][]byte{e}, 0)
		return true
	})
	server.Store(n.server)
	c, err := n.client.DialTCP(testContext(t), netip.AddrPortFrom(clientAddr, 0), anywhere)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := <-accepted
	if s == nil {
		t.Fatal("not accepted")
	}
	defer s.Close()
	deadline := deadlineOf(t)
	c.SetDeadline(deadline)
	s.SetDeadline(deadline)
	const size = 300_000
	go func() {
		s.Write(pattern(1, size))
		s.CloseWrite()
	}()
	if got, err := io.Copy(io.Discard, c); err != nil || got != size {
		t.Errorf("received %d, %v", got, err)
	}
}

// TestOneAddress says that a stack that is every address has one, whoever is connected to: what
// a packet costs does not grow with the destinations.
func TestOneAddress(t *testing.T) {
	arrived := make(chan struct{})
	d := open(t, interceptConfig(func(r *Request) {
		defer r.Drop()
		arrived <- struct{}{}
	}))
	write(t, d, syn.tcp())
	<-arrived
	ep, err := d.stack.GetNetworkEndpoint(nicID, header.IPv4ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{syn.dst.Addr(), syn.src.Addr(), netip.MustParseAddr("8.8.8.8")} {
		got := ep.(stack.AddressableEndpoint).AcquireAssignedAddress(address(a), true, stack.NeverPrimaryEndpoint, true)
		if got == nil || got.Temporary() || got.AddressWithPrefix() != everyAddress() {
			t.Errorf("%v has an address of its own: %v", a, got)
		}
	}
}
