package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/bench/scale"
)

// scaleCommand measures what grows with the number of things.
func scaleCommand(out io.Writer) *cobra.Command {
	cfg := scale.Config{Version: version, Standard: out}
	cmd := &cobra.Command{
		Use:   "scale",
		Short: "Measure what networks, sandboxes and tunnels cost while there are many",
		Long: `Measure what networks, sandboxes and tunnels cost while there are many. As root.

Daemons run in network namespaces of their own, the gateways on one core of the
machine. What one thing more costs is the difference of two states of one process.
A target that is missed is said and no error. What could not be measured is said,
what could is reported all the same, and the exit code is not 0.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.Bin, err = binFolder(cfg.Bin); err != nil {
				return err
			}
			_, cfg.Out = beside(out, cfg.JSON)
			cfg.Command = strings.Join(append([]string{filepath.Base(os.Args[0])}, os.Args[1:]...), " ")
			return scale.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&cfg.Parts, "parts", scale.Parts(), "measure these `PARTS`")
	f.StringVar(&cfg.Uplink, "uplink", "sockets", "the gateways' `UPLINK`: sockets or tun")
	f.IntVar(&cfg.Networks, "networks", 50, "a gateway has `N` idle networks")
	f.IntVar(&cfg.Sandboxes, "sandboxes", 10000, "a worker has `N` sandboxes")
	f.IntVar(&cfg.Paths, "sidecar-networks", 200, "a sidecar has `N` networks, and three tunnels for each")
	f.IntVar(&cfg.Core, "core", 0, "the gateways' core")
	f.StringVar(&cfg.JSON, "json", "", "write everything to `FILE`, as JSON; -: to standard output, and the table to standard error")
	f.BoolVar(&cfg.Whole, "whole", false, "keep what the FILE of --json has if not everything could be measured: what could goes beside it, to NAME.partial.json")
	f.StringVar(&cfg.Bin, "bin", "", "`DIR` of sallyportd and sallyport-sidecar (default: that of this program)")
	f.StringVar(&cfg.KeepLogs, "keep-logs", "", "keep the daemons' logs in `DIR`")
	return cmd
}
