package tundev

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// span is two namespaces whose kernels have a TUN each, joined by what this process
// carries from one to the other.
type span struct {
	ns   [2]*netlab.Namespace
	dev  [2]*Device
	addr [2]netip.Addr
	// damage is how many packets between two that get a bit of payload flipped; 0: none.
	damage  int
	damaged atomic.Uint64
	// calls counts the reads, and wrong the packets read with a wrong checksum.
	calls, wrong atomic.Uint64
	pumps        sync.WaitGroup
}

const spanMTU = 1420

// course is how devices are made and worked.
type course struct {
	name    string
	vnet    bool // the interface has vnet headers
	offload bool // the device is to use them
	old     bool // the kernel knows no UDP segmentation
	trains  bool // they are worked by ReadTrains and WriteTrains
}

func courses() []course {
	return []course{
		{name: "plain"},
		{name: "plain trains", trains: true},
		{name: "switched off", vnet: true},
		{name: "packets", vnet: true, offload: true},
		{name: "trains", vnet: true, offload: true, trains: true},
		{name: "old packets", vnet: true, offload: true, old: true},
		{name: "old trains", vnet: true, offload: true, old: true, trains: true},
	}
}

// newSpan makes the namespaces and the devices.
func newSpan(t testing.TB, c course, damage int) *span {
	lab := netlab.Test(t)
	s := &span{damage: damage, addr: [2]netip.Addr{kernelSide, farSide}}
	for i, name := range []string{"left", "right"} {
		s.ns[i] = lab.Namespace(name)
		s.dev[i] = trainTUN(t, s.ns[i], c, spanMTU)
		err := s.ns[i].Host().Apply(hostnet.Plan{
			Links:     []hostnet.Link{{Name: "tun7", MTU: spanMTU}},
			Addresses: []hostnet.Address{{Link: "tun7", Prefix: netip.PrefixFrom(s.addr[i], 32)}},
			Routes:    []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Link: "tun7"}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		from, to := s.dev[i], s.dev[1-i]
		s.pumps.Go(func() {
			if c.trains {
				s.pumpTrains(from, to)
			} else {
				s.pumpPackets(from, to)
			}
		})
	}
	t.Cleanup(func() {
		for _, d := range s.dev {
			_ = d.Close()
		}
		s.pumps.Wait()
		if n := s.wrong.Load(); n > 0 {
			t.Errorf("%d packets were read with a wrong checksum", n)
		}
	})
	return s
}

// trainTUN makes tun7 in a namespace.
func trainTUN(t testing.TB, ns *netlab.Namespace, c course, mtu int) *Device {
	t.Helper()
	var f *os.File
	err := ns.Do(func() (err error) {
		f, err = CreateTUN("tun7", c.vnet)
		return err
	})
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		netlab.NotRun(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	dev, err := FromTUN(f, Config{MTU: mtu, Offload: c.offload})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	if c.old {
		dev.offloads.UDP = false
		err := control(dev.file, func(fd int) error {
			return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return dev
}

// inspect verifies a packet that was read, and damages one in so many.
func (s *span) inspect(p *packet.Packet, b []byte, n *int) {
	if packet.Parse(p, b) != packet.Pass || !p.ChecksumOK() {
		s.wrong.Add(1)
	}
	if *n++; s.damage > 0 && *n%s.damage == 0 && p.Payload > 0 {
		p.Data()[0] ^= 4
		s.damaged.Add(1)
	}
}

func (s *span) pumpPackets(from, to *Device) {
	in, views, n := newBuffers(), make([][]byte, BatchSize), 0
	var p packet.Packet
	for {
		k, err := from.Read(in.bufs, in.sizes, offset)
		if err != nil {
			return
		}
		s.calls.Add(1)
		for i := range k {
			s.inspect(&p, in.packet(i), &n)
			views[i] = in.bufs[i][:offset+in.sizes[i]]
		}
		if _, err := to.Write(views[:k], offset); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

func (s *span) pumpTrains(from, to *Device) {
	trains, n := make([]packet.Train, BatchSize), 0
	var p packet.Packet
	var cut packet.Cutter
	buf := make([]byte, maxMTU)
	for {
		k, err := from.ReadTrains(trains)
		if err != nil {
			return
		}
		s.calls.Add(1)
		for i := range k {
			t := &trains[i]
			for o := cut.Start(t, spanMTU); o == packet.Pass && cut.More(); {
				s.inspect(&p, buf[:cut.Next(buf)], &n)
			}
		}
		if _, err := to.WriteTrains(trains[:k]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// spans runs one body over every way to work the devices.
func spans(t *testing.T, damage int, body func(t *testing.T, s *span)) {
	for _, c := range courses() {
		if damage > 0 && c.trains {
			continue // what is damaged there is a copy
		}
		t.Run(c.name, func(t *testing.T) { body(t, newSpan(t, c, damage)) })
	}
}

// counter reads a counter of a kernel.
func counter(t testing.TB, ns *netlab.Namespace, proto, name string) string {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("cat", "/proc/net/snmp")
	cmd.Stdout = &out
	if err := ns.Run(cmd); err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(out.String()) {
		fields := strings.Fields(line)
		if fields[0] != proto+":" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, n := range names {
			if n == name {
				return fields[i]
			}
		}
	}
	t.Fatalf("no counter %s of %s in:\n%s", name, proto, &out)
	return ""
}

// transfer sends content by TCP and returns what arrives.
func (s *span) transfer(t *testing.T, from int, content []byte) []byte {
	t.Helper()
	l, err := s.ns[1-from].Listen("tcp4", netip.AddrPortFrom(s.addr[1-from], 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := s.ns[from].Dial(ctx, "tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = c.Write(content)
		_ = c.Close()
	}()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = far.Close() }()
	_ = far.SetDeadline(time.Now().Add(30 * time.Second))
	got, err := io.ReadAll(far)
	if err != nil {
		t.Error(err)
	}
	return got
}

func noise(n int) []byte {
	b := make([]byte, n)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(b)
	return b
}

// TCP passes both ways, whole, and no kernel finds a wrong checksum.
func TestBulk(t *testing.T) {
	spans(t, 0, func(t *testing.T, s *span) {
		content := noise(8 << 20)
		for from := range 2 {
			if got := s.transfer(t, from, content); !bytes.Equal(got, content) {
				t.Errorf("from %d: %d bytes arrived, of %d", from, len(got), len(content))
			}
		}
		s.settle(t)
		t.Logf("%s: %d reads of %d packets; %+v", s.dev[0].Offload(), s.calls.Load(), s.dev[0].Stats().Read, s.dev[0].Stats())
	})
}

// settle checks that nothing was lost or wrong.
func (s *span) settle(t *testing.T) {
	t.Helper()
	for i, d := range s.dev {
		if n := counter(t, s.ns[i], "Tcp", "InCsumErrors"); n != "0" {
			t.Errorf("kernel %d found %s wrong checksums", i, n)
		}
		stats := d.Stats()
		if stats.Malformed+stats.TooBig+stats.WriteErrors+stats.QueueFull > 0 || stats.Read == 0 || stats.Written == 0 {
			t.Errorf("device %d: %+v", i, stats)
		}
	}
}

// A packet that was damaged on the way stays so: the kernel sees it, and TCP sends again.
func TestDamageIsNeverRepaired(t *testing.T) {
	spans(t, 100, func(t *testing.T, s *span) {
		content := noise(2 << 20)
		if got := s.transfer(t, 0, content); !bytes.Equal(got, content) {
			t.Errorf("%d bytes arrived, of %d, or others", len(got), len(content))
		}
		found := counter(t, s.ns[1], "Tcp", "InCsumErrors")
		if want := s.damaged.Load(); want < 5 || found != fmt.Sprint(want) {
			t.Errorf("%d packets were damaged, and the kernel found %s", want, found)
		}
	})
}

// Datagrams that a program sends as a train arrive one by one, and with their bounds.
func TestDatagramTrains(t *testing.T) {
	spans(t, 0, func(t *testing.T, s *span) {
		far, err := s.ns[1].ListenPacket("udp4", netip.AddrPortFrom(s.addr[1], 9).String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = far.Close() }()
		near, err := s.ns[0].Dial(t.Context(), "udp4", far.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = near.Close() }()
		const size = 1000
		content := noise(40*size + 7)
		if err := segmented(near, size); err != nil {
			t.Fatal(err)
		}
		_ = far.SetDeadline(time.Now().Add(10 * time.Second))
		for range 3 {
			if _, err := near.Write(content); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 2*size)
			for at := 0; at < len(content); {
				n, _, err := far.ReadFrom(b)
				if err != nil || !bytes.Equal(b[:n], content[at:min(at+size, len(content))]) {
					t.Fatalf("at %d: %d bytes, %v", at, n, err)
				}
				at += n
			}
		}
		if n := counter(t, s.ns[1], "Udp", "InCsumErrors"); n != "0" {
			t.Errorf("%s wrong checksums", n)
		}
		if got := s.dev[0].Stats(); got.Read != 3*41 || got.ReadBytes != 3*uint64(len(content)+41*28) {
			t.Errorf("stats: %+v", got)
		}
	})
}

func segmented(c net.Conn, size int) error {
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size)
	})
	return errors.Join(err, inner)
}

// BenchmarkIperf is a second of TCP by iperf3 in every way. Compare only within a run.
func BenchmarkIperf(b *testing.B) {
	iperf := netlab.Program(b, "iperf3")
	for _, c := range courses() {
		b.Run(c.name, func(b *testing.B) {
			s := newSpan(b, c, 0)
			bits := 0.0
			var before, after unix.Rusage
			_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
			for b.Loop() {
				bits += s.iperf(b, iperf)
			}
			_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
			b.ReportMetric(bits/float64(b.N)/1e9, "Gbit/s")
			cpu := after.Utime.Nano() - before.Utime.Nano() + after.Stime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(cpu)/(bits/8), "cpu-s/GB")
		})
	}
}

// iperf returns the bits per second of a test of a second.
func (s *span) iperf(b *testing.B, path string) float64 {
	server := exec.Command(path, "-s", "-1", "--forceflush")
	out, err := server.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := s.ns[1].Start(server); err != nil {
		b.Fatal(err)
	}
	said := make([]byte, 4096)
	for text := ""; !strings.Contains(text, "listening"); {
		n, err := out.Read(said)
		if err != nil {
			b.Fatal(err)
		}
		text += string(said[:n])
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	var answer bytes.Buffer
	client := exec.Command(path, "-c", s.addr[1].String(), "-t", "1", "-P", "4", "-J")
	client.Stdout = &answer
	if err := s.ns[0].Run(client); err != nil {
		b.Fatal(err)
	}
	_ = server.Wait()
	var result struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(answer.Bytes(), &result); err != nil {
		b.Fatal(err)
	}
	return result.End.Received.Bits
}
