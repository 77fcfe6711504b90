// Command sallyport-bench is the harness: it runs the other programs and looks
// at them from outside.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sallyport-net/sallyport/bench/demo"
	"github.com/sallyport-net/sallyport/cmd/group"
)

// version is set by the linker.
var version = "dev"

func main() {
	// A terminal that closes and a pipe that ends are reasons to clear up, too. But
	// the signal says nothing of which pipe: connections of the origin break, too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // a write fails instead
	ctx, end := context.WithCancelCause(ctx)
	out := output{end}
	code := 0
	root := &cobra.Command{
		Use:           "sallyport-bench",
		Short:         "Run Sallyport's programs and look at them from outside",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(demoCommand(&code, out), functionCommand(), failoverCommand(&code, out), failoverFunctionCommand(), compareCommand(out), gvisorCommand(), reportCommand(out), recordCommand(out))
	root.AddCommand(serveCommand(out), runCommand(out))
	root.AddCommand(scaleCommand(out))
	root.SetFlagErrorFunc(wrongValue)
	group.Guard(root)
	err := root.ExecuteContext(ctx)
	end(nil)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sallyport-bench:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// output is standard output. It ends what is going on once nobody reads it.
type output struct{ end context.CancelCauseFunc }

// Write implements io.Writer.
func (o output) Write(p []byte) (int, error) {
	n, err := os.Stdout.Write(p)
	if err != nil {
		o.end(fmt.Errorf("print the report: %w", err))
	}
	return n, err
}

func demoCommand(code *int, out io.Writer) *cobra.Command {
	var cfg demo.Config
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the gateway at work on this machine",
		Long: `Show the gateway at work on this machine, as any user.

Real daemons, functions and builds run in network namespaces of their own, on
documentation addresses. Each line says what was expected and what was seen: by
the far side, by the control API, or by captures on the links. Hosts and a region
are killed under load. Where namespaces are forbidden, all of it runs on this
machine's loopback, as far as that goes. The exit code is 0 if nothing failed.
What this machine does not allow is no failure, and said.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.Bin, err = binFolder(cfg.Bin); err != nil {
				return err
			}
			cfg.Out, cfg.Terminal = out, term.IsTerminal(int(os.Stdout.Fd()))
			if width, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
				cfg.Width = width
			}
			*code, err = demo.Run(cmd.Context(), cfg)
			return err
		},
	}
	cmd.Flags().BoolVar(&cfg.JSON, "json", false, "write one JSON document")
	cmd.Flags().StringVar(&cfg.Bin, "bin", "", "`DIR` of sallyportd and sallyport-sidecar (default: that of this program)")
	cmd.Flags().StringVar(&cfg.KeepLogs, "keep-logs", "", "keep the daemons' logs in `DIR`")
	return cmd
}

// functionCommand is what the demo runs in sandboxes.
func functionCommand() *cobra.Command {
	return &cobra.Command{
		Use:    demo.FunctionCommand,
		Short:  "Do the tasks on standard input and write what came of them",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo.Function(cmd.Context(), os.Stdin, os.Stdout)
		},
	}
}
