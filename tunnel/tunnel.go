// Package tunnel is the life of one WireGuard device: its keys, its UDP port,
// its peers and their counters. What goes through the tunnel comes from and
// goes to a batching [tun.Device] that the caller hands in.
//
// A packet that leaves: Device.Read -> the peer is chosen by destination ->
// encrypted -> UDP. A packet that arrives: UDP -> decrypted, replays rejected ->
// dropped unless its source is one of the peer's allowed addresses ->
// Device.Write, one call per batch of one peer.
package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"syscall"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// MaxBatch is the largest Config.Batch.
const MaxBatch = 256

// Config says what a tunnel is made of.
type Config struct {
	// PrivateKey is the tunnel's own key.
	PrivateKey Key
	// ListenPort is the UDP port on all of the host's addresses; 0 takes a free one.
	ListenPort uint16
	// Device is where packets come from and go to. It belongs to the tunnel
	// from the call of New on, also when New fails: it is closed with the tunnel.
	// Its Up and Down events are ignored; a tunnel is up until it is closed.
	Device tun.Device
	// Offload is what is not asked of the kernel for the UDP sockets.
	Offload Offload
	// Batch is how many packets are moved at once at most, 1 to MaxBatch, unless Device moves
	// more; 0 is 128. WireGuard keeps three buffers of 64 KiB for each, so that a program with
	// very many tunnels wants less. What comes in together is of more flows at high rates: one
	// that joins it wants more.
	Batch int
	// Calls says that the tunnel calls all of its peers and none has to find it: sockets
	// are opened only for the kinds of addresses, IPv4 or IPv6, that the endpoints have
	// that SetPeer is given. Each kind costs a goroutine, and a buffer for each packet of
	// a batch.
	Calls bool
	// Log takes WireGuard's own messages, all at debug level, and what an operator has
	// to know. Nil is silence.
	Log *slog.Logger
}

// Tunnel is a WireGuard device that is up. Its methods may be called by many
// goroutines at once.
type Tunnel struct {
	dev    *device.Device
	bind   *bind
	public Key
	port   uint16
	seen   sightings

	mu        sync.Mutex // guards what follows and keeps changes of peers in order
	peers     map[Key]*known
	owner     map[netip.Prefix]*known // the same, by allowed prefix
	greetings map[Key]*greeting       // those under way
	done      bool
}

// ErrClosed is returned by methods of a tunnel that was closed.
var ErrClosed = errors.New("the tunnel is closed")

// New makes a tunnel and brings it up. When it fails, everything that was
// started has ended, and the device is closed. A port that another program
// holds is an error that wraps [syscall.EADDRINUSE].
func New(cfg Config) (*Tunnel, error) {
	if cfg.Device == nil {
		return nil, errors.New("make a WireGuard tunnel: no packet device was given")
	}
	if cfg.PrivateKey.IsZero() {
		_ = cfg.Device.Close()
		return nil, errors.New("make a WireGuard tunnel: no private key was given")
	}
	if cfg.Batch < 0 || cfg.Batch > MaxBatch {
		_ = cfg.Device.Close()
		return nil, fmt.Errorf("make a WireGuard tunnel: batches of %d packets; choose from 1 to %d", cfg.Batch, MaxBatch)
	}
	t := &Tunnel{
		bind:      &bind{batch: cfg.Batch, log: cfg.Log, offload: cfg.Offload, spared: kinds{cfg.Calls, cfg.Calls}},
		public:    cfg.PrivateKey.Public(),
		peers:     make(map[Key]*known),
		owner:     make(map[netip.Prefix]*known),
		greetings: make(map[Key]*greeting),
	}
	t.dev = device.NewDevice(newAlwaysUp(cfg.Device), t.bind, bridge(cfg.Log, &t.seen))
	if err := t.start(cfg); err != nil {
		t.dev.Close()
		return nil, err
	}
	return t, nil
}

// start sets the device's key and port, opens its sockets and learns which port it got.
func (t *Tunnel) start(cfg Config) error {
	if err := t.dev.SetPrivateKey(device.NoisePrivateKey(cfg.PrivateKey)); err != nil {
		return fmt.Errorf("set the private key of the tunnel %s: %w", t.public, err)
	}
	if err := t.dev.IpcSet(fmt.Sprintf("listen_port=%d\n", cfg.ListenPort)); err != nil {
		return fmt.Errorf("set UDP port %d of the tunnel %s: %w", cfg.ListenPort, t.public, err)
	}
	if err := t.dev.Up(); err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("listen on UDP port %d for the tunnel %s: %w; stop the program that holds the port (`ss -lunp sport = :%d` names it) or choose another port", cfg.ListenPort, t.public, syscall.EADDRINUSE, cfg.ListenPort)
		}
		return fmt.Errorf("listen on UDP port %d for the tunnel %s: %w", cfg.ListenPort, t.public, err)
	}
	state, err := t.read()
	if err != nil {
		return err
	}
	t.port = state.listenPort
	return nil
}

// PublicKey is the key by which other tunnels know this one.
func (t *Tunnel) PublicKey() Key { return t.public }

// ListenPort is the UDP port in use; of a tunnel that calls, 0 until it has called.
func (t *Tunnel) ListenPort() uint16 { return t.port }

// Done is closed when the tunnel has ended: by Close, or because reading from
// its packet device failed.
func (t *Tunnel) Done() <-chan struct{} { return t.dev.Wait() }

// Close ends the tunnel and closes its packet device. It returns when nothing
// will read from or write to the device any more. It may be called again.
func (t *Tunnel) Close() {
	t.mu.Lock()
	t.done = true
	for peer := range t.greetings {
		t.endGreeting(peer)
	}
	t.mu.Unlock()
	t.dev.Close()
	<-t.dev.Wait()
}

// closed reports whether the tunnel has ended. The caller holds t.mu.
func (t *Tunnel) closed() bool {
	select {
	case <-t.dev.Wait():
		return true
	default:
		return t.done
	}
}
