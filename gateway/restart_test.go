package gateway

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/control"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/tunnel"
)

// silentSource is a control plane that hangs.
type silentSource struct{}

func (silentSource) Next(ctx context.Context, _ spec.Cursor) (spec.Update, error) {
	<-ctx.Done()
	return spec.Update{}, ctx.Err()
}

func (silentSource) Acknowledge(ctx context.Context, _ string, _ spec.Cursor) error {
	<-ctx.Done()
	return ctx.Err()
}

func (silentSource) Report(ctx context.Context, _ spec.HostReport) error {
	<-ctx.Done()
	return ctx.Err()
}

// newStore makes a control plane that knows nobody.
func newStore(t *testing.T, state spec.State) *control.Store {
	t.Helper()
	store, err := control.NewStore(control.StoreConfig{State: state, Region: "iad1"})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// resume attaches a sandbox again at the store that is followed now.
func (r *hostRig) resume(s *sandbox, network string) {
	r.t.Helper()
	a := s.Attachment
	resp, err := r.src.Attach(r.t.Context(), api.AttachRequest{
		Project: "prj_" + network, Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeGo,
		Region: "iad1", PublicKey: a.PublicKey,
		Resume: &api.Resume{ID: a.ID, Network: a.Network, InnerAddress: a.Inner, WorkerAddress: a.Worker},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if resp.Attachment.ID != a.ID || resp.Attachment.Inner != a.Inner {
		r.t.Errorf("attached again as %s at %v, was %s at %v", resp.Attachment.ID, resp.Attachment.Inner, a.ID, a.Inner)
	}
}

// handshake is when a sandbox's tunnel last shook hands.
func (s *sandbox) handshake() time.Time {
	s.t.Helper()
	stats, err := s.tunnel.Peers()
	if err != nil || len(stats) != 1 {
		s.t.Fatalf("%d peers, %v", len(stats), err)
	}
	return stats[0].LastHandshake
}

// TestRestartCallsPeers: a host that starts again with its state file while the
// control plane hangs is up at once, and calls the workers: their packets pass
// though they do nothing but send.
func TestRestartCallsPeers(t *testing.T) {
	checkLeaks(t)
	origin := echoServer(t)
	daemon := testDaemon()
	daemon.StateFile = filepath.Join(t.TempDir(), "state.json")
	r := newHostRigWith(t, daemon, testState(testNetwork("net_a", 1), testNetwork("net_b", 3)))
	first, second := r.attach("net_a"), r.attach("net_b")
	first.checkEcho(origin, "one")
	second.checkEcho(origin, "two")
	r.close()

	b, err := os.ReadFile(daemon.StateFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, private := range []string{strings.Repeat("\x07", 32), "BwcHBwcH", "privateKey"} {
		if bytes.Contains(b, []byte(private)) {
			t.Errorf("the state file holds %q", private)
		}
	}
	before := first.handshake()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := time.Now()
	h, err := OpenHost(ctx, HostConfig{
		Daemon: daemon, Secret: bytes.Repeat([]byte{7}, 32), Source: silentSource{}, Clock: NewMonotonicClock(),
		Log: slog.New(slog.NewTextHandler(r.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	first.checkEcho(origin, "three")
	second.checkEcho(origin, "four")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the first answers came after %v", took)
	} else {
		t.Logf("first answers of both networks %v after the start", took)
	}
	if !first.handshake().After(before) {
		t.Error("the test shows nothing: there was no new handshake")
	}
	// Members are whole: the policy knows them, and what they may.
	for _, n := range h.list() {
		if len(n.members.attached) != 1 || n.peers.Load() != 1 {
			t.Errorf("%s has %d members and %d peers", n.id, len(n.members.attached), n.peers.Load())
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestRestartCallsPeerings: the other side of a peering, which is known from its own
// call only, is called as well.
func TestRestartCallsPeerings(t *testing.T) {
	checkLeaks(t)
	daemon := testDaemon()
	daemon.StateFile = filepath.Join(t.TempDir(), "state.json")
	n, key := testNetwork("net_a", 1), tunnel.NewKey()
	n.Site = &spec.Site{Host: "gw-a", Port: 23829}
	state := testState(n)
	state.Peerings = []spec.Peering{{
		ID: "peer_a", Network: n.ID, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.30.0.0/16")},
		PublicKey: key.Public().String(), State: spec.PeeringActive,
	}}
	r := newHostRigWith(t, daemon, state)
	site, err := tunnel.DeriveSiteKey(regionSecret(), n.ID)
	if err != nil {
		t.Fatal(err)
	}
	other := &sandbox{t: t, dev: newMemTUN()}
	if other.tunnel, err = tunnel.New(tunnel.Config{PrivateKey: key, Device: other.dev}); err != nil {
		t.Fatal(err)
	}
	defer other.tunnel.Close()
	if err := other.tunnel.SetPeer(tunnel.Peer{
		PublicKey: site.Public(), Endpoint: netip.MustParseAddrPort("127.0.0.1:23829"),
		AllowedIPs: []netip.Prefix{network16}, Keepalive: time.Hour,
	}); err != nil {
		t.Fatal(err)
	}
	r.await("a handshake", func(spec.HostReport, spec.Cursor) bool { return !other.handshake().IsZero() })
	r.close()

	before := other.handshake()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	h, err := OpenHost(ctx, HostConfig{
		Daemon: daemon, Secret: bytes.Repeat([]byte{7}, 32), RegionSecret: regionSecret(), Source: silentSource{},
		Clock: NewMonotonicClock(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	late, again := time.After(5*time.Second), time.NewTicker(10*time.Millisecond)
	defer again.Stop()
	for !other.handshake().After(before) {
		select {
		case <-again.C:
		case <-late:
			t.Fatal("the other side was not called within 5 s")
		}
	}
}

// TestBadStateFile: a file that is damaged is said, and passed over.
func TestBadStateFile(t *testing.T) {
	checkLeaks(t)
	daemon := testDaemon()
	daemon.StateFile = filepath.Join(t.TempDir(), "state.json")
	m := testMemory()
	m.Host = "gw-b"
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"cut off": {encoded(t, testMemory())[:100], "cut off"},
		"foreign": {encoded(t, m), "it is of host gw-b"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(daemon.StateFile, c.file, 0o600); err != nil {
				t.Fatal(err)
			}
			r := newHostRigWith(t, daemon, testState(testNetwork("net_a", 1)))
			r.awaitNetworks("net_a")
			if log := r.log.String(); !strings.Contains(log, "state file refused") || !strings.Contains(log, c.want) {
				t.Errorf("the log does not say %q:\n%s", c.want, log)
			}
			r.await("the host is ready", func(spec.HostReport, spec.Cursor) bool { return r.host.Ready() })
			r.close()
			b, err := readStateFile(daemon.StateFile)
			if err == nil {
				_, err = decodeMemory(b)
			}
			if err != nil {
				t.Errorf("no good file took its place: %v", err)
			}
		})
	}
}

// TestStateFileKept: what is attached and where it calls from is in the file soon,
// without an end of the host, and a disk that refuses it stops nothing.
func TestStateFileKept(t *testing.T) {
	checkLeaks(t)
	origin := echoServer(t)
	dir := t.TempDir()
	daemon := testDaemon()
	daemon.StateFile = filepath.Join(dir, "folder", "state.json")
	if err := os.WriteFile(filepath.Dir(daemon.StateFile), nil, 0o600); err != nil { // a file where the folder should be
		t.Fatal(err)
	}
	r := newHostRigWith(t, daemon, testState(testNetwork("net_a", 1)))
	s := r.attach("net_a")
	r.await("the log says that the file is not written", func(spec.HostReport, spec.Cursor) bool {
		return strings.Contains(r.log.String(), "state file not written") && r.host.keeper.errors.Load() > 0
	})
	s.checkEcho(origin, "one")
	r.wantMetrics(map[string]float64{"sallyport_state_file_writes_total": 0})
	if err := os.Remove(filepath.Dir(daemon.StateFile)); err != nil {
		t.Fatal(err)
	}
	r.host.sample() // as it happens every few seconds
	r.await("the file knows the sandbox and where it is", func(spec.HostReport, spec.Cursor) bool {
		b, err := readStateFile(daemon.StateFile)
		if err != nil {
			return false
		}
		m, err := decodeMemory(b)
		return err == nil && len(m.Attachments) == 1 && len(m.Peers["net_a"]) == 1 && m.Attachments[0] == s.Attachment
	})
	r.close()
}

// TestControlPlaneForgets: a control plane that starts again without its memory
// cuts nobody: sandboxes go on in their sessions, are attached again as they were,
// and those that nobody attaches go when the grace is over.
func TestControlPlaneForgets(t *testing.T) {
	checkLeaks(t)
	origin := echoServer(t)
	state := testState(testNetwork("net_a", 1))
	r := newHostRig(t, state)
	stays, goes := r.attach("net_a"), r.attach("net_a")
	stays.checkEcho(origin, "one")
	goes.checkEcho(origin, "two")
	hands := stays.handshake()
	network := r.find("net_a")

	next := newStore(t, state)
	r.src.become(next)
	r.await("the new store is followed", func(_ spec.HostReport, at spec.Cursor) bool {
		u, err := next.Next(t.Context(), spec.Cursor{})
		return err == nil && at == u.Cursor()
	})
	stays.checkEcho(origin, "three")
	goes.checkEcho(origin, "four")
	r.resume(stays, "net_a")
	stays.checkEcho(origin, "five")
	if r.find("net_a") != network || !stays.handshake().Equal(hands) || network.fwd.counters.Drops(Egress, packet.PolicyRejected) > 0 {
		t.Error("the sandbox was cut")
	}
	if !strings.Contains(r.log.String(), "another than before") {
		t.Errorf("the log says nothing:\n%s", r.log)
	}
	r.host.known.Lock()
	r.host.roster.until = time.Now() // as after the grace
	r.host.known.Unlock()
	r.await("whom nobody attached is gone", func(report spec.HostReport, _ spec.Cursor) bool {
		return len(report.Networks) == 1 && report.Networks[0].Peers == 1
	})
	stays.checkEcho(origin, "six")
	if !stays.handshake().Equal(hands) {
		t.Error("the sandbox was cut")
	}
	r.close()
}

// TestRestartTogether: where the control plane is in the same process, it begins anew with
// the gateway, which is no reason to warn of another.
func TestRestartTogether(t *testing.T) {
	checkLeaks(t)
	daemon, state := testDaemon(), testState(testNetwork("net_a", 1))
	daemon.Roles = config.Roles{Control: true, Gateway: true}
	r := newHostRigWith(t, daemon, state)
	r.attach("net_a")
	r.src.become(newStore(t, state))
	r.await("the new store is followed", func(spec.HostReport, spec.Cursor) bool {
		return strings.Contains(r.log.String(), "of before the start")
	})
	if strings.Contains(r.log.String(), "another than before") {
		t.Errorf("the log warns of another control plane:\n%s", r.log)
	}
	r.close()
}

// TestControlPlaneAway: while the control plane is away nothing ends, a network
// that fails is opened again, and with its members.
func TestControlPlaneAway(t *testing.T) {
	checkLeaks(t)
	origin := echoServer(t)
	r := newHostRig(t, testState(testNetwork("net_a", 1)))
	s := r.attach("net_a")
	s.checkEcho(origin, "one")
	r.src.fail(errors.New("out for lunch"))
	r.await("the log says so", func(spec.HostReport, spec.Cursor) bool {
		return strings.Contains(r.log.String(), "control plane lost") && strings.Contains(r.log.String(), "out for lunch")
	})
	s.checkEcho(origin, "two")
	broken := r.find("net_a")
	r.host.sample()
	broken.tun.Close()
	s.checkEcho(origin, "three") // it is called by the network's successor
	if n := r.find("net_a"); n == broken || n.peers.Load() != 1 {
		t.Error("the network is the same, or has lost its member")
	}
	r.src.fail(nil)
	r.await("the log says that it is back", func(spec.HostReport, spec.Cursor) bool {
		return strings.Contains(r.log.String(), "control plane is back")
	})
	if n := strings.Count(r.log.String(), "control plane lost"); n != 1 {
		t.Errorf("the log says %d times that the control plane is lost", n)
	}
	r.close()
}

// TestHostDrains: at the end the control plane and probes hear of it at once, and
// traffic goes on until the time is over.
func TestHostDrains(t *testing.T) {
	checkLeaks(t)
	origin := echoServer(t)
	daemon := testDaemon()
	daemon.Drain = time.Second
	r := newHostRigWith(t, daemon, testState(testNetwork("net_a", 1)))
	s := r.attach("net_a")
	s.checkEcho(origin, "one")
	n := r.find("net_a")
	began := time.Now()
	r.end()
	r.await("a report says so", func(report spec.HostReport, _ spec.Cursor) bool { return report.Draining })
	if told := time.Since(began); told > daemon.Drain {
		t.Errorf("the control plane heard of it after %v", told)
	}
	r.wantMetrics(map[string]float64{"sallyport_draining": 1, "sallyport_ready": 0})
	if n.health.Health() != packet.HealthDraining || r.host.Ready() {
		t.Errorf("health is %b, ready %v", n.health.Health(), r.host.Ready())
	}
	s.checkEcho(origin, "two")
	r.close()
	if took := time.Since(began); took < daemon.Drain {
		t.Errorf("the host ended after %v, before its time of %v", took, daemon.Drain)
	}
}

// TestUnknownHost: a host that the desired state does not have says so at its
// first start.
func TestUnknownHost(t *testing.T) {
	checkLeaks(t)
	for _, c := range [][3]string{{"gw-z", "iad1", `no host "gw-z"`}, {"gw-a", "fra1", `no region "fra1"`}} {
		daemon := testDaemon()
		daemon.Host, daemon.Region = c[0], c[1]
		_, err := OpenHost(t.Context(), HostConfig{
			Daemon: daemon, Secret: bytes.Repeat([]byte{7}, 32), Source: newStore(t, testState(testNetwork("net_a", 1))),
			Clock: NewMonotonicClock(), Log: slog.New(slog.DiscardHandler),
		})
		if err == nil || !strings.Contains(err.Error(), c[2]) {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// wantMetrics compares metrics of a host with one network.
func (r *hostRig) wantMetrics(want map[string]float64) {
	r.t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(r.host)
	families, err := registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	for name, v := range want {
		if g, there := got[name]; !there || g != v {
			r.t.Errorf("%s is %v (there: %v), want %v", name, g, there, v)
		}
	}
}

// stuckServer listens at an address where no connection is ever completed, until
// it is let go.
func stuckServer(t *testing.T) (netip.AddrPort, func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "stuck")
	defer f.Close()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 88, 0, 80}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", l.Addr().String()) // the only one that it has room for
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); c.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort(), func() { l.Close() }
}

// TestHostReportsLostUplink: the checks of a host go out by its real uplink; what
// they find is in its reports and answers to probes.
func TestHostReportsLostUplink(t *testing.T) {
	checkLeaks(t)
	target, refuse := stuckServer(t)
	daemon := testDaemon()
	daemon.Health.Targets, daemon.Health.Interval = []netip.AddrPort{target}, 100*time.Millisecond
	r := newHostRigWith(t, daemon, testState(testNetwork("net_a", 1)))
	r.await("the uplink is lost", func(report spec.HostReport, _ spec.Cursor) bool {
		return len(report.Networks) == 1 && report.Networks[0].UplinkLost
	})
	if h := r.find("net_a").health.Health(); h != packet.HealthUplinkLost {
		t.Errorf("health is %b", h)
	}
	r.wantMetrics(map[string]float64{"sallyport_tunnel_lost_total": 0, "sallyport_tunnel_uncut_total": 0, "sallyport_tunnel_offload": 1, "sallyport_uplink_lost": 1, "sallyport_full": 0, "sallyport_ready": 1, "sallyport_draining": 0})
	refuse()
	r.await("the uplink is back", func(report spec.HostReport, _ spec.Cursor) bool {
		return len(report.Networks) == 1 && !report.Networks[0].UplinkLost
	})
	r.close()
}
