package proxy

import (
	"context"
	"net"
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/netstack"
)

// Stack is a [Network] that is reached by a TCP/IP stack's packets.
type Stack struct {
	Device *netstack.Device
	// Local is the address of the device that all connections have.
	Local netip.Addr
}

func (s Stack) any() netip.AddrPort { return netip.AddrPortFrom(s.Local, 0) }

// DialTCP implements [Network].
func (s Stack) DialTCP(ctx context.Context, to netip.AddrPort) (Conn, error) {
	c, err := s.Device.DialTCP(ctx, s.any(), to)
	if err != nil {
		return nil, err // not c, which would be no nil interface
	}
	return c, nil
}

// DialUDP implements [Network].
func (s Stack) DialUDP(to netip.AddrPort) (net.Conn, error) {
	c, err := s.Device.DialUDP(s.any(), to)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// ListenUDP implements [Network].
func (s Stack) ListenUDP() (PacketConn, error) {
	c, err := s.Device.ListenUDP(s.any())
	if err != nil {
		return nil, err
	}
	return c, nil
}
