package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/daemon"
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// programs are the gateway's.
var programs = netlab.NewPrograms("github.com/sallyport-net/sallyport/cmd/sallyportd")

// chainConfig is that of a short run in a chain of the daemon as it is now.
func chainConfig(t *testing.T, scenarios ...string) Config {
	t.Helper()
	netlab.Require(t)
	c := valid()
	c.Bin, c.Scenarios, c.For, c.Try = programs.Build(t), scenarios, 200*time.Millisecond, 50*time.Millisecond
	if err := chainUsable(&c); err != nil {
		netlab.NotRun(t, err.Error())
	}
	return c
}

// opened is a run whose chain is built.
func opened(t *testing.T, c *Config) (ctx context.Context, r *runner) {
	t.Helper()
	ctx, tell := context.WithCancelCause(t.Context())
	r = newRunner(c)
	err := r.open(ctx, tell)
	t.Cleanup(func() {
		r.close(context.WithoutCancel(ctx))
		tell(nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	return ctx, r
}

// findings are what must not be on a machine however busy: there packets may be late at any
// rate, and connections time out.
func findings(r *result) (list []string) {
	list = append(list, r.Problems...)
	for _, o := range r.Scenarios {
		for _, p := range o.Problems {
			if !strings.Contains(p, search.ErrNone.Error()) {
				list = append(list, o.Name+": "+p)
			}
		}
		for _, s := range o.Steps {
			for _, w := range s.Wrong {
				busy := strings.Contains(w, "connections") && strings.Contains(w, " failed") || strings.Contains(w, "that open sessions")
				if !busy {
					list = append(list, o.Name+": "+s.Name+": "+w)
				}
			}
		}
	}
	return list
}

// TestChain measures shortly. On a busy machine figures are bad, and sources right. Then others
// are held to be the pair: each step says that sources are wrong.
func TestChain(t *testing.T) {
	c := chainConfig(t, "tcp-in", "udp-in", "connections", "latency-idle", "latency-half", nameSandboxes, "attach", "mixed")
	var said, table bytes.Buffer
	c.Progress = &said
	ctx, r := opened(t, &c)
	r.all(ctx)
	if err := r.result.print(&table); err != nil {
		t.Fatal(err)
	}
	found := findings(r.result)
	if len(found) > 0 || len(r.result.Scenarios) != len(c.Scenarios) || !slices.Equal(r.pair, pair) {
		t.Errorf("findings %q, %d scenarios, the pair %v\n%s%s", found, len(r.result.Scenarios), r.pair, said.String(), table.String())
	}
	for _, o := range r.result.Scenarios {
		if len(o.Steps) == 0 {
			t.Errorf("%s has no steps", o.Name)
		}
		for _, s := range o.Steps {
			if (s.Name == "peak") != (s.Limit != nil && s.Limit.By != "" && s.Limit.Why != "") {
				t.Errorf("%s, %s: its limit is %v", o.Name, s.Name, s.Limit)
			}
			if len(s.Figures) == 0 || s.Sources == nil || !s.Sources.Checked || s.Sources.Wrong != 0 || len(s.Sources.Seen) == 0 {
				t.Errorf("%s, %s: figures %v, sources %+v", o.Name, s.Name, s.Figures, s.Sources)
			}
		}
	}
	r.pair, r.result.Scenarios, c.Scenarios = []netip.Addr{netip.MustParseAddr("203.0.113.9")}, nil, []string{"udp-out"}
	r.all(ctx)
	for _, s := range r.result.Scenarios[0].Steps {
		if len(s.Wrong) == 0 || !strings.Contains(s.Wrong[0], "which is not of the pair") || s.Figures[figureRate] == 0 {
			t.Errorf("%s: %v, %v", s.Name, s.Wrong, s.Figures)
		}
	}
	if r.result.faults() == 0 {
		t.Error("nothing was found wrong")
	}
}

// A gateway that is killed under load: the run ends and says so, and what was measured stays.
func TestKilled(t *testing.T) {
	c := chainConfig(t, "udp-out")
	c.For = 20 * time.Second // nobody waits so long
	ctx, run := opened(t, &c)
	done := make(chan error, 1)
	go func() {
		err := daemon.Until(ctx, "packets arrive", func(context.Context) error {
			if n := run.chain.far.Counts().Datagrams; n < 1000 {
				return fmt.Errorf("%d came", n)
			}
			return nil
		})
		done <- errors.Join(err, run.chain.kill())
	}()
	began := time.Now()
	run.all(ctx)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > c.For {
		t.Errorf("it went on for %v", d)
	}
	r := run.result
	if r.faults() == 0 || !strings.Contains(r.first(), "no more") || !strings.Contains(r.first(), "killed") {
		t.Errorf("first finding: %s", r.first())
	}
	if len(r.Scenarios) != 1 || len(r.Scenarios[0].Steps) != 1 || r.Scenarios[0].Steps[0].Figures[figureRate] == 0 {
		t.Errorf("what was measured is lost: %+v", r.Scenarios[0])
	}
	var table bytes.Buffer
	if err := r.print(&table); err != nil || !strings.Contains(table.String(), "FAILED: the gateway is no more") {
		t.Errorf("%v\n%s", err, table.String())
	}
}
