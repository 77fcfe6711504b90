package netstack

import (
	"context"
	"io"
	"net/netip"
	"testing"
)

// BenchmarkBulk moves bytes through one connection between two stacks: both
// stacks' work, segmentation, coalescing and checksums included.
func BenchmarkBulk(b *testing.B) {
	n := connect(b, clientConfig(), serverConfig(), nil)
	c, s := dialPair(b, n)
	received := make(chan int64)
	go func() {
		total, _ := s.WriteTo(io.Discard)
		received <- total
	}()
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	c.CloseWrite()
	<-received
	b.StopTimer()
	b.ReportMetric(float64(n.out.packets.Load())/float64(n.out.batches.Load()), "packets/read")
	b.ReportMetric(float64(n.client.Stats().Retransmits), "retransmits")
}

// BenchmarkConnect opens and closes intercepted connections one after another: three
// round trips of both stacks.
func BenchmarkConnect(b *testing.B) {
	n := connect(b, clientConfig(), interceptConfig(func(r *Request) {
		c, err := r.Accept(context.Background())
		if err != nil {
			return // the benchmark has ended
		}
		defer c.Close()
		c.WriteTo(io.Discard)
	}), nil)
	b.ReportAllocs()
	for b.Loop() {
		c, err := n.client.DialTCP(context.Background(), netip.AddrPortFrom(clientAddr, 0), anywhere)
		if err != nil {
			b.Fatal(err)
		}
		// A reset leaves no TIME-WAIT here, which would use up the client's ports.
		c.Abort()
	}
}
