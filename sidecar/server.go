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
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
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
}

// sandboxAnswer says what the sandbox gets.
type sandboxAnswer struct {
	ID string `json:"id"`
	// Bypass says why the sandbox has no tunnel; then the rest is empty.
	Bypass  string `json:"bypass,omitempty"`
	Network string `json:"network,omitempty"`
	// Inner is the sandbox's address, DNS those of its name servers: one to three.
	Inner netip.Addr   `json:"inner,omitzero"`
	DNS   []netip.Addr `json:"dns,omitempty"`
	// MTU is that of its interface, in bytes.
	MTU int `json:"mtu,omitempty"`
}

// server is the local API.
type server struct {
	sidecar  *Sidecar
	listener net.Listener
	http     *http.Server
	held     sync.WaitGroup // connections that were upgraded
}

// listen makes the socket: nobody but this user may connect. A socket that a
// sidecar left behind is replaced, one that is in use is not.
func (s *Sidecar) listen() (*server, error) {
	path := s.cfg.Socket
	if err := ownFolder(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("listen at %s: another sidecar serves there; end it, or give this one another socket", path)
	} else if !errors.Is(err, os.ErrNotExist) {
		if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
			_ = os.Remove(path) // if it stays, listening fails and says why
		}
	}
	// The mask is the process's; nothing else makes files while it serves nobody yet.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	v := &server{sidecar: s, listener: l}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/sandboxes", v.create)
	mux.HandleFunc("GET /v1/sandboxes", v.list)
	mux.HandleFunc("DELETE /v1/sandboxes/{id}", v.remove)
	mux.HandleFunc("POST /v1/sandboxes/{id}/device", v.device)
	mux.HandleFunc("GET /v1/status", v.status)
	mux.HandleFunc("/", v.unknown)
	v.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	return v, nil
}

// ownFolder makes the folder of the socket, or checks that it is not one of those
// that everybody writes to: sandboxes see it empty.
func ownFolder(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSticky != 0 || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("the folder %s is open to others; choose one that is the sidecar's alone, such as %s", path, filepath.Join(path, "sallyport"))
	}
	return nil
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

// wait returns when no upgraded connection is left.
func (v *server) wait() { v.held.Wait() }

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
	v.held.Add(1)
	defer v.held.Done()
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
// switching ends; it is nil for a sandbox that bypasses.
func (v *server) begin(conn *net.UnixConn, e *entry) (<-chan struct{}, error) {
	m, f, err := handover.Receive(conn)
	if err != nil {
		return nil, err
	}
	if bypass := e.network == nil; bypass || f == nil {
		if bypass && f == nil {
			return nil, nil
		}
		if f != nil {
			_ = f.Close()
		}
		return nil, fmt.Errorf("an interface of type %q, and the sandbox's bypass is %t", m.Type, bypass)
	}
	dev, err := openDevice(m, f, e.network.info.MTU)
	if err != nil {
		return nil, err
	}
	if err := v.sidecar.connectDevice(context.Background(), e, dev); err != nil {
		return nil, err
	}
	return e.sw.ended, nil
}

// openDevice makes a packet device of a descriptor, which belongs to it then, or is closed.
func openDevice(m handover.Message, f *os.File, mtu int) (tun.Device, error) {
	var dev *tundev.Device
	var err error
	cfg := tundev.Config{MTU: mtu, LocalMAC: net.HardwareAddr(m.LocalMAC), PeerMAC: net.HardwareAddr(m.PeerMAC)}
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
	return dev, nil
}
