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
	"runtime"
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
		loss bool
	}{
		{"clean", 1420, 8 << 20, false},
		{"small MTU", 576, 1 << 20, false},
		{"loss", 1420, 1 << 20, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cc, sc := clientConfig(), serverConfig()
			cc.MTU, sc.MTU = tc.mtu, tc.mtu
			var lose func([]byte) bool
			if tc.loss {
				l := newLosses(uint32(tc.size))
				lose = l.lose
				defer l.check(t)
			}
			n := connect(t, cc, sc, lose)
			c, s := dialPair(t, n)
			exchange(t, c, s, tc.size)
			// A timeout may be needless where the scheduler is slower than it; a queue
			// that drops makes far more of them.
			all := uint64(n.out.packets.Load() + n.back.packets.Load())
			if got := n.client.Stats().Retransmits + n.server.Stats().Retransmits; !tc.loss && got > 2+all/20 {
				t.Errorf("%d retransmits among %d packets on a wire without loss", got, all)
			}
		})
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

func TestDeadlines(t *testing.T) {
	n := connect(t, clientConfig(), serverConfig(), nil)
	c, s := dialPair(t, n)
	for _, d := range []time.Duration{-time.Second, 5 * time.Millisecond} {
		c.SetReadDeadline(time.Now().Add(d))
		_, err := c.Read(make([]byte, 1))
		var timeout net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("read: %v, want a deadline error", err)
		}
	}
	// A deadline that was moved before it passed does nothing.
	c.SetReadDeadline(time.Now().Add(time.Minute))
	read := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Errorf("read: %v", err)
	}
	// Nobody reads at the other end: the writer stops when all buffers are full.
	large := make([]byte, 64<<20)
	c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := c.Write(large); !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
		t.Errorf("wrote %d, %v; want a deadline error", n, err)
	}
}

// What the stack does not take in time is told, and the rest goes on behind it.
func TestWriteWithin(t *testing.T) {
	n := connect(t, clientConfig(), serverConfig(), nil)
	c, s := dialPair(t, n)
	// Nobody reads at the other end: it stops when all buffers are full.
	large := pattern(1, 32<<20)
	taken, err := c.WriteWithin(large, time.Millisecond)
	if err != nil || taken == 0 || taken == len(large) {
		t.Fatalf("wrote %d, %v; want a part", taken, err)
	}
	all := large[:taken+1000]
	read := make(chan error, 1)
	got := make([]byte, len(all))
	go func() {
		_, err := io.ReadFull(s, got)
		read <- err
	}()
	for rest := all[taken:]; len(rest) > 0; {
		m, err := c.WriteWithin(rest, time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		rest = rest[m:]
	}
	if err := <-read; err != nil || !bytes.Equal(got, all) {
		t.Errorf("what came is not what was written, %v", err)
	}
	c.Close()
	if _, err := c.WriteWithin(all, time.Millisecond); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestCloseUnblocks closes a connection under a reader, and a device under everybody.
func TestCloseUnblocks(t *testing.T) {
	n := connect(t, clientConfig(), serverConfig(), nil)
	c, s := dialPair(t, n)
	l, err := n.server.ListenTCP(netip.AddrPortFrom(serverAddr, 0))
	if err != nil {
		t.Fatal(err)
	}
	u, err := n.server.ListenUDP(netip.AddrPortFrom(serverAddr, 0))
	if err != nil {
		t.Fatal(err)
	}
	blocked := map[string]func() error{
		"read of the closed end": func() error { _, err := c.Read(make([]byte, 1)); return err },
		"read":                   func() error { _, err := s.Read(make([]byte, 1)); return err },
		"accept":                 func() error { _, err := l.Accept(); return err },
		"UDP read":               func() error { _, err := u.Read(make([]byte, 1)); return err },
	}
	results := make(map[string]chan error)
	for name, f := range blocked {
		result := make(chan error, 1)
		results[name] = result
		go func() { result <- f() }()
	}
	c.Close()
	if err := <-results["read of the closed end"]; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read of the closed end: %v", err)
	}
	if err := <-results["read"]; err != io.EOF {
		t.Errorf("read after the other end closed: %v, want EOF", err)
	}
	n.server.Close()
	for _, name := range []string{"accept", "UDP read"} {
		if err := <-results[name]; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after the device closed: %v", err)
	}
}

func TestDial(t *testing.T) {
	n := connect(t, clientConfig(), serverConfig(), nil)
	local := netip.AddrPortFrom(clientAddr, 0)
	if _, err := n.client.DialTCP(testContext(t), local, netip.AddrPortFrom(serverAddr, 81)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial of a closed port: %v", err)
	}
	if _, err := n.client.DialTCP(testContext(t), netip.AddrPortFrom(serverAddr, 0), netip.AddrPortFrom(serverAddr, 81)); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("dial from another's address: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(5*time.Millisecond, cancel)
	if _, err := n.client.DialTCP(ctx, local, netip.MustParseAddrPort("203.0.113.1:80")); !errors.Is(err, context.Canceled) {
		t.Errorf("dial into nothing: %v", err)
	}
	if _, err := n.server.ListenTCP(netip.AddrPortFrom(clientAddr, 80)); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("listen on another's address: %v", err)
	}
	l, err := n.server.ListenTCP(netip.AddrPortFrom(serverAddr, 82))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := n.server.ListenTCP(netip.AddrPortFrom(serverAddr, 82)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listen twice: %v", err)
	}
}

// TestDialEndsWithDevice closes the device while a dial waits.
func TestDialEndsWithDevice(t *testing.T) {
	d := open(t, clientConfig())
	r := newReader(t, d)
	dialled := make(chan error)
	go func() {
		_, err := d.DialTCP(context.Background(), netip.AddrPortFrom(clientAddr, 0), anywhere)
		dialled <- err
	}()
	r.wait() // the SYN
	d.Close()
	if err := <-dialled; !errors.Is(err, os.ErrClosed) {
		t.Errorf("dial: %v", err)
	}
}

// TestBackPressure stops reading a device while many connections send: the queue
// fills, the senders wait, and nothing is lost when reading goes on.
func TestBackPressure(t *testing.T) {
	cc, sc := clientConfig(), serverConfig()
	cc.Queue = BatchSize
	n := connect(t, cc, sc, nil)
	const conns, size = 30, 200_000 // ten segments of each at first: more than the queue holds
	data := pattern(3, size)
	var clients, servers []*Conn
	for range conns {
		c, s := dialPair(t, n)
		clients, servers = append(clients, c), append(servers, s)
	}
	n.out.pause.Lock()
	var running sync.WaitGroup
	for _, c := range clients {
		running.Go(func() {
			if _, err := c.Write(data); err != nil {
				t.Errorf("write: %v", err)
			}
			c.CloseWrite()
		})
	}
	for deadline := time.Now().Add(patience); n.client.Queued() < BatchSize; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d packets queued, want %d", n.client.Queued(), BatchSize)
		}
	}
	n.out.pause.Unlock()
	for _, s := range servers {
		running.Go(func() {
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("received %d of %d bytes: %v", len(got), size, err)
			}
		})
	}
	running.Wait()
	if st := n.client.Stats(); st.RepliesDropped > 0 {
		t.Errorf("stats %+v", st)
	}
}

// TestCloseWhileBlocked closes a device whose queue is full of what senders wait to add to.
func TestCloseWhileBlocked(t *testing.T) {
	cc, sc := clientConfig(), serverConfig()
	cc.Queue = BatchSize
	n := connect(t, cc, sc, nil)
	var clients []*Conn
	for range 30 {
		c, _ := dialPair(t, n)
		clients = append(clients, c)
	}
	n.out.pause.Lock()
	defer n.out.pause.Unlock()
	ended := make(chan error)
	for _, c := range clients {
		go func() {
			_, err := c.Write(make([]byte, 32<<20))
			ended <- err
		}()
	}
	for deadline := time.Now().Add(patience); n.client.Queued() < BatchSize; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d packets queued, want %d", n.client.Queued(), BatchSize)
		}
	}
	n.client.Close()
	for range clients {
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v, want net.ErrClosed", err)
		}
	}
}
