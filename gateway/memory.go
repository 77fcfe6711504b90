package gateway

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/tunnel"
)

// memoryVersion is counted up when a version could not read what another wrote.
const memoryVersion = 1

// memory is what a gateway knows, as its state file keeps it from one start to the
// next. It holds no private key: those derive from the host's secret.
type memory struct {
	Region string `json:"region"`
	Host   string `json:"host"`
	// Cursor is how far the control plane was followed: State and Attachments are
	// of then.
	Cursor      spec.Cursor       `json:"cursor"`
	State       spec.State        `json:"state"`
	Attachments []spec.Attachment `json:"attachments,omitempty"`
	// Orphans are the ids of attachments that the control plane, another than
	// before, had not named yet.
	Orphans []string `json:"orphans,omitempty"`
	// Ports are the UDP ports of the networks' devices, where workers expect them.
	Ports map[string]uint16 `json:"ports,omitempty"`
	// Peers holds, by network and public key, where peers were last heard from.
	Peers map[string]contacts `json:"peers,omitempty"`
}

// contacts are the endpoints of one network's peers, by public key.
type contacts map[tunnel.Key]netip.AddrPort

// MarshalJSON writes keys as their base64.
func (c contacts) MarshalJSON() ([]byte, error) {
	text := make(map[string]netip.AddrPort, len(c))
	for key, at := range c {
		text[key.String()] = at
	}
	return json.Marshal(text)
}

// UnmarshalJSON is the way back.
func (c *contacts) UnmarshalJSON(b []byte) error {
	var text map[string]netip.AddrPort
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	*c = make(contacts, len(text))
	for k, at := range text {
		key, err := tunnel.ParseKey(k)
		if err != nil {
			return err
		}
		(*c)[key] = at
	}
	return nil
}

// envelope is the file: a memory with what proves it whole.
type envelope struct {
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"` // of Memory's bytes
	Memory  json.RawMessage `json:"memory"`
}

// encode writes the file's bytes.
func (m memory) encode() ([]byte, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode what the gateway knows: %w", err)
	}
	sum := sha256.Sum256(body)
	var b bytes.Buffer
	b.Grow(len(body) + 128)
	fmt.Fprintf(&b, `{"version":%d,"sha256":"%x","memory":`, memoryVersion, sum)
	b.Write(body)
	b.WriteString("}")
	return b.Bytes(), nil
}

// decodeMemory reads the file's bytes. Of what is damaged, of another version or
// breaks a rule nothing is used; the error says which it is.
func decodeMemory(b []byte) (memory, error) {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return memory{}, fmt.Errorf("it is damaged, or was cut off: %w", err)
	}
	if e.Version != memoryVersion {
		return memory{}, fmt.Errorf("it is of version %d, and this program reads version %d", e.Version, memoryVersion)
	}
	if sum := sha256.Sum256(e.Memory); e.SHA256 != hex.EncodeToString(sum[:]) {
		return memory{}, errors.New("it is damaged: its checksum is another")
	}
	var m memory
	if err := json.Unmarshal(e.Memory, &m); err != nil {
		return memory{}, fmt.Errorf("it does not say what a state file says: %w", err)
	}
	return m, m.validate()
}

// validate holds the memory against the rules, which may be stricter than those of
// the version that wrote it.
func (m memory) validate() error {
	if m.Cursor.Store == "" || m.Cursor.Revision == 0 {
		return errors.New("it does not say how far the control plane was followed")
	}
	if err := m.State.Validate().Err(); err != nil {
		return fmt.Errorf("its desired state breaks a rule: %w", err)
	}
	for _, a := range m.Attachments {
		if err := spec.CheckPublicKey(a.PublicKey); err != nil || a.ID == "" || a.Network == "" || !a.Inner.Is4() {
			return fmt.Errorf("its attachment %q is not complete", a.ID)
		}
	}
	return nil
}

// belongs refuses what another host wrote.
func (m memory) belongs(region, host string) error {
	if m.Region != region || m.Host != host {
		return fmt.Errorf("it is of host %s of region %s, and this is host %s of region %s", m.Host, m.Region, host, region)
	}
	return nil
}
