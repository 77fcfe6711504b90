package config

import (
	"fmt"
	"path"
	"slices"
	"time"
)

// The roles as they are written.
const (
	roleControl = "control"
	roleGateway = "gateway"
)

// stateFileName is the gateway's state file where none is named: beside the secret.
const stateFileName = "gateway-state.json"

// daemon checks what the roles need, and what is there though they do not.
func (d *document) daemon(raw rawDaemon) Daemon {
	roles := d.roles(raw.Roles)
	out := Daemon{
		Roles:  roles,
		Region: d.label("region", raw.Region, "write the name of this host's region, such as iad1"),
		Admin:  Admin{Listen: d.admin("admin.listen", raw.Admin.Listen)},
		Log:    d.log(raw.Log),
	}
	if raw.Admin.TokenFile != "" {
		out.Admin.TokenFile = d.path(raw.Admin.TokenFile)
	}
	if roles.Control {
		out.DesiredState = d.file("desired_state", raw.DesiredState, "name the file with the desired state")
		out.API = d.api(raw.API)
		d.unused("control", "this daemon is the control plane itself", "remove it, or write roles: [gateway]")
	} else {
		out.Control = d.controlPlane(raw.Control)
		d.unused("desired_state", "the control plane has it, and it runs elsewhere", "remove it, or add control to roles")
		d.unused("api", "the control plane serves it, and it runs elsewhere", "remove it, or add control to roles")
	}
	if roles.Gateway {
		d.gateway(raw, &out)
	}
	return out
}

// roles reads which parts run.
func (d *document) roles(raw []string) Roles {
	out, known := Roles{}, len(raw) > 0
	if !known {
		d.wrong("roles", "names no part of the daemon", "write [control, gateway], or one of them")
	}
	for i, r := range raw {
		switch d.oneOf(fmt.Sprintf("roles[%d]", i), r, roleControl, roleGateway) {
		case roleControl:
			out.Control = true
		case roleGateway:
			out.Gateway = true
		default:
			known = false
		}
	}
	if !known { // that has been said; the rest is judged by the default
		return Roles{Control: true, Gateway: true}
	}
	return out
}

// unused says of a key that is there that nothing would read it.
func (d *document) unused(key, why, remedy string) {
	if _, there := d.at[key]; there {
		d.wrong(key, "has no use: "+why, remedy)
	}
}

// gateway checks what the part that carries traffic needs.
func (d *document) gateway(raw rawDaemon, out *Daemon) {
	out.Host = d.label("host", raw.Host, "write the name that this host has in the desired state, such as gw-a")
	out.SecretFile = d.file("secret_file", raw.SecretFile, "name the file with this host's 32-byte secret")
	if raw.RegionSecretFile != "" {
		out.RegionSecretFile = d.path(raw.RegionSecretFile)
	}
	out.StateFile = path.Join(path.Dir(out.SecretFile), stateFileName)
	if raw.StateFile != "" {
		out.StateFile = d.path(raw.StateFile)
	}
	d.distinct(*out)
	out.WireGuard = d.wireGuard(raw.WireGuard)
	d.uplink(raw, out)
	out.DNS = DNS{Upstreams: d.upstreams(raw.DNS.Upstreams)}
	out.Limits = d.limits(raw.Limits)
	out.Timers = d.timers(raw.Timers)
	out.Drain = d.between("drain", raw.Drain, 0, longestDrain)
	out.Health = d.health(raw.Health)
}

// distinct refuses one file for two purposes: the state file is written over, and
// whoever has a host's secret must not have the region's.
func (d *document) distinct(out Daemon) {
	if out.SecretFile == "" {
		return
	}
	if out.StateFile == out.SecretFile || out.StateFile == out.RegionSecretFile {
		d.wrong("state_file", fmt.Sprintf("%s is a secret, and would be written over", out.StateFile), "name a file of its own")
	}
	if out.RegionSecretFile == out.SecretFile {
		d.wrong("region_secret_file", fmt.Sprintf("%s is this host's own secret", out.SecretFile), "name the file that all hosts of the region have a copy of")
	}
}

// controlPlane checks where the control plane is followed.
func (d *document) controlPlane(raw rawControl) ControlPlane {
	out := ControlPlane{TokenFile: d.file("control.token_file", raw.TokenFile, "name the file with the API's bearer token")}
	if raw.API == "" {
		d.wrong("control.api", "is missing", "write where the region's control API is: unix:///path or http://127.0.0.1:port")
		return out
	}
	out.API = d.apiAddress("control.api", raw.API)
	return out
}

const (
	// longestDrain bounds how long the end of a gateway may take; supervisors kill
	// what takes longer.
	longestDrain = time.Minute
	// maxTargets is how many targets are asked: all of them only when none answers.
	maxTargets = 8
)

func (d *document) health(raw rawHealth) Health {
	if len(raw.Targets) > maxTargets {
		d.wrong("health.targets", fmt.Sprintf("names %d targets", len(raw.Targets)), fmt.Sprintf("name %d or fewer: one that answers is enough", maxTargets))
	}
	for i, t := range raw.Targets {
		key := fmt.Sprintf("health.targets[%d]", i)
		if a := t.Addr(); !a.Is4() || t.Port() == 0 || a.IsUnspecified() || a.IsMulticast() {
			d.wrong(key, fmt.Sprintf("%v is not an IPv4 address and a port that can be connected to", t), "write one such as 192.0.2.80:443")
		}
	}
	return Health{
		Targets:  slices.Clone(raw.Targets),
		Interval: d.between("health.interval", raw.Interval, 100*time.Millisecond, time.Minute),
	}
}

// between checks a length of time against its bounds.
func (d *document) between(key string, value, least, most time.Duration) time.Duration {
	if value < least || value > most {
		d.wrong(key, fmt.Sprintf("%v cannot be", value), fmt.Sprintf("write %v to %v", least, most))
	}
	return value
}
