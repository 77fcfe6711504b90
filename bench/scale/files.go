package scale

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// What the state names.
const (
	activeRegion  = "iad1"
	passiveRegion = "cle1"
	environment   = "production"
)

// hostPlan is a gateway host: where it is, and which of the programs' parts it runs.
type hostPlan struct {
	Name, Region string
	Link, Hub    netip.Prefix // the two ends of its link
	Control      bool         // it keeps the region's control plane as well
}

// plan is what a world has.
type plan struct {
	Uplink   string
	Networks int // of the active region, and of the passive one where there is one
	Hosts    []hostPlan
	Passive  bool // each network has one in the passive region
	Admin    string
	Origin   netip.Addr
	// Least is the first UDP port of the gateways' tunnels.
	Least int
}

// networkPlan is one network as the state has it.
type networkPlan struct {
	ID, Project, Region string
	CIDR                netip.Prefix
	Pair                [2]netip.Addr
}

// ofRegion are the networks of a region. A single one has room for as many sandboxes
// as a network can have.
func (p *plan) ofRegion(region string) []networkPlan {
	inner, outer := [2]byte{10, 0}, byte(18)
	if region == passiveRegion {
		inner, outer = [2]byte{10, 128}, 19
	}
	bits := 24
	if p.Networks == 1 {
		bits = 16
	}
	var list []networkPlan
	for i := range p.Networks {
		hi, lo := byte(i>>8), byte(i)
		first := 2 + 2*i
		n := networkPlan{
			ID: fmt.Sprintf("%s-%d", region, i), Project: projectName(i), Region: region,
			CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{inner[0], inner[1] + hi, lo, 0}), bits),
		}
		for side := range n.Pair {
			n.Pair[side] = netip.AddrFrom4([4]byte{198, outer, byte((first + side) >> 8), byte(first + side)})
		}
		list = append(list, n)
	}
	return list
}

func projectName(i int) string { return fmt.Sprintf("project-%d", i) }

// Active and Standby are the networks of the two regions.
func (p plan) Active() []networkPlan  { return p.ofRegion(activeRegion) }
func (p plan) Standby() []networkPlan { return p.ofRegion(passiveRegion) }

// Last is the last port of the gateways' tunnels.
func (p plan) Last() int { return p.Least + max(2*p.Networks, 16) }

const stateFile = `teams:
  - {id: acme}
regions:
  - name: ` + activeRegion + `
    pool: ["198.18.0.0/16"]
    hosts:
{{- range .Hosts}}{{if eq .Region "` + activeRegion + `"}}
      - {name: {{.Name}}, endpoint: {{.Link.Addr}}}
{{- end}}{{end}}
{{- if .Passive}}
  - name: ` + passiveRegion + `
    pool: ["198.19.0.0/16"]
    hosts:
{{- range .Hosts}}{{if eq .Region "` + passiveRegion + `"}}
      - {name: {{.Name}}, endpoint: {{.Link.Addr}}}
{{- end}}{{end}}
{{- end}}
networks:
{{- range .Active}}
  - {id: {{.ID}}, team: acme, region: {{.Region}}, cidr: {{.CIDR}}, pair: [{{index .Pair 0}}, {{index .Pair 1}}]}
{{- end}}
{{- if .Passive}}{{range .Standby}}
  - {id: {{.ID}}, team: acme, region: {{.Region}}, cidr: {{.CIDR}}, pair: [{{index .Pair 0}}, {{index .Pair 1}}]}
{{- end}}{{end}}
projects:
{{- range $i, $n := .Active}}
  - id: {{$n.Project}}
    team: acme
    environments:
      - {name: ` + environment + `, active: [{{$n.ID}}]{{if $.Passive}}, passive: {{(index $.Standby $i).ID}}{{end}}}
{{- end}}
`

const daemonFile = `{{with .Host}}{{if .Control}}roles: [control, gateway]
desired_state: state.yaml
api: {listen: "unix://{{.Region}}.sock", token_file: token}
{{- else}}roles: [gateway]
control: {api: "unix://{{.Region}}.sock", token_file: token}
{{- end}}
host: {{.Name}}
region: {{.Region}}
secret_file: {{.Name}}-secret
state_file: {{.Name}}-state.json
{{end}}admin: {listen: "{{.Admin}}"}
wireguard: {ports: "{{.Least}}-{{.Last}}"}
uplink: {{.Uplink}}
{{if eq .Uplink "sockets"}}sockets: {add_addresses_to: lo}
{{end}}dns: {upstreams: ["{{.Origin}}"]}
`

const sidecarFile = `api: unix://` + activeRegion + `.sock
token_file: token
region: ` + activeRegion + `
{{if .Passive}}regions:
  ` + passiveRegion + `: {api: "unix://` + passiveRegion + `.sock", token_file: token}
{{end}}socket: sidecar/sidecar.sock
admin: {listen: "{{.Admin}}"}
`

// writeFiles writes what the daemons read into a folder, and returns the token.
func (p plan) writeFiles(dir string) (token string, err error) {
	token = rand.Text()
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write a file of the daemons: %w", err)
	}
	if err := fill(dir, "state.yaml", stateFile, p); err != nil {
		return "", err
	}
	if err := fill(dir, "sidecar.yaml", sidecarFile, p); err != nil {
		return "", err
	}
	for _, h := range p.Hosts {
		values := struct {
			plan
			Host hostPlan
		}{p, h}
		if err := fill(dir, h.Name+".yaml", daemonFile, values); err != nil {
			return "", err
		}
	}
	return token, nil
}

// fill writes one file from its template.
func fill(dir, name, text string, values any) error {
	t, err := template.New(name).Parse(text)
	if err != nil {
		return fmt.Errorf("read the template of %s: %w", name, err)
	}
	var b strings.Builder
	if err := t.Execute(&b, values); err != nil {
		return fmt.Errorf("fill the template of %s in: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("write a file of the daemons: %w", err)
	}
	return nil
}
