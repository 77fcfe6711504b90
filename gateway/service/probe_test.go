package service

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

func TestProbe(t *testing.T) {
	w := newWorld(t, nil)
	conn, err := w.others.DialUDP(netip.AddrPortFrom(inside, 0), netip.AddrPortFrom(gateway, packet.ProbePort))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	stranger, err := w.others.DialUDP(netip.AddrPortFrom(outside, 0), netip.AddrPortFrom(gateway, packet.ProbePort))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()

	buf := make([]byte, 64)
	request := packet.Probe{Type: packet.ProbeRequest, Nonce: 0x1122334455667788, Sequence: 1}
	for _, h := range []packet.Health{0, packet.HealthDraining, packet.HealthUplinkLost | packet.HealthFull} {
		w.health.now.Store(uint32(h))
		// None of these may be answered: the next reply that comes belongs to the request after them.
		n := packet.Probe{Type: packet.ProbeReply, Nonce: 1}.Put(buf)
		conn.Write(buf[:n])
		conn.Write([]byte("hello"))
		n = request.Put(buf)
		conn.Write(buf[:n-1])
		conn.Write(buf[:n+1])
		stranger.Write(buf[:n])
		conn.Write(buf[:n])
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		reply, ok := packet.ParseProbe(buf[:n])
		want := packet.Probe{Type: packet.ProbeReply, Health: h, Nonce: request.Nonce, Sequence: request.Sequence}
		if !ok || reply != want {
			t.Errorf("reply %+v, want %+v", reply, want)
		}
		request.Sequence++
	}
	// The last reply may be here before it is counted.
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for late := time.After(patience); w.svc.Stats().Probes < 3; {
		select {
		case <-again.C:
		case <-late:
			t.Fatalf("stats %+v", w.svc.Stats())
		}
	}
	if st := w.svc.Stats(); st.Probes != 3 || st.ProbesRefused != 15 {
		t.Errorf("stats %+v", st)
	}
}

func TestConfig(t *testing.T) {
	good := Config{Address: gateway, Network: netip.MustParsePrefix("10.1.0.0/16"), Health: &health{}}
	for name, change := range map[string]func(*Config){
		"no address":      func(c *Config) { c.Address = netip.Addr{} },
		"IPv6":            func(c *Config) { c.Address = netip.IPv6Loopback() },
		"outside":         func(c *Config) { c.Network = netip.MustParsePrefix("10.2.0.0/16") },
		"no health":       func(c *Config) { c.Health = nil },
		"upstream port 0": func(c *Config) { c.Upstreams = []netip.AddrPort{netip.AddrPortFrom(outside, 0)} },
		"no queries":      func(c *Config) { c.MaxQueries = -1 },
	} {
		c := good
		change(&c)
		if s, err := New(c); err == nil {
			s.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	s, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	s.Close() // without Run nothing stays either
}

// BenchmarkProbe is one probe and its reply, both stacks' work included.
func BenchmarkProbe(b *testing.B) {
	w := newWorld(b, nil)
	conn, err := w.others.DialUDP(netip.AddrPortFrom(inside, 0), netip.AddrPortFrom(gateway, packet.ProbePort))
	if err != nil {
		b.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	request, buf := make([]byte, packet.ProbeSize), make([]byte, packet.ProbeSize)
	packet.Probe{Type: packet.ProbeRequest}.Put(request)
	b.ReportAllocs()
	for b.Loop() {
		conn.Write(request)
		if _, err := conn.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
	conn.Close()
}
