package failover

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

// What the state names.
const (
	activeNetwork   = "net-main"
	passiveNetwork  = "net-standby"
	projectID       = "shop"
	environmentName = "production"
)

// Settings that differ from the defaults, so that runs follow each other soon.
// None of them has a part in what is measured.
const (
	holdTime       = 300 * time.Millisecond
	holdJitter     = time.Millisecond
	failbacks      = 100
	failbackWindow = time.Second
)

const stateFile = `teams:
  - {id: acme}
regions:
  - name: {{.Active}}
    pool: ["{{.ActivePool}}"]
    hosts:
{{- range .Hosts}}{{if eq .Region $.Active}}
      - {name: {{.Name}}, endpoint: {{.Endpoint}}}
{{- end}}{{end}}
  - name: {{.Passive}}
    pool: ["{{.PassivePool}}"]
    hosts:
{{- range .Hosts}}{{if eq .Region $.Passive}}
      - {name: {{.Name}}, endpoint: {{.Endpoint}}}
{{- end}}{{end}}
networks:
  - id: ` + activeNetwork + `
    team: acme
    region: {{.Active}}
    cidr: {{.ActiveCIDR}}
    pair: [{{index .ActivePair 0}}, {{index .ActivePair 1}}]
  - id: ` + passiveNetwork + `
    team: acme
    region: {{.Passive}}
    cidr: {{.PassiveCIDR}}
    pair: [{{index .PassivePair 0}}, {{index .PassivePair 1}}]
projects:
  - id: ` + projectID + `
    team: acme
    environments:
      - {name: ` + environmentName + `, active: [` + activeNetwork + `], passive: ` + passiveNetwork + `}
`

const controlFile = `roles: [control]
region: {{.Region}}
desired_state: state.yaml
api: {listen: "unix://{{.Region}}.sock", token_file: token}
admin: {listen: "{{.Admin}}"}
`

const gatewayFile = `roles: [gateway]
host: {{.Name}}
region: {{.Region}}
control: {api: "unix://{{.Region}}.sock", token_file: token}
secret_file: {{.Name}}-secret
state_file: {{.Name}}-state.json
admin: {listen: "{{.Admin}}"}
wireguard: {ports: "{{.FirstPort}}-{{.LastPort}}"}
dns: {upstreams: ["{{.Origin}}"]}
`

const sidecarFile = `api: unix://{{.Active}}.sock
token_file: token
region: {{.Active}}
regions:
  {{.Passive}}: {api: "unix://{{.Passive}}.sock", token_file: token}
socket: sidecar/sidecar.sock
failover:
  hold: {{.Hold}}
  hold_jitter: {{.HoldJitter}}
  failbacks: {{.Failbacks}}
  failback_window: {{.FailbackWindow}}
`

// hostValues are what the templates name of a gateway host.
type hostValues struct {
	Name, Region, Endpoint, Admin, Origin string
	FirstPort, LastPort                   uint16
}

// writeFiles writes what the daemons read into a folder.
func writeFiles(dir string) error {
	var hosts []hostValues
	for _, h := range hostPlans() {
		hosts = append(hosts, hostValues{h.name, h.region, h.link.Addr().String(), adminAddress, originLink.Addr().String(), firstPort, lastPort})
	}
	all := map[string]any{
		"Active": activeRegion, "Passive": passiveRegion, "ActivePool": activePool, "PassivePool": passivePool,
		"ActivePair": activePair, "PassivePair": passivePair, "ActiveCIDR": activeCIDR, "PassiveCIDR": passiveCIDR, "Hosts": hosts,
		"Hold": holdTime, "HoldJitter": holdJitter, "Failbacks": failbacks, "FailbackWindow": failbackWindow,
	}
	files := []struct {
		name, text string
		values     any
	}{{"state.yaml", stateFile, all}, {"sidecar.yaml", sidecarFile, all}, {"token", rand.Text() + "\n", nil}}
	for _, region := range []string{activeRegion, passiveRegion} {
		files = append(files, struct {
			name, text string
			values     any
		}{region + ".yaml", controlFile, map[string]string{"Region": region, "Admin": adminAddress}})
	}
	for _, h := range hosts {
		files = append(files, struct {
			name, text string
			values     any
		}{h.Name + ".yaml", gatewayFile, h})
	}
	for _, f := range files {
		t, err := template.New(f.name).Parse(f.text)
		if err != nil {
			return fmt.Errorf("read the template of %s: %w", f.name, err)
		}
		var b strings.Builder
		if err := t.Execute(&b, f.values); err != nil {
			return fmt.Errorf("fill the template of %s in: %w", f.name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, f.name), []byte(b.String()), 0o600); err != nil {
			return fmt.Errorf("write a file of the daemons: %w", err)
		}
	}
	return nil
}
