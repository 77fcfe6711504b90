package main

import (
	"os"
	"testing"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// asProgram is the first argument with which the tests' program is sallyport-bench.
const asProgram = "as-sallyport-bench"

// programs are the gateway's. Here the race detector is to look at the harness.
var programs = netlab.NewPlainPrograms("github.com/sallyport-net/sallyport/cmd/sallyportd")

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == asProgram {
		os.Args = append(os.Args[:1:1], os.Args[2:]...)
		main()
	}
	os.Exit(netlab.Enter(programs.Around(m)))
}
