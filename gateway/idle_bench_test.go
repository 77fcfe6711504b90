package gateway

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/control"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/tunnel"
)

// BenchmarkIdleSandbox attaches 10,000 sandboxes of one worker to a gateway that keeps
// its control plane as well, and says what each of them holds of the heap once all that
// can be collected is: in the store, in the gateway, and in WireGuard's table.
func BenchmarkIdleSandbox(b *testing.B) {
	const many = 10_000
	state := testState(testNetwork("net_a", 1))
	for i := range state.Networks {
		state.Networks[i].CIDR = netip.MustParsePrefix("10.20.0.0/16")
	}
	for b.Loop() {
		store, err := control.NewStore(control.StoreConfig{State: state, Region: "iad1"})
		if err != nil {
			b.Fatal(err)
		}
		daemon := testDaemon()
		daemon.StateFile = filepath.Join(b.TempDir(), "memory.json")
		h, err := OpenHost(b.Context(), HostConfig{
			Daemon: daemon, Secret: bytes.Repeat([]byte{7}, 32), Source: store, Clock: NewMonotonicClock(), Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			b.Fatal(err)
		}
		ctx, end := context.WithCancel(b.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx) }()
		attachAll(b, store, 1)
		before := liveBytes()
		attachAll(b, store, many)
		b.ReportMetric(float64(liveBytes()-before)/many, "B/sandbox")
		runtime.KeepAlive(store)
		end()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			b.Fatal(err)
		}
	}
}

// attachAll attaches sandboxes of one worker, many at a time.
func attachAll(b *testing.B, store *control.Store, n int) {
	b.Helper()
	key := tunnel.Key(bytes.Repeat([]byte{9}, tunnel.KeySize)).Public().String()
	g, ctx := errgroup.WithContext(b.Context())
	g.SetLimit(16)
	for range n {
		g.Go(func() error {
			_, err := store.Attach(ctx, api.AttachRequest{
				Project: "prj_net_a", Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeGo, Region: "iad1", PublicKey: key,
			})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}

// liveBytes is what of the heap can be reached.
func liveBytes() int64 {
	runtime.GC()
	runtime.GC() // what pools kept goes at the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
