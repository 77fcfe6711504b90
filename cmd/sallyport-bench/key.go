package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sallyport-net/sallyport/bench/wire"
)

// readKey reads the key that harness and far side share: 32 bytes, raw or as hex or base64.
func readKey(path string) (key [wire.KeySize]byte, err error) {
	advice := fmt.Sprintf("make one with `(umask 077; head -c %d /dev/urandom > FILE)` and copy it to both machines", len(key))
	if path == "" {
		return key, fmt.Errorf("--key-file is missing: %s", advice)
	}
	f, err := os.Open(path)
	if err != nil {
		return key, fmt.Errorf("read the key: %w: %s", err, advice)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return key, fmt.Errorf("look at the key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return key, fmt.Errorf("the key %s is open to others (mode %04o): chmod 600 it", path, mode)
	}
	const most = 4096 // more than any form takes
	raw, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return key, fmt.Errorf("read the key: %w", err)
	}
	b, text := raw, strings.TrimSpace(string(raw))
	if len(b) != len(key) {
		if b, err = hex.DecodeString(text); err != nil || len(b) != len(key) {
			b, err = base64.StdEncoding.DecodeString(text)
		}
	}
	if err != nil || len(b) != len(key) {
		return key, fmt.Errorf("the key %s is not %d bytes, raw or as hex or base64: %s", path, len(key), advice)
	}
	return [wire.KeySize]byte(b), nil
}
