package netstack

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"pgregory.net/rapid"
)

// large makes a TCP segment as the stack hands it to the link: payload in
// several views, checksums not complete.
func large(r raw, mss int, cuts []int) *stack.PacketBuffer {
	head := raw{src: r.src, dst: r.dst, flags: r.flags, seq: r.seq, ack: r.ack, window: r.window, options: r.options}.tcp()
	var payload buffer.Buffer
	rest := r.payload
	for _, c := range cuts {
		c = min(c, len(rest))
		payload.Append(buffer.NewViewWithData(rest[:c]))
		rest = rest[c:]
	}
	if len(rest) > 0 {
		payload.Append(buffer.NewViewWithData(rest))
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: len(head), Payload: payload})
	copy(pkt.TransportHeader().Push(len(head)-header.IPv4MinimumSize), head[header.IPv4MinimumSize:])
	copy(pkt.NetworkHeader().Push(header.IPv4MinimumSize), head)
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: uint16(mss), L3HdrLen: header.IPv4MinimumSize, MaxSize: maxRunSize}
	return pkt
}

// capture is a stack that keeps what a link delivers.
type capture struct {
	stack.NetworkDispatcher
	pkts [][]byte
}

func (c *capture) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	v := pkt.ToView()
	defer v.Release()
	c.pkts = append(c.pkts, bytes.Clone(v.AsSlice()))
}

// newCoalescer returns a coalescer that delivers to c.
func newCoalescer(c *capture) *coalescer {
	l := &link{}
	l.Attach(c)
	return &coalescer{link: l}
}

var anywhere = netip.MustParseAddrPort("203.0.113.5:443")

// TestSegmentsAreWhole cuts large segments and looks at each piece: right lengths and
// checksums, and together the same stream; then joins them again.
func TestSegmentsAreWhole(t *testing.T) {
	device := open(t, clientConfig())
	rapid.Check(t, func(t *rapid.T) {
		r := raw{
			src: netip.AddrPortFrom(clientAddr, 1234), dst: anywhere,
			flags:   header.TCPFlagAck | rapid.SampledFrom([]header.TCPFlags{0, header.TCPFlagPsh, header.TCPFlagFin, header.TCPFlagPsh | header.TCPFlagCwr}).Draw(t, "flags"),
			seq:     rapid.Uint32().Draw(t, "seq"),
			ack:     rapid.Uint32().Draw(t, "ack"),
			window:  rapid.Uint16().Draw(t, "window"),
			options: make([]byte, 4*rapid.IntRange(0, 10).Draw(t, "options")),
			payload: pattern(uint64(rapid.IntRange(0, 9).Draw(t, "seed")), rapid.IntRange(0, 65000).Draw(t, "payload")),
		}
		for i := range r.options {
			r.options[i] = header.TCPOptionNOP
		}
		mss := rapid.IntRange(100, 1380).Draw(t, "mss")
		cuts := rapid.SliceOfN(rapid.IntRange(1, 9000), 0, 20).Draw(t, "cuts")
		pkt := large(r, mss, cuts)
		defer pkt.DecRef()

		var s segmenter
		s.begin(outbound{pkt: pkt, weight: weight(pkt)})
		var stream []byte
		var pieces [][]byte
		for s.busy {
			dst := make([]byte, 1500)
			n, last := s.next(dst)
			b := dst[:n]
			if _, v := device.admit(b); v != admitted {
				t.Fatalf("piece %d: verdict %d", len(pieces), v)
			}
			ip := header.IPv4(b)
			tcp := header.TCP(ip.Payload())
			if got, want := tcp.SequenceNumber(), r.seq+uint32(len(stream)); got != want {
				t.Fatalf("piece %d: sequence %d, want %d", len(pieces), got, want)
			}
			want := r.flags
			if !last {
				want &^= header.TCPFlagPsh | header.TCPFlagFin
			}
			if len(pieces) > 0 {
				want &^= header.TCPFlagCwr
			}
			if tcp.Flags() != want || tcp.AckNumber() != r.ack || tcp.WindowSize() != r.window || !bytes.Equal(tcp.Options(), r.options) {
				t.Fatalf("piece %d: flags %v, want %v; or another header", len(pieces), tcp.Flags(), want)
			}
			if len(tcp.Payload()) > mss {
				t.Fatalf("piece %d: %d bytes, MSS %d", len(pieces), len(tcp.Payload()), mss)
			}
			stream = append(stream, tcp.Payload()...)
			pieces = append(pieces, b)
		}
		if !bytes.Equal(stream, r.payload) {
			t.Fatal("pieces are not the stream")
		}
		if len(pieces) != weight(pkt) {
			t.Fatalf("%d pieces, weight %d", len(pieces), weight(pkt))
		}
	})
}

// sent is what one flow sent, as a receiver that only joins what follows would note it.
type sent struct {
	seq   uint32
	flags header.TCPFlags
	data  []byte
}

// join notes a packet in a flow's history; data that continues becomes one note.
func join(notes []sent, b []byte) []sent {
	tcp := header.TCP(header.IPv4(b).Payload())
	s := sent{seq: tcp.SequenceNumber(), flags: tcp.Flags() &^ header.TCPFlagPsh, data: bytes.Clone(tcp.Payload())}
	if n := len(notes); n > 0 && len(s.data) > 0 && len(notes[n-1].data) > 0 {
		last := &notes[n-1]
		if last.seq+uint32(len(last.data)) == s.seq && last.flags == s.flags {
			last.data = append(last.data, s.data...)
			return notes
		}
	}
	return append(notes, s)
}

// TestCoalescerKeepsFlows gives the coalescer batches of mixed flows with gaps, repeats
// and odd packets, and compares what each flow said before and after.
func TestCoalescerKeepsFlows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var out capture
		c := newCoalescer(&out)
		before, after := make(map[uint16][]sent), make(map[uint16][]sent)
		seqs := make(map[uint16]uint32)
		count := 0
		for range rapid.IntRange(1, 4).Draw(t, "batches") {
			for range rapid.IntRange(1, 60).Draw(t, "packets") {
				port := uint16(rapid.IntRange(1, 12).Draw(t, "flow"))
				size := rapid.SampledFrom([]int{0, 1, 100, 1380}).Draw(t, "size")
				r := raw{
					src: netip.AddrPortFrom(serverAddr, port), dst: anywhere, payload: pattern(uint64(count), size),
					flags: rapid.SampledFrom([]header.TCPFlags{
						header.TCPFlagAck, header.TCPFlagAck, header.TCPFlagAck, header.TCPFlagAck | header.TCPFlagPsh,
						header.TCPFlagAck | header.TCPFlagFin, header.TCPFlagRst, header.TCPFlagSyn,
					}).Draw(t, "flags"),
					ack: uint32(rapid.IntRange(0, 50).Draw(t, "ack") / 50), window: 100,
					tos: uint8(rapid.IntRange(0, 50).Draw(t, "tos") / 50),
				}
				r.seq = seqs[port] + uint32(rapid.SampledFrom([]int{0, 0, 0, 0, 0, 0, 1, -1}).Draw(t, "gap"))
				seqs[port] = r.seq + uint32(size)
				b := r.tcp()
				before[port] = join(before[port], b)
				c.add(b)
				count++
			}
			c.flush()
		}
		if len(out.pkts) > count {
			t.Fatalf("%d packets became %d", count, len(out.pkts))
		}
		for _, b := range out.pkts {
			if int(binary.BigEndian.Uint16(b[ipTotalLength:])) != len(b) {
				t.Fatalf("length %d in a packet of %d", binary.BigEndian.Uint16(b[ipTotalLength:]), len(b))
			}
			port := header.TCP(header.IPv4(b).Payload()).SourcePort()
			after[port] = join(after[port], b)
		}
		for port, want := range before {
			got := after[port]
			if len(got) != len(want) {
				t.Fatalf("flow %d said %d things, want %d", port, len(got), len(want))
			}
			for i := range want {
				if got[i].seq != want[i].seq || got[i].flags != want[i].flags || !bytes.Equal(got[i].data, want[i].data) {
					t.Fatalf("flow %d, thing %d: %d %v %d bytes, want %d %v %d bytes", port, i,
						got[i].seq, got[i].flags, len(got[i].data), want[i].seq, want[i].flags, len(want[i].data))
				}
			}
		}
	})
}

// TestCoalescerJoins sees that segments of two flows, mixed, become few packets.
func TestCoalescerJoins(t *testing.T) {
	var out capture
	c := newCoalescer(&out)
	for i := range 60 {
		for _, port := range []uint16{1, 2} {
			c.add(raw{src: netip.AddrPortFrom(serverAddr, port), dst: anywhere, flags: header.TCPFlagAck, seq: uint32(i * 1380), payload: make([]byte, 1380)}.tcp())
		}
	}
	c.flush()
	if len(out.pkts) != 4 { // 47 of 1380 bytes fit under 64 KiB
		t.Errorf("120 segments became %d packets, want 4", len(out.pkts))
	}
}

// TestReadFillsBatches lets a large segment be longer than what is left of a batch.
func TestReadFillsBatches(t *testing.T) {
	d := open(t, clientConfig())
	r := newReader(t, d)
	total := 0
	for range 4 {
		pkt := large(raw{src: netip.AddrPortFrom(clientAddr, 1), dst: anywhere, flags: header.TCPFlagAck, payload: pattern(1, 60_000)}, 1000, nil)
		d.queue.offer(outbound{pkt: pkt, weight: weight(pkt)}, 0)
		total += 60
	}
	for total > 0 {
		n, err := d.Read(r.bufs, r.sizes, 0)
		if err != nil {
			t.Fatal(err)
		}
		if n != min(total, BatchSize) {
			t.Fatalf("read %d with %d to read", n, total)
		}
		total -= n
	}
}
