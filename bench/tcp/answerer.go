package tcp

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/handshake"
	"github.com/sallyport-net/sallyport/internal/tundev"
)

// Place is where a TUN is made, as a *netlab.Namespace is: Do runs f there and waits for it.
type Place interface {
	Do(f func() error) error
}

// AnswererConfig says where and what is answered.
type AnswererConfig struct {
	handshake.AnswererConfig
	// Place is where the TUN is made; nil: where the process is.
	Place Place
	// Link is the TUN's name.
	Link string
}

// Answerer answers short connections to all addresses that are routed to its TUN, without a
// memory of them: as a far side it costs less than a kernel's sockets.
type Answerer struct {
	device *tundev.Device
	done   sync.WaitGroup

	mu       sync.Mutex
	answerer *handshake.Answerer
	err      error // why it ended
}

// answererMTU is that of the TUN, in bytes.
const answererMTU = 1500

// NewAnswerer makes the TUN, brings it up, and answers until Close. The caller routes addresses
// to it.
func NewAnswerer(c AnswererConfig) (*Answerer, error) {
	pure, err := handshake.NewAnswerer(c.AnswererConfig)
	if err != nil {
		return nil, err
	}
	var f *os.File
	open := func() (err error) {
		if f, err = tundev.CreateTUN(c.Link, false); err != nil {
			return err
		}
		return bringUp(c.Link)
	}
	if c.Place != nil {
		err = c.Place.Do(open)
	} else {
		err = open()
	}
	if err != nil {
		if f != nil {
			_ = f.Close()
		}
		return nil, fmt.Errorf("answer connections: %w", err)
	}
	device, err := tundev.FromTUN(f, tundev.Config{MTU: answererMTU})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("answer connections: %w", err), f.Close())
	}
	a := &Answerer{device: device, answerer: pure}
	a.done.Go(func() {
		err := a.work()
		a.mu.Lock()
		defer a.mu.Unlock()
		a.err = err
	})
	return a, nil
}

// bringUp brings a link of this namespace up.
func bringUp(link string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq(link)
	if err != nil {
		return fmt.Errorf("bring %q up: %w", link, err)
	}
	if err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err == nil {
		req.SetUint16(req.Uint16() | unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	}
	if err != nil {
		return fmt.Errorf("bring %q up: %w", link, err)
	}
	return nil
}

// work answers until the device is closed.
func (a *Answerer) work() error {
	const batch = tundev.BatchSize
	in, out, sizes := make([][]byte, batch), make([][]byte, batch), make([]int, batch)
	room := make([][]byte, batch)
	for i := range batch {
		in[i], room[i] = make([]byte, answererMTU), make([]byte, a.answerer.Size())
	}
	for {
		n, err := a.device.Read(in, sizes, 0)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("answer connections: %w", err)
		}
		answers := 0
		a.mu.Lock()
		for i := range n {
			if size := a.answerer.Answer(room[answers], in[i][:sizes[i]]); size > 0 {
				out[answers] = room[answers][:size]
				answers++
			}
		}
		a.mu.Unlock()
		// A full queue is counted and no error; a link that goes down ends the next Read.
		_, _ = a.device.Write(out[:answers], 0)
	}
}

// Counts returns what was answered, and why it answers no longer, if that is so.
func (a *Answerer) Counts() (handshake.Answered, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.answerer.Counts(), a.err
}

// Close ends it and its TUN.
func (a *Answerer) Close() error {
	err := a.device.Close()
	a.done.Wait()
	return err
}

// Remotes are the first n addresses behind the network's own of a prefix, with a port.
func Remotes(p netip.Prefix, n int, port uint16) (out []netip.AddrPort) {
	for a := p.Masked().Addr().Next(); len(out) < n && p.Contains(a); a = a.Next() {
		out = append(out, netip.AddrPortFrom(a, port))
	}
	return out
}
