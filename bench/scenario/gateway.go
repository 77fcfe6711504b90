package scenario

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// errFixed says that a gateway takes no more sandboxes than it was given with.
var errFixed = errors.New("a WireGuard file has the sandboxes that are in it: give --api, or --chain")

// gateway is what is measured.
type gateway interface {
	about() about
	// place is where the tunnels' sockets are opened; nil: here.
	place() traffic.Place
	// attach lets a sandbox of a worker in, whose public key is in base64. The error is
	// errFixed where there is no API for it.
	attach(ctx context.Context, public string) (attached, error)
	// fixed are the ends that a WireGuard file gives; nil: sandboxes are attached.
	fixed() []traffic.End
	// gone says why the gateway is no more; nil: as far as is known it is there.
	gone() error
	close(ctx context.Context) error
}

// attached is a sandbox that a gateway let in.
type attached struct {
	id      string
	inner   netip.Addr
	gateway traffic.Gateway
	pair    []netip.Addr
}

// keys are those of a worker, in base64.
type keys struct{ private, public string }

func newKeys() (k keys, err error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return k, fmt.Errorf("draw a worker's key: %w", err)
	}
	return keys{base64.StdEncoding.EncodeToString(key.Bytes()), base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())}, nil
}

// operated is a gateway that a control API attaches sandboxes to.
type operated struct {
	client  *api.Client
	request api.AttachRequest
	facts   about
	more    chan string // IDs of what is attached
}

func newOperated(cfg *Config) (*operated, error) {
	token, err := api.ReadTokenFile(cfg.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("%w (--token-file)", err)
	}
	client, err := api.NewClient(api.ClientConfig{Address: cfg.API, Token: token})
	if err != nil {
		return nil, err
	}
	return &operated{
		client: client, facts: about{Kind: cfg.kind(), Pair: []netip.Addr{}, Far: cfg.Far}, more: make(chan string, 1<<15),
		request: api.AttachRequest{
			Project: cfg.Project, Environment: cfg.Environment, Region: cfg.Region, Kind: spec.KindFunction, Runtime: spec.RuntimeGo,
		},
	}, nil
}

func (o *operated) about() about         { return o.facts }
func (o *operated) place() traffic.Place { return nil }
func (o *operated) fixed() []traffic.End { return nil }
func (o *operated) gone() error          { return nil }

func (o *operated) attach(ctx context.Context, public string) (attached, error) {
	request := o.request
	request.PublicKey = public
	a, err := o.client.Attach(ctx, request)
	if err != nil {
		return attached{}, fmt.Errorf("attach a sandbox: %w", err)
	}
	if len(a.Gateways) == 0 {
		return attached{}, fmt.Errorf("attach a sandbox of %s/%s: it bypasses the gateway, so that there is nothing to measure", request.Project, request.Environment)
	}
	select {
	case o.more <- a.Attachment.ID:
	default: // more than are allowed
	}
	return attachedOf(a), nil
}

func attachedOf(a api.AttachResponse) attached {
	g := a.Gateways[0]
	return attached{
		id: a.Attachment.ID, inner: a.Attachment.Inner, pair: a.Network.Pair[:],
		gateway: traffic.Gateway{PublicKey: g.PublicKey, Endpoint: g.Endpoint, MTU: a.Network.MTU},
	}
}

// detachers is how many sandboxes are detached at a time, and detachPatience bounds it.
const (
	detachers      = 16
	detachPatience = time.Minute
)

// close detaches what was attached.
func (o *operated) close(ctx context.Context) error {
	defer o.client.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachPatience)
	defer cancel()
	var group errgroup.Group // one that fails keeps none of the others attached
	group.SetLimit(detachers)
	for left := true; left; {
		select {
		case id := <-o.more:
			group.Go(func() error { return o.client.Detach(ctx, id) })
		default:
			left = false
		}
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("detach the sandboxes: %w", err)
	}
	return nil
}

// stock is any WireGuard gateway, by a file as wg-quick takes it.
type stock struct {
	end   traffic.End
	facts about
}

func newStock(cfg *Config) (*stock, error) {
	b, err := os.ReadFile(cfg.WireGuard)
	if err != nil {
		return nil, fmt.Errorf("read the WireGuard file (--wireguard): %w", err)
	}
	end, err := parseWireGuard(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.WireGuard, err)
	}
	return &stock{end, about{Kind: cfg.kind(), Endpoint: end.Gateway.Endpoint, Pair: append([]netip.Addr{}, cfg.Pair...), Far: cfg.Far}}, nil
}

func (s *stock) about() about                { return s.facts }
func (s *stock) place() traffic.Place        { return nil }
func (s *stock) fixed() []traffic.End        { return []traffic.End{s.end} }
func (s *stock) gone() error                 { return nil }
func (s *stock) close(context.Context) error { return nil }

func (s *stock) attach(context.Context, string) (attached, error) { return attached{}, errFixed }

// maxSpan is how many addresses of a prefix in a WireGuard file are used.
const maxSpan = 1 << 12

// parseWireGuard reads the one peer of a file. Each address of [Interface] is a sandbox;
// a prefix shorter than /32 is one sandbox, too: its other addresses are others'.
func parseWireGuard(text string) (end traffic.End, err error) {
	section, peers := "", 0
	var errs []error
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if strings.HasPrefix(line, "[") {
			if section = strings.ToLower(line); section == "[peer]" {
				peers++
			}
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			errs = append(errs, fmt.Errorf("line %d is no setting", i+1))
			continue
		}
		if err := setWireGuard(&end, section+strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value)); err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", i+1, err))
		}
	}
	switch {
	case peers != 1:
		errs = append(errs, fmt.Errorf("it has %d peers: one is the gateway", peers))
	case end.PrivateKey == "" || end.Gateway.PublicKey == "" || !end.Gateway.Endpoint.IsValid():
		errs = append(errs, errors.New("it lacks PrivateKey, or the peer's PublicKey or Endpoint"))
	case len(end.Inners) == 0 || len(end.Inners) > maxSpan:
		errs = append(errs, fmt.Errorf("it has %d IPv4 addresses (Address): 1 to %d are sandboxes", len(end.Inners), maxSpan))
	}
	return end, errors.Join(errs...)
}

func setWireGuard(end *traffic.End, key, value string) (err error) {
	switch key {
	case "[interface]privatekey":
		end.PrivateKey = value
	case "[interface]mtu":
		_, err = fmt.Sscanf(value, "%d", &end.Gateway.MTU)
	case "[interface]address":
		for _, one := range strings.Split(value, ",") {
			text, _, _ := strings.Cut(strings.TrimSpace(one), "/")
			a, aerr := netip.ParseAddr(text)
			if aerr != nil {
				return fmt.Errorf("address %q: %w", one, aerr)
			}
			if a.Is4() {
				end.Inners = append(end.Inners, a)
			}
		}
	case "[peer]publickey":
		end.Gateway.PublicKey = value
	case "[peer]endpoint":
		if end.Gateway.Endpoint, err = netip.ParseAddrPort(value); err != nil {
			err = fmt.Errorf("endpoint %q must be an address and a port: names are not resolved", value)
		}
	case "[peer]presharedkey":
		err = errors.New("a preshared key is not supported")
	}
	return err
}
