package sidecar

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/tunnel"
)

const patience = 20 * time.Second

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for !condition() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("after %v still not so: %s", patience, what)
		}
	}
}

// memDevice is an interface of a sandbox, or the inside of a gateway, in memory.
type memDevice struct {
	out    chan []byte // what the other side reads
	in     chan []byte // what it wrote
	closed chan struct{}
	events chan tun.Event
	once   sync.Once
}

func newMemDevice() *memDevice {
	return &memDevice{
		out: make(chan []byte, 4096), in: make(chan []byte, 4096),
		closed: make(chan struct{}), events: make(chan tun.Event),
	}
}

func (d *memDevice) File() *os.File           { return nil }
func (d *memDevice) MTU() (int, error)        { return spec.TunnelMTU, nil }
func (d *memDevice) Name() (string, error)    { return "mem", nil }
func (d *memDevice) Events() <-chan tun.Event { return d.events }
func (d *memDevice) BatchSize() int           { return 128 }

func (d *memDevice) Close() error {
	d.once.Do(func() { close(d.closed); close(d.events) })
	return nil
}

func (d *memDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-d.closed:
		return 0, os.ErrClosed
	case b := <-d.out:
		n := 0
		for {
			sizes[n] = copy(bufs[n][offset:], b)
			if n++; n == len(bufs) {
				return n, nil
			}
			select {
			case b = <-d.out:
			default:
				return n, nil
			}
		}
	}
}

func (d *memDevice) Write(bufs [][]byte, offset int) (int, error) {
	for i, b := range bufs {
		select {
		case <-d.closed:
			return i, os.ErrClosed
		case d.in <- bytes.Clone(b[offset:]):
		}
	}
	return len(bufs), nil
}

// next waits for a packet that was written to the device.
func (d *memDevice) next(t *testing.T) []byte {
	t.Helper()
	select {
	case b := <-d.in:
		return b
	case <-time.After(patience):
		t.Fatalf("no packet within %v", patience)
		return nil
	}
}

// gateway is the other end of a tunnel: it answers probes and echoes all other
// UDP datagrams.
type gateway struct {
	*memDevice
	host   string
	tunnel *tunnel.Tunnel
	key    tunnel.Key
	far    *netstack.Device // the internet, as far as TCP goes; nil: there is none
	done   chan struct{}

	mu     sync.Mutex // guards what follows
	mute   bool
	health packet.Health
	deaf   uint16             // TCP port to which nothing gets through
	seen   map[netip.Addr]int // packets by inner source, without probes
	asked  map[netip.Addr]int // the same by destination
	last   []byte             // the last answer to a probe
}

func newGateway(t *testing.T, key tunnel.Key) *gateway {
	t.Helper()
	g := &gateway{
		memDevice: newMemDevice(), host: "gw1", key: key,
		seen: map[netip.Addr]int{}, asked: map[netip.Addr]int{}, done: make(chan struct{}),
	}
	var err error
	if g.tunnel, err = tunnel.New(tunnel.Config{PrivateKey: key, Device: g.memDevice}); err != nil {
		t.Fatal(err)
	}
	go g.serve()
	t.Cleanup(g.end)
	return g
}

func (g *gateway) end() {
	g.tunnel.Close()
	<-g.done
}

func (g *gateway) serve() {
	defer close(g.done)
	for {
		select {
		case <-g.closed:
			return
		case b := <-g.in:
			if reply := g.reply(b); reply != nil {
				g.out <- reply
			}
		}
	}
}

func (g *gateway) reply(b []byte) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	var p packet.Packet
	if packet.Parse(&p, b) != packet.Pass || g.mute {
		return nil
	}
	if p.Kind == packet.KindTCP && g.far != nil && p.DstPort != g.deaf {
		g.seen[p.Src]++
		_, _ = g.far.Write([][]byte{append(make([]byte, 16), b...)}, 16)
	}
	if p.Kind != packet.KindUDP {
		return nil
	}
	payload := bytes.Clone(p.B[p.L4+8:])
	m, probe := packet.ParseProbe(payload)
	if probe = probe && p.DstPort == packet.ProbePort; probe {
		m.Reply(g.health).Put(payload)
	} else {
		g.seen[p.Src]++
		g.asked[p.Dst]++
	}
	out := make([]byte, 28+len(payload))
	packet.BuildUDP(out, netip.AddrPortFrom(p.Dst, p.DstPort), netip.AddrPortFrom(p.Src, p.SrcPort), payload, 64, 0)
	if probe {
		g.last = out
	}
	return out
}

// with changes the gateway under its lock.
func (g *gateway) with(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

func (g *gateway) setMute(mute bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mute = mute
}

func (g *gateway) from(a netip.Addr) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seen[a]
}

func (g *gateway) describe(network string) spec.Gateway {
	return spec.Gateway{
		Role: spec.RoleActive, Host: g.host, Network: network, PublicKey: g.key.Public().String(),
		Endpoint: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), g.tunnel.ListenPort()),
	}
}

// plane plays the control plane, over HTTP on a Unix socket: project "p" has the
// network "net_a", project "q" has "net_b" with the same range.
type plane struct {
	address  string
	mu       sync.Mutex
	gateways map[string]*gateway // by network
	siblings map[string]*gateway // the same, other hosts
	networks map[string]string   // by project
	base     [2]byte             // with which addresses begin
	region   string
	swapped  bool // the sibling is named first
	late     bool // siblings are not told who may come
	passive  *api.PassiveRegion
	list     map[string]spec.Attachment
	last     int
	refuse   *api.Error    // for every call
	slow     chan struct{} // detaching waits until it is closed; nil: it does not
	resumed  []api.Resume
	detached []string
	dns      []netip.Addr // of both networks
	mtu      int
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	p := &plane{
		gateways: map[string]*gateway{}, siblings: map[string]*gateway{}, list: map[string]spec.Attachment{},
		networks: map[string]string{"p": "net_a", "q": "net_b"}, base: [2]byte{10, 0}, region: "iad1",
		dns: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, mtu: spec.TunnelMTU,
	}
	p.gateways["net_a"] = newGateway(t, tunnel.NewKey())
	p.gateways["net_b"] = newGateway(t, tunnel.NewKey())
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/attachments", p.attach)
	mux.HandleFunc("GET /v1/attachments", p.show)
	mux.HandleFunc("DELETE /v1/attachments/{id}", p.detach)
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(mux)
	server.Listener.Close()
	server.Listener = l
	server.Start()
	t.Cleanup(server.Close)
	p.address = "unix://" + socket
	return p
}

func (p *plane) refused(w http.ResponseWriter) bool {
	if p.refuse != nil {
		answer(w, p.refuse.Status, api.ErrorBody{Error: p.refuse})
	}
	return p.refuse != nil
}

func (p *plane) attach(w http.ResponseWriter, r *http.Request) {
	var req api.AttachRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused(w) {
		return
	}
	network := p.networks[req.Project]
	if network == "" {
		answer(w, http.StatusNotFound, api.ErrorBody{Error: &api.Error{Code: api.CodeNotFound, Message: "no such project"}})
		return
	}
	p.last++
	a := spec.Attachment{
		ID: fmt.Sprintf("att_%d", p.last), Project: req.Project, Environment: req.Environment, Kind: req.Kind,
		Runtime: req.Runtime, Region: req.Region, PublicKey: req.PublicKey, Network: network,
		Inner: p.address4(1, p.last), Worker: p.address4(0, 2), Passive: req.Passive,
	}
	if req.Runtime == spec.RuntimeEdge {
		a = spec.Attachment{ID: a.ID, Project: a.Project, Kind: a.Kind, Runtime: a.Runtime, Bypass: spec.BypassEdge}
	}
	if req.Resume != nil {
		p.resumed = append(p.resumed, *req.Resume)
		a.ID = req.Resume.ID
		if a.Bypass == "" {
			a.Inner, a.Worker = req.Resume.InnerAddress, req.Resume.WorkerAddress
		}
	}
	p.list[a.ID] = a
	if a.Bypass != "" {
		answer(w, http.StatusCreated, api.AttachResponse{Attachment: a})
		return
	}
	resp := api.AttachResponse{Attachment: a, Network: p.network(network), Passive: p.passive}
	for _, g := range []*gateway{p.gateways[network], p.siblings[network]} {
		if g == nil {
			continue
		}
		sibling := g == p.siblings[network]
		if !sibling || !p.late {
			p.admit(g, network)
		}
		gw := g.describe(network)
		if sibling {
			gw.Role = spec.RoleSibling
		}
		if a.Passive {
			gw.Role = spec.RolePassive
		}
		resp.Gateways = append(resp.Gateways, gw)
	}
	if p.swapped {
		slices.Reverse(resp.Gateways)
	}
	answer(w, http.StatusCreated, resp)
}

// address4 is an address of the plane's networks.
func (p *plane) address4(third, fourth int) netip.Addr {
	return netip.AddrFrom4([4]byte{p.base[0], p.base[1], byte(third), byte(fourth)})
}

// network describes a network.
func (p *plane) network(id string) api.AttachedNetwork {
	return api.AttachedNetwork{
		ID: id, Region: p.region, Gateway: p.address4(0, 1), CIDR: netip.PrefixFrom(p.address4(0, 0), 16), DNS: p.dns, MTU: p.mtu,
	}
}

// admit tells a gateway who may come. The caller holds the lock.
func (p *plane) admit(g *gateway, network string) {
	allowed := map[string][]netip.Prefix{}
	for _, a := range p.list {
		if a.Network == network {
			allowed[a.PublicKey] = append(allowed[a.PublicKey], netip.PrefixFrom(a.Inner, 32), netip.PrefixFrom(a.Worker, 32))
		}
	}
	for key, prefixes := range allowed {
		k, err := tunnel.ParseKey(key)
		if err == nil {
			err = g.tunnel.SetPeer(tunnel.Peer{PublicKey: k, AllowedIPs: prefixes})
		}
		if err != nil && !errors.Is(err, tunnel.ErrClosed) { // a dead one is still named
			panic(err)
		}
	}
}

func (p *plane) show(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused(w) {
		return
	}
	var out api.AttachmentList
	for _, a := range p.list {
		out.Attachments = append(out.Attachments, a)
	}
	answer(w, http.StatusOK, out)
}

func (p *plane) detach(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slow := p.slow; slow != nil {
		p.mu.Unlock()
		<-slow
		p.mu.Lock()
	}
	if p.refused(w) {
		return
	}
	id := r.PathValue("id")
	if _, ok := p.list[id]; !ok {
		answer(w, http.StatusNotFound, api.ErrorBody{Error: &api.Error{Code: api.CodeNotFound, Message: "no such attachment"}})
		return
	}
	delete(p.list, id)
	p.detached = append(p.detached, id)
	w.WriteHeader(http.StatusNoContent)
}

// with changes the plane under its lock.
func (p *plane) with(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *plane) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.list)
}

// newTestSidecar makes a sidecar that does not run: tests call its parts.
func newTestSidecar(t *testing.T, p *plane) *Sidecar {
	t.Helper()
	return newConfiguredSidecar(t, p, Config{})
}

// newConfiguredSidecar makes one with what cfg says of regions and failover.
func newConfiguredSidecar(t *testing.T, p *plane, cfg Config) *Sidecar {
	t.Helper()
	client := p.client(t)
	socket := strings.TrimPrefix(p.address, "unix://")
	token := filepath.Join(filepath.Dir(socket), "token")
	cfg.Control, cfg.Region = client, "iad1"
	cfg.Socket, cfg.Hide = filepath.Join(t.TempDir(), "own", "sidecar.sock"), []string{socket, token}
	s, err := New(cfg)
	if err = errors.Join(err, os.WriteFile(token, []byte("secret\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// client calls the plane.
func (p *plane) client(t *testing.T) *api.Client {
	t.Helper()
	client, err := api.NewClient(api.ClientConfig{Address: p.address, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// network finds a network of the worker's own region.
func (s *Sidecar) network(id string) *network { return s.networks[networkKey{s.home, id}] }

func request(project string) sandboxRequest {
	return sandboxRequest{Project: project, Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeGo}
}

// box is a sandbox with a device in memory.
type box struct {
	*memDevice
	id    string
	inner netip.Addr
}

// open attaches a sandbox and waits until its tunnel works.
func open(t *testing.T, s *Sidecar, project string) box {
	t.Helper()
	ans, err := s.attach(t.Context(), request(project))
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.claim(ans.ID)
	if err != nil {
		t.Fatal(err)
	}
	dev := newMemDevice()
	if err := s.connectDevice(t.Context(), e, dev); err != nil {
		t.Fatal(err)
	}
	return box{dev, ans.ID, ans.Inner}
}

// send puts a datagram into the sandbox's interface.
func (b box) send(dst string, payload int) []byte {
	p := udp(b.inner.String()+":1000", dst, payload)
	b.out <- p
	return p
}

func mustContain(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
}

func short(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
