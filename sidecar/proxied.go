package sidecar

import (
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strings"
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
func (s *Sidecar) offer(e *entry, box Attached) (*proxiesAnswer, error) {
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

// environment replaces what variables say of proxies. There is no no_proxy: names
// and addresses that only this machine knows mean nothing in the network.
func (p *proxiesAnswer) environment(variables []string) []string {
	out := slices.DeleteFunc(slices.Clone(variables), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		switch strings.ToLower(name) {
		case "http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy":
			return true
		}
		return false
	})
	who := url.UserPassword(p.User, p.Password)
	web := url.URL{Scheme: "http", User: who, Host: p.HTTP.String()}
	socks := url.URL{Scheme: "socks5h", User: who, Host: p.SOCKS5.String()} // h: the proxy looks names up
	for name, u := range map[string]url.URL{"http_proxy": web, "https_proxy": web, "all_proxy": socks} {
		out = append(out, name+"="+u.String(), strings.ToUpper(name)+"="+u.String())
	}
	return out
}
