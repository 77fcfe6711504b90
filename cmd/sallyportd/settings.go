package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/config"
)

// settings is all that was read from files.
type settings struct {
	daemon config.Daemon
	state  spec.State
}

// load reads the configuration and the desired state that it names.
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
	s, err := os.Open(d.DesiredState)
	if err != nil {
		return settings{}, fmt.Errorf("open the desired state named by %s: %w", file, err)
	}
	defer s.Close()
	state, err := config.ReadState(d.DesiredState, s)
	if err != nil {
		return settings{}, err
	}
	region, ok := state.Region(d.Region)
	if !ok {
		return settings{}, fmt.Errorf("%s: region: %q is not in %s: name one of its regions", file, d.Region, d.DesiredState)
	}
	for _, h := range region.Hosts {
		if h.Name == d.Host {
			return settings{daemon: d, state: state}, nil
		}
	}
	return settings{}, fmt.Errorf("%s: host: region %s of %s has no host %q: add it there or correct the name", file, d.Region, d.DesiredState, d.Host)
}

const secretSize = 32

// checkFiles reads the files that a start would read besides, and makes none.
func (s settings) checkFiles() error {
	if _, err := api.ReadTokenFile(s.daemon.API.TokenFile); err != nil {
		return err
	}
	if _, err := readSecret(s.daemon.SecretFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// secret reads the host's secret, or makes one at the first start.
func secret(path string) ([]byte, error) {
	b, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeSecret(path)
	}
	return b, err
}

func readSecret(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the host's secret: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("look at the host's secret: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("host's secret %s is open to others (mode %04o): chmod 600 it", path, info.Mode().Perm())
	}
	return decodeSecret(path, raw)
}

func decodeSecret(path string, raw []byte) ([]byte, error) {
	if len(raw) == secretSize {
		return raw, nil
	}
	text := strings.TrimSpace(string(raw))
	if b, err := hex.DecodeString(text); err == nil && len(b) == secretSize {
		return b, nil
	}
	if b, err := base64.StdEncoding.DecodeString(text); err == nil && len(b) == secretSize {
		return b, nil
	}
	return nil, fmt.Errorf("host's secret %s is not 32 bytes, raw or as hex or base64: make one with `head -c 32 /dev/urandom`, or remove the file and the daemon makes one", path)
}

func makeSecret(path string) ([]byte, error) {
	b := make([]byte, secretSize)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("make the host's secret: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the host's secret: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write the host's secret: %w", err)
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("write the host's secret %s: %w", path, err)
	}
	return b, nil
}
