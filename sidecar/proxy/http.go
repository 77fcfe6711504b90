package proxy

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// idleRequests is how long a client's connection may be without a request.
	idleRequests = 2 * time.Minute
	// maxHeader is the largest header of a request, and of an answer, in bytes.
	maxHeader = 256 << 10
	// idleServers is how many connections to servers wait for further requests, and
	// idleServer for how long.
	idleServers = 64
	idleServer  = 30 * time.Second
	// pseudonym stands for the host in Via (RFC 9110 section 7.6.3).
	pseudonym = "1.1 sallyport"
)

// newTransport makes what sends requests on: unchanged, into the network.
func (s *Server) newTransport() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			if !s.enter() {
				return nil, net.ErrClosed
			}
			defer s.tasks.Done()
			t, err := parseTarget(address)
			if err != nil {
				return nil, err
			}
			return s.dial(ctx, t)
		},
		DisableCompression:     true,
		MaxIdleConns:           idleServers,
		MaxIdleConnsPerHost:    idleServers / 8,
		IdleConnTimeout:        idleServer,
		MaxResponseHeaderBytes: maxHeader,
	}
}

// newHandler makes what answers requests.
func (s *Server) newHandler() http.Handler {
	forward := &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      s.transport,
		FlushInterval:  -1,
		ErrorLog:       log.New(io.Discard, "", 0),
		BufferPool:     (*bodyBuffers)(s),
		ModifyResponse: func(r *http.Response) error { r.Header.Add("Via", pseudonym); return nil },
		ErrorHandler:   func(w http.ResponseWriter, _ *http.Request, err error) { refuseHTTP(w, err) },
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.enter() {
			panic(http.ErrAbortHandler)
		}
		defer s.tasks.Done()
		switch user, password, ok := proxyLogin(r); {
		case !ok || !s.credentials.match([]byte(user), []byte(password)):
			s.noteStranger()
			// The server reads on to the end of the request; a stranger's must come soon.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.cfg.HandshakeTimeout))
			w.Header().Set("Proxy-Authenticate", `Basic realm="sallyport"`)
			http.Error(w, "this proxy needs the name and password of its sandbox", http.StatusProxyAuthRequired)
		case r.Method == http.MethodConnect:
			s.httpConnect(w, r)
		case r.URL.Scheme != "http" || r.URL.Host == "":
			http.Error(w, "this is a proxy: send CONNECT, or a request with an absolute http URL", http.StatusBadRequest)
		case r.Method == http.MethodTrace || lastHop(r):
			http.Error(w, "the proxy does not answer this itself", http.StatusNotImplemented)
		default:
			forward.ServeHTTP(w, r)
		}
	})
}

// proxyLogin reads the header Proxy-Authorization (RFC 7617).
func proxyLogin(r *http.Request) (user, password string, ok bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Proxy-Authorization"), " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", "", false
	}
	text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(token))
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(text), ":")
}

// lastHop says whether a request must not be sent on (RFC 9110 section 7.6.2).
func lastHop(r *http.Request) bool {
	return r.Method == http.MethodOptions && strings.Trim(r.Header.Get("Max-Forwards"), "0") == "" && r.Header.Get("Max-Forwards") != ""
}

// rewrite makes the request that is sent on. That headers of one hop are gone
// from it is the ReverseProxy's work; what that changes because it commonly
// stands before servers is taken back.
func rewrite(p *httputil.ProxyRequest) {
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := p.In.Header[name]; ok {
			p.Out.Header[name] = values
		}
	}
	p.Out.URL.RawQuery = p.In.URL.RawQuery
	p.Out.Header.Add("Via", pseudonym)
	if p.In.Method != http.MethodOptions {
		return
	}
	if left, err := strconv.ParseUint(p.In.Header.Get("Max-Forwards"), 10, 32); err == nil && left > 0 {
		p.Out.Header.Set("Max-Forwards", strconv.FormatUint(left-1, 10))
	}
	if p.In.URL.Path == "" && p.In.URL.RawQuery == "" { // RFC 9112 section 3.2.4
		p.Out.URL = &url.URL{Scheme: p.In.URL.Scheme, Host: p.In.URL.Host, Opaque: "*"}
	}
}

// bodyBuffers lends the server's buffers to the copying of bodies.
type bodyBuffers Server

// Get implements httputil.BufferPool.
func (b *bodyBuffers) Get() []byte { return *b.buffers.Get().(*[]byte) }

// Put implements httputil.BufferPool.
func (b *bodyBuffers) Put(buf []byte) { b.buffers.Put(&buf) }

// httpConnect serves CONNECT (RFC 9110 section 9.3.6).
func (s *Server) httpConnect(w http.ResponseWriter, r *http.Request) {
	t, err := parseTarget(r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remote, err := s.dial(r.Context(), t)
	if err != nil {
		refuseHTTP(w, err)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		remote.Abort()
		return
	}
	c := conn.(*client)
	_ = c.SetDeadline(time.Time{})
	if n := buffered.Reader.Buffered(); n > 0 { // it did not wait for the answer
		early, _ := buffered.Reader.Peek(n)
		c.ahead = append(append([]byte{}, early...), c.ahead...)
	}
	if _, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		remote.Abort()
		c.Abort()
		return
	}
	s.carry(c, remote)
}

// refuseHTTP says why a destination is not reached.
func refuseHTTP(w http.ResponseWriter, err error) {
	status := http.StatusBadGateway
	switch causeOf(err) {
	case causeTimeout:
		status = http.StatusGatewayTimeout
	case causeNowhere:
		status = http.StatusForbidden
	}
	if errors.Is(err, context.Canceled) {
		panic(http.ErrAbortHandler) // the client has left, or the server ends
	}
	http.Error(w, err.Error(), status)
}
