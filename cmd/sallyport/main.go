// Command sallyport is the operator's command line: it calls the control API of
// one region, and the admin listener of a gateway host on that host.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/cmd/group"
	"github.com/sallyport-net/sallyport/internal/console"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sallyport:", console.Clean(err.Error()))
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var g globals
	root := &cobra.Command{
		Use:   "sallyport",
		Short: "Attach sandboxes to their networks, and see what is attached",
		Long: `Attach sandboxes to their networks, and see what is attached.

The commands call the control API of one region, which sallyportd serves. --api
and --token-file say where it is and which token it takes, or the environment
variables SALLYPORT_API and SALLYPORT_TOKEN_FILE.

ports, sessions and profile ask the sallyportd of a gateway host instead, on that
host, by its admin listener (--admin).`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	g.flags(root)
	root.AddCommand(attachCommand(&g), detachCommand(&g), attachmentsCommand(&g), peeringCommand(&g), statusCommand(&g), portsCommand(&g), sessionsCommand(&g), profileCommand(), versionCommand())
	group.Guard(root)
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which version this is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "sallyport %s, %s, %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
