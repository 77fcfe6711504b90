// Command sallyport-sidecar is the sidecar in function workers: one process per
// worker carries the packets of its sandboxes into their networks.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/cmd/group"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/allowance"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/console"
	"github.com/sallyport-net/sallyport/sidecar"
	"github.com/sallyport-net/sallyport/sidecar/confine"
	"github.com/sallyport-net/sallyport/tunnel"
)

// version is set by the linker.
var version = "dev"

// socketVariable names the sidecar's socket for exec and status, as --socket does.
const socketVariable = "SALLYPORT_SIDECAR_SOCKET"

const defaultSocket = "/run/sallyport/sidecar.sock"

// socketSetting is where the sidecar serves as long as --socket says nothing else.
func socketSetting() string { return cmp.Or(os.Getenv(socketVariable), defaultSocket) }

// exit is the end of a command that ran: its code, and nothing to say.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	if len(os.Args) > 2 && os.Args[1] == confine.Subcommand {
		os.Exit(confine.Enter(os.Args[3:])) // behind the "--"
	}
	os.Exit(execute(os.Args[1:]))
}

// execute runs a subcommand and returns the program's exit code.
func execute(args []string) int {
	root := command()
	root.SetArgs(args)
	ran, err := root.ExecuteC()
	var code exit
	if errors.As(err, &code) {
		return int(code)
	}
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "sallyport-sidecar:", console.Clean(err.Error()))
	var failure *confine.Failure
	switch {
	case errors.As(err, &failure):
		return failure.Code
	case ran != nil && ran.Name() == "exec":
		return confine.ExitFailed // 1 would be taken for the command's own
	}
	return 1
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "sallyport-sidecar",
		Short:         "Carry the packets of a worker's sandboxes into their networks",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(runCommand(), execCommand(), attachCommand(), detachCommand(), statusCommand())
	group.Guard(root)
	return root
}

func runCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Serve this worker's sandboxes until SIGTERM",
		Long: `Serve this worker's sandboxes until SIGTERM, SIGINT or SIGHUP.

The sidecar needs no privilege, except to attach sandboxes in network namespaces of
others ("sallyport-sidecar attach"). Its WireGuard key is made in memory at each start.
Sandboxes ask for their attachment at a unix socket; "sallyport-sidecar exec" and
"attach" do that. When the sidecar ends, what still runs in sandboxes has no network left.`,
		Example: "  sallyport-sidecar run --config /etc/sallyport/sallyport-sidecar.yaml",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return run(file) },
	}
	cmd.Flags().StringVar(&file, "config", "", "the sidecar's configuration `FILE` (needed)")
	if err := cmd.MarkFlagRequired("config"); err != nil {
		panic(err) // the flag is defined one line above
	}
	return cmd
}

// run serves with the settings of a file until a signal comes.
func run(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("open the configuration: %w", err)
	}
	defer f.Close()
	c, err := config.ReadSidecar(file, f)
	if err != nil {
		return err
	}
	if err := keepMemory(); err != nil {
		return err
	}
	token, err := api.ReadTokenFile(c.TokenFile)
	if err != nil {
		return fmt.Errorf("token_file of %s: %w", file, err)
	}
	client, err := api.NewClient(api.ClientConfig{Address: c.API, Token: token})
	if err != nil {
		return err
	}
	defer client.Close()
	others, err := newRegions(c, token)
	if err != nil {
		return err
	}
	defer others.close()
	log := logger(c.Log)
	here, operator := allowance.Here(), os.Getenv("GOMEMLIMIT")
	defer here.LimitMemory(operator)()
	here.Tell(log, operator)
	s, err := sidecar.New(sidecar.Config{
		Control: client, Region: c.Region, Socket: c.Socket, Hide: secrets(c), Admin: c.Admin.Listen,
		Regions: others, Failover: failoverSettings(c.Failover), Linger: c.Failover.Linger,
		NoOffload: !c.Offload, Sockets: tunnel.Offload{NoGSO: c.NoGSO, NoGRO: c.NoGRO}, Log: log,
	})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	return s.Run(ctx)
}

func logger(c config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // the configuration has checked it
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}

func execCommand() *cobra.Command {
	cfg := sidecar.ExecConfig{Messages: os.Stderr, Socket: socketSetting()}
	var kind, via string
	cmd := &cobra.Command{
		Use:   "exec --project P --environment E [--kind K] --runtime R [--proxy] -- CMD [ARG...]",
		Short: "Run a command as a sandbox of a project's environment",
		Long: `Run a command as a sandbox of a project's environment, without any privilege.

The command gets a network namespace that holds loopback and one interface, whose
far end is the sidecar; its name server is the network's gateway. It starts when a
packet has been through the tunnel and back, and it runs without capabilities.
Edge functions, and builds of environments that do not include them, bypass: they
run untouched, and are counted.

Where this machine forbids user namespaces, as many containers do, --proxy runs the
command in the machine's own network, with http_proxy, https_proxy and all_proxy set
to proxies of the sandbox's (HTTP, and SOCKS5 with UDP). That is not enforced: what
does not heed the variables leaves from this machine's address. So it is never done
unasked.

The exit code is the command's own, or 128 and the number of the signal that ended
it; 125 if the sandbox could not be made, 126 if the command cannot be run, 127 if
it was not found.`,
		Example: "  sallyport-sidecar exec --project prj_shop --environment production --runtime nodejs -- node server.js",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg.Kind, cfg.Command = spec.Kind(kind), args
			cfg.Interface = confine.Interface(via)
			code, err := sidecar.Exec(cfg)
			if err == nil && code != 0 {
				return exit(code)
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the command's name is the command's
	flags.StringVar(&cfg.Socket, "socket", cfg.Socket, "`PATH` of the sidecar's socket (or "+socketVariable+")")
	flags.StringVar(&via, "interface", "", "tun or veth; without it a TUN where the machine gives one, else a veth pair")
	flags.BoolVar(&cfg.Proxy, "proxy", false, "set variables for proxies instead of making namespaces; NOT enforced")
	flags.BoolVarP(&cfg.Verbose, "verbose", "v", false, "say on standard error what is done")
	whose(cmd, &cfg.Project, &cfg.Environment, &kind, &cfg.Runtime)
	return cmd
}

// whose adds the flags that say whose sandbox it is.
func whose(cmd *cobra.Command, project, environment, kind, runtime *string) {
	flags := cmd.Flags()
	flags.StringVar(project, "project", "", "`ID` of the project (needed)")
	flags.StringVar(environment, "environment", "", "`NAME` of its environment (needed)")
	flags.StringVar(kind, "kind", string(spec.KindFunction), "function or build")
	flags.StringVar(runtime, "runtime", "", "nodejs, python, go, ruby, edge or another (needed)")
	for _, name := range []string{"project", "environment", "runtime"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flags are defined above
		}
	}
}
