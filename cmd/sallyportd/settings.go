package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/config"
)

// settings is all that was read from files.
type settings struct {
	daemon config.Daemon
	// state is the desired state, where the control plane runs here.
	state spec.State
}

// load reads the configuration, and the desired state where it names one.
func load(file string) (settings, error) {
	f, err := os.Open(file)
	if err != nil {
		return settings{}, fmt.Errorf("open the configuration: %w", err)
	}
	defer f.Close()
	d, err := config.ReadDaemon(file, f)
	if err != nil {
		return settings{}, err
	}
	s := settings{daemon: d}
	if !d.Roles.Control {
		return s, nil
	}
	if s.state, err = readState(d.DesiredState); err != nil {
		return settings{}, err
	}
	if err := s.fits(); err != nil {
		return settings{}, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}

func readState(file string) (spec.State, error) {
	f, err := os.Open(file)
	if err != nil {
		return spec.State{}, fmt.Errorf("open the desired state, which desired_state names: %w", err)
	}
	defer f.Close()
	return config.ReadState(file, f)
}

// fits holds the configuration against the desired state.
func (s settings) fits() error {
	d := s.daemon
	region, ok := s.state.Region(d.Region)
	if !ok {
		return fmt.Errorf("region: %q is not in %s: name one of its regions", d.Region, d.DesiredState)
	}
	if !d.Roles.Gateway {
		return nil
	}
	if !slices.ContainsFunc(region.Hosts, func(h spec.Host) bool { return h.Name == d.Host }) {
		return fmt.Errorf("host: region %s of %s has no host %q: add it there or correct the name", d.Region, d.DesiredState, d.Host)
	}
	for _, n := range s.state.Networks {
		if d.RegionSecretFile == "" && n.Site != nil && n.Region == d.Region && slices.Contains(hosts(s.state, n), d.Host) {
			return fmt.Errorf("region_secret_file: network %s has a site tunnel, whose key derives from the region's secret: name the file that holds it (%s)", n.ID, makeRegionSecret("FILE"))
		}
		if r := d.WireGuard.Ports; n.Site != nil && n.Region == d.Region && n.Site.Host == d.Host && (n.Site.Port < r.First || n.Site.Port > r.Last) {
			return fmt.Errorf("wireguard.ports: the site tunnel of network %s has port %d on this host, outside of %d-%d, which are kept from translation: widen them, or give the site another port in %s",
				n.ID, n.Site.Port, r.First, r.Last, d.DesiredState)
		}
	}
	return s.fitsPorts()
}

// fitsPorts says whether all WireGuard devices of this host find ports: one for each
// network, those of the site tunnels, which nobody else gets, and one for each tunnel
// to another host's.
func (s settings) fitsPorts() error {
	d, r := s.daemon, s.daemon.WireGuard.Ports
	networks, sites, relays := 0, 0, 0
	for _, n := range s.state.Networks {
		if n.Region != d.Region || !slices.Contains(hosts(s.state, n), d.Host) {
			continue
		}
		networks++
		if n.Site == nil {
			continue
		}
		if n.Site.Port >= r.First && n.Site.Port <= r.Last {
			sites++
		}
		if n.Site.Host != d.Host {
			relays++
		}
	}
	if room, needed := int(r.Last)-int(r.First)+1, networks+sites+relays; room < needed {
		return fmt.Errorf("wireguard.ports: %d-%d has room for %d, but host %s needs %d: %d for its networks, %d for site tunnels, %d for tunnels to site tunnels on other hosts: widen the range",
			r.First, r.Last, room, d.Host, needed, networks, sites, relays)
	}
	return nil
}

// hosts are the names of those that hold a network's pair.
func hosts(state spec.State, n spec.Network) []string {
	of := state.HostsOf(n)
	return of[:]
}

// String says what the settings are of.
func (s settings) String() string {
	d := s.daemon
	text := "region " + d.Region
	if d.Roles.Gateway {
		text = "host " + d.Host + " of " + text
	}
	if d.Roles.Control {
		return fmt.Sprintf("%s of %s, %d networks in the desired state", d.Roles, text, len(s.state.Networks))
	}
	return fmt.Sprintf("%s of %s, following %s", d.Roles, text, d.Control.API)
}

// checkFiles reads the files that a start would read besides, and makes none.
func (s settings) checkFiles() error {
	if s.daemon.Roles.Control {
		if _, err := api.ReadTokenFile(s.daemon.API.TokenFile); err != nil {
			return fmt.Errorf("api.token_file: %w", err)
		}
	} else if _, err := api.ReadTokenFile(s.daemon.Control.TokenFile); err != nil {
		return fmt.Errorf("control.token_file: %w", err)
	}
	if _, err := adminToken(s.daemon); err != nil {
		return err
	}
	if !s.daemon.Roles.Gateway {
		return nil
	}
	if _, err := readSecret("host's", s.daemon.SecretFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err := regionSecret(s.daemon.RegionSecretFile)
	return err
}
