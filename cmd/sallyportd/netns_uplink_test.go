package main

import (
	"net/netip"
	"os"
	"testing"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// uplinkKind is the uplink of the gateways of a test.
type uplinkKind string

const (
	bySockets uplinkKind = "sockets"
	byTun     uplinkKind = "tun"
)

// byEach runs one test body with each uplink.
func byEach(t *testing.T, body func(*testing.T, uplinkKind)) {
	t.Run("sockets", func(t *testing.T) { body(t, bySockets) })
	t.Run("tun", func(t *testing.T) {
		requireTun(t)
		body(t, byTun)
	})
}

// requireTun skips the test where no TUN can be made.
func requireTun(t *testing.T) {
	t.Helper()
	netlab.Require(t)
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		netlab.NotRun(t, err.Error())
	}
	_ = f.Close()
}

// provide readies a gateway's machine for its dedicated addresses, as an operator does.
func (k uplinkKind) provide(n *netlab.Namespace, dedicated ...netip.Addr) {
	if k == byTun {
		n.Forward(true)
		return
	}
	for _, a := range dedicated {
		n.Address("lo", netip.PrefixFrom(a, 32))
	}
}

// settings are the lines that a gateway's configuration has more.
func (k uplinkKind) settings() string { return "uplink: " + string(k) + "\n" }
