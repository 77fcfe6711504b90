// Package confine runs a command that has no network but the sidecar's.
//
// There are two halves. [Run] is the parent's: it starts the same program anew
// in new user, network and mount namespaces, with the argument [Subcommand], and
// waits. [Enter] is what runs there, in this order:
//
//  1. an interface with the sandbox's address is made, the only one but
//     loopback: a TUN, or where the machine gives none, a veth pair whose far
//     end lies in a network namespace that nothing but a packet socket keeps;
//  2. the host's name services, the sidecar's own socket and what else it asks
//     for are hidden, and resolv.conf names the network's name servers;
//  3. the interface's descriptor goes to the sidecar, and no copy stays here. So
//     when the sidecar ends, the interface ends with it, and nothing is left to leak;
//  4. the sidecar says that packets pass through the tunnel;
//  5. every capability goes, for good, and the command takes the process over.
//
// The command keeps the caller's user, files, environment, standard streams and
// terminal. What is confined is its network, not its files: a command that runs
// as the host's root can have the host do things for it.
package confine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// Subcommand is the first argument with which the program is started anew; the
// program must then call [Enter].
const Subcommand = "enter-sandbox"

// The exit codes of failures that are not the command's own, as env(1) has them.
const (
	ExitFailed        = 125 // the sandbox could not be made
	ExitNotExecutable = 126 // the command was found and cannot be run
	ExitNotFound      = 127 // the command was not found
	exitSignal        = 128 // plus the number of the signal that ended the command
)

// Failure is an error that happened before the command ran, with the exit code that tells it.
type Failure struct {
	Code int
	err  error
}

// Error implements error.
func (f *Failure) Error() string { return f.err.Error() }

// Unwrap gives the cause.
func (f *Failure) Unwrap() error { return f.err }

// fail makes a Failure of the sandbox's making.
func fail(format string, args ...any) *Failure {
	return &Failure{Code: ExitFailed, err: fmt.Errorf(format, args...)}
}

// Interface is how the sandbox's packets come out of it.
type Interface string

// The interfaces.
const (
	Auto Interface = ""     // a TUN where one can be had, else a veth pair
	TUN  Interface = "tun"  // a TUN
	Veth Interface = "veth" // a veth pair and a packet socket
)

// Config is a command and its network.
type Config struct {
	// Command is the program and its arguments. It is looked for in PATH.
	Command []string
	// Sidecar is the connection for the handover. It stays the caller's, which
	// must not read from it before Started is closed.
	Sidecar *net.UnixConn
	// Inner is the sandbox's address.
	Inner netip.Addr
	// DNS are its name servers; at least one.
	DNS []netip.Addr
	// MTU is that of the interface, in bytes.
	MTU int
	// Hide are folders, files and sockets that shall be empty to the command, such
	// as that of the sidecar's socket. Absolute; those that do not exist are passed over.
	Hide []string
	// Interface is how packets come out.
	Interface Interface
	// Stdin, Stdout and Stderr are the command's; nil ones are this program's.
	Stdin, Stdout, Stderr *os.File
	// Environment are the command's variables, as os.Environ has them; nil stands for
	// this program's. RunBare only.
	Environment []string
	// Started is closed when the command runs. Optional.
	Started chan<- struct{}
	// Notes takes remarks about what could not be done and does not matter for
	// confinement. Optional; it must not block.
	Notes chan<- string
}

// validate says what is missing.
func (c Config) validate() error {
	switch {
	case len(c.Command) == 0 || c.Command[0] == "":
		return errors.New("no command was given; write it behind --")
	case c.Sidecar == nil:
		return errors.New("no connection to the sidecar was given")
	case !c.Inner.Is4():
		return fmt.Errorf("the sandbox's address %v is not an IPv4 address", c.Inner)
	case len(c.DNS) == 0 || slices.ContainsFunc(c.DNS, func(a netip.Addr) bool { return !a.Is4() }):
		return fmt.Errorf("the sandbox's name servers %v are not one IPv4 address or more", c.DNS)
	case c.MTU < 576 || c.MTU > 65535:
		return fmt.Errorf("MTU %d is outside 576 to 65535", c.MTU)
	case c.Interface != Auto && c.Interface != TUN && c.Interface != Veth:
		return fmt.Errorf("interface %q is neither %q nor %q", c.Interface, TUN, Veth)
	}
	for _, path := range c.Hide {
		if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
			return fmt.Errorf("%q cannot be hidden; give an absolute path below /", path)
		}
	}
	return nil
}

// settings are what the parent tells the process in the namespaces.
type settings struct {
	Parent    int          `json:"parent"` // process id
	Inner     netip.Addr   `json:"inner"`
	DNS       []netip.Addr `json:"dns"`
	MTU       int          `json:"mtu"`
	Hide      []string     `json:"hide"`
	Interface Interface    `json:"interface"`
}

// report is one line that comes back from there.
type report struct {
	// Exec says that the command takes over now, unless another line follows.
	Exec bool `json:"exec,omitempty"`
	// Note is a remark.
	Note string `json:"note,omitempty"`
	// Code and Message are a failure.
	Code    int    `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

// The descriptors of the process in the namespaces, in the order of exec.Cmd's ExtraFiles.
const (
	fdSidecar = 3 + iota
	fdSettings
	fdReport
)
