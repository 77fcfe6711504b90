package config

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

const deploy = "../../deploy"

// optional is a setting that a reference file documents without setting it.
var optional = regexp.MustCompile(`(?m)^( *)#([a-zA-Z_]+:)`)

var index = regexp.MustCompile(`\[[^]]*\]`)

// Every key of a reference file is known, every known key is in it, and each has a
// comment above it where it comes first. Keys for one role only stand in its file, and
// files for one purpose (sallyportd-*.yaml) say what differs.
func TestReferenceFilesAreComplete(t *testing.T) {
	for _, tc := range []struct {
		file      string
		raw       any
		elsewhere []string
	}{
		{"sallyportd.yaml", &rawDaemon{}, []string{"control", "control.api", "control.token_file"}},
		{"sallyport-sidecar.yaml", &rawSidecar{}, nil},
		{"desired-state.yaml", &spec.State{}, nil},
		{"sallyportd-gateway.yaml", &rawDaemon{}, nil},
		{"sallyportd-tun.yaml", &rawDaemon{}, nil},
	} {
		file, raw := tc.file, tc.raw
		text, err := os.ReadFile(filepath.Join(deploy, file))
		if err != nil {
			t.Fatal(err)
		}
		text = optional.ReplaceAll(text, []byte("$1$2"))
		d, err := readDocument(file, strings.NewReader(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		d.decode(raw)
		if err := d.problems.err(); err != nil {
			t.Fatal(err)
		}
		first := make(map[string]int)
		for key, pos := range d.at {
			key = index.ReplaceAllString(key, "")
			if line, ok := first[key]; !ok || pos.line < line {
				first[key] = pos.line
			}
		}
		lines := strings.Split(string(text), "\n")
		for _, key := range knownKeys(reflect.TypeOf(raw).Elem(), "") {
			line, ok := first[key]
			if !ok && (slices.Contains(tc.elsewhere, key) || strings.HasPrefix(file, "sallyportd-")) {
				continue
			}
			if !ok {
				t.Errorf("%s does not document %s", file, key)
				continue
			}
			name := key[strings.LastIndex(key, ".")+1:]
			if !commented(lines, line, name) {
				t.Errorf("%s: %s has no comment above it (value in line %d)", file, key, line)
			}
		}
	}
}

// commented reports whether the line above the key is a comment. The value stands
// in a line (from 1) at or below its key's.
func commented(lines []string, value int, name string) bool {
	for i := value - 1; i > 0; i-- {
		if strings.HasPrefix(strings.TrimLeft(lines[i], " -"), name+":") {
			return strings.Contains(lines[i-1], "#")
		}
	}
	return false
}

func knownKeys(t reflect.Type, prefix string) []string {
	var keys []string
	for i := range t.NumField() {
		key := join(prefix, fileName(t.Field(i)))
		keys = append(keys, key)
		inner := t.Field(i).Type
		for slices.Contains([]reflect.Kind{reflect.Slice, reflect.Array, reflect.Pointer, reflect.Map}, inner.Kind()) {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct && inner != durationType && !reflect.PointerTo(inner).Implements(textType) {
			keys = append(keys, knownKeys(inner, key)...)
		}
	}
	return keys
}

// The section of the tun uplink is good once its marks are taken away, and what its
// comments call defaults are the defaults.
func TestTunReference(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(deploy, "sallyportd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	whole := strings.Replace(string(text), "uplink: sockets", "uplink: tun", 1)
	i, j := strings.Index(whole, "#tun:"), strings.Index(whole, "\ndns:")
	if i < 0 || j < i {
		t.Fatal("the section tun is not between uplink and dns")
	}
	whole = whole[:i] + optional.ReplaceAllString(whole[i:j], "$1$2") + whole[j:]
	d, err := ReadDaemon("sallyportd.yaml", strings.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	if d.Uplink != UplinkTun || d.Tun.Interface == "" || !d.Tun.NextHop.IsValid() || d.Tun.Hook == "" {
		t.Errorf("got %+v", d.Tun)
	}
	std := defaultDaemon().Tun
	if d.Tun.AnnounceARP != (std.Announce == announceARP) || d.Tun.Table != defaultTable || d.Tun.HookTimeout != std.HookTimeout || d.Tun.SetSysctls != std.SetSysctls || d.Tun.NoOffload == std.Offload {
		t.Errorf("a value is not the default that its comment says: %+v", d.Tun)
	}
}

func TestReferenceFilesAreValid(t *testing.T) {
	name := filepath.Join(deploy, "sallyportd.yaml")
	d := read(t, name, ReadDaemon)
	// What the comments call defaults are the defaults.
	std := defaultDaemon()
	if d.Limits != Limits(std.Limits) || d.Timers != Timers(std.Timers) || d.Log != Log(std.Log) ||
		d.Drain != std.Drain || d.Health.Interval != std.Health.Interval || d.Roles != (Roles{Control: true, Gateway: true}) ||
		d.Admin != (Admin{Listen: std.Admin.Listen}) || d.WireGuard.Ports != std.WireGuard.Ports || d.WireGuard.NoGSO == std.WireGuard.GSO || d.WireGuard.NoGRO == std.WireGuard.GRO || d.Uplink != std.Uplink ||
		d.API.Network != "unix" || "unix://"+d.API.Address != std.API.Listen {
		t.Errorf("%s: a value is not the default that its comment says: %+v", name, d)
	}
	// What is written is where the unit lets the daemon write; the rest is beside the file.
	if filepath.Dir(d.SecretFile) != "/var/lib/sallyport" || d.StateFile != filepath.Join("/var/lib/sallyport", stateFileName) || d.API.TokenFile != filepath.Join(deploy, "api-token") || d.DesiredState != filepath.Join(deploy, "desired-state.yaml") {
		t.Errorf("the paths are %q, %q, %q and %q", d.SecretFile, d.StateFile, d.API.TokenFile, d.DesiredState)
	}
	if d.Timers.TCPEstablished != 7440*time.Second || len(d.DNS.Upstreams) != 2 || d.DNS.Upstreams[0].Port() != 53 || d.DNS.Upstreams[1].Port() != 5353 {
		t.Errorf("got %+v", d)
	}
	sidecar := read(t, filepath.Join(deploy, "sallyport-sidecar.yaml"), ReadSidecar)
	if sidecar.Failover != Failover(defaultFailover()) || sidecar.NoGSO || sidecar.NoGRO || !sidecar.Offload {
		t.Errorf("a value of failover is not the default that its comment says: %+v", sidecar.Failover)
	}
	if sidecar.API != "unix:///run/sallyport/api.sock" || sidecar.TokenFile != filepath.Join(deploy, "api-token") || sidecar.Region != d.Region {
		t.Errorf("got %+v", sidecar)
	}
	s := read(t, d.DesiredState, ReadState)
	passive := s.Projects[0].Environments[0].Passive
	standby, ok := s.Network(passive)
	if !ok || standby.Region == sidecar.Region || sidecar.Regions[standby.Region].API == "" {
		t.Errorf("the sidecar's file has no API of the region of the passive network %q: %+v", passive, sidecar.Regions)
	}
	follower := read(t, filepath.Join(deploy, "sallyportd-gateway.yaml"), ReadDaemon)
	if follower.Roles != (Roles{Gateway: true}) || follower.Control.API != sidecar.API || follower.Region != d.Region ||
		s.Regions[0].Hosts[1].Name != follower.Host || follower.Limits != d.Limits {
		t.Errorf("got %+v", follower)
	}
	kernel := read(t, filepath.Join(deploy, "sallyportd-tun.yaml"), ReadDaemon)
	if kernel.Uplink != UplinkTun || !kernel.Tun.AnnounceARP || kernel.Tun.Table != defaultTable || kernel.Tun.SetSysctls || len(kernel.Health.Targets) != 2 ||
		kernel.Host != d.Host || kernel.Region != d.Region || kernel.DesiredState != d.DesiredState || kernel.Limits != d.Limits {
		t.Errorf("got %+v", kernel)
	}
	region, ok := s.Region(d.Region)
	if !ok || region.Hosts[0].Name != d.Host || region.Hosts[0].Endpoint != d.WireGuard.Address {
		t.Errorf("the daemon's file and the desired state do not fit: %+v", region)
	}
	if _, rules, err := PolicyRules(s.Networks[0].Policy); err != nil || len(rules) != 3 {
		t.Errorf("policy: %v, %v", rules, err)
	}
}

func read[T any](t *testing.T, name string, reader func(string, io.Reader) (T, error)) T {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v, err := reader(name, f)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
