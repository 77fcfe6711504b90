package netstack

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// backlog is how many accepted connections may wait at a listener.
const backlog = 1024

// Listener accepts TCP connections to one of the device's addresses.
type Listener struct {
	device *Device
	ep     tcpip.Endpoint
	wq     *waiter.Queue
	local  netip.AddrPort
	ready  chan struct{}
	entry  waiter.Entry
	once   sync.Once
	closed chan struct{}
}

var _ net.Listener = (*Listener)(nil)

// ListenTCP listens on local, which must be one of the device's addresses; port 0 takes a free one.
func (d *Device) ListenTCP(local netip.AddrPort) (*Listener, error) {
	fail := func(err error) (*Listener, error) {
		return nil, opError("listen", "tcp", local, netip.AddrPort{}, err)
	}
	if err := d.enter(); err != nil {
		return fail(err)
	}
	defer d.leave()
	wq := new(waiter.Queue)
	ep, err := d.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, wq)
	if err != nil {
		return fail(toError(err))
	}
	if err := ep.Bind(localAddress(local)); err != nil {
		ep.Close()
		return fail(toError(err))
	}
	if err := ep.Listen(backlog); err != nil {
		ep.Close()
		return fail(toError(err))
	}
	if a, err := ep.GetLocalAddress(); err == nil {
		local = addrPort(a.Addr, a.Port)
	}
	l := &Listener{device: d, ep: ep, wq: wq, local: local, closed: make(chan struct{})}
	l.entry, l.ready = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&l.entry)
	return l, nil
}

// Accept implements net.Listener; the connection is a *Conn.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		select {
		case <-l.closed:
			return nil, opError("accept", "tcp", l.local, netip.AddrPort{}, net.ErrClosed)
		case <-l.device.done.Done():
			return nil, opError("accept", "tcp", l.local, netip.AddrPort{}, net.ErrClosed)
		default:
		}
		ep, wq, err := l.ep.Accept(nil)
		switch err.(type) {
		case nil:
			l.again()
			return newConn(l.device, ep, wq), nil
		case *tcpip.ErrWouldBlock:
			select {
			case <-l.ready:
			case <-l.closed:
			case <-l.device.done.Done():
			}
		default:
			if l.device.done.Err() != nil {
				continue
			}
			return nil, opError("accept", "tcp", l.local, netip.AddrPort{}, toError(err))
		}
	}
}

// again lets another waiting Accept look: one signal may stand for several connections.
func (l *Listener) again() {
	select {
	case l.ready <- struct{}{}:
	default:
	}
}

// Close implements net.Listener. Connections that nobody accepted are reset.
func (l *Listener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		err = nil
		close(l.closed)
		l.ep.Close()
		l.wq.EventUnregister(&l.entry)
	})
	if err != nil {
		return opError("close", "tcp", l.local, netip.AddrPort{}, err)
	}
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.local) }

// DialTCP connects from local, one of the device's addresses (port 0 takes a random free
// one), to remote.
func (d *Device) DialTCP(ctx context.Context, local, remote netip.AddrPort) (*Conn, error) {
	c, err := d.dialTCP(ctx, local, remote)
	if err != nil {
		return nil, opError("dial", "tcp", local, remote, err)
	}
	return c, nil
}

func (d *Device) dialTCP(ctx context.Context, local, remote netip.AddrPort) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := d.enter(); err != nil {
		return nil, err
	}
	d.calls.Add(1)
	d.leave()
	defer d.calls.Done()

	wq := new(waiter.Queue)
	ep, err := d.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, wq)
	if err != nil {
		return nil, toError(err)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if err := ep.Bind(localAddress(local)); err != nil {
		ep.Close()
		return nil, toError(err)
	}
	err = ep.Connect(fullAddress(remote))
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ready:
			err = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			ep.Close()
			return nil, ctx.Err()
		case <-d.done.Done():
			ep.Abort()
			ep.Close()
			return nil, os.ErrClosed
		}
	}
	if err != nil {
		ep.Close()
		return nil, toError(err)
	}
	return newConn(d, ep, wq), nil
}
