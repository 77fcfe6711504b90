package netlab_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// pair are two namespaces with a link between them, or a line.
func pair(t *testing.T) (lab *netlab.Lab, ends [2]netlab.End) {
	t.Helper()
	lab = netlab.Test(t)
	for i, name := range []string{"one", "two"} {
		ends[i] = netlab.End{
			Namespace: lab.Namespace(name), Link: "eth0",
			Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, 0, byte(i + 1)}), 24),
		}
	}
	return lab, ends
}

const atTwo = "10.2.0.2:7"

// Each direction can be cut at the ends themselves, not only at a router.
func TestLinkLosesOneDirection(t *testing.T) {
	lab, ends := pair(t)
	one, two := ends[0].Namespace, ends[1].Namespace
	link := lab.Connect(ends[0], ends[1])
	echo(t, two, atTwo)
	saw, err := two.Capture("eth0")
	if err != nil {
		t.Fatal(err)
	}
	outgoing := netlab.Source{Addr: ends[0].Address.Addr()}
	back := netlab.Source{Addr: ends[1].Address.Addr(), Out: true}
	for _, c := range []struct {
		name     string
		towards  *netlab.Namespace
		answered bool // whether the far end answers, lost or not
	}{{"towards one", one, true}, {"towards two", two, false}} {
		t.Run(c.name, func(t *testing.T) {
			for range 2 { // it may be repeated
				if err := link.Lose(c.towards, true); err != nil {
					t.Fatal(err)
				}
			}
			before := saw.Sources()
			if err := ask(t, one, atTwo, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("asked over a cut link: %v, want silence", err)
			}
			after := saw.Sources()
			if after[outgoing] == before[outgoing] {
				t.Error("the question did not even arrive at the link")
			}
			if got := after[back] != before[back]; got != c.answered {
				t.Errorf("answered: %t, want %t", got, c.answered)
			}
			for range 2 {
				if err := link.Lose(c.towards, false); err != nil {
					t.Fatal(err)
				}
			}
			if err := ask(t, one, atTwo, 5*time.Second); err != nil {
				t.Errorf("after it was mended: %v", err)
			}
		})
	}
	if err := link.Lose(lab.Namespace("elsewhere"), true); err == nil {
		t.Error("a link loses packets to who is not on it")
	}
}

func TestBridge(t *testing.T) {
	lab := netlab.Test(t)
	hub := lab.Namespace("switch")
	hub.Bridge("br0")
	hub.Address("br0", netip.MustParsePrefix("10.3.0.1/24"))
	names := []string{"a", "b", "c"}
	var machines []*netlab.Namespace
	for i, name := range names {
		n := lab.Namespace(name)
		lab.Connect(
			netlab.End{Namespace: n, Link: "eth0", Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 3, 0, byte(10 + i)}), 24)},
			netlab.End{Namespace: hub, Link: name})
		hub.Bridge("br0", name)
		machines = append(machines, n)
	}
	hub.Bridge("br0", names...) // it may be repeated
	echo(t, machines[2], "10.3.0.12:7")
	echo(t, hub, "10.3.0.1:7")
	for _, n := range machines[:2] {
		for _, to := range []string{"10.3.0.12:7", "10.3.0.1:7"} {
			if err := ask(t, n, to, 5*time.Second); err != nil {
				t.Errorf("%v asks %s: %v", n, to, err)
			}
		}
	}
}

// transfer sends bytes from one to two and returns how long that took.
func transfer(t *testing.T, one, two *netlab.Namespace, size int64) time.Duration {
	t.Helper()
	l, err := two.Listen("tcp4", atTwo)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	began := time.Now()
	c, err := one.Dial(t.Context(), "tcp4", atTwo)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		_, _ = c.Write(make([]byte, size))
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if n, err := io.Copy(io.Discard, in); err != nil || n != size {
		t.Fatalf("%d of %d bytes: %v", n, size, err)
	}
	return time.Since(began)
}

func TestLinkLimit(t *testing.T) {
	lab, ends := pair(t)
	one, two := ends[0].Namespace, ends[1].Namespace
	link := lab.Connect(ends[0], ends[1])
	const size = 1 << 20
	for range 2 {
		if err := link.Limit(one, hostnet.Rate{Bits: 40e6}); err != nil {
			t.Fatal(err)
		}
		// 8.4 Mbit at 40 Mbit/s, less what may leave at once.
		if took := transfer(t, one, two, size); took < 150*time.Millisecond {
			t.Errorf("%d bytes at 40 Mbit/s took %v", size, took)
		}
	}
	for range 2 {
		if err := link.Limit(one, hostnet.Rate{}); err != nil {
			t.Fatal(err)
		}
	}
	// 134 Mbit would take more than 3 s with it, however idle the machine is.
	if took := transfer(t, one, two, 16*size); took > 3*time.Second {
		t.Errorf("without a limit %d bytes took %v", 16*size, took)
	}
	if err := link.Limit(one, hostnet.Rate{Bits: 1}); err == nil {
		t.Error("a link is limited to an eighth of a byte per second")
	}
}

func TestLine(t *testing.T) {
	lab, ends := pair(t)
	one, two := ends[0].Namespace, ends[1].Namespace
	line := lab.ConnectLine(ends[0], ends[1], 1)
	echo(t, two, atTwo)
	if err := ask(t, one, atTwo, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	set := func(towards *netlab.Namespace, q netlab.Quality) {
		t.Helper()
		if err := line.Set(towards, q); err != nil {
			t.Fatal(err)
		}
	}
	set(two, netlab.Quality{Delay: 20 * time.Millisecond})
	set(one, netlab.Quality{Delay: 10 * time.Millisecond, Jitter: time.Millisecond})
	began := time.Now()
	if err := ask(t, one, atTwo, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 30*time.Millisecond {
		t.Errorf("there and back took %v, want at least 30 ms", took)
	}
	set(two, netlab.Quality{Delay: 5 * time.Millisecond, Loss: 0.02})
	transfer(t, one, two, 1<<19)
	stats, err := line.Stats(two)
	if err != nil || stats.Lost == 0 || stats.Passed == 0 {
		t.Errorf("towards two: %+v, %v", stats, err)
	}
	set(two, netlab.Quality{})
	set(one, netlab.Quality{Loss: 1})
	if err := ask(t, one, atTwo, 30*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("asked over a cut line: %v", err)
	}
	set(one, netlab.Quality{})
	if err := ask(t, one, atTwo, 5*time.Second); err != nil {
		t.Errorf("after it was mended: %v", err)
	}
	for _, q := range []netlab.Quality{{Delay: -1}, {Jitter: -1}, {Queue: -1}, {Loss: 1.1}, {Loss: -1}} {
		if err := line.Set(one, q); err == nil {
			t.Errorf("took %+v", q)
		}
	}
	if err := line.Set(lab.Namespace("elsewhere"), netlab.Quality{}); err == nil {
		t.Error("a line takes a namespace that is not on it")
	}
}
