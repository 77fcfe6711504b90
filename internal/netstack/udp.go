package netstack

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// UDPConn is a UDP socket of the stack. It is a net.PacketConn and, when it was
// dialled, a net.Conn; ReadFromUDPAddrPort and WriteToUDPAddrPort are as those of net.UDPConn.
type UDPConn struct {
	device        *Device
	ep            tcpip.Endpoint
	wq            *waiter.Queue
	local, remote netip.AddrPort // remote is invalid unless dialled

	deadlines

	readMu   sync.Mutex
	entry    waiter.Entry
	readable chan struct{}
	slice    tcpip.SliceWriter

	writeMu    sync.Mutex
	writeEntry waiter.Entry
	writable   chan struct{}
	payload    bytes.Reader
	to         tcpip.FullAddress

	once   sync.Once
	closed chan struct{}
}

var (
	_ net.PacketConn = (*UDPConn)(nil)
	_ net.Conn       = (*UDPConn)(nil)
)

// ListenUDP opens a socket on local, which must be one of the device's addresses; port 0 takes a free one.
func (d *Device) ListenUDP(local netip.AddrPort) (*UDPConn, error) {
	c, err := d.openUDP(local, netip.AddrPort{})
	if err != nil {
		return nil, opError("listen", "udp", local, netip.AddrPort{}, err)
	}
	return c, nil
}

// DialUDP opens a socket on local, one of the device's addresses (port 0 takes
// a random free one), that sends to remote and receives from it only.
func (d *Device) DialUDP(local, remote netip.AddrPort) (*UDPConn, error) {
	c, err := d.openUDP(local, remote)
	if err != nil {
		return nil, opError("dial", "udp", local, remote, err)
	}
	return c, nil
}

func (d *Device) openUDP(local, remote netip.AddrPort) (*UDPConn, error) {
	if err := d.enter(); err != nil {
		return nil, err
	}
	defer d.leave()
	wq := new(waiter.Queue)
	ep, err := d.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, wq)
	if err != nil {
		return nil, toError(err)
	}
	if err := ep.Bind(localAddress(local)); err != nil {
		ep.Close()
		return nil, toError(err)
	}
	if remote.IsValid() {
		if err := ep.Connect(fullAddress(remote)); err != nil {
			ep.Close()
			return nil, toError(err)
		}
	}
	if a, err := ep.GetLocalAddress(); err == nil {
		local = addrPort(a.Addr, a.Port)
	}
	c := &UDPConn{device: d, ep: ep, wq: wq, local: local, remote: remote, deadlines: newDeadlines(), closed: make(chan struct{})}
	c.entry, c.readable = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	c.writeEntry, c.writable = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&c.entry)
	wq.EventRegister(&c.writeEntry)
	return c, nil
}

// LocalAddrPort returns this end.
func (c *UDPConn) LocalAddrPort() netip.AddrPort { return c.local }

// LocalAddr implements net.PacketConn and net.Conn.
func (c *UDPConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// RemoteAddr returns the other end of a dialled socket, else nil.
func (c *UDPConn) RemoteAddr() net.Addr {
	if !c.remote.IsValid() {
		return nil
	}
	return net.UDPAddrFromAddrPort(c.remote)
}

// ReadFromUDPAddrPort reads one datagram; what does not fit into b is lost. A dialled
// socket returns syscall.ECONNREFUSED after an ICMP error says that nobody listens.
func (c *UDPConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	n, from, err := c.read(b)
	if err != nil {
		err = opError("read", "udp", c.local, c.remote, err)
	}
	return n, from, err
}

func (c *UDPConn) read(b []byte) (int, netip.AddrPort, error) {
	late := c.readBy.channel()
	for {
		if err := c.refused(late); err != nil {
			return 0, netip.AddrPort{}, err
		}
		c.slice = b
		res, err := c.ep.Read(&c.slice, tcpip.ReadOptions{NeedRemoteAddr: true})
		c.slice = nil
		switch err.(type) {
		case nil:
			return res.Count, addrPort(res.RemoteAddr.Addr, res.RemoteAddr.Port), nil
		case *tcpip.ErrWouldBlock:
			select {
			case <-c.readable:
			case <-late:
			case <-c.closed:
			}
		case *tcpip.ErrClosedForReceive:
			return 0, netip.AddrPort{}, net.ErrClosed
		default:
			return 0, netip.AddrPort{}, toError(err)
		}
	}
}

// ReadFrom implements net.PacketConn.
func (c *UDPConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// Read implements net.Conn.
func (c *UDPConn) Read(b []byte) (int, error) {
	n, _, err := c.ReadFromUDPAddrPort(b)
	return n, err
}

// WriteToUDPAddrPort sends one datagram to an address.
func (c *UDPConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if !to.Addr().Is4() {
		return 0, opError("write", "udp", c.local, to, fmt.Errorf("address %v: must be IPv4", to))
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.to = fullAddress(to)
	n, err := c.write(b, tcpip.WriteOptions{To: &c.to})
	if err != nil {
		err = opError("write", "udp", c.local, to, err)
	}
	return n, err
}

// WriteTo implements net.PacketConn; to must be a *net.UDPAddr.
func (c *UDPConn) WriteTo(b []byte, to net.Addr) (int, error) {
	ua, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, opError("write", "udp", c.local, netip.AddrPort{}, fmt.Errorf("address %v: must be a *net.UDPAddr", to))
	}
	ap := ua.AddrPort()
	return c.WriteToUDPAddrPort(b, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
}

// Write implements net.Conn for a dialled socket.
func (c *UDPConn) Write(b []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	n, err := c.write(b, tcpip.WriteOptions{})
	if err != nil {
		err = opError("write", "udp", c.local, c.remote, err)
	}
	return n, err
}

func (c *UDPConn) write(b []byte, opts tcpip.WriteOptions) (int, error) {
	late := c.writeBy.channel()
	for {
		if err := c.refused(late); err != nil {
			return 0, err
		}
		c.payload.Reset(b)
		n, err := c.ep.Write(&c.payload, opts)
		switch err.(type) {
		case nil:
			return int(n), nil
		case *tcpip.ErrWouldBlock:
			select {
			case <-c.writable:
			case <-late:
			case <-c.closed:
			}
		case *tcpip.ErrClosedForSend:
			return 0, net.ErrClosed
		default:
			return 0, toError(err)
		}
	}
}

// refused reports why an operation must not go on: closed, or too late.
func (c *UDPConn) refused(late <-chan struct{}) error {
	select {
	case <-c.closed:
		return net.ErrClosed
	case <-c.device.done.Done():
		return net.ErrClosed
	default:
	}
	select {
	case <-late:
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

// Close closes the socket; blocked calls return net.ErrClosed.
func (c *UDPConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = nil
		close(c.closed)
		c.ep.Close()
		c.wq.EventUnregister(&c.entry)
		c.wq.EventUnregister(&c.writeEntry)
		c.stop()
	})
	if err != nil {
		return opError("close", "udp", c.local, c.remote, err)
	}
	return nil
}
