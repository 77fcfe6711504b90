package main

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// insideSandbox is the first argument with which this program is the command in
// a sandbox.
const insideSandbox = "inside-sandbox"

// programs are what the tests start on their machines.
var programs = netlab.NewPrograms(
	"github.com/sallyport-net/sallyport/cmd/sallyportd",
	"github.com/sallyport-net/sallyport/cmd/sallyport-sidecar",
	"github.com/sallyport-net/sallyport/cmd/sallyport",
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == insideSandbox {
		os.Exit(inside(os.Stdin, os.Stdout))
	}
	os.Exit(netlab.Enter(programs.Around(checked{m})))
}

// checked runs the tests, and fails the package if a goroutine outlives them.
type checked struct{ m *testing.M }

func (c checked) Run() int {
	code := c.m.Run()
	if err := goleak.Find(goleak.IgnoreAnyFunction("os/signal.loop")); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
