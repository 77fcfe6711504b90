package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/bench/failover"
)

// failoverCommand measures how long it takes to leave what failed.
func failoverCommand(code *int, out io.Writer) *cobra.Command {
	cfg := failover.Config{Version: version}
	cmd := &cobra.Command{
		Use:   "failover",
		Short: "Measure how soon new connections are answered after a gateway host or a region is lost",
		Long: `Measure how soon new connections are answered after a gateway host or a region is
lost, as any user.

Real daemons run in network namespaces of their own, on documentation addresses.
The active host, and then its whole region, is killed, stopped and cut off, some
times each; then a full load runs without a fault. The exit code is 0 if new
connections were answered within 5 s each time, captures on the links saw no
packet with a wrong source, and the load made nothing switch. Where namespaces
are forbidden nothing runs, which is said and no failure.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.Bin, err = binFolder(cfg.Bin); err != nil {
				return err
			}
			cfg.Out = out
			*code, err = failover.Run(cmd.Context(), cfg)
			return err
		},
	}
	cmd.Flags().IntVar(&cfg.Runs, "runs", 20, "make each fault `N` times")
	cmd.Flags().StringSliceVar(&cfg.Faults, "faults", failover.Methods(), "make these `FAULTS`")
	cmd.Flags().DurationVar(&cfg.Load, "load", 2*time.Minute, "how long the full load lasts; 0 for none")
	cmd.Flags().StringVar(&cfg.Report, "out", "", "write the report to `FILE`, as Markdown")
	cmd.Flags().BoolVar(&cfg.JSON, "json", false, "write one JSON document")
	cmd.Flags().StringVar(&cfg.Bin, "bin", "", "`DIR` of sallyportd and sallyport-sidecar (default: that of this program)")
	cmd.Flags().StringVar(&cfg.KeepLogs, "keep-logs", "", "keep the daemons' logs in `DIR`")
	return cmd
}

// failoverFunctionCommand is what the measurement runs in sandboxes.
func failoverFunctionCommand() *cobra.Command {
	return &cobra.Command{
		Use:    failover.FunctionCommand,
		Short:  "Do the orders on standard input and write what came of them",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return failover.Function(cmd.Context(), os.Stdin, os.Stdout)
		},
	}
}

// binFolder is the folder of the programs: the one given, or that of this program.
func binFolder(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the folder of this program: give it with --bin: %w", err)
	}
	return filepath.Dir(self), nil
}
