package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/sidecar/handover"
	"github.com/sallyport-net/sallyport/sidecar/inlet"
)

// NamespaceRequest names a network namespace in which the sidecar shall make a
// sandbox's interface, and says what it shall be.
type NamespaceRequest struct {
	// Path is that of a namespace, such as /run/netns/NAME, in the sidecar's view; PID
	// is a process that is in it, at whose end the sandbox ends. One of them.
	Path string `json:"path,omitempty"`
	PID  int    `json:"pid,omitempty"`
	// Ethernet is veth or tap for an interface with Ethernet addresses; without it the
	// interface is a TUN.
	Ethernet string `json:"ethernet,omitempty"`
	// Link is the interface's name; without it tun0, eth0 or tap0.
	Link string `json:"link,omitempty"`
	// Owner is the ID of the user who may open a TAP, besides root.
	Owner *int `json:"owner,omitempty"`
	// OtherLinks allows links that are there already.
	OtherLinks bool `json:"otherLinks,omitempty"`
	// ResolvConf is the path of a file that shall name the sandbox's name servers.
	ResolvConf string `json:"resolvConf,omitempty"`
}

// InterfaceAnswer says what a sandbox's stack must know of its interface. What a TUN
// and a veth need is set up already; the guest behind a TAP sets itself up.
type InterfaceAnswer struct {
	Name string `json:"name"`
	Kind string `json:"kind"` // tun, veth or tap
	// CIDR is the network's, for a guest that must put its gateway into a prefix.
	CIDR netip.Prefix `json:"cidr"`
	// MAC must be the sandbox's, or nothing of it passes. Everything goes to Gateway,
	// which has GatewayMAC. A TUN has none of them.
	MAC        handover.MAC `json:"mac,omitempty"`
	Gateway    netip.Addr   `json:"gateway,omitzero"`
	GatewayMAC handover.MAC `json:"gatewayMAC,omitempty"`
}

// placed is the namespace of a sandbox.
type placed struct {
	id      hostnet.NamespaceID
	name    string
	process *inlet.Process // nil: it was named by a path
}

// request makes what package inlet takes of a request.
func (r NamespaceRequest) request() (inlet.Target, inlet.Config, error) {
	c := inlet.Config{Kind: inlet.TUN, Link: r.Link, Owner: -1, OtherLinks: r.OtherLinks}
	switch r.Ethernet {
	case "":
	case string(inlet.Veth), string(inlet.TAP):
		c.Kind = inlet.Kind(r.Ethernet)
	default:
		return inlet.Target{}, c, fmt.Errorf("there is no Ethernet of kind %q: write veth or tap, or leave it out for a TUN", r.Ethernet)
	}
	if r.Owner != nil {
		if c.Kind != inlet.TAP || *r.Owner < 0 {
			return inlet.Target{}, c, errors.New("an owner is the ID of the user who may open a TAP; nothing else has one")
		}
		c.Owner = *r.Owner
	}
	if r.Link != "" {
		if err := hostnet.CheckName(r.Link); err != nil {
			return inlet.Target{}, c, err
		}
	}
	if r.ResolvConf != "" {
		if err := inlet.CheckResolvConf(r.ResolvConf); err != nil {
			return inlet.Target{}, c, fmt.Errorf("the sandbox's resolv.conf %s cannot be written: %w", r.ResolvConf, err)
		}
	}
	return inlet.Target{Path: r.Path, PID: r.PID}, c, nil
}

// attachNamespace attaches a sandbox with an interface in a namespace of somebody
// else's. It returns when packets pass. After an error nothing of it is left.
func (s *Sidecar) attachNamespace(ctx context.Context, req sandboxRequest) (Attached, error) {
	wrong := func(err error) *api.Error {
		return &api.Error{Status: http.StatusBadRequest, Code: api.CodeBadRequest, Message: err.Error()}
	}
	if req.Proxy {
		return Attached{}, wrong(errors.New("proxies take the place of an interface; leave the network namespace out, or the proxies"))
	}
	target, cfg, err := req.Namespace.request()
	if err != nil {
		return Attached{}, wrong(err)
	}
	p, err := inlet.Find(target)
	if err != nil {
		return Attached{}, wrong(err)
	}
	defer p.Forget()
	defer p.Close() // what is held cannot end
	if err := s.reserve(p); err != nil {
		return Attached{}, err
	}
	kept := false
	defer func() {
		if !kept {
			s.vacate(p.ID())
		}
	}()
	if err := p.Check(cfg); err != nil {
		return Attached{}, &api.Error{Status: http.StatusConflict, Code: api.CodeConflict, Message: err.Error()}
	}
	box, err := s.attach(ctx, req)
	if err != nil {
		return Attached{}, err
	}
	e, err := s.claim(box.ID)
	if err != nil {
		return Attached{}, err
	}
	if err = s.install(ctx, e, p, cfg, &box); err == nil && req.Namespace.ResolvConf != "" && box.Bypass == "" {
		err = inlet.WriteResolvConf(req.Namespace.ResolvConf, box.DNS)
	}
	if err == nil {
		err = context.Cause(ctx) // who has left knows of no sandbox, and would never end it
	}
	if err == nil {
		kept, err = s.keep(e, p), nil
		if !kept {
			err = errors.New("the sandbox was detached while it was attached")
		}
	}
	if err != nil {
		s.cfg.Log.Warn("a sandbox cannot run", "sandbox", e.id, "error", err)
		s.detach(context.WithoutCancel(ctx), e.id, "it could not run")
		p.Undo(cfg)
		return Attached{}, err
	}
	return box, nil
}

// reserve sees that one namespace is one sandbox's.
func (s *Sidecar) reserve(p *inlet.Place) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, taken := s.places[p.ID()]
	switch {
	case s.closing:
		return ending()
	case taken && id == "":
		return &api.Error{Status: http.StatusConflict, Code: api.CodeConflict, Message: fmt.Sprintf("%v is being attached by another call", p)}
	case taken:
		return &api.Error{Status: http.StatusConflict, Code: api.CodeConflict, Message: fmt.Sprintf("%v belongs to sandbox %s already; detach that first", p, id)}
	}
	s.places[p.ID()] = ""
	return nil
}

// vacate undoes reserve.
func (s *Sidecar) vacate(id hostnet.NamespaceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.places, id)
}

// install makes a claimed sandbox's interface and returns when packets pass. What
// bypasses gets none: its network is the runtime's.
func (s *Sidecar) install(ctx context.Context, e *entry, p *inlet.Place, cfg inlet.Config, box *Attached) error {
	if box.Bypass != "" {
		return nil
	}
	cfg.Inner, cfg.Gateway, cfg.Device = box.Inner, e.network.info.Gateway, s.deviceConfig(box.MTU)
	in, err := s.inlets.Open(p, cfg)
	if err != nil {
		return err
	}
	box.Interface = &InterfaceAnswer{
		Name: in.Link.Name, Kind: string(cfg.Kind), CIDR: e.network.info.CIDR,
		MAC: handover.MAC(in.Link.MAC), Gateway: in.Link.Gateway, GatewayMAC: handover.MAC(in.Link.GatewayMAC),
	}
	return s.connectDevice(ctx, e, in)
}

// keep writes the namespace of a sandbox that runs down, and sees that it is detached
// when its interface or its process ends. False means that it was detached meanwhile.
func (s *Sidecar) keep(e *entry, p *inlet.Place) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[e.id] != e {
		return false
	}
	s.places[p.ID()] = e.id
	e.place = &placed{id: p.ID(), name: p.String(), process: p.Process()}
	s.tasks.Go(func() { s.follow(e) })
	return true
}

// follow detaches a sandbox that has ended by itself, and returns when it is detached.
func (s *Sidecar) follow(e *entry) {
	var interfaceGone, processGone <-chan struct{}
	if e.sw != nil {
		interfaceGone = e.sw.ended
	}
	if e.place.process != nil {
		processGone = e.place.process.Ended()
		defer e.place.process.Close()
	}
	why := ""
	select {
	case <-e.gone:
		return
	case <-interfaceGone:
		why = "its interface is gone"
	case <-processGone:
		why = "its process has ended"
	}
	s.detach(s.background, e.id, why)
}

// peerKey is the key of a connection's peer in contexts.
type peerKey struct{}

// withPeer notes who is at the other end of a connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var who *unix.Ucred
	err = raw.Control(func(fd uintptr) { who, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || who == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, who.Uid)
}

// entitled says whether a call comes from root or from the sidecar's own user, as the
// socket's mode already wants it.
func entitled(ctx context.Context) bool {
	uid, known := ctx.Value(peerKey{}).(uint32)
	return known && (uid == 0 || int(uid) == os.Geteuid())
}

// AttachConfig is a sandbox that shall be attached in a network namespace.
type AttachConfig struct {
	// Socket is that of the sidecar on this machine.
	Socket string
	// Project, Environment, Kind and Runtime say whose sandbox it is.
	Project, Environment string
	Kind                 spec.Kind
	Runtime              string
	// Namespace is where, and how. Paths may be relative.
	Namespace NamespaceRequest
}

// Attach has the sidecar on this machine attach a sandbox in a network namespace. When
// it returns, packets pass, and the sandbox lives on without the caller.
func Attach(ctx context.Context, cfg AttachConfig) (Attached, error) {
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	n := cfg.Namespace
	if n.Path != "" && !strings.Contains(n.Path, "/") {
		if _, err := os.Stat(n.Path); errors.Is(err, fs.ErrNotExist) {
			return Attached{}, fmt.Errorf("there is no network namespace %s in this folder: did you mean /run/netns/%s?", n.Path, n.Path)
		}
	}
	for _, path := range []*string{&n.Path, &n.ResolvConf} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return Attached{}, fmt.Errorf("find %s: %w", *path, err)
		}
		*path = absolute
	}
	out, err := newLocalClient(cfg.Socket).attach(ctx, sandboxRequest{
		Project: cfg.Project, Environment: cfg.Environment, Kind: cfg.Kind, Runtime: cfg.Runtime, Namespace: &n,
	})
	if err != nil {
		return Attached{}, fmt.Errorf("attach a sandbox: %w", err)
	}
	return out, nil
}

// Detach has the sidecar on this machine end a sandbox, and returns when it has. One
// that does not exist is an error.
func Detach(ctx context.Context, socket, id string) error {
	if err := newLocalClient(socket).end(ctx, id); err != nil {
		return fmt.Errorf("detach sandbox %s: %w", id, err)
	}
	return nil
}
