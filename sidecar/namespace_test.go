package sidecar

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// runtimeNamespace is a namespace that a runtime made for a sandbox.
type runtimeNamespace struct {
	*hostnet.Namespace
	path string
}

func newRuntimeNamespace(t *testing.T) *runtimeNamespace {
	t.Helper()
	netlab.Require(t)
	ns, err := hostnet.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return &runtimeNamespace{ns, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.File().Fd())}
}

// links lists the links but loopback.
func (n *runtimeNamespace) links(t *testing.T) []string {
	t.Helper()
	k, err := n.Host()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	all, err := k.Links()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(name string) bool { return name == "lo" })
}

// echo sends a datagram to the far side and waits for it to come back.
func (n *runtimeNamespace) echo(to string) (from netip.Addr, err error) {
	err = n.Do(func() error {
		c, err := net.Dial("udp4", to)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		b := make([]byte, 100)
		if n, err := c.Read(b); err != nil || string(b[:n]) != "hello" {
			return fmt.Errorf("answer %q, %w", b[:n], err)
		}
		from = netip.MustParseAddrPort(c.LocalAddr().String()).Addr()
		return nil
	})
	return from, err
}

// in asks for a sandbox of a project in a namespace.
func in(project string, n NamespaceRequest) sandboxRequest {
	req := request(project)
	req.Namespace = &n
	return req
}

func TestAttachNamespace(t *testing.T) {
	for kind, name := range map[string]string{"": "tun0", "veth": "eth0"} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			t.Run("served", func(t *testing.T) {
				ns := newRuntimeNamespace(t)
				p := newPlane(t)
				r := serve(t, p)
				conf := filepath.Join(t.TempDir(), "resolv.conf")
				box, err := r.client.attach(t.Context(), in("p", NamespaceRequest{Path: ns.path, Ethernet: kind, ResolvConf: conf}))
				if err != nil {
					t.Fatal(err)
				}
				// At once, and without whoever asked.
				if from, err := ns.echo("192.0.2.1:9"); err != nil || from != box.Inner {
					t.Errorf("echo from %v: %v; want %v", from, err, box.Inner)
				}
				if n := p.gateways["net_a"].from(box.Inner); n != 1 {
					t.Errorf("the gateway saw %d packets", n)
				}
				if got := ns.links(t); !slices.Equal(got, []string{name}) || box.Interface.Name != name {
					t.Errorf("links %v, answer %+v", got, box.Interface)
				}
				if text, err := os.ReadFile(conf); err != nil || string(text) != "nameserver 10.0.0.1\n" {
					t.Errorf("resolv.conf %q, %v", text, err)
				}
				var list Listing
				r.get(t, "/v1/sandboxes", &list)
				if s := list.Sandboxes[0]; s.State != "running" || !strings.Contains(s.Namespace, ns.path) || len(s.Drops) != 0 {
					t.Errorf("listing %+v", s)
				}
				if _, err := r.client.attach(t.Context(), in("p", NamespaceRequest{Path: ns.path, Ethernet: kind})); err == nil || !strings.Contains(err.Error(), box.ID) {
					t.Errorf("a second sandbox in the namespace: %v; want the first one's ID", err)
				}
				if err := r.client.end(t.Context(), box.ID); err != nil {
					t.Error(err)
				}
				if got := ns.links(t); len(got) != 0 || p.count() != 0 {
					t.Errorf("links %v, %d attachments after the end", got, p.count())
				}
				if _, err := ns.echo("192.0.2.1:9"); err == nil || !strings.Contains(err.Error(), "unreachable") && !strings.Contains(err.Error(), "no route") {
					t.Errorf("without its interface, the sandbox gets %v; want an error at once", err)
				}
				if _, err := r.client.attach(t.Context(), in("p", NamespaceRequest{Path: ns.path, Ethernet: kind})); err != nil {
					t.Errorf("attach again: %v", err)
				}
			})
		})
	}
}

// A sandbox ends with its namespace, which nothing here keeps; with its process; and
// with its interface.
func TestNamespaceEnds(t *testing.T) {
	for _, kind := range []string{"", "veth"} {
		t.Run("namespace "+kind, func(t *testing.T) {
			ns := newRuntimeNamespace(t)
			p := newPlane(t)
			r := serve(t, p)
			if _, err := r.client.attach(t.Context(), in("p", NamespaceRequest{Path: ns.path, Ethernet: kind})); err != nil {
				t.Fatal(err)
			}
			_ = ns.Close()
			eventually(t, "the sandbox is detached", func() bool { return p.count() == 0 })
		})
		t.Run("interface "+kind, func(t *testing.T) {
			ns := newRuntimeNamespace(t)
			p := newPlane(t)
			r := serve(t, p)
			box, err := r.client.attach(t.Context(), in("p", NamespaceRequest{Path: ns.path, Ethernet: kind}))
			if err != nil {
				t.Fatal(err)
			}
			k, err := ns.Host()
			if err == nil {
				err = k.Delete(box.Interface.Name)
				_ = k.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the sandbox is detached", func() bool { return p.count() == 0 })
		})
	}
	t.Run("process", func(t *testing.T) {
		netlab.Require(t)
		p := newPlane(t)
		r := serve(t, p)
		cmd := exec.Command("unshare", "--net", "sh", "-c", "echo there; read x")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err = cmd.StdinPipe(); err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		box, err := r.client.attach(t.Context(), in("p", NamespaceRequest{PID: cmd.Process.Pid}))
		if err != nil {
			t.Fatal(err)
		}
		inside := exec.Command("nsenter", "--net", "--target", fmt.Sprint(cmd.Process.Pid), "ip", "-o", "address", "show", "tun0")
		if text, err := inside.CombinedOutput(); err != nil || !strings.Contains(string(text), box.Inner.String()) {
			t.Errorf("%s, %v; want %v", text, err, box.Inner)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		eventually(t, "the sandbox is detached", func() bool { return p.count() == 0 })
	})
}

// What cannot be attached says why, costs no attachment, and leaves nothing.
func TestAttachNamespaceRefusals(t *testing.T) {
	ns := newRuntimeNamespace(t)
	p := newPlane(t)
	r := serve(t, p)
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	owner := 1000
	for name, c := range map[string]struct {
		n      NamespaceRequest
		status int
		says   []string
	}{
		"neither":        {NamespaceRequest{}, 400, []string{"/run/netns/"}},
		"both":           {NamespaceRequest{Path: ns.path, PID: 1}, 400, []string{"not by both"}},
		"relative":       {NamespaceRequest{Path: "netns/x"}, 400, []string{"does not begin with /"}},
		"gone":           {NamespaceRequest{Path: "/run/netns/none-such"}, 400, []string{"/run/netns/none-such", "no such"}},
		"no namespace":   {NamespaceRequest{Path: file}, 400, []string{"not a network namespace", "mounts"}},
		"another kind":   {NamespaceRequest{Path: fmt.Sprintf("/proc/%d/ns/mnt", os.Getpid())}, 400, []string{"not a network namespace"}},
		"self":           {NamespaceRequest{Path: "/proc/self/ns/net"}, 400, []string{"by its ID"}},
		"own":            {NamespaceRequest{Path: fmt.Sprintf("/proc/%d/ns/net", os.Getpid())}, 400, []string{"own", "ip netns add"}},
		"own process":    {NamespaceRequest{PID: os.Getpid()}, 400, []string{"own"}},
		"no process":     {NamespaceRequest{PID: 1 << 22}, 400, []string{"no process 4194304"}},
		"kind":           {NamespaceRequest{Path: ns.path, Ethernet: "token ring"}, 400, []string{"veth or tap"}},
		"owner":          {NamespaceRequest{Path: ns.path, Owner: &owner}, 400, []string{"TAP"}},
		"resolv link":    {NamespaceRequest{Path: ns.path, ResolvConf: link}, 400, []string{"symbolic link"}},
		"resolv folder":  {NamespaceRequest{Path: ns.path, ResolvConf: filepath.Join(dir, "none", "resolv.conf")}, 400, []string{"does not exist"}},
		"resolv machine": {NamespaceRequest{Path: ns.path, ResolvConf: "/etc/resolv.conf"}, 400, []string{"resolv.conf"}},
		"long name":      {NamespaceRequest{Path: ns.path, Link: "much-too-long-a-name"}, 400, []string{`"much-too-long-a-name"`, "1 to 15 bytes"}},
		"name of a path": {NamespaceRequest{Path: ns.path, Link: "a/b"}, 400, []string{`"a/b"`, "slash"}},
		"pattern":        {NamespaceRequest{Path: ns.path, Link: "tun%d"}, 400, []string{`"tun%d"`, "pattern"}},
		"spaced name":    {NamespaceRequest{Path: ns.path, Link: "a b"}, 400, []string{`"a b"`, "whitespace"}},
		"dot":            {NamespaceRequest{Path: ns.path, Link: "."}, 400, []string{`"."`, "not a name of an interface"}},
		"dots":           {NamespaceRequest{Path: ns.path, Link: ".."}, 400, []string{`".."`, "not a name of an interface"}},
	} {
		_, err := r.client.attach(t.Context(), in("p", c.n))
		said, ok := err.(*api.Error)
		if !ok || said.Status != c.status {
			t.Errorf("%s: %v; want status %d", name, err, c.status)
			continue
		}
		mustContain(t, err, c.says...)
	}
	if got := ns.links(t); len(got) != 0 || p.count() != 0 {
		t.Errorf("links %v, %d attachments are left", got, p.count())
	}
	both := in("p", NamespaceRequest{Path: ns.path})
	both.Proxy = true
	if _, err := r.client.attach(t.Context(), both); err == nil {
		t.Error("proxies in a namespace were given")
	}
}

// Links and routes that lead around the tunnel are refused.
func TestAttachNamespaceWithOtherLinks(t *testing.T) {
	ns := newRuntimeNamespace(t)
	r := serve(t, newPlane(t))
	k, err := ns.Host()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	more := hostnet.Plan{
		Links:     []hostnet.Link{{Name: "uplink", Veth: &hostnet.VethPeer{Name: "other"}}, {Name: "other"}},
		Addresses: []hostnet.Address{{Link: "uplink", Prefix: netip.MustParsePrefix("198.51.100.1/24")}},
	}
	way := hostnet.Plan{Routes: []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Link: "uplink"}}}
	if err := k.Apply(more); err != nil {
		t.Fatal(err)
	}
	ask := func(n NamespaceRequest) error {
		n.Path = ns.path
		_, err := r.client.attach(t.Context(), in("p", n))
		return err
	}
	mustContain(t, ask(NamespaceRequest{}), "uplink", "--allow-links")
	mustContain(t, ask(NamespaceRequest{OtherLinks: true, Link: "other"}), "has a link other already")
	if err := k.Apply(way); err != nil {
		t.Fatal(err)
	}
	mustContain(t, ask(NamespaceRequest{OtherLinks: true}), "default route", "uplink")
	if err := k.Undo(way); err != nil {
		t.Fatal(err)
	}
	if err := ask(NamespaceRequest{OtherLinks: true}); err != nil {
		t.Error(err)
	}
	if _, err := ns.echo("192.0.2.1:9"); err != nil {
		t.Error(err)
	}
}

// A sandbox whose gateways do not answer is not attached, and leaves nothing.
func TestAttachNamespaceUnproven(t *testing.T) {
	t.Parallel() // it waits for what does not come
	ns := newRuntimeNamespace(t)
	p := newPlane(t)
	p.gateways["net_a"].setMute(true)
	r := serve(t, p)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	_, err := r.client.attach(t.Context(), in("p", NamespaceRequest{Path: ns.path, ResolvConf: conf}))
	mustContain(t, err, "no answer through the tunnels")
	if _, err := os.Stat(conf); err == nil || p.count() != 0 || len(ns.links(t)) != 0 {
		t.Errorf("%d attachments, links %v, resolv.conf %v", p.count(), ns.links(t), err)
	}
	// Who leaves before the answer has no sandbox either.
	p.gateways["net_a"].setMute(false)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.attachNamespace(ctx, in("p", NamespaceRequest{Path: ns.path})); err == nil {
		t.Error("nobody got a sandbox")
	}
	eventually(t, "nothing is left", func() bool { return p.count() == 0 && len(ns.links(t)) == 0 })
}

// What bypasses gets no interface, and is counted until it is detached.
func TestAttachNamespaceBypass(t *testing.T) {
	ns := newRuntimeNamespace(t)
	p := newPlane(t)
	r := serve(t, p)
	req := edge()
	req.Namespace = &NamespaceRequest{Path: ns.path}
	box, err := r.client.attach(t.Context(), req)
	if err != nil || box.Bypass == "" || box.Interface != nil || len(ns.links(t)) != 0 {
		t.Fatalf("%+v, %v, links %v", box, err, ns.links(t))
	}
	if err := r.client.end(t.Context(), box.ID); err != nil || p.count() != 0 {
		t.Errorf("%v, %d attachments", err, p.count())
	}
}

// Who is not root and not the sidecar's user is refused, whatever the socket's mode.
func TestAttachNamespaceByOthers(t *testing.T) {
	r := serve(t, newPlane(t))
	v := &server{sidecar: r.Sidecar}
	for name, ctx := range map[string]context.Context{
		"unknown": t.Context(), "another": context.WithValue(t.Context(), peerKey{}, uint32(os.Geteuid()+4711)),
	} {
		w := httptest.NewRecorder()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "/v1/sandboxes", strings.NewReader(`{"namespace": {"pid": 1}}`))
		if err != nil {
			t.Fatal(err)
		}
		v.create(w, req)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: status %d", name, w.Code)
		}
	}
}

// TestAttachBareName: who names a namespace as ip(8) takes it is told its path. A file of
// that name is what was meant.
func TestAttachBareName(t *testing.T) {
	t.Chdir(t.TempDir())
	attach := func(path string) string {
		_, err := Attach(t.Context(), AttachConfig{Socket: "none.sock", Namespace: NamespaceRequest{Path: path}})
		if err == nil {
			t.Fatalf("%s: attached by no sidecar", path)
		}
		return err.Error()
	}
	const asks = "did you mean /run/netns/"
	if said := attach("web3"); !strings.Contains(said, asks+"web3?") {
		t.Errorf("of a bare name the error is %q", said)
	}
	if err := os.WriteFile("web3", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"web3", "./none", "/run/netns/none"} {
		if said := attach(path); strings.Contains(said, asks) {
			t.Errorf("%s: the error is %q", path, said)
		}
	}
}
