package demo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"time"

	"golang.org/x/net/proxy"
)

// proxyVariable names the proxy for everything that is not said otherwise, as
// curl and others read it.
const proxyVariable = "ALL_PROXY"

// dialer connects: to the network, or to a proxy.
type dialer interface {
	dial(ctx context.Context, network, address string) (net.Conn, error)
}

// direct is the sandbox's own network.
type direct struct{ net.Dialer }

func (d *direct) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return d.DialContext(ctx, network, address)
}

// environmentDialer is the one that the environment asks for.
func environmentDialer() (dialer, error) {
	text := os.Getenv(proxyVariable)
	if text == "" {
		return &direct{}, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", proxyVariable, err)
	}
	through, err := proxy.FromURL(u, &net.Dialer{})
	if err != nil {
		return nil, fmt.Errorf("use %s=%s: %w", proxyVariable, u.Redacted(), err)
	}
	tcp, ok := through.(proxy.ContextDialer)
	if !ok {
		return nil, fmt.Errorf("use %s=%s: cannot be interrupted", proxyVariable, u.Redacted())
	}
	return &socks{at: u, tcp: tcp}, nil
}

// socks is a SOCKS5 proxy (RFC 1928).
type socks struct {
	at  *url.URL
	tcp proxy.ContextDialer
}

func (s *socks) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if network == "udp4" {
		return s.associate(ctx, address)
	}
	return s.tcp.DialContext(ctx, network, address)
}

// The numbers of RFC 1928 and RFC 1929.
const (
	socksVersion     = 5
	passwordVersion  = 1
	methodNone       = 0
	methodPassword   = 2
	commandAssociate = 3
	addressIPv4      = 1
	succeeded        = 0
)

// associate asks for a relay of datagrams to one destination.
func (s *socks) associate(ctx context.Context, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	control, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.at.Host)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		err = control.SetDeadline(deadline)
	}
	var relay netip.AddrPort
	if err == nil {
		relay, err = s.ask(control)
	}
	var c net.Conn
	if err == nil {
		c, err = (&net.Dialer{}).DialContext(ctx, "udp4", relay.String())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask %s for a relay of datagrams: %w", s.at.Host, err), control.Close())
	}
	if err := control.SetDeadline(time.Time{}); err != nil {
		return nil, errors.Join(err, c.Close(), control.Close())
	}
	return &association{Conn: c, control: control, to: to}, nil
}

// ask logs in, if the proxy's URL has a user, and asks for the relay.
func (s *socks) ask(c net.Conn) (netip.AddrPort, error) {
	method := byte(methodNone)
	if s.at.User != nil {
		method = methodPassword
	}
	if _, err := exchange(c, []byte{socksVersion, 1, method}, []byte{socksVersion, method}); err != nil {
		return netip.AddrPort{}, err
	}
	if s.at.User != nil {
		name := s.at.User.Username()
		word, _ := s.at.User.Password()
		login := append([]byte{passwordVersion, byte(len(name))}, name...)
		login = append(append(login, byte(len(word))), word...)
		if _, err := exchange(c, login, []byte{passwordVersion, succeeded}); err != nil {
			return netip.AddrPort{}, err
		}
	}
	request := []byte{socksVersion, commandAssociate, 0, addressIPv4, 0, 0, 0, 0, 0, 0}
	if _, err := exchange(c, request, []byte{socksVersion, succeeded, 0, addressIPv4}); err != nil {
		return netip.AddrPort{}, err
	}
	var bound [6]byte
	if _, err := io.ReadFull(c, bound[:]); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(bound[:4])), binary.BigEndian.Uint16(bound[4:])), nil
}

// exchange sends and wants exactly one answer.
func exchange(c net.Conn, send, want []byte) (got []byte, err error) {
	if _, err := c.Write(send); err != nil {
		return nil, err
	}
	got = make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return nil, err
	}
	if string(got) != string(want) {
		return nil, fmt.Errorf("the proxy answers %v, not %v", got, want)
	}
	return got, nil
}

// association is a socket to a relay of datagrams, which lives as long as its
// connection to the proxy.
type association struct {
	net.Conn
	control net.Conn
	to      netip.AddrPort
}

// header is that of a datagram to or from the destination.
func (a *association) header() []byte {
	ip := a.to.Addr().As4()
	return binary.BigEndian.AppendUint16(append([]byte{0, 0, 0, addressIPv4}, ip[:]...), a.to.Port())
}

// Write implements net.Conn.
func (a *association) Write(b []byte) (int, error) {
	header := a.header()
	n, err := a.Conn.Write(append(header, b...))
	return max(0, n-len(header)), err
}

// Read implements net.Conn.
func (a *association) Read(b []byte) (int, error) {
	header := a.header()
	buffer := make([]byte, len(header)+len(b))
	n, err := a.Conn.Read(buffer)
	if err != nil {
		return 0, err
	}
	if n < len(header) || string(buffer[:len(header)]) != string(header) {
		return 0, fmt.Errorf("the relay sends a datagram that is not from %v", a.to)
	}
	return copy(b, buffer[len(header):n]), nil
}

// Close implements net.Conn.
func (a *association) Close() error { return errors.Join(a.Conn.Close(), a.control.Close()) }
