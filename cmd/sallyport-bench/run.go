package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sallyport-net/sallyport/bench/scenario"
)

// runOptions are those of the command line that are not the scenarios' own.
type runOptions struct {
	cfg           scenario.Config
	far, prefix   string
	keyFile       string
	pair          []string
	quick, silent bool
}

const runLong = `Measure one gateway: its throughput, latency, and what a packet costs it.

The gateway is one that runs, reached by its control API (--api, with --token-file,
--project, --environment and --region; sandboxes are attached, and detached at the
end) or by the WireGuard file of one peer (--wireguard; any WireGuard gateway). Beyond
it a far side must run: sallyport-bench serve, with the same --key-file. Or everything is
built in network namespaces of this machine (--chain), as root, with the gateway on a
core of its own.

All load comes from WireGuard devices in this process. It is sent on schedule whatever
comes back, and latency counts from when a request was due. In every scenario the far
side reports the addresses that it saw, which are held against the dedicated pair.

The scenarios, of which those that compare has too have the same names there:

  tcp-out, tcp-in       4 streams
  udp-out, udp-in       packets of 64 bytes: the fixed load, then the most that passes
  udp1420-out           full packets, of 1420 bytes, likewise
  udp1420-in
  connections           connect, one request, its answer, close
  latency-idle          requests and answers, 1,000/s
  latency-half          the same, beside half of the most packets of 64 bytes that pass
  sandboxes             cost per packet with 1, 100, 1,000, 10,000 of them, and of 100
                        while all are attached
  attach                100 attaches per second, to the first answered byte
  sessions              cost per packet with 1,000, 100,000, 1,000,000 of them
  failover              hosts and regions are lost (--chain)
  mixed                 night, morning, noon, evening: 10, 50, 100, 70 % of datagrams of
                        512 bytes at a fifth of --rate, connections at a hundredth,
                        attaches at 5/s; and requests at 1,000/s, and a TCP transfer
                        each way for a tenth of the time

CPU is that of the gateway's process and core where they are on this machine (--chain;
--pid, --core), or of its metrics (--admin), which lack the kernel's part.

What is noisy is measured again (--again, until that is used up, which is said), and if it
stays so it is marked, or with --strict thrown away; the last time counts, and what no noise explains, like a wrong
source, counts each time. Noise is more than 1 % of the time given to others by the
hypervisor, a core in use before the load, a source that did not keep its rate, packets
that found the harness's own sockets full.

The exit code is not 0 if something could not be measured, was thrown away, or was wrong:
a source outside the pair, packets that came damaged or twice, sessions that were not
opened, a gateway that died. What was measured is written all the same; a step that
Ctrl-C ends has no figures, but those of the time before if it is measured again.

The most that passes is the highest rate at which at most 0.1 % of the packets are lost
or late, and outwards half take at most 20 ms longer than the fastest of the run: more
only fills queues. LIMIT says what kept the next rate from passing. It is the source where
packets were late, next to none were lost and the gateway's core had time: what a gateway
holds back queues up and is lost in the end, so they left late. It is the machine where
others used it: nobody knows then what the gateway's own limit is.

"core busy" is the part of the time in which the gateway's core was in use, by all kinds of
load together, also beside the requests of latency-half and mixed, and by what else ran there.

A quantile is "-" with less than 2 values beyond it: p99 takes 200 values, p99.9 2,000.`

// runCommand measures one gateway.
func runCommand(out io.Writer) *cobra.Command {
	o := runOptions{cfg: scenario.Config{Version: version, Standard: out}}
	cmd := &cobra.Command{
		Use:   "run (--chain | --api ADDRESS ... | --wireguard FILE) [flags]",
		Short: "Measure one gateway, a running one or one in namespaces",
		Long:  runLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.complete(cmd.Flags().Changed); err != nil {
				return err
			}
			return scenario.Run(cmd.Context(), o.cfg)
		},
	}
	o.flags(cmd)
	return cmd
}

func (o *runOptions) flags(cmd *cobra.Command) {
	f, c := cmd.Flags(), &o.cfg
	f.StringSliceVar(&c.Scenarios, "scenarios", scenario.Scenarios(), "measure these `SCENARIOS`")
	f.BoolVar(&c.Chain, "chain", false, "build sandbox, gateway and far side in namespaces")
	f.StringVar(&c.Uplink, "uplink", "tun", "the chain's gateway has this `UPLINK`: sockets or tun")
	f.IntVar(&c.Core, "core", -1, "the gateway's core, `N`; -1: it has none to itself (default with --chain: 0)")
	f.StringVar(&c.API, "api", "", "attach sandboxes by the control API at `ADDRESS`: unix:///path or http://127.0.0.1:port")
	f.StringVar(&c.TokenFile, "token-file", "", "the control API's bearer token is in `FILE`")
	f.StringVar(&c.Project, "project", "", "attach sandboxes of this project, by its `ID`")
	f.StringVar(&c.Environment, "environment", "", "and of this environment, by its `NAME`")
	f.StringVar(&c.Region, "region", "", "and in this region, by its `NAME`")
	f.StringVar(&c.WireGuard, "wireguard", "", "reach the gateway as the peer of this `FILE`, as wg-quick takes it")
	f.StringSliceVar(&o.pair, "pair", nil, "sandboxes may leave from these `ADDRESSES` (the control API says them)")
	f.StringVar(&o.far, "far", "", "the far side runs at `ADDRESS:PORT`")
	f.StringVar(&o.prefix, "far-prefix", "", "and answers at all addresses of `PREFIX`")
	f.StringVar(&o.keyFile, "key-file", "", "and has the key in `FILE`")
	f.IntVar(&c.PID, "pid", 0, "the gateway's process on this machine is `N`")
	f.StringVar(&c.Admin, "admin", "", "read the gateway's CPU time from the metrics of its admin listener at `URL`")
	f.IntVar(&c.Rate, "rate", 20000, "the fixed load: `N` packets per second")
	f.DurationVar(&c.For, "for", 10*time.Second, "how long the fixed load lasts")
	f.DurationVar(&c.Try, "try", 700*time.Millisecond, "how long a rate is tried in a search")
	f.IntSliceVar(&c.Sandboxes, "sandboxes", []int{1, 100, 1000, 10000}, fmt.Sprintf("how many sandboxes, `N,...`, each 1 to %d", scenario.MaxSandboxes))
	f.IntSliceVar(&c.Sessions, "sessions", []int{1000, 100000, 1000000}, fmt.Sprintf("how many sessions, `N,...`, each 1 to %d", scenario.MaxSessions))
	f.BoolVar(&o.quick, "quick", false, "all of it in about a minute: short loads, small scales")
	f.IntVar(&c.Again, "again", 10, "measure noisy steps again, `N` times in all and each twice at most; 0: never")
	f.BoolVar(&c.Strict, "strict", false, "throw away what is noisy to the end")
	f.BoolVar(&o.silent, "quiet", false, "say nothing of what goes on")
	f.StringVar(&c.JSON, "json", "", "write everything to `FILE`, as JSON; -: to standard output, and the table to standard error")
	f.BoolVar(&c.Whole, "whole", false, "keep what the FILE of --json has if not everything could be measured: what could goes beside it, to NAME.partial.json")
	f.StringVar(&c.HTML, "html", "", "write a report with charts to `FILE`; -: likewise")
	f.StringVar(&c.Bin, "bin", "", "`DIR` of sallyportd (default: that of this program)")
	f.StringVar(&c.KeepLogs, "keep-logs", "", "keep the daemons' logs in `DIR`")
}

// complete makes a Config of the options. changed says which of them were given.
func (o *runOptions) complete(changed func(string) bool) (err error) {
	c := &o.cfg
	if c.Bin, err = binFolder(c.Bin); err != nil {
		return err
	}
	if o.far != "" {
		if c.Far, err = netip.ParseAddrPort(o.far); err != nil {
			return fmt.Errorf("--far %q must be an address and a port: %w", o.far, err)
		}
	}
	if o.prefix != "" {
		if c.FarPrefix, err = netip.ParsePrefix(o.prefix); err != nil {
			return fmt.Errorf("--far-prefix %q: %w", o.prefix, err)
		}
	}
	for _, text := range o.pair {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("--pair %q: %w", text, err)
		}
		c.Pair = append(c.Pair, a)
	}
	if o.keyFile != "" {
		if c.Key, err = readKey(o.keyFile); err != nil {
			return err
		}
	}
	if c.Chain && !changed("core") {
		c.Core = 0
	}
	if o.quick {
		o.shorten(changed)
	}
	_, c.Out = beside(c.Standard, c.JSON, c.HTML)
	if !o.silent {
		c.Progress, c.Terminal = os.Stderr, term.IsTerminal(int(os.Stderr.Fd()))
		if width, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil {
			c.Width = width
		}
	}
	c.Command = strings.Join(append([]string{filepath.Base(os.Args[0])}, os.Args[1:]...), " ")
	return nil
}

// quickAgain is how often a quick run measures again: some ten seconds' worth.
const quickAgain = 5

// shorten makes what was not given small enough for a minute.
func (o *runOptions) shorten(changed func(string) bool) {
	c := &o.cfg
	if !changed("for") {
		c.For = time.Second
	}
	if !changed("try") {
		c.Try = 150 * time.Millisecond
	}
	if !changed("again") {
		c.Again = quickAgain
	}
	if !changed("sandboxes") {
		c.Sandboxes = []int{1, 100, 1000}
	}
	if !changed("sessions") {
		c.Sessions = []int{1000, 100000}
	}
}
