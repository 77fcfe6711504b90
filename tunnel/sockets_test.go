package tunnel

import (
	"testing"

	"golang.org/x/sys/unix"
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
