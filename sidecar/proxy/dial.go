package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"
)

// target is what a client wants to reach: an address or else a name, and a port.
type target struct {
	addr netip.Addr
	name string
	port uint16
}

func (t target) String() string {
	host := t.name
	if t.addr.IsValid() {
		host = t.addr.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(t.port)))
}

// newTarget makes a target of a host, which is a name or an address as text.
func newTarget(host string, port uint16) target {
	if a, err := netip.ParseAddr(host); err == nil {
		return target{addr: a.Unmap(), port: port}
	}
	return target{name: host, port: port}
}

// parseTarget reads HOST:PORT.
func parseTarget(text string) (target, error) {
	host, service, err := net.SplitHostPort(text)
	if err != nil {
		return target{}, fmt.Errorf("%q is not HOST:PORT: %w", text, err)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil || host == "" {
		return target{}, fmt.Errorf("%q is not HOST:PORT", text)
	}
	return newTarget(host, uint16(port)), nil
}

// The reasons of the proxy's own for which a destination is not dialled.
var (
	errFamily  = errors.New("the network carries IPv4 only")
	errNowhere = errors.New("that is the address of no host")
	errNoName  = errors.New("no such host")
)

// check says why an address cannot be a destination. Loopback addresses can: they
// are those of the network, not of the worker, and it is for the network to
// refuse them.
func check(to netip.AddrPort) error {
	a := to.Addr()
	switch {
	case !a.Is4():
		return errFamily
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}), to.Port() == 0:
		return errNowhere
	}
	return nil
}

// dial connects to a target, whose addresses it tries in order.
func (s *Server) dial(ctx context.Context, t target) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.DialTimeout)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	conn, err := s.dialAny(ctx, t)
	s.noteDial(err)
	if err != nil {
		return nil, fmt.Errorf("connect to %v: %w", t, err)
	}
	return conn, nil
}

func (s *Server) dialAny(ctx context.Context, t target) (Conn, error) {
	all, err := s.locate(ctx, t)
	if err != nil {
		return nil, err
	}
	var failures []error
	for i, to := range all {
		conn, err := s.dialOne(ctx, to, len(all)-i)
		if err == nil {
			return conn, nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failures[0] // of the address that the name's owner put first
}

// dialOne connects to one address, of several that share the time that is left.
func (s *Server) dialOne(ctx context.Context, to netip.AddrPort, share int) (Conn, error) {
	if err := check(to); err != nil {
		return nil, err
	}
	if end, ok := ctx.Deadline(); ok && share > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(share))
		defer cancel()
	}
	return s.cfg.Network.DialTCP(ctx, to)
}

// locate lists a target's addresses: one or more.
func (s *Server) locate(ctx context.Context, t target) ([]netip.AddrPort, error) {
	if t.addr.IsValid() {
		return []netip.AddrPort{netip.AddrPortFrom(t.addr, t.port)}, nil
	}
	found, err := s.resolver.lookup(ctx, t.name)
	if err != nil {
		return nil, err
	}
	all := make([]netip.AddrPort, len(found))
	for i, a := range found {
		all[i] = netip.AddrPortFrom(a, t.port)
	}
	return all, nil
}

// cause is what a failure means to a client.
type cause uint8

const (
	causeOther   cause = iota // anything else
	causeNowhere              // no destination at all
	causeFamily               // an address that is not IPv4
	causeName                 // a name without an address
	causeNetwork              // network unreachable
	causeHost                 // host unreachable
	causeRefused              // connection refused
	causeTimeout              // no answer in time
)

// causeOf finds the cause of a failed dial.
func causeOf(err error) cause {
	for _, c := range []struct {
		is  error
		why cause
	}{
		{errNowhere, causeNowhere},
		{errFamily, causeFamily},
		{errNoName, causeName},
		{syscall.ENETUNREACH, causeNetwork},
		{syscall.EHOSTUNREACH, causeHost},
		{syscall.ECONNREFUSED, causeRefused},
		{syscall.ECONNRESET, causeRefused},
		{syscall.ETIMEDOUT, causeTimeout},
		{context.DeadlineExceeded, causeTimeout},
		{os.ErrDeadlineExceeded, causeTimeout},
		{os.ErrClosed, causeNetwork},
		{net.ErrClosed, causeNetwork},
	} {
		if errors.Is(err, c.is) {
			return c.why
		}
	}
	return causeOther
}
