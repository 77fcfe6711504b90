package main

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// Programs that run another without something that it may need.
var (
	withoutTUN   = []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev/net && exec "$0" "$@"`}
	withoutAdmin = []string{"setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"}
	withoutRaw   = []string{"setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"}
)

// tunName is the interface of a network, as docs/operations.md promises it.
func tunName(network string) string {
	sum := sha256.Sum256([]byte(network))
	return "spt-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:11])
}

// refusal is a host on which a gateway cannot work.
type refusal struct {
	name, config  string
	run           []string // runs the program
	before, after string   // commands of a shell
	want          []string // what the daemon says
	seen          bool     // by check --host, too, which says the first of it
}

// otherLink makes an interface besides eth0, and takes it away.
const (
	otherLink   = "ip link add other type veth peer name far && ip link set far up && ip link set other up && "
	noOtherLink = " ip link delete other"
)

func refusals(good, sockets, hook string) []refusal {
	const instead = "`uplink: sockets`"
	return []refusal{
		{"no /dev/net/tun", good, withoutTUN, "", "", []string{"/dev/net/tun", instead}, true},
		{"no privilege", good, withoutAdmin, "", "", []string{"CAP_NET_ADMIN", instead}, true},
		{"no privilege to announce", good + "tun: {interface: eth0, announce: arp}\n", withoutRaw, "", "", []string{"CAP_NET_RAW"}, true},
		{"address on the host", good, nil, "ip address add 203.0.113.5/32 dev lo", "ip address del 203.0.113.5/32 dev lo",
			[]string{"203.0.113.5", "interface lo", instead}, true},
		{"no forwarding", good, nil, "sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1",
			[]string{"sysctl -w net.ipv4.ip_forward=1", "eth0", instead}, true},
		{"strict rp_filter", good + "tun: {interface: other}\n", nil,
			otherLink + "sysctl -qw net.ipv4.conf.other.rp_filter=1", noOtherLink,
			[]string{"rp_filter=2", "other", instead}, true},
		{"interface missing", good + "tun: {interface: eth7, next_hop: 198.51.100.17}\n", nil, "", "",
			[]string{"eth7", "no such", instead}, true},
		{"another's route", good, nil, "ip route add 203.0.113.5/32 dev eth0", "ip route del 203.0.113.5/32 dev eth0",
			[]string{"203.0.113.5", "not ours", "ip route show"}, false},
		{"another's table", good + "tun: {interface: eth0, next_hop: 198.51.100.17}\n", nil,
			"ip route add default via 198.51.100.17 dev eth0 table 8300", "ip route flush table 8300",
			[]string{"not ours", "ip route show table 8300"}, false},
		{"another's rule first", good + "tun: {interface: eth0, next_hop: 198.51.100.17}\n", nil,
			otherLink + "ip route add default dev other table 99 && ip rule add from 203.0.113.0/28 lookup 99 priority 100",
			"ip rule del priority 100 &&" + noOtherLink,
			[]string{"other", "priority 8300", "ip rule"}, false},
		{"another's interface", good, nil, "ip link add " + tunName("net-globex") + " type veth peer name far", "ip link del " + tunName("net-globex"),
			[]string{"there already", "ip link delete " + tunName("net-globex")}, false},
		{"another's TUN", good, nil, "ip tuntap add mode tun vnet_hdr " + tunName("net-globex"), "ip link del " + tunName("net-globex"),
			[]string{"there already", "ip link delete " + tunName("net-globex")}, false},
		{"hook missing", good + "tun: {hook: /no/such/hook}\n", nil, "", "", []string{"/no/such/hook", "tun.hook", "no such file"}, true},
		{"hook fails", good + "tun: {hook: /bin/false}\n", nil, "", "", []string{"tun.hook", "/bin/false", "exit status 1"}, false},
		{"hook hangs", good + "tun: {hook: " + hook + ", hook_timeout: 300ms}\n", nil, "", "", []string{"tun.hook", "longer than tun.hook_timeout, 300ms", "waiting for a router"}, false},
		{"no right to add addresses", sockets + "sockets: {add_addresses_to: lo}\n", withoutAdmin, "", "", []string{"CAP_NET_ADMIN", "add_addresses_to"}, true},
		{"interface for addresses missing", sockets + "sockets: {add_addresses_to: eth7}\n", nil, "", "", []string{"eth7", "no such link"}, true},
	}
}

// tunRefusals starts a gateway where it cannot work: it says what is in the way, and
// leaves the host as it was.
func tunRefusals(t *testing.T, w *world, before string) {
	program := filepath.Join(w.bin, "sallyportd")
	hook := w.write("hook", "#!/bin/sh\necho waiting for a router; sleep 60\n")
	if err := os.Chmod(hook, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range refusals(netnsDaemon+byTun.settings(), netnsDaemon, hook) {
		t.Run(c.name, func(t *testing.T) {
			if c.before != "" {
				toolOn(t, w.iad1, "sh", "-c", c.before)
			}
			run := append(slices.Clone(c.run), program)
			config := w.write("refused.yaml", c.config)
			w.refuses(t, append(run, "run", "--config", config), c.want...)
			if c.seen {
				w.refuses(t, append(run, "check", "--host", "--config", config), c.want[0])
			}
			if c.after != "" {
				toolOn(t, w.iad1, "sh", "-c", c.after)
			}
			sameStack(t, w.iad1, before)
		})
	}
	good := w.write("refused.yaml", netnsDaemon+byTun.settings())
	if out := toolOn(t, w.iad1, program, "check", "--host", "--config", good); !strings.Contains(out, "good") || !strings.Contains(out, `msg="WireGuard sockets" gso=`) {
		t.Errorf("of a host on which nothing is missing check says %q", out)
	}
}

// refuses runs a program on the gateway's host that must end by itself, with an error.
func (w *world) refuses(t *testing.T, argv []string, want ...string) {
	t.Helper()
	start := len(w.said("refused"))
	d := w.run(w.iad1, "refused", argv[0], argv[1:]...)
	select {
	case <-d.ended:
	case <-time.After(10 * time.Second):
		d.end(t, syscall.SIGKILL)
		t.Fatalf("%v goes on: %s", argv, w.said("refused")[start:])
	}
	_, said, ok := strings.Cut("\n"+w.said("refused")[start:], "\nsallyportd: ")
	if code := d.cmd.ProcessState.ExitCode(); code != 1 || !ok {
		t.Errorf("%v ends with %d and %q", argv, code, w.said("refused")[start:])
	}
	for _, text := range want {
		if !strings.Contains(said, text) {
			t.Errorf("%v says %q; want %q in it", argv, said, text)
		}
	}
}

// secondGateway starts another gateway on the host of one that runs: the one that runs
// is not disturbed, whatever the other would do to the host.
func secondGateway(t *testing.T, w *world) {
	before := stack(t, w.iad1)
	program := filepath.Join(w.bin, "sallyportd")
	for _, settings := range []string{byTun.settings(), "sockets: {add_addresses_to: lo}\n"} {
		w.refuses(t, []string{program, "run", "--config", w.write("other.yaml", otherDaemon()+settings)}, "another sallyportd on this host", "`uplink: sockets`")
		sameStack(t, w.iad1, before)
	}
	toolOn(t, w.iad1, program, "check", "--host", "--config", filepath.Join(w.dir, "sallyportd.yaml"))
	sameStack(t, w.iad1, before)
}

// otherDaemon is the configuration of another daemon on the same host, by sockets.
func otherDaemon() string {
	return strings.NewReplacer("127.0.0.1:9469", "127.0.0.1:9479", "run/api.sock", "run/other.sock", "51820-51899", "51900-51979",
		"secret_file: secret", "secret_file: other-secret\nstate_file: other-state").Replace(netnsDaemon)
}

// watchARP lists the ARP on the hub's end of a cable. What it returns waits until an
// address was announced there, and asked for and answered.
func (g *ground) watchARP(link string) func(a netip.Addr, mac net.HardwareAddr) {
	g.t.Helper()
	g.run(g.hub, "tcpdump", "tcpdump", "-l", "-n", "-i", link, "arp")
	g.awaitLog("tcpdump", 0, "listening on")
	return func(a netip.Addr, mac net.HardwareAddr) {
		g.t.Helper()
		at := regexp.QuoteMeta(a.String())
		for _, want := range []string{
			fmt.Sprintf(`Announcement %s,|who-has %s .*tell %s,`, at, at, at),
			fmt.Sprintf(`Reply %s is-at %v,`, at, mac),
		} {
			line := regexp.MustCompile(want)
			eventually(g.t, 10*time.Second, "tcpdump shows "+want, func() error {
				if said := g.said("tcpdump"); !line.MatchString(said) {
					return fmt.Errorf("it shows %s", said)
				}
				return nil
			})
		}
	}
}

// asUnit is what runs a program with what a drop-in of deploy/systemd leaves it: a user
// who is not root, some capabilities, and /proc/sys read-only. In a user namespace
// there is but one user, and it runs as that.
func (g *ground) asUnit(capabilities string) []string {
	g.t.Helper()
	if netlab.Inside() {
		return nil
	}
	const nobody = 65534
	err := filepath.WalkDir(g.dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	})
	if err := errors.Join(err, os.Chmod(filepath.Dir(g.dir), 0o755)); err != nil {
		g.t.Fatal(err)
	}
	const prepare = `mount -t tmpfs -o mode=755 none /dev/net && mknod -m 666 /dev/net/tun c 10 200 &&
		mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$0" "$@"`
	caps := "-all," + capabilities
	return []string{"unshare", "--mount", "sh", "-c", prepare,
		"setpriv", "--reuid", fmt.Sprint(nobody), "--regid", fmt.Sprint(nobody), "--clear-groups", "--no-new-privs",
		"--inh-caps=" + caps, "--ambient-caps=" + caps, "--bounding-set=" + caps}
}

// startGatewayAsUnit starts the gateway as sallyportd.service does with tun.conf.
func (w *world) startGatewayAsUnit() {
	w.t.Helper()
	argv := append(w.asUnit("+net_admin,+net_raw"), filepath.Join(w.bin, "sallyportd"), "run", "--config", filepath.Join(w.dir, "sallyportd.yaml"))
	w.gateway = w.run(w.iad1, "sallyportd", argv[0], argv[1:]...)
}

// TestTunReload: networks that are taken out and put in while the gateway runs take what is
// theirs with them, and nothing of the others'; the hook hears of each address once.
func TestTunReload(t *testing.T) {
	requireTun(t)
	w := newWorld(t, byTun)
	hook := w.write("hook", "#!/bin/sh\necho \"$SALLYPORT_ACTION $SALLYPORT_ADDRESS $SALLYPORT_NETWORK\" >> $0.log\n")
	if err := os.Chmod(hook, 0o700); err != nil {
		t.Fatal(err)
	}
	w.write("sallyportd.yaml", netnsDaemon+byTun.settings()+"tun: {hook: hook}\n")
	before := stack(t, w.iad1)
	w.up()
	b := w.sandbox(t, acmeFunction)
	w.startLoad(t, b, originAddr)
	whole := indexless(stack(t, w.iad1))
	reload := func(state string, routes int) {
		t.Helper()
		w.write("state.yaml", state)
		if err := w.gateway.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, fmt.Sprintf("%d routes are there", routes), func() error {
			if p := ofGateway(t, w.iad1); len(p.Routes) != routes {
				return fmt.Errorf("there are %v", p)
			}
			return nil
		})
	}
	i := strings.Index(netnsState, "  - {id: net-quiet")
	j := i + strings.Index(netnsState[i:], "\n") + 1
	reload(strings.Replace(netnsState[:i]+netnsState[j:], "active: [net-quiet]", "active: [net-globex]", 1), 8)
	if p := ofGateway(t, w.iad1).String(); strings.Contains(p, quietPair[0].String()) || !strings.Contains(p, globexPair[0].String()) {
		t.Errorf("without net-quiet there are %s", p)
	}
	reload(netnsState, 12)
	w.awaitGateway()
	if again := indexless(stack(t, w.iad1)); again != whole {
		t.Errorf("with net-quiet back the network stack is\n%s\nand was\n%s", again, whole)
	}
	if r := b.load(t); r.Failed != 0 || r.Ended != "" {
		t.Errorf("a network that was not touched suffered: %+v", r)
	}

	// After a crash the addresses are added again, and those that nobody wants any more taken back.
	w.awaitMemory()
	w.gateway.end(t, syscall.SIGKILL)
	w.write("state.yaml", strings.NewReplacer("203.0.113.6, 203.0.113.7", "203.0.113.8, 203.0.113.9").Replace(netnsState))
	w.startGateway()
	w.awaitGateway()
	eventually(t, 10*time.Second, "the hook hears of the new pair", func() error {
		if text, err := os.ReadFile(hook + ".log"); err != nil || !strings.Contains(string(text), "add 203.0.113.9 net-quiet") {
			return fmt.Errorf("it has heard %q, %w", text, err)
		}
		return nil
	})
	w.withdraw()
	w.gateway.end(t, syscall.SIGTERM)
	sameStack(t, w.iad1, before)
	judgeHook(t, hook+".log")
}

// judgeHook holds what the hook was told against what became of the networks: each address
// was added at least so often, and the last word about each is that it is taken back.
func judgeHook(t *testing.T, name string) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	added, last := map[string]int{}, map[string]string{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		// What a crash left has no network, where it came after the last state file.
		if left := len(f) == 2 && f[0] == "del"; len(f) != 3 && !left {
			t.Fatalf("the hook was told %q", line)
		}
		if last[f[1]] = f[0]; f[0] == "add" {
			added[f[1]+" "+f[2]]++
		}
	}
	want := map[string]int{"203.0.113.8 net-quiet": 1, "203.0.113.9 net-quiet": 1}
	for network, pair := range map[string][]netip.Addr{"net-acme": acmePair, "net-globex": globexPair, "net-quiet": quietPair} {
		for _, a := range pair {
			want[a.String()+" "+network] = 2
		}
	}
	for who, n := range want {
		if a, _, _ := strings.Cut(who, " "); added[who] < n || last[a] != "del" {
			t.Errorf("the hook was told %d times to add %s, want %d, and of it at last %q", added[who], who, n, last[a])
		}
	}
	if len(added) != len(want) || t.Failed() {
		t.Errorf("the hook was told\n%s", text)
	}
}

// attachedAsUnit attaches a namespace by the sidecar as sallyport-sidecar.service runs it with
// attach.conf, each way, and takes it back.
func attachedAsUnit(t *testing.T, w *world, holder int, attach func(...string) (string, error), same func()) {
	if netlab.Inside() {
		netlab.NotRun(t, "a user namespace has but one user")
	}
	argv := append(w.asUnit("+sys_admin,+net_admin,+net_raw,+sys_ptrace"), filepath.Join(w.bin, "sallyport-sidecar"), "run", "--config", filepath.Join(w.dir, "sidecar.yaml"))
	w.sidecar = w.run(w.worker, "sallyport-sidecar", argv[0], argv[1:]...)
	w.awaitSidecar()
	for _, how := range [][]string{{"--pid", fmt.Sprint(holder)}, {"--netns", fmt.Sprintf("/proc/%d/ns/net", holder), "--ethernet", "veth"}} {
		out, err := attach(how...)
		if err != nil || !strings.Contains(out, "10.20.") {
			t.Errorf("attach %v says %q, %v", how, out, err)
			continue
		}
		id := strings.Fields(out)[1]
		if out, err := saidBy(w.worker, filepath.Join(w.bin, "sallyport-sidecar"), "detach", "--socket", w.socket, id); err != nil {
			t.Errorf("detach says %q, %v", out, err)
		}
		same()
	}
	w.sidecar.end(t, syscall.SIGTERM)
}

// TestAttachRefused: a sidecar that cannot make interfaces says what is missing and what does
// without, and leaves the sandbox's namespace as it was.
func TestAttachRefused(t *testing.T) {
	w := newWorld(t, bySockets)
	w.mayBeSilent = true
	w.startGateway()
	w.awaitGateway()
	box := w.lab.Namespace("box")
	program := filepath.Join(w.bin, "sallyport-sidecar")
	holder := w.run(box, "holder", "sleep", "600")
	defer holder.end(t, syscall.SIGKILL)
	before := stack(t, box)
	attach := func(how ...string) (string, error) {
		return saidBy(w.worker, append([]string{program, "attach", "--socket", w.socket, "--project", "shop", "--environment", "production", "--runtime", "nodejs"}, how...)...)
	}
	for _, c := range []struct {
		name, ethernet string
		run            []string
		want           []string
	}{
		{"no /dev/net/tun", "", withoutTUN, []string{"/dev/net/tun", "--ethernet veth", "sallyport-sidecar exec"}},
		{"no CAP_NET_ADMIN", "", withoutAdmin, []string{"CAP_NET_ADMIN", "sallyport-sidecar exec"}},
		{"no CAP_NET_ADMIN for a veth pair", "veth", withoutAdmin, []string{"CAP_NET_ADMIN", "sallyport-sidecar exec"}},
		{"no CAP_SYS_ADMIN", "", []string{"setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"}, []string{"CAP_SYS_ADMIN", "sallyport-sidecar exec"}},
		{"gone", "", nil, []string{"no process"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			run := append(slices.Clone(c.run), program, "run", "--config", filepath.Join(w.dir, "sidecar.yaml"))
			w.sidecar = w.run(w.worker, "sallyport-sidecar", run[0], run[1:]...)
			w.awaitSidecar()
			pid := holder.cmd.Process.Pid
			if c.name == "gone" {
				pid = 1 << 22
			}
			out, err := attach("--pid", fmt.Sprint(pid), "--ethernet", c.ethernet)
			for _, want := range c.want {
				if err == nil || !strings.Contains(out, want) {
					t.Errorf("it says %q, %v; want %q in it", out, err, want)
				}
			}
			if list, err := w.api.Attachments(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("attached are %+v, %v", list, err)
			}
			w.sidecar.end(t, syscall.SIGTERM)
			sameStack(t, box, before)
		})
	}
	t.Run("as the unit", func(t *testing.T) {
		attachedAsUnit(t, w, holder.cmd.Process.Pid, attach, func() {
			t.Helper()
			// Who was attached once is refused everything afterwards.
			if left := strings.Replace(stack(t, box), "unreachable default metric 1048576 \n", "", 1); left != before {
				t.Errorf("the detached namespace has\n%s\nand had\n%s", left, before)
			}
		})
	})
}
