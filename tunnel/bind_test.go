package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/sallyport-net/sallyport/internal/mmsg"
)

// received is a datagram, and where it came from.
type received struct {
	data []byte
	from conn.Endpoint
}

// listen opens a bind and delivers what arrives until the test ends.
func listen(t *testing.T) (b *bind, port uint16, arrived chan received) {
	t.Helper()
	b = new(bind)
	receive, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	arrived = make(chan received, 4*conn.IdealBatchSize)
	ended := make(chan error, len(receive))
	for _, f := range receive {
		go func() { ended <- pass(f, arrived) }()
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		for range receive {
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("a receiver ended with %v, want net.ErrClosed", err)
			}
		}
	})
	return b, port, arrived
}

// pass calls a receiver until it fails.
func pass(f conn.ReceiveFunc, to chan<- received) error {
	bufs, sizes, eps := make([][]byte, conn.IdealBatchSize), make([]int, conn.IdealBatchSize), make([]conn.Endpoint, conn.IdealBatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, 65535)
	}
	for {
		n, err := f(bufs, sizes, eps)
		if err != nil {
			return err
		}
		for i := range n {
			to <- received{bytes.Clone(bufs[i][:sizes[i]]), eps[i]}
		}
	}
}

// dial connects a socket, which from then on takes datagrams of that address only.
func dial(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// A datagram is answered from the address that it was sent to, though the host
// has others that it likes better, and whether or not it came joined with more.
func TestAnswersFromTheAddressThatWasCalled(t *testing.T) {
	b, port, arrived := listen(t)
	for _, address := range []string{"127.0.0.1", "127.0.0.2", "127.9.9.9"} {
		for _, segment := range []int{0, 100} {
			t.Run(fmt.Sprintf("%s, segments of %d", address, segment), func(t *testing.T) {
				c := dial(t, netip.AddrPortFrom(netip.MustParseAddr(address), port))
				want := bytes.Repeat([]byte("0123456789"), 35)
				pieces := 1
				var control []byte
				if segment > 0 {
					pieces = (len(want) + segment - 1) / segment
					control = mmsg.AppendSegment(make([]byte, 0, mmsg.ControlSize), segment)
				}
				if _, _, err := c.WriteMsgUDP(want, control, nil); err != nil {
					t.Fatal(err)
				}
				var got []byte
				var from conn.Endpoint
				for range pieces {
					r := <-arrived
					got, from = append(got, r.data...), r.from
					if from.SrcIP().String() != address {
						t.Errorf("called at %v, want %s", from.SrcIP(), address)
					}
				}
				if !bytes.Equal(got, want) {
					t.Errorf("got %q", got)
				}
				if err := b.Send([][]byte{[]byte("answer")}, from); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 64)
				if n, err := c.Read(buf); err != nil || string(buf[:n]) != "answer" {
					t.Errorf("answered with %q, %v", buf[:n], err)
				}
			})
		}
	}
}

// All of a batch arrives in order, of whatever sizes.
func TestBatches(t *testing.T) {
	from, _, _ := listen(t)
	_, port, arrived := listen(t)
	for _, address := range []string{"127.0.0.1", "::1"} {
		to, err := from.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(address), port).String())
		if err != nil {
			t.Fatal(err)
		}
		var want [][]byte
		for i := range conn.IdealBatchSize {
			// Runs of one size, some ended by a shorter one, some by a longer one.
			size := []int{1400, 1400, 1400, 90, 32, 32, 700, 1452}[i%8]
			if i < maxSegments+6 { // more than the kernel cuts at once
				size = 1300
			}
			want = append(want, bytes.Repeat([]byte{byte(i)}, size))
		}
		err = from.Send(want, to)
		if address == "::1" && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.ENETUNREACH)) {
			t.Logf("NOT RUN: no IPv6 here: %v", err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for i := range want {
			if r := <-arrived; !bytes.Equal(r.data, want[i]) {
				t.Fatalf("%s: datagram %d has %d bytes of %v, want %d", address, i, len(r.data), r.data[0], len(want[i]))
			}
		}
	}
}

// A local address that the host has lost is not insisted on.
func TestLostSource(t *testing.T) {
	b, _, _ := listen(t)
	_, port, arrived := listen(t)
	to := newEndpoint(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), source{addr: netip.MustParseAddr("192.0.2.99")})
	if err := b.Send([][]byte{{1, 2}, {3, 4}, {5}}, to); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\x01\x02", "\x03\x04", "\x05"} {
		if r := <-arrived; string(r.data) != want {
			t.Errorf("got %q, want %q", r.data, want)
		}
	}
	if to.SrcIP().IsValid() {
		t.Errorf("still sends from %v", to.SrcIP())
	}
}

func TestBindRefuses(t *testing.T) {
	b, _, _ := listen(t)
	if _, _, err := b.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("opened twice: %v", err)
	}
	if err := b.Send(nil, &conn.StdNetEndpoint{}); !errors.Is(err, conn.ErrWrongEndpointType) {
		t.Errorf("another bind's endpoint: %v", err)
	}
	if _, err := b.ParseEndpoint("example:1"); err == nil {
		t.Error("a name passed for an address")
	}
	closed := new(bind)
	to := newEndpoint(netip.MustParseAddrPort("127.0.0.1:9"), source{})
	if err := closed.Send([][]byte{{1}}, to); !errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Errorf("sent by what is closed: %v", err)
	}
}

// The link of a local address is kept where the address means nothing without it.
func TestSourceOf(t *testing.T) {
	for text, want := range map[string]uint32{"192.0.2.1": 0, "2001:db8::1": 0, "fe80::1": 3} {
		c := mmsg.Control{Local: netip.MustParseAddr(text), Link: 3}
		if got := sourceOf(&c); got != (source{c.Local, want}) {
			t.Errorf("%s: %+v", text, got)
		}
	}
}
