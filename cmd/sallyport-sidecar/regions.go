package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/sidecar"
	"github.com/sallyport-net/sallyport/sidecar/failover"
)

// regions finds the control planes of other regions: those of the configuration,
// and else where the desired state says that they are.
type regions struct {
	token string // for those of the desired state

	mu      sync.Mutex                 // guards what follows
	settled map[string]sidecar.Control // by region
	named   map[string]*api.Client     // by address
	clients []*api.Client
}

// newRegions reads the tokens of the configuration's regions.
func newRegions(c config.Sidecar, token string) (*regions, error) {
	r := &regions{token: token, settled: make(map[string]sidecar.Control), named: make(map[string]*api.Client)}
	for name, region := range c.Regions {
		secret, err := api.ReadTokenFile(region.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("regions[%s].token_file: %w", name, err)
		}
		client, err := api.NewClient(api.ClientConfig{Address: region.API, Token: secret})
		if err != nil {
			return nil, fmt.Errorf("regions[%s]: %w", name, err)
		}
		r.settled[name] = client
		r.clients = append(r.clients, client)
	}
	return r, nil
}

// Control implements sidecar.Regions.
func (r *regions) Control(region, address string) (sidecar.Control, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.settled[region]; c != nil {
		return c, nil
	}
	if address == "" {
		return nil, errors.New("neither the sidecar's settings (regions) nor the desired state (regions[].api) say where it is")
	}
	if c := r.named[address]; c != nil {
		return c, nil
	}
	c, err := api.NewClient(api.ClientConfig{Address: address, Token: r.token})
	if err != nil {
		return nil, err
	}
	r.named[address] = c
	r.clients = append(r.clients, c)
	return c, nil
}

// close closes idle connections.
func (r *regions) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.clients {
		c.Close()
	}
}

// failoverSettings translates what the configuration says.
func failoverSettings(c config.Failover) failover.Config {
	return failover.Config{
		InUse: c.Probe, Standby: c.ProbeStandby, Suspect: c.ProbeSuspect,
		Misses: c.Misses, MissesBusy: c.MissesBusy,
		Hold: c.Hold, HoldJitter: c.HoldJitter,
		Failbacks: c.Failbacks, FailbackWindow: c.FailbackWindow,
	}
}

// secrets are the paths that lead to control planes.
func secrets(c config.Sidecar) []string {
	paths := []string{c.TokenFile}
	addresses := []string{c.API}
	for _, r := range c.Regions {
		paths = append(paths, r.TokenFile)
		addresses = append(addresses, r.API)
	}
	for _, a := range addresses {
		if socket, ok := strings.CutPrefix(a, "unix://"); ok {
			paths = append(paths, socket)
		}
	}
	for i, p := range paths {
		if absolute, err := filepath.Abs(p); err == nil {
			paths[i] = absolute
		}
	}
	return paths
}
