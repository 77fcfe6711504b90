package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/tundev"
	"github.com/sallyport-net/sallyport/sidecar/handover"
)

// codeControl is the code of the error that the control plane cannot be asked.
const codeControl = "control_unreachable" // 503

// maxRequest is the largest body of a request, in bytes.
const maxRequest = 64 << 10

// sandboxRequest asks for a sandbox to be attached.
type sandboxRequest struct {
	Project     string    `json:"project"`
	Environment string    `json:"environment"`
	Kind        spec.Kind `json:"kind"`
	Runtime     string    `json:"runtime"`
	// Proxy asks for proxies instead of an interface.
	Proxy bool `json:"proxy,omitempty"`
	// Namespace asks for an interface in a network namespace. The sandbox then lives
	// until it is detached, or its namespace or process ends.
	Namespace *NamespaceRequest `json:"namespace,omitempty"`
}

// Attached says what a sandbox got.
type Attached struct {
	ID string `json:"id"`
	// Bypass says why the sandbox has no tunnel; then the rest is empty.
	Bypass  string `json:"bypass,omitempty"`
	Network string `json:"network,omitempty"`
	// Inner is the sandbox's address, DNS those of its name servers: one to three.
	Inner netip.Addr   `json:"inner,omitzero"`
	DNS   []netip.Addr `json:"dns,omitempty"`
	// MTU is that of its interface, in bytes.
	MTU int `json:"mtu,omitempty"`
	// Hide are absolute paths that the sandbox must not find.
	Hide []string `json:"hide,omitempty"`
	// Passive is the sandbox's attachment to its passive network.
	Passive PassiveStatus `json:"passive,omitzero"`
	// Proxies are there if they were asked for. The sandbox has no interface then.
	Proxies *proxiesAnswer `json:"proxies,omitempty"`
	// Interface is there if one was asked for in a network namespace.
	Interface *InterfaceAnswer `json:"interface,omitempty"`
}

// server is the local API.
type server struct {
	sidecar  *Sidecar
	listener net.Listener
	http     *http.Server
	mux      *http.ServeMux

	mu    sync.Mutex     // guards ended, and that nobody enters once it is set
	ended bool           // no call is taken any more
	calls sync.WaitGroup // under way, those that hold a sandbox among them
}

// listen makes the socket and what is served there.
func (s *Sidecar) listen(ctx context.Context) (*server, error) {
	l, err := listenPrivately(ctx, s.cfg.Socket)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", s.cfg.Socket, err)
	}
	v := &server{sidecar: s, listener: l, mux: http.NewServeMux()}
	v.mux.HandleFunc("POST /v1/sandboxes", v.create)
	v.mux.HandleFunc("GET /v1/sandboxes", v.list)
	v.mux.HandleFunc("DELETE /v1/sandboxes/{id}", v.remove)
	v.mux.HandleFunc("POST /v1/sandboxes/{id}/device", v.device)
	v.mux.HandleFunc("GET /v1/status", v.status)
	v.mux.HandleFunc("/", v.unknown)
	v.http = &http.Server{
		Handler:           v,
		ReadHeaderTimeout: 5 * time.Second,
		ConnContext:       withPeer,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	return v, nil
}

// ServeHTTP counts the calls, so that the sidecar's end waits for those under way.
func (v *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !v.enter() {
		refuse(w, ending())
		return
	}
	defer v.calls.Done()
	v.mux.ServeHTTP(w, r)
}

// ending is the answer of a sidecar that takes nothing more.
func ending() *api.Error {
	return &api.Error{Status: http.StatusServiceUnavailable, Code: api.CodeStopping, Message: "the sidecar is ending; ask the one that comes after it"}
}

// enter counts a call in, unless none is taken any more.
func (v *server) enter() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.ended {
		v.calls.Add(1)
	}
	return !v.ended
}

// run serves until ctx ends.
func (v *server) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = v.http.Close() })
	defer stop()
	if err := v.http.Serve(v.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve at %s: %w", v.sidecar.cfg.Socket, err)
	}
	return nil
}

// wait takes no more calls and returns when none is under way.
func (v *server) wait() {
	v.mu.Lock()
	v.ended = true
	v.mu.Unlock()
	v.calls.Wait()
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // an asker that has left needs no answer
}

func refuse(w http.ResponseWriter, err error) {
	var said *api.Error
	if !errors.As(err, &said) {
		said = &api.Error{Status: http.StatusInternalServerError, Code: api.CodeInternal, Message: err.Error()}
	}
	answer(w, said.Status, api.ErrorBody{Error: said})
}

// create attaches a sandbox.
func (v *server) create(w http.ResponseWriter, r *http.Request) {
	var req sandboxRequest
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	body.DisallowUnknownFields()
	if err := body.Decode(&req); err != nil {
		refuse(w, &api.Error{Status: http.StatusBadRequest, Code: api.CodeBadRequest, Message: fmt.Sprintf("the body is not a sandbox: %v", err)})
		return
	}
	if req.Namespace != nil {
		if !entitled(r.Context()) {
			refuse(w, &api.Error{Status: http.StatusForbidden, Code: api.CodeForbidden, Message: "only root and the sidecar's own user may name network namespaces"})
			return
		}
		out, err := v.sidecar.attachNamespace(r.Context(), req)
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, http.StatusCreated, out)
		return
	}
	out, err := v.sidecar.attach(r.Context(), req)
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, http.StatusCreated, out)
}

// remove detaches a sandbox.
func (v *server) remove(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if !v.sidecar.detach(context.WithoutCancel(r.Context()), id, "asked to") {
		refuse(w, &api.Error{Status: http.StatusNotFound, Code: api.CodeNotFound, Message: fmt.Sprintf("there is no sandbox %q here", id)})
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (v *server) list(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, v.sidecar.listing())
}

func (v *server) status(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, v.sidecar.status())
}

func (v *server) unknown(w http.ResponseWriter, r *http.Request) {
	refuse(w, &api.Error{Status: http.StatusNotFound, Code: api.CodeNotFound, Message: fmt.Sprintf("there is no %s %s here", r.Method, r.URL.Path)})
}

// device takes the connection over that brings a sandbox's device.
func (v *server) device(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != handover.Protocol {
		refuse(w, &api.Error{Status: http.StatusBadRequest, Code: api.CodeBadRequest, Message: "the device comes over an upgraded connection; send the header Upgrade: " + handover.Protocol})
		return
	}
	e, err := v.sidecar.claim(r.PathValue("id"))
	if err != nil {
		refuse(w, err)
		return
	}
	why := "its connection ended"
	defer func() { v.sidecar.detach(context.Background(), e.id, why) }()
	conn, err := hijack(w)
	if err != nil {
		why = err.Error()
		return
	}
	defer conn.Close()
	why = v.hold(conn, e).Error()
}

// hijack takes a connection from the HTTP server and says so to the client.
func hijack(w http.ResponseWriter) (*net.UnixConn, error) {
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, fmt.Errorf("take the connection over: %w", err))
		return nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok || buffered.Reader.Buffered() > 0 {
		_ = c.Close()
		return nil, errors.New("the client spoke before it was answered")
	}
	_ = conn.SetDeadline(time.Now().Add(deviceTimeout))
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", handover.Protocol); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// hold serves a sandbox as long as its connection lives. Its error, which is
// never nil, is why the sandbox never ran or does not any more.
func (v *server) hold(conn *net.UnixConn, e *entry) error {
	ended, err := v.begin(conn, e)
	_ = conn.SetDeadline(time.Now().Add(deviceTimeout))
	if err != nil {
		v.sidecar.cfg.Log.Warn("a sandbox cannot run", "sandbox", e.id, "error", err)
		_ = handover.Answer(conn, handover.Reply{Error: err.Error()})
		return err
	}
	if err := handover.Answer(conn, handover.Reply{Ready: true}); err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	left := make(chan struct{})
	go func() {
		defer close(left)
		_, _ = conn.Read(make([]byte, 1)) // the client has nothing more to say
	}()
	select {
	case <-left:
		return errors.New("its connection ended")
	case <-e.gone:
		err = errors.New("it was detached")
	case <-ended:
		err = errors.New("its interface is gone")
	}
	_ = conn.Close()
	<-left
	return err
}

// begin receives the device and starts to switch. The channel is closed when
// switching ends; it is nil for a sandbox that bypasses. One with proxies brings
// no device.
func (v *server) begin(conn *net.UnixConn, e *entry) (<-chan struct{}, error) {
	m, f, err := handover.Receive(conn)
	if err != nil {
		return nil, err
	}
	v.sidecar.mu.Lock()
	proxied := e.proxied
	v.sidecar.mu.Unlock()
	if wanted := e.network != nil && proxied == nil; wanted != (f != nil) {
		if f != nil {
			_ = f.Close()
		}
		return nil, fmt.Errorf("an interface of type %q, and that the sandbox needs one is %t", m.Type, wanted)
	}
	var dev tun.Device
	switch {
	case e.network == nil:
		return nil, nil
	case f == nil:
		dev = proxied
	default:
		if dev, err = v.sidecar.openDevice(m, f, e.network.info.MTU); err != nil {
			return nil, err
		}
	}
	if err := v.sidecar.connectDevice(context.Background(), e, dev); err != nil {
		return nil, err
	}
	return e.sw.ended, nil
}

// openDevice makes a packet device of a descriptor, which belongs to it then, or is closed.
func (s *Sidecar) openDevice(m handover.Message, f *os.File, mtu int) (tun.Device, error) {
	var dev *tundev.Device
	var err error
	cfg := s.deviceConfig(mtu)
	cfg.LocalMAC, cfg.PeerMAC = net.HardwareAddr(m.LocalMAC), net.HardwareAddr(m.PeerMAC)
	if m.Type == handover.Packet {
		dev, err = tundev.FromPacket(f, cfg)
	} else {
		dev, err = tundev.FromTUN(f, cfg)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	if _, err := dev.Name(); err != nil { // a descriptor of something else has none
		_ = dev.Close()
		return nil, fmt.Errorf("the descriptor is no interface of type %q: %w", m.Type, err)
	}
	s.cfg.Log.Debug("a sandbox's interface is taken over", "type", m.Type, "offload", dev.Offload().String())
	return dev, nil
}

// deviceConfig is what the devices of all sandboxes have in common.
func (s *Sidecar) deviceConfig(mtu int) tundev.Config {
	return tundev.Config{MTU: mtu, Offload: !s.cfg.NoOffload, Scratch: &s.scratch}
}
