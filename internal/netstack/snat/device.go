// Package snat is gVisor's own NAT as a gateway would use it: a stack that forwards between
// two interfaces, with one rule. The harness measures our translator beside it; nothing
// else uses it.
//
// A [Device] stands between WireGuard's device and a TUN. gVisor forwards a packet within the
// call that delivers it, so that the device needs no queue and no goroutine: Write delivers
// a batch at the inner interface, gathers what comes out at the outer one, and writes that to
// the TUN as one batch, which the TUN joins to trains; Read does the same the other way.
// gVisor's forwarding itself takes packets one by one. It drops what it knows of trains when
// it copies a packet for forwarding.
package snat

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// Config says what is translated.
type Config struct {
	// Inside are the addresses of those who send. The first is the gateway's own.
	Inside netip.Prefix
	// External is what their packets leave from.
	External netip.Addr
	// MTU is the largest IP packet in bytes, on both sides.
	MTU int
}

func (c Config) validate() error {
	switch {
	case !c.Inside.Addr().Is4() || c.Inside.Bits() > 30:
		return fmt.Errorf("inside are %v: give an IPv4 network", c.Inside)
	case !c.External.Is4():
		return fmt.Errorf("the external address is %v: give one of IPv4", c.External)
	case c.MTU < header.IPv4MinimumMTU || c.MTU > header.IPv4MaximumPayloadSize:
		return fmt.Errorf("MTU %d: must be %d to %d bytes", c.MTU, header.IPv4MinimumMTU, header.IPv4MaximumPayloadSize)
	}
	return nil
}

// The interfaces, by gVisor's numbers.
const (
	innerNIC = 1
	outerNIC = 2
)

// outerName is how the rule knows the outer interface.
const outerName = "outer"

// Device is a tun.Device whose far side is another one, which it owns. Name, File, MTU,
// Events and BatchSize are that one's. Write may be called concurrently, Read by one
// goroutine at a time.
type Device struct {
	tun.Device
	stack        *stack.Stack
	inner, outer *side

	writing sync.Mutex
	once    sync.Once
}

var _ tun.Device = (*Device)(nil)

// quiet takes what gVisor would write to standard error of packets that it can do nothing with.
type quiet struct{}

// Emit implements log.Emitter.
func (quiet) Emit(int, log.Level, time.Time, string, ...any) {}

// New puts a translator before a TUN. The device closes the TUN; with an error the
// caller does.
func New(far tun.Device, c Config) (*Device, error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("translate by gVisor: %w", err)
	}
	log.SetTarget(quiet{})
	d := &Device{Device: far, inner: &side{mtu: c.MTU}, outer: &side{mtu: c.MTU}}
	d.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := d.configure(c); err != nil {
		d.stack.Close()
		return nil, fmt.Errorf("translate by gVisor: %w", err)
	}
	return d, nil
}

// configure gives the stack its interfaces, routes and rule.
func (d *Device) configure(c Config) error {
	for _, n := range []struct {
		id   tcpip.NICID
		name string
		side *side
		addr netip.Addr
	}{{innerNIC, "inner", d.inner, c.Inside.Masked().Addr().Next()}, {outerNIC, outerName, d.outer, c.External}} {
		if err := d.stack.CreateNICWithOptions(n.id, n.side, stack.NICOptions{Name: n.name}); err != nil {
			return fmt.Errorf("add an interface: %v", err)
		}
		a := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(n.addr.As4()).WithPrefix()}
		if err := d.stack.AddProtocolAddress(n.id, a, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("add address %v: %v", n.addr, err)
		}
	}
	inside := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(c.Inside.Masked().Addr().As4()), PrefixLen: c.Inside.Bits()}.Subnet()
	d.stack.SetRouteTable([]tcpip.Route{{Destination: inside, NIC: innerNIC}, {Destination: header.IPv4EmptySubnet, NIC: outerNIC}})
	if err := d.stack.SetForwardingDefaultAndAllNICs(ipv4.ProtocolNumber, true); err != nil {
		return fmt.Errorf("forward: %v", err)
	}
	d.translate(c.External)
	return nil
}

// translate puts a rule for what leaves by the outer interface before the last chain's
// policy. Without the interface in it the stack would drop its own ICMP errors.
func (d *Device) translate(external netip.Addr) {
	filter := stack.EmptyFilter4()
	filter.OutputInterface = outerName
	rule := stack.Rule{Filter: filter, Target: &stack.SNATTarget{
		NetworkProtocol: ipv4.ProtocolNumber, Addr: tcpip.AddrFrom4(external.As4()), ChangeAddress: true, ChangePort: true,
	}}
	tables := d.stack.IPTables()
	table := tables.GetTable(stack.NATID, false)
	at := table.BuiltinChains[stack.Postrouting]
	table.Rules = slices.Insert(slices.Clone(table.Rules), at, rule)
	table.Underflows[stack.Postrouting] = at + 1
	tables.ReplaceTable(stack.NATID, table, false)
}

// Write translates a batch and writes it to the TUN, from the same buffers. Packets that
// the stack refuses are dropped.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	d.writing.Lock()
	defer d.writing.Unlock()
	for _, b := range bufs {
		d.inner.deliver(b[offset:])
	}
	out := bufs[:d.outer.count(len(bufs))]
	for i := range out {
		room := out[i][:cap(out[i])]
		out[i] = room[:offset+d.outer.take(room[offset:])]
	}
	if len(out) > 0 {
		if _, err := d.Device.Write(out, offset); err != nil {
			return 0, err
		}
	}
	return len(bufs), nil
}

// Read waits for a batch from the TUN and hands it out translated. What the stack
// has to say to the inside waits until then.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		n, err := d.Device.Read(bufs, sizes, offset)
		for i := range n {
			d.outer.deliver(bufs[i][offset : offset+sizes[i]])
		}
		n = d.inner.count(len(bufs))
		for i := range n {
			sizes[i] = d.inner.take(bufs[i][offset:])
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Close closes the TUN, and ends the stack.
func (d *Device) Close() (err error) {
	d.once.Do(func() {
		err = d.Device.Close()
		d.stack.Close()
		d.stack.Wait()
	})
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// newPacket copies b into a packet of the stack.
func newPacket(b []byte) *stack.PacketBuffer {
	return stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
}
