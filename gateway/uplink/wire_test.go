package uplink

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// wireLab is a host whose eth1 leads to a router with 10.50.0.5, and its eth0, where all
// else goes, to a network that must never see inner addresses.
type wireLab struct {
	t              *testing.T
	lab            *netlab.Lab
	host, far, out *netlab.Namespace
	leaks          *netlab.Capture
}

var (
	wireNetwork = netip.MustParsePrefix("10.20.0.0/16")
	wireInner   = netip.MustParseAddr("10.20.0.6")
	wireRange   = netip.MustParsePrefix("10.50.0.0/24")
	wireFar     = netip.MustParseAddr("10.50.0.5")
	wireHop     = netip.MustParseAddr("10.9.0.1")
)

func newWireLab(t *testing.T) *wireLab {
	t.Helper()
	lab := netlab.Test(t)
	l := &wireLab{t: t, lab: lab, host: lab.Namespace("host"), far: lab.Namespace("far"), out: lab.Namespace("out")}
	l.connect()
	l.far.Address("lo", netip.PrefixFrom(wireFar, 32))
	lab.Connect(
		netlab.End{Namespace: l.host, Link: "eth0", Address: netip.MustParsePrefix("198.51.100.2/28")},
		netlab.End{Namespace: l.out, Link: "eth0", Address: netip.MustParsePrefix("198.51.100.1/28")})
	l.host.Route(hostnet.DefaultIPv4, netip.MustParseAddr("198.51.100.1"))
	l.host.Sysctl("net.ipv4.conf.eth0.forwarding", "1")
	var err error
	if l.leaks, err = l.out.Capture("eth0"); err != nil {
		t.Fatal(err)
	}
	return l
}

// connect makes the link to the other side.
func (l *wireLab) connect() {
	l.lab.Connect(
		netlab.End{Namespace: l.host, Link: "eth1", Address: netip.MustParsePrefix("10.9.0.2/24"), MTU: 1300},
		netlab.End{Namespace: l.far, Link: "eth0", Address: netip.MustParsePrefix("10.9.0.1/24"), MTU: 1300})
	l.far.Route(wireNetwork, netip.MustParseAddr("10.9.0.2"))
	l.host.Sysctl("net.ipv4.conf.eth1.forwarding", "1")
}

// sealed fails the test if an inner address was seen where it must not be.
func (l *wireLab) sealed() {
	l.t.Helper()
	if err := l.leaks.Stats().Complete(); err != nil {
		l.t.Error(err)
	}
	for _, p := range l.leaks.Packets() {
		if p.Src.IsValid() && wireNetwork.Contains(p.Src.Addr()) || p.Dst.IsValid() && wireNetwork.Contains(p.Dst.Addr()) {
			l.t.Errorf("it left by the default route: %v", p)
		}
	}
}

func (l *wireLab) ip(args ...string) string {
	l.t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("ip", args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := l.host.Run(cmd); err != nil {
		l.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

// held is what there is of wires in the kernel.
func (l *wireLab) held() (all []string) {
	l.t.Helper()
	for _, what := range [][]string{{"rule"}, {"route", "show", "table", "all", "proto", "91"}, {"-o", "link"}} {
		for line := range strings.Lines(l.ip(what...)) {
			if what[0] == "route" || strings.Contains(line, "proto 91") || what[0] == "-o" && strings.Contains(line, wirePrefix) {
				all = append(all, strings.TrimSpace(line))
			}
		}
	}
	return all
}

func (l *wireLab) config() WireConfig {
	return WireConfig{ID: "peer_x", Network: wireNetwork, Ranges: []netip.Prefix{wireRange}, Interface: "eth1", NextHop: wireHop}
}

func (l *wireLab) open(c WireConfig) (w *Wire, err error) {
	_ = l.host.Do(func() error {
		w, err = OpenWire(c)
		return nil
	})
	return w, err
}

func (l *wireLab) mustOpen(c WireConfig) *Wire {
	l.t.Helper()
	w, err := l.open(c)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = w.Close() })
	return w
}

// check is Wire.Check inside the host.
func (l *wireLab) check(w *Wire) (err error) {
	_ = l.host.Do(func() error {
		err = w.Check()
		return nil
	})
	return err
}

// stack puts a sandbox behind the wire, until the test ends.
func (l *wireLab) stack(w *Wire) *netstack.Device {
	l.t.Helper()
	dev, err := netstack.New(netstack.Config{Addresses: []netip.Addr{wireInner}, MTU: 1300})
	if err != nil {
		l.t.Fatal(err)
	}
	var pumps sync.WaitGroup
	carry := func(read func([][]byte, []int, int) (int, error), write func([][]byte, int) (int, error)) {
		bufs, sizes := buffers()
		for {
			n, err := read(bufs, sizes, 64)
			if err != nil {
				return
			}
			list := make([][]byte, 0, n)
			for i := range n {
				if sizes[i] > 1300 {
					l.t.Errorf("a packet of %d bytes", sizes[i])
				}
				list = append(list, bufs[i][:64+sizes[i]])
			}
			_, _ = write(list, 64)
		}
	}
	pumps.Go(func() { carry(dev.Read, w.Write) })
	pumps.Go(func() { carry(w.Read, dev.Write) })
	l.t.Cleanup(func() {
		dev.Close()
		_ = w.Close()
		pumps.Wait()
	})
	return dev
}

// TestWireCarries: bulk goes both ways by an interface that is narrower than the kernel's
// own trains, which cross the TUN whole, and nothing is lost on the way.
func TestWireCarries(t *testing.T) {
	l := newWireLab(t)
	l.host.Sysctl("net.ipv4.conf.all.rp_filter", "1")
	captured, err := l.far.Capture("eth0")
	if err != nil {
		t.Fatal(err)
	}
	w := l.mustOpen(l.config())
	if w.MTU() != 1300 || len(w.Own()) != 0 {
		t.Errorf("the MTU is %d, own addresses are %v", w.MTU(), w.Own())
	}
	listener, err := l.far.Listen("tcp4", "10.50.0.5:80")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	dev := l.stack(w)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := dev.DialTCP(ctx, netip.AddrPortFrom(wireInner, 0), netip.AddrPortFrom(wireFar, 80))
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
	go func() {
		_, _ = c.Write(want)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes came back: %v", len(got), len(want), err)
	}
	_ = c.Close()
	if d := w.Drops(); d != ([packet.NumOutcomes]uint64{}) {
		t.Errorf("drops: %v", d)
	}
	// Trains crossed the TUN in both directions, as the kernel counts.
	for what, packets := range map[string]uint64{"tx_packets": w.dev.Stats().Read, "rx_packets": w.dev.Stats().Written} {
		var text []byte
		if err := l.host.Do(func() (err error) {
			text, err = exec.Command("ip", "-s", "-j", "link", "show", w.name).Output()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		n := kernelCount(t, string(text), what[:2])
		if n == 0 || 2*n > packets {
			t.Errorf("%s: the kernel counts %d for %d packets", what, n, packets)
		}
	}
	for s := range captured.Sources() {
		if s.Addr.IsValid() && !s.Out && s.Addr != wireInner {
			t.Errorf("the other side saw the source %v", s.Addr)
		}
	}
	l.sealed()
}

// kernelCount reads a count of packets out of what ip(8) says as JSON.
func kernelCount(t *testing.T, text, direction string) uint64 {
	t.Helper()
	_, rest, _ := strings.Cut(text, `"`+direction+`":`)
	_, rest, _ = strings.Cut(rest, `"packets":`)
	digits, _, _ := strings.Cut(rest, ",")
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return n
}

// TestWireRefusals: what is missing is named, and what would do without; nothing is left.
func TestWireRefusals(t *testing.T) {
	l := newWireLab(t)
	before := l.ip("rule") + l.ip("route", "show", "table", "all")
	for _, c := range []struct {
		name        string
		set, mend   []string
		interfaceIs string
		hop         string
		want        []string
	}{
		{name: "no interface", interfaceIs: "eth7", want: []string{"eth7", "ip link"}},
		{name: "hop elsewhere", hop: "10.77.0.1", want: []string{"10.77.0.1", "not on the link of interface eth1", "nextHop"}},
		{name: "hop on another interface", hop: "198.51.100.1", want: []string{"198.51.100.1", "eth1"}},
		{name: "hop is the host", hop: "10.9.0.2", want: []string{"10.9.0.2", "eth1"}},
		{name: "inner address on the host", set: []string{"address", "add", "10.20.3.4/32", "dev", "lo"}, mend: []string{"address", "del", "10.20.3.4/32", "dev", "lo"},
			want: []string{"10.20.3.4", "interface lo", "10.20.0.0/16"}},
		{name: "ranges are the host's", set: []string{"route", "add", "local", "10.50.0.0/24", "dev", "lo"}, mend: []string{"route", "del", "local", "10.50.0.0/24", "dev", "lo"},
			want: []string{"10.50.0.15", "local"}},
		{name: "a rule before ours", set: []string{"rule", "add", "to", "10.50.0.0/24", "lookup", "main", "priority", "100"}, mend: []string{"rule", "del", "priority", "100"},
			want: []string{"10.50.0.0", "eth0", "ip rule"}},
		{name: "interface down", set: []string{"link", "set", "eth1", "down"}, mend: []string{"link", "set", "eth1", "up"}, want: []string{"eth1", "down"}},
	} {
		if c.set != nil {
			l.ip(c.set...)
		}
		cfg := l.config()
		if c.interfaceIs != "" {
			cfg.Interface = c.interfaceIs
		}
		if c.hop != "" {
			cfg.NextHop = netip.MustParseAddr(c.hop)
		}
		w, err := l.open(cfg)
		if err == nil {
			t.Errorf("%s: it opens", c.name)
			_ = w.Close()
			err = errors.New("")
		}
		for _, want := range append(c.want, "kind wireguard") {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: the error is %q; want %q in it", c.name, err, want)
			}
		}
		if c.mend != nil {
			l.ip(c.mend...)
		}
		if after := l.ip("rule") + l.ip("route", "show", "table", "all"); after != before || len(l.held()) != 0 {
			t.Errorf("%s: what is left is\n%s, before\n%s", c.name, after, before)
		}
	}
	l.host.Sysctl("net.ipv4.conf.eth1.forwarding", "0")
	if _, err := l.open(l.config()); err == nil || !strings.Contains(err.Error(), "net.ipv4.conf.eth1.forwarding") {
		t.Errorf("without forwarding: %v", err)
	}
	if left := l.held(); len(left) != 0 {
		t.Errorf("what is left is %q", left)
	}
}

// TestWireComesBack: an interface may go down, or away, and come back; addresses of the
// machine may come into the ranges.
func TestWireComesBack(t *testing.T) {
	l := newWireLab(t)
	w := l.mustOpen(l.config())
	before := l.held()
	for _, c := range []struct {
		name, want string
		away, back func()
	}{
		{"down", "eth1 is down", func() { l.ip("link", "set", "eth1", "down") }, func() { l.ip("link", "set", "eth1", "up") }},
		{"gone", "no interface eth1", func() { l.ip("link", "delete", "eth1") }, l.connect},
	} {
		c.away()
		for range 2 {
			if err := l.check(w); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: Check says %v", c.name, err)
			}
		}
		c.back()
		var err error
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
			if err = l.check(w); err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("%s: after it is back: %v", c.name, err)
		}
		if now := l.held(); !slices.Equal(now, before) {
			t.Errorf("%s: after it is back there is %q, before %q", c.name, now, before)
		}
	}
	l.ip("address", "add", "10.50.0.129/25", "dev", "eth0")
	want := []netip.Addr{netip.MustParseAddr("10.50.0.128"), netip.MustParseAddr("10.50.0.129"), netip.MustParseAddr("10.50.0.255")}
	if err := l.check(w); err != nil || !slices.Equal(w.Own(), want) {
		t.Errorf("own addresses are %v, %v; want %v", w.Own(), err, want)
	}
	l.ip("address", "del", "10.50.0.129/25", "dev", "eth0")
	if err := l.check(w); err != nil || len(w.Own()) != 0 {
		t.Errorf("own addresses are %v, %v", w.Own(), err)
	}
	if err := errors.Join(w.Close(), w.Close()); err != nil || len(l.held()) != 0 {
		t.Errorf("closed: %v, %q is left", err, l.held())
	}
	if _, err := w.Read(make([][]byte, 1), make([]int, 1), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
}

// TestWireTakesOver: the next wire of a connection takes over what a crash has left, while
// the other side sends on, and nothing of that goes elsewhere; what no connection takes
// over is swept, and what lives is left alone.
func TestWireTakesOver(t *testing.T) {
	l := newWireLab(t)
	other := l.config()
	other.ID, other.Ranges = "peer_y", []netip.Prefix{netip.MustParsePrefix("10.51.0.0/24")}
	other.Network = netip.MustParsePrefix("10.21.0.0/16")
	dead, lives := l.mustOpen(l.config()), l.mustOpen(other)
	before := l.held()

	stop := make(chan struct{})
	var sender sync.WaitGroup
	conn, err := l.far.DialFrom(t.Context(), &net.UDPAddr{IP: wireFar.AsSlice()}, "udp4", "10.20.0.6:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := 0
	sender.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
				if _, err := conn.Write([]byte("late")); err == nil {
					sent++
				}
			}
		}
	})
	die := func(w *Wire) {
		_ = w.dev.Close() // as the kernel does when the process is killed
		for strings.Contains(l.ip("-o", "link"), w.name) {
		}
	}
	next := dead
	for i := range 5 {
		die(next)
		cfg := l.config()
		if i%2 == 0 {
			cfg.Ranges = append(cfg.Ranges, netip.MustParsePrefix("10.52.0.0/24"))
		}
		next = l.mustOpen(cfg)
	}
	die(next)
	cfg := l.config()
	next = l.mustOpen(cfg)
	if now := withoutIndex(l.held()); !slices.Equal(now, withoutIndex(before)) {
		t.Errorf("after the crashes there is\n%q, before\n%q", now, before)
	}
	close(stop)
	sender.Wait()
	if sent == 0 {
		t.Error("nothing was sent: the test proves nothing")
	}
	l.sealed()

	die(next)
	if err := l.host.Do(SweepWires); err != nil {
		t.Error(err)
	}
	for _, line := range l.held() {
		if !strings.Contains(line, lives.name) && !strings.Contains(line, "10.51.0.0") && !strings.Contains(line, "10.21.0.0") && !strings.Contains(line, "blackhole") {
			t.Errorf("left after the sweep: %s", line)
		}
	}
	if err := l.check(lives); err != nil {
		t.Errorf("the wire that lives: %v", err)
	}
	if err := lives.Close(); err != nil || len(l.held()) != 0 {
		t.Errorf("%v; what is left is %q", err, l.held())
	}
}

// withoutIndex takes the numbers of interfaces out of what ip(8) says.
func withoutIndex(lines []string) []string {
	out := make([]string, 0, len(lines))
	for _, line := range lines {
		if number, rest, ok := strings.Cut(line, ": "+wirePrefix); ok && len(number) < 8 {
			line = wirePrefix + rest
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

// TestWireGone: a wire whose TUN was deleted says so, whatever else is wrong, and the next
// one takes its place; meanwhile nothing of the other side goes elsewhere.
func TestWireGone(t *testing.T) {
	l := newWireLab(t)
	w := l.mustOpen(l.config())
	before := l.held()
	conn, err := l.far.DialFrom(t.Context(), &net.UDPAddr{IP: wireFar.AsSlice()}, "udp4", "10.20.0.6:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	send := func() {
		t.Helper()
		if _, err := conn.Write([]byte("late")); err != nil {
			t.Error(err)
		}
	}
	ended := make(chan error, 1)
	go func() {
		bufs, sizes := buffers()
		for {
			if _, err := w.Read(bufs, sizes, 64); err != nil {
				ended <- err
				return
			}
		}
	}()
	l.ip("link", "delete", w.name)
	send()
	for range 2 {
		if err := l.check(w); !errors.Is(err, ErrWireGone) || !strings.Contains(err.Error(), w.name) {
			t.Errorf("Check says %v", err)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("Read goes on")
	}
	send()
	next := l.mustOpen(l.config())
	send()
	if err := l.check(next); err != nil {
		t.Errorf("the next wire: %v", err)
	}
	if now := withoutIndex(l.held()); !slices.Equal(now, withoutIndex(before)) {
		t.Errorf("with the next wire there is\n%q, before\n%q", now, before)
	}
	bufs, sizes := buffers()
	if n, err := next.Read(bufs, sizes, 64); n == 0 || err != nil {
		t.Errorf("by the next wire came %d packets, %v", n, err)
	}
	l.sealed()
	if err := next.Close(); err != nil || len(l.held()) != 0 {
		t.Errorf("closed: %v, %q is left", err, l.held())
	}
}
