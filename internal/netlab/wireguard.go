package netlab

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// wireguardSockets is where wireguard-go makes the sockets that wg looks for. All
// namespaces share it.
const wireguardSockets = "/var/run/wireguard"

// devicePrefix begins the names of a lab's devices. The process's number follows,
// to base 32 (which knows no x), an x, and five characters by chance: 15 bytes at most.
const devicePrefix = "slab"

func newDevice() string {
	return devicePrefix + strconv.FormatInt(int64(os.Getpid()), 32) + "x" + strings.ToLower(rand.Text()[:5])
}

// deviceOwner is the process that a device's name tells, if it is a lab's.
func deviceOwner(device string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(device, devicePrefix)
	text, _, found := strings.Cut(rest, "x")
	n, err := strconv.ParseInt(text, 32, 32)
	return int(n), ok && found && err == nil && n > 0
}

// WireGuardUsable says why WireGuard's own programs, wireguard-go and wg, cannot
// run here. For tests there is [RequireWireGuard].
func WireGuardUsable() error {
	for _, name := range []string{"wireguard-go", "wg"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("the program %s is not installed (make deps): %w", name, err)
		}
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("wireguard-go needs a TUN device: %w", err)
	}
	_ = f.Close()
	err = os.MkdirAll(wireguardSockets, 0o755)
	if err == nil {
		err = unix.Access(wireguardSockets, unix.W_OK)
	}
	if err != nil {
		return fmt.Errorf("wg wants its sockets in %s: %w", wireguardSockets, err)
	}
	return nil
}

// RequireWireGuard skips a test, loudly, where labs cannot be built or
// WireGuard's own programs cannot run.
func RequireWireGuard(t TB) {
	t.Helper()
	Require(t)
	if err := WireGuardUsable(); err != nil {
		NotRun(t, err.Error())
	}
}

// WireGuardConfig describes how a WireGuard device runs. The zero value is right
// for most.
type WireGuardConfig struct {
	// Program is the path of wireguard-go; empty for the one that is installed.
	Program string
	// Wrap comes before the program, like taskset and its arguments. It must become
	// the program by exec.
	Wrap []string
}

// WireGuard is a WireGuard device of WireGuard's own programs in a namespace: a
// process of wireguard-go, configured by wg. It ends with the lab.
type WireGuard struct {
	namespace *Namespace
	device    string
	cmd       *exec.Cmd
	ended     chan struct{}
	err       error // of the end; valid once ended is closed
	said      tail
}

// WireGuard starts a device and waits until it takes a configuration. At first it
// has none, and is down.
func (n *Namespace) WireGuard(ctx context.Context, cfg WireGuardConfig) (*WireGuard, error) {
	if err := n.lab.Err(); err != nil {
		return nil, err
	}
	if err := sweepWireGuard(wireguardSockets); err != nil {
		return nil, err
	}
	if cfg.Program == "" {
		cfg.Program = "wireguard-go"
	}
	w := &WireGuard{namespace: n, device: newDevice(), ended: make(chan struct{})}
	args := append(append([]string(nil), cfg.Wrap...), cfg.Program, "--foreground", w.device)
	w.cmd = exec.Command(args[0], args[1:]...)
	w.cmd.Stdout, w.cmd.Stderr = &w.said, &w.said
	if err := n.Start(w.cmd); err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.devices = append(n.devices, w)
	n.mu.Unlock()
	go func() {
		w.err = w.cmd.Wait()
		close(w.ended)
	}()
	if err := w.await(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("netlab: start wireguard-go in %s: %w", n, err), w.Stop())
	}
	return w, nil
}

// await waits until the device's socket answers.
func (w *WireGuard) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", w.socket())
		if err == nil {
			return c.Close()
		}
		select {
		case <-again.C:
		case <-w.ended:
			return fmt.Errorf("it ended: %w: %s", w.err, w.said.b)
		case <-ctx.Done():
			return fmt.Errorf("its socket %s does not answer: %w", w.socket(), err)
		}
	}
}

func (w *WireGuard) socket() string { return filepath.Join(wireguardSockets, w.device+".sock") }

// Device is the name of the interface, which no other device of this machine has.
func (w *WireGuard) Device() string { return w.device }

// PID is the process's.
func (w *WireGuard) PID() int { return w.cmd.Process.Pid }

// Configure replaces the device's keys, port and peers by a text as `wg setconf`
// takes it: sections [Interface] and [Peer], without the lines that only wg-quick knows.
func (w *WireGuard) Configure(text string) error {
	return w.wg(text, "setconf", w.device, "/dev/stdin")
}

// SetPrivateKey replaces the device's private key, in base64.
func (w *WireGuard) SetPrivateKey(key string) error {
	return w.wg(key, "set", w.device, "private-key", "/dev/stdin")
}

func (w *WireGuard) wg(in string, args ...string) error {
	cmd := exec.Command("wg", args...)
	cmd.Stdin = strings.NewReader(in)
	return w.namespace.Run(cmd)
}

// Up gives the device an MTU and addresses, brings it up, and routes prefixes to it.
func (w *WireGuard) Up(mtu int, addresses, routes []netip.Prefix) error {
	// Not kept with the namespace's plan: the device may end before the namespace.
	p := hostnet.Plan{Links: []hostnet.Link{{Name: w.device, MTU: mtu}}}
	for _, a := range addresses {
		p.Addresses = append(p.Addresses, hostnet.Address{Link: w.device, Prefix: a})
	}
	for _, r := range routes {
		p.Routes = append(p.Routes, hostnet.Route{Prefix: r, Link: w.device})
	}
	if err := w.namespace.host.Apply(p); err != nil {
		return fmt.Errorf("netlab: bring up a WireGuard device in %s: %w", w.namespace, err)
	}
	return nil
}

// Running says why the process does not run, if it does not.
func (w *WireGuard) Running() error {
	select {
	case <-w.ended:
		return fmt.Errorf("netlab: wireguard-go in %s ended: %w: %s", w.namespace, w.err, w.said.b)
	default:
		return nil
	}
}

// Stop ends the process, and so the device. It may be called again.
func (w *WireGuard) Stop() error {
	_ = w.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-w.ended:
	case <-time.After(5 * time.Second):
		_ = w.cmd.Process.Kill()
		<-w.ended
	}
	if err := os.Remove(w.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("netlab: remove what wireguard-go left: %w", err)
	}
	return nil
}

// NewWireGuardKey makes a key pair, in base64.
func NewWireGuardKey() (private, public string, err error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("netlab: make a key: %w", err)
	}
	enc := base64.StdEncoding
	return enc.EncodeToString(key.Bytes()), enc.EncodeToString(key.PublicKey().Bytes()), nil
}

// sweepWireGuard removes the sockets of devices of labs whose processes were
// killed, theirs and the devices' both. Sockets of living labs, and those that are
// no lab's, stay.
func sweepWireGuard(dir string) error {
	list, err := filepath.Glob(filepath.Join(dir, devicePrefix+"*x*.sock"))
	if err != nil {
		return fmt.Errorf("netlab: look for what is stale: %w", err)
	}
	for _, path := range list {
		pid, ok := deviceOwner(strings.TrimSuffix(filepath.Base(path), ".sock"))
		if !ok {
			continue
		}
		// The number may have been given to another process: that leaves the socket
		// for later. One that answers is in use, whatever the number says.
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			continue
		}
		if c, err := net.Dial("unix", path); err == nil {
			_ = c.Close()
			continue
		} else if !errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("netlab: remove what a killed lab left: %w", err)
		}
	}
	return nil
}
