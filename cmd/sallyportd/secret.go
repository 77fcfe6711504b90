package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const secretSize = 32

// secret reads the host's secret, or makes one at the first start.
func secret(path string) ([]byte, error) {
	b, err := readSecret("host's", path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeSecret(path)
	}
	return b, err
}

// regionSecret reads the secret of all hosts of the region; nil where there is
// none. It is never made here: each host would have another one.
func regionSecret(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	b, err := readSecret("region's", path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("region_secret_file: %w: %s", err, makeRegionSecret(path))
	}
	if err != nil {
		return nil, fmt.Errorf("region_secret_file: %w", err)
	}
	return b, nil
}

// makeRegionSecret says how a region comes to its secret.
func makeRegionSecret(path string) string {
	return fmt.Sprintf("make it on one host with `(umask 077; head -c 32 /dev/urandom > %s)` and copy it to every host of the region", path)
}

// readSecret reads a secret, the host's or the region's.
func readSecret(whose, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the %s secret: %w", whose, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("look at the %s secret: %w", whose, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s secret %s is open to others (mode %04o): chmod 600 it", whose, path, info.Mode().Perm())
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxSecretFile))
	if err != nil {
		return nil, fmt.Errorf("read the %s secret: %w", whose, err)
	}
	b, ok := decodeSecret(raw)
	if !ok {
		return nil, fmt.Errorf("%s secret %s is not 32 bytes, raw or as hex or base64: make one with `head -c 32 /dev/urandom`", whose, path)
	}
	return b, nil
}

// maxSecretFile is more than any form of a secret takes, in bytes.
const maxSecretFile = 4096

func decodeSecret(raw []byte) ([]byte, bool) {
	if len(raw) == secretSize {
		return raw, true
	}
	text := strings.TrimSpace(string(raw))
	if b, err := hex.DecodeString(text); err == nil && len(b) == secretSize {
		return b, true
	}
	b, err := base64.StdEncoding.DecodeString(text)
	return b, err == nil && len(b) == secretSize
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
