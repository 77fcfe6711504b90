package uplink

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

// Defaults of SocketsConfig.
const (
	defaultMTU                      = 1420
	defaultMaxPending               = 1024
	defaultMaxPendingPerDestination = 256
	// defaultConnectTimeout is just longer than Linux's own patience with the
	// default of six repeated SYNs, 127 s.
	defaultConnectTimeout = 130 * time.Second
)

// SocketsConfig is what a Sockets uplink is made of. The zero value of a field that
// has a default takes it.
type SocketsConfig struct {
	// Addresses are the dedicated IPs that this host holds for the network;
	// they must be on the host. At least one.
	Addresses []netip.Addr
	// Gateway is the source of the ICMP errors that the uplink itself has reason to send.
	Gateway netip.Addr
	// MTU is the tunnel's, in bytes: TCP segments towards the sandbox fit it. Default 1420.
	MTU int
	// MaxSessions bounds the kernel sockets of the uplink. Default DescriptorLimit().
	MaxSessions int
	// MaxPending bounds the connects that the remote end has not answered yet,
	// which never are more than half of MaxSessions. Default 1024.
	MaxPending int
	// MaxPendingPerDestination bounds those of them towards one remote address,
	// whatever the port, which never are more than a quarter of MaxSessions. Default 256.
	MaxPendingPerDestination int
	// ConnectTimeout is how long a connect may take. Default 130 s.
	ConnectTimeout time.Duration
	// Log gets what an operator has to know. Default slog.Default().
	Log *slog.Logger
}

func (c SocketsConfig) withDefaults() SocketsConfig {
	set := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	set(&c.MTU, defaultMTU)
	set(&c.MaxPending, defaultMaxPending)
	set(&c.MaxPendingPerDestination, defaultMaxPendingPerDestination)
	if c.MaxSessions == 0 {
		c.MaxSessions = DescriptorLimit()
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = defaultConnectTimeout
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

// withinSessions lowers the limits of pending connects, so that where sockets are
// few, those that wait for dead destinations leave room for others.
func (c SocketsConfig) withinSessions() SocketsConfig {
	c.MaxPending = min(c.MaxPending, max(c.MaxSessions/2, 1))
	c.MaxPendingPerDestination = min(c.MaxPendingPerDestination, max(c.MaxSessions/4, 1))
	return c
}

func (c SocketsConfig) validate() error {
	if err := checkAddresses(c.Addresses); err != nil {
		return err
	}
	switch {
	case !c.Gateway.Is4():
		return fmt.Errorf("gateway address %v: must be IPv4", c.Gateway)
	case c.MTU < 576 || c.MTU > 65535:
		return fmt.Errorf("MTU %d: must be 576 to 65535 bytes", c.MTU)
	case c.MaxSessions < 1, c.MaxPending < 1, c.MaxPendingPerDestination < 1:
		return fmt.Errorf("limits of %d sessions, %d pending connects, %d per destination: each must be at least 1",
			c.MaxSessions, c.MaxPending, c.MaxPendingPerDestination)
	case c.ConnectTimeout < 0:
		return fmt.Errorf("connect timeout %v: must not be negative", c.ConnectTimeout)
	}
	return nil
}

// checkAddresses says what is wrong with a list of dedicated addresses.
func checkAddresses(list []netip.Addr) error {
	if len(list) == 0 {
		return errors.New("no dedicated address: give those of the pair that this host holds")
	}
	for i, a := range list {
		if !a.Is4() || a.IsUnspecified() {
			return fmt.Errorf("dedicated address %v: must be one host's IPv4 address", a)
		}
		if slices.Contains(list[:i], a) {
			return fmt.Errorf("dedicated address %v is given twice", a)
		}
	}
	return nil
}
