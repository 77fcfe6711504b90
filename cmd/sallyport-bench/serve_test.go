package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/bench/wire"
)

func keyFile(t *testing.T, content []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKeyFile(t *testing.T) {
	key := [wire.KeySize]byte{0: 1, 31: 255}
	for name, content := range map[string]string{
		"raw": string(key[:]), "hex": hex.EncodeToString(key[:]) + "\n", "base64": base64.StdEncoding.EncodeToString(key[:]) + "\n",
	} {
		if got, err := readKey(keyFile(t, []byte(content), 0o600)); err != nil || got != key {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	for want, path := range map[string]string{
		"chmod 600":         keyFile(t, key[:], 0o640),
		"is not 32 bytes":   keyFile(t, key[:31], 0o600),
		"no such file":      filepath.Join(t.TempDir(), "none"),
		"--key-file is mis": "",
	} {
		if _, err := readKey(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestServeRefusesBadFlags(t *testing.T) {
	good := keyFile(t, make([]byte, wire.KeySize), 0o600)
	for _, c := range []struct {
		flags, want string
	}{
		{"--key-file " + good, "--listen is missing"},
		{"--listen localhost:9 --key-file " + good, "192.0.2.80:9000"},
		{"--listen 127.0.0.1:0", "--key-file is missing"},
		{"--listen 127.0.0.1:0 --prefix 198.18.0.1/22 --key-file " + good, "198.18.0.0/22 is meant"},
		{"--listen 127.0.0.1:0 --prefix fd00::/64 --key-file " + good, "same version"},
		{"--listen 192.0.2.1:9 --key-file " + good, "192.0.2.1:9"},
	} {
		cmd := serveCommand(io.Discard)
		cmd.SetArgs(strings.Fields(c.flags))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.flags, err, c.want)
		}
	}
}

// It listens where it says, and sums up at its end.
func TestServe(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	key := [wire.KeySize]byte{5}
	read, write := io.Pipe()
	cmd := serveCommand(write)
	cmd.SetArgs([]string{"--listen", "127.0.0.1:0", "--key-file", keyFile(t, key[:], 0o600)})
	ctx, end := context.WithCancel(t.Context())
	defer end()
	done := make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		_ = write.Close()
		done <- err
	}()
	b := make([]byte, 4096)
	n, err := read.Read(b)
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).Find(b[:n])
	if err != nil || address == nil {
		t.Fatalf("%q, %v", b[:n], err)
	}
	rest := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(read)
		rest <- b
	}()
	c, err := net.Dial("udp", string(address))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	s := wire.NewSealer(key)
	if _, err := c.Write(s.Append([]byte(nil), wire.Control{Head: wire.Head{Kind: wire.KindReport, Run: 1}, Until: time.Now().Add(wire.Validity)})); err != nil {
		t.Fatal(err)
	}
	if n, err = c.Read(b); err != nil {
		t.Fatal(err)
	}
	if _, _, v := s.OpenReport(b[:n], time.Now()); v != wire.Good {
		t.Errorf("the report is %v", v)
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
	said := <-rest
	for _, want := range []string{`runs +1\n`, `datagrams +1\n`, `answered +1\n`} {
		if !regexp.MustCompile(want).Match(said) {
			t.Errorf("%q is not in:\n%s", want, said)
		}
	}
	if bytes.Contains(said, []byte("REFUSED")) {
		t.Errorf("something was refused:\n%s", said)
	}
}
