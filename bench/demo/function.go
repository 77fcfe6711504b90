package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sync/errgroup"
)

// taskPatience is how long one task of a function may take.
const taskPatience = 5 * time.Second

// action is what a function can be told to do.
type action string

// The actions.
const (
	doAddress action = "address" // say the sandbox's own address
	doHTTP    action = "http"    // make Count requests at once, each on its own connection
	doUDP     action = "udp"     // send a datagram and wait for the answer
	doPing    action = "ping"    // the same with an ICMP echo
	doLookup  action = "lookup"  // look up a TXT record, as the sandbox's resolv.conf says
	doListen  action = "listen"  // accept connections, to the end
)

// task is one thing that a function is told to do.
type task struct {
	Do     action `json:"do"`
	Target string `json:"target,omitempty"`
	Count  int    `json:"count,omitempty"`
}

// answer is what came of it.
type answer struct {
	// Addresses are what the action is about: the source that the far side saw, for
	// each request; for [doAddress] and [doListen] the sandbox's own.
	Addresses []netip.AddrPort `json:"addresses,omitempty"`
	// Failure is what went wrong, first thing only.
	Failure string `json:"failure,omitempty"`
	// Impossible says why this machine has no such thing; then Failure is empty.
	Impossible string        `json:"impossible,omitempty"`
	Took       time.Duration `json:"took"`
}

// Function is the program that runs in the demo's sandboxes: it reads tasks,
// one JSON document each, and writes an answer to each, until r ends.
func Function(ctx context.Context, r io.Reader, w io.Writer) error {
	in, out := json.NewDecoder(r), json.NewEncoder(w)
	for {
		var t task
		if err := in.Decode(&t); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read a task: %w", err)
		}
		if err := out.Encode(perform(ctx, t)); err != nil {
			return fmt.Errorf("write an answer: %w", err)
		}
	}
}

// perform does one task.
func perform(ctx context.Context, t task) answer {
	began := time.Now()
	inTime, cancel := context.WithTimeout(ctx, taskPatience)
	defer cancel()
	var seen []netip.AddrPort
	var err error
	switch t.Do {
	case doAddress:
		seen, err = ownAddresses()
	case doHTTP:
		seen, err = requests(inTime, t)
	case doUDP:
		seen, err = datagram(inTime, t.Target)
	case doPing:
		seen, err = ping(t.Target)
	case doLookup:
		seen, err = lookup(inTime, t.Target)
	case doListen:
		seen, err = listen(ctx, t.Target)
	default:
		err = fmt.Errorf("nobody taught this function to %q", t.Do)
	}
	a := answer{Addresses: seen, Took: time.Since(began)}
	var impossible *impossibleError
	if errors.As(err, &impossible) {
		a.Impossible = impossible.Error()
	} else if err != nil {
		a.Failure = err.Error()
	}
	return a
}

// ownAddresses are the sandbox's, but loopback.
func ownAddresses() ([]netip.AddrPort, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the sandbox's addresses: %w", err)
	}
	var own []netip.AddrPort
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			own = append(own, netip.AddrPortFrom(p.Addr(), 0))
		}
	}
	return own, nil
}

// requests makes HTTP requests, all at once.
func requests(ctx context.Context, t task) ([]netip.AddrPort, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	seen := make([]netip.AddrPort, max(t.Count, 1))
	group, ctx := errgroup.WithContext(ctx)
	for i := range seen {
		group.Go(func() error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.Target+"/", nil)
			if err != nil {
				return err
			}
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
			if err != nil {
				return err
			}
			seen[i], err = netip.ParseAddrPort(string(b))
			return err
		})
	}
	err := group.Wait()
	return slices.DeleteFunc(seen, func(a netip.AddrPort) bool { return !a.IsValid() }), err
}

// datagram sends one and parses the answer.
func datagram(ctx context.Context, target string) ([]netip.AddrPort, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp4", target)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte("whence?")); err != nil {
		return nil, err
	}
	b := make([]byte, 128)
	n, err := c.Read(b)
	if err != nil {
		return nil, err
	}
	a, err := netip.ParseAddrPort(string(b[:n]))
	return []netip.AddrPort{a}, err
}

// ping sends an echo request from a ping socket, as a sandbox has no
// capabilities. What the far side saw, the far side's link must tell.
func ping(target string) ([]netip.AddrPort, error) {
	c, err := icmp.ListenPacket("udp4", "0.0.0.0")
	if errors.Is(err, fs.ErrPermission) {
		return nil, &impossibleError{fmt.Errorf("net.ipv4.ping_group_range cannot be set for a sandbox: %w", err)}
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(taskPatience)); err != nil {
		return nil, err
	}
	text := []byte("whence?")
	request, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{Seq: 1, Data: text}}).Marshal(nil)
	if err != nil {
		return nil, err
	}
	if _, err := c.WriteTo(request, &net.UDPAddr{IP: net.ParseIP(target)}); err != nil {
		return nil, err
	}
	b := make([]byte, 128)
	n, _, err := c.ReadFrom(b)
	if err != nil {
		return nil, err
	}
	const icmpProtocol = 1
	reply, err := icmp.ParseMessage(icmpProtocol, b[:n])
	if err != nil {
		return nil, err
	}
	if echo, ok := reply.Body.(*icmp.Echo); !ok || reply.Type != ipv4.ICMPTypeEchoReply || string(echo.Data) != string(text) {
		return nil, fmt.Errorf("%v came instead of an echo reply", reply.Type)
	}
	return nil, nil
}

// lookup asks whatever resolver the sandbox has.
func lookup(ctx context.Context, name string) ([]netip.AddrPort, error) {
	if _, err := os.Stat("/etc/resolv.conf"); errors.Is(err, fs.ErrNotExist) {
		return nil, &impossibleError{errors.New("this machine has no /etc/resolv.conf for a sandbox to see its own in place of")}
	}
	texts, err := (&net.Resolver{PreferGo: true}).LookupTXT(ctx, name)
	if err != nil {
		return nil, err
	}
	a, err := netip.ParseAddrPort(strings.Join(texts, ""))
	return []netip.AddrPort{a}, err
}

// listen accepts and closes connections until ctx ends. It returns once it has
// connected to itself.
func listen(ctx context.Context, port string) ([]netip.AddrPort, error) {
	own, err := ownAddresses()
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", port)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	go func() { // to the end of the function
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	for _, a := range own {
		c, err := net.DialTimeout("tcp4", a.Addr().String()+port, taskPatience)
		if err != nil {
			return nil, err
		}
		_ = c.Close()
	}
	return own, nil
}
