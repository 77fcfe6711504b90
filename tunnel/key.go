package tunnel

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
)

// KeySize is the length of a WireGuard key in bytes.
const KeySize = 32

// minSecret is the shortest secret that keys derive from, in bytes: as much as
// is given out, so that a derived key is never weaker than a made one.
const minSecret = KeySize

// What separates the kinds of keys that derive from one secret (the "info" of RFC
// 5869 section 3.2). None is the beginning of another, and a zero byte ends each.
const (
	networkInfo = "sallyport network key v1\x00"
	siteInfo    = "sallyport site key v1\x00"
	relayInfo   = "sallyport relay key v1\x00"
)

// Key is a Curve25519 key of WireGuard, public or private.
//
// Its String is the base64 text of WireGuard's tools and shows the key, so it
// must never be called on a private key outside of a file that is meant to
// hold one. Structured logs print no key at all: a public key is logged by
// passing its String.
type Key [KeySize]byte

// NewKey makes a private key from the system's random source.
func NewKey() Key {
	var k Key
	_, _ = rand.Read(k[:]) // never fails: it ends the program instead
	k.clamp()
	return k
}

// DeriveKey makes the private key that belongs to a network from a host's
// secret, by HKDF-SHA256 (RFC 5869). The same two always give the same key, and
// no network's key tells anything about another's. The secret must hold at
// least 32 bytes.
func DeriveKey(secret []byte, networkID string) (Key, error) {
	k, err := derive(secret, networkInfo, networkID)
	if err != nil {
		return Key{}, fmt.Errorf("derive the key of network %q: %w", networkID, err)
	}
	return k, nil
}

// DeriveSiteKey makes the private key of a network's site tunnel from the secret of
// its region, as [DeriveKey] does from a host's: it is the same on every host of the
// region, so that the tunnel can move.
func DeriveSiteKey(regionSecret []byte, networkID string) (Key, error) {
	k, err := derive(regionSecret, siteInfo, networkID)
	if err != nil {
		return Key{}, fmt.Errorf("derive the site key of network %q: %w", networkID, err)
	}
	return k, nil
}

// DeriveRelayKey makes the private key by which a host of the region that has not
// the network's site tunnel reaches the one that has it. Both ends derive it, so
// that each knows the other's public key without being told.
func DeriveRelayKey(regionSecret []byte, networkID, host string) (Key, error) {
	if host == "" {
		return Key{}, fmt.Errorf("derive the relay key of network %q: the host has no name", networkID)
	}
	k, err := derive(regionSecret, relayInfo+host+"\x00", networkID)
	if err != nil {
		return Key{}, fmt.Errorf("derive the relay key of network %q on host %s: %w", networkID, host, err)
	}
	return k, nil
}

// derive makes the key of one kind and network.
func derive(secret []byte, info, networkID string) (Key, error) {
	if len(secret) < minSecret {
		return Key{}, fmt.Errorf("the secret has %d bytes; make one of at least %d random bytes", len(secret), minSecret)
	}
	if networkID == "" {
		return Key{}, errors.New("the network has no id")
	}
	raw, err := hkdf.Key(sha256.New, secret, nil, info+networkID, KeySize)
	if err != nil {
		return Key{}, err
	}
	k := Key(raw)
	k.clamp()
	return k, nil
}

// ParseKey reads the base64 text of a key, as WireGuard's tools write it.
func ParseKey(text string) (Key, error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		// The text may be a private key: the error does not repeat it.
		return Key{}, errors.New("parse a WireGuard key: not base64; expected 44 characters as `wg genkey` prints them")
	}
	if len(raw) != KeySize {
		return Key{}, fmt.Errorf("parse a WireGuard key: %d bytes; expected %d", len(raw), KeySize)
	}
	return Key(raw), nil
}

// String is the base64 text of the key.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// LogValue hides the key from structured logs, because a private key is the same type.
func (k Key) LogValue() slog.Value { return slog.StringValue("(key)") }

// IsZero reports whether the key was never set.
func (k Key) IsZero() bool { return k == Key{} }

// Public is the public key of a private key (RFC 7748 section 5).
func (k Key) Public() Key {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		// Only a wrong length is refused, and the length is in the type.
		return Key{}
	}
	return Key(private.PublicKey().Bytes())
}

// hex is the form of WireGuard's configuration protocol.
func (k Key) hex() string { return hex.EncodeToString(k[:]) }

// clamp makes 32 random bytes a Curve25519 scalar (RFC 7748 section 5).
func (k *Key) clamp() {
	k[0] &= 248
	k[31] = k[31]&127 | 64
}
