package tundev

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
)

var (
	beyond = netip.MustParseAddr("10.4.0.2") // behind the kernel's veth
	begins = packet.TCPHeader{
		Src: netip.AddrPortFrom(farSide, 2000), Dst: netip.AddrPortFrom(beyond, 80),
		Seq: 0xfffffff0, Ack: 7, Flags: packet.ACK, Window: 99, TTL: 64,
	}
)

// segments returns n segments of one flow, each with offset bytes in front. They have DF
// and identification 0.
func segments(n, size int) (bufs [][]byte) {
	data := noise(n * size)
	h := begins
	for i := range n {
		b := make([]byte, offset+40+size)
		if i == n-1 {
			h.Flags |= packet.PSH
		}
		packet.BuildTCP(b[offset:], h, data[i*size:(i+1)*size])
		h.Seq += uint32(size)
		bufs = append(bufs, b)
	}
	return bufs
}

// vnet returns a virtio_net_hdr.
func vnet(flags, kind byte, words ...int) (h vnetHeader) {
	h[0], h[1] = flags, kind
	for i, w := range words {
		h.setWord(2+2*i, w)
	}
	return h
}

// partialTCP returns a TCP packet of n bytes as a kernel hands it over: with the sum of the
// pseudo-header where the checksum is to be.
func partialTCP(n int) []byte {
	b := make([]byte, n)
	packet.BuildTCP(b, begins, noise(n-40))
	t := packet.Train{Head: b, Partial: true}
	t.Checksum()
	return b
}

func partialUDP(n int) []byte {
	b := make([]byte, n)
	packet.BuildUDP(b, begins.Src, begins.Dst, noise(n-28), 64, 0)
	t := packet.Train{Head: b, Partial: true}
	t.Checksum()
	return b
}

// What a sandbox's kernel says of a packet is believed only where the packet bears it out.
func TestVnetHeaders(t *testing.T) {
	tcp, udp := partialTCP(5000), partialUDP(5000)
	option := partialTCP(100)
	option[0] = 0x46 // the checksums are wrong, and the transport is elsewhere
	fragment := partialTCP(100)
	fragment[6] = 0x20
	for _, c := range []struct {
		name string
		h    vnetHeader
		b    []byte
		ok   bool
		size int
	}{
		{"nothing to do", vnet(0, gsoNone), tcp, true, 0},
		{"known to be right", vnet(2, gsoNone), tcp, true, 0},
		{"a checksum", vnet(1, gsoNone, 0, 0, 20, 16), tcp, true, 0},
		{"a checksum elsewhere", vnet(1, gsoNone, 0, 0, 100, 50), tcp, true, 0},
		{"a checksum at the end", vnet(1, gsoNone, 0, 0, 4990, 8), tcp, true, 0},
		{"a checksum behind the end", vnet(1, gsoNone, 0, 0, 4990, 9), tcp, false, 0},
		{"a checksum far behind", vnet(1, gsoNone, 0, 0, 65535, 65535), tcp, false, 0},
		{"a checksum in the IP header", vnet(1, gsoNone, 0, 0, 8, 2), tcp, false, 0},
		{"a checksum in the options", vnet(1, gsoNone, 0, 0, 20, 16), option, false, 0},
		{"a checksum of a fragment", vnet(1, gsoNone, 0, 0, 20, 16), fragment, false, 0},
		{"TCP", vnet(1, gsoTCP4, 40, 1380, 20, 16), tcp, true, 1380},
		{"TCP with a CWR", vnet(1, gsoTCP4|gsoECN, 40, 1380, 20, 16), tcp, true, 1380},
		{"TCP in one segment", vnet(1, gsoTCP4, 40, 4960, 20, 16), tcp, true, 0},
		{"TCP in the smallest segments", vnet(1, gsoTCP4, 40, 36, 20, 16), partialTCP(maxMTU), true, 36},
		{"TCP in smaller ones", vnet(1, gsoTCP4, 40, 31, 20, 16), partialTCP(maxMTU), false, 0},
		{"TCP byte by byte", vnet(1, gsoTCP4, 40, 1, 20, 16), tcp, false, 0},
		{"TCP without size", vnet(1, gsoTCP4, 40, 0, 20, 16), tcp, false, 0},
		{"TCP with a checksum", vnet(0, gsoTCP4, 40, 1380, 20, 16), tcp, false, 0},
		{"TCP with a checksum elsewhere", vnet(1, gsoTCP4, 40, 1380, 20, 6), tcp, false, 0},
		{"TCP that begins elsewhere", vnet(1, gsoTCP4, 40, 1380, 24, 16), tcp, false, 0},
		{"TCP that is UDP", vnet(1, gsoTCP4, 40, 1380, 20, 16), udp, false, 0},
		{"TCP in a fragment", vnet(1, gsoTCP4, 40, 20, 20, 16), fragment, false, 0},
		{"UDP", vnet(1, gsoUDP, 28, 1000, 20, 6), udp, true, 1000},
		{"UDP with ECN", vnet(1, gsoUDP|gsoECN, 28, 1000, 20, 6), udp, false, 0},
		{"UDP that is TCP", vnet(1, gsoUDP, 28, 1000, 20, 6), tcp, false, 0},
		{"UDP to be fragmented", vnet(1, 3, 28, 1000, 20, 6), udp, false, 0},
		{"IPv6", vnet(1, 4, 28, 1000, 20, 6), tcp, false, 0},
		{"longer than the packet says", vnet(1, gsoTCP4, 40, 1380, 20, 16), append(bytes.Clone(tcp), 0), false, 0},
		{"shorter than the packet says", vnet(1, gsoTCP4, 40, 1380, 20, 16), tcp[:4000], false, 0},
	} {
		var train packet.Train
		var cut packet.Cutter
		b := bytes.Clone(c.b)
		if ok := c.h.train(b, &train, &cut); ok != c.ok || ok && train.Size != c.size {
			t.Errorf("%s: %t, segments of %d", c.name, ok, train.Size)
		}
		if !c.ok && !bytes.Equal(b, c.b) {
			t.Errorf("%s: it was changed", c.name)
		}
	}
	var train packet.Train
	var cut packet.Cutter
	var p packet.Packet
	for _, h := range []vnetHeader{vnet(1, gsoNone, 0, 0, 20, 16), vnet(1, gsoTCP4, 40, 4960, 20, 16)} {
		if !h.train(bytes.Clone(tcp), &train, &cut) || packet.Parse(&p, train.Head) != packet.Pass || !p.ChecksumOK() {
			t.Errorf("%v: the checksum is wrong", h)
		}
	}
}

// A header that is written is read as the same train.
func TestVnetHeaderRoundTrip(t *testing.T) {
	cwr := partialTCP(4000)
	cwr[33] |= 0x80
	for _, c := range []struct {
		train packet.Train
		want  vnetHeader
	}{
		{packet.Train{Head: partialTCP(4000)}, vnetHeader{}},
		{packet.Train{Head: partialTCP(4000), Partial: true}, vnet(1, gsoNone, 40, 0, 20, 16)},
		{packet.Train{Head: partialTCP(4000), Partial: true, Size: 999}, vnet(1, gsoTCP4, 40, 999, 20, 16)},
		{packet.Train{Head: cwr, Partial: true, Size: 999}, vnet(1, gsoTCP4|gsoECN, 40, 999, 20, 16)},
		{packet.Train{Head: partialUDP(4000), Partial: true, Size: 999}, vnet(1, gsoUDP, 28, 999, 20, 6)},
	} {
		var h vnetHeader
		if h.put(&c.train, c.train.Size); h != c.want {
			t.Errorf("%v, want %v", h, c.want)
		}
	}
}

// FuzzVnet reads arbitrary packets behind arbitrary headers, and cuts them.
func FuzzVnet(f *testing.F) {
	tcp, udp := vnet(1, gsoTCP4, 40, 100, 20, 16), vnet(1, gsoUDP, 28, 100, 20, 6)
	sum := vnet(1, gsoNone, 0, 0, 24, 16)
	f.Add(append(tcp[:], partialTCP(500)...), 1420)
	f.Add(append(udp[:], partialUDP(500)...), 1420)
	f.Add(append(tcp[:], partialTCP(500)...), 80)
	f.Add(append(sum[:], partialTCP(500)...), 1420)
	d := &Device{count: &counters{}, offloads: Offload{VNet: true}}
	buf := make([]byte, maxMTU)
	f.Fuzz(func(t *testing.T, frame []byte, mtu int) {
		if len(frame) > vnetLen+maxMTU {
			return
		}
		mendHeader(frame)
		for _, b := range [][]byte{frame, bytes.Clone(frame)} {
			d.mtu = min(max(mtu, minMTU), maxMTU)
			before := d.count.notIPv4.Load() + d.count.malformed.Load() + d.count.tooBig.Load()
			var train packet.Train
			var cut packet.Cutter
			passed := d.judge(b, &train, &cut)
			size := train.Size
			passed = passed && d.start(&train, &cut)
			dropped := d.count.notIPv4.Load() + d.count.malformed.Load() + d.count.tooBig.Load() - before
			if passed == (dropped > 0) {
				t.Fatalf("passed %t, %d drops", passed, dropped)
			}
			for passed && cut.More() {
				n := cut.Next(buf)
				if n == 0 || n > d.mtu {
					t.Fatalf("%d bytes", n)
				}
				var p packet.Packet
				if size > 0 && (int(binary.BigEndian.Uint16(buf[2:])) != n || packet.Parse(&p, buf[:n]) == packet.Pass && !p.ChecksumOK()) {
					t.Fatalf("% x", buf[:n])
				}
			}
		}
	})
}

// mendHeader makes length and checksum of the IP header right, so that more of it is reached.
func mendHeader(frame []byte) {
	if len(frame) < vnetLen+20 {
		return
	}
	b := frame[vnetLen:]
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	b[10], b[11] = 0, 0
	acc := uint32(0)
	for i := 0; i+1 < min(int(b[0]&15)*4, len(b)); i += 2 {
		acc += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	acc = acc>>16 + acc&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(acc>>16+acc))
}

// Where the kernel takes no trains, the device cuts them.
func TestTrainsOnAPlainDevice(t *testing.T) {
	var far *os.File
	d := pipeDevice(t, &far)
	tcp, udp := partialTCP(4040), partialUDP(2028)
	single := partialTCP(100)
	n, err := d.WriteTrains([]packet.Train{
		{Head: tcp[:1000], Rest: [][]byte{tcp[1000:]}, Size: 1000, Partial: true},
		{Head: udp, Size: 1500, Partial: true}, // larger than the MTU
		{Head: udp, Size: 900, Partial: true},
		{},
		{Head: single, Partial: true},
		{Head: single[:50], Partial: true, Size: 7}, // nonsense
	})
	if n != 3 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	for _, want := range []int{1040, 1040, 1040, 1040, 928, 928, 228, 100} {
		b := make([]byte, 2000)
		k, err := far.Read(b)
		var p packet.Packet
		if err != nil || k != want || packet.Parse(&p, b[:k]) != packet.Pass || !p.ChecksumOK() {
			t.Fatalf("%d bytes, %v, %+v; want %d", k, err, p, want)
		}
	}
	want := Stats{Written: 8, WrittenBytes: 4*1040 + 2*928 + 228 + 100, TooBig: 2, Malformed: 1}
	if got := d.Stats(); got != want {
		t.Errorf("stats: %+v, want %+v", got, want)
	}
	if _, err := far.Write(partialTCP(100)); err != nil {
		t.Fatal(err)
	}
	trains := make([]packet.Train, 4)
	if n, err := d.ReadTrains(trains); n != 1 || err != nil || trains[0].Partial || len(trains[0].Head) != 100 {
		t.Errorf("read %d, %v, %+v", n, err, trains[0])
	}
}

// TestKernelCutsAsSent writes segments, which are joined, and has the kernel forward them to
// a link without offloads: what leaves there is what was written, but for the hop. A
// damaged one leaves with the checksum that it had.
func TestKernelCutsAsSent(t *testing.T) {
	for _, c := range courses() {
		if c.trains {
			continue
		}
		dev, far := newForwarder(t, c)
		sent := segments(100, 1000)
		const damaged = 37
		sent[damaged][offset+700] ^= 0x10
		want := make([][]byte, len(sent))
		for i, b := range sent {
			want[i] = bytes.Clone(b[offset:])
		}
		if n, err := dev.Write(sent, offset); n != len(sent) || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
		in := newBuffers()
		var p, q packet.Packet
		for got := 0; got < len(want); {
			n, err := far.Read(in.bufs, in.sizes, offset)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if packet.Parse(&p, in.packet(i)) != packet.Pass || p.Dst != beyond {
					continue // what the kernel says by itself
				}
				if p.ChecksumOK() == (got == damaged) {
					t.Errorf("packet %d: the checksum is right: %t", got, p.ChecksumOK())
				}
				packet.Parse(&q, want[got])
				q.DecrementTTL()
				q.SetID(p.ID()) // atomic: the kernel counts
				if !bytes.Equal(p.B, q.B) {
					t.Fatalf("packet %d:\n% x..., want\n% x...", got, p.B[:44], q.B[:44])
				}
				got++
			}
		}
	}
}

// TestTrainsThatTheKernelRefuses: what is too much for it as one arrives as packets. No
// kernel takes more than 128 datagrams at once.
func TestTrainsThatTheKernelRefuses(t *testing.T) {
	const datagrams, size = 200, 10
	dev, far := newForwarder(t, course{vnet: true, offload: true, trains: true})
	if !dev.offloads.UDP {
		netlab.NotRun(t, "the kernel takes no trains of UDP")
	}
	content := noise(datagrams * size)
	head := make([]byte, 28+len(content))
	packet.BuildUDP(head, begins.Src, begins.Dst, content, 64, 0)
	train := packet.Train{Head: head, Size: size, SameID: true, Partial: true}
	if n, err := dev.WriteTrains([]packet.Train{train}); n != 1 || err != nil {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if got, want := dev.Stats(), (Stats{Written: datagrams, WrittenBytes: datagrams * (28 + size)}); got != want {
		t.Errorf("stats: %+v, want %+v", got, want)
	}
	in := newBuffers()
	var p packet.Packet
	for at := 0; at < len(content); {
		n, err := far.Read(in.bufs, in.sizes, offset)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if packet.Parse(&p, in.packet(i)) != packet.Pass || p.Kind != packet.KindUDP || p.Dst != beyond {
				continue // what the kernel says by itself
			}
			if !p.ChecksumOK() || !bytes.Equal(p.Data(), content[at:at+size]) {
				t.Fatalf("at %d: % x", at, p.B)
			}
			at += size
		}
	}
}

// newForwarder returns a TUN and the far end of a veth of a kernel that forwards from one to
// the other.
func newForwarder(t *testing.T, c course) (dev, far *Device) {
	lab := netlab.Test(t)
	b := &bench{ns: lab.Namespace("router"), link: "eth0"}
	holder := lab.Namespace("holder")
	lab.Connect(netlab.End{Namespace: b.ns, Link: b.link, NoOffload: true}, netlab.End{Namespace: holder, Link: "far"})
	far = openPacketDevice(t, holder, b)
	t.Cleanup(func() { _ = far.Close() })
	dev = trainTUN(t, b.ns, c, testMTU)
	err := b.ns.Host().Apply(hostnet.Plan{
		Links: []hostnet.Link{{Name: "tun7", MTU: maxMTU}, {Name: b.link, MTU: 1500, NoARP: true}},
		Addresses: []hostnet.Address{
			{Link: "tun7", Prefix: netip.PrefixFrom(kernelSide, 32)},
			{Link: b.link, Prefix: netip.MustParsePrefix("10.4.0.1/24")},
		},
		Routes: []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Link: "tun7"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.ns.Forward(true)
	return dev, far
}

// Neither trains nor their packets cost an allocation.
func TestTrainsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has pools forget what they hold")
	}
	b := &bench{ns: netlab.Test(t).Namespace("sandbox"), link: "tun7"}
	b.own(t, trainTUN(t, b.ns, course{vnet: true, offload: true}, testMTU))
	b.plan(t)
	socket := b.socket(t)
	if err := segmented(socket, 1000); err != nil {
		t.Fatal(err)
	}
	trains, content, in := make([]packet.Train, 8), make([]byte, 20*1000), newBuffers()
	views := make([][]byte, BatchSize)
	n := testing.AllocsPerRun(50, func() {
		if _, err := socket.Write(content); err != nil {
			t.Fatal(err)
		}
		n, err := b.dev.ReadTrains(trains)
		if err != nil || n != 1 {
			t.Fatal(n, err)
		}
		if n, err = b.dev.WriteTrains(trains[:n]); err != nil || n != 1 { // to nobody
			t.Fatal(n, err)
		}
		if _, err := socket.Write(content); err != nil {
			t.Fatal(err)
		}
		if n, err = b.dev.Read(in.bufs, in.sizes, offset); err != nil || n != 20 {
			t.Fatal(n, err)
		}
		for i := range n {
			views[i] = in.bufs[i][:offset+in.sizes[i]]
		}
		if n, err = b.dev.Write(views[:n], offset); err != nil || n != 20 {
			t.Fatal(n, err)
		}
	})
	if n >= 1 {
		t.Errorf("%v allocations", n)
	}
	if b.dev.reader.frame != nil || b.dev.writer.scratch != nil {
		t.Error("an idle device holds memory")
	}
}

// An older kernel is asked for less, until it takes it, and the description says what it
// lacks.
func TestKernelsWithLess(t *testing.T) {
	const uso = unix.TUN_F_USO4 | unix.TUN_F_USO6
	for _, c := range []struct {
		name   string
		lacks  int
		wanted bool
		want   Offload
		says   string
	}{
		{"all", 0, true, Offload{VNet: true, TCP: true, UDP: true}, "UDP segmentation"},
		{"no USO", uso, true, Offload{VNet: true, TCP: true}, "needs Linux 6.2"},
		{"no TSO", uso | unix.TUN_F_TSO4, true, Offload{VNet: true}, "none"},
		{"nothing", ^0, true, Offload{VNet: true}, "none"},
		{"switched off", 0, false, Offload{VNet: true}, "none"},
	} {
		last := -1
		got := ask(c.wanted, func(bits int) bool {
			if bits&c.lacks != 0 {
				return false
			}
			last = bits
			return true
		})
		if got != c.want || !strings.Contains(got.String(), c.says) {
			t.Errorf("%s: %+v, %q; want %+v", c.name, got, got, c.want)
		}
		if tcp, udp := last&unix.TUN_F_TSO4 != 0, last&unix.TUN_F_USO4 != 0; tcp != c.want.TCP || udp != c.want.UDP {
			t.Errorf("%s: the kernel was left with %#x", c.name, last)
		}
	}
}
