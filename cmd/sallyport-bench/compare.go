package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sallyport-net/sallyport/bench/compare"
)

// compareCommand measures gateways beside each other.
func compareCommand(out io.Writer) *cobra.Command {
	cfg := compare.Config{Version: version, Standard: out}
	quick, silent := false, false
	cmd := &cobra.Command{
		Use:   "compare",
		Short: "Measure what bytes, packets and requests cost beside other gateways",
		Long: `Measure what bytes, packets and requests cost the gateway, beside wireguard-go with
nftables, wireguard-go with gVisor's NAT, the kernel's WireGuard where there is one,
and beside the kernel without a tunnel. As root, after "make comparator", which puts
wireguard-go beside this program.

Each gateway has a chain of network namespaces of its own, sandbox - gateway -
server, and one core of the machine, from which everything else is kept away.
Variants take turns; medians, spreads and ratios of the same rounds are printed.
Measurements in which the hypervisor gave more than 1 % of the time to others, or
before which the gateway's core was in use, are made again, at most twice. If that
does not help they are marked as noisy and left out of medians while enough others
are left. What fails is said: nothing arrived, much was sent again, or packets came
from a wrong address or damaged. What was measured is reported all the same, and the
exit code is not 0. Requests that are not answered within 2 s count as answered then.

What kept the next rate from passing is said as the limit of each peak. It is the source
where packets were late, next to none were lost and the gateway's core had time, and the
machine where others used it: nobody knows then what the gateway's own limit is.
"core %" is the part of the time in which the gateway's core was in use, by all that it
did and by what else ran there.

All figures of CPU are seconds of the gateway's process (/proc/PID/stat) and of its
core (/proc/stat: user, system, interrupts, stolen), which has the kernel's work too.

Scenarios, of which those that run has too have the same names there: TCP by iperf3
(tcp-out, tcp-in); datagrams of 64 and of 1420 bytes at a fixed rate and at the highest
with at most 0.1 % lost (udp-out, udp-in, udp1420-out, udp1420-in); requests and
answers, whose latency counts from when a request was due (latency-idle: 997/s;
latency-half: half of what the comparator answers); short TCP connections - connect,
one request, its answer, close - at a fixed rate and at the highest at which none fails
(connections: to 1,024 destinations; connections-one).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.Bin, err = binFolder(cfg.Bin); err != nil {
				return err
			}
			if quick {
				cfg.Quicken(cmd.Flags().Changed)
			}
			rest, table := beside(out, cfg.JSON)
			cfg.Command, cfg.Out, cfg.Terminal = commandLine(), table, term.IsTerminal(int(rest.Fd()))
			if width, _, err := term.GetSize(int(rest.Fd())); err == nil {
				cfg.Width = width
			}
			if !silent {
				cfg.Progress = cfg.Out
			}
			if !silent && cfg.Terminal {
				cfg.Progress = rest // itself, which is asked for its width
			}
			return compare.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&cfg.Variants, "variants", compare.Variants(), "measure these `VARIANTS`; the first with a tunnel is what others are compared with")
	f.StringSliceVar(&cfg.Scenarios, "scenarios", compare.Scenarios(), "measure in these `SCENARIOS`")
	f.IntVar(&cfg.Rounds, "rounds", 5, "measure each variant `N` times in each scenario")
	f.DurationVar(&cfg.Bulk, "bulk", 6*time.Second, "how long a transfer lasts")
	f.DurationVar(&cfg.Try, "try", 700*time.Millisecond, "how long a rate of small packets is tried")
	f.IntVar(&cfg.Rate, "rate", 20000, "small packets per second, `N`, at which their cost is measured")
	f.IntVar(&cfg.Core, "core", 0, "the gateway's core")
	f.BoolVar(&quick, "quick", false, "one short round of what matters most, in about a minute")
	f.BoolVar(&cfg.Strict, "strict", false, "measure nothing on a noisy machine, and fail if a measurement stays noisy")
	f.BoolVar(&silent, "quiet", false, "say nothing of what goes on")
	f.StringVar(&cfg.JSON, "json", "", "write everything to `FILE`, as JSON, which sallyport-bench report reads; -: to standard output, and the table to standard error")
	f.BoolVar(&cfg.Whole, "whole", false, "keep what the FILE of --json has if not everything could be measured: what could goes beside it, to NAME.partial.json")
	f.StringVar(&cfg.Title, "title", "The gateway beside others", "the `HEADING` of these figures in the report")
	f.StringVar(&cfg.Bin, "bin", "", "`DIR` of sallyportd, wireguard-go and sallyport-bench (default: that of this program)")
	f.StringVar(&cfg.KeepLogs, "keep-logs", "", "keep the daemons' logs in `DIR`")
	return cmd
}

// commandLine is that of this process, as a shell would take it.
func commandLine() string {
	words := []string{filepath.Base(os.Args[0])}
	for _, arg := range os.Args[1:] {
		if strings.ContainsAny(arg, " '\"$&|;()<>*?") || arg == "" {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		words = append(words, arg)
	}
	return strings.Join(words, " ")
}

// gvisorCommand is a gateway to compare with, called as wireguard-go is.
func gvisorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:    compare.GVisorCommand + " INTERFACE",
		Short:  "Run WireGuard with gVisor's NAT",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(cmd *cobra.Command, args []string) error { return compare.GVisor(cmd.Context(), args[0]) },
	}
	cmd.Flags().Bool("foreground", true, "as wireguard-go has it; it always is")
	return cmd
}
