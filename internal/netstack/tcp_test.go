package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pattern is repeatable noise.
func pattern(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	r.Read(b)
	return b
}

// exchange sends data both ways at once with half-close and compares what arrives.
func exchange(t *testing.T, a, b *Conn, size int) {
	t.Helper()
	dataA, dataB := pattern(1, size), pattern(2, size)
	var running sync.WaitGroup
	send := func(c *Conn, data []byte) {
		running.Go(func() {
			if n, err := c.ReadFrom(bytes.NewReader(data)); err != nil || n != int64(len(data)) {
				t.Errorf("sent %d of %d: %v", n, len(data), err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Errorf("close write: %v", err)
			}
		})
	}
	receive := func(c *Conn, want []byte) {
		running.Go(func() {
			h := sha256.New()
			n, err := c.WriteTo(h)
			if err != nil || n != int64(len(want)) {
				t.Errorf("received %d of %d: %v", n, len(want), err)
			}
			if sum := sha256.Sum256(want); !bytes.Equal(h.Sum(nil), sum[:]) {
				t.Error("received other bytes than were sent")
			}
		})
	}
	send(a, dataA)
	send(b, dataB)
	receive(a, dataB)
	receive(b, dataA)
	running.Wait()
}

func TestBulkBothWays(t *testing.T) {
	for _, tc := range []struct {
		name string
		mtu  int
		size int
		loss float64
	}{
		{"clean", 1420, 8 << 20, 0},
		{"small MTU", 576, 1 << 20, 0},
		{"loss", 1420, 1 << 20, 0.01},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cc, sc := clientConfig(), serverConfig()
			cc.MTU, sc.MTU = tc.mtu, tc.mtu
			var lose func([]byte) bool
			if tc.loss > 0 {
				lose = loss(tc.loss)
			}
			n := connect(t, cc, sc, lose)
			c, s := dialPair(t, n)
			exchange(t, c, s, tc.size)
			// A tail probe may be needless where the scheduler is slower than the round trip.
			all := uint64(n.out.packets.Load() + n.back.packets.Load())
			if got := n.client.Stats().Retransmits + n.server.Stats().Retransmits; tc.loss == 0 && got > 2+all/500 {
				t.Errorf("%d retransmits among %d packets on a wire without loss", got, all)
			}
		})
	}
}

// handler answers requests with a function.
type handler func(*Request)

func (h handler) HandleTCP(r *Request) { h(r) }

func interceptConfig(h handler) Config { return Config{Intercept: true, Handler: h} }

func TestInterceptAnyAddress(t *testing.T) {
	accepted := make(chan *Conn, 1)
	sources := make(chan netip.AddrPort, 1)
	n := connect(t, clientConfig(), interceptConfig(func(r *Request) {
		sources <- r.Source()
		c, err := r.Accept(context.Background())
		if err != nil {
			t.Errorf("accept: %v", err)
			close(accepted)
			return
		}
		accepted <- c
	}), nil)
	for _, remote := range []string{"203.0.113.7:443", "127.0.0.9:8080"} {
		want := netip.MustParseAddrPort(remote)
		local := clientAddr
		if want.Addr().IsLoopback() {
			continue // a stack without interception refuses loopback sources; see TestInterceptLoopback
		}
		c, err := n.client.DialTCP(testContext(t), netip.AddrPortFrom(local, 0), want)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := <-sources; got != c.LocalAddrPort() {
			t.Errorf("source %v, want %v", got, c.LocalAddrPort())
		}
		s := <-accepted
		if s == nil {
			t.FailNow()
		}
		defer s.Close()
		if s.LocalAddrPort() != want {
			t.Errorf("accepted for %v, want %v", s.LocalAddrPort(), want)
		}
		exchange(t, c, s, 100_000)
	}
}

func TestRequestReset(t *testing.T) {
	n := connect(t, clientConfig(), interceptConfig(func(r *Request) { r.Reset() }), nil)
	_, err := n.client.DialTCP(testContext(t), netip.AddrPortFrom(clientAddr, 0), netip.MustParseAddrPort("203.0.113.7:443"))
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v, want ECONNREFUSED", err)
	}
}

func TestResetTellsFromFIN(t *testing.T) {
	n := connect(t, clientConfig(), serverConfig(), nil)
	c, s := dialPair(t, n)
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	s.Abort()
	for range 2 { // the reason is remembered
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read after RST: %v, want ECONNRESET", err)
		}
	}
	if _, err := c.Write([]byte("y")); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("write after RST: %v, want ECONNRESET", err)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Abort: %v, want net.ErrClosed", err)
	}
}

func TestReadDeadline(t *testing.T) {
	n := connect(t, clientConfig(), serverConfig(), nil)
	c, _ := dialPair(t, n)
	c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v, want a deadline error", err)
	}
}
