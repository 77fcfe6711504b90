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
	"github.com/sallyport-net/sallyport/bench/trial"
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
)

// shortLimits say which rates of connections pass: none of them fails, next to none is late by
// [lag], next to nothing is sent again. The gateways' own limits are lifted, so that what is late
// beside an idle core is so by the source.
func shortLimits() search.ConnectionLimits {
	return search.ConnectionLimits{Failed: 0, Late: lowLoss, Resent: 0.001, Full: full}
}

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
		{figureShortProcess, "CPU of the process", "us each", byRatio, 1, "proc us"},
		{figureShortCore, "CPU of the core", "us each", byRatio, 1, "core us"},
		{figureShortFailed, "failed", "", alone, 0, "failed"},
		{figureShortConnect, "until connected, p50", "us", byMore, 0, "p50 us"},
		{figureShortTail, "until connected, p99", "us", byMore, 0, "p99 us"},
		{figureShortPeak, "most without a failure", "1000/s", byRatio, 1, "peak k"},
		{figureShortPeakCPU, "CPU of the process then", "us each", byRatio, 1, "proc us"},
		{figureShortPeakAll, "CPU of the core then", "us each", byRatio, 1, "core us"},
		{figureWrong, "packets from or to a wrong address, or damaged", "", alone, 0, "wrong"},
	}
}

var (
	// destinationNet holds the destinations; its first address is the answerer's own.
	destinationNet = netip.MustParsePrefix("198.18.0.0/20")
	shortRequest   = []byte("GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
	shortAnswer    = []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
)

// lifted lets one sandbox make them all: a gateway's limits are not what is measured.
const lifted = `limits:
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

// Wrong implements [trial.Witness].
func (s *short) Wrong() (uint64, error) {
	c, err := s.answerer.Counts()
	return c.WrongSource + c.Damaged, err
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

func spread1000(ctx context.Context, c *chain, cfg *Config) (figures, *trial.Limit, error) {
	return c.connections(ctx, c.short.many, cfg)
}

func single(ctx context.Context, c *chain, cfg *Config) (figures, *trial.Limit, error) {
	return c.connections(ctx, c.short.one, cfg)
}

// connections measures connections, first at a rate below saturation, then at the highest that
// passes.
func (c *chain) connections(ctx context.Context, of *tcp.Connections, cfg *Config) (figures, *trial.Limit, error) {
	hold := shortHold * cfg.Try
	a, err := c.datagrams.source.Attach(0, of, c.short.inner)
	if err != nil {
		return nil, nil, err
	}
	defer a.Close()
	d := trial.Dialer{Client: of, Waker: a, Meter: c.meter(), Limits: shortLimits(), Lag: lag, Witness: c.short}
	warm, err := d.Try(ctx, shortRate, cfg.Try)
	if err := errors.Join(err, answered(warm)); err != nil {
		return nil, nil, err
	}
	fixed, err := d.Try(ctx, shortRate, search.Steadily*hold)
	if err := errors.Join(err, answered(fixed)); err != nil {
		return nil, nil, err
	}
	wrong := warm.WrongSegments + fixed.WrongSegments
	f := figures{
		figureShortFailed: float64(fixed.Failed()), figureWrong: float64(wrong),
		figureShortConnect: trial.Micros(fixed.Connect.Quantile(0.5)), figureShortTail: trial.Micros(fixed.Connect.Quantile(0.99)),
	}
	f[figureShortProcess], f[figureShortCore] = fixed.Spent.Each(fixed.OK)
	if !fixed.Passes() {
		return f, nil, fmt.Errorf("it does not keep up %d connections per second: %v", shortRate, fixed)
	}
	found, err := d.Highest(ctx, search.Range{Least: shortLeast, Most: shortMost, Tries: tries, Hold: hold},
		func(made trial.Connected) error {
			wrong += made.WrongSegments
			return answered(made)
		})
	f[figureWrong] = float64(wrong)
	if err != nil {
		return f, nil, err
	}
	best := found.Best
	f[figureShortPeak] = best.Rate / 1000
	f[figureShortPeakCPU], f[figureShortPeakAll] = best.Spent.Each(best.OK)
	if found.Bound {
		f[figureBound] = 1
	}
	return f, trial.LimitOf(found), nil
}

// answered says that a gateway lets nothing through: others take seconds each to find out.
func answered(made trial.Connected) error {
	if made.OK == 0 {
		return fmt.Errorf("of %d connections at %.0f/s none ended well: %+v", made.Begun, made.Asked, made.Counts)
	}
	return nil
}
