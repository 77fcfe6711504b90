// Package proxy serves SOCKS5 and HTTP on the worker's loopback to one program
// that cannot be given a network of its own, and carries its connections into a
// network.
//
// It confines nothing: a program that does not ask the proxy is not stopped.
//
// # The life of a connection
//
// One listener serves both protocols. The first byte tells them apart: 5 is
// SOCKS5 (socks.go: RFC 1928 with the passwords of RFC 1929, CONNECT and, in
// associate.go, UDP ASSOCIATE), all else is HTTP/1 (http.go: CONNECT, and
// requests with an absolute URL, by net/http). Both ask for the name and password
// that [Server.Credentials] tells; they are random, because every process of the
// machine may connect.
//
// A name is looked up by the network's own name servers (resolve.go), never by
// the worker's. Then the destination is dialled, and bytes are carried both ways
// until both have ended (relay.go): a half-close and a reset cross over.
//
// # Bounds
//
// Connections and UDP associations are limited; who comes beyond is reset or
// refused. A connection has one goroutine per direction, each with a buffer of
// 32 KiB, an association about 130 KiB. A client has 10 s to say what it wants, a
// destination 30 s to answer, and a connection on which nothing moves for 2 h
// 4 min is reset.
package proxy

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Network is where the proxied program's connections go. Closing it must end
// all that it gave out.
type Network interface {
	// DialTCP connects to an IPv4 address.
	DialTCP(ctx context.Context, to netip.AddrPort) (Conn, error)
	// DialUDP opens a socket for datagrams from and to one IPv4 address; it must be
	// a [net.PacketConn], too.
	DialUDP(to netip.AddrPort) (net.Conn, error)
	// ListenUDP opens a socket for datagrams from and to anybody.
	ListenUDP() (PacketConn, error)
}

// Conn is a TCP connection. Its errors satisfy errors.Is with those of package syscall.
type Conn interface {
	net.Conn
	// CloseWrite sends FIN; reading goes on.
	CloseWrite() error
	// Abort ends the connection at once, with a RST.
	Abort()
}

// PacketConn is a socket for datagrams, as [*net.UDPConn] is one.
type PacketConn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	Close() error
}

// Config is what a Server is made of. The zero value of a field that has a
// default takes it.
type Config struct {
	// Network is where connections go.
	Network Network
	// DNS are the network's name servers, in the order in which they are asked.
	DNS []netip.Addr
	// MaxConnections is how many clients may be connected. Default 1024.
	MaxConnections int
	// MaxAssociations is how many of them may have a UDP association. Default 64.
	MaxAssociations int
	// HandshakeTimeout is how long a client may take to say what it wants. Default 10 s.
	HandshakeTimeout time.Duration
	// DialTimeout bounds looking a name up and connecting. Default 30 s.
	DialTimeout time.Duration
	// LookupTimeout is how long a name server may take to answer. Default 2 s.
	LookupTimeout time.Duration
	// IdleTimeout is how long a connection may live on which nothing moves. Default
	// 2 h 4 min, the least that a translator grants (RFC 5382, REQ-5).
	IdleTimeout time.Duration
}

func (c Config) withDefaults() Config {
	for field, standard := range map[*time.Duration]time.Duration{
		&c.HandshakeTimeout: 10 * time.Second,
		&c.DialTimeout:      30 * time.Second,
		&c.LookupTimeout:    2 * time.Second,
		&c.IdleTimeout:      2*time.Hour + 4*time.Minute,
	} {
		if *field == 0 {
			*field = standard
		}
	}
	for field, standard := range map[*int]int{&c.MaxConnections: 1024, &c.MaxAssociations: 64} {
		if *field == 0 {
			*field = standard
		}
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.Network == nil:
		return errors.New("no network was given")
	case len(c.DNS) == 0:
		return errors.New("no name server was given")
	case c.MaxConnections < 1 || c.MaxAssociations < 1:
		return fmt.Errorf("at most %d connections and %d associations: must be at least 1", c.MaxConnections, c.MaxAssociations)
	case c.HandshakeTimeout < 0 || c.DialTimeout < 0 || c.LookupTimeout < 0 || c.IdleTimeout < 0:
		return errors.New("a timeout is negative")
	}
	return nil
}

// Credentials are what a client must present.
type Credentials struct{ User, Password string }

// newCredentials draws 64 and 128 random bits; the hexadecimal digits need no
// escape in a URL.
func newCredentials() Credentials {
	b := make([]byte, 24)
	_, _ = rand.Read(b) // never fails
	return Credentials{User: hex.EncodeToString(b[:8]), Password: hex.EncodeToString(b[8:])}
}

// match compares in a time that tells nothing but the lengths.
func (c Credentials) match(user, password []byte) bool {
	u := subtle.ConstantTimeCompare([]byte(c.User), user)
	p := subtle.ConstantTimeCompare([]byte(c.Password), password)
	return u&p == 1
}

// Stats are a gauge and counters since New.
type Stats struct {
	Open    int    `json:"open"`    // clients that are connected now
	Served  uint64 `json:"served"`  // connections and associations that were made
	Failed  uint64 `json:"failed"`  // requests whose destination could not be reached
	Refused uint64 `json:"refused"` // clients beyond the limits, and those without the password
}

// Server serves one program.
type Server struct {
	cfg         Config
	listener    net.Listener
	credentials Credentials
	resolver    *resolver
	web         *http.Server
	transport   *http.Transport
	handOff     *handOff
	ctx         context.Context    // ended by Close
	end         context.CancelFunc // ends ctx
	buffers     sync.Pool          // *[]byte of bufferSize
	tasks       sync.WaitGroup     // all that runs

	mu           sync.Mutex // guards what follows, and that nothing enters once ctx has ended
	clients      map[*client]struct{}
	associations int
	stats        Stats
}

// New makes a server on a free port of 127.0.0.1, which serves at once. It must
// be closed, after its network.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("make a proxy: %w", err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("make a proxy: %w", err)
	}
	s := &Server{
		cfg: cfg, listener: l, credentials: newCredentials(),
		resolver: &resolver{network: cfg.Network, servers: cfg.DNS, timeout: cfg.LookupTimeout},
		handOff:  &handOff{address: l.Addr(), conns: make(chan net.Conn), closed: make(chan struct{})},
		clients:  make(map[*client]struct{}),
	}
	s.buffers.New = func() any { b := make([]byte, bufferSize); return &b }
	s.ctx, s.end = context.WithCancel(context.Background())
	s.transport = s.newTransport()
	s.web = &http.Server{
		Handler: s.newHandler(), ReadHeaderTimeout: cfg.HandshakeTimeout, IdleTimeout: idleRequests,
		MaxHeaderBytes: maxHeader, ErrorLog: log.New(io.Discard, "", 0),
	}
	s.tasks.Go(func() { _ = s.web.Serve(s.handOff) })
	s.tasks.Go(s.accept)
	return s, nil
}

// Address is where the server listens, for both protocols.
func (s *Server) Address() netip.AddrPort { return s.listener.Addr().(*net.TCPAddr).AddrPort() }

// Credentials are what clients must present.
func (s *Server) Credentials() Credentials { return s.credentials }

// Stats reads the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Open = len(s.clients)
	return out
}

// Close resets all connections and returns when nothing of the server runs any more.
func (s *Server) Close() {
	s.mu.Lock()
	s.end()
	s.mu.Unlock()
	_ = s.listener.Close()
	_ = s.web.Close()
	s.mu.Lock()
	all := make([]*client, 0, len(s.clients))
	for c := range s.clients {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		c.Abort()
	}
	s.transport.CloseIdleConnections()
	s.tasks.Wait()
}

// acceptPause is how long nothing is accepted after the process had no descriptor left.
const acceptPause = 50 * time.Millisecond

// accept takes clients until the listener is closed.
func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-time.After(acceptPause):
			case <-s.ctx.Done():
			}
			continue
		}
		c := &client{TCPConn: conn.(*net.TCPConn), server: s}
		if !s.admit(c) {
			c.reset()
			continue
		}
		s.tasks.Go(func() { s.serve(c) })
	}
}

// enter counts a task of the HTTP server's in, unless the server has ended. The
// caller must call tasks.Done.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.tasks.Add(1)
	return true
}

// admit counts a client in, if there is room.
func (s *Server) admit(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	if len(s.clients) >= s.cfg.MaxConnections {
		s.stats.Refused++
		return false
	}
	s.clients[c] = struct{}{}
	return true
}

// associate reserves room for a UDP association.
func (s *Server) associate() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.associations >= s.cfg.MaxAssociations {
		s.stats.Refused++
		return false
	}
	s.associations++
	return true
}

func (s *Server) dissociate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.associations--
}

// noteDial counts what became of a request.
func (s *Server) noteDial(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.stats.Failed++
	} else {
		s.stats.Served++
	}
}

// noteStranger counts a client without the password.
func (s *Server) noteStranger() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Refused++
}

// serve finds out which protocol a client speaks.
func (s *Server) serve(c *client) {
	_ = c.SetDeadline(time.Now().Add(s.cfg.HandshakeTimeout))
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		_ = c.Close()
		return
	}
	if first[0] == socksVersion {
		s.serveSOCKS(c)
		return
	}
	_ = c.SetDeadline(time.Time{})
	c.ahead = first[:]
	s.handOff.give(c)
}

// client is a connection that was accepted. Closing it makes room for another.
type client struct {
	*net.TCPConn
	server *Server
	ahead  []byte // was read and is to be read again
	once   sync.Once
}

// Read implements net.Conn.
func (c *client) Read(b []byte) (int, error) {
	if len(c.ahead) > 0 && len(b) > 0 {
		n := copy(b, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.TCPConn.Read(b)
}

// WriteTo hides the one that knows nothing of what was read ahead.
func (c *client) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c})
}

// Close implements net.Conn.
func (c *client) Close() error {
	c.once.Do(func() {
		c.server.mu.Lock()
		defer c.server.mu.Unlock()
		delete(c.server.clients, c)
	})
	return c.TCPConn.Close()
}

// Abort implements [Conn].
func (c *client) Abort() {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// reset ends a connection that was not admitted.
func (c *client) reset() {
	_ = c.SetLinger(0)
	_ = c.TCPConn.Close()
}

// handOff is the listener from which the HTTP server gets its connections.
type handOff struct {
	address net.Addr
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

// give passes a connection on, or closes it when nobody takes it any more.
func (h *handOff) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (h *handOff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handOff) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *handOff) Addr() net.Addr { return h.address }
