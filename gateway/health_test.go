package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// farSide is an uplink of which only checks are asked for.
type farSide struct {
	uplink.Uplink
	dark   atomic.Bool // nobody answers
	noWay  atomic.Bool // the host itself says so, at once
	asked  atomic.Int64
	at     atomic.Int64 // checks under way
	most   atomic.Int64
	silent netip.AddrPort // this target never answers
}

func (u *farSide) Check(ctx context.Context, _ netip.Addr, to netip.AddrPort) error {
	u.asked.Add(1)
	now := u.at.Add(1)
	defer u.at.Add(-1)
	for most := u.most.Load(); now > most && !u.most.CompareAndSwap(most, now); most = u.most.Load() {
	}
	switch {
	case u.noWay.Load():
		return errors.New("no route")
	case u.dark.Load() || to == u.silent:
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// elapse lets the time of a synctest bubble go on.
func elapse(d time.Duration) { <-time.After(d) }

var healthTargets = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.80:443"), netip.MustParseAddrPort("198.51.100.80:443")}

// watched is a network that holds the first address of its pair, and is being checked.
func watched(c *checks, up uplink.Uplink) *network {
	return &network{
		id: "net_a", pair: pair, held: [2]bool{true, false}, up: up, checks: c,
		health: health{draining: new(atomic.Bool)}, log: slog.New(slog.DiscardHandler),
	}
}

func testChecks(interval time.Duration) *checks {
	return newChecks(config.Daemon{Health: config.Health{Targets: healthTargets, Interval: interval}})
}

// Two checks in a row that nobody answers mean that the uplink is lost, the second
// without waiting for the interval; one answer clears it.
func TestUplinkLostAndBack(t *testing.T) {
	for name, lose := range map[string]func(*farSide) *atomic.Bool{
		"nobody answers": func(u *farSide) *atomic.Bool { return &u.dark },
		"no route":       func(u *farSide) *atomic.Bool { return &u.noWay },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				up := &farSide{silent: healthTargets[0]} // the other one is enough
				n := watched(testChecks(time.Second), up)
				ended := make(chan error, 1)
				go func() { ended <- n.watch(ctx, 0) }()
				elapse(10 * time.Second)
				synctest.Wait()
				if n.health.Health() != 0 {
					t.Errorf("health is %b while one target answers", n.health.Health())
				}
				if got := up.asked.Load(); got < 2*9 || got > 2*11 {
					t.Errorf("%d checks in 10 s, want one of each target per second", got)
				}
				began := time.Now()
				lose(up).Store(true)
				for !n.health.uplinkLost() {
					elapse(time.Millisecond)
				}
				// Up to the interval until the next check, and half of it for each.
				if took := time.Since(began); took < 500*time.Millisecond || took > 2*time.Second+10*time.Millisecond {
					t.Errorf("lost after %v", took)
				}
				if n.health.Health() != packet.HealthUplinkLost {
					t.Errorf("health is %b", n.health.Health())
				}
				before := up.asked.Load()
				elapse(10 * time.Second)
				if got := up.asked.Load() - before; got > 2*11 {
					t.Errorf("%d checks in 10 s of a lost uplink, want one of each target per second", got)
				}
				lose(up).Store(false)
				elapse(1100 * time.Millisecond)
				synctest.Wait()
				if n.health.Health() != 0 {
					t.Errorf("health is %b after an answer", n.health.Health())
				}
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		})
	}
}

// However many networks wait for targets that are silent, a bounded number of
// addresses is checked at a time.
func TestChecksAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c, up := testChecks(100*time.Millisecond), &farSide{}
		up.dark.Store(true)
		const networks = 4 * maxChecks
		ended := make(chan error, networks)
		var all []*network
		for range networks {
			n := watched(c, up)
			all = append(all, n)
			go func() { ended <- n.watch(ctx, 0) }()
		}
		elapse(3 * time.Second)
		synctest.Wait()
		if most := up.most.Load(); most != int64(maxChecks*len(healthTargets)) {
			t.Errorf("%d targets were asked at a time, want %d", most, maxChecks*len(healthTargets))
		}
		for i, n := range all {
			if !n.health.uplinkLost() {
				t.Fatalf("network %d has not noticed", i)
			}
		}
		cancel()
		for range networks {
			<-ended
		}
	})
}

// Without targets nothing is asked.
func TestNoTargetsNoChecks(t *testing.T) {
	n := watched(newChecks(config.Daemon{Health: config.Health{Interval: time.Second}}), nil)
	if err := n.watch(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

func TestExhausted(t *testing.T) {
	ports := nat.PerProtocol{1, 1, 0}
	var live nat.PerProtocol
	live[0], live[1], live[2] = 3, 4, 3
	for _, c := range []struct {
		stats nat.Stats
		limit int
		want  bool
	}{
		{nat.Stats{FreePorts: ports, Sessions: live}, 11, false},
		{nat.Stats{FreePorts: ports, Sessions: live}, 10, true},
		{nat.Stats{FreePorts: ports, Sessions: live}, 0, false},
		{nat.Stats{FreePorts: nat.PerProtocol{1, 0, 1}}, 10, true},
		{nat.Stats{FreePorts: ports, Blocks: 3, FreeBlocks: 1}, 10, false},
		{nat.Stats{FreePorts: ports, Blocks: 3}, 10, false},
		{nat.Stats{FreePorts: nat.PerProtocol{0, 1, 1}}, 10, true},
	} {
		if got := exhausted(c.stats, c.limit); got != c.want {
			t.Errorf("%+v of %d: %v", c.stats, c.limit, got)
		}
	}
}

// All reasons are told at once.
func TestHealthBits(t *testing.T) {
	h := health{draining: new(atomic.Bool)}
	h.draining.Store(true)
	h.lost[1].Store(true)
	h.full.Store(true)
	if want := packet.HealthDraining | packet.HealthUplinkLost | packet.HealthFull; h.Health() != want {
		t.Errorf("health is %b, want %b", h.Health(), want)
	}
}
