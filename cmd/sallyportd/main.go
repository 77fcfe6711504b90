// Command sallyportd is the daemon on egress hosts: it translates the traffic of
// private networks onto their dedicated pairs of IPs.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/cmd/group"
	"github.com/sallyport-net/sallyport/gateway"
	"github.com/sallyport-net/sallyport/internal/allowance"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // who asks twice does not wait for the drain
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sallyportd:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "sallyportd",
		Short:         "Egress gateway with a pair of dedicated IPs per private network",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(runCommand(), checkCommand())
	group.Guard(root)
	return root
}

func runCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Be a region's control plane, a gateway, or both, until SIGTERM",
		Long: `Be what the configuration's roles say until SIGTERM or SIGINT.

The control plane keeps the desired state and who is attached, and serves the
API. The gateway carries the traffic of this host's networks, as the control
plane has them, in this process or another. What it knows it keeps in a state
file: a gateway that starts again goes on with that, though the control plane be
away, and calls its peers itself.

On the gateway every network gets a WireGuard device, a translator for each of
its dedicated IPs, an uplink, and probes and DNS on the first address of its CIDR.
At its end it tells sidecars to go elsewhere for the configured time to drain; a
second signal does not wait for that.

  uplink: sockets  kernel sockets on the dedicated addresses, which must be on the
                   host. No privilege is needed.
  uplink: tun      an interface for each network, from which the kernel routes. It
                   needs CAP_NET_ADMIN, /dev/net/tun and forwarding; the addresses
                   must not be on the host. All that it puts into the kernel's
                   network stack goes at the end, and after a crash at the next
                   start ("ip route show table all proto 83").

SIGHUP has the control plane read the desired state anew; one that is wrong
changes nothing.

A configuration that is wrong is refused with file, line, key and what would be
right; then nothing is started and the exit code is 1.`,
		Example: "  sallyportd run --config /etc/sallyport/sallyportd.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(file)
			if err != nil {
				return err
			}
			return run(cmd.Context(), s, os.Stderr)
		},
	}
	configFlag(cmd, &file)
	return cmd
}

func checkCommand() *cobra.Command {
	var file string
	var host bool
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Read configuration, desired state, secrets and token, say what is wrong, start nothing",
		Long: `Read the files that "run" would read, and say what is wrong with them. It may be done
on any machine that has them.

With --host it says besides what the kernel does for the tunnels and what limits it
(GSO, GRO, socket buffers, cores, memory), whether this machine can give what the uplink
asks of it, and what is missing: /dev/net/tun, privileges, interfaces, forwarding and rp_filter,
the hook; and (where the desired state is here) which dedicated addresses are where
they must not be, or, with kernel sockets, are not here, and what keeps peerings by an
interface from passing. Run it as the daemon's user. It changes nothing, and does not
mind a gateway that runs.`,
		Example: `  sallyportd check --config /etc/sallyport/sallyportd.yaml
  systemd-run --pipe --wait --uid sallyport -p AmbientCapabilities="CAP_NET_ADMIN CAP_NET_RAW" \
    /usr/local/bin/sallyportd check --host --config /etc/sallyport/sallyportd.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(file)
			if err != nil {
				return err
			}
			if err := s.checkFiles(); err != nil {
				return err
			}
			if host {
				if err := checkHost(cmd, file, s); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: good: %s\n", file, s)
			return err
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&host, "host", false, "look at this machine, too, for what the uplink needs")
	return cmd
}

// checkHost looks at this machine.
func checkHost(cmd *cobra.Command, file string, s settings) error {
	log := facts(cmd.OutOrStdout())
	allowance.Here().Tell(log, os.Getenv(memoryVariable))
	if !s.daemon.Roles.Gateway {
		return nil
	}
	if err := gateway.TellProbe(s.daemon, log); err != nil {
		return fmt.Errorf("%s: wireguard: %w", file, err)
	}
	warnings, err := gateway.CheckHost(s.daemon, s.state)
	for _, warning := range warnings {
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s: uplink: warning: %s\n", file, warning)
	}
	if err != nil {
		return fmt.Errorf("%s: uplink: %w", file, err)
	}
	return nil
}

// facts writes what a start would log, without time, and without level where it is no warning.
func facts(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey && a.Value.String() == slog.LevelInfo.String()) {
			return slog.Attr{}
		}
		return a
	}}))
}

func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", "", "the daemon's configuration `FILE` (needed)")
	if err := cmd.MarkFlagRequired("config"); err != nil {
		panic(err) // the flag is defined one line above
	}
}
