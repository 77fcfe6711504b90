package tunnel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// SocketBuffer is what a tunnel asks for in each direction of each of its UDP sockets,
// in bytes: some tens of milliseconds at 1 Gbit/s. The kernel gives less where
// net.core.rmem_max and wmem_max say so and the process lacks CAP_NET_ADMIN.
const SocketBuffer = 7 << 20

// Offload is what is not asked of the kernel. Its zero value asks for everything.
type Offload struct {
	// NoGSO: datagrams are handed over one by one, and not in runs that the kernel, or the
	// link's device, cuts (UDP_SEGMENT).
	NoGSO bool
	// NoGRO: the kernel hands over datagrams as they came, and joins none (UDP_GRO).
	NoGRO bool
}

// SocketState is what one UDP socket of a tunnel has now.
type SocketState struct {
	// Network is udp4 or udp6.
	Network string
	// GSO is whether the kernel cuts what is sent. A link that cannot turns it off for good.
	GSO bool
	// GRO is whether the kernel joins what arrives.
	GRO bool
	// ReceiveBuffer and SendBuffer are what the kernel gave of SocketBuffer, in bytes.
	ReceiveBuffer, SendBuffer int
}

// Sockets asks the kernel what the tunnel's sockets have. A tunnel that was closed has none.
func (t *Tunnel) Sockets() ([]SocketState, error) { return t.bind.state() }

// Probe opens the sockets that a tunnel would have, on a free port, says what they have,
// and closes them.
func Probe(o Offload) (states []SocketState, err error) {
	b := &bind{offload: o}
	if _, _, err := b.Open(0); err != nil {
		return nil, fmt.Errorf("open UDP sockets to see what the kernel gives them: %w", err)
	}
	states, err = b.state()
	return states, errors.Join(err, b.Close())
}

// state reads what both sockets have.
func (b *bind) state() ([]SocketState, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var states []SocketState
	for _, s := range []*udpSocket{b.v4, b.v6} {
		if s == nil {
			continue
		}
		state, err := s.state()
		if err != nil {
			return nil, fmt.Errorf("ask the %s socket on port %d what it has: %w", s.network, s.port, err)
		}
		states = append(states, state)
	}
	return states, nil
}

func (s *udpSocket) state() (SocketState, error) {
	state := SocketState{Network: s.network, GSO: s.gso.Load(), GRO: s.gro}
	err := s.control(func(fd int) error {
		in, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
		if err != nil {
			return err
		}
		out, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
		state.ReceiveBuffer, state.SendBuffer = in/2, out/2 // the kernel doubles them (socket(7))
		return err
	})
	return state, err
}

// probeOffload switches on what is asked for, and notes what the kernel has.
func (s *udpSocket) probeOffload(o Offload) error {
	return s.control(func(fd int) error {
		_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		s.gso.Store(err == nil && !o.NoGSO)
		if !o.NoGRO {
			s.gro = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
		}
		return nil
	})
}
