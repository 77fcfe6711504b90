package sidecar

import (
	"errors"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/sidecar/proxy"
)

// proxiedBuffer is what a connection of a proxied sandbox may hold at most, in
// bytes and per direction, and proxiedFirst what it begins with. With the
// proxy's own buffers and its 1024 connections that is at most 600 MiB, where a
// sandbox does its worst; an idle connection holds about 75 KiB.
const (
	proxiedBuffer = 256 << 10
	proxiedFirst  = 64 << 10
	// proxiedTimeWait is short, so that a sandbox cannot heap up connections that have
	// ended: the gateway's table keeps their ports from being used again too early.
	proxiedTimeWait = time.Second
)

// proxied is the device of a sandbox that has no interface: a TCP/IP stack with
// its inner address, whose connections are those of a proxy.
type proxied struct {
	*netstack.Device
	server *proxy.Server
}

// newProxied makes one for a sandbox that was attached. It must be closed.
func newProxied(inner netip.Addr, dns []netip.Addr, mtu int) (*proxied, error) {
	dev, err := netstack.New(netstack.Config{
		Addresses: []netip.Addr{inner}, MTU: mtu,
		ReceiveBuffer: proxiedFirst, SendBuffer: proxiedFirst, MaxBuffer: proxiedBuffer,
		TimeWait: proxiedTimeWait,
	})
	if err != nil {
		return nil, err
	}
	server, err := proxy.New(proxy.Config{Network: proxy.Stack{Device: dev, Local: inner}, DNS: dns})
	if err != nil {
		_ = dev.Close()
		return nil, err
	}
	return &proxied{Device: dev, server: server}, nil
}

// Close implements tun.Device. It may be called again.
func (p *proxied) Close() error {
	err := p.Device.Close()
	p.server.Close()
	return err
}

// proxiesAnswer says where a sandbox's proxies are, and who may use them.
type proxiesAnswer struct {
	SOCKS5   netip.AddrPort `json:"socks5"`
	HTTP     netip.AddrPort `json:"http"`
	User     string         `json:"user"`
	Password string         `json:"password"`
}

// offer makes the proxies of a sandbox that was just attached.
func (s *Sidecar) offer(e *entry, box sandboxAnswer) (*proxiesAnswer, error) {
	p, err := newProxied(box.Inner, box.DNS, box.MTU)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	e.proxied = p
	gone := s.entries[e.id] != e
	s.mu.Unlock()
	if gone { // then detach may have looked before
		_ = p.Close()
		return nil, errors.New("the sandbox was detached")
	}
	at, who := p.server.Address(), p.server.Credentials()
	return &proxiesAnswer{SOCKS5: at, HTTP: at, User: who.User, Password: who.Password}, nil
}
