package uplink

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/sallyport-net/sallyport/internal/netstack"
)

// BenchmarkTCP carries bytes through sandbox's stack, uplink and loopback; the
// sandbox's stack is about half of the cost.
func BenchmarkTCP(b *testing.B) {
	for _, direction := range []string{"egress", "ingress"} {
		b.Run(direction, func(b *testing.B) {
			t := newSandbox(b, SocketsConfig{})
			l := listen(b)
			c := t.mustDial("10.9.0.1:0", l.Addr())
			far := accept(b, l)
			from, to := net.Conn(c), net.Conn(far)
			if direction == "ingress" {
				from, to = to, from
			}
			piece := make([]byte, 64<<10)
			b.SetBytes(int64(len(piece)))
			b.ReportAllocs()
			b.ResetTimer()
			go func() {
				for range b.N {
					if _, err := from.Write(piece); err != nil {
						b.Error(err)
						return
					}
				}
			}()
			if _, err := io.CopyN(io.Discard, to, int64(b.N)*int64(len(piece))); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkUDPWrite sends batches of 128 datagrams of one flow, or of many.
func BenchmarkUDPWrite(b *testing.B) {
	for _, flows := range []int{1, 128} {
		b.Run(map[int]string{1: "one flow", 128: "many flows"}[flows], func(b *testing.B) {
			up, err := NewSockets(SocketsConfig{Addresses: []netip.Addr{dedicated1}, Gateway: gateway, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			defer up.Close()
			server := udpServer(b)
			batch := make([][]byte, netstack.BatchSize)
			for i := range batch {
				from := netip.AddrPortFrom(dedicated1, uint16(43000+i%flows))
				batch[i] = datagram(from.String(), server.LocalAddr().String(), make([]byte, 64))
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := up.Write(batch, 0); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch)), "ns/packet")
		})
	}
}
