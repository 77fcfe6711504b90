package tundev

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel's part is played by a Unix socket pair here, which blocks and
// wakes like the real descriptors, and by errors in between.

// scripted is a medium that answers with errors first.
type scripted struct {
	tunMedium
	receiveErrors, sendErrors []error
	fatal                     bool
}

func (s *scripted) receive(fd int, b []byte) (int, error) {
	if len(s.receiveErrors) > 0 {
		err := s.receiveErrors[0]
		s.receiveErrors = s.receiveErrors[1:]
		if err != nil {
			return 0, err
		}
	}
	return s.tunMedium.receive(fd, b)
}

func (s *scripted) send(fd int, b []byte) error {
	if len(s.sendErrors) > 0 {
		err := s.sendErrors[0]
		s.sendErrors = s.sendErrors[1:]
		if err != nil {
			return err
		}
	}
	return s.tunMedium.send(fd, b)
}

func (s *scripted) survives(int, error) bool { return !s.fatal }

// pipeDevice returns a device on one end of a socket pair, and keeps the other in far.
func pipeDevice(t *testing.T, far **os.File, script ...func(*scripted)) *Device {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := os.NewFile(uintptr(pair[1]), "far side")
	t.Cleanup(func() { _ = other.Close() })
	if far != nil {
		*far = other
	}
	m := &scripted{tunMedium: tunMedium{&counters{}}}
	for _, s := range script {
		s(m)
	}
	d, err := newDevice(os.NewFile(uintptr(pair[0]), "pair"), maker{Config: Config{MTU: testMTU}, medium: m, count: m.count})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestWriteGoesOnAfterErrors(t *testing.T) {
	var far *os.File
	d := pipeDevice(t, &far, func(s *scripted) {
		s.sendErrors = []error{unix.EINTR, nil, unix.ENOBUFS, unix.EIO, unix.EPERM, nil}
	})
	var bufs [][]byte
	for i := range 5 {
		bufs = append(bufs, datagram(1, fmt.Sprint(i)))
	}
	n, err := d.Write(bufs, offset)
	if n != 2 || !errors.Is(err, unix.EIO) || errors.Is(err, unix.EPERM) {
		t.Errorf("wrote %d, %v", n, err)
	}
	for _, want := range []string{"0", "4"} {
		b := make([]byte, 100)
		k, err := far.Read(b)
		if err != nil || string(b[28:k]) != want {
			t.Errorf("got %q, %v, want %q", b[:k], err, want)
		}
	}
	want := Stats{Written: 2, WrittenBytes: 58, QueueFull: 1, WriteErrors: 2}
	if got := d.Stats(); got != want {
		t.Errorf("stats: %+v, want %+v", got, want)
	}
}

func TestWriteWaitsWhileTheKernelIsBusy(t *testing.T) {
	var far *os.File
	d := pipeDevice(t, &far)
	const packets = 1000 // far more than a Unix socket queues
	bufs := make([][]byte, packets)
	for i := range bufs {
		bufs[i] = datagram(1, fmt.Sprint(i))
	}
	result := make(chan error, 1)
	go func() {
		n, err := d.Write(bufs, offset)
		if err == nil && n != packets {
			err = fmt.Errorf("wrote %d", n)
		}
		result <- err
	}()
	b := make([]byte, 100)
	for i := range packets {
		k, err := far.Read(b)
		if err != nil || string(b[28:k]) != fmt.Sprint(i) {
			t.Fatalf("packet %d: %q, %v", i, b[:k], err)
		}
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestCloseWakesWrite(t *testing.T) {
	d := pipeDevice(t, nil)
	full := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			if i == 5 {
				close(full)
			}
			if _, err := d.Write([][]byte{datagram(1, "x")}, offset); err != nil {
				result <- err
				return
			}
		}
	}()
	<-full
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, os.ErrClosed) {
		t.Errorf("write: %v", err)
	}
}

func TestReadErrors(t *testing.T) {
	var far *os.File
	d := pipeDevice(t, &far, func(s *scripted) {
		s.receiveErrors = []error{unix.EINTR, unix.ENETDOWN, nil, unix.EIO}
	})
	if _, err := far.Write(datagram(1, "one")[offset:]); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Write(datagram(1, "two")[offset:]); err != nil {
		t.Fatal(err)
	}
	in := newBuffers()
	if n, err := d.Read(in.bufs, in.sizes, offset); n != 2 || err != nil {
		t.Fatalf("read %d, %v", n, err)
	}
	// An error that ends the device comes after the packets before it.
	d = pipeDevice(t, &far, func(s *scripted) {
		s.fatal = true
		s.receiveErrors = []error{nil, unix.EBADFD, unix.EBADFD}
	})
	if _, err := far.Write(datagram(1, "one")[offset:]); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Read(in.bufs, in.sizes, offset); n != 1 || err != nil {
		t.Fatalf("read %d, %v", n, err)
	}
	if n, err := d.Read(in.bufs, in.sizes, offset); n != 0 || !errors.Is(err, unix.EBADFD) {
		t.Fatalf("read %d, %v", n, err)
	}
}

func TestReadDropsWhatDoesNotFit(t *testing.T) {
	var far *os.File
	d := pipeDevice(t, &far)
	for _, size := range []int{200, 100} {
		if _, err := far.Write(datagram(1, string(make([]byte, size-28)))[offset:]); err != nil {
			t.Fatal(err)
		}
	}
	bufs, sizes := [][]byte{make([]byte, offset+150)}, make([]int, 1)
	if n, err := d.Read(bufs, sizes, offset); n != 1 || sizes[0] != 100 || err != nil {
		t.Fatalf("read %d of %d bytes, %v", n, sizes[0], err)
	}
	if stats := d.Stats(); stats.TooBig != 1 || stats.Read != 1 {
		t.Errorf("stats: %+v", stats)
	}
}

// FuzzPacketReceive reads arbitrary frames: whatever the tenant's kernel sends,
// what comes out is an IPv4 packet that fits.
func FuzzPacketReceive(f *testing.F) {
	f.Add([]byte{})
	f.Add(append([]byte{13: 0, 12: 8}, datagram(1, "x")[offset:]...))
	f.Add(append(append([]byte{13: 0, 12: 8}, datagram(1, "x")[offset:]...), make([]byte, 20)...))
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _, _ = unix.Close(pair[0]), unix.Close(pair[1]) })
	m := &packetMedium{count: &counters{}}
	b := make([]byte, 1000)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > 60_000 {
			return
		}
		if err := unix.Send(pair[1], frame, 0); err != nil {
			t.Fatal(err)
		}
		dropped := m.count.notIPv4.Load() + m.count.tooBig.Load()
		n, err := m.receive(pair[0], b)
		if err != nil {
			t.Fatal(err)
		}
		dropped = m.count.notIPv4.Load() + m.count.tooBig.Load() - dropped
		if (n == 0) != (dropped == 1) {
			t.Fatalf("%d bytes and %d drops", n, dropped)
		}
		if n != 0 && (n < 20 || b[0]>>4 != 4 || n > len(frame)-ethernetHeader) {
			t.Fatalf("not a packet: %x", b[:n])
		}
	})
}
