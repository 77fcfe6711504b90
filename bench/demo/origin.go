package demo

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// The names that the internet's name server knows.
const (
	zone = "origin.example."
	// whence is a name whose TXT record says where the query for it came from.
	whence = "whence." + zone
)

// originServer is the far side: whatever asks it is told its own address as
// seen from there.
type originServer struct {
	plan *plan
	http *http.Server
	// refused answers where nobody may ask; unwanted are the connections to it.
	refused  *http.Server
	unwanted atomic.Int64
	held     *holder
	echo     net.PacketConn
	names    *dns.Server
	tasks    errgroup.Group

	mu      sync.Mutex
	askedBy []netip.AddrPort // who asked the name server for an address
}

// startOrigin starts the servers. The kernel answers echo requests by itself.
func startOrigin(w *world) (*originServer, error) {
	o := &originServer{plan: w.plan, http: &http.Server{Handler: http.HandlerFunc(tellSource)}}
	o.refused = &http.Server{Handler: o.http.Handler, ConnState: func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			o.unwanted.Add(1)
		}
	}}
	for server, a := range map[*http.Server]netip.AddrPort{o.http: w.plan.web, o.refused: w.plan.refused} {
		l, err := w.internet.Listen("tcp4", a.String())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("serve HTTP on the internet: %w", err), o.close())
		}
		o.tasks.Go(func() error { return ended(server.Serve(l), http.ErrServerClosed) })
	}
	l, err := w.internet.Listen("tcp4", w.plan.hold.String())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("hold connections on the internet: %w", err), o.close())
	}
	o.held = newHolder(l)
	if o.echo, err = w.internet.ListenPacket("udp4", w.plan.echo.String()); err != nil {
		return nil, errors.Join(fmt.Errorf("serve UDP on the internet: %w", err), o.close())
	}
	o.tasks.Go(func() error { return echoSources(o.echo) })
	c, err := w.internet.ListenPacket("udp4", w.plan.nameServer.String())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve DNS on the internet: %w", err), o.close())
	}
	// Shutting a server down works only once it runs.
	started := make(chan struct{})
	o.names = &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(o.answerName), NotifyStartedFunc: func() { close(started) }}
	o.tasks.Go(o.names.ActivateAndServe)
	<-started
	return o, nil
}

// close ends the servers and returns what they failed of.
func (o *originServer) close() error {
	err := errors.Join(o.http.Close(), o.refused.Close())
	if o.held != nil {
		err = errors.Join(err, o.held.close())
	}
	if o.echo != nil {
		err = errors.Join(err, o.echo.Close())
	}
	if o.names != nil {
		err = errors.Join(err, o.names.Shutdown())
	}
	return errors.Join(err, o.tasks.Wait())
}

// tellSource answers HTTP.
func tellSource(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write([]byte(r.RemoteAddr)) // the client sees that it failed
}

// echoSources answers datagrams.
func echoSources(c net.PacketConn) error {
	b := make([]byte, 2048)
	for {
		_, from, err := c.ReadFrom(b)
		if err != nil {
			return ended(err, net.ErrClosed)
		}
		_, _ = c.WriteTo([]byte(from.String()), from) // as lost as any datagram
	}
}

// answerName answers DNS.
func (o *originServer) answerName(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	name := q.Question[0].Name
	header := func(kind uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET}
	}
	switch kind := q.Question[0].Qtype; {
	case !dns.IsSubDomain(zone, name):
		m.Rcode = dns.RcodeRefused
	case kind == dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: header(kind), A: o.plan.web.Addr().AsSlice()}}
		if from, err := netip.ParseAddrPort(w.RemoteAddr().String()); err == nil {
			o.mu.Lock()
			o.askedBy = append(o.askedBy, from)
			o.mu.Unlock()
		}
	case kind == dns.TypeTXT && strings.EqualFold(name, whence):
		m.Answer = []dns.RR{&dns.TXT{Hdr: header(kind), Txt: []string{w.RemoteAddr().String()}}}
	}
	_ = w.WriteMsg(m) // as lost as any datagram
}

// asked are the addresses from which the name server was asked for addresses.
func (o *originServer) asked() []netip.AddrPort {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]netip.AddrPort(nil), o.askedBy...)
}

// holder accepts connections, tells each its source in a line, and sends what
// comes back, until the other side ends it.
type holder struct {
	listener net.Listener
	tasks    sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil once closed
}

func newHolder(l net.Listener) *holder {
	h := &holder{listener: l, conns: make(map[net.Conn]struct{})}
	h.tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if !h.add(c) {
				_ = c.Close()
				return
			}
			h.tasks.Go(func() { h.serve(c) })
		}
	})
	return h
}

func (h *holder) add(c net.Conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conns == nil {
		return false
	}
	h.conns[c] = struct{}{}
	return true
}

func (h *holder) serve(c net.Conn) {
	if _, err := fmt.Fprintln(c, c.RemoteAddr()); err == nil {
		_, _ = io.Copy(c, c) // ends as the other side likes
	}
	_ = c.Close()
	h.mu.Lock()
	delete(h.conns, c)
	h.mu.Unlock()
}

// close ends the listener and every connection.
func (h *holder) close() error {
	h.mu.Lock()
	conns := h.conns
	h.conns = nil
	h.mu.Unlock()
	for c := range conns {
		_ = c.Close()
	}
	err := h.listener.Close()
	h.tasks.Wait()
	return err
}

// ended is err, unless it is how the end was asked for.
func ended(err, asked error) error {
	if errors.Is(err, asked) {
		return nil
	}
	return err
}
