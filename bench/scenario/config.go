// Package scenario measures one gateway as operators see it: a load through tunnels of
// this process, a far side that counts what arrives and from which addresses, and what the
// gateway's CPU spends meanwhile.
//
//	sandboxes in this process ══ WireGuard ══ gateway ── far side
//
// The gateway runs already, and is reached by the control API or by a WireGuard file, or a
// chain of namespaces is built with it. Each scenario has steps; each step has figures, how
// noisy the machine was, and what a gateway must not do and did. What was measured is
// reported whatever happens later.
package scenario

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/document"
	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/bench/trial"
	"github.com/sallyport-net/sallyport/bench/wire"
)

// Config is what the user chooses. Exactly one of API, WireGuard and Chain names the gateway.
type Config struct {
	// Scenarios are names of [Scenarios].
	Scenarios []string

	// API is a control API's address. Its sandboxes belong to an environment of a project.
	API, TokenFile, Project, Environment, Region string
	// WireGuard is the file of one peer, as wg-quick takes it.
	WireGuard string
	// Chain builds everything in namespaces, with sallyportd of an Uplink on a Core of its
	// own (by its number; [testbed.AnyCore]: it has none).
	Chain  bool
	Uplink string
	Core   int

	// Far is a far side that runs, Key the one that it shares with us, FarPrefix more
	// addresses of it. A chain has its own.
	Far       netip.AddrPort
	FarPrefix netip.Prefix
	Key       [wire.KeySize]byte
	// Pair are the addresses that sandboxes may leave from, where no API says them.
	Pair []netip.Addr
	// PID is the gateway's process on this machine and Core its core, as far as they are
	// known (0; AnyCore); Admin the URL of its admin listener elsewhere.
	PID   int
	Admin string

	// Rate is the fixed load, packets per second; For is how long it lasts, Try how long a
	// rate is tried in a search.
	Rate     int
	For, Try time.Duration
	// Sandboxes and Sessions are the scales.
	Sandboxes, Sessions []int
	// Again is how often steps that were noisy are measured again, all together.
	Again int
	// Strict throws away what is noisy to the end.
	Strict bool

	// JSON and HTML are files for the result; empty: none; [document.Standard]: Standard takes
	// it. Whole keeps what JSON has if not everything could be measured: see [document.Output].
	JSON, HTML string
	Standard   io.Writer
	Whole      bool
	// Bin is the folder of sallyportd and of this program, KeepLogs one for logs.
	Bin, KeepLogs string
	// Command is the command line, for the report. Version is that of the programs.
	Command, Version string
	// Out takes the table, Progress what happens; nil: nobody wants to know. On a Terminal
	// of Width columns one line is written again and again.
	Out, Progress io.Writer
	Terminal      bool
	Width         int
}

// Bounds of what can be asked for.
const (
	MaxSandboxes = 20_000
	MaxSessions  = 1 << 20

	maxRate  = 1 << 21
	maxAgain = 1000
	maxFor   = 9 * time.Minute // a far side sends for 10 at most
)

// validate refuses what cannot be, and takes what is named twice once.
func (c *Config) validate() (err error) {
	if c.Scenarios, err = trial.Names("scenario", "--scenarios", c.Scenarios, Scenarios()); err != nil {
		return err
	}
	ways := 0
	for _, way := range []bool{c.API != "", c.WireGuard != "", c.Chain} {
		if way {
			ways++
		}
	}
	switch {
	case len(c.Scenarios) == 0:
		return errors.New("nothing to measure: choose scenarios (--scenarios)")
	case ways != 1:
		return errors.New("name one gateway: --api with --token-file, --wireguard FILE, or --chain")
	case c.API != "" && (c.TokenFile == "" || c.Project == "" || c.Environment == "" || c.Region == ""):
		return errors.New("to attach sandboxes by the control API, give --token-file, --project, --environment and --region")
	case !c.Chain && (!c.Far.IsValid() || c.Key == [wire.KeySize]byte{}):
		return errors.New("a running gateway needs a far side beyond it: run `sallyport-bench serve` there, and give --far ADDR:PORT and --key-file")
	case c.Far.IsValid() && !c.Far.Addr().Is4():
		return fmt.Errorf("the far side %v is no IPv4 address: sandboxes have IPv4 (--far)", c.Far)
	case c.FarPrefix.IsValid() && (!c.FarPrefix.Addr().Is4() || c.FarPrefix.Bits() < 16):
		return fmt.Errorf("further addresses %v of the far side cannot be: give an IPv4 prefix of /16 or longer (--far-prefix)", c.FarPrefix)
	case c.Chain && c.Far.IsValid():
		return errors.New("a chain has a far side of its own: leave out --far")
	case c.Chain && (c.PID != 0 || c.Admin != ""):
		return errors.New("a chain has a gateway of its own, whose time is read from its process: leave out --pid and --admin")
	case c.Chain && !slices.Contains(testbed.Uplinks(), c.Uplink):
		return fmt.Errorf("there is no uplink %q: choose from %s (--uplink)", c.Uplink, strings.Join(testbed.Uplinks(), ", "))
	case c.JSON != "" && filepath.Clean(c.JSON) == filepath.Clean(c.HTML):
		return fmt.Errorf("%s cannot be both files: give another one (--json, --html)", c.JSON)
	case c.PID != 0 && c.Admin != "":
		return errors.New("the gateway's time is read from its process here (--pid) or from its metrics (--admin): give one")
	}
	if err := c.validateLoad(); err != nil {
		return err
	}
	return errors.Join(gatewayProcess(c.PID), c.output().Check("--json"), c.pageOutput().Check("--html"))
}

func (c *Config) validateLoad() error {
	switch {
	case c.Rate < 100 || c.Rate > maxRate:
		return fmt.Errorf("%d packets per second cannot be: choose 100 to %d (--rate)", c.Rate, maxRate)
	case c.For < 200*time.Millisecond || c.For > maxFor:
		return fmt.Errorf("a load of %v cannot be: choose 200ms to %v (--for)", c.For, maxFor)
	case c.Again < 0 || c.Again > maxAgain:
		return fmt.Errorf("%d steps cannot be measured again: choose 0 to %d (--again)", c.Again, maxAgain)
	case c.Try < 50*time.Millisecond || c.Try > time.Minute:
		return fmt.Errorf("a try of %v cannot be: choose 50ms to 1m (--try)", c.Try)
	}
	for _, n := range c.Sandboxes {
		if n < 1 || n > MaxSandboxes {
			return fmt.Errorf("%d sandboxes cannot be: choose 1 to %d (--sandboxes)", n, MaxSandboxes)
		}
	}
	for _, n := range c.Sessions {
		if n < 1 || n > MaxSessions {
			return fmt.Errorf("%d sessions cannot be: choose 1 to %d (--sessions)", n, MaxSessions)
		}
	}
	return c.validateCore()
}

// validateCore refuses a core that the gateway cannot have: in a chain one that this process may
// not use, else one that this machine does not have.
func (c *Config) validateCore() error {
	switch {
	case c.Core == testbed.AnyCore:
		return nil
	case c.Chain:
		return testbed.CoreUsable(c.Core, ", or -1: it has none to itself")
	}
	cores, err := machine.Cores()
	if err == nil && !slices.Contains(cores, c.Core) {
		err = fmt.Errorf("there is no core %d: this machine has %s; choose one, or -1 if it has none to itself (--core)", c.Core, machine.ListCores(cores))
	}
	return err
}

// kind is how the gateway is reached.
func (c *Config) kind() string {
	switch {
	case c.Chain:
		return "chain"
	case c.API != "":
		return "api"
	}
	return "wireguard"
}

// output is where the JSON document goes, pageOutput where the page does.
func (c *Config) output() document.Output {
	return document.Output{Path: c.JSON, To: c.Standard, Whole: c.Whole}
}

func (c *Config) pageOutput() document.Output {
	return document.Output{Path: c.HTML, To: c.Standard}
}
