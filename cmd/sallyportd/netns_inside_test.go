package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// guest is the command in a sandbox: it does tasks, many at a time, until its
// input ends.
type guest struct {
	load workload

	mu   sync.Mutex
	held []net.Conn   // by "hold" and "begin"
	slow *stallWriter // of "begin"
	lost []error      // of "flood"
	busy int          // of "flood": attempts that have not ended
}

// inside is the whole program in a sandbox. It returns its exit code.
func inside(r io.Reader, w io.Writer) int {
	in, out := json.NewDecoder(r), json.NewEncoder(w)
	var g guest
	var mu sync.Mutex
	for {
		var t task
		if err := in.Decode(&t); errors.Is(err, io.EOF) {
			return 0
		} else if err != nil {
			fmt.Fprintln(os.Stderr, "read a task:", err)
			return 1
		}
		go func() {
			a := g.perform(t)
			mu.Lock()
			defer mu.Unlock()
			if err := out.Encode(a); err != nil {
				fmt.Fprintln(os.Stderr, "write an answer:", err)
			}
		}()
	}
}

// perform does one task.
func (g *guest) perform(t task) answer {
	began := time.Now()
	within := t.Within
	if within == 0 {
		within = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	a := answer{ID: t.ID}
	err := g.do(ctx, t, &a)
	a.ID, a.Took = t.ID, time.Since(began)
	if err != nil {
		a.Failure = err.Error()
		errors.As(err, &a.Errno)
	}
	return a
}

// do chooses the task.
func (g *guest) do(ctx context.Context, t task, a *answer) (err error) {
	switch t.Do {
	case "address": // the sandbox's own
		a.Sources, err = ownAddresses()
	case "http": // Count requests at once, each on its own connection
		a.Sources, err = requests(ctx, t.Target, max(t.Count, 1))
	case "udp": // a datagram there and back
		a.Sources, err = datagram(ctx, t.Target, int(t.Size))
	case "too big": // a datagram of Size that must not be cut; Size is what the path takes
		a.Size, err = tooBig(ctx, t)
	case "ping": // once, and wait for the answer
		err = ping(ctx, t.Target)
	case "connect": // and no more
		err = connect(ctx, t)
	case "hold": // Count connections at once, to the end of the program
		a.Sources, err = g.hold(ctx, t)
	case "lookup":
		a.Texts, err = (&net.Resolver{PreferGo: true}).LookupHost(ctx, t.Target)
	case "file":
		var b []byte
		b, err = os.ReadFile(t.Target)
		a.Texts = []string{string(b)}
	case "listen": // by TCP and UDP; what comes is told on standard error
		err = g.listen(t)
	case "forge": // answers to probes that nobody asked for here
		err = forge(t)
	case "escape":
		a.Texts = escapes(ctx, t)
	case "load", "report":
		if t.Do == "load" {
			g.load.start(t.Targets)
		}
		a.Load = g.load.report()
	case "flood": // begin Count connects and do not wait for them
		g.flood(t)
	case "flooded": // how many failed, how many are left
		g.mu.Lock()
		a.Count, a.Size, err = len(g.lost), int64(g.busy), errors.Join(g.lost[:min(1, len(g.lost))]...)
		g.mu.Unlock()
	default:
		err = g.transfer(ctx, t, a)
	}
	return err
}

func ownAddresses() (own []netip.AddrPort, err error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() {
			own = append(own, netip.AddrPortFrom(p.Addr(), 0))
		}
	}
	return own, nil
}

// request makes one HTTP request on a connection of its own.
func request(ctx context.Context, target string) (netip.AddrPort, error) {
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+target+"/", nil)
	if err != nil {
		return netip.AddrPort{}, err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(string(b))
}

func requests(ctx context.Context, target string, n int) ([]netip.AddrPort, error) {
	seen := make([]netip.AddrPort, n)
	group, ctx := errgroup.WithContext(ctx)
	for i := range seen {
		group.Go(func() (err error) {
			seen[i], err = request(ctx, target)
			return err
		})
	}
	err := group.Wait()
	return slices.DeleteFunc(seen, func(a netip.AddrPort) bool { return !a.IsValid() }), err
}

// datagram asks by one of size bytes, or a short one, which must come back unchanged.
func datagram(ctx context.Context, target string, size int) ([]netip.AddrPort, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp4", target)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	question := []byte("whence?")
	if size > 0 {
		question = make([]byte, size)
		_, _ = io.ReadFull(newNoise(), question)
	}
	b := make([]byte, 65535)
	n, err := ask(ctx, c, question, b)
	if err != nil {
		return nil, err
	}
	text, echoed, _ := strings.Cut(string(b[:n]), " ")
	if size > 0 && echoed != string(question) {
		return nil, fmt.Errorf("%d bytes came back of %d, or others", len(echoed), len(question))
	}
	a, err := netip.ParseAddrPort(text)
	return []netip.AddrPort{a}, err
}

// askAgain is how long an answer to a datagram is waited for before it is asked
// again: UDP may lose one, and programs that use it live with that.
const askAgain = time.Second

// ask asks until an answer is read into b or ctx ends.
func ask(ctx context.Context, c net.Conn, question, b []byte) (int, error) {
	end, _ := ctx.Deadline()
	for {
		if _, err := c.Write(question); err != nil {
			return 0, err
		}
		until := time.Now().Add(askAgain)
		if until.After(end) {
			until = end
		}
		_ = c.SetReadDeadline(until)
		n, err := c.Read(b)
		if !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(end) {
			return n, err
		}
	}
}

// ping sends an echo request by the kind of socket that needs no privilege.
func ping(ctx context.Context, target string) error {
	to, err := netip.ParseAddr(target)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return fmt.Errorf("open a ping socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	deadline, _ := ctx.Deadline()
	patience := unix.NsecToTimeval(time.Until(deadline).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		return err
	}
	// Type, code, checksum, identifier and sequence; the kernel fills in what matters.
	if _, err := unix.Write(fd, []byte{8, 0, 0, 0, 0, 0, 0, 1, 'p', 'i', 'n', 'g'}); err != nil {
		return err
	}
	b := make([]byte, 64)
	n, err := unix.Read(fd, b)
	if err == nil && (n != 12 || b[0] != 0 || string(b[8:n]) != "ping") {
		err = fmt.Errorf("the answer is %x", b[:n])
	}
	return err
}

func connect(ctx context.Context, t task) error {
	network := t.Network
	if network == "" {
		network = "tcp4"
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, t.Target)
	if err != nil {
		return err
	}
	return c.Close()
}

// hold opens connections to an echo, and asks each to tell the source.
func (g *guest) hold(ctx context.Context, t task) ([]netip.AddrPort, error) {
	seen := make([]netip.AddrPort, t.Count)
	var group errgroup.Group
	for i := range seen {
		group.Go(func() error {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", t.Target)
			if err != nil {
				return err
			}
			g.mu.Lock()
			g.held = append(g.held, c)
			g.mu.Unlock()
			deadline, _ := ctx.Deadline()
			_ = c.SetDeadline(deadline)
			line, err := bufio.NewReader(c).ReadString('\n')
			if err != nil {
				return err
			}
			seen[i], err = netip.ParseAddrPort(strings.TrimSpace(line))
			return err
		})
	}
	err := group.Wait()
	return slices.DeleteFunc(seen, func(a netip.AddrPort) bool { return !a.IsValid() }), err
}

// flood begins connects that nobody answers.
func (g *guest) flood(t task) {
	g.mu.Lock()
	g.busy += t.Count
	g.mu.Unlock()
	for range t.Count {
		go func() {
			c, err := net.DialTimeout("tcp4", t.Target, 20*time.Second)
			g.mu.Lock()
			defer g.mu.Unlock()
			g.busy--
			if err != nil {
				g.lost = append(g.lost, err)
				return
			}
			_ = c.Close()
		}()
	}
}

// listen takes what comes, which in a sandbox is nothing but by a peering of its network;
// with Count it keeps the connections.
func (g *guest) listen(t task) error {
	l, err := net.Listen("tcp4", t.Target)
	if err != nil {
		return err
	}
	p, err := net.ListenPacket("udp4", t.Target)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(os.Stderr, "ARRIVED:", c.RemoteAddr())
			if t.Count > 0 {
				g.mu.Lock()
				g.held = append(g.held, c)
				g.mu.Unlock()
				continue
			}
			_ = c.Close()
		}
	}()
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			fmt.Fprintf(os.Stderr, "ARRIVED: %q from %v\n", b[:n], from)
		}
	}()
	return nil
}

// transfer does the tasks with streams of noise.
func (g *guest) transfer(ctx context.Context, t task, a *answer) error {
	if t.Do == "finish" || t.Do == "drain" {
		return g.resume(t, a)
	}
	d, err := (&net.Dialer{}).DialContext(ctx, "tcp4", t.Target)
	if err != nil {
		return err
	}
	c := d.(*net.TCPConn)
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	switch t.Do {
	case "upload", "download":
		return stream(c, t)
	case "reset": // one byte, and RST
		if _, err := c.Write([]byte{1}); err != nil {
			return err
		}
		return errors.Join(c.SetLinger(0), c.Close())
	case "await reset": // with Count, which goes on sending, Count times a second
		defer c.Close()
		for {
			if t.Count > 0 {
				_ = c.SetReadDeadline(time.Now().Add(time.Second / time.Duration(t.Count)))
			}
			if _, err := c.Write([]byte{1}); err != nil {
				return err
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(deadline) {
				return err
			}
		}
	case "begin upload": // until the far side takes no more
		g.mu.Lock()
		g.slow = &stallWriter{conn: c}
		g.mu.Unlock()
		if _, err := io.CopyN(g.slow, newNoise(), t.Size); !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("nothing held up %d bytes: %w", t.Size, err)
		}
		a.Size = g.slow.written
		return nil
	case "begin download": // ask, and do not read
		g.mu.Lock()
		g.slow = &stallWriter{conn: c}
		g.mu.Unlock()
		_, err := fmt.Fprintln(c, t.Size)
		return err
	}
	return fmt.Errorf("nobody taught this program to %q", t.Do)
}

// stream does those of them that carry much, and closes the connection.
func stream(c *net.TCPConn, t task) error {
	defer c.Close()
	if t.Do == "upload" { // Size bytes and FIN; then the far side's checksum must come
		if _, err := io.CopyN(c, newNoise(), t.Size); err != nil {
			return err
		}
		return finishUpload(c, t.Size)
	}
	// Size bytes and FIN; then half as many go the other way.
	if _, err := fmt.Fprintln(c, t.Size); err != nil {
		return err
	}
	if err := checkNoise(c, t.Size); err != nil {
		return err
	}
	_, err := io.CopyN(c, newNoise(), t.Size/2)
	return errors.Join(err, c.CloseWrite())
}

// resume goes on with what "begin" began.
func (g *guest) resume(t task, a *answer) error {
	g.mu.Lock()
	w := g.slow
	g.mu.Unlock()
	defer w.conn.Close()
	_ = w.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if t.Do == "drain" {
		return checkNoise(w.conn, t.Size)
	}
	if err := w.rest(t.Size); err != nil {
		return err
	}
	return finishUpload(w.conn, t.Size)
}

func finishUpload(c *net.TCPConn, size int64) error {
	if err := c.CloseWrite(); err != nil {
		return err
	}
	sum, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if string(sum) != noiseSum(size) {
		return fmt.Errorf("%d bytes arrived with the checksum %q", size, sum)
	}
	return nil
}

// checkNoise reads to the end what must be Size bytes of noise.
func checkNoise(r io.Reader, size int64) error {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, size, err)
	}
	if n != size || hex.EncodeToString(h.Sum(nil)) != noiseSum(size) {
		return fmt.Errorf("%d bytes came, want %d and the right checksum", n, size)
	}
	return nil
}

// loadReport is what a sandbox's load has seen since it began.
type loadReport struct {
	// Answered and Failed count HTTP requests; AnsweredUDP datagrams.
	Answered, Failed, AnsweredUDP uint64
	// Sources are the addresses that the origin saw, sorted, each once.
	Sources []netip.Addr
	// Port is that of the UDP socket's mapping as last seen.
	Port uint16
	// Held is where the origin saw the connection that is kept open come from;
	// Ended is how it ended.
	Held  netip.AddrPort
	Ended string
	Errno syscall.Errno
	// Refusal is what a request failed of last, if the kernel said so; Failure says it
	// in words, and when.
	Refusal syscall.Errno
	Failure string
}

// workload is requests, datagrams, and one connection that is kept and written to.
type workload struct {
	mu sync.Mutex
	r  loadReport
}

// pace is how often each part of a load does something.
const pace = 20 * time.Millisecond

func (l *workload) report() loadReport {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.r
	r.Sources = slices.Clone(r.Sources)
	return r
}

func (l *workload) saw(a netip.Addr) {
	if i, found := slices.BinarySearchFunc(l.r.Sources, a, netip.Addr.Compare); !found {
		l.r.Sources = slices.Insert(l.r.Sources, i, a)
	}
}

// start begins the load towards HTTP, UDP and echo targets.
func (l *workload) start(targets []string) {
	go l.ask(targets[0])
	go l.datagrams(targets[1])
	go l.keep(targets[2])
}

func (l *workload) ask(target string) {
	for range time.Tick(pace) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		source, err := request(ctx, target)
		cancel()
		l.mu.Lock()
		if err == nil {
			l.r.Answered++
			l.saw(source.Addr())
		} else {
			l.r.Failed++
			l.r.Refusal = 0
			errors.As(err, &l.r.Refusal)
			l.r.Failure = fmt.Sprintf("at %s: %v", time.Now().Format("15:04:05.000"), err)
		}
		l.mu.Unlock()
	}
}

func (l *workload) datagrams(target string) {
	c, err := net.Dial("udp4", target)
	if err != nil {
		return // the report shows that there are none
	}
	go func() {
		for range time.Tick(pace) {
			_, _ = c.Write([]byte("load"))
		}
	}()
	b := make([]byte, 128)
	for {
		n, err := c.Read(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error; writing goes on
		}
		text, _, _ := strings.Cut(string(b[:n]), " ")
		if source, err := netip.ParseAddrPort(text); err == nil {
			l.mu.Lock()
			l.r.AnsweredUDP++
			l.saw(source.Addr())
			l.r.Port = source.Port()
			l.mu.Unlock()
		}
	}
}

// keep opens a connection and writes to it until it ends. Whoever of reader and
// writer hears of a reset first is told why, the other one is not.
func (l *workload) keep(target string) {
	c, err := net.Dial("tcp4", target)
	if err == nil {
		var line string
		if line, err = bufio.NewReaderSize(c, 32).ReadString('\n'); err == nil {
			source, _ := netip.ParseAddrPort(strings.TrimSpace(line))
			l.mu.Lock()
			l.saw(source.Addr())
			l.r.Held = source
			l.mu.Unlock()
			ended := make(chan error, 2)
			go func() {
				_, err := io.Copy(io.Discard, c)
				ended <- err
			}()
			go func() {
				for range time.Tick(pace) {
					if _, err := c.Write([]byte("load\n")); err != nil {
						ended <- err
						return
					}
				}
			}()
			err = <-ended
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.r.Ended = fmt.Sprint("the connection ended: ", err)
	errors.As(err, &l.r.Errno)
}
