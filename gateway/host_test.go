package gateway

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/control"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/tunnel"
)

// source is a real store that lets the test wait for what the host says. It can
// become another, or fail.
type source struct {
	said chan struct{} // the host said something since it was looked at last

	mu      sync.Mutex
	store   *control.Store
	err     error
	changed chan struct{} // closed when store or err changes
	report  spec.HostReport
	reports int // how many there were
	acked   spec.Cursor
}

func newSource(store *control.Store) *source {
	return &source{store: store, said: make(chan struct{}, 1), changed: make(chan struct{})}
}

// become makes the source another store, as a control plane is after its restart.
func (s *source) become(next *control.Store) { s.change(func() { s.store = next }) }

// fail makes every call of the source fail, until it is called with nil.
func (s *source) fail(err error) { s.change(func() { s.err = err }) }

func (s *source) change(what func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what()
	close(s.changed)
	s.changed = make(chan struct{})
}

// now returns what the source is, and a channel that is closed when it is another.
func (s *source) now() (*control.Store, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store, s.changed, s.err
}

// Next ends with an error when the store is exchanged meanwhile, as a connection does.
func (s *source) Next(ctx context.Context, after spec.Cursor) (spec.Update, error) {
	store, changed, err := s.now()
	if err != nil {
		return spec.Update{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var cut atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-changed:
			cut.Store(true)
			cancel()
		case <-ctx.Done():
		}
	}()
	u, err := store.Next(ctx, after)
	cancel()
	<-done
	if err != nil && cut.Load() {
		if _, _, reason := s.now(); reason != nil {
			return u, reason
		}
		return u, errors.New("the connection was cut")
	}
	return u, err
}

// Report implements Source.
func (s *source) Report(ctx context.Context, r spec.HostReport) error {
	s.note(func() { s.report, s.reports = r, s.reports+1 })
	store, _, err := s.now()
	if err != nil {
		return err
	}
	return store.Report(ctx, r)
}

// Acknowledge implements Source.
func (s *source) Acknowledge(ctx context.Context, host string, at spec.Cursor) error {
	s.note(func() { s.acked = at })
	store, _, err := s.now()
	if err != nil {
		return err
	}
	return store.Acknowledge(ctx, host, at)
}

// Attach asks the store that it is now.
func (s *source) Attach(ctx context.Context, req api.AttachRequest) (api.AttachResponse, error) {
	store, _, _ := s.now()
	return store.Attach(ctx, req)
}

func (s *source) note(what func()) {
	s.mu.Lock()
	what()
	s.mu.Unlock()
	select {
	case s.said <- struct{}{}:
	default:
	}
}

// lockedBuffer is a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// pool is the region's; a network's pair is two neighbours of it.
func testNetwork(id string, first byte) spec.Network {
	return spec.Network{
		ID: id, Team: "acme", Region: "iad1", CIDR: network16,
		Pair: [2]netip.Addr{netip.AddrFrom4([4]byte{127, 77, 0, first}), netip.AddrFrom4([4]byte{127, 77, 0, first + 1})},
	}
}

func testState(networks ...spec.Network) spec.State {
	s := spec.State{
		Teams: []spec.Team{{ID: "acme"}},
		Regions: []spec.Region{{
			Name: "iad1", Pool: []netip.Prefix{netip.MustParsePrefix("127.77.0.0/24")},
			Hosts: []spec.Host{{Name: "gw-a", Endpoint: netip.MustParseAddr("127.0.0.1")}},
		}},
		Networks: networks,
	}
	for _, n := range networks {
		s.Projects = append(s.Projects, spec.Project{ID: "prj_" + n.ID, Team: "acme", Environments: []spec.Environment{
			{Name: "production", Active: []string{n.ID}},
		}})
	}
	return s
}

func testDaemon() config.Daemon {
	return config.Daemon{
		Host: "gw-a", Region: "iad1", WireGuard: config.WireGuard{Ports: spec.PortRange{First: 23810, Last: 23829}},
		DNS:    config.DNS{Upstreams: []netip.AddrPort{netip.MustParseAddrPort("127.88.0.53:53")}},
		Limits: config.Limits{SessionsPerIP: 1 << 16, PendingConnects: 64, PendingConnectsPerDestination: 64},
	}
}

func regionSecret() []byte { return bytes.Repeat([]byte{8}, 32) }

// hostRig is a Host that follows a store, in this process.
type hostRig struct {
	t     *testing.T
	src   *source
	host  *Host
	log   *lockedBuffer
	end   context.CancelFunc
	ended chan error
}

func newHostRig(t *testing.T, state spec.State) *hostRig {
	t.Helper()
	return newHostRigWith(t, testDaemon(), state)
}

func newHostRigWith(t *testing.T, daemon config.Daemon, state spec.State) *hostRig {
	t.Helper()
	store, err := control.NewStore(control.StoreConfig{State: state, Region: "iad1"})
	if err != nil {
		t.Fatal(err)
	}
	r := &hostRig{t: t, src: newSource(store), log: &lockedBuffer{}, ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	r.end = cancel
	t.Cleanup(cancel)
	r.host, err = OpenHost(ctx, HostConfig{
		Daemon: daemon, RegionSecret: regionSecret(),
		Secret: bytes.Repeat([]byte{7}, 32), Source: r.src, Clock: NewMonotonicClock(),
		Log: slog.New(slog.NewTextHandler(r.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { r.ended <- r.host.Run(ctx) }()
	return r
}

// close ends the host and checks that it ended well.
func (r *hostRig) close() {
	r.t.Helper()
	r.end()
	select {
	case err := <-r.ended:
		if err != nil {
			r.t.Errorf("Run: %v", err)
		}
	case <-time.After(20 * time.Second):
		r.t.Fatal("the host did not end within 20 s")
	}
}

// await waits until what the host says fulfils a condition.
func (r *hostRig) await(what string, holds func(report spec.HostReport, acked spec.Cursor) bool) {
	r.t.Helper()
	late := time.After(15 * time.Second)
	metrics := prometheus.NewPedanticRegistry()
	metrics.MustRegister(r.host)
	for {
		// Somebody looks at the metrics all the time.
		if _, err := metrics.Gather(); err != nil {
			r.t.Fatal(err)
		}
		r.src.mu.Lock()
		ok := holds(r.src.report, r.src.acked)
		r.src.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-r.src.said:
		case err := <-r.ended:
			r.t.Fatalf("the host ended: %v", err)
		case <-late:
			r.t.Fatalf("not within 15 s: %s\n%s", what, r.log)
		}
	}
}

// names are the ids of the networks that are reported.
func names(report spec.HostReport) string {
	var ids []string
	for _, n := range report.Networks {
		ids = append(ids, n.ID)
	}
	return strings.Join(ids, " ")
}

func (r *hostRig) awaitNetworks(ids string) {
	r.t.Helper()
	r.await("networks "+ids, func(report spec.HostReport, _ spec.Cursor) bool { return names(report) == ids })
}

// find returns an open network.
func (r *hostRig) find(id string) *network {
	for _, n := range r.host.list() {
		if n.id == id {
			return n
		}
	}
	return nil
}

// checkLeaks looks for goroutines that are left when all else of the test has ended.
func checkLeaks(t *testing.T) { t.Cleanup(func() { goleak.VerifyNone(t) }) }

func (r *hostRig) replace(state spec.State) {
	r.t.Helper()
	if err := r.src.store.Replace(state); err != nil {
		r.t.Fatal(err)
	}
}

// TestHostFollows (U-7): networks come and go with the desired state, sandboxes of two
// networks with the same CIDR reach the far side from their own pairs, and one that
// is detached loses its tunnel. Nothing is left at the end.
func TestHostFollows(t *testing.T) {
	checkLeaks(t)
	origin := echoServer(t)
	a, b := testNetwork("net_a", 1), testNetwork("net_b", 3)
	r := newHostRig(t, testState(a))
	r.awaitNetworks("net_a")
	first := r.attach("net_a")
	first.checkEcho(origin, "one")

	r.replace(testState(a, b))
	r.awaitNetworks("net_a net_b")
	second := r.attach("net_b")
	if first.Attachment.Inner != second.Attachment.Inner {
		t.Errorf("sandboxes of two networks are %v and %v; the test wants the same", first.Attachment.Inner, second.Attachment.Inner)
	}
	second.checkEcho(origin, "two")
	first.checkEcho(origin, "three")
	r.await("counters", func(report spec.HostReport, _ spec.Cursor) bool {
		n := report.Networks
		return n[0].Peers == 1 && n[1].Peers == 1 && n[0].Egress.Packets >= 2 && n[0].Ingress.Packets >= 2 &&
			n[1].Sessions[spec.EgressIndex(second.Attachment.Inner)] == 1 && n[0].WrongSource+n[1].WrongSource == 0
	})

	gone := r.find("net_b")
	if err := r.src.store.Detach(second.Attachment.ID); err != nil {
		t.Fatal(err)
	}
	r.await("the peer and its session are gone", func(report spec.HostReport, _ spec.Cursor) bool {
		return report.Networks[1].Peers == 0 && report.Networks[1].Sessions == [2]int{}
	})
	r.replace(testState(a))
	r.awaitNetworks("net_a")
	<-gone.tun.Done()
	first.checkEcho(origin, "four")
	if !r.host.Ready() {
		t.Error("the host is not ready")
	}
	r.close()
	if r.host.Ready() || !r.host.report().Draining {
		t.Error("the host is ready after its end")
	}
}

// TestNetworkFailsAlone: when the device of one network ends by itself, it is
// opened again with its members, and the others notice nothing.
func TestNetworkFailsAlone(t *testing.T) {
	checkLeaks(t)
	origin := echoServer(t)
	r := newHostRig(t, testState(testNetwork("net_a", 1), testNetwork("net_b", 3)))
	r.awaitNetworks("net_a net_b")
	first, second := r.attach("net_a"), r.attach("net_b")
	first.checkEcho(origin, "one")
	second.checkEcho(origin, "two")

	broken := r.find("net_a")
	broken.tun.Close() // as it does when reading from the uplink fails
	r.await("the network is opened again", func(spec.HostReport, spec.Cursor) bool {
		n := r.find("net_a")
		return n != nil && n != broken && n.peers.Load() == 1 && r.host.Ready()
	})
	second.checkEcho(origin, "three")
	gateway, err := tunnel.ParseKey(first.Gateways[0].PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.tunnel.Rehandshake(gateway); err != nil {
		t.Fatal(err)
	}
	first.checkEcho(origin, "four")
	if !strings.Contains(r.log.String(), "network failed") {
		t.Errorf("the log says nothing:\n%s", r.log)
	}
	r.close()
}

// takePort holds the WireGuard port that a network will want.
func takePort(t *testing.T, id string) *net.UDPConn {
	t.Helper()
	ports, err := assignPorts([]string{id}, portRange(testDaemon().WireGuard.Ports), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	holder, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(ports[id])})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { holder.Close() })
	return holder
}

// TestNetworkCannotOpen: a network that cannot be opened does not keep another
// from coming up, and comes up itself when the cause is gone.
func TestNetworkCannotOpen(t *testing.T) {
	checkLeaks(t)
	r := newHostRig(t, testState(testNetwork("net_a", 1)))
	r.awaitNetworks("net_a")
	holder := takePort(t, "net_b")
	r.replace(testState(testNetwork("net_a", 1), testNetwork("net_b", 3), testNetwork("net_c", 5)))
	r.awaitNetworks("net_a net_c")
	if r.host.Ready() {
		t.Error("the host says that it serves all")
	}
	holder.Close()
	r.awaitNetworks("net_a net_b net_c")
	r.await("ready", func(spec.HostReport, spec.Cursor) bool { return r.host.Ready() })
	if n := strings.Count(r.log.String(), "not in force in full"); n != 1 {
		t.Errorf("the log says %d times what is wrong, want once:\n%s", n, r.log)
	}
	r.close()
}

// TestNetworkChanges: a network that must be opened again for a change keeps its
// members, and a change of policy keeps the network.
func TestNetworkChanges(t *testing.T) {
	checkLeaks(t)
	origin := echoServer(t)
	n := testNetwork("net_a", 1)
	r := newHostRig(t, testState(n))
	s := r.attach("net_a")
	s.checkEcho(origin, "one")
	before := r.find("net_a")

	n.Policy = spec.Policy{Mode: spec.ModeDeny}
	r.replace(testState(n))
	refused := before.fwd.counters.Drops(Egress, packet.PolicyRejected)
	r.await("the policy refuses", func(spec.HostReport, spec.Cursor) bool {
		s.dev.out <- udp(t, at(s.Attachment.Inner, 5000), origin, nil)
		return before.fwd.counters.Drops(Egress, packet.PolicyRejected) > refused
	})
	if r.find("net_a") != before {
		t.Error("a change of policy opened the network again")
	}

	n.Policy, n.TCPMapping, n.PortBlock = spec.Policy{}, spec.MapEndpointIndependent, 512
	r.replace(testState(n))
	r.await("the network is another, with its member", func(spec.HostReport, spec.Cursor) bool {
		after := r.find("net_a")
		return after != nil && after != before && after.peers.Load() == 1
	})
	if want := "changed=\"[tcpMapping portBlock]\" sessions=1"; !strings.Contains(r.log.String(), want) {
		t.Errorf("the log does not say %s:\n%s", want, r.log)
	}
	gateway, err := tunnel.ParseKey(s.Gateways[0].PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.tunnel.Rehandshake(gateway); err != nil {
		t.Fatal(err)
	}
	s.checkEcho(origin, "two")
	r.close()
}

// TestOpenHostLeavesNothing: when one network cannot come up at the start, none stays.
func TestOpenHostLeavesNothing(t *testing.T) {
	checkLeaks(t)
	takePort(t, "net_b")
	store, err := control.NewStore(control.StoreConfig{State: testState(testNetwork("net_a", 1), testNetwork("net_b", 3)), Region: "iad1"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = OpenHost(t.Context(), HostConfig{
		Daemon: testDaemon(), Secret: bytes.Repeat([]byte{7}, 32), Source: store, Clock: NewMonotonicClock(), Log: slog.New(slog.DiscardHandler),
	})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "net_b") {
		t.Errorf("error %v does not name the network, or the port that is taken", err)
	}
}
