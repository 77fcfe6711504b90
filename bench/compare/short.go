package compare

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/bench/handshake"
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/tcp"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// Short connections: connect, one request, its answer, close.
const (
	destinations = 1024
	shortPort    = 80
	// shortRate is the load below saturation, shortLeast to shortMost what is tried, per second.
	shortRate  = 2000
	shortLeast = 500
	shortMost  = 64000
	// shortHold is how much longer than small packets connections are tried: a core's time is known
	// to 10 ms only.
	shortHold = 2
	// shortResend is how long a client waits before it sends again, shortTries how often it sends.
	shortResend = 300 * time.Millisecond
	shortTries  = 5
	// fewResent is the part of all segments that may be sent again where a rate passes.
	fewResent = 0.001
)

const (
	figureShortProcess = "processPerConnection"
	figureShortCore    = "corePerConnection"
	figureShortFailed  = "failed"
	figureShortConnect = "connectP50"
	figureShortTail    = "connectP99"
	figureShortPeak    = "connectionPeak"
	figureShortPeakCPU = "processPerConnectionAtPeak"
	figureShortPeakAll = "corePerConnectionAtPeak"
)

func shortFigures() []figure {
	return []figure{
		{figureShortProcess, "CPU of the process", "us each", byRatio, 1},
		{figureShortCore, "CPU of the core", "us each", byRatio, 1},
		{figureShortFailed, "failed", "", alone, 0},
		{figureShortConnect, "until connected, p50", "us", byMore, 0},
		{figureShortTail, "until connected, p99", "us", byMore, 0},
		{figureShortPeak, "most without a failure", "1000/s", byRatio, 1},
		{figureShortPeakCPU, "CPU of the process then", "us each", byRatio, 1},
		{figureShortPeakAll, "CPU of the core then", "us each", byRatio, 1},
		{figureWrong, "packets from or to a wrong address, or damaged", "", alone, 0},
	}
}

var (
	// destinationNet holds the destinations; its first address is the answerer's own.
	destinationNet = netip.MustParsePrefix("198.18.0.0/20")
	shortRequest   = []byte("GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
	shortAnswer    = []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
)

// shortLimits let one sandbox make them all: its limits are not what is measured.
const shortLimits = `limits:
  sessions_per_ip: 4000000
  ports_per_ip: 4000000
  half_open_per_ip: 1000000
  new_flows_per_second_per_ip: 10000000
  sessions_per_sandbox: 4000000
  ports_per_sandbox: 4000000
  half_open_per_sandbox: 1000000
  new_flows_per_second: 10000000
  pending_connects: 100000
  pending_connects_per_destination: 100000
`

// answerLink is the answerer's TUN.
const answerLink = "answer"

// forgetSoon lets the kernel's connection tracking forget what has ended after a second, so that its
// memory is not what is measured.
func forgetSoon(gw *netlab.Namespace) {
	for _, name := range []string{"time_wait", "close", "last_ack", "close_wait", "fin_wait"} {
		gw.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_"+name, "1")
	}
}

// short makes short connections through the tunnel of datagrams, as the same sandbox.
type short struct {
	inner     netip.Addr
	many, one *tcp.Connections
	answerer  *tcp.Answerer
}

// newShort makes both sides.
func newShort(c *chain, p *peer) (s *short, err error) {
	s = &short{inner: p.inner}
	s.answerer, err = tcp.NewAnswerer(tcp.AnswererConfig{
		AnswererConfig: handshake.AnswererConfig{Request: shortRequest, Answer: shortAnswer, Sources: pair[:], Seed: 1},
		Place:          c.server, Link: answerLink,
	})
	if err != nil {
		return nil, err
	}
	c.server.Address(answerLink, netip.PrefixFrom(destinationNet.Addr().Next(), destinationNet.Bits()))
	c.server.Forward(true)
	c.gateway.Route(destinationNet, serverLink.Addr())
	if err := c.lab.Err(); err != nil {
		return s, err
	}
	remotes := tcp.Remotes(destinationNet, destinations+1, shortPort)[1:]
	cfg := handshake.Config{
		Sandboxes: []netip.Addr{p.inner}, FirstPort: 1024, LastPort: 65535, Remotes: remotes,
		Request: shortRequest, Answer: shortAnswer, MSS: innerMTU - 40, Resend: shortResend, Tries: shortTries,
	}
	if s.many, err = tcp.NewConnections(cfg); err != nil {
		return s, err
	}
	cfg.Remotes = remotes[:1]
	s.one, err = tcp.NewConnections(cfg)
	return s, err
}

func (s *short) close() { _ = s.answerer.Close() }

func spread1000(ctx context.Context, c *chain, cfg *Config) (figures, error) {
	return c.connections(ctx, c.short.many, cfg)
}

func single(ctx context.Context, c *chain, cfg *Config) (figures, error) {
	return c.connections(ctx, c.short.one, cfg)
}

// shortTrial is what came of a rate of connections.
type shortTrial struct {
	made    tcp.Made
	rate    float64 // ended well, per second
	perEach cost    // of those
	busy    float64 // part of the time in which the gateway's core was used
	wrong   uint64  // segments from elsewhere than the pair, or damaged
}

// Passes implements search.Outcome.
func (t shortTrial) Passes() bool {
	m := &t.made
	return m.Failed() == 0 && m.Skipped == 0 && t.wrong == 0 &&
		float64(m.Late) <= lowLoss*float64(m.Begun) && float64(m.Resent) <= fewResent*float64(m.Counts.Sent)
}

// Starved implements search.Outcome.
func (t shortTrial) Starved() bool {
	return t.made.Failed() == 0 && float64(t.made.Resent) <= fewResent*float64(t.made.Counts.Sent) && t.busy < full
}

func (t shortTrial) String() string {
	return fmt.Sprintf("%.0f/s, core %.0f %%, %d late: %+v", t.rate, 100*t.busy, t.made.Late, t.made.Counts)
}

// tryConnections makes connections at a rate for a while.
func (c *chain) tryConnections(ctx context.Context, of *tcp.Connections, rate float64, d time.Duration) (t shortTrial, err error) {
	before, err := readUsage(c)
	if err != nil {
		return t, err
	}
	was, err := c.short.answerer.Counts()
	if err != nil {
		return t, err
	}
	a, err := c.datagrams.source.Attach(0, of, c.short.inner)
	if err != nil {
		return t, err
	}
	defer a.Close()
	if t.made, err = of.Run(ctx, a, tcp.Load{Rate: rate, For: d, Lag: lag}); err != nil {
		return t, err
	}
	after, err := readUsage(c)
	if err != nil {
		return t, err
	}
	is, err := c.short.answerer.Counts()
	if err != nil {
		return t, err
	}
	if t.made.OK == 0 {
		return t, fmt.Errorf("of %d connections at %.0f/s none ended well: %+v", t.made.Begun, rate, t.made.Counts)
	}
	used, n := after.since(before), time.Duration(t.made.OK)
	t.rate, t.perEach = float64(n)/d.Seconds(), cost{used.process / n, used.core / n}
	t.busy = used.core.Seconds() / t.made.Took.Seconds()
	t.wrong = is.WrongSource - was.WrongSource + is.Damaged - was.Damaged + t.made.Damaged
	return t, nil
}

// connections measures connections, first at a rate below saturation, then at the highest that
// passes.
func (c *chain) connections(ctx context.Context, of *tcp.Connections, cfg *Config) (figures, error) {
	hold := shortHold * cfg.Try
	if _, err := c.tryConnections(ctx, of, shortRate, cfg.Try); err != nil { // warms up
		return nil, err
	}
	fixed, err := c.tryConnections(ctx, of, shortRate, search.Steadily*hold)
	if err != nil {
		return nil, err
	}
	f := figures{
		figureShortProcess: micros(fixed.perEach.process), figureShortCore: micros(fixed.perEach.core),
		figureShortFailed: float64(fixed.made.Failed()), figureWrong: float64(fixed.wrong),
		figureShortConnect: micros(fixed.made.Connect.Quantile(0.5)), figureShortTail: micros(fixed.made.Connect.Quantile(0.99)),
	}
	if !fixed.Passes() {
		return f, fmt.Errorf("it does not keep up %d connections per second: %v", shortRate, fixed)
	}
	wrong := fixed.wrong
	best, bound, err := search.Highest(search.Range{Least: shortLeast, Most: shortMost, Tries: tries, Hold: hold},
		func(rate float64, d time.Duration) (shortTrial, error) {
			t, err := c.tryConnections(ctx, of, rate, d)
			wrong += t.wrong
			return t, err
		})
	f[figureWrong] = float64(wrong)
	if errors.Is(err, search.ErrNone) {
		err = fmt.Errorf("%w: %v", err, best)
	}
	if err != nil {
		return f, err
	}
	f[figureShortPeak] = best.rate / 1000
	f[figureShortPeakCPU], f[figureShortPeakAll] = micros(best.perEach.process), micros(best.perEach.core)
	if bound {
		f[figureBound] = 1
	}
	return f, nil
}
