// Package tundev is a batching tun.Device of wireguard-go on a descriptor that
// carries IPv4 packets: a kernel TUN, or an AF_PACKET socket on one end of a
// veth pair where no TUN can be had.
//
// The descriptor is opened by one function and worked by another, because the
// two may happen in different processes: the opener needs the right network
// namespace and its privileges, the worker needs neither. Between them the
// descriptor may travel over a Unix socket (SCM_RIGHTS).
//
//	f, err := tundev.CreateTUN("sally0", true) // inside the namespace
//	dev, err := tundev.FromTUN(f, tundev.Config{MTU: 1420}) // anywhere
//
// A TUN may carry trains: several segments of one flow as one packet, so that one system
// call moves up to 64 KiB. Read and Write cut and join them, and ReadTrains and WriteTrains
// leave them whole for whoever can work on them so.
//
// Only IPv4 passes. Whatever else the far side sends (router solicitations,
// ARP, multicast of IPv6) is dropped in Read and counted in [Stats], so that
// no reader downstream needs to know of it.
package tundev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// BatchSize is the most packets that one Read or Write of a Device moves.
const BatchSize = 128

// The MTUs that make sense: RFC 791 obliges every link to carry 68 bytes, and
// an IPv4 packet ends at 65,535.
const (
	minMTU = 68
	maxMTU = 65535
)

// Config is what a Device needs to know besides its descriptor.
type Config struct {
	// MTU is what Device.MTU answers, in bytes of IP packet; larger packets are
	// dropped in both directions. It does not change the interface's own MTU.
	MTU int
	// LocalMAC is the source address of the frames that FromPacket's device
	// writes, PeerMAC their destination: the address of the veth end whose
	// owner is to receive them. FromTUN ignores both.
	LocalMAC, PeerMAC net.HardwareAddr
	// Offload lets the kernel hand over and take several segments as one packet, as far as it
	// and the interface can: see Device.Offload. A packet socket cannot.
	Offload bool
	// Scratch is memory that this device may share with others; nil: it has its own.
	Scratch *Scratch
	// LocalAddr and PeerAddr are the addresses that belong to the two in ARP, where
	// FromEthernet answers it. The others ignore both.
	LocalAddr, PeerAddr netip.Addr
}

func (c Config) validate() error {
	if c.MTU < minMTU || c.MTU > maxMTU {
		return fmt.Errorf("tundev: MTU %d is outside %d to %d", c.MTU, minMTU, maxMTU)
	}
	return nil
}

// Stats counts what a Device has done since it was made. Each packet is counted once, and a
// train as the packets that it is made of.
type Stats struct {
	Read, ReadBytes       uint64 // IPv4 packets handed to readers
	Written, WrittenBytes uint64 // IPv4 packets that the kernel took
	NotIPv4               uint64 // dropped in either direction: IPv6, ARP and other protocols
	Spoofed               uint64 // dropped on read: an Ethernet or ARP sender that is not the peer (FromEthernet)
	Answered              uint64 // read, and answered here: ARP for the local address, packets beyond the MTU (FromEthernet)
	TooBig                uint64 // dropped in either direction: longer than the MTU or the reader's buffer
	Malformed             uint64 // dropped in either direction: trains, or their vnet headers, that make no sense
	QueueFull             uint64 // dropped on write: the kernel had no buffer (ENOBUFS)
	WriteErrors           uint64 // dropped on write: the kernel refused it, as on a link that is down
}

type counters struct {
	read, readBytes, written, writtenBytes  atomic.Uint64
	notIPv4, tooBig, queueFull, writeErrors atomic.Uint64
	malformed                               atomic.Uint64
	spoofed, answered                       atomic.Uint64
}

// medium is what differs between a TUN and a packet socket. Its methods do
// system calls that never block and are given the raw descriptor by the netpoller.
type medium interface {
	// receive reads one packet into b and says how many bytes of it are a packet.
	// A length of 0 without error is a packet that was dropped and counted.
	receive(fd int, b []byte) (int, error)
	// send writes the packet b.
	send(fd int, b []byte) error
	// survives says whether reading goes on after err.
	survives(fd int, err error) bool
	// name asks the kernel for the interface's name.
	name(fd int) (string, error)
}

// Device is a tun.Device on a descriptor. Read belongs to one goroutine at a
// time, others wait; Write may be called by many, whose batches are not mixed.
// Close may be called by anyone at any time: it wakes Read and Write, which
// then return os.ErrClosed.
type Device struct {
	file     *os.File
	mtu      int
	medium   medium
	offloads Offload
	scratch  *Scratch
	count    *counters
	events   chan tun.Event
	closed   atomic.Bool
	once     sync.Once

	waker  waker
	reader reader
	writer writer
}

var _ tun.Device = (*Device)(nil)

// maker is what newDevice makes a Device of, besides its file.
type maker struct {
	Config
	medium   medium
	offloads Offload
	count    *counters
}

func newDevice(f *os.File, c maker) (*Device, error) {
	f, err := pollable(f)
	if err != nil {
		return nil, err
	}
	d := &Device{
		file: f, mtu: c.MTU, medium: c.medium, offloads: c.offloads, scratch: c.Scratch, count: c.count,
		events: make(chan tun.Event, 1),
	}
	if d.scratch == nil {
		d.scratch = &Scratch{}
	}
	d.reader.init(d)
	d.writer.init(d)
	d.events <- tun.EventUp
	return d, nil
}

// pollable returns a file whose reads wait in the runtime's poller. A file
// that os.NewFile made from a blocking descriptor is not in the poller; it is
// replaced by a duplicate that is.
func pollable(f *os.File) (*os.File, error) {
	if err := f.SetDeadline(time.Time{}); !errors.Is(err, os.ErrNoDeadline) {
		return f, err
	}
	var fd int
	err := control(f, func(raw int) (err error) {
		if fd, err = unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			return err
		}
		return unix.SetNonblock(fd, true)
	})
	if err != nil {
		return nil, fmt.Errorf("tundev: make %s non-blocking: %w", f.Name(), err)
	}
	dup := os.NewFile(uintptr(fd), f.Name())
	if err := dup.SetDeadline(time.Time{}); err != nil {
		_ = dup.Close()
		return nil, fmt.Errorf("tundev: %s cannot be waited on: %w", f.Name(), err)
	}
	return dup, f.Close()
}

// control runs call on f's raw descriptor without waiting.
func control(f *os.File, call func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = call(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// File returns the descriptor's file, which the device still owns.
func (d *Device) File() *os.File { return d.file }

// MTU returns the MTU of the device's Config, in bytes.
func (d *Device) MTU() (int, error) { return d.mtu, nil }

// Name asks the kernel for the present name of the interface. It works from any
// network namespace.
func (d *Device) Name() (string, error) {
	var name string
	err := control(d.file, func(fd int) (err error) {
		name, err = d.medium.name(fd)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("tundev: name of %s: %w", d.file.Name(), d.explain(err))
	}
	return name, nil
}

// Events returns a channel that holds one tun.EventUp and is closed by Close.
func (d *Device) Events() <-chan tun.Event { return d.events }

// BatchSize returns the constant BatchSize.
func (d *Device) BatchSize() int { return BatchSize }

// Stats returns the counters as they stand.
func (d *Device) Stats() Stats {
	c := d.count
	return Stats{
		Read: c.read.Load(), ReadBytes: c.readBytes.Load(),
		Written: c.written.Load(), WrittenBytes: c.writtenBytes.Load(),
		NotIPv4: c.notIPv4.Load(), TooBig: c.tooBig.Load(), Malformed: c.malformed.Load(),
		Spoofed: c.spoofed.Load(), Answered: c.answered.Load(),
		QueueFull: c.queueFull.Load(), WriteErrors: c.writeErrors.Load(),
	}
}

// Close closes the descriptor, wakes Read and Write, and closes Events. A TUN
// that nobody else holds disappears with it. Further calls do nothing.
func (d *Device) Close() error {
	var err error
	d.once.Do(func() {
		d.closed.Store(true)
		err = d.file.Close()
		close(d.events)
	})
	return err
}

// explain turns what a closed descriptor answers into os.ErrClosed.
func (d *Device) explain(err error) error {
	if err != nil && d.closed.Load() {
		return os.ErrClosed
	}
	return err
}

// isIPv4 says whether b begins like an IPv4 packet.
func isIPv4(b []byte) bool { return len(b) >= 20 && b[0]>>4 == 4 }
