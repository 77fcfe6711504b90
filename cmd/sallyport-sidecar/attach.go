package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/console"
	"github.com/sallyport-net/sallyport/sidecar"
)

func attachCommand() *cobra.Command {
	cfg := sidecar.AttachConfig{Socket: socketSetting()}
	n := &cfg.Namespace
	var kind, output string
	owner := -1
	cmd := &cobra.Command{
		Use:   "attach --netns PATH|--pid N --project P --environment E [--kind K] --runtime R [--ethernet veth|tap]",
		Short: "Attach a network namespace of a runtime's as a sandbox",
		Long: `Attach a network namespace as a sandbox of a project's environment: the sidecar makes
an interface there, with address and routes, and refuses what would leave another way.

When the command returns, packets have been through the tunnel and back, so that the
workload can be started; until then nothing gets out. The sandbox lives on without
this command, until "sallyport-sidecar detach ID", or until the namespace, its
interface or the process of --pid ends. When the sidecar ends, in whatever way, the
interface goes, and everything is refused again; a sidecar that starts anew does not
know the sandbox: attach it again.

The interface is a TUN, of which kernels make some 50 a second. --ethernet veth makes a veth pair, with a gateway and its
permanent neighbour entry, for runtimes that take an Ethernet over (gVisor), and
for who attaches many at a time.
--ethernet tap makes a TAP that a virtual machine's monitor opens by its name
(Firecracker); its guest must be given what the answer says: address, gateway, MTU,
and the MAC, without which nothing of it passes.

The sidecar must run with CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW; where it does
not, "sallyport-sidecar exec" starts commands without. It sees paths and processes
as it does, not as this command does. The namespace may have no link but loopback.

Edge functions, and builds of environments that do not include them, bypass: they get
no interface here, and are counted.`,
		Example: `  ip netns add web1
  sallyport-sidecar attach --netns /run/netns/web1 --resolv-conf /etc/netns/web1/resolv.conf \
    --project prj_shop --environment production --runtime nodejs
  ip netns exec web1 node server.js`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(output); err != nil {
				return err
			}
			if (n.Path == "") == (n.PID == 0) {
				return errors.New("name the sandbox's network namespace by --netns or by --pid")
			}
			if cmd.Flags().Changed("owner") {
				n.Owner = &owner
			}
			cfg.Kind = spec.Kind(kind)
			out, err := sidecar.Attach(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if output == "json" {
				return console.JSON(cmd.OutOrStdout(), out)
			}
			return printAttached(cmd.OutOrStdout(), out)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.Socket, "socket", cfg.Socket, "`PATH` of the sidecar's socket (or "+socketVariable+")")
	flags.StringVar(&n.Path, "netns", "", "`PATH` of the network namespace, such as /run/netns/NAME")
	flags.IntVar(&n.PID, "pid", 0, "`ID` of a process in the network namespace, with which the sandbox ends")
	flags.StringVar(&n.Ethernet, "ethernet", "", "veth or tap; without it the interface is a TUN")
	flags.StringVar(&n.Link, "link", "", "`NAME` of the interface (tun0, eth0 or tap0)")
	flags.IntVar(&owner, "owner", -1, "`ID` of the user who may open the TAP, besides root")
	flags.BoolVar(&n.OtherLinks, "allow-links", false, "allow links that the namespace has already; what goes by them is NOT in the tunnel")
	flags.StringVar(&n.ResolvConf, "resolv-conf", "", "`PATH` of a file that shall name the network's name servers")
	flags.StringVar(&output, "output", "table", "`FORMAT` of what is printed: table or json")
	whose(cmd, &cfg.Project, &cfg.Environment, &kind, &cfg.Runtime)
	return cmd
}

// printAttached prints what a sandbox got, one thing to a line.
func printAttached(w io.Writer, a sidecar.Attached) error {
	t := &console.Table{}
	t.Row("ID", a.ID)
	if a.Bypass != "" {
		t.Row("BYPASS", a.Bypass)
		return console.PrintAll(w, t)
	}
	var servers []string
	for _, s := range a.DNS {
		servers = append(servers, s.String())
	}
	t.Row("NETWORK", a.Network)
	t.Row("ADDRESS", a.Inner)
	t.Row("DNS", strings.Join(servers, ", "))
	t.Row("MTU", a.MTU)
	if i := a.Interface; i != nil {
		t.Row("INTERFACE", fmt.Sprintf("%s (%s)", i.Name, i.Kind))
		t.Row("CIDR", i.CIDR)
		if i.Gateway.IsValid() {
			t.Row("MAC", net.HardwareAddr(i.MAC))
			t.Row("GATEWAY", fmt.Sprintf("%v (%v)", i.Gateway, net.HardwareAddr(i.GatewayMAC)))
		}
	}
	if p := a.Passive; p.Network != "" {
		t.Row("PASSIVE", fmt.Sprintf("%s in region %s: %s", p.Network, p.Region, p.State))
	}
	return console.PrintAll(w, t)
}

func detachCommand() *cobra.Command {
	socket := socketSetting()
	cmd := &cobra.Command{
		Use:     "detach ID...",
		Short:   "Detach sandboxes",
		Long:    `Detach sandboxes, and return when their interfaces and attachments are gone.`,
		Example: "  sallyport-sidecar detach att-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			var errs []error
			for _, id := range args {
				errs = append(errs, sidecar.Detach(ctx, socket, id))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringVar(&socket, "socket", socket, "`PATH` of the sidecar's socket (or "+socketVariable+")")
	return cmd
}

// checkFormat says what is wrong with the name of an output format.
func checkFormat(output string) error {
	if output != "table" && output != "json" {
		return fmt.Errorf("--output: there is no format %q; use table or json", output)
	}
	return nil
}
