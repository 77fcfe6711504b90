package tunnel

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// deviceState is what WireGuard's configuration protocol says of a device.
type deviceState struct {
	listenPort uint16
	peers      []PeerStats
}

// read asks the device for its state.
func (t *Tunnel) read() (deviceState, error) {
	text, err := t.dev.IpcGet()
	if err != nil {
		return deviceState{}, fmt.Errorf("read the state of the tunnel %s: %w", t.public, err)
	}
	state, err := parseState(text)
	if err != nil {
		return deviceState{}, fmt.Errorf("read the state of the tunnel %s: %w", t.public, err)
	}
	return state, nil
}

// parseState reads the answer to a "get" of the configuration protocol
// (https://www.wireguard.com/xplatform/#configuration-protocol). Keys that are
// not needed are passed over; the private key among them is not kept.
func parseState(text string) (deviceState, error) {
	var s deviceState
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), "=")
		if !ok {
			continue
		}
		if err := s.line(key, value); err != nil {
			return deviceState{}, fmt.Errorf("%s: %w", key, err)
		}
	}
	if err := lines.Err(); err != nil {
		return deviceState{}, err
	}
	slices.SortFunc(s.peers, func(a, b PeerStats) int { return bytes.Compare(a.PublicKey[:], b.PublicKey[:]) })
	for i := range s.peers {
		slices.SortFunc(s.peers[i].AllowedIPs, netip.Prefix.Compare)
	}
	return s, nil
}

// line takes one line of the answer in.
func (s *deviceState) line(key, value string) error {
	switch key {
	case "listen_port":
		port, err := strconv.ParseUint(value, 10, 16)
		s.listenPort = uint16(port)
		return err
	case "public_key":
		raw, err := hex.DecodeString(value)
		if err != nil || len(raw) != KeySize {
			return fmt.Errorf("%d bytes of hex, expected %d", len(raw), KeySize)
		}
		s.peers = append(s.peers, PeerStats{PublicKey: Key(raw)})
		return nil
	}
	if len(s.peers) == 0 {
		return nil // lines before the first peer speak of the device
	}
	return s.peers[len(s.peers)-1].line(key, value)
}

// line takes one line about a peer in.
func (p *PeerStats) line(key, value string) (err error) {
	switch key {
	case "endpoint":
		p.Endpoint, err = netip.ParseAddrPort(value)
	case "allowed_ip":
		var prefix netip.Prefix
		prefix, err = netip.ParsePrefix(value)
		p.AllowedIPs = append(p.AllowedIPs, prefix)
	case "rx_bytes":
		p.RxBytes, err = strconv.ParseUint(value, 10, 64)
	case "tx_bytes":
		p.TxBytes, err = strconv.ParseUint(value, 10, 64)
	case "persistent_keepalive_interval":
		var seconds uint64
		seconds, err = strconv.ParseUint(value, 10, 16)
		p.Keepalive = time.Duration(seconds) * time.Second
	case "last_handshake_time_sec":
		var seconds int64
		if seconds, err = strconv.ParseInt(value, 10, 64); seconds != 0 {
			p.LastHandshake = time.Unix(seconds, 0)
		}
	case "last_handshake_time_nsec":
		var nanos int64
		if nanos, err = strconv.ParseInt(value, 10, 64); nanos != 0 {
			if p.LastHandshake.IsZero() {
				p.LastHandshake = time.Unix(0, 0)
			}
			p.LastHandshake = p.LastHandshake.Add(time.Duration(nanos))
		}
	}
	return err
}
