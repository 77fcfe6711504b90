package conformance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The ports of the server, on both of its addresses.
var probePorts = [2]uint16{3478, 3479}

// endpoint returns one of the server's four.
func endpoint(addr, port int) netip.AddrPort {
	return netip.AddrPortFrom(serverAddrs[addr], probePorts[port])
}

// What a client asks the server for, as in RFC 5780: an answer from where it asked,
// or from another port, another address, or both.
const (
	askSame    = 's'
	askPort    = 'p'
	askAddress = 'a'
	askBoth    = 'b'
)

// probeServer tells whoever asks by UDP or TCP by which endpoint it is seen.
type probeServer struct {
	udp [2][2]net.PacketConn

	mu     sync.Mutex
	closed bool
	open   []net.Conn // connections, also such as have ended
}

// serve starts the server on its machine, until the test ends.
func (g *ground) serve() *probeServer {
	g.t.Helper()
	s := &probeServer{}
	var tasks sync.WaitGroup
	var listeners []net.Listener
	for a := range serverAddrs {
		for p := range probePorts {
			at := endpoint(a, p).String()
			c, err := g.server.ListenPacket("udp4", at)
			if err != nil {
				g.t.Fatal(err)
			}
			l, err := g.server.Listen("tcp4", at)
			if err != nil {
				g.t.Fatal(err)
			}
			s.udp[a][p] = c
			listeners = append(listeners, l)
			tasks.Go(func() { s.accept(l, &tasks) })
		}
	}
	for a := range serverAddrs {
		for p := range probePorts {
			tasks.Go(func() { s.answer(a, p) })
		}
	}
	g.t.Cleanup(func() {
		for _, one := range s.udp {
			_, _ = one[0].Close(), one[1].Close()
		}
		for _, l := range listeners {
			_ = l.Close()
		}
		s.hangUp()
		tasks.Wait()
	})
	return s
}

// answer answers what comes to one endpoint by UDP.
func (s *probeServer) answer(a, p int) {
	b := make([]byte, 2048)
	for {
		n, from, err := s.udp[a][p].ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n == 0 {
			continue // an ICMP error about an answer
		}
		out := s.udp[a][p]
		switch b[0] {
		case askPort:
			out = s.udp[a][1-p]
		case askAddress:
			out = s.udp[1-a][p]
		case askBoth:
			out = s.udp[1-a][1-p]
		}
		_, _ = out.WriteTo(fmt.Appendf(nil, "%s %v", b[:n], from), from)
	}
}

// keep has hangUp close a connection, and says whether it came in time for that.
func (s *probeServer) keep(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = append(s.open, c)
	return !s.closed
}

// hangUp closes all connections: how their clients ended may never come to know here.
func (s *probeServer) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.open {
		_ = c.Close()
	}
}

// accept tells each connection its source in a line, then echoes.
func (s *probeServer) accept(l net.Listener, tasks *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		tasks.Go(func() {
			defer func() { _ = c.Close() }()
			if !s.keep(c) {
				return
			}
			if _, err := fmt.Fprintln(c, c.RemoteAddr()); err != nil {
				return
			}
			lines := bufio.NewReader(c)
			for {
				line, err := lines.ReadString('\n')
				if err != nil {
					return
				}
				if _, err := c.Write([]byte(line)); err != nil {
					return
				}
			}
		})
	}
}

// client is a UDP socket in a sandbox.
type client struct {
	t *testing.T
	net.PacketConn
	asked int
	late  []string // tokens of questions that were asked again
}

// client opens a UDP socket, on any port if it is 0.
func (s *sandbox) client(t *testing.T, port uint16) *client {
	t.Helper()
	c, err := s.ListenPacket("udp4", netip.AddrPortFrom(s.inner, port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &client{t: t, PacketConn: c}
}

func (c *client) port() uint16 { return uint16(c.LocalAddr().(*net.UDPAddr).Port) }

// tell sends one question and returns its token, which stands in the answer.
func (c *client) tell(to netip.AddrPort, what byte) string {
	c.t.Helper()
	c.asked++
	token := fmt.Sprintf("%c%d", what, c.asked)
	if _, err := c.WriteTo([]byte(token), net.UDPAddrFromAddrPort(to)); err != nil {
		c.t.Fatal(err)
	}
	return token
}

// ask asks an endpoint how it sees the client. What else comes meanwhile is
// returned as well, but for the answers to questions that ask gave up.
func (c *client) ask(to netip.AddrPort) (seen netip.AddrPort, others []string) {
	c.t.Helper()
	for range 10 {
		token := c.tell(to, askSame)
		for {
			text, from, err := c.hear(3 * time.Second)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.late = append(c.late, token)
				break // ask again, as programs do
			}
			if err != nil {
				c.t.Fatalf("ask %v: %v", to, err)
			}
			if rest, ok := strings.CutPrefix(text, token+" "); ok {
				if from != to {
					c.t.Fatalf("%v answered in the place of %v", from, to)
				}
				return netip.MustParseAddrPort(rest), others
			}
			if answer, _, _ := strings.Cut(text, " "); !slices.Contains(c.late, answer) {
				others = append(others, text)
			}
		}
	}
	c.t.Fatalf("%v does not answer", to)
	return seen, nil
}

// answered asks an endpoint once and says whether its answer comes in time.
func (c *client) answered(to netip.AddrPort, within time.Duration) bool {
	c.t.Helper()
	token, end := c.tell(to, askSame), time.Now().Add(within)
	for {
		text, _, err := c.hear(time.Until(end))
		if err != nil {
			return false
		}
		if strings.HasPrefix(text, token+" ") {
			return true
		}
	}
}

// hear waits for one datagram.
func (c *client) hear(within time.Duration) (string, netip.AddrPort, error) {
	b := make([]byte, 65535)
	_ = c.SetReadDeadline(time.Now().Add(within))
	n, from, err := c.ReadFrom(b)
	if err != nil {
		return "", netip.AddrPort{}, err
	}
	return string(b[:n]), from.(*net.UDPAddr).AddrPort(), nil
}

// The classes of RFC 4787, for mappings and for filters.
const (
	independent   = "endpoint-independent"
	byAddress     = "address-dependent"
	byAddressPort = "address-and-port-dependent"
)

// udpMapping finds out how a new socket is mapped (RFC 5780 section 4.3).
func udpMapping(t *testing.T, s *sandbox) string {
	t.Helper()
	c := s.client(t, 0)
	first, _ := c.ask(endpoint(0, 0))
	otherPort, _ := c.ask(endpoint(0, 1))
	otherAddress, _ := c.ask(endpoint(1, 0))
	return classOf(first, otherPort, otherAddress)
}

func classOf(first, otherPort, otherAddress netip.AddrPort) string {
	switch {
	case first == otherPort && first == otherAddress:
		return independent
	case first == otherPort:
		return byAddress
	}
	return byAddressPort
}

// udpFiltering finds out who may answer a new socket (RFC 5780 section 4.4). What is
// let through has come before the answer to the last question does: the way is one.
func udpFiltering(t *testing.T, s *sandbox) string {
	t.Helper()
	c := s.client(t, 0)
	_, _ = c.ask(endpoint(0, 0))
	both, address, port := c.tell(endpoint(0, 0), askBoth), c.tell(endpoint(0, 0), askAddress), c.tell(endpoint(0, 0), askPort)
	var heard []string
	for range 3 {
		_, more := c.ask(endpoint(0, 0))
		heard = append(heard, more...)
	}
	came := func(token string) bool { return strings.Contains(strings.Join(heard, "\n")+"\n", token+" ") }
	switch {
	case came(both) || came(address):
		return independent
	case came(port):
		return byAddress
	}
	return byAddressPort
}

// tcpMapping finds out how connections from one local port are mapped. It is a port
// that the sandbox chooses: one that was used a second ago may still be in TIME_WAIT.
func tcpMapping(t *testing.T, s *sandbox) string {
	t.Helper()
	port := uint16(0)
	var seen [3]netip.AddrPort
	for i, to := range []netip.AddrPort{endpoint(0, 0), endpoint(0, 1), endpoint(1, 0)} {
		c := s.connect(t, port, to)
		defer c.Close()
		port = uint16(c.LocalAddr().(*net.TCPAddr).Port)
		seen[i] = c.seen
	}
	return classOf(seen[0], seen[1], seen[2])
}

// connection is a TCP connection to the server, with the source that it saw.
type connection struct {
	net.Conn
	lines *bufio.Reader
	seen  netip.AddrPort
}

// dialOnly opens a connection from a local port, 0 for any, which others may use.
func (s *sandbox) dialOnly(ctx context.Context, port uint16, to netip.AddrPort) (c net.Conn, err error) {
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.inner, port)),
		Timeout:   patience,
		Control: func(_, _ string, raw syscall.RawConn) (err error) {
			_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
			return err
		},
	}
	err = s.Do(func() (err error) {
		c, err = d.DialContext(ctx, "tcp4", to.String())
		return err
	})
	return c, err
}

// dial connects to the server as dialOnly does, and reads who it says that it sees.
func (s *sandbox) dial(ctx context.Context, port uint16, to netip.AddrPort) (*connection, error) {
	c, err := s.dialOnly(ctx, port, to)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	lines := bufio.NewReader(c)
	line, err := lines.ReadString('\n')
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	seen, err := netip.ParseAddrPort(strings.TrimSpace(line))
	return &connection{c, lines, seen}, err
}

func (s *sandbox) connect(t *testing.T, port uint16, to netip.AddrPort) *connection {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := s.dial(ctx, port, to)
	if err != nil {
		t.Fatalf("connect to %v: %v", to, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// check sends a line there and back.
func (c *connection) check(t *testing.T) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	const line = "still there?\n"
	if _, err := c.Write([]byte(line)); err != nil {
		t.Fatalf("the connection takes no data: %v", err)
	}
	if got, err := c.lines.ReadString('\n'); got != line || err != nil {
		t.Fatalf("the connection brings %q, %v", got, err)
	}
}

// echoIdent sends one echo request with an identifier and returns what the far
// side saw of it: source and identifier, by its own capture.
func echoIdent(t *testing.T, g *ground, s *sandbox, at *tap, ident uint16, to netip.Addr) netip.AddrPort {
	t.Helper()
	mark := at.mark()
	var fd int
	err := s.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP); err != nil {
			return err
		}
		if err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(ident)}); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		return nil
	})
	if err != nil {
		netlab.NotRun(t, "no ping socket: "+err.Error())
	}
	defer func() { _ = unix.Close(fd) }()
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	if err := unix.Sendto(fd, []byte{8, 0, 0, 0, 0, 0, 0, 1, 'e', 'c', 'h', 'o'}, 0, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(fd, make([]byte, 64)); err != nil {
		t.Fatalf("no answer to an echo with identifier %d from %v: %v", ident, to, err)
	}
	var found netip.AddrPort
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = at.await(ctx, mark, func(p *pkt, s sniffed) bool {
		found = netip.AddrPortFrom(p.Src, p.SrcPort)
		return p.ICMPType == 8 && p.Dst == to && p.Kind == kindQuery
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// netAddr and udpAddr spare the tests the words of package net.
type netAddr = net.Addr

func udpAddr(a netip.AddrPort) net.Addr { return net.UDPAddrFromAddrPort(a) }

// raw is the client's descriptor.
func (c *client) raw() (syscall.RawConn, error) { return c.PacketConn.(*net.UDPConn).SyscallConn() }

func addrPortOf(a net.Addr) netip.AddrPort { return a.(*net.UDPAddr).AddrPort() }
