package sidecar

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// notNow makes the passive region refuse every call, or takes that back.
func (w *estate) notNow(refuse bool) {
	w.away.with(func() {
		w.away.refuse = nil
		if refuse {
			w.away.refuse = &api.Error{Status: http.StatusServiceUnavailable, Code: "away", Message: "not now"}
		}
	})
}

// compareAway compares with the passive region; what is to be tried is due.
func (w *estate) compareAway(t *testing.T) {
	t.Helper()
	w.Sidecar.mu.Lock()
	for _, e := range w.entries {
		e.passive.due = time.Time{}
	}
	w.Sidecar.mu.Unlock()
	if err := w.compare(t.Context(), w.planes["cle1"]); err != nil {
		t.Fatal(err)
	}
}

// A passive region that is away delays no sandbox, and is asked again.
func TestPassiveRegionAway(t *testing.T) {
	w := newEstate(t, quick())
	w.notNow(true)
	box := w.stack(t)
	eventually(t, "the first try has failed", func() bool {
		p := w.listing().Sandboxes[0].Passive
		return p.State == passiveFailed && p.Reason != "" && p.Network == "net_p"
	})
	w.settled(t, "gw1")
	plane := w.planes["cle1"]
	if err := w.compare(t.Context(), plane); err == nil {
		t.Error("the passive region answers")
	}
	if st := w.status(); st.Regions["cle1"].Reachable || st.Regions["cle1"].Error == "" {
		t.Errorf("status %+v", st.Regions)
	}
	w.notNow(false)
	if err := w.compare(t.Context(), plane); err != nil {
		t.Fatal(err)
	}
	if got := w.listing().Sandboxes[0].Passive; got.State != passiveReady || got.Reason != "" {
		t.Errorf("passive %+v", got)
	}
	w.settled(t, "gw1")
	w.gw1.end()
	w.gw2.end()
	w.chosen(t, "gw9")
	echo(t, box.dial(t, web))
	if w.remote.from(w.entry(box.ID).passive.attachment.Inner) == 0 {
		t.Error("the passive gateway saw nothing")
	}
}

// A sandbox whose passive attachment comes when its region is dead already goes there.
func TestPassiveComesLate(t *testing.T) {
	w := newEstate(t, quick())
	w.notNow(true)
	box := w.stack(t)
	w.settled(t, "gw1")
	old := box.dial(t, web)
	echo(t, old)
	w.gw1.end()
	w.gw2.end()
	eventually(t, "both are dead", func() bool {
		return !slices.ContainsFunc(w.status().Networks[0].Paths, func(p PathStatus) bool { return p.State != "dead" })
	})
	w.notNow(false)
	w.compareAway(t)
	echo(t, box.dial(t, web))
	mustBeReset(t, old)
}

// Detaching detaches in both regions; a control plane that lost its memory is told
// again in both.
func TestBothRegionsAreTold(t *testing.T) {
	w := newEstate(t, quick())
	box, other := w.stack(t), w.stack(t)
	w.ready(t, box.ID)
	w.ready(t, other.ID)
	if w.home.count() != 2 || w.away.count() != 2 {
		t.Fatalf("%d and %d attachments, want 2 and 2", w.home.count(), w.away.count())
	}
	plane := w.planes["cle1"]
	before, _ := w.attachments(plane)
	w.away.with(func() { clear(w.away.list) })
	if err := w.compare(t.Context(), plane); err != nil || w.away.count() != 2 {
		t.Fatalf("after a restart there are %d, %v", w.away.count(), err)
	}
	for _, r := range w.away.resumed {
		if was := before[r.ID]; r.InnerAddress != was.Inner || r.WorkerAddress != was.Worker || r.Network != "net_p" {
			t.Errorf("resumed %+v, was %+v", r, was)
		}
	}
	// Another one has the address by now: the sandbox gets a new one, and goes on.
	id := w.entry(box.ID).passive.attachment.ID
	was := w.entry(box.ID).passive.attachment.Inner
	w.lose(t.Context(), plane, id, "the address is another's")
	if got := w.listing().Sandboxes; got[0].Passive.State != passiveFailed || got[1].Passive.State != passiveReady {
		t.Errorf("passive %+v, %+v", got[0].Passive, got[1].Passive)
	}
	if err := w.compare(t.Context(), plane); err != nil {
		t.Fatal(err)
	}
	if p := w.entry(box.ID).passive; p.state != passiveReady || p.attachment.Inner == was {
		t.Errorf("passive %+v, was %v", p.status(), was)
	}
	w.detach(t.Context(), box.ID, "test")
	if w.home.count() != 1 {
		t.Errorf("%d attachments at home, want 1", w.home.count())
	}
	w.detach(t.Context(), other.ID, "test")
	w.Sidecar.mu.Lock()
	networks := len(w.networks)
	w.Sidecar.mu.Unlock()
	if w.home.count() != 0 || networks != 0 {
		t.Errorf("%d attachments and %d networks are left", w.home.count(), networks)
	}
	if slices.Contains(w.away.detached, id) {
		t.Error("an attachment that is another's was detached")
	}
	eventually(t, "all but that have gone in the passive region", func() bool {
		left := false
		w.away.with(func() { _, left = w.away.list[id] })
		return left && w.away.count() == 1
	})
}

// A passive region that does not answer delays no sandbox's end; it is told of it
// when it does.
func TestPassiveRegionIsSlow(t *testing.T) {
	w := newEstate(t, quick())
	box, other := w.stack(t), w.stack(t)
	w.ready(t, box.ID)
	w.ready(t, other.ID)
	slow := make(chan struct{})
	w.away.with(func() { w.away.slow = slow })
	began := time.Now()
	w.detach(t.Context(), box.ID, "test")
	if took := time.Since(began); took >= closeTimeout/2 {
		t.Errorf("the end of a sandbox took %v", took)
	}
	if w.home.count() != 1 || w.away.count() != 2 {
		t.Errorf("%d and %d attachments, want 1 and 2", w.home.count(), w.away.count())
	}
	close(slow)
	eventually(t, "the passive region is told", func() bool { return w.away.count() == 1 })

	// Once it is known to be away it is not even asked.
	w.notNow(true)
	plane := w.planes["cle1"]
	if err := w.compare(t.Context(), plane); err == nil {
		t.Error("the passive region answers")
	}
	never := make(chan struct{}) // whoever asks, waits to the end
	t.Cleanup(func() { close(never) })
	w.away.with(func() { w.away.slow = never })
	w.detach(t.Context(), other.ID, "test")
	w.away.with(func() { w.away.slow, w.away.refuse = nil, nil })
	if err := w.compare(t.Context(), plane); err != nil || w.away.count() != 0 {
		t.Errorf("%d attachments are left in the passive region, %v", w.away.count(), err)
	}
}

// While the sidecar ends, one control plane that lets it wait does not keep another
// from hearing of every sandbox.
func TestEndsBesideSlowRegion(t *testing.T) {
	said := &noted{lines: map[string]int{}}
	cfg := quick()
	cfg.Log = slog.New(said)
	w := newEstate(t, cfg)
	for range 2*controlCalls + 1 {
		w.ready(t, w.stack(t).ID)
	}
	w.Sidecar.mu.Lock()
	plane := w.planes["cle1"]
	mute := &mutePlane{Control: plane.control}
	plane.control, plane.hearing = mute, 20*time.Millisecond
	w.Sidecar.mu.Unlock()
	w.Sidecar.close()
	if w.home.count() != 0 {
		t.Errorf("%d attachments are left at home", w.home.count())
	}
	// All but those that were under way when the first had waited in vain ask nothing.
	if n := mute.asked.Load(); n == 0 || n > controlCalls {
		t.Errorf("the region that does not answer was asked %d times, want at most %d", n, controlCalls)
	}
	// Its attachments stay, which nobody but the operator can mend.
	said.mu.Lock()
	defer said.mu.Unlock()
	if !slices.ContainsFunc(slices.Collect(maps.Keys(said.lines)), func(line string) bool {
		return strings.HasPrefix(line, "WARN ") && strings.Contains(line, "not told")
	}) {
		t.Errorf("the log is %v, without a word of what stays attached", said.lines)
	}
}

// mutePlane lets whoever tells it of an end wait in vain.
type mutePlane struct {
	Control
	asked atomic.Int32
}

func (p *mutePlane) Detach(ctx context.Context, _ string) error {
	p.asked.Add(1)
	<-ctx.Done()
	return ctx.Err()
}

// noted counts what was logged, by level and message.
type noted struct {
	slog.Handler
	mu    sync.Mutex
	lines map[string]int
}

func (n *noted) Enabled(context.Context, slog.Level) bool { return true }
func (n *noted) WithAttrs([]slog.Attr) slog.Handler       { return n }

func (n *noted) Handle(_ context.Context, r slog.Record) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines[r.Level.String()+" "+r.Message]++
	return nil
}

// count counts lines that begin so.
func (n *noted) count(begin string) (sum int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for line, many := range n.lines {
		if strings.HasPrefix(line, begin) {
			sum += many
		}
	}
	return sum
}

// A region that is away is said once to be, however many sandboxes it concerns; one
// that refuses a sandbox says so of that sandbox.
func TestRegionAwayIsSaidOnce(t *testing.T) {
	log := &noted{lines: map[string]int{}}
	cfg := quick()
	cfg.Log = slog.New(log)
	w := newEstate(t, cfg)
	cle1 := w.cfg.Regions
	gone, err := api.NewClient(api.ClientConfig{Address: w.away.address + ".gone", Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	w.cfg.Regions = oneRegion{gone}
	for range 3 {
		if p := w.stack(t).Passive; p.State != passiveFailed || p.Reason != noAnswer {
			t.Errorf("passive %+v", p)
		}
	}
	if err := w.compare(t.Context(), w.planes["cle1"]); err == nil {
		t.Fatal("somebody answers")
	}
	if per, all := log.count("WARN a sandbox"), log.count("WARN a control plane does not answer"); per != 0 || all != 1 {
		t.Errorf("warnings: %d of sandboxes, %d of the region; want 0 and 1", per, all)
	}
	if n := log.count("INFO sandbox attached"); n != 3 {
		t.Errorf("%d sandboxes are said to be attached, want 3", n)
	}
	if n := log.count("DEBUG a sandbox is not attached"); n != 3 {
		t.Errorf("%d remarks about sandboxes, want 3", n)
	}
	w.cfg.Regions = cle1
	w.notNow(true)
	w.stack(t)
	eventually(t, "a sandbox that was refused is warned of", func() bool { return log.count("WARN a sandbox") == 1 })
}

// What the environment's passive network is may change.
func TestPassiveNetworkChanges(t *testing.T) {
	w := newEstate(t, quick())
	box := w.stack(t)
	w.ready(t, box.ID)
	w.settled(t, "gw1")
	ask := func() {
		t.Helper()
		w.Sidecar.mu.Lock()
		w.network("net_a").asked = time.Time{}
		w.Sidecar.mu.Unlock()
		if err := w.compare(t.Context(), w.Sidecar.home); err != nil {
			t.Fatal(err)
		}
	}
	w.home.with(func() { w.home.passive = nil })
	ask()
	if got := w.listing().Sandboxes[0].Passive; got.State != passiveNone || w.away.count() != 0 {
		t.Errorf("passive %+v, %d attachments there", got, w.away.count())
	}
	if n := len(w.status().Networks[0].Paths); n != 2 {
		t.Errorf("%d paths, want 2", n)
	}
	echo(t, box.dial(t, web))
	w.home.with(func() { w.home.passive = &api.PassiveRegion{Region: "cle1", Network: "net_p"} })
	ask()
	if err := w.compare(t.Context(), w.planes["cle1"]); err != nil {
		t.Fatal(err)
	}
	if got := w.listing().Sandboxes[0].Passive; got.State != passiveReady {
		t.Errorf("passive %+v", got)
	}
}

// Where old flows linger is not forgotten when the sandbox gets a passive network.
func TestLingeringStaysKnown(t *testing.T) {
	w := newEstate(t, quick())
	w.notNow(true)
	box := w.stack(t)
	w.settled(t, "gw1")
	old := box.dial(t, web)
	echo(t, old)
	w.gw1.with(func() { w.gw1.health = packet.HealthDraining })
	w.chosen(t, "gw2")
	w.notNow(false)
	w.compareAway(t)
	g := w.status().Networks[0].Groups
	if len(g) != 1 || g[0].Passive != "net_p" || g[0].Choice.Host != "gw2" || len(g[0].Lingering) != 1 || g[0].Lingering[0].Host != "gw1" {
		t.Errorf("groups %+v", g)
	}
	echo(t, old)
	w.gw1.end()
	mustBeReset(t, old)
}

// A passive region that is known to be away is not waited for, and what a sandbox
// must not find includes the way there.
func TestPassiveRegionKnownToBeAway(t *testing.T) {
	w := newEstate(t, quick())
	w.home.passive.API = w.away.address
	w.notNow(true)
	first := w.stack(t)
	if err := w.compare(t.Context(), w.planes["cle1"]); err == nil {
		t.Fatal("the passive region answers")
	}
	second := w.stack(t)
	if p := second.Passive; p.State != passiveFailed || p.Reason != noAnswer {
		t.Errorf("passive %+v", p)
	}
	if socket := w.away.address[len("unix://"):]; !slices.Contains(first.Hide, socket) {
		t.Errorf("hidden are %v, and not %s", first.Hide, socket)
	}
	w.notNow(false)
	eventually(t, "both are attached there", func() bool {
		w.compareAway(t)
		return w.away.count() == 2
	})
}

// Without a way to ask the passive region, a sandbox runs and says why it has none.
func TestNoWayToThePassiveRegion(t *testing.T) {
	w := newEstate(t, quick())
	w.cfg.Regions = nil
	box := w.stack(t)
	if p := box.Passive; p.State != passiveFailed || p.Reason == "" {
		t.Errorf("passive %+v", p)
	}
	echo(t, box.dial(t, web))
}
