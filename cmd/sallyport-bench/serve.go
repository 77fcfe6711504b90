package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/bench/far"
	"github.com/sallyport-net/sallyport/internal/console"
)

// serveOptions are those of the command line.
type serveOptions struct {
	listen   string
	prefixes []string
	keyFile  string
	limits   far.Limits
	sockets  int
}

// serveCommand is the far side of a load.
func serveCommand(out io.Writer) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve --listen ADDRESS:PORT --key-file FILE",
		Short: "Take in, count, answer and send back the packets of a load, beyond the gateway",
		Long: `Take in, count, answer and send back the packets of a load, on a machine beyond the
gateway, or on one in its place. It needs no privilege.

Over UDP it counts, by flow and by source address, what comes from sandboxes; it
answers echoes with the same bytes; on demand it sends packets at a steady rate to
flows that asked for them. Over TCP it counts bytes, sends bytes, or answers a
request and closes. All of that it does only for runs that were opened with the key,
which the machine that makes the load has, too: whatever makes it send more than it
gets is sealed with the key and valid for minutes. Both machines' clocks must agree
to 2 minutes.

To have the load go to many destinations, route a prefix to this machine, and on it
to itself, and name it:

  ip route add local 198.18.0.0/22 dev lo
  sallyport-bench serve --listen 192.0.2.80:9000 --prefix 198.18.0.0/22 ...

Each address answers for itself. Give --listen 0.0.0.0:PORT to answer on whatever
address of the machine is asked.

It ends with SIGTERM or Ctrl-C, and says what came. The exit code is not 0 if it
could not listen, or not go on.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), &o, out) },
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "", "listen on `ADDRESS:PORT`, UDP and TCP")
	f.StringSliceVar(&o.prefixes, "prefix", nil, "answer on the addresses of these `PREFIXES`, too")
	f.StringVar(&o.keyFile, "key-file", "", "read the key that the load's machine has, too, from `FILE`")
	f.Uint64Var(&o.limits.Rate, "max-rate", far.DefaultRate, "send at most `N` packets per second for each run")
	f.DurationVar(&o.limits.For, "max-time", far.DefaultFor, "send at most for so long by one order")
	f.IntVar(&o.sockets, "sockets", 0, "receive by `N` sockets and goroutines (default: one for each two cores, up to 4)")
	return cmd
}

func (o *serveOptions) config() (far.Config, error) {
	cfg := far.Config{Limits: o.limits, Sockets: o.sockets}
	if o.listen == "" {
		return cfg, errors.New("--listen is missing: give it an address of this machine and a port, such as 192.0.2.80:9000")
	}
	var err error
	if cfg.Listen, err = netip.ParseAddrPort(o.listen); err != nil {
		return cfg, fmt.Errorf("--listen %s is no address and port such as 192.0.2.80:9000: %w", o.listen, err)
	}
	for _, text := range o.prefixes {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return cfg, fmt.Errorf("--prefix %s is none such as 198.18.0.0/22: %w", text, err)
		}
		if p != p.Masked() {
			return cfg, fmt.Errorf("--prefix %v has bits behind its length: %v is meant?", p, p.Masked())
		}
		cfg.Prefixes = append(cfg.Prefixes, p)
	}
	cfg.Key, err = readKey(o.keyFile)
	return cfg, err
}

// serve works until the context ends.
func serve(ctx context.Context, o *serveOptions, out io.Writer) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	s, err := far.New(cfg)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Listening on %v, UDP and TCP, until SIGTERM or Ctrl-C.\n", s.Addr())
	for _, p := range cfg.Prefixes {
		fmt.Fprintf(out, "Addresses of %v answer, too, if they are routed here: ip route add local %v dev lo\n", p, p)
	}
	const enough = 4 << 20
	if b := s.Buffer(); b < enough {
		fmt.Fprintf(out, "Only %d KiB may wait in a socket: raise net.core.rmem_max to %d for rates beyond some 100,000 packets/s.\n", b>>10, enough)
	}
	select {
	case <-ctx.Done():
	case <-s.Failed():
	}
	err = s.Close()
	return errors.Join(err, summary(out, s.Counts()))
}

// summary prints what came, and why things were refused.
func summary(out io.Writer, n far.Counts) error {
	var t, refused console.Table
	t.Row("COUNTED", "NUMBER")
	for _, r := range []struct {
		what string
		n    uint64
	}{
		{"runs", uint64(n.Runs)}, {"datagrams", n.Datagrams}, {"answered", n.Answered}, {"sent by order", n.Generated},
		{"dropped by full sockets", n.Dropped}, {"not sent by the kernel", n.Unsent},
		{"connections", n.Connections}, {"requests answered", n.Asked}, {"bytes taken in", n.Sunk}, {"bytes sent", n.Sourced},
	} {
		t.Row(r.what, r.n)
	}
	refused.Row("REFUSED", "NUMBER")
	for i, count := range n.Refused {
		if count > 0 {
			refused.Row(far.Refusal(i), count)
		}
	}
	return console.PrintAll(out, &t, &refused)
}
