package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/sidecar/confine"
	"github.com/sallyport-net/sallyport/sidecar/handover"
)

// attachTimeout is how long exec waits for the sidecar to attach its sandbox.
const attachTimeout = 20 * time.Second

// ExecConfig is a command that shall run in a sandbox.
type ExecConfig struct {
	// Socket is that of the sidecar on this machine.
	Socket string
	// Project, Environment, Kind and Runtime say whose command it is.
	Project, Environment string
	Kind                 spec.Kind
	Runtime              string
	// Command is the program and its arguments.
	Command []string
	// Interface is how packets come out of the sandbox.
	Interface confine.Interface
	// Proxy runs the command in the caller's own network, with the usual variables
	// for SOCKS5 and HTTP proxies into the sandbox's. A command that does not heed
	// them goes past the sandbox.
	Proxy bool
	// Verbose tells on Messages what is done, and not only what goes wrong.
	Verbose bool
	// Messages takes lines for whoever started the command.
	Messages io.Writer
	// Stdin, Stdout and Stderr are the command's; nil ones are this program's.
	Stdin, Stdout, Stderr *os.File
}

// Exec runs a command whose network is that of its project's environment, and
// returns its exit code. Before the command runs, a packet has been through the
// tunnel and back. What bypasses runs untouched. An error is one of this
// function's own; the exit code is then one of confine's.
func Exec(cfg ExecConfig) (int, error) {
	if err := cfg.validate(); err != nil {
		return confine.ExitFailed, err
	}
	socket, err := filepath.Abs(cfg.Socket)
	if err != nil {
		return confine.ExitFailed, fmt.Errorf("find the socket %s: %w", cfg.Socket, err)
	}
	client := newLocalClient(socket)
	ctx, cancel := context.WithTimeout(context.Background(), attachTimeout)
	defer cancel()
	box, err := client.attach(ctx, sandboxRequest{
		Project: cfg.Project, Environment: cfg.Environment, Kind: cfg.Kind, Runtime: cfg.Runtime, Proxy: cfg.Proxy,
	})
	if err != nil {
		return confine.ExitFailed, fmt.Errorf("attach a sandbox: %w", err)
	}
	switch p := box.Passive; p.State {
	case passiveFailed:
		cfg.say("warning: no passive network %s in region %s: %s", p.Network, p.Region, p.Reason)
	case passivePending:
		cfg.say("warning: no passive network %s in region %s yet", p.Network, p.Region)
	}
	conn, err := client.device(ctx, box.ID)
	if err != nil {
		return confine.ExitFailed, fmt.Errorf("attach a sandbox: %w", err)
	}
	defer conn.Close()
	code, err := cfg.run(conn, box, filepath.Dir(socket))
	// The end of the connection would do, but this waits until it is done, so that
	// what counts sandboxes after the command has ended counts right.
	ending, cancelEnding := context.WithTimeout(context.Background(), closeTimeout)
	defer cancelEnding()
	if gone := client.detach(ending, box.ID); gone != nil && cfg.Verbose {
		cfg.say("detach the sandbox: %v", gone)
	}
	return code, err
}

// validate says what of the configuration cannot be.
func (cfg ExecConfig) validate() error {
	switch {
	case len(cfg.Command) == 0:
		return errors.New("no command was given; write it behind --")
	case cfg.Proxy && cfg.Interface != confine.Auto:
		return fmt.Errorf("proxies take the place of an interface; leave %q out, or the proxies", cfg.Interface)
	}
	return nil
}

// run runs the command with the connection that holds its sandbox.
func (cfg ExecConfig) run(conn *net.UnixConn, box Attached, folder string) (int, error) {
	started, notes := make(chan struct{}), make(chan string, 16)
	c := confine.Config{
		Command: cfg.Command, Sidecar: conn, Inner: box.Inner, DNS: box.DNS, MTU: box.MTU,
		Hide: append(box.Hide, folder), Interface: cfg.Interface,
		Stdin: cfg.Stdin, Stdout: cfg.Stdout, Stderr: cfg.Stderr, Started: started, Notes: notes,
	}
	ended := make(chan struct{})
	watched := make(chan struct{})
	lost := "the sidecar let go of the sandbox: the command has no network any more"
	switch {
	case box.Bypass != "":
		lost = "the sidecar ended: the command is not counted as a bypass any more"
	case cfg.Proxy:
		lost = "the sidecar let go of the sandbox: its proxies are gone"
	}
	go func() {
		defer close(watched)
		select {
		case <-started:
			if outlives(conn, ended) {
				cfg.say("%s", lost)
			}
		case <-ended:
		}
	}()
	defer func() { close(ended); _ = conn.SetReadDeadline(time.Now()); <-watched }()

	if box.Bypass != "" || cfg.Proxy {
		return cfg.runBare(c, box)
	}
	if cfg.Verbose {
		cfg.say("sandbox %s in network %s has the address %v", box.ID, box.Network, box.Inner)
	}
	code, err := confine.Run(c)
	close(notes)
	for note := range notes {
		if cfg.Verbose {
			cfg.say("%s", note)
		}
	}
	return code, err
}

// runBare runs a command that bypasses, or has proxies.
func (cfg ExecConfig) runBare(c confine.Config, box Attached) (int, error) {
	if box.Bypass == "" && box.Proxies == nil {
		return confine.ExitFailed, errors.New("the sidecar gives no proxies; is it of this version?")
	}
	if err := holdBare(c.Sidecar); err != nil {
		return confine.ExitFailed, err
	}
	if box.Bypass != "" {
		if cfg.Verbose {
			cfg.say("bypass (%s): the command runs without a tunnel", box.Bypass)
		}
		return confine.RunBare(c)
	}
	c.Environment = box.Proxies.environment(os.Environ())
	cfg.say("warning: proxies are not enforced: the command runs in this machine's own network, and what does not heed http_proxy, https_proxy or all_proxy leaves from this machine's address")
	if cfg.Verbose {
		cfg.say("sandbox %s in network %s has the address %v and proxies at %v", box.ID, box.Network, box.Inner, box.Proxies.SOCKS5)
	}
	return confine.RunBare(c)
}

// holdBare tells the sidecar that what brings no interface runs now, and waits
// until its tunnel, if it has one, is proven.
func holdBare(conn *net.UnixConn) error {
	if err := handover.Send(conn, handover.Message{Type: handover.None}, nil); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(deviceTimeout))
	if err := handover.Await(conn); err != nil {
		return err
	}
	return conn.SetReadDeadline(time.Time{})
}

// outlives waits for the end of the connection or of the command, and says
// whether the command is the one that is left.
func outlives(conn *net.UnixConn, ended <-chan struct{}) bool {
	_, _ = conn.Read(make([]byte, 1)) // the sidecar has nothing more to say
	select {
	case <-ended:
		return false
	case <-time.After(endGrace):
		return true
	}
}

// endGrace is how much earlier the sidecar may see a command end, which takes
// its interface along, than the one who waits for the command.
const endGrace = 500 * time.Millisecond

func (cfg ExecConfig) say(format string, args ...any) {
	if cfg.Messages != nil {
		_, _ = fmt.Fprintf(cfg.Messages, "sallyport-sidecar: "+format+"\n", args...)
	}
}
