package netstack

import (
	"io"
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
