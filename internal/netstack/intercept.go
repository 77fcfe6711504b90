package netstack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// TCPHandler gets the connection requests of an intercepting Device.
type TCPHandler interface {
	// HandleTCP is called on a goroutine of its own for each SYN of a new
	// connection. It must end with one of the request's methods Accept, Reset or Drop; until
	// then the client's repeated SYNs are ignored. A request that it
	// leaves undecided is dropped.
	HandleTCP(*Request)
}

// errDecided is returned when a request is decided twice.
var errDecided = errors.New("connection request was already decided")

// Request is a SYN that nobody has answered yet.
type Request struct {
	device              *Device
	source, destination netip.AddrPort

	mu      sync.Mutex
	pending *tcp.ForwarderRequest // nil once decided
}

// intercept sends SYNs to the handler.
func (d *Device) intercept() {
	forwarder := tcp.NewForwarder(d.stack, d.config.ReceiveBuffer, d.config.MaxPending, func(fr *tcp.ForwarderRequest) {
		id := fr.ID()
		r := &Request{
			device:      d,
			source:      addrPort(id.RemoteAddress, id.RemotePort),
			destination: addrPort(id.LocalAddress, id.LocalPort),
			pending:     fr,
		}
		defer r.Drop()
		d.config.Handler.HandleTCP(r)
	})
	d.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
}

// beginsAnew reports whether b, which was admitted, is a SYN.
func beginsAnew(b []byte) bool {
	if b[ipProtocol] != byte(header.TCPProtocolNumber) {
		return false
	}
	const control = header.TCPFlagSyn | header.TCPFlagAck | header.TCPFlagRst | header.TCPFlagFin
	return header.TCPFlags(b[int(b[0]&0xf)*4+tcpFlags])&control == header.TCPFlagSyn
}

// makeWay ends the connection in TIME-WAIT that has the ports of b, a SYN: its client
// has forgotten it, as a side that closed second may at once, and begins anew with
// the same port (RFC 9293 section 3.6.1). The stack itself hands such a SYN only to a listener, of
// which there is none here, and loses it otherwise. The reset that this sends
// acknowledges nothing of the new connection, and is ignored (RFC 9293 section 3.10.7.3).
func (d *Device) makeWay(b []byte) {
	ip := header.IPv4(b)
	tcpHeader := header.TCP(b[ip.HeaderLength():])
	ep, ok := d.stack.FindTransportEndpoint(header.IPv4ProtocolNumber, header.TCPProtocolNumber, stack.TransportEndpointID{
		LocalAddress: ip.DestinationAddress(), LocalPort: tcpHeader.DestinationPort(),
		RemoteAddress: ip.SourceAddress(), RemotePort: tcpHeader.SourcePort(),
	}, nicID).(*tcp.Endpoint)
	if !ok {
		return
	}
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateFinWait1, tcp.StateFinWait2, tcp.StateClosing:
		// The stack acknowledges the client's FIN before it enters TIME-WAIT, so that the
		// client may be here in between; that is over when the endpoint is unlocked.
		ep.LockUser()
		ep.UnlockUser()
	}
	if tcp.EndpointState(ep.State()) == tcp.StateTimeWait {
		ep.Abort()
	}
}

// Source is the client's address and port.
func (r *Request) Source() netip.AddrPort { return r.source }

// Destination is the address and port that the client wants to reach.
func (r *Request) Destination() netip.AddrPort { return r.destination }

// decide hands out the pending request once.
func (r *Request) decide() *tcp.ForwarderRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	fr := r.pending
	r.pending = nil
	return fr
}

// Reset refuses the request: the client gets a RST. It does nothing when the request was decided.
func (r *Request) Reset() {
	if fr := r.decide(); fr != nil {
		fr.Complete(true)
	}
}

// Drop forgets the request without an answer; a repeated SYN is a new
// request. It does nothing when the request was decided.
func (r *Request) Drop() {
	if fr := r.decide(); fr != nil {
		fr.Complete(false)
	}
}

// Accept completes the handshake: SYN/ACK is sent only now. It waits for the
// client's ACK at most until ctx ends, Config.HandshakeTimeout passes or the device
// is closed. On an error nothing is left to be closed.
func (r *Request) Accept(ctx context.Context) (*Conn, error) {
	fr := r.decide()
	if fr == nil {
		return nil, opError("accept", "tcp", r.destination, r.source, errDecided)
	}
	defer fr.Complete(false)
	conn, err := r.device.shakeHands(ctx, fr)
	if err != nil {
		return nil, opError("accept", "tcp", r.destination, r.source, err)
	}
	return conn, nil
}

// shakeHands sends SYN/ACK and waits for the connection.
func (d *Device) shakeHands(ctx context.Context, fr *tcp.ForwarderRequest) (*Conn, error) {
	if err := d.enter(); err != nil {
		return nil, err
	}
	d.calls.Add(1)
	d.leave()
	defer d.calls.Done()

	ctx, cancel := context.WithTimeout(ctx, d.config.HandshakeTimeout)
	defer cancel()
	defer context.AfterFunc(d.done, cancel)()

	wq := new(waiter.Queue)
	finished := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { interrupt(wq, finished) })
	ep, err := fr.CreateEndpoint(wq)
	close(finished)
	stop()
	if err != nil {
		return nil, handshakeError(ctx, d, err)
	}
	if d.done.Err() != nil {
		ep.Abort()
		ep.Close()
		return nil, os.ErrClosed
	}
	return newConn(d, ep, wq), nil
}

// interrupt wakes the stack's wait for a handshake, which then finds that it is
// not connected and gives up. The stack has no other way out. It may not
// have begun to wait, so this repeats until the handshake is over.
func interrupt(wq *waiter.Queue, finished <-chan struct{}) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		wq.Notify(waiter.WritableEvents)
		select {
		case <-finished:
			return
		case <-tick.C:
		}
	}
}

// handshakeError says why a handshake failed.
func handshakeError(ctx context.Context, d *Device, err tcpip.Error) error {
	switch {
	case d.done.Err() != nil:
		return os.ErrClosed
	case ctx.Err() != nil:
		return fmt.Errorf("handshake not completed: %w", ctx.Err())
	}
	return toError(err)
}
