package archtest

// room is one row of the floor plan. It covers its subfolders, unless they have
// rows of their own.
type room struct {
	path string
	// may holds the rooms of ours that non-test files may import. "x/*" stands
	// for all rooms below x, "*" for all there are.
	may  []string
	pure bool
	why  string // the room may see no more: why not
}

// plan is the floor plan. What is absent is forbidden.
var plan = []room{
	{path: "internal/packet", pure: true,
		why: "what bytes mean depends on nothing but the bytes; all rooms on the packet path stand on this one"},
	{path: "internal/netstack",
		why: "it hides gVisor behind connections and a tun.Device; a stack that knew who uses it could not be shared by uplink, service and sidecar"},
	{path: "internal/netstack/snat",
		why: "gVisor's own NAT is a yardstick; it must owe nothing to what is measured beside it"},
	{path: "internal/hostnet",
		why: "it tells the kernel what a caller planned; plans come from rooms that know why, so it must not know them"},
	{path: "internal/tundev", may: []string{"internal/packet"},
		why: "a descriptor that carries packets is the same thing for gateway and sidecar; links and addresses are hostnet's"},
	{path: "internal/config", pure: true, may: []string{"control/spec", "nat", "policy"},
		why: "settings are read and validated without touching the machine; only the types that they fill may be seen, so that no setting acts while it is parsed"},
	{path: "internal/simnet", may: []string{"internal/packet"},
		why: "a simulated internet knows packets only; one that knew the code under test could agree with its mistakes"},
	{path: "internal/mmsg",
		why: "datagrams by the batch are the same system calls for whoever has a socket; what is in them, and who waits, is theirs"},
	{path: "internal/console",
		why: "how text gets onto a terminal depends on nothing that it tells; every program's commands may print by it"},
	{path: "internal/allowance",
		why: "what machine and control groups let a process have is the same question for every program; what to do with the answer is theirs"},
	{path: "internal/netlab", may: []string{"internal/hostnet"},
		why: "a laboratory of real namespaces serves every room's tests; one that imported a room would close a circle with them"},
	{path: "internal/archtest",
		why: "it judges the others by their text"},

	{path: "nat", pure: true, may: []string{"internal/packet"},
		why: "the state of one dedicated IP must be testable for months of simulated time and 10^7 packets; policy, uplink and control would bring locks and clocks"},
	{path: "policy", pure: true, may: []string{"internal/packet"},
		why: "a verdict depends on rules and packet alone; it must not see what the verdict is used for"},
	{path: "tunnel", may: []string{"internal/mmsg"},
		why: "keys, peers and a device's life; it takes any tun.Device, so it needs to know neither gateway nor sidecar, which both use it"},

	{path: "gateway/uplink", may: []string{"internal/packet", "internal/netstack", "internal/tundev", "internal/hostnet"},
		why: "the far side carries packets that are translated already; with nat or policy in sight it would start to decide"},
	{path: "gateway/service", may: []string{"internal/packet", "internal/netstack"},
		why: "what the gateway answers is reached by packets only; its queries leave like a sandbox's, through nat and uplink that it cannot bypass"},
	{path: "gateway/readout", pure: true,
		why: "what the admin listener answers is read by the CLI, which must not carry the gateway; one definition serves both"},
	{path: "gateway/natlog", may: []string{"control/spec"},
		why: "records outlive the process and are read by other programs; they must not depend on how the table is built"},
	{path: "gateway/conformance",
		why: "it holds tests alone: what the translator does is asked with the programs of others, from outside"},
	{path: "gateway", may: []string{"gateway/*", "nat", "policy", "tunnel", "control/spec", "internal/packet", "internal/config", "internal/hostnet"},
		why: "the shell wires the packet path; it follows desired state through an interface, not through control, so that the data plane goes on without it"},

	{path: "control/spec", pure: true,
		why: "the desired state and its rules are read by every program, the CLI included; they may bring nothing along"},
	{path: "control/api", may: []string{"control/spec"},
		why: "wire types and client are linked into the CLI and the sidecar, which must not carry the control plane's engine"},
	{path: "control", may: []string{"control/*", "policy", "internal/config"},
		why: "the control plane keeps state and never touches packets; it must not reach the gateway that follows it"},

	{path: "sidecar/failover", pure: true,
		why: "which gateway to use is a function of samples and a clock; only so can a year of failures be simulated"},
	{path: "sidecar", may: []string{"sidecar/failover", "tunnel", "control/spec", "control/api", "internal/packet", "internal/config", "internal/netstack", "internal/tundev", "internal/hostnet"},
		why: "the worker's side runs beside tenants; it holds no translator, no policy and no control plane"},

	{path: "bench/schedule", pure: true,
		why: "what is due follows from a rate and a clock's reading; sources ask for every batch, and tests in no time"},
	{path: "bench/histogram", pure: true,
		why: "what is counted comes from its caller; with a lock or a clock inside nobody could record a million times a second"},
	{path: "bench/traffic", may: []string{"bench/histogram", "bench/schedule", "bench/wire", "tunnel", "internal/packet"},
		why: "it sends and counts what it is told to; what gateways and rounds are is for scenarios to know"},
	{path: "bench/search", pure: true,
		why: "which rate passes, and which to try next, follows from what came of those before; one with a clock could not be tested in no time"},
	{path: "bench/machine",
		why: "where something is measured is read from the kernel; what it is measured for is its callers' business"},
	{path: "bench/progress",
		why: "what is going on is said in one way by all that measure"},
	{path: "bench/trial", may: []string{"bench/machine", "bench/progress", "bench/search", "bench/tcp", "bench/handshake", "bench/histogram"},
		why: "one attempt at a load is the same for all who measure; what they accept, and of which gateway, is theirs to say"},
	{path: "bench/handshake", pure: true, may: []string{"bench/schedule", "internal/packet"},
		why: "connections by the million are judged by simulated clocks and networks; a socket or a goroutine each would be what is measured"},
	{path: "bench/tcp", may: []string{"bench/handshake", "bench/histogram", "internal/packet", "internal/netstack", "internal/tundev"},
		why: "TCP of the harness's own runs over whatever carries packets; it knows neither gateways nor scenarios"},
	{path: "bench/chart", pure: true,
		why: "a picture is a function of its figures; golden files say so"},
	{path: "bench/wire", pure: true,
		why: "what harness and far side say to each other is bytes; fuzzed, and read without allocation"},
	{path: "bench/far", may: []string{"bench/schedule", "bench/wire", "internal/mmsg"},
		why: "the far side may run alone, on a customer's machine beyond the gateway; it knows nothing of what is measured"},
	{path: "bench", may: []string{"bench/*", "tunnel", "control/spec", "control/api", "internal/packet", "internal/netstack", "internal/netstack/snat", "internal/tundev", "internal/netlab", "internal/console"},
		why: "the harness measures programs from outside; linking gateway or nat would let it measure itself"},

	{path: "bench/report", pure: true, may: []string{"bench/chart"},
		why: "how the gateway stands against its targets is computed from what was measured; whoever measures writes the figures down and is not seen"},

	{path: "deploy",
		why: "what is deployed is files; its tests hold them against the repository as text"},

	{path: "cmd/group",
		why: "what a command that only holds others does with a word is one thing for all programs; it knows none of them"},
	{path: "cmd/sallyport", may: []string{"cmd/group", "internal/config", "internal/console", "control/spec", "control/api", "gateway/readout"},
		why: "the operator's CLI stays small and portable: it links neither gVisor, netlink nor etcd"},
	{path: "cmd/sallyportd", may: []string{"*"}, why: "a program wires what it needs"},
	{path: "cmd/sallyport-sidecar", may: []string{"*"}, why: "a program wires what it needs"},
	{path: "cmd/sallyport-bench", may: []string{"*"}, why: "a program wires what it needs"},
}

// outsider is a foreign module, and the only rooms that may import it; a room
// stands for its subfolders, too. Tests of other rooms must not, either.
type outsider struct {
	module string
	only   []string
	why    string
}

var outsiders = []outsider{
	{"gvisor.dev/gvisor", []string{"internal/netstack"},
		"gVisor's API changes with every commit; one room takes the blow"},
	{"golang.zx2c4.com/wireguard/tun/netstack", nil,
		"it is not batched, and brings gVisor in by the back door; use internal/netstack"},
	{"github.com/vishvananda/netlink", []string{"internal/hostnet"},
		"the kernel's state is changed by plans that can be undone and faked, in one room"},
	{"go.etcd.io", []string{"control", "cmd/sallyportd"},
		"the engine of the control plane is seen by the control plane only"},
	{"github.com/spf13/cobra", []string{"cmd"},
		"command lines are parsed in main; rooms take validated settings"},
	{"github.com/HdrHistogram", []string{"bench/histogram"},
		"ranks, exact extremes and what is too long are counted in one way by all that measure"},
	{"github.com/vbauerster/mpb", []string{"bench/progress"},
		"a terminal has one painter; rooms say what is going on"},
}

// neverLinked holds, by program, module prefixes that must not be linked even
// by way of other modules.
var neverLinked = map[string][]string{
	"cmd/sallyport": {"gvisor.dev/gvisor", "github.com/vishvananda/netlink", "go.etcd.io"},
}

// impure holds the imports that a pure package must not have, by prefix of the
// path, and why. The exceptions are exact.
var impure = map[string]string{
	"net":                          "sockets and resolvers; addresses are net/netip's",
	"os":                           "files, environment, processes; take an io.Reader or a value",
	"sync":                         "locks and atomics; the caller serialises",
	"log":                          "logging; return what happened",
	"syscall":                      "the kernel",
	"runtime":                      "the scheduler and the collector",
	"crypto/rand":                  "chance; take a seed",
	"math/rand":                    "chance; take a seed for a generator of math/rand/v2",
	"context":                      "waiting; a core never waits",
	"golang.org/x/sys":             "the kernel",
	"golang.org/x/sync":            "goroutines",
	"golang.org/x/net":             "sockets",
	"golang.zx2c4.com/wireguard":   "goroutines and sockets",
	"github.com/prometheus":        "metrics; return counters",
	"github.com/vishvananda/netns": "the kernel",
}

var impureExceptions = []string{"net/netip", "math/rand/v2"}

// pureRand holds what a pure package may use of math/rand/v2: generators that
// are seeded, not the functions that share the process's own.
var pureRand = []string{"New", "NewChaCha8", "NewPCG", "NewZipf", "Rand", "ChaCha8", "PCG", "Source", "Zipf"}

// impureTime holds the functions of package time that read a clock or wait.
var impureTime = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

// emptyNames are names that say nothing about what is inside.
var emptyNames = []string{"util", "utils", "common", "types", "helper", "helpers", "misc", "base", "shared"}

// Sizes beyond which a file or a constructor is hard to read.
const (
	maxLines       = 600
	maxConstructor = 4
)
