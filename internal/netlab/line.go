package netlab

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// longestFrame is the longest that crosses a line, in bytes: an MTU of 65,535
// and the Ethernet header with a VLAN tag.
const longestFrame = 65535 + 18

// Line is a link between two namespaces on which frames take time and get lost.
// This process carries them, between packet sockets on two veth pairs that meet in
// a namespace of the line's own, because few kernels bring a queue that delays. It
// is for some ten thousand frames a second, not for measuring throughput.
type Line struct {
	ends  [2]End
	to    [2]*direction // the direction towards ends[i]
	files [2]*os.File   // sockets on the links that lead to ends[i]
	done  sync.WaitGroup
}

// direction carries frames one way.
type direction struct {
	mu    sync.Mutex
	queue *delayQueue
	woken chan struct{} // holds one: a frame came that may be due sooner
	quit  chan struct{}
}

// ConnectLine makes a line, at first without delay or loss, and brings both ends
// up. They send without segmentation and checksum offload. Chance follows the seed.
func (l *Lab) ConnectLine(a, b End, seed uint64) *Line {
	a.NoOffload, b.NoOffload = true, true
	line := &Line{ends: [2]End{a, b}}
	for i := range line.to {
		line.to[i] = &direction{queue: newDelayQueue(seed, uint64(i)), woken: make(chan struct{}, 1), quit: make(chan struct{})}
	}
	middle := l.Namespace(fmt.Sprintf("line between %s and %s", a.Namespace, b.Namespace))
	names := [2]string{"a", "b"}
	for i, end := range line.ends {
		l.Connect(end, End{Namespace: middle, Link: names[i], MTU: end.MTU, NoOffload: true})
	}
	l.build("open "+middle.name, func() error {
		for i, name := range names {
			if err := middle.Do(func() (err error) {
				line.files[i], err = openFrames(name)
				return err
			}); err != nil {
				return errors.Join(err, line.close())
			}
		}
		l.mu.Lock()
		l.lines = append(l.lines, line)
		l.mu.Unlock()
		for i, d := range line.to {
			from, to := line.files[1-i], line.files[i]
			line.done.Go(func() { d.receive(from) })
			line.done.Go(func() { d.send(to) })
		}
		return nil
	})
	return line
}

// Set changes what happens from now on to frames towards one of the line's
// namespaces. Those under way keep their times.
func (l *Line) Set(towards *Namespace, q Quality) error {
	d, err := l.direction(towards)
	if err != nil {
		return err
	}
	if q.Delay < 0 || q.Jitter < 0 || q.Queue < 0 || !(q.Loss >= 0 && q.Loss <= 1) {
		return fmt.Errorf("netlab: set line to %s: %+v: times and queue must not be negative, loss is 0 to 1", towards, q)
	}
	d.mu.Lock()
	d.queue.quality = q
	d.mu.Unlock()
	return nil
}

// Stats counts what went towards one of the line's namespaces.
func (l *Line) Stats(towards *Namespace) (LineStats, error) {
	d, err := l.direction(towards)
	if err != nil {
		return LineStats{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.queue.stats, nil
}

// Limit makes a namespace send no faster than r by the line; the zero Rate ends that.
func (l *Line) Limit(from *Namespace, r hostnet.Rate) error {
	return (&Link{l.ends[0], l.ends[1]}).Limit(from, r)
}

func (l *Line) direction(towards *Namespace) (*direction, error) {
	if err := towards.lab.Err(); err != nil {
		return nil, err
	}
	for i, end := range l.ends {
		if end.Namespace == towards {
			return l.to[i], nil
		}
	}
	return nil, fmt.Errorf("netlab: %s is no end of the line between %s and %s", towards, l.ends[0].Namespace, l.ends[1].Namespace)
}

func (l *Line) close() error {
	var errs []error
	for i, d := range l.to {
		close(d.quit)
		if l.files[i] != nil {
			errs = append(errs, l.files[i].Close())
		}
	}
	l.done.Wait()
	return errors.Join(errs...)
}

// receive takes frames in until the socket is closed.
func (d *direction) receive(from *os.File) {
	b := make([]byte, longestFrame)
	for {
		n, err := from.Read(b)
		switch {
		case err == nil:
		case errors.Is(err, unix.ENETDOWN):
			continue // told once, when the link goes down; it may come back
		default:
			return
		}
		d.mu.Lock()
		d.queue.add(time.Now(), b[:n])
		d.mu.Unlock()
		select {
		case d.woken <- struct{}{}:
		default:
		}
	}
}

// send passes frames on when they are due, until the line is closed.
func (d *direction) send(to *os.File) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		d.mu.Lock()
		frame, again := d.queue.next(time.Now())
		d.mu.Unlock()
		if frame != nil {
			_, err := to.Write(frame)
			d.mu.Lock()
			d.queue.release(frame, err == nil)
			d.mu.Unlock()
			if errors.Is(err, os.ErrClosed) {
				return
			}
			continue
		}
		if !again.IsZero() {
			timer.Reset(time.Until(again))
		} else {
			timer.Stop()
		}
		select {
		case <-timer.C:
		case <-d.woken:
		case <-d.quit:
			return
		}
	}
}

// openFrames opens a packet socket that takes and sends whole frames on a link of
// the calling thread's network namespace, but not those that it sent itself.
func openFrames(link string) (_ *os.File, err error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket (needs CAP_NET_RAW): %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	req, err := unix.NewIfreq(link)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return nil, fmt.Errorf("leave out what is sent: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everyProtocol, Ifindex: int(req.Uint32())}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	return os.NewFile(uintptr(fd), "line on "+link), nil
}
