package proxy

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A UDP association (RFC 1928 section 7) has a socket on the worker's loopback,
// for datagrams with a header that says whereto or wherefrom, and one in the
// network. It lives as long as the connection on which it was asked for.
//
// The protocol has no password for datagrams. So the association belongs to the
// port that the request names, or else to that of the first datagram with a
// proper header; all others are ignored.
//
// The stack below takes no fragments: datagrams larger than a packet of the
// network can be sent, and not received.

const (
	// maxDatagram is the largest datagram in bytes, maxHeaderUDP the largest header
	// before it: one with a name.
	maxDatagram  = 65507
	maxHeaderUDP = 3 + 1 + 1 + 255 + 2
	// nearHeaderUDP is the size of a header with an IPv4 address.
	nearHeaderUDP = 3 + 1 + 4 + 2
	// pendingNames is how many names an association may look up at once; datagrams
	// to names beyond are dropped.
	pendingNames = 8
	// knownNames is how many addresses of names an association remembers, and
	// knownFor for how long.
	knownNames = 64
	knownFor   = 30 * time.Second
)

// association is one UDP association.
type association struct {
	server *Server
	near   *net.UDPConn // to the client
	far    PacketConn   // to the network
	port   uint16       // of the client, if it named one
	client atomic.Pointer[netip.AddrPort]
	asking chan struct{} // holds an element per name that is looked up
	tasks  sync.WaitGroup

	mu    sync.Mutex // guards names
	names map[string]knownName
}

// knownName is a name that was looked up.
type knownName struct {
	addr  netip.Addr
	until time.Time
}

// socksAssociate serves UDP ASSOCIATE.
func (s *Server) socksAssociate(c *client, t target) {
	if !s.associate() {
		s.refuseSOCKS(c, replyFailure)
		return
	}
	defer s.dissociate()
	a, err := s.newAssociation(t.port)
	s.noteDial(err)
	if err != nil {
		s.refuseSOCKS(c, replyTo(err))
		return
	}
	defer a.close()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	a.tasks.Go(func() { a.outward(ctx) })
	a.tasks.Go(a.inward)
	bound := a.near.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := c.Write(appendReply(nil, replySucceeded, bound)); err == nil {
		_, _ = io.Copy(io.Discard, struct{ io.Reader }{c}) // it has nothing more to say
	}
	cancel()
	_ = c.Close()
}

// newAssociation opens both sockets. Port is the client's, 0 if it did not say.
func (s *Server) newAssociation(port uint16) (*association, error) {
	near, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	far, err := s.cfg.Network.ListenUDP()
	if err != nil {
		_ = near.Close()
		return nil, err
	}
	return &association{
		server: s, near: near, far: far, port: port,
		asking: make(chan struct{}, pendingNames), names: make(map[string]knownName),
	}, nil
}

// close returns when nothing of the association runs any more.
func (a *association) close() {
	_ = a.near.Close()
	_ = a.far.Close()
	a.tasks.Wait()
}

// outward carries datagrams from the client to the network.
func (a *association) outward(ctx context.Context) {
	buf := make([]byte, maxHeaderUDP+maxDatagram)
	for {
		n, from, err := a.near.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if !a.mayBe(from) {
			continue
		}
		t, payload, ok := parseDatagram(buf[:n])
		if !ok {
			continue
		}
		if a.client.Load() == nil {
			a.client.Store(&from)
		}
		if !t.addr.IsValid() {
			a.byName(ctx, t, payload)
			continue
		}
		a.send(netip.AddrPortFrom(t.addr, t.port), payload)
	}
}

// mayBe says whether a datagram can be the client's.
func (a *association) mayBe(from netip.AddrPort) bool {
	if known := a.client.Load(); known != nil {
		return *known == from
	}
	return a.port == 0 || a.port == from.Port()
}

// parseDatagram splits a datagram of a client's. Fragments are not taken, which
// RFC 1928 allows.
func parseDatagram(b []byte) (t target, payload []byte, ok bool) {
	if len(b) < 3 || b[0] != 0 || b[1] != 0 || b[2] != 0 {
		return target{}, nil, false
	}
	r := bytes.NewReader(b[3:])
	t, err := readTarget(r)
	if err != nil {
		return target{}, nil, false
	}
	return t, b[len(b)-r.Len():], true
}

// send sends a datagram into the network. What cannot be sent is dropped, as
// datagrams are.
func (a *association) send(to netip.AddrPort, payload []byte) {
	if check(to) == nil {
		_, _ = a.far.WriteToUDPAddrPort(payload, to)
	}
}

// byName sends a datagram to a name, and does not hold up those behind it.
func (a *association) byName(ctx context.Context, t target, payload []byte) {
	a.mu.Lock()
	known, ok := a.names[t.name]
	a.mu.Unlock()
	if ok && time.Now().Before(known.until) {
		a.send(netip.AddrPortFrom(known.addr, t.port), payload)
		return
	}
	select {
	case a.asking <- struct{}{}:
	default:
		return
	}
	kept := bytes.Clone(payload)
	a.tasks.Go(func() {
		defer func() { <-a.asking }()
		ctx, cancel := context.WithTimeout(ctx, a.server.cfg.DialTimeout)
		defer cancel()
		found, err := a.server.resolver.lookup(ctx, t.name)
		if err != nil {
			return
		}
		a.remember(t.name, found[0])
		a.send(netip.AddrPortFrom(found[0], t.port), kept)
	})
}

// remember keeps a name's address for the datagrams that follow.
func (a *association) remember(name string, addr netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.names) >= knownNames {
		clear(a.names)
	}
	a.names[name] = knownName{addr: addr, until: time.Now().Add(knownFor)}
}

// inward carries datagrams from the network to the client.
func (a *association) inward() {
	buf := make([]byte, nearHeaderUDP+maxDatagram)
	for {
		n, from, err := a.far.ReadFromUDPAddrPort(buf[nearHeaderUDP:])
		if err != nil {
			return
		}
		client := a.client.Load()
		if client == nil {
			continue
		}
		appendAddress(append(buf[:0], 0, 0, 0), from)
		_, _ = a.near.WriteToUDPAddrPort(buf[:nearHeaderUDP+n], *client)
	}
}
