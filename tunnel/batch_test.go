package tunnel

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
)

// small is a device that moves few packets at once.
type small struct{ *memTUN }

func (small) BatchSize() int { return 2 }

// A tunnel with small batches takes in what was sent together in large ones, in order, and
// one that is to have too large ones does not begin.
func TestSmallBatches(t *testing.T) {
	const count = 50
	devices := [2]*memTUN{newMemTUN(), newMemTUN()}
	var ends [2]*Tunnel
	for i, d := range devices {
		var err error
		if ends[i], err = New(Config{PrivateKey: NewKey(), Device: small{d}, Batch: 2}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(ends[i].Close)
		if n := ends[i].bind.BatchSize(); n != 2 {
			t.Errorf("batches of %d", n)
		}
	}
	connect(t, end{ends[0], devices[0]}, end{ends[1], devices[1]}, "10.0.0.5/32")
	// What waits for the handshake may leave in another order.
	devices[1].out <- packetFrom("10.0.0.5", "192.0.2.1", count)
	<-devices[0].in
	for i := range byte(count) {
		devices[1].out <- packetFrom("10.0.0.5", "192.0.2.1", i)
	}
	for i := range byte(count) {
		if b := <-devices[0].in; !bytes.Equal(b, packetFrom("10.0.0.5", "192.0.2.1", i)) {
			t.Fatalf("packet %d is %x", i, b)
		}
	}
	// Longer runs than a batch, as the kernel joins them.
	b := &bind{batch: 2}
	receive, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c := dial(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
	defer c.Close()
	for i := range byte(count) {
		if _, err := c.Write([]byte{i}); err != nil {
			t.Fatal(err)
		}
	}
	bufs, sizes, eps := [][]byte{make([]byte, 100), make([]byte, 100)}, make([]int, 2), make([]conn.Endpoint, 2)
	for i := 0; i < count; {
		n, err := receive[0](bufs, sizes, eps)
		if err != nil {
			t.Fatal(err)
		}
		for k := range n {
			if bufs[k][0] != byte(i) {
				t.Fatalf("datagram %d instead of %d", bufs[k][0], i)
			}
			i++
		}
	}
	for _, batch := range []int{-1, MaxBatch + 1} {
		d := newMemTUN()
		if _, err := New(Config{PrivateKey: NewKey(), Device: d, Batch: batch}); err == nil || !d.isClosed() {
			t.Errorf("batches of %d: %v, closed %t", batch, err, d.isClosed())
		}
	}
}
