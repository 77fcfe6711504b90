// Package scale measures what grows with the number of networks, sandboxes, tunnels
// and sessions: memory, the time of an attachment, the cost of a packet.
//
//	worker ── hub ── gateways, origin
//
// Daemons run in network namespaces of their own, the gateways on one core of the
// machine. What one thing more costs is the difference of two states of one process,
// divided by how many things more there are.
package scale

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sallyport-net/sallyport/bench/document"
	"github.com/sallyport-net/sallyport/bench/testbed"
)

// Config is what the user chooses.
type Config struct {
	// Parts are names of [Parts].
	Parts []string
	// Uplink is the gateways': sockets or tun.
	Uplink string
	// Networks, Sandboxes and Paths are how many there are at most: idle networks of a
	// gateway, sandboxes of a worker, and networks of a sidecar with three tunnels each.
	Networks, Sandboxes, Paths int
	// Core is the gateways' core, by its number.
	Core int
	// JSON is a file that gets everything; empty: none does. Whole keeps what it has if not
	// everything could be measured: see [document.Output]. Standard takes it if it is
	// [document.Standard].
	JSON     string
	Standard io.Writer
	Whole    bool
	// Bin is the folder of sallyportd and sallyport-sidecar.
	Bin string
	// KeepLogs is a folder for the daemons' logs; empty: they go at the end.
	KeepLogs string
	// Command is the command line, for the report. Version is that of the programs.
	Command, Version string
	// Out takes what happens, and a table at the end.
	Out io.Writer
}

// part is one question.
type part struct {
	name string
	ask  func(context.Context, *bench) error
}

func parts() []part {
	return []part{
		{"networks", networks},
		{"sandboxes", sandboxes},
		{"paths", paths},
	}
}

// Parts are what can be measured.
func Parts() (names []string) {
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

func (c *Config) validate() error {
	for _, name := range c.Parts {
		if !slices.Contains(Parts(), name) {
			return fmt.Errorf("there is no part %q: choose from %s (--parts)", name, strings.Join(Parts(), ", "))
		}
	}
	switch {
	case len(c.Parts) == 0:
		return errors.New("nothing to measure: choose parts (--parts)")
	case c.Uplink != "sockets" && c.Uplink != "tun":
		return fmt.Errorf("there is no uplink %q: choose sockets or tun (--uplink)", c.Uplink)
	case c.Networks < 1 || c.Networks > 1000:
		return fmt.Errorf("%d networks cannot be: choose 1 to 1000 (--networks)", c.Networks)
	case c.Sandboxes < 1 || c.Sandboxes > 60000:
		return fmt.Errorf("%d sandboxes cannot be: choose 1 to 60000 (--sandboxes)", c.Sandboxes)
	case c.Paths < 1 || c.Paths > 1000:
		return fmt.Errorf("%d networks of a sidecar cannot be: choose 1 to 1000 (--sidecar-networks)", c.Paths)
	case c.Core < 0:
		return fmt.Errorf("there is no core %d: the gateways' has a number from 0 on (--core)", c.Core)
	}
	return c.output().Check("--json")
}

// output is where the JSON document goes.
func (c *Config) output() document.Output {
	return document.Output{Path: c.JSON, To: c.Standard, Whole: c.Whole}
}

// program is the path of a program in Bin.
func (c *Config) program(name string) string { return filepath.Join(c.Bin, name) }

// usable says why nothing can be measured here.
func (c *Config) usable() error {
	return testbed.Needs{
		Root: "run it as root: namespaces are made, and interfaces in them", Programs: []string{"taskset"},
		Built: []string{"sallyportd", "sallyport-sidecar"}, Bin: c.Bin, Make: "make build", Core: c.Core,
	}.Check()
}

// Run measures. It returns an error if something could not be measured; what could
// is reported all the same. A target that is missed is no error.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	if err := cfg.usable(); err != nil {
		return fmt.Errorf("nothing can be measured here: %w", err)
	}
	return newBench(&cfg).measure(ctx)
}

// measure asks all questions, and reports.
func (b *bench) measure(ctx context.Context) error {
	for _, p := range parts() {
		if !slices.Contains(b.cfg.Parts, p.name) {
			continue
		}
		err := context.Cause(ctx)
		if err == nil {
			err = p.ask(ctx, b)
		}
		if err != nil {
			b.missing(p.name, err)
		}
	}
	return b.report()
}
