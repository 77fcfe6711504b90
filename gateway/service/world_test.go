package service

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/internal/packet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait; it is reached only by a failing test.
const patience = 10 * time.Second

var (
	gateway  = netip.MustParseAddr("10.1.0.1")
	inside   = netip.MustParseAddr("10.1.0.5")
	outside  = netip.MustParseAddr("203.0.113.9")
	resolver = [2]netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("198.51.100.53")}
)

// health is what the tests' gateway says of itself.
type health struct{ now atomic.Uint32 }

func (h *health) Health() packet.Health { return packet.Health(h.now.Load()) }

// world is the services under test and, behind one other stack, everybody else: a
// sandbox, a stranger and two resolvers.
type world struct {
	t      testing.TB
	svc    *Services
	others *netstack.Device
	health health
	end    func() error // ends Run and returns what it returned

	mu      sync.Mutex
	sources []netip.AddrPort // where questions to the resolvers came from
}

func newWorld(t testing.TB, change func(*Config)) *world {
	t.Helper()
	w := &world{t: t}
	c := Config{
		Address: gateway, Network: netip.MustParsePrefix("10.1.0.0/16"), Health: &w.health,
		Upstreams: []netip.AddrPort{netip.AddrPortFrom(resolver[0], 53), netip.AddrPortFrom(resolver[1], 53)},
		Timeout:   300 * time.Millisecond,
	}
	if change != nil {
		change(&c)
	}
	var err error
	if w.svc, err = New(c); err != nil {
		t.Fatal(err)
	}
	if w.others, err = netstack.New(netstack.Config{Addresses: []netip.Addr{inside, outside, resolver[0], resolver[1]}}); err != nil {
		t.Fatal(err)
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { pump(t, w.svc.Device(), w.others) })
	pumps.Go(func() { pump(t, w.others, w.svc.Device()) })
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- w.svc.Run(ctx) }()
	w.end = sync.OnceValue(func() error {
		cancel()
		return <-ran
	})
	t.Cleanup(func() {
		if err := w.end(); err != nil {
			t.Errorf("run: %v", err)
		}
		w.others.Close()
		pumps.Wait()
	})
	return w
}

func pump(t testing.TB, from, to *netstack.Device) {
	bufs, sizes := make([][]byte, netstack.BatchSize), make([]int, netstack.BatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	for {
		n, err := from.Read(bufs, sizes, 0)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("read: %v", err)
			}
			return
		}
		out := make([][]byte, n)
		for i := range out {
			out[i] = bufs[i][:sizes[i]]
		}
		if _, err := to.Write(out, 0); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Errorf("write: %v", err)
		}
	}
}

// serve runs a resolver whose answers answer makes, over UDP and TCP.
func (w *world) serve(addr netip.Addr, answer func(w dns.ResponseWriter, q *dns.Msg)) {
	w.t.Helper()
	udp, err := w.others.ListenUDP(netip.AddrPortFrom(addr, 53))
	if err != nil {
		w.t.Fatal(err)
	}
	tcp, err := w.others.ListenTCP(netip.AddrPortFrom(addr, 53))
	if err != nil {
		w.t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		from := netip.MustParseAddrPort(rw.RemoteAddr().String())
		w.mu.Lock()
		w.sources = append(w.sources, from)
		w.mu.Unlock()
		answer(rw, q)
	})
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: handler}, {Listener: tcp, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := s.ActivateAndServe(); err != nil && !errors.Is(err, net.ErrClosed) {
				w.t.Errorf("resolver: %v", err)
			}
		}()
		<-started
		w.t.Cleanup(func() {
			s.Shutdown()
			<-done
		})
	}
}

// ask puts a question to the service from an address.
func (w *world) ask(network string, q *dns.Msg) (*dns.Msg, error) {
	w.t.Helper()
	var conn net.Conn
	var err error
	local, remote := netip.AddrPortFrom(inside, 0), netip.AddrPortFrom(gateway, 53)
	if network == "udp" {
		conn, err = w.others.DialUDP(local, remote)
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		conn, err = w.others.DialTCP(ctx, local, remote)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	c := &dns.Conn{Conn: conn, UDPSize: 4096}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if err := c.WriteMsg(q); err != nil {
		w.t.Fatal(err)
	}
	return c.ReadMsg()
}

func question(name string) *dns.Msg { return new(dns.Msg).SetQuestion(name, dns.TypeA) }

// answerA answers with n addresses.
func answerA(q *dns.Msg, n int) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	for i := range n {
		m.Answer = append(m.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
			A:   net.IPv4(198, 51, 100, byte(i)),
		})
	}
	return m
}
