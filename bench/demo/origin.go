package demo

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// What the internet serves.
const (
	portHTTP = 80
	portEcho = 7
	portDNS  = 53
	zone     = "origin.example."
	// whence is a name whose TXT record says where the query for it came from.
	whence = "whence." + zone
)

// originServer is the far side: whatever asks it is told its own address as
// seen from there.
type originServer struct {
	http  *http.Server
	echo  net.PacketConn
	names *dns.Server
	tasks errgroup.Group
}

// startOrigin starts the servers. The kernel answers echo requests by itself.
func startOrigin(w *world) (*originServer, error) {
	o := &originServer{http: &http.Server{Handler: http.HandlerFunc(tellSource)}}
	for _, a := range []netip.Addr{origin, refused} {
		l, err := w.internet.Listen("tcp4", at(a, portHTTP))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("serve HTTP on the internet: %w", err), o.close())
		}
		o.tasks.Go(func() error { return ended(o.http.Serve(l), http.ErrServerClosed) })
	}
	var err error
	if o.echo, err = w.internet.ListenPacket("udp4", at(origin, portEcho)); err != nil {
		return nil, errors.Join(fmt.Errorf("serve UDP on the internet: %w", err), o.close())
	}
	o.tasks.Go(func() error { return echoSources(o.echo) })
	c, err := w.internet.ListenPacket("udp4", at(nameServer, portDNS))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve DNS on the internet: %w", err), o.close())
	}
	// Shutting a server down works only once it runs.
	started := make(chan struct{})
	o.names = &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(answerName), NotifyStartedFunc: func() { close(started) }}
	o.tasks.Go(o.names.ActivateAndServe)
	<-started
	return o, nil
}

// close ends the servers and returns what they failed of.
func (o *originServer) close() error {
	err := o.http.Close()
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
func answerName(w dns.ResponseWriter, q *dns.Msg) {
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
		m.Answer = []dns.RR{&dns.A{Hdr: header(kind), A: origin.AsSlice()}}
	case kind == dns.TypeTXT && strings.EqualFold(name, whence):
		m.Answer = []dns.RR{&dns.TXT{Hdr: header(kind), Txt: []string{w.RemoteAddr().String()}}}
	}
	_ = w.WriteMsg(m) // as lost as any datagram
}

// ended is err, unless it is how the end was asked for.
func ended(err, asked error) error {
	if errors.Is(err, asked) {
		return nil
	}
	return err
}

// at is an address with a port, as text.
func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
