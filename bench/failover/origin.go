package failover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// What the origin serves. New connections are spread over some ports, so that
// the ports of closed ones, which the gateway keeps for minutes (RFC 5382),
// never run short.
const (
	firstAnswerPort = 8001
	answerPorts     = 16
	holdPort        = 9001 // tells the source and keeps the connection
	sinkPort        = 9002 // takes bytes
	fountainPort    = 9003 // gives bytes
	echoPort        = 9004 // UDP: answers with the source
)

// answerPatience is how long the origin keeps an answered connection open for
// the client to close it.
const answerPatience = 10 * time.Second

// originServer is the far side: who connects is told the address that was seen.
type originServer struct {
	echo  net.PacketConn
	tasks errgroup.Group

	mu        sync.Mutex
	listeners []net.Listener
	conns     map[net.Conn]struct{} // nil after close
}

// startOrigin starts the servers inside a machine.
func startOrigin(machine *netlab.Namespace) (o *originServer, err error) {
	o = &originServer{conns: make(map[net.Conn]struct{})}
	for i := range answerPorts {
		err = errors.Join(err, o.serve(machine, uint16(firstAnswerPort+i), answer))
	}
	err = errors.Join(err, o.serve(machine, holdPort, hold), o.serve(machine, sinkPort, sink), o.serve(machine, fountainPort, fountain))
	if err == nil {
		o.echo, err = machine.ListenPacket("udp4", at(originLink.Addr(), echoPort))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the origin: %w", err), o.close())
	}
	echo := o.echo
	o.tasks.Go(func() error { return echoSources(echo) })
	return o, nil
}

// serve accepts connections at a port and hands each to a goroutine of its own.
func (o *originServer) serve(machine *netlab.Namespace, port uint16, handle func(net.Conn)) error {
	l, err := machine.Listen("tcp4", at(originLink.Addr(), port))
	if err != nil {
		return err
	}
	o.mu.Lock()
	o.listeners = append(o.listeners, l)
	o.mu.Unlock()
	o.tasks.Go(func() error {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("accept at the origin: %w", err)
			}
			if !o.keep(c) {
				return c.Close()
			}
			o.tasks.Go(func() error {
				handle(c)
				o.drop(c)
				return nil
			})
		}
	})
	return nil
}

// keep notes an open connection, unless the origin ends.
func (o *originServer) keep(c net.Conn) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conns == nil {
		return false
	}
	o.conns[c] = struct{}{}
	return true
}

// drop closes a connection.
func (o *originServer) drop(c net.Conn) {
	o.mu.Lock()
	delete(o.conns, c)
	o.mu.Unlock()
	_ = c.Close() // whatever it was open for is over
}

// close ends the servers and their connections. It may be called again.
func (o *originServer) close() error {
	o.mu.Lock()
	conns, listeners := o.conns, o.listeners
	o.conns, o.listeners = nil, nil
	o.mu.Unlock()
	var errs []error
	for _, l := range listeners {
		errs = append(errs, l.Close())
	}
	if o.echo != nil {
		errs = append(errs, o.echo.Close())
		o.echo = nil
	}
	for c := range conns {
		_ = c.Close()
	}
	return errors.Join(append(errs, o.tasks.Wait())...)
}

// tell writes the source, and says whether that went well.
func tell(c net.Conn) bool {
	_, err := io.WriteString(c, c.RemoteAddr().String()+"\n")
	return err == nil
}

// answer tells the source and waits until the client closes.
func answer(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(answerPatience)) // without one, the end of the origin ends it
	if tell(c) {
		_, _ = io.Copy(io.Discard, c)
	}
}

// hold tells the source and keeps the connection until it ends.
func hold(c net.Conn) {
	if tell(c) {
		_, _ = io.Copy(io.Discard, c)
	}
}

// bulk is how much is read or written at once.
const bulk = 256 << 10

func sink(c net.Conn) {
	for b := make([]byte, bulk); ; {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

func fountain(c net.Conn) {
	for b := make([]byte, bulk); ; {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// echoSources answers datagrams with the source that was seen, a space, and what
// came, so that the client can tell which question is answered.
func echoSources(c net.PacketConn) error {
	b := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("answer datagrams at the origin: %w", err)
		}
		_, _ = c.WriteTo(slices.Concat([]byte(from.String()+" "), b[:n]), from) // as lost as any datagram
	}
}

// at is an address with a port, as text.
func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// dial opens a TCP connection within a time.
func dial(ctx context.Context, a netip.Addr, port uint16, patience time.Duration) (net.Conn, error) {
	return (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp4", at(a, port))
}
