package conformance

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

var long = flag.Bool("long", false, "run the long form: more packets, more rounds, real time")

func TestMain(m *testing.M) { os.Exit(netlab.Enter(pion.Around(leakChecked{m}))) }

// leakChecked fails the package if a goroutine outlives its tests.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(goleak.IgnoreAnyFunction("os/signal.loop")); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// fuzzFor is how long TestLeak runs in the long form.
var fuzzFor = flag.Duration("fuzz-for", 10*time.Minute, "how long the long form makes up packets")

// onlyLong skips what the short form leaves out, and lists it as not run.
func onlyLong(t *testing.T) {
	t.Helper()
	if !*long {
		netlab.NotRun(t, "only in make conformance")
	}
}

// size is what a test does: little in the short form, much in the long one.
func size(little, much int) int {
	if *long {
		return much
	}
	return little
}
