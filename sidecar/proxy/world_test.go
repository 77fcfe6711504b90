package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/internal/netstack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// The network of these tests: a sandbox's stack and, cabled to it, a far one
// that is all the hosts there are.
var (
	inner    = netip.MustParseAddr("10.0.1.5")
	server1  = netip.MustParseAddr("10.0.0.1") // name servers
	server2  = netip.MustParseAddr("10.0.0.2")
	origin   = netip.MustParseAddr("192.0.2.80")
	loopback = netip.MustParseAddr("127.1.2.3") // of the network, not of this machine
	silent   = netip.MustParseAddr("192.0.2.99")
)

// The ports of the origin.
const (
	portEcho   = 7   // TCP and UDP
	portSum    = 8   // counts up to FIN, then says the number and ends
	portReset  = 9   // reads a byte and resets
	portTake   = 10  // tells the test how the connection ended
	portHTTP   = 80  // see the tests of HTTP
	portClosed = 999 // nobody
)

// world is a server and the network behind it.
type world struct {
	*Server
	near, far *netstack.Device
	taken     chan error // how connections to portTake ended
	mu        sync.Mutex
	asked     map[string]int // questions, by network, server and name
}

// newWorld makes one; nil leaves the configuration as it is.
func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := &world{taken: make(chan error, 8), asked: make(map[string]int)}
	var err error
	if w.near, err = netstack.New(netstack.Config{Addresses: []netip.Addr{inner}, TimeWait: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	w.far, err = netstack.New(netstack.Config{Addresses: []netip.Addr{server1, server2, origin, loopback}, TimeWait: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var cable, servers sync.WaitGroup
	cable.Go(func() { carryPackets(w.far, w.near) })
	cable.Go(func() { carryPackets(w.near, w.far) })
	w.serveOrigin(t, &servers)
	w.serveNames(t, &servers)
	cfg := Config{Network: Stack{Device: w.near, Local: inner}, DNS: []netip.Addr{server1, server2}}
	if change != nil {
		change(&cfg)
	}
	if w.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.near.Close()
		w.Close()
		w.far.Close()
		cable.Wait()
		servers.Wait()
	})
	return w
}

// carryPackets is one direction of a cable.
func carryPackets(dst, src *netstack.Device) {
	bufs, sizes := make([][]byte, netstack.BatchSize), make([]int, netstack.BatchSize)
	full := make([][]byte, netstack.BatchSize)
	for i := range full {
		full[i] = make([]byte, 1500)
	}
	for {
		n, err := src.Read(full, sizes, 0)
		if err != nil {
			return
		}
		for i := range n {
			bufs[i] = full[i][:sizes[i]]
		}
		_, _ = dst.Write(bufs[:n], 0)
	}
}

func (w *world) serveOrigin(t *testing.T, tasks *sync.WaitGroup) {
	for _, a := range []netip.Addr{origin, loopback} {
		w.serveTCP(t, tasks, netip.AddrPortFrom(a, portEcho), func(c *netstack.Conn) { _, _ = io.Copy(c, c) })
	}
	w.serveTCP(t, tasks, netip.AddrPortFrom(origin, portSum), func(c *netstack.Conn) {
		n, _ := io.Copy(io.Discard, c)
		_, _ = fmt.Fprint(c, n)
	})
	w.serveTCP(t, tasks, netip.AddrPortFrom(origin, portReset), func(c *netstack.Conn) {
		_, _ = c.Read(make([]byte, 1))
		c.Abort()
	})
	w.serveTCP(t, tasks, netip.AddrPortFrom(origin, portTake), func(c *netstack.Conn) {
		_, err := io.Copy(io.Discard, c)
		w.taken <- err
	})
	u, err := w.far.ListenUDP(netip.AddrPortFrom(origin, portEcho))
	if err != nil {
		t.Fatal(err)
	}
	tasks.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := u.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = u.WriteToUDPAddrPort(b[:n], from)
		}
	})
}

// serveTCP handles each connection on its own goroutine and closes it then.
func (w *world) serveTCP(t *testing.T, tasks *sync.WaitGroup, at netip.AddrPort, handle func(*netstack.Conn)) {
	t.Helper()
	l, err := w.far.ListenTCP(at)
	if err != nil {
		t.Fatal(err)
	}
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer c.Close()
				handle(c.(*netstack.Conn))
			})
		}
	})
}

// serveNames serves names on both name servers: the first fails for those that
// begin with "second".
func (w *world) serveNames(t *testing.T, tasks *sync.WaitGroup) {
	for _, a := range []netip.Addr{server1, server2} {
		at := netip.AddrPortFrom(a, dnsPort)
		u, err1 := w.far.ListenUDP(at)
		l, err2 := w.far.ListenTCP(at)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*dns.Server{{PacketConn: u}, {Listener: l}} {
			s.Handler = dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) { w.answerName(a, rw, q) })
			tasks.Go(func() { _ = s.ActivateAndServe() })
			t.Cleanup(func() { _ = s.Shutdown() })
		}
	}
}

func (w *world) answerName(at netip.Addr, rw dns.ResponseWriter, q *dns.Msg) {
	name, network := q.Question[0].Name, rw.LocalAddr().Network()
	w.mu.Lock()
	w.asked[fmt.Sprint(network, " ", at, " ", name)]++
	w.mu.Unlock()
	m := new(dns.Msg).SetReply(q)
	add := func(a netip.Addr) {
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: "end.example.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: a.AsSlice()})
	}
	switch label, _, _ := strings.Cut(strings.ToLower(name), "."); label {
	case "origin":
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET}, Target: "end.example."})
		add(origin)
	case "two": // of which the first does not listen
		add(server1)
		add(origin)
	case "second":
		if at == server1 {
			m.SetRcode(q, dns.RcodeServerFailure)
		} else {
			add(origin)
		}
	case "big":
		if m.Truncated = network == "udp"; !m.Truncated {
			add(origin)
		}
	case "empty":
	case "mute":
		return
	default:
		m.SetRcode(q, dns.RcodeNameError)
	}
	_ = rw.WriteMsg(m)
}

func (w *world) askedFor(question string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked[question]
}

// client connects to the proxy.
func (w *world) client(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp4", w.Address().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// login says the first two messages of SOCKS5.
func (w *world) login(t *testing.T, c net.Conn) {
	t.Helper()
	who := w.Credentials()
	hello := append([]byte{5, 2, 0, 2, 1, byte(len(who.User))}, who.User...)
	hello = append(append(hello, byte(len(who.Password))), who.Password...)
	if _, err := c.Write(hello); err != nil {
		t.Fatal(err)
	}
	expect(t, c, []byte{5, 2, 1, 0})
}

// request says the third and returns the answer's code and address.
func request(t *testing.T, c net.Conn, command byte, to []byte) (byte, netip.AddrPort) {
	t.Helper()
	if _, err := c.Write(append([]byte{5, command, 0}, to...)); err != nil {
		t.Fatal(err)
	}
	var b [10]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		t.Fatalf("read the answer to a request: %v", err)
	}
	if b[0] != 5 || b[2] != 0 || b[3] != familyIPv4 {
		t.Fatalf("answer % x", b)
	}
	return b[1], netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[8])<<8|uint16(b[9]))
}

// connect is a connection by SOCKS5 that must succeed.
func (w *world) connect(t *testing.T, to []byte) *net.TCPConn {
	t.Helper()
	c := w.client(t)
	w.login(t, c)
	if code, bound := request(t, c, commandConnect, to); code != 0 || bound.Addr() != inner {
		t.Fatalf("CONNECT is answered with %d and %v", code, bound)
	}
	return c
}

// ip and name are destinations in SOCKS5.
func ip(a netip.Addr, port uint16) []byte { return appendAddress(nil, netip.AddrPortFrom(a, port)) }

func name(n string, port uint16) []byte {
	return append(append([]byte{familyName, byte(len(n))}, n...), byte(port>>8), byte(port))
}

// expect reads exactly these bytes.
func expect(t *testing.T, r io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got % x, %v; want % x", got[:n], err, want)
	}
}

// ended waits until a connection ends, and returns how: nil is a FIN.
func ended(t *testing.T, c net.Conn) error {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the connection lives on: %v", err)
	}
	return err
}

// wantStats waits for the counters, all of them.
func (w *world) wantStats(t *testing.T, want Stats) {
	t.Helper()
	deadline := time.After(patience)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for w.Stats() != want {
		select {
		case <-again.C:
		case <-deadline:
			t.Errorf("counters %+v, want %+v", w.Stats(), want)
			return
		}
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for !condition() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("after %v still not so: %s", patience, what)
		}
	}
}
