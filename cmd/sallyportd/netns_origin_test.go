package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// What the origin serves. Each TCP service first does what its name says.
const (
	portHTTP   = 80   // tells the source
	portUDP    = 7    // tells the source, in a datagram
	portEcho   = 7001 // tells the source in a line, then echoes
	portSum    = 7002 // takes all up to FIN, then answers with a checksum and FIN
	portGive   = 7003 // reads a number, gives that many bytes and FIN, then takes all up to FIN
	portReset  = 7004 // reads a byte and resets
	portTake   = 7005 // takes all; tells the test how it ended
	portPour   = 7006 // as portGive, and tells the test when it cannot write on
	portLazy   = 7007 // as portSum, but begins to read only when the test says so
	portClosed = 7099 // nobody
)

// stall is how long a writer waits before it says that it cannot write on.
const stall = 300 * time.Millisecond

// origin is a far side, with servers in this process.
type origin struct {
	t         *testing.T
	on        *netlab.Namespace
	addr      netip.Addr
	http      *http.Server
	listeners []net.Listener
	packets   []net.PacketConn
	names     []*dns.Server
	tasks     sync.WaitGroup
	requests  atomic.Uint64 // HTTP requests
	datagrams atomic.Uint64
	takes     chan taken    // of portGive and portTake, in the order of their ends
	stalls    chan int64    // of portPour: bytes written before it stalled
	read      chan struct{} // lets one connection of portLazy be read
	asked     asked

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// taken is what a connection brought.
type taken struct {
	bytes int64
	sum   string
	err   error // nil for FIN
}

// asked are the queries that the name server saw.
type asked struct {
	mu      sync.Mutex
	queries []query
}

type query struct {
	name, network string
	from          netip.AddrPort
}

// newOrigin starts the origin's servers, the name server among them.
func newOrigin(g *ground) *origin {
	g.t.Helper()
	o := newFarSide(g.t, g.home, originAddr)
	o.serveNames()
	return o
}

// newFarSide starts servers on a machine. Close them.
func newFarSide(t *testing.T, on *netlab.Namespace, addr netip.Addr) *origin {
	t.Helper()
	o := &origin{
		t: t, on: on, addr: addr,
		takes: make(chan taken, 64), stalls: make(chan int64, 64), read: make(chan struct{}), conns: make(map[net.Conn]struct{}),
	}
	o.http = &http.Server{Handler: http.HandlerFunc(o.respond)}
	l := o.listen(portHTTP)
	o.tasks.Go(func() { _ = o.http.Serve(l) })
	for port, serve := range map[uint16]func(*net.TCPConn){
		portEcho: echoLines, portSum: sumUp, portGive: o.give, portReset: resetIt, portTake: o.take, portPour: o.pour,
		portLazy: func(c *net.TCPConn) { <-o.read; sumUp(c) },
	} {
		o.serve(o.listen(port), serve)
	}
	udp, err := on.ListenPacket("udp4", at(addr, portUDP))
	if err != nil {
		t.Fatal(err)
	}
	o.packets = append(o.packets, udp)
	o.tasks.Go(func() { o.tellSources(udp) })
	return o
}

// respond tells the source, but for /give/N, which is N bytes of noise, and /sum, which is
// the checksum of what was put there.
func (o *origin) respond(rw http.ResponseWriter, r *http.Request) {
	o.requests.Add(1)
	if n, ok := strings.CutPrefix(r.URL.Path, "/give/"); ok {
		size, _ := strconv.ParseInt(n, 10, 64)
		_, _ = io.CopyN(rw, newNoise(), size)
		return
	}
	if r.URL.Path != "/sum" {
		_, _ = io.WriteString(rw, r.RemoteAddr)
		return
	}
	h := sha256.New()
	if _, err := io.Copy(h, r.Body); err == nil {
		_, _ = io.WriteString(rw, hex.EncodeToString(h.Sum(nil)))
	}
}

func (o *origin) listen(port uint16) net.Listener {
	o.t.Helper()
	l, err := o.on.Listen("tcp4", at(o.addr, port))
	if err != nil {
		o.t.Fatal(err)
	}
	o.listeners = append(o.listeners, l)
	return l
}

// serve handles each connection on its own goroutine, and closes it then.
func (o *origin) serve(l net.Listener, handle func(*net.TCPConn)) {
	o.tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			o.mu.Lock()
			o.conns[c] = struct{}{}
			o.mu.Unlock()
			o.tasks.Go(func() {
				handle(c.(*net.TCPConn))
				_ = c.Close()
				o.mu.Lock()
				delete(o.conns, c)
				o.mu.Unlock()
			})
		}
	})
}

func (o *origin) close() {
	_ = o.http.Close()
	for _, l := range o.listeners {
		_ = l.Close()
	}
	for _, p := range o.packets {
		_ = p.Close()
	}
	for _, s := range o.names {
		_ = s.Shutdown()
	}
	close(o.read)
	o.mu.Lock()
	for c := range o.conns {
		_ = c.Close()
	}
	o.mu.Unlock()
	o.tasks.Wait()
}

func (o *origin) tellSources(c net.PacketConn) {
	b := make([]byte, 65535)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		o.datagrams.Add(1)
		_, _ = c.WriteTo(append([]byte(from.String()+" "), b[:n]...), from)
	}
}

func echoLines(c *net.TCPConn) {
	_, _ = fmt.Fprintln(c, c.RemoteAddr())
	_, _ = io.Copy(c, c)
}

func sumUp(c *net.TCPConn) {
	h := sha256.New()
	if _, err := io.Copy(h, c); err == nil {
		_, _ = io.WriteString(c, hex.EncodeToString(h.Sum(nil)))
	}
}

func resetIt(c *net.TCPConn) {
	_, _ = c.Read(make([]byte, 1))
	_ = c.SetLinger(0)
}

func (o *origin) take(c *net.TCPConn) {
	h := sha256.New()
	n, err := io.Copy(h, c)
	o.takes <- taken{n, hex.EncodeToString(h.Sum(nil)), err}
}

func (o *origin) give(c *net.TCPConn) {
	n, err := readNumber(c)
	if err != nil {
		return
	}
	if _, err := io.CopyN(c, newNoise(), n); err == nil && c.CloseWrite() == nil {
		o.take(c)
	}
}

func (o *origin) pour(c *net.TCPConn) {
	n, err := readNumber(c)
	if err != nil {
		return
	}
	w := &stallWriter{conn: c}
	if _, err := io.CopyN(w, newNoise(), n); errors.Is(err, os.ErrDeadlineExceeded) {
		o.stalls <- w.written
		if err = w.rest(n); err == nil {
			_ = c.CloseWrite()
		}
	} else {
		o.stalls <- -1 // nothing held it up
	}
}

// stallWriter writes until it is held up.
type stallWriter struct {
	conn    *net.TCPConn
	written int64
	left    []byte // of the write that was held up
	free    bool   // whether it may take as long as it likes
}

func (w *stallWriter) Write(b []byte) (int, error) {
	deadline := time.Now().Add(stall)
	if w.free {
		deadline = time.Now().Add(20 * time.Second)
	}
	_ = w.conn.SetWriteDeadline(deadline)
	n, err := w.conn.Write(b)
	w.written += int64(n)
	if err != nil {
		w.left = append([]byte(nil), b[n:]...)
		return len(b), err
	}
	return n, nil
}

// rest writes what is left of n bytes of noise.
func (w *stallWriter) rest(n int64) error {
	w.free = true
	source := newNoise()
	if _, err := io.CopyN(io.Discard, source, w.written); err != nil {
		return err
	}
	_, err := io.CopyN(w, source, n-w.written)
	return err
}

func readNumber(r io.Reader) (int64, error) {
	line, err := bufio.NewReaderSize(r, 16).ReadString('\n')
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(line), 10, 64)
}

// newNoise is an endless stream, always the same.
func newNoise() io.Reader { return rand.NewChaCha8([32]byte{1}) }

// noiseSum is the checksum of the first n bytes of it.
func noiseSum(n int64) string {
	h := sha256.New()
	_, _ = io.CopyN(h, newNoise(), n)
	return hex.EncodeToString(h.Sum(nil))
}

// serveNames serves the zone "origin.example." by UDP and TCP.
func (o *origin) serveNames() {
	where := at(nameServer, 53)
	udp, err := o.on.ListenPacket("udp4", where)
	if err != nil {
		o.t.Fatal(err)
	}
	tcp, err := o.on.Listen("tcp4", where)
	if err != nil {
		o.t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: udp}, {Listener: tcp}} {
		// Shutting a server down works only once it runs.
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		s.Handler = dns.HandlerFunc(o.answer)
		o.names = append(o.names, s)
		o.tasks.Go(func() { _ = s.ActivateAndServe() })
		<-started
	}
}

// bigNames is how many addresses big.origin.example has, too many for a datagram but where
// the question allows one of bigAnswer bytes, which comes in fragments.
const (
	bigNames  = 200
	bigAnswer = 8192
)

func (o *origin) answer(w dns.ResponseWriter, q *dns.Msg) {
	name, network := q.Question[0].Name, w.RemoteAddr().Network()
	from, _ := netip.ParseAddrPort(w.RemoteAddr().String())
	o.asked.mu.Lock()
	o.asked.queries = append(o.asked.queries, query{name, network, from})
	o.asked.mu.Unlock()
	m := new(dns.Msg).SetReply(q)
	record := func(a netip.Addr) dns.RR {
		return &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: a.AsSlice()}
	}
	switch big := strings.EqualFold(name, "big.origin.example."); {
	case q.Question[0].Qtype != dns.TypeA:
	case big && network == "udp" && (q.IsEdns0() == nil || q.IsEdns0().UDPSize() < bigAnswer):
		m.Truncated = true
	case big:
		for i := range bigNames {
			m.Answer = append(m.Answer, record(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})))
		}
	case strings.HasSuffix(strings.ToLower(name), ".origin.example."):
		m.Answer = []dns.RR{record(originAddr)}
	default:
		m.Rcode = dns.RcodeNameError
	}
	_ = w.WriteMsg(m)
}

// of returns the queries for a name.
func (a *asked) of(name string) (out []query) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, q := range a.queries {
		if strings.EqualFold(q.name, name) {
			out = append(out, q)
		}
	}
	return out
}

// bait is a listener by TCP and UDP on which nothing may ever arrive.
func (g *ground) bait(n interface {
	Listen(network, address string) (net.Listener, error)
	ListenPacket(network, address string) (net.PacketConn, error)
}, address string) {
	g.t.Helper()
	l, err := n.Listen("tcp4", address)
	if err != nil {
		g.t.Fatal(err)
	}
	p, err := n.ListenPacket("udp4", address)
	if err != nil {
		g.t.Fatal(err)
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.t.Errorf("a connection from %v arrived at %v", c.RemoteAddr(), l.Addr())
			_ = c.Close()
		}
	})
	tasks.Go(func() {
		b := make([]byte, 100)
		for {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			g.t.Errorf("%q from %v arrived at %v", b[:n], from, p.LocalAddr())
		}
	})
	g.t.Cleanup(func() {
		_, _ = l.Close(), p.Close()
		tasks.Wait()
	})
}

// next receives from a channel in time.
func next[T any](t *testing.T, c <-chan T, within time.Duration, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(within):
		t.Fatalf("%s: not within %v", what, within)
		panic("not reached")
	}
}
