package scale

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	// atOnce is how many callers attach at a time where no rate is wanted.
	atOnce = 16
)

// more notes what each of n things more costs. The thing's plural is the figures' name.
func (b *bench) more(thing, plural string, n int, before, after footprint) {
	each := func(what, unit string, was, is, scale float64) {
		b.note(figure{id: plural + "/" + what, what: fmt.Sprintf("each of %d idle %s: %s", n, plural, what), unit: unit, value: (is - was) / float64(n) / scale})
	}
	unit, scale := "MiB", float64(mib)
	if thing == "sandbox" {
		unit, scale = "B", 1
	}
	each("resident memory", unit, float64(before.Resident), float64(after.Resident), scale)
	each("live heap", unit, float64(before.Live), float64(after.Live), scale)
	each("goroutines", "", float64(before.Goroutines), float64(after.Goroutines), 1)
	each("descriptors", "", float64(before.Files), float64(after.Files), 1)
}

// networks asks what an idle network costs a gateway.
func networks(ctx context.Context, b *bench) error {
	var held [2]footprint
	for i, n := range []int{1, 1 + b.cfg.Networks} {
		err := b.with(ctx, plan{Networks: n, Hosts: hosts(1)}, func(ctx context.Context, w *world) (err error) {
			held[i], err = w.holds(ctx, "gw-a")
			return err
		})
		if err != nil {
			return err
		}
	}
	b.note(figure{id: "gateway/resident memory", what: "a gateway with one idle network: resident memory", unit: "MiB", value: float64(held[0].Resident) / mib})
	b.more("network", "networks", b.cfg.Networks, held[0], held[1])
	return nil
}

// sandboxes asks what sandboxes of one worker cost a gateway while they say nothing,
// and how soon they are attached.
func sandboxes(ctx context.Context, b *bench) error {
	return b.with(ctx, plan{Networks: 1, Hosts: hosts(1)}, func(ctx context.Context, w *world) error {
		_, public, err := netlab.NewWireGuardKey()
		if err != nil {
			return err
		}
		if _, err := w.attach(ctx, public, 1); err != nil {
			return err
		}
		before, err := w.holds(ctx, "gw-a")
		if err != nil {
			return err
		}
		for have, want := 1, 100; have < b.cfg.Sandboxes; want *= 10 {
			want = min(want, b.cfg.Sandboxes)
			took, err := w.attach(ctx, public, want-have)
			if err != nil {
				return err
			}
			b.note(figure{id: fmt.Sprintf("attach/%d", want), what: fmt.Sprintf("attachments by the control API: while there are %d to %d", have, want), unit: "/s",
				value: float64(want-have) / took.Seconds()})
			have = want
		}
		after, err := w.holds(ctx, "gw-a")
		if err != nil {
			return err
		}
		b.more("sandbox", "sandboxes", b.cfg.Sandboxes-1, before, after)
		return nil
	})
}

// attach attaches sandboxes of one worker and returns how long that took.
func (w *world) attach(ctx context.Context, public string, n int) (time.Duration, error) {
	client, err := w.client()
	if err != nil {
		return 0, err
	}
	defer client.Close()
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for range n {
		g.Go(func() error {
			_, err := client.Attach(ctx, api.AttachRequest{
				Project: projectName(0), Environment: environment, Kind: spec.KindFunction, Runtime: spec.RuntimeGo, Region: activeRegion, PublicKey: public,
			})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, fmt.Errorf("attach %d sandboxes: %w", n, err)
	}
	return time.Since(began), nil
}

// paths asks what the tunnels of a sidecar cost it while they say nothing: three for
// each network, all of them held warm by probes.
func paths(ctx context.Context, b *bench) error {
	return b.with(ctx, plan{Networks: b.cfg.Paths, Hosts: hosts(3), Passive: true}, func(ctx context.Context, w *world) error {
		if err := w.startSidecar(ctx); err != nil {
			return err
		}
		spaces := make([]string, b.cfg.Paths)
		for i := range spaces {
			spaces[i] = w.newSpace(fmt.Sprint("sandbox ", i))
		}
		if err := w.lab.Err(); err != nil {
			return err
		}
		if err := w.attachSpace(ctx, spaces[0], projectName(0)); err != nil {
			return err
		}
		client := metricsOf(w.worker)
		before, err := settle(ctx, w.sidecar.PID(), client)
		if err != nil {
			return err
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(4)
		for i := 1; i < len(spaces); i++ {
			g.Go(func() error { return w.attachSpace(gctx, spaces[i], projectName(i)) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		after, err := settle(ctx, w.sidecar.PID(), client)
		if err != nil {
			return err
		}
		b.more("path", "paths", 3*(b.cfg.Paths-1), before, after)
		b.note(figure{id: "sidecar/resident memory", what: fmt.Sprintf("a sidecar with %d networks, three paths each: resident memory", b.cfg.Paths), unit: "MiB", value: float64(after.Resident) / mib})
		return nil
	})
}
