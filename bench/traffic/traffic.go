// Package traffic is the harness's source of packets: thousands of sandboxes in this
// process, behind a few WireGuard devices or one each.
//
// A packet that leaves: WireGuard asks an end for packets -> the end writes those that
// are due by the load's schedule, and those of clients, where they will be encrypted ->
// the tunnel sends runs of them with one system call. One that arrives: the tunnel
// decrypts a batch -> the end checks each packet's checksums and whose it is -> the load
// counts it, or its client gets it.
//
// Nothing waits for anything that comes back: a load is sent on schedule, and an answer's
// time is counted from when its request was due. So a gateway that stalls is measured as
// one that stalls.
package traffic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/tunnel"
)

// Gateway is a gateway's end of a tunnel, as its sandboxes know it.
type Gateway struct {
	PublicKey string // in base64
	Endpoint  netip.AddrPort
	MTU       int // of packets inside, in bytes; 0: 1420
}

// End is a WireGuard device of this process: that of a worker, whose sandboxes share
// it, or that of one sandbox.
type End struct {
	PrivateKey string // in base64
	Gateway    Gateway
	Inners     []netip.Addr // its sandboxes' addresses, IPv4
}

// Place is where sockets are opened, as a *netlab.Namespace is.
type Place interface {
	// Do runs f there and waits for it.
	Do(f func() error) error
}

// Config says what a source is made of.
type Config struct {
	Ends []End
	// Place is where the devices' sockets are opened; nil: where the process is.
	Place Place
	// Key is what far sides know the harness by, if they are to report or to send.
	Key [wire.KeySize]byte
	// Log takes what an operator has to know of the sockets. Nil is silence.
	Log *slog.Logger
}

const (
	usualMTU = 1420
	// remembered is how many loads before the last one are known by their packets.
	remembered = 64
	// outboxSize is how many messages to far sides may wait at an end.
	outboxSize = 16
	// The devices together have buffers for so many packets, which are what a device's
	// memory is; but each has some.
	allBuffers   = 16 * conn.IdealBatchSize
	leastBuffers = 8
)

// Source sends and receives as many sandboxes. One load, report or order runs at a time,
// and another one waits for it; clients may be attached beside it.
type Source struct {
	began  time.Time
	ends   []*end
	count  int // of sandboxes
	shards []*shard
	mail   mail
	key    [wire.KeySize]byte

	busy   sync.Mutex // of the load or message under way; guards what follows
	sealer *wire.Sealer
	orders uint64 // to far sides, so far

	runs atomic.Pointer[[]uint64]
}

// New makes the devices. No packet leaves before Connect.
func New(cfg Config) (*Source, error) {
	s := &Source{began: time.Now(), mail: newMail(), key: cfg.Key, sealer: wire.NewSealer(cfg.Key)}
	s.runs.Store(new([]uint64))
	for range min(shards, len(cfg.Ends)) {
		s.shards = append(s.shards, newShard())
	}
	if len(cfg.Ends) == 0 {
		return nil, errors.New("make a source of packets: it has no end of a tunnel")
	}
	open := func() error {
		for i, e := range cfg.Ends {
			if err := s.add(e, &cfg); err != nil {
				return fmt.Errorf("make end %d of a source of packets: %w", i, err)
			}
		}
		return nil
	}
	var err error
	if cfg.Place != nil {
		err = cfg.Place.Do(open)
	} else {
		err = open()
	}
	if err == nil && s.count > wireFlows {
		err = fmt.Errorf("make a source of packets: %d sandboxes are more than %d", s.count, wireFlows)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// add makes an end.
func (s *Source) add(cfg End, all *Config) error {
	private, err := tunnel.ParseKey(cfg.PrivateKey)
	if err != nil {
		return err
	}
	public, err := tunnel.ParseKey(cfg.Gateway.PublicKey)
	if err != nil {
		return fmt.Errorf("of the gateway: %w", err)
	}
	if !cfg.Gateway.Endpoint.IsValid() {
		return errors.New("the gateway has no endpoint")
	}
	e := &end{
		number: len(s.ends), source: s, inners: slices.Clone(cfg.Inners), mtu: cfg.Gateway.MTU,
		batch:  max(leastBuffers, min(conn.IdealBatchSize, allBuffers/len(all.Ends))),
		events: make(chan tun.Event), key: public, gateway: cfg.Gateway,
		shard: s.shards[len(s.ends)%len(s.shards)], outbox: make(chan []byte, outboxSize),
		owners: make(map[uint32]owner, len(cfg.Inners)),
	}
	if e.mtu == 0 {
		e.mtu = usualMTU
	}
	e.clients.Store(new([]*Attachment))
	for _, inner := range cfg.Inners {
		if !inner.Is4() {
			return fmt.Errorf("a sandbox's address is %v, which is not IPv4", inner)
		}
		if n := addressNumber(inner); e.owners[n].began {
			return fmt.Errorf("two sandboxes have the address %v", inner)
		} else {
			e.owners[n] = owner{began: true}
		}
	}
	if e.alarm, err = newAlarm(); err != nil {
		return err
	}
	if e.tunnel, err = tunnel.New(tunnel.Config{PrivateKey: private, Device: e, Batch: e.batch, Log: all.Log}); err != nil {
		return err
	}
	s.ends = append(s.ends, e)
	s.count += len(cfg.Inners)
	return nil
}

// Sandboxes is how many there are: those of all ends, in order.
func (s *Source) Sandboxes() int { return s.count }

// Close ends all devices.
func (s *Source) Close() {
	var wg sync.WaitGroup
	for _, e := range s.ends {
		wg.Go(e.tunnel.Close)
	}
	wg.Wait()
}

// now is the source's clock.
func (s *Source) now() time.Duration { return time.Since(s.began) }

// knows says whether a run is one of the last.
func (s *Source) knows(run uint64) bool { return slices.Contains(*s.runs.Load(), run) }

// Received reads the counts.
func (s *Source) Received() (r Received) {
	for _, sh := range s.shards {
		sh.mu.Lock()
		r.add(&sh.received)
		sh.mu.Unlock()
	}
	return r
}

// Blast sends packets at a fixed rate, on schedule whatever comes back. It asks for an
// answer some 20 times a second, for which the far side must know the run (see Report).
// With an error it returns what was measured until then.
func (s *Source) Blast(ctx context.Context, l Load) (Sent, error) {
	s.busy.Lock()
	defer s.busy.Unlock()
	r, err := s.prepare(l, wire.KindData)
	if err != nil {
		return Sent{}, fmt.Errorf("send packets: %w", err)
	}
	if !l.Unasked {
		r.pulse = max(1, uint64(l.Rate/pulses))
	}
	err = s.perform(ctx, r)
	return r.result(), wrap("send packets", err)
}

// Echo sends requests at a fixed rate, on schedule whatever comes back, and waits for the
// answers. With an error it returns what was measured until then.
func (s *Source) Echo(ctx context.Context, l Load) (Answers, error) {
	s.busy.Lock()
	defer s.busy.Unlock()
	r, err := s.prepare(l, wire.KindEcho)
	if err != nil {
		return Answers{}, fmt.Errorf("send requests: %w", err)
	}
	err = s.perform(ctx, r)
	a := Answers{Sent: r.result(), Received: s.Received()}
	for _, sh := range s.shards {
		sh.mu.Lock()
		a.Late += sh.late
		sh.mu.Unlock()
	}
	a.Lost = a.Asked - min(a.Asked, a.Answered)
	for range a.Lost {
		a.Latency.Record(r.load.Patience)
	}
	return a, wrap("send requests", err)
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
