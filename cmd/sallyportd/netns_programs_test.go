package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// runner runs a program where its packets go through the gateway, and returns what it
// writes to standard output.
type runner func(name string, args ...string) (string, error)

// inSandbox runs programs each as a sandbox of its own on the worker.
func (g *ground) inSandbox(who subject) runner {
	return func(name string, args ...string) (string, error) {
		return g.outputOn(g.worker, filepath.Join(g.bin, "sallyport-sidecar"), append([]string{
			"exec", "--socket", g.socket, "--project", who.project, "--environment", who.environment,
			"--kind", string(who.kind), "--runtime", who.runtime, "--", name}, args...)...)
	}
}

// outputOn runs a program on a machine. Its error has what the program says of it.
func (g *ground) outputOn(n *netlab.Namespace, name string, args ...string) (string, error) {
	var out, problems strings.Builder
	cmd := exec.CommandContext(g.t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &out, &problems
	err := n.Run(cmd)
	if err != nil {
		err = fmt.Errorf("%w: %s%s", err, problems.String(), out.String()[:min(out.Len(), 2000)])
	}
	return out.String(), err
}

// merging has the link to iad1 carry single segments, and iad1 merge what arrives.
func (w *world) merging(t *testing.T) {
	t.Helper()
	for _, cmd := range []uint32{unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO} {
		offload(t, w.hub, "iad1", cmd, 0)
	}
	offload(t, w.iad1, "eth0", unix.ETHTOOL_SGRO, 1)
}

// offload switches an offload of a link, as ethtool(8) does.
func offload(t *testing.T, n *netlab.Namespace, link string, cmd, value uint32) {
	t.Helper()
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		request := [2]uint32{cmd, value}
		var r struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}
		copy(r.name[:], link)
		r.data = unsafe.Pointer(&request)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r))); errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		t.Fatalf("switch offload %#x of %s: %v", cmd, link, err)
	}
}

// kernelCount is a counter of a machine's kernel (proc_net_snmp(5)).
func kernelCount(t *testing.T, n *netlab.Namespace, protocol, name string) (count int) {
	t.Helper()
	var b []byte
	err := n.Do(func() (err error) {
		b, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if f[0] != protocol+":" {
			continue
		}
		if i := slices.Index(names, name); i > 0 && i < len(f) {
			if count, err = strconv.Atoi(f[i]); err == nil {
				return count
			}
		}
		names = f
	}
	t.Fatalf("the kernel does not count %s of %s: %s", name, protocol, b)
	return 0
}

// TestPrograms (R-12, U-14): what people run in sandboxes, many connections at once and both ways,
// by a link whose frames the kernel merges and merged ones that it cuts: all bytes
// arrive, few twice, and nothing is dropped for its size.
func TestPrograms(t *testing.T) { byEach(t, programsRun) }

func programsRun(t *testing.T, by uplinkKind) {
	requireStock(t, "iperf3")
	w := newWorld(t, by)
	w.merging(t)
	atGateway, err := w.iad1.Capture("eth0")
	if err != nil {
		t.Fatal(err)
	}
	w.up()
	newStockPeer(t, w)
	onLaptop := func(name string, args ...string) (string, error) { return w.outputOn(w.laptop, name, args...) }
	for _, c := range []struct {
		name string
		run  runner
	}{{"sandbox", w.inSandbox(acmeFunction)}, {"stock client", onLaptop}} {
		t.Run(c.name, func(t *testing.T) {
			t.Run("curl", func(t *testing.T) { w.curls(t, c.run) })
			t.Run("dig", func(t *testing.T) { w.digs(t, c.run) })
			t.Run("iperf3", func(t *testing.T) { w.iperfs(t, c.run) })
			t.Run("wrk", func(t *testing.T) { w.wrks(t, c.run) })
		})
	}
	text, err := askAdmin(w.iad1, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "sallyport_drops_total{") || strings.HasSuffix(line, " 0\n") {
			continue
		}
		t.Log(line)
		for _, reason := range []string{"too_big", "malformed", "fragment", "unreachable", "not_ipv4", "fragment_limit", "fragment_overlap"} {
			if strings.Contains(line, `reason="`+reason+`"`) {
				t.Errorf("dropped: %s", line)
			}
		}
	}
	for _, n := range []*netlab.Namespace{w.iad1, w.hub, w.laptop} {
		// Of what it forwards, that is what the next link's MTU did not let pass.
		if v := kernelCount(t, n, "Ip", "FragFails"); v != 0 {
			t.Errorf("%v refused %d packets as too big", n, v)
		}
	}
	merged := 0
	for _, p := range atGateway.Packets() {
		if !p.Out && p.Proto == unix.IPPROTO_TCP && p.Length > 1500 {
			merged++
		}
	}
	if merged == 0 {
		t.Error("the gateway's host merged nothing: the test shows less than it says")
	}
	t.Logf("%d merged frames came to the gateway", merged)
}

// curls carries a file each way.
func (w *world) curls(t *testing.T, run runner) {
	const size = 16 << 20
	url := "http://" + at(originAddr, portHTTP)
	out, err := run("curl", "-sS", "--max-time", "20", url+fmt.Sprintf("/give/%d", size))
	sum := sha256.Sum256([]byte(out))
	if err != nil || hex.EncodeToString(sum[:]) != noiseSum(size) {
		t.Errorf("of %d bytes %d came, or others: %v", size, len(out), err)
	}
	f, err := os.Create(filepath.Join(w.dir, "noise"))
	if err == nil {
		_, err = io.CopyN(f, newNoise(), size)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err = run("curl", "-sS", "--max-time", "20", "-T", f.Name(), url+"/sum")
	if err != nil || out != noiseSum(size) {
		t.Errorf("what arrived of %d bytes has the sum %q, %v", size, out, err)
	}
	out, err = run("curl", "-sS", "--max-time", "20", url+"/")
	from, bad := netip.ParseAddrPort(out)
	if err != nil || bad != nil || !slices.Contains(acmePair, from.Addr()) {
		t.Errorf("the origin saw %q, %v; want one of %v", out, err, acmePair)
	}
}

// digs asks the gateway, and the name server itself: by datagrams, one of which comes
// back in fragments, and by TCP.
func (w *world) digs(t *testing.T, run runner) {
	for _, c := range []struct {
		name  string
		flags []string
		want  int
	}{
		{"www.origin.example", []string{"@" + innerGateway.String()}, 1},
		{"www.origin.example", []string{"@" + innerGateway.String(), "+tcp"}, 1},
		{"big.origin.example", []string{"@" + innerGateway.String()}, bigNames},
		{"www.origin.example", []string{"@" + nameServer.String()}, 1},
		{"www.origin.example", []string{"@" + nameServer.String(), "+tcp"}, 1},
		{"big.origin.example", []string{"@" + nameServer.String(), fmt.Sprint("+bufsize=", bigAnswer), "+ignore"}, bigNames},
	} {
		out, err := run("dig", append([]string{"+short", "+time=3", "+tries=2", c.name}, c.flags...)...)
		if n := len(strings.Fields(out)); err != nil || n != c.want {
			t.Errorf("dig %s %s: %d answers, %v; want %d", c.name, c.flags, n, err, c.want)
		}
	}
	for _, name := range []string{"www.origin.example.", "big.origin.example."} {
		for _, q := range w.origin.asked.of(name) {
			if !slices.Contains(acmePair, q.from.Addr()) {
				t.Errorf("%v asked for %s", q.from, name)
			}
		}
	}
}

// iperfs carries four streams each way.
func (w *world) iperfs(t *testing.T, run runner) {
	// By sockets the streams end at the gateway: iperf3 stops when that has all, and
	// the rest is still on its way.
	const size, atLeast = 32 << 20, 4 << 20
	said := len(w.said("iperf3"))
	server := w.run(w.home, "iperf3", "iperf3", "-s", "-B", originAddr.String(), "-p", "5202", "--forceflush")
	defer func() {
		_ = server.cmd.Process.Kill()
		<-server.ended
	}()
	w.awaitLog("iperf3", said, "listening")
	for _, way := range [][]string{nil, {"--reverse"}} {
		before := kernelCount(t, w.laptop, "Udp", "RcvbufErrors")
		out, err := run("iperf3", append([]string{"-c", originAddr.String(), "-p", "5202", "-J", "-P", "4", "-n", fmt.Sprint(size)}, way...)...)
		var result struct {
			Error string `json:"error"`
			End   struct {
				Sent struct {
					Retransmits float64 `json:"retransmits"`
				} `json:"sum_sent"`
				Received struct {
					Bytes float64 `json:"bytes"`
					Bits  float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			} `json:"end"`
		}
		if bad := json.Unmarshal([]byte(out), &result); err != nil || bad != nil || result.Error != "" {
			t.Fatalf("iperf3 %s: %v %s", way, errors.Join(err, bad), result.Error)
		}
		r := result.End
		// What did not fit the socket of a WireGuard client that cannot keep up is nobody's fault.
		full := float64(kernelCount(t, w.laptop, "Udp", "RcvbufErrors") - before)
		if again := (r.Sent.Retransmits - full) * 1380; r.Received.Bytes < atLeast || again > r.Received.Bytes/5 {
			t.Errorf("iperf3 %s: %.0f bytes arrived, %.0f segments were sent again, of %.0f that the client did not take", way, r.Received.Bytes, r.Sent.Retransmits, full)
		}
		t.Logf("iperf3 -P 4 %s: %.0f Mbit/s, %.0f segments sent again, of %.0f that the client did not take", way, r.Received.Bits/1e6, r.Sent.Retransmits, full)
	}
}

// What wrk says at its end, and of failures only where there are any.
var (
	wrkRequests = regexp.MustCompile(`(?m)^ *([0-9]+) requests in `)
	wrkErrors   = regexp.MustCompile(`(?m)^ *Socket errors: .*$`)
)

// wrks makes requests by many connections for a second.
func (w *world) wrks(t *testing.T, run runner) {
	netlab.Program(t, "wrk")
	before := w.origin.requests.Load()
	out, err := run("wrk", "-t", "2", "-c", "32", "-d", "1s", "--timeout", "10s", "http://"+at(originAddr, portHTTP)+"/")
	n := wrkRequests.FindStringSubmatch(out)
	if err != nil || n == nil || n[1] == "0" || wrkErrors.MatchString(out) {
		t.Errorf("wrk: %v: %s", err, out)
	}
	if w.origin.requests.Load() == before {
		t.Error("the origin saw no request")
	}
}
