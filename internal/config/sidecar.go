package config

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

// Sidecar holds the checked settings of sallyport-sidecar.
// deploy/sallyport-sidecar.yaml documents each of them.
type Sidecar struct {
	// API is where the control API is: unix:///path or http://127.0.0.1:port.
	API string
	// TokenFile holds its bearer token.
	TokenFile string
	// Region is the one that this worker is in.
	Region string
	// Socket is the path of the unix socket at which the sidecar is asked to attach sandboxes.
	Socket string
	// Regions are the control APIs of other regions, by name, for passive networks.
	// A region that is not here is called at the address that the desired state
	// has for it, with the token of TokenFile.
	Regions map[string]ControlPlane
	// Failover is when the worker leaves a gateway for another.
	Failover Failover
	// Offload lets sandboxes' kernels leave segmentation and checksums to the sidecar.
	Offload bool
	// NoGSO and NoGRO keep the kernel from cutting and joining datagrams of tunnels.
	NoGSO, NoGRO bool
	// Admin is where metrics are served; its Listen is not valid where they are not.
	Admin Admin
	Log   Log
}

// Failover holds the times and counts by which a worker judges gateways.
type Failover struct {
	// Probe is the time between two probes of the gateway in use, ProbeStandby of
	// the others, ProbeSuspect of all of them once one was missed.
	Probe, ProbeStandby, ProbeSuspect time.Duration
	// Misses in a row make a gateway dead; MissesBusy while other packets of it arrive.
	Misses, MissesBusy int
	// Hold is how long a preferred gateway must have been good before new flows go
	// back to it; up to HoldJitter is added, so that workers do not go all at once.
	Hold, HoldJitter time.Duration
	// Failbacks is how many of them there may be within FailbackWindow.
	Failbacks      int
	FailbackWindow time.Duration
	// Linger is how long flows may stay with a gateway that is not the chosen one.
	Linger time.Duration
}

// rawSidecar is the file as it is written.
type rawSidecar struct {
	API       string                `yaml:"api"`
	TokenFile string                `yaml:"token_file"`
	Region    string                `yaml:"region"`
	Socket    string                `yaml:"socket"`
	Regions   map[string]rawControl `yaml:"regions"`
	Failover  rawFailover           `yaml:"failover"`
	Offload   bool                  `yaml:"offload"`
	WireGuard rawSockOffload        `yaml:"wireguard"`
	Admin     rawMetrics            `yaml:"admin"`
	Log       rawLog                `yaml:"log"`
}

type rawMetrics struct {
	Listen netip.AddrPort `yaml:"listen"`
}

type rawSockOffload struct {
	GSO bool `yaml:"gso"`
	GRO bool `yaml:"gro"`
}

type rawFailover struct {
	Probe          time.Duration `yaml:"probe"`
	ProbeStandby   time.Duration `yaml:"probe_standby"`
	ProbeSuspect   time.Duration `yaml:"probe_suspect"`
	Misses         int           `yaml:"misses"`
	MissesBusy     int           `yaml:"misses_busy"`
	Hold           time.Duration `yaml:"hold"`
	HoldJitter     time.Duration `yaml:"hold_jitter"`
	Failbacks      int           `yaml:"failbacks"`
	FailbackWindow time.Duration `yaml:"failback_window"`
	Linger         time.Duration `yaml:"linger"`
}

// defaultFailover is what finds a dead gateway within 350 ms, and does not mistake
// a busy one for dead.
func defaultFailover() rawFailover {
	return rawFailover{
		Probe: 100 * time.Millisecond, ProbeStandby: time.Second, ProbeSuspect: 50 * time.Millisecond,
		Misses: 3, MissesBusy: 5,
		Hold: time.Minute, HoldJitter: 30 * time.Second,
		Failbacks: 2, FailbackWindow: 10 * time.Minute, Linger: 10 * time.Minute,
	}
}

// ReadSidecar reads the settings of sallyport-sidecar; see [ReadDaemon].
func ReadSidecar(name string, r io.Reader) (Sidecar, error) {
	d, err := readDocument(name, r)
	if err != nil {
		return Sidecar{}, err
	}
	raw := rawSidecar{
		API:      "unix:///run/sallyport/api.sock",
		Socket:   "/run/sallyport/sidecar.sock",
		Failover: defaultFailover(),
		Offload:  true, WireGuard: rawSockOffload{GSO: true, GRO: true},
		Log: defaultLog(),
	}
	d.decode(&raw)
	out := Sidecar{
		API:       d.apiAddress("api", raw.API),
		TokenFile: d.file("token_file", raw.TokenFile, "name the file with the API's bearer token"),
		Region:    d.label("region", raw.Region, "write the name of this worker's region, such as iad1"),
		Socket:    d.socket("socket", raw.Socket),
		Regions:   d.regions(raw),
		Failover:  d.failover(raw.Failover),
		Offload:   raw.Offload,
		NoGSO:     !raw.WireGuard.GSO, NoGRO: !raw.WireGuard.GRO,
		Admin: Admin{Listen: d.admin("admin.listen", raw.Admin.Listen)},
		Log:   d.log(raw.Log),
	}
	if err := d.problems.err(); err != nil {
		return Sidecar{}, err
	}
	return out, nil
}

// regions checks the control APIs of other regions.
func (d *document) regions(raw rawSidecar) map[string]ControlPlane {
	out := make(map[string]ControlPlane, len(raw.Regions))
	for _, name := range slices.Sorted(maps.Keys(raw.Regions)) {
		r := raw.Regions[name]
		key := fmt.Sprintf("regions[%s]", name)
		switch {
		case !spec.ValidLabel(name):
			d.wrong(key, fmt.Sprintf("%q is not the name of a region", name), "use lower-case letters, digits, - and .")
		case name == raw.Region:
			d.wrong(key, "is this worker's own region", "write its API as api and token_file")
		}
		c := ControlPlane{TokenFile: d.file(key+".token_file", r.TokenFile, "name the file with the bearer token of that region's API")}
		if r.API == "" {
			d.wrong(key+".api", "is missing", "write where that region's control API is: unix:///path or http://127.0.0.1:port")
		} else {
			c.API = d.apiAddress(key+".api", r.API)
		}
		out[name] = c
	}
	return out
}

func (d *document) failover(raw rawFailover) Failover {
	const long = 24 * time.Hour
	for _, t := range []struct {
		key                string
		value, least, most time.Duration
	}{
		{"probe", raw.Probe, 10 * time.Millisecond, 10 * time.Second},
		{"probe_standby", raw.ProbeStandby, 10 * time.Millisecond, time.Minute},
		{"probe_suspect", raw.ProbeSuspect, 5 * time.Millisecond, 10 * time.Second},
		{"hold", raw.Hold, 10 * time.Millisecond, long},
		{"hold_jitter", raw.HoldJitter, time.Millisecond, long},
		{"failback_window", raw.FailbackWindow, time.Second, long},
		{"linger", raw.Linger, time.Second, long},
	} {
		d.between("failover."+t.key, t.value, t.least, t.most)
	}
	for _, c := range []struct {
		key   string
		value int
	}{{"misses", raw.Misses}, {"misses_busy", raw.MissesBusy}, {"failbacks", raw.Failbacks}} {
		if c.value < 1 || c.value > maxCount {
			d.wrong("failover."+c.key, fmt.Sprintf("%d cannot be", c.value), fmt.Sprintf("write 1 to %d", maxCount))
		}
	}
	switch {
	case raw.ProbeSuspect > raw.Probe:
		d.wrong("failover.probe_suspect", fmt.Sprintf("%v is more than failover.probe, %v: a suspect would be asked less often than before", raw.ProbeSuspect, raw.Probe), "write less")
	case raw.Probe > raw.ProbeStandby:
		d.wrong("failover.probe_standby", fmt.Sprintf("%v is less than failover.probe, %v: the gateways that wait would be asked more often than the one in use", raw.ProbeStandby, raw.Probe), "write more")
	}
	if raw.MissesBusy < raw.Misses {
		d.wrong("failover.misses_busy", fmt.Sprintf("%d is less than failover.misses, %d: load would pass for death", raw.MissesBusy, raw.Misses), "write as many or more")
	}
	return Failover(raw)
}

// maxCount bounds counts of misses and failbacks.
const maxCount = 100

// apiAddress checks where the API is called.
func (d *document) apiAddress(key, value string) string {
	if p, ok := strings.CutPrefix(value, "unix://"); ok && p != "" {
		return "unix://" + d.socket(key, p)
	}
	host, ok := strings.CutPrefix(value, "http://")
	a, err := netip.ParseAddrPort(strings.TrimSuffix(host, "/"))
	switch {
	case !ok || err != nil || a.Port() == 0:
		d.wrong(key, fmt.Sprintf("%q is not the address of a control API", value), "write unix:///path or http://127.0.0.1:port")
	case !a.Addr().IsLoopback():
		d.wrong(key, fmt.Sprintf("%v is not a loopback address, and the token would cross the network in the clear", a), "write unix:///path or http://127.0.0.1:port")
	}
	return value
}
