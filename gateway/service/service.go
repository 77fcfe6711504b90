// Package service is what a gateway itself answers on the first address of a
// network: ICMP echo, probes (the health echo that sidecars choose their gateway by) and a
// DNS forwarder.
//
// Everything runs on a userspace stack of its own, whose packets come and go
// through [Services.Device]. The forwarder's questions to its upstreams are sent from
// the same address through the same device, so that the gateway translates them
// onto the network's dedicated addresses like a sandbox's.
//
// Answers go to addresses inside the network only, and no answer is larger than
// its question allows: a probe's reply is as long as its request, and a UDP answer of
// the forwarder respects the size that the question announces.
package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// dnsPort is where the forwarder listens (RFC 1035).
const dnsPort = 53

// Health says how the gateway is. It is asked for every probe, concurrently, and must not wait.
type Health interface {
	Health() packet.Health
}

// Config says where and for whom the services run. The zero value of a field that has a default takes it.
type Config struct {
	// Address is the network's first address, on which the services answer.
	Address netip.Addr
	// Network is who gets answers. It holds Address.
	Network netip.Prefix
	// MTU is the largest IP packet in bytes. Default 1420.
	MTU int
	// Upstreams are asked in this order. None: every question is answered by SERVFAIL.
	Upstreams []netip.AddrPort
	// Timeout is how long one upstream is waited for. Default 2 s.
	Timeout time.Duration
	// MaxQueries is how many questions may be in the works at a time, and
	// MaxClientQueries how many of one address; SERVFAIL beyond. Defaults 512 and 128.
	MaxQueries, MaxClientQueries int
	// Health is what probes are answered with.
	Health Health
}

func (c Config) withDefaults() Config {
	if c.MTU == 0 {
		c.MTU = 1420
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Second
	}
	if c.MaxQueries == 0 {
		c.MaxQueries = 512
	}
	if c.MaxClientQueries == 0 {
		c.MaxClientQueries = 128
	}
	return c
}

func (c Config) validate() error {
	switch {
	case !c.Address.Is4():
		return fmt.Errorf("address %v: must be IPv4", c.Address)
	case !c.Network.Contains(c.Address):
		return fmt.Errorf("network %v: must hold the address %v", c.Network, c.Address)
	case c.Timeout < 0:
		return fmt.Errorf("timeout %v: must not be negative", c.Timeout)
	case c.MaxQueries < 1 || c.MaxClientQueries < 1:
		return fmt.Errorf("at most %d queries and %d of one client: must be at least 1", c.MaxQueries, c.MaxClientQueries)
	case c.Health == nil:
		return errors.New("no health: probes cannot be answered")
	}
	for _, u := range c.Upstreams {
		if !u.Addr().Is4() || u.Port() == 0 {
			return fmt.Errorf("upstream %v: must be an IPv4 address and a port", u)
		}
	}
	return nil
}

// Services are the services of one network. They must be closed, or Run be called and ended.
type Services struct {
	config   Config
	device   *netstack.Device
	probes   *netstack.UDPConn
	udp      *netstack.UDPConn
	tcp      *netstack.Listener
	queries  *limiter // questions in the works
	conns    *limiter // TCP connections to the forwarder
	upstream []*upstream
	fresh    freshness // new ports for questions to upstreams
	counters counters
}

// New opens the services; they answer once Run is called.
func New(c Config) (*Services, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	s := &Services{
		config:  c,
		queries: newLimiter(c.MaxQueries, c.MaxClientQueries),
		conns:   newLimiter(maxConns, maxClientConns),
	}
	for _, u := range c.Upstreams {
		s.upstream = append(s.upstream, &upstream{addr: u})
	}
	var err error
	if s.device, err = netstack.New(netstack.Config{Addresses: []netip.Addr{c.Address}, MTU: c.MTU}); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	if err := s.listen(); err != nil {
		s.device.Close()
		return nil, fmt.Errorf("service: %w", err)
	}
	return s, nil
}

func (s *Services) listen() (err error) {
	if s.probes, err = s.device.ListenUDP(netip.AddrPortFrom(s.config.Address, packet.ProbePort)); err != nil {
		return err
	}
	if s.udp, err = s.device.ListenUDP(netip.AddrPortFrom(s.config.Address, dnsPort)); err != nil {
		return err
	}
	s.tcp, err = s.device.ListenTCP(netip.AddrPortFrom(s.config.Address, dnsPort))
	return err
}

// Device is where the services' packets come and go. Somebody must read it all the time.
func (s *Services) Device() *netstack.Device { return s.device }

// Run answers until ctx ends or Close is called, then closes the services and
// returns nil once nothing of them runs any more. It may be called once.
func (s *Services) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	g.Go(func() error { return s.answerProbes() })
	g.Go(func() error { return s.serveUDP(ctx) })
	g.Go(func() error { return s.serveTCP(ctx) })
	err := g.Wait()
	for _, u := range s.upstream {
		u.ports.close()
	}
	s.Close()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("services on %v: %w", s.config.Address, err)
	}
	return nil
}

// Close ends the services and their device at once. It may be called more than once.
func (s *Services) Close() error { return s.device.Close() }

// String names the services in logs.
func (s *Services) String() string {
	return fmt.Sprintf("services on %v: echo, DNS by %d upstreams", s.config.Address, len(s.upstream))
}

// answers reports whether from may be answered: inside the network, and not the gateway itself.
func (s *Services) answers(from netip.AddrPort) bool {
	return s.config.Network.Contains(from.Addr()) && from.Addr() != s.config.Address && from.Port() != 0
}
