// Command sallyportd is the daemon on egress hosts: it translates the traffic of
// private networks onto their dedicated pairs of IPs.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
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
its dedicated IPs, the sockets uplink, and probes and DNS on the first address of
its CIDR. No privilege is needed, but the dedicated addresses must be on the
host. At its end it tells sidecars to go elsewhere for the configured time to
drain; a second signal does not wait for that.

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
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Read configuration, desired state, secrets and token, say what is wrong, start nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(file)
			if err != nil {
				return err
			}
			if err := s.checkFiles(); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: good: %s\n", file, s)
			return err
		},
	}
	configFlag(cmd, &file)
	return cmd
}

func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", "", "the daemon's configuration `FILE` (needed)")
	if err := cmd.MarkFlagRequired("config"); err != nil {
		panic(err) // the flag is defined one line above
	}
}
