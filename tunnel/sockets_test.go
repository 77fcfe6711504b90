package tunnel

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// What is said of sockets is what the kernel has, also when it was switched off, and
// when a link has refused.
func TestSocketState(t *testing.T) {
	for _, c := range []struct {
		offload  Offload
		gso, gro bool
	}{
		{Offload{}, true, true},
		{Offload{NoGSO: true}, false, true},
		{Offload{NoGRO: true}, true, false},
	} {
		b := &bind{offload: c.offload}
		if _, _, err := b.Open(0); err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		states, err := b.state()
		if err != nil || len(states) == 0 {
			t.Fatalf("%v, %v", states, err)
		}
		for _, s := range states {
			if s.GSO != c.gso || s.GRO != c.gro {
				t.Errorf("%+v: %+v (a kernel before 5.0 has neither)", c.offload, s)
			}
			if s.ReceiveBuffer <= 0 || s.ReceiveBuffer > SocketBuffer || s.SendBuffer <= 0 || s.SendBuffer > SocketBuffer {
				t.Errorf("buffers of %+v, of %d that are asked for", s, SocketBuffer)
			}
		}
		if err := b.v4.control(func(fd int) error {
			gro, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO)
			if err == nil && (gro == 1) != c.gro {
				t.Errorf("%+v: the kernel says %d of UDP_GRO", c.offload, gro)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		b.v4.cutsNoMore()
		if states, err = b.state(); err != nil || states[0].GSO {
			t.Errorf("after a link has refused: %+v, %v", states, err)
		}
	}
	if states, err := new(bind).state(); len(states) != 0 || err != nil {
		t.Errorf("a bind that is not open: %+v, %v", states, err)
	}
	if states, err := Probe(Offload{NoGSO: true}); err != nil || len(states) == 0 || states[0].GSO {
		t.Errorf("probed: %+v, %v", states, err)
	}
}

// What comes while nobody takes it in and finds no room is counted, also once the socket is
// closed. What the kernel joined counts as it came.
func TestDropped(t *testing.T) {
	b := new(bind)
	receive, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.v4.control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1) }); err != nil {
		t.Fatal(err)
	}
	if s := b.stats(); s.Dropped != 0 || s.Received != 0 || s.Runs != 0 {
		t.Errorf("before anything came: %+v", s)
	}
	from := dial(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
	for range 1000 {
		if _, err := from.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	// On a busy machine the kernel takes in what was sent a while after.
	s := b.stats()
	for until := time.Now().Add(10 * time.Second); s.Dropped < 900 && time.Now().Before(until); s = b.stats() {
		runtime.Gosched()
	}
	if s.Dropped < 900 || s.Dropped > 999 {
		t.Errorf("%d of 1000 dropped, want nearly all", s.Dropped)
	}
	bufs, sizes, eps := [][]byte{make([]byte, 2000), make([]byte, 2000)}, make([]int, 2), make([]conn.Endpoint, 2)
	n, err := receive[0](bufs, sizes, eps)
	if got := b.stats(); err != nil || n == 0 || got.Received != uint64(n) || got.Runs == 0 || got.Dropped < s.Dropped {
		t.Errorf("%d came: %+v, %v", n, got, err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if got := b.stats(); got.Dropped < s.Dropped {
		t.Errorf("after its end %d of %d", got.Dropped, s.Dropped)
	}
}
