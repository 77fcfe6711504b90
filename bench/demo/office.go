package demo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/tunnel"
)

// officeKeepalive makes the office call us, and keeps its NAT, if it had one, open.
const officeKeepalive = 25 * time.Second

// office is a customer's private network: a WireGuard tunnel of its own, and
// behind it a database that only tells who asks.
type office struct {
	key      tunnel.Key
	stack    *netstack.Device
	watched  *recorder
	tunnel   *tunnel.Tunnel
	database *http.Server
	tasks    errgroup.Group
}

// connect does what a customer does with the answer of the control API: makes a
// tunnel to our side and routes our network into it. It waits until the two
// tunnels have shaken hands. Close the office in any case.
func (o *office) connect(ctx context.Context, w *world, site api.PeeringStatus) (err error) {
	server, err := tunnel.ParseKey(site.SitePublicKey)
	if err != nil {
		return fmt.Errorf("read the site tunnel's key from the control API: %w", err)
	}
	if o.stack, err = netstack.New(netstack.Config{Addresses: []netip.Addr{w.plan.database.Addr()}}); err != nil {
		return fmt.Errorf("make the office's network: %w", err)
	}
	o.watched = newRecorder(o.stack)
	listener, err := o.stack.ListenTCP(w.plan.database)
	if err != nil {
		return fmt.Errorf("start the private database: %w", err)
	}
	o.database = &http.Server{Handler: http.HandlerFunc(tellSource)}
	o.tasks.Go(func() error { return ended(o.database.Serve(listener), http.ErrServerClosed) })
	err = w.office.Do(func() (err error) {
		o.tunnel, err = tunnel.New(tunnel.Config{PrivateKey: o.key, Device: o.watched})
		return err
	})
	if err != nil {
		return fmt.Errorf("make the office's tunnel: %w", err)
	}
	if err := o.tunnel.SetPeer(tunnel.Peer{
		PublicKey: server, AllowedIPs: []netip.Prefix{site.NetworkCIDR}, Endpoint: site.SiteEndpoint, Keepalive: officeKeepalive,
	}); err != nil {
		return fmt.Errorf("make the office's tunnel: %w", err)
	}
	return until(ctx, "the office's tunnel shook hands with "+site.SiteEndpoint.String(), func(context.Context) error {
		peers, err := o.tunnel.Peers()
		if err == nil && (len(peers) != 1 || peers[0].LastHandshake.IsZero()) {
			err = errors.New("no handshake")
		}
		return err
	})
}

// close ends what there is.
func (o *office) close() error {
	var err error
	if o.database != nil {
		err = o.database.Close()
	}
	switch {
	case o.tunnel != nil:
		o.tunnel.Close() // and the network with it
	case o.stack != nil:
		err = errors.Join(err, o.stack.Close())
	}
	return errors.Join(err, o.tasks.Wait())
}

// arrival is a packet that came out of the office's tunnel.
type arrival struct {
	from, to netip.AddrPort
	protocol uint8
}

// maxArrivals bounds what a recorder keeps.
const maxArrivals = 1 << 14

// recorder is a packet device that writes down what comes out of a tunnel.
type recorder struct {
	tun.Device
	mu       sync.Mutex
	arrivals []arrival
	lost     int // beyond the bound, or no IPv4
}

func newRecorder(d tun.Device) *recorder { return &recorder{Device: d} }

// Write implements tun.Device.
func (r *recorder) Write(bufs [][]byte, offset int) (int, error) {
	r.mu.Lock()
	for _, b := range bufs {
		a, ok := parseArrival(b[offset:])
		if !ok || len(r.arrivals) >= maxArrivals {
			r.lost++
			continue
		}
		r.arrivals = append(r.arrivals, a)
	}
	r.mu.Unlock()
	return r.Device.Write(bufs, offset)
}

// seen returns what came, and how much is missing from it.
func (r *recorder) seen() ([]arrival, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]arrival(nil), r.arrivals...), r.lost
}

// parseArrival reads addresses and ports of an IPv4 packet without options; a
// protocol without ports has ports of 0.
func parseArrival(b []byte) (arrival, bool) {
	const header, ports = 20, 4
	if len(b) < header || b[0] != 0x45 {
		return arrival{}, false
	}
	a := arrival{protocol: b[9]}
	var from, to uint16
	if a.protocol == protocolTCP || a.protocol == protocolUDP {
		if len(b) < header+ports {
			return arrival{}, false
		}
		from, to = binary.BigEndian.Uint16(b[header:]), binary.BigEndian.Uint16(b[header+2:])
	}
	a.from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), from)
	a.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), to)
	return a, true
}
