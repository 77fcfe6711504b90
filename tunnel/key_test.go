package tunnel

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func unhex(t *testing.T, s string) Key {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != KeySize {
		t.Fatalf("vector %q: %d bytes, %v", s, len(b), err)
	}
	return Key(b)
}

// The vectors of RFC 7748 section 6.1.
func TestPublicVectors(t *testing.T) {
	for private, public := range map[string]string{
		"77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a": "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
		"5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb": "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
	} {
		if got := unhex(t, private).Public(); got != unhex(t, public) {
			t.Errorf("public key of %s is %x, want %s", private, got[:], public)
		}
	}
}

// A derived key must never change: peers know its public half. The wanted value
// was computed by an independent HKDF.
func TestDeriveKeyVector(t *testing.T) {
	secret := bytes.Repeat([]byte{0x0b}, 32)
	for name, row := range map[string]struct {
		derive func() (Key, error)
		want   string
	}{
		"network": {func() (Key, error) { return DeriveKey(secret, "net_1") }, "a8e67821fecfdcce0e3dd50dfc9be2501be5a40877be900418f9a28a5c262e7f"},
		"site":    {func() (Key, error) { return DeriveSiteKey(secret, "net_1") }, "e099a6cec2a5f498f0e159713fa4be743e892d2e46f9bdcabf62695f83c39c44"},
		"relay":   {func() (Key, error) { return DeriveRelayKey(secret, "net_1", "gw-b") }, "287f906341b021d1004518ad888bb587c5bc9df8ffa2d0d1d45db25a24bcde71"},
	} {
		k, err := row.derive()
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(k[:]); got != row.want {
			t.Errorf("the %s key is %s, want %s", name, got, row.want)
		}
	}
}

// Keys of different kinds, networks and hosts differ though they come from one
// secret, and equal names give equal keys.
func TestDerivedKindsSeparate(t *testing.T) {
	name := rapid.StringMatching(`[a-z0-9][a-z0-9_-]{0,4}`)
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "secret")
		type who struct{ kind, network, host string }
		keys := map[Key]who{}
		for range 8 {
			w := who{kind: rapid.SampledFrom([]string{"network", "site", "relay"}).Draw(t, "kind"), network: name.Draw(t, "network")}
			k, err := Key{}, error(nil)
			switch w.kind {
			case "network":
				k, err = DeriveKey(secret, w.network)
			case "site":
				k, err = DeriveSiteKey(secret, w.network)
			case "relay":
				w.host = name.Draw(t, "host")
				k, err = DeriveRelayKey(secret, w.network, w.host)
			}
			if err != nil {
				t.Fatal(err)
			}
			if other, taken := keys[k]; taken && other != w {
				t.Fatalf("%+v and %+v have the same key", w, other)
			}
			keys[k] = w
		}
		names := map[who]bool{}
		for _, w := range keys {
			if names[w] {
				t.Fatalf("%+v has two keys", w)
			}
			names[w] = true
		}
	})
}

func TestDeriveKeySeparates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.SliceOfN(rapid.Byte(), 32, 64).Draw(t, "secret")
		a := rapid.StringN(1, 20, -1).Draw(t, "a")
		b := rapid.StringN(1, 20, -1).Draw(t, "b")
		ka, err := DeriveKey(secret, a)
		if err != nil {
			t.Fatal(err)
		}
		kb, err := DeriveKey(secret, b)
		if err != nil {
			t.Fatal(err)
		}
		if (ka == kb) != (a == b) {
			t.Errorf("ids %q and %q: same key %v", a, b, ka == kb)
		}
		if ka[0]&7 != 0 || ka[31]&0x80 != 0 || ka[31]&0x40 == 0 {
			t.Errorf("key %x is not clamped", ka[:])
		}
		secret[0] ^= 1
		if other, _ := DeriveKey(secret, a); other == ka {
			t.Error("another secret gives the same key")
		}
	})
}

func TestDeriveKeyRefuses(t *testing.T) {
	if _, err := DeriveKey(make([]byte, 31), "net_1"); err == nil {
		t.Error("a short secret: no error")
	}
	if _, err := DeriveKey(make([]byte, 32), ""); err == nil {
		t.Error("no network id: no error")
	}
	if _, err := DeriveSiteKey(make([]byte, 31), "net_1"); err == nil || !strings.Contains(err.Error(), "31 bytes") {
		t.Errorf("a short region secret: %v", err)
	}
	if _, err := DeriveRelayKey(make([]byte, 32), "net_1", ""); err == nil {
		t.Error("no host: no error")
	}
	if _, err := DeriveRelayKey(make([]byte, 32), "", "gw-b"); err == nil {
		t.Error("no network id: no error")
	}
}

func TestParseKeyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := Key(rapid.SliceOfN(rapid.Byte(), KeySize, KeySize).Draw(t, "key"))
		back, err := ParseKey(k.String())
		if err != nil || back != k {
			t.Errorf("ParseKey(%q) = %x, %v", k.String(), back[:], err)
		}
	})
}

func TestParseKeyRefuses(t *testing.T) {
	good := NewKey().String()
	for _, text := range []string{"", "x", good[:43], good + "\n" + good, good[:40], base64.StdEncoding.EncodeToString(make([]byte, 33)), strings.Repeat("!", 44)} {
		_, err := ParseKey(text)
		if err == nil {
			t.Errorf("ParseKey(%q): no error", text)
			continue
		}
		if len(text) > 30 && strings.Contains(err.Error(), text[:30]) {
			t.Errorf("the error repeats the key: %v", err)
		}
	}
}

func TestNewKeysDiffer(t *testing.T) {
	a, b := NewKey(), NewKey()
	if a == b || a.IsZero() || a.Public() == b.Public() {
		t.Errorf("two new keys: equal %v, zero %v", a == b, a.IsZero())
	}
	if !(Key{}).IsZero() {
		t.Error("the zero key is not zero")
	}
}

func TestKeyIsHiddenInLogs(t *testing.T) {
	k := NewKey()
	var text bytes.Buffer
	slog.New(slog.NewJSONHandler(&text, nil)).Info("key", "key", k)
	if strings.Contains(text.String(), k.String()) {
		t.Errorf("the log shows the key: %s", text.String())
	}
	if fmt.Sprint(k) != k.String() {
		t.Error("Sprint does not print the base64 form")
	}
}

func FuzzParseState(f *testing.F) {
	f.Add("listen_port=51820\npublic_key=" + strings.Repeat("ab", 32) + "\nendpoint=192.0.2.1:51820\nallowed_ip=10.0.0.5/32\nrx_bytes=1\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\n")
	f.Add("public_key=00\n")
	f.Add("public_key=" + strings.Repeat("00", 33))
	f.Add("=\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseState(text)
		if err != nil && len(s.peers) != 0 {
			t.Error("an error and peers")
		}
	})
}
