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

	"github.com/sallyport-net/sallyport/bench/daemon"
)

// taskPatience is how long one task of a function may take.
const taskPatience = 5 * time.Second

// firstPatience is how long [doFirst] may wait.
const firstPatience = 15 * time.Second

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
	doHold    action = "hold"    // open a connection that stays, and is the Count-th
	doTalk    action = "talk"    // say something on the Count-th connection and hear it back
	doLost    action = "lost"    // wait for the end of the Count-th connection
	doLoad    action = "load"    // make requests, one after the other is begun, until doCease
	doFirst   action = "first"   // wait for the load's first answer from one of Sources since Since
	doCease   action = "cease"   // end the load and say which sources were seen
)

// task is one thing that a function is told to do.
type task struct {
	Do     action `json:"do"`
	Target string `json:"target,omitempty"`
	Count  int    `json:"count,omitempty"`
	// Sources and Since, by [monotonic], are for [doFirst].
	Sources []netip.Addr  `json:"sources,omitempty"`
	Since   time.Duration `json:"since,omitempty"`
}

// answer is what came of it.
type answer struct {
	// Addresses are what the action is about: the source that the far side saw, for
	// each request; for [doAddress] and [doListen] the sandbox's own.
	Addresses []netip.AddrPort `json:"addresses,omitempty"`
	// Failure is what went wrong, first thing only; for [doLost], how it ended.
	Failure string `json:"failure,omitempty"`
	// Impossible says why this machine has no such thing; then Failure is empty.
	Impossible string        `json:"impossible,omitempty"`
	Took       time.Duration `json:"took"`
	// At is when it happened that was waited for, by [monotonic].
	At time.Duration `json:"at,omitempty"`
	// Requests and Failed count those of the load.
	Requests int `json:"requests,omitempty"`
	Failed   int `json:"failed,omitempty"`
}

// program is a running function.
type program struct {
	dialer dialer
	held   []*heldConn
	load   *load
}

// Function is the program that runs in the demo's sandboxes: it reads tasks,
// one JSON document each, and writes an answer to each, until r ends. Where
// proxies are named in the environment, it uses them.
func Function(ctx context.Context, r io.Reader, w io.Writer) error {
	d, err := environmentDialer()
	if err != nil {
		return err
	}
	p := &program{dialer: d}
	defer p.end()
	in, out := json.NewDecoder(r), json.NewEncoder(w)
	for {
		var t task
		if err := in.Decode(&t); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read a task: %w", err)
		}
		if err := out.Encode(p.perform(ctx, t)); err != nil {
			return fmt.Errorf("write an answer: %w", err)
		}
	}
}

// end ends what tasks have left running.
func (p *program) end() {
	if p.load != nil {
		p.load.end()
	}
	for _, h := range p.held {
		_ = h.conn.Close()
		<-h.ended
	}
}

// perform does one task.
func (p *program) perform(ctx context.Context, t task) answer {
	began := time.Now()
	patience := taskPatience
	if t.Do == doFirst {
		patience = firstPatience
	}
	inTime, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a, err := p.act(ctx, inTime, t)
	a.Took = time.Since(began)
	var impossible *impossibleError
	if errors.As(err, &impossible) {
		a.Impossible = impossible.Error()
	} else if err != nil {
		a.Failure = err.Error()
	}
	return a
}

// act does one task, in time unless it is one that goes on behind.
func (p *program) act(ctx, inTime context.Context, t task) (a answer, err error) {
	switch t.Do {
	case doAddress:
		a.Addresses, err = ownAddresses()
	case doHTTP:
		a.Addresses, err = requests(inTime, p.dialer, t)
	case doUDP:
		a.Addresses, err = datagram(inTime, p.dialer, t.Target)
	case doPing:
		a.Addresses, err = ping(t.Target)
	case doLookup:
		a.Addresses, err = lookup(inTime, t.Target)
	case doListen:
		a.Addresses, err = listen(ctx, t.Target)
	case doHold:
		a.Addresses, err = p.hold(inTime, t.Target)
	case doTalk, doLost:
		err = p.onHeld(inTime, t, &a)
	case doLoad:
		err = p.startLoad(ctx, t.Target)
	case doFirst, doCease:
		err = p.onLoad(inTime, t, &a)
	default:
		err = fmt.Errorf("nobody taught this function to %q", t.Do)
	}
	return a, err
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
func requests(ctx context.Context, d dialer, t task) ([]netip.AddrPort, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: d.dial}}
	seen := make([]netip.AddrPort, max(t.Count, 1))
	group, ctx := errgroup.WithContext(ctx)
	for i := range seen {
		group.Go(func() (err error) {
			seen[i], err = request(ctx, client, t.Target)
			return err
		})
	}
	err := group.Wait()
	return slices.DeleteFunc(seen, func(a netip.AddrPort) bool { return !a.IsValid() }), err
}

// request makes one HTTP request and parses the answer.
func request(ctx context.Context, client *http.Client, target string) (netip.AddrPort, error) {
	b, err := daemon.Get(ctx, client, "http://"+target+"/")
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(string(b))
}

// datagram sends one and parses the answer.
func datagram(ctx context.Context, d dialer, target string) ([]netip.AddrPort, error) {
	c, err := d.dial(ctx, "udp4", target)
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
