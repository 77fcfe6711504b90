package sidecar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/sidecar/handover"
)

// proxiedEcho sends a datagram to a far address and back as a program with
// proxies does, and says what it has.
func proxiedEcho(to netip.AddrPort) error {
	u, err := url.Parse(os.Getenv("all_proxy"))
	if err != nil || u.Scheme != "socks5h" || os.Getenv("no_proxy") != "" {
		return fmt.Errorf("all_proxy is %q, no_proxy %q", os.Getenv("all_proxy"), os.Getenv("no_proxy"))
	}
	c, err := net.Dial("tcp4", u.Host)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	password, _ := u.User.Password()
	user := u.User.Username()
	say := append([]byte{5, 1, 2, 1, byte(len(user))}, user...)
	say = append(append(say, byte(len(password))), password...)
	say = append(say, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0)
	if _, err := c.Write(say); err != nil {
		return err
	}
	var answer [14]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil || answer[5] != 0 {
		return fmt.Errorf("answer % x, %w", answer, err)
	}
	d, err := net.Dial("udp4", netip.AddrPortFrom(netip.AddrFrom4([4]byte(answer[8:12])), uint16(answer[12])<<8|uint16(answer[13])).String())
	if err != nil {
		return err
	}
	defer d.Close()
	_ = d.SetDeadline(time.Now().Add(patience))
	four := to.Addr().As4()
	message := append([]byte{0, 0, 0, 1}, four[:]...)
	message = append(message, byte(to.Port()>>8), byte(to.Port()))
	message = append(message, "hello"...)
	if _, err := d.Write(message); err != nil {
		return err
	}
	b := make([]byte, 100)
	n, err := d.Read(b)
	if err != nil || !bytes.Equal(b[:n], message) {
		return fmt.Errorf("answer % x, %w; want % x", b[:n], err, message)
	}
	return nil
}

// forbidden names the mode in which TestExecForbidden is the process that may not
// make user namespaces: "first", which gives itself up for it, or what it tries.
const forbidden = "SALLYPORT_TEST_FORBIDDEN"

// Where user namespaces are forbidden, exec says so and what is left; with proxies
// it works, says what it is, and is listed as such.
func TestExecForbidden(t *testing.T) {
	socket := os.Getenv("SALLYPORT_TEST_SOCKET")
	switch mode := os.Getenv(forbidden); mode {
	case "":
	case "plain", "proxied":
		code, err := Exec(ExecConfig{
			Socket: socket, Project: "p", Environment: "production", Kind: spec.KindFunction, Runtime: "go",
			Proxy: mode == "proxied", Command: self(t, "proxied", "192.0.2.1:9"), Messages: os.Stderr,
		})
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(code)
	default:
		_ = os.Setenv(forbidden, strings.TrimPrefix(mode, "first "))
		t.Fatal(netlab.ExecWithoutNamespaces([]string{os.Args[0], "-test.run=^TestExecForbidden$"}))
	}
	p := newPlane(t)
	r := serve(t, p)
	try := func(mode string, in io.Reader) (int, string) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestExecForbidden$")
		cmd.Env = append(os.Environ(), forbidden+"=first "+mode, "SALLYPORT_TEST_SOCKET="+r.cfg.Socket, "no_proxy=192.0.2.1")
		cmd.Stdin = in
		out, err := cmd.CombinedOutput()
		var ended *exec.ExitError
		if err != nil && !errors.As(err, &ended) {
			t.Fatal(err)
		}
		if strings.Contains(string(out), "forbid user namespaces") {
			netlab.NotRun(t, string(out))
		}
		return cmd.ProcessState.ExitCode(), string(out)
	}
	code, text := try("plain", nil)
	if code != 125 || !strings.Contains(text, "namespaces") || !strings.Contains(text, "--proxy") {
		t.Errorf("without namespaces exec ends with %d and %q; want 125, and what to do", code, text)
	}
	code, text = try("proxied", nil)
	if code != 0 || strings.Count(text, "not enforced") != 1 {
		t.Errorf("with proxies exec ends with %d and %q; want 0 and a warning", code, text)
	}
	if n := p.gateways["net_a"].from(netip.MustParseAddr("10.0.1.2")); n != 1 {
		t.Errorf("the gateway saw %d packets of the sandbox, want 1", n)
	}
	if n := p.count(); n != 0 {
		t.Errorf("%d attachments are left", n)
	}
	if drops := r.status(); len(drops.Egress)+len(drops.Ingress) != 0 {
		t.Errorf("drops %v %v", drops.Egress, drops.Ingress)
	}
}

// proxies asks for a sandbox with proxies over the local API, and holds it.
func (r *running) proxies(t *testing.T) (Attached, *net.UnixConn) {
	t.Helper()
	req := request("p")
	req.Proxy = true
	box, err := r.client.attach(t.Context(), req)
	if err != nil || box.Proxies == nil {
		t.Fatalf("attach = %+v, %v", box, err)
	}
	conn, err := r.client.device(t.Context(), box.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return box, conn
}

func TestProxiedIsListed(t *testing.T) {
	r := serve(t, newPlane(t))
	box, conn := r.proxies(t)
	if err := holdBare(conn); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", box.Proxies.HTTP.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "the client is counted", func() bool {
		var all Listing
		r.get(t, "/v1/sandboxes", &all)
		return len(all.Sandboxes) == 1 && all.Sandboxes[0].Proxied && all.Sandboxes[0].Proxy.Open == 1 &&
			all.Sandboxes[0].State == "running" && all.Attached == 1
	})
	// The end of the connection ends the sandbox, and its proxies.
	_ = conn.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the proxy says something")
	}
	eventually(t, "nobody listens", func() bool {
		c, err := net.Dial("tcp4", box.Proxies.HTTP.String())
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
}

// Proxies that nobody comes for end with their sandbox.
func TestProxiedIsDetached(t *testing.T) {
	p := newPlane(t)
	r := serve(t, p)
	req := request("p")
	req.Proxy = true
	box, err := r.client.attach(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.client.detach(t.Context(), box.ID); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp4", box.Proxies.SOCKS5.String()); err == nil {
		_ = c.Close()
		t.Error("the proxies of a detached sandbox listen on")
	}
	if p.count() != 0 {
		t.Error("it is still attached")
	}
}

// A sandbox with proxies takes no interface beside, and one without needs one.
func TestProxiedTakesNoInterface(t *testing.T) {
	r := serve(t, newPlane(t))
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, conn := r.proxies(t)
	if err := handover.Send(conn, handover.Message{Type: handover.TUN}, f); err != nil {
		t.Fatal(err)
	}
	mustContain(t, handover.Await(conn), "an interface of type")
	box, err := r.client.attach(t.Context(), request("p"))
	if err != nil {
		t.Fatal(err)
	}
	if conn, err = r.client.device(t.Context(), box.ID); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	mustContain(t, holdBare(conn), "an interface of type")
}

// Whoever bypasses does so with proxies, too: untouched and without a warning.
func TestExecProxyBypass(t *testing.T) {
	r := serve(t, newPlane(t))
	t.Setenv("all_proxy", "http://mine.example")
	out := execute(t, ExecConfig{
		Socket: r.cfg.Socket, Project: "p", Runtime: spec.RuntimeEdge, Proxy: true, Command: []string{"sh", "-c", "echo $all_proxy"},
	}, nil)
	if out.code != 0 || out.err != nil || out.messages != "" || out.output != "http://mine.example\n" {
		t.Errorf("%+v", out)
	}
}

// Exit codes are the command's; the end of the sidecar is said.
func TestExecProxyEnds(t *testing.T) {
	p := newPlane(t)
	r := serve(t, p)
	for want, command := range map[int][]string{3: {"sh", "-c", "exit 3"}, 143: {"sh", "-c", "kill -TERM $$"}, 127: {"no-such-command"}} {
		out := execute(t, ExecConfig{Socket: r.cfg.Socket, Project: "p", Runtime: "go", Proxy: true, Command: command}, nil)
		if out.code != want || p.count() != 0 {
			t.Errorf("%q: %+v, %d attachments are left", command, out, p.count())
		}
	}
	said := make(sayings, 4)
	told := make(chan struct{})
	lines := make(chan string, 1)
	go func() { <-lines; r.stop() }()
	go func() {
		defer close(told)
		<-said // the warning
		if word := <-said; !strings.Contains(word, "proxies are gone") {
			t.Errorf("exec says %q", word)
		}
	}()
	out := execute(t, ExecConfig{
		Socket: r.cfg.Socket, Project: "p", Runtime: "go", Proxy: true, Command: []string{"sh", "-c", "echo running; read x; exit 0"},
		Stdin: reader(t, told), Messages: said,
	}, lines)
	if out.code != 0 || out.err != nil {
		t.Errorf("%+v", out)
	}
}

// The command does not begin before the gateway has answered.
func TestExecProxyIsProven(t *testing.T) {
	p := newPlane(t)
	r := serve(t, p)
	p.gateways["net_a"].setMute(true)
	answered := make(chan int64, 1)
	go func() {
		for all := r.listing(); len(all.Sandboxes) == 0 || all.Sandboxes[0].State != "running"; all = r.listing() {
			runtime.Gosched()
		}
		answered <- time.Now().UnixNano()
		p.gateways["net_a"].setMute(false)
	}()
	out := execute(t, ExecConfig{Socket: r.cfg.Socket, Project: "p", Runtime: "go", Proxy: true, Command: []string{"date", "+%s%N"}}, nil)
	began, err := strconv.ParseInt(strings.TrimSpace(out.output), 10, 64)
	if out.code != 0 || err != nil {
		t.Fatalf("%+v, %v", out, err)
	}
	if early := <-answered - began; early > 0 {
		t.Errorf("the command began %v before the gateway answered", time.Duration(early))
	}
}

func TestProxyEnvironment(t *testing.T) {
	p := proxiesAnswer{
		SOCKS5: netip.MustParseAddrPort("127.0.0.1:1080"), HTTP: netip.MustParseAddrPort("127.0.0.1:8080"), User: "u", Password: "p",
	}
	got := p.environment([]string{"A=1", "NO_PROXY=x", "no_proxy=x", "Http_Proxy=x", "ALL_PROXY=x", "ftp_proxy=x", "PROXY=2"})
	slices.Sort(got)
	want := []string{
		"A=1", "ALL_PROXY=socks5h://u:p@127.0.0.1:1080", "HTTPS_PROXY=http://u:p@127.0.0.1:8080", "HTTP_PROXY=http://u:p@127.0.0.1:8080",
		"PROXY=2", "all_proxy=socks5h://u:p@127.0.0.1:1080", "http_proxy=http://u:p@127.0.0.1:8080", "https_proxy=http://u:p@127.0.0.1:8080",
	}
	if !slices.Equal(got, want) {
		t.Errorf("environment %q, want %q", got, want)
	}
}

// What the sidecar says of the passive network is passed on when it is bad news.
func TestExecPassiveWarning(t *testing.T) {
	for state, words := range map[string]string{
		passiveFailed: "no passive network net_p in region cle1: no host", passivePending: "no passive network net_p in region cle1 yet",
		passiveReady: "", passiveNone: "",
	} {
		l, err := net.Listen("unix", t.TempDir()+"/s")
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost && r.URL.Path == "/v1/sandboxes" {
				w.WriteHeader(http.StatusCreated)
				_ = json.NewEncoder(w).Encode(Attached{ID: "x", Network: "net_a", Passive: PassiveStatus{Region: "cle1", Network: "net_p", State: state, Reason: "no host"}})
				return
			}
			refuse(w, &api.Error{Status: http.StatusNotFound, Code: api.CodeNotFound, Message: "here it ends"})
		}))
		_ = s.Listener.Close()
		s.Listener = l
		s.Start()
		var said bytes.Buffer
		code, err := Exec(ExecConfig{Socket: l.Addr().String(), Command: []string{"true"}, Messages: &said})
		s.Close()
		if code != 125 || err == nil {
			t.Errorf("%d, %v", code, err)
		}
		if got := said.String(); (got != "") != (words != "") || !strings.Contains(got, words) {
			t.Errorf("state %s: exec says %q", state, got)
		}
	}
}
