package conformance

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

var long = flag.Bool("long", false, "run the long form: more packets, more rounds, real time")

func TestMain(m *testing.M) { os.Exit(netlab.Enter(leakChecked{m})) }

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

// size is what a test does: little in the short form, much in the long one.
func size(little, much int) int {
	if *long {
		return much
	}
	return little
}
