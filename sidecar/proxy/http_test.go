package proxy

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// newWeb is a world whose origin serves HTTP: it tells what was asked, as JSON.
func newWeb(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := newWorld(t, change)
	l, err := w.far.ListenTCP(netip.AddrPortFrom(origin, portHTTP))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/die", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("/upgrade", func(rw http.ResponseWriter, _ *http.Request) {
		c, both, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(c, both)
	})
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		rw.Header().Set("Connection", "X-Hop")
		rw.Header().Set("X-Hop", "1")
		rw.Header().Set("X-End", "1")
		_ = json.NewEncoder(rw).Encode(seen{r.Method, r.Host, r.RequestURI, r.RemoteAddr, string(body), r.Header})
	})
	s := &http.Server{Handler: mux}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return w
}

// seen is what the origin saw of a request.
type seen struct {
	Method, Host, URI, From, Body string
	Header                        http.Header
}

// proxyURL is the proxy, for clients.
func (w *world) proxyURL() *url.URL {
	who := w.Credentials()
	return &url.URL{Scheme: "http", User: url.UserPassword(who.User, who.Password), Host: w.Address().String()}
}

func (w *world) transport(t *testing.T) *http.Transport {
	tr := &http.Transport{Proxy: http.ProxyURL(w.proxyURL())}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func TestHTTPForward(t *testing.T) {
	w := newWeb(t, nil)
	tr := w.transport(t)
	body := strings.NewReader("some text")
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://origin.example/a%2Fb?x=1;y=%zz", body)
	req.Header = http.Header{
		"X-Forwarded-For": {"192.0.2.7"}, "Connection": {"X-Mine"}, "X-Mine": {"1"}, "Keep-Alive": {"1"},
		"Proxy-Connection": {"keep-alive"}, "Te": {"trailers"}, "X-Kept": {"a", "b"}, "User-Agent": nil,
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got seen
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if from := netip.MustParseAddrPort(got.From); from.Addr() != inner {
		t.Errorf("the origin saw %v, want %v", from, inner)
	}
	if got.Method != "PUT" || got.Host != "origin.example" || got.URI != "/a%2Fb?x=1;y=%zz" || got.Body != "some text" {
		t.Errorf("the origin saw %+v", got)
	}
	want := map[string][]string{
		"X-Forwarded-For": {"192.0.2.7"}, "X-Kept": {"a", "b"}, "Via": {pseudonym}, "Content-Length": {"9"},
		"Te": {"trailers"}, "Accept-Encoding": {"gzip"}, // that of the client's own transport
	}
	for name, values := range got.Header {
		if !slices.Equal(values, want[name]) {
			t.Errorf("header %s: %q, want %q", name, values, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("these headers are missing: %v", want)
	}
	if h := resp.Header; h.Get("X-End") != "1" || h.Get("X-Hop") != "" || h.Get("Via") != pseudonym {
		t.Errorf("the answer has the headers %v", h)
	}
}

// said is a request, word for word, and the first line of the answer to it.
func (w *world) said(t *testing.T, request string) (status, text string) {
	t.Helper()
	c := w.client(t)
	who := w.Credentials()
	token := base64.StdEncoding.EncodeToString([]byte(who.User + ":" + who.Password))
	_, _ = io.WriteString(c, strings.ReplaceAll(request, "LOGIN", "Proxy-Authorization: basic "+token))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusProxyAuthRequired && !strings.HasPrefix(resp.Header.Get("Proxy-Authenticate"), "Basic ") {
		t.Errorf("%q: the answer does not say how to log in: %v", request, resp.Header)
	}
	b, _ := io.ReadAll(resp.Body)
	return fmt.Sprint(resp.StatusCode), string(b)
}

func TestHTTPRefusals(t *testing.T) {
	w := newWeb(t, func(c *Config) { c.DialTimeout = 300 * time.Millisecond })
	for request, want := range map[string][2]string{
		"GET http://192.0.2.80/ HTTP/1.1\r\nHost: x\r\n\r\n":                                                {"407", "password"},
		"CONNECT 192.0.2.80:7 HTTP/1.1\r\nHost: x\r\n\r\n":                                                  {"407", "password"},
		"GET / HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic !\r\n\r\n":                                 {"407", "password"},
		"GET / HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic YTpi\r\n\r\n":                              {"407", "password"},
		"GET / HTTP/1.1\r\nHost: 192.0.2.80\r\nLOGIN\r\n\r\n":                                               {"400", "absolute"},
		"GET https://192.0.2.80/ HTTP/1.1\r\nHost: x\r\nLOGIN\r\n\r\n":                                      {"400", "CONNECT"},
		"GET http://192.0.2.80:999/ HTTP/1.1\r\nHost: x\r\nLOGIN\r\n\r\n":                                   {"502", "refused"},
		"GET http://192.0.2.99/ HTTP/1.1\r\nHost: x\r\nLOGIN\r\n\r\n":                                       {"504", "deadline"},
		"GET http://nothing.example/ HTTP/1.1\r\nHost: x\r\nLOGIN\r\n\r\n":                                  {"502", "no such host"},
		"GET http://[2001:db8::1]/ HTTP/1.1\r\nHost: x\r\nLOGIN\r\n\r\n":                                    {"502", "IPv4 only"},
		"GET http://192.0.2.80/die HTTP/1.1\r\nHost: x\r\nLOGIN\r\n\r\n":                                    {"502", ""},
		"CONNECT 192.0.2.80:999 HTTP/1.1\r\nHost: x\r\nLOGIN\r\n\r\n":                                       {"502", "refused"},
		"CONNECT 192.0.2.99:80 HTTP/1.1\r\nHost: x\r\nLOGIN\r\n\r\n":                                        {"504", "deadline"},
		"CONNECT 0.0.0.0:80 HTTP/1.1\r\nHost: x\r\nLOGIN\r\n\r\n":                                           {"403", "no host"},
		"CONNECT 192.0.2.80 HTTP/1.1\r\nHost: x\r\nLOGIN\r\n\r\n":                                           {"400", "HOST:PORT"},
		"CONNECT :80 HTTP/1.1\r\nHost: x\r\nLOGIN\r\n\r\n":                                                  {"400", ""},
		"TRACE http://192.0.2.80/ HTTP/1.1\r\nHost: x\r\nLOGIN\r\n\r\n":                                     {"501", ""},
		"OPTIONS http://192.0.2.80/ HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\nLOGIN\r\n\r\n":                {"501", ""},
		"OPTIONS http://192.0.2.80 HTTP/1.1\r\nHost: x\r\nMax-Forwards: 3\r\nLOGIN\r\n\r\n":                 {"200", ""},
		"GET http://192.0.2.80/ HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 2*maxHeader) + "\r\n\r\n": {"431", ""},
		"GET nonsense\r\n\r\n": {"400", ""},
	} {
		status, text := w.said(t, request)
		if status != want[0] || !strings.Contains(text, want[1]) {
			t.Errorf("%.80q: %s %q; want %s and %q", request, status, text, want[0], want[1])
		}
	}
	var got seen
	_, text := w.said(t, "GET http://192.0.2.80/x HTTP/1.1\r\nHost: another\r\nLOGIN\r\n\r\n")
	if err := json.Unmarshal([]byte(text), &got); err != nil || got.Host != "192.0.2.80" {
		t.Errorf("the origin saw the host %q, %v; want that of the URL", got.Host, err)
	}
	if got.Header.Get("Proxy-Authorization") != "" {
		t.Error("the origin saw the password")
	}
}

func TestHTTPConnect(t *testing.T) {
	w := newWeb(t, nil)
	who := w.Credentials()
	token := base64.StdEncoding.EncodeToString([]byte(who.User + ":" + who.Password))
	c := w.client(t)
	// What is said before the answer belongs to the connection.
	_, _ = io.WriteString(c, "CONNECT origin.example:8 HTTP/1.1\r\nHost: origin.example:8\r\nProxy-Authorization: Basic "+token+"\r\n\r\nearly")
	b := bufio.NewReader(c)
	resp, err := http.ReadResponse(b, &http.Request{Method: http.MethodConnect})
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%+v, %v", resp, err)
	}
	_ = resp.Body.Close()
	_, _ = io.WriteString(c, "late")
	_ = c.CloseWrite()
	if got, err := io.ReadAll(b); err != nil || string(got) != "9" {
		t.Errorf("got %q, %v; want the number of bytes sent", got, err)
	}
	w.wantStats(t, Stats{Served: 1})
}

// A protocol that takes the connection over, as WebSocket does.
func TestHTTPUpgrade(t *testing.T) {
	w := newWeb(t, nil)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://192.0.2.80/upgrade", http.NoBody)
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"echo"}}
	resp, err := w.transport(t).RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%+v, %v", resp, err)
	}
	both := resp.Body.(io.ReadWriteCloser)
	_, _ = io.WriteString(both, "hello")
	expect(t, both, []byte("hello"))
	_ = both.Close()
	w.wantStats(t, Stats{Served: 1})
}

// Requests of a client that leaves are not carried on.
func TestHTTPClientLeaves(t *testing.T) {
	w := newWorld(t, nil)
	l, err := w.far.ListenTCP(netip.AddrPortFrom(origin, portHTTP))
	if err != nil {
		t.Fatal(err)
	}
	began, left := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	s := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if once.CompareAndSwap(false, true) {
			close(began)
			<-r.Context().Done()
			close(left)
		}
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	who := w.Credentials()
	c := w.client(t)
	_, _ = io.WriteString(c, "GET http://192.0.2.80/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic "+
		base64.StdEncoding.EncodeToString([]byte(who.User+":"+who.Password))+"\r\n\r\n")
	<-began
	_ = c.Close()
	select {
	case <-left:
	case <-time.After(patience):
		t.Error("the origin still works for a client that has left")
	}
}

// curl is a client that is not ours, for each protocol.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	w := newWeb(t, nil)
	web := w.proxyURL()
	socks := *web
	socks.Scheme = "socks5h"
	for what, args := range map[string][]string{
		"HTTP":    {"-x", web.String()},
		"CONNECT": {"-x", web.String(), "--proxytunnel"},
		"SOCKS5":  {"-x", socks.String()},
	} {
		for _, host := range []string{"192.0.2.80", "origin.example"} {
			out, err := exec.Command(curl, append(args, "-sS", "--noproxy", "", "--max-time", "10", "http://"+host+"/")...).CombinedOutput()
			var got seen
			if err != nil || json.Unmarshal(out, &got) != nil || got.Host != host {
				t.Errorf("%s to %s: %v, %s", what, host, err, out)
				continue
			}
			if from := netip.MustParseAddrPort(got.From); from.Addr() != inner {
				t.Errorf("%s: the origin saw %v, want %v", what, from, inner)
			}
		}
	}
}

// A stranger holds no connection by a request that never ends.
func TestHTTPStrangerIsNotWaitedFor(t *testing.T) {
	w := newWeb(t, func(c *Config) { c.HandshakeTimeout = 200 * time.Millisecond })
	c := w.client(t)
	_, _ = io.WriteString(c, "POST http://origin.example/ HTTP/1.1\r\nHost: origin.example\r\nContent-Length: 100\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 407 ") {
		t.Errorf("%q, %v; want 407 and the end", answer, err)
	}
	eventually(t, "there is room for another", func() bool { return w.Stats().Open == 0 })
}
