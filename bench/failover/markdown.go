package failover

import (
	"fmt"
	"strings"
	"time"
)

// markdown is the report as a document.
func (r *report) markdown() string {
	var b strings.Builder
	put := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	put("# Failover, measured\n\n")
	put("Written by `make failover-report` on %s; changes here are lost. Version %s.\n\n", r.Date, r.Version)
	put("- Command: `%s`\n", r.Command)
	put("- Machine: %s, %d cores, %d MiB, Linux %s, %s. The load average was %.1f when it began; of the cores' time\n"+
		"  %.1f %% was stolen by the hypervisor. It took %v.\n\n",
		r.Machine.CPU, r.Machine.Cores, r.Machine.Memory, r.Machine.Kernel, r.Machine.Go, r.Load1, 100*r.Stolen, r.Took.Round(time.Second))
	put("## Result\n\n")
	r.writeResult(&b)
	put("\n%s", methodText())
	put("\n## Every run\n\n")
	put("Time from the cut to the first answered new connection, in ms, in the order of the runs.\n\n")
	for _, f := range r.Faults {
		put("- %s:", f.Fault)
		for _, one := range r.Runs {
			if one.Fault == f.Fault {
				put(" %s", strings.TrimSuffix(millis(one.First), " ms"))
			}
		}
		put("\n")
	}
	return b.String()
}

// writeResult writes the figures, for the document and for the terminal.
func (r *report) writeResult(b *strings.Builder) {
	put := func(format string, args ...any) { fmt.Fprintf(b, format, args...) }
	put("Times from the cut until a new connection is answered, the idle open connection is reset, and the UDP flow is answered\n"+
		"again; and from the repair until a new connection goes by the active host again (hold %v, usually 60s).\n\n", holdTime)
	rows := [][]string{{"fault", "runs", "answered p50", "max", "reset p50", "max", "UDP p50", "max", "back p50", "max"}}
	for _, f := range append(append([]summary(nil), r.Faults...), r.All) {
		name := f.Fault
		if name == "" {
			name = "all"
		}
		rows = append(rows, []string{
			name, fmt.Sprint(f.Runs), millis(f.First.P50), millis(f.First.Max), millis(f.Reset.P50), millis(f.Reset.Max),
			millis(f.UDP.P50), millis(f.UDP.Max), millis(f.Back.P50), millis(f.Back.Max),
		})
	}
	writeTable(b, rows)
	put("\n")
	for _, f := range r.Faults {
		if f.First.P50 > targetP50 || f.First.Count < f.Runs {
			put("- %s: p50 %s; target <= %s: not met.\n", f.Fault, millis(f.First.P50), millis(targetP50))
		}
	}
	put("- New connections, all faults: p50 %s; target <= %s: %s.\n", millis(r.All.First.P50), millis(targetP50), met(r.All.First, r.All.First.P50, targetP50, r.All.Runs))
	put("- New connections, all faults: p99 %s; target <= %s: %s.\n", millis(r.All.First.P99), millis(targetP99), met(r.All.First, r.All.First.P99, targetP99, r.All.Runs))
	put("- Packets with a wrong source: %d of %d that left the gateway hosts and the worker", r.Wire.Wrong, r.Wire.Packets)
	if r.Wire.Incomplete == "" {
		put("; the captures missed none")
	}
	put(".\n")
	if l := r.Load; l != nil {
		put("- False switches in %.0f s of full load: %d. %d TCP streams moved %.0f Mbit/s out and %.0f Mbit/s back, the cores were %.0f %% busy (%.1f %% stolen); "+
			"the sidecar missed %d of %d probes; of %d new connections %d failed, the slowest took %s.\n",
			l.Seconds, l.Switches, l.Streams, l.megabits(l.Sent), l.megabits(l.Received), 100*l.Busy, 100*l.Stolen,
			l.Missed, l.Probes, l.Connections.Answered+l.Connections.Failed, l.Connections.Failed, millis(l.Connections.Longest))
	}
	for _, p := range r.Problems {
		put("- WRONG: %s.\n", p)
	}
}

// met says whether a target is.
func met(s spread, value, target time.Duration, runs int) string {
	if s.Count == runs && value <= target {
		return "met"
	}
	return "not met"
}

// writeTable writes a table whose columns are aligned, the numbers to the right.
func writeTable(b *strings.Builder, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			if i == 0 {
				fmt.Fprintf(b, "| %-*s |", widths[i], cell)
			} else {
				fmt.Fprintf(b, " %*s |", widths[i], cell)
			}
		}
		b.WriteString("\n")
		if n > 0 {
			continue
		}
		for i, w := range widths {
			if i == 0 {
				fmt.Fprintf(b, "| %s |", strings.Repeat("-", w))
			} else {
				fmt.Fprintf(b, " %s: |", strings.Repeat("-", w-1))
			}
		}
		b.WriteString("\n")
	}
}

// methodText says how it was measured, and what was not.
func methodText() string {
	return fmt.Sprintf(`## Method

The real programs run on one machine, in network namespaces: a worker with the sidecar and a sandbox; region iad1 with a
control plane and two gateway hosts, each of which holds one address of the pair; region cle1 with a control plane and one
gateway host that holds the passive pair; an origin that tells everyone their source. Each host has its own link to a hub.

- A program in the sandbox opens a new TCP connection to the origin every %v, up to %d at once, each with its own start. The
  first answer counts that came by another path than the lost one, to a connection opened after the cut. All processes read
  the same clock (CLOCK_MONOTONIC). The time begins before the fault is made: before the signal is sent, before the first
  packet is lost.
- It also holds a TCP connection on which nothing happens, and asks by UDP, from one port, every %v.
- SIGKILL and SIGSTOP strike the gateway's process. A blackhole loses every packet on the host's link, in both directions, at the
  far end: carrier and neighbours stay, no error comes back. "Region" is its control plane and both gateway hosts at once;
  with the blackhole, the control plane's process is stopped, because it has no link: its API is a unix socket.
- The faults take turns. The cut comes up to %v after everything is set up, at random, so that it meets every phase of the probes.
  Then all is restored, and the next run begins when the sidecar uses the active host again and the others answer.
- "Back" is the time from the repair, when what was killed has been started again and is ready, until a new connection leaves
  by the active host. A gateway writes who is attached to its state file within a second; one that is killed before waits
  until the worker calls it anew, which takes seconds.
- A percentile is the smallest value that so many percent of the runs do not exceed; of %d runs or fewer the p99 is the maximum.
- A wrong source is any packet that leaves a gateway host from an address that is neither one of the dedicated addresses that
  it holds nor, for the tunnels' datagrams, its own; likewise for the worker, which may send nothing but the tunnels'. Captures
  at the hub see every packet.
- The load is without a fault: %d TCP streams from %d sandboxes, half of them each way, as fast as they go. A false switch is any
  change of a path that the sidecar reports.

All settings are the defaults but those by which new flows return to the active host, so that runs can follow each other:
hold %v (default 60s), hold_jitter %v (default 30s), failbacks %d in %v (default 2 in 10m).

## What this does not say

- Nothing is far away: probes take well under a millisecond here. A probe counts as missed after 50 ms or four round trips,
  whichever is longer, so distances above 12 ms make detection slower.
- Neither a loss in one direction only, nor of the uplink alone, nor a fault under load is among the faults.
- Kernels and hosts do not crash here, only processes and links do. One machine's cores serve all of them.
- One worker and one network. How many sidecars at once come to a sibling, and how it bears them, was not measured.
`, measuredPace, maxOpening, askEvery, longestDwell, 99, 2*loaders*loaderStreams, loaders, holdTime, holdJitter, failbacks, failbackWindow)
}
