package demo

import (
	"fmt"
	"strings"
	"text/template"
)

// configuration writes every program's settings, and the desired state, by the
// names of the files.
func (s *stage) configuration() (map[string]string, error) {
	files := make(map[string]string)
	values := map[string]any{
		"OfficeKey": s.office.key.Public().String(),
		"Pool":      s.plan.pool, "StandbyPool": s.plan.standbyPool, "Inner": s.plan.inner, "StandbyInner": s.plan.standbyInner,
		"Acme": s.plan.acme, "Globex": s.plan.globex, "Standby": s.plan.standby, "Gateways": s.plan.gateways[:],
		"Refused": s.plan.refused.Addr(), "NameServer": s.plan.nameServer, "Private": s.plan.private,
		"Site": s.plan.site, "Control": s.plan.control, "Socket": s.socket, "Hold": holdHere,
	}
	fill := func(name, text string) error {
		t, err := template.New(name).Parse(text)
		if err != nil {
			return fmt.Errorf("read the template of %s: %w", name, err)
		}
		var b strings.Builder
		if err := t.Execute(&b, values); err != nil {
			return fmt.Errorf("fill the template of %s in: %w", name, err)
		}
		files[name] = b.String()
		return nil
	}
	for name, text := range map[string]string{
		"state.yaml": stateFile, regionActive + ".yaml": controlFile, "sidecar.yaml": sidecarFile,
	} {
		if err := fill(name, text); err != nil {
			return nil, err
		}
	}
	for i, g := range s.plan.gateways {
		values["G"] = g
		text := gatewayFile + followFile
		if i == atC {
			text = gatewayFile + aloneFile
		}
		if err := fill(g.Name+".yaml", text); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// stateFile is the desired state of both regions: two teams that know nothing of
// each other. Each of iad1's hosts has one address of each pair.
const stateFile = `teams:
  - {id: acme}
  - {id: globex}
regions:
  - name: iad1
    pool: ["{{.Pool}}"]
    hosts:
      - {name: gw-a, endpoint: {{(index .Gateways 0).Endpoint}}}
      - {name: gw-b, endpoint: {{(index .Gateways 1).Endpoint}}}
  - name: cle1
    pool: ["{{.StandbyPool}}"]
    hosts: [{name: gw-c, endpoint: {{(index .Gateways 2).Endpoint}}}]
networks:
  - id: net-acme
    team: acme
    region: iad1
    cidr: {{.Inner}}
    pair: [{{index .Acme 0}}, {{index .Acme 1}}]
    hosts: [gw-a, gw-b]
    site: {host: gw-a, port: {{.Site}}}
    policy: {rules: [{cidrs: [{{.Refused}}/32], verdict: reject}]}
  - id: net-globex
    team: globex
    region: iad1
    cidr: {{.Inner}}
    pair: [{{index .Globex 0}}, {{index .Globex 1}}]
    hosts: [gw-a, gw-b]
  - id: net-acme-cle1
    team: acme
    region: cle1
    cidr: {{.StandbyInner}}
    pair: [{{index .Standby 0}}, {{index .Standby 1}}]
projects:
  - id: shop
    team: acme
    environments:
      - {name: production, active: [net-acme], passive: net-acme-cle1, builds: true}
      - {name: preview, active: [net-acme], builds: false}
  - id: bank
    team: globex
    environments:
      - {name: production, active: [net-globex]}
peerings:
  - id: peer-office
    network: net-acme
    cidrs: ["{{.Private}}"]
    publicKey: {{.OfficeKey}}
    state: active
`

// controlFile is for iad1's control plane.
const controlFile = `roles: [control]
region: iad1
desired_state: state.yaml
api: {listen: "unix://iad1.sock", token_file: iad1.token}
admin: {listen: "{{.Control}}"}
`

// gatewayFile is for a gateway; one of the next two goes with it.
const gatewayFile = `host: {{.G.Name}}
region: {{.G.Region}}
secret_file: {{.G.Name}}.secret
state_file: {{.G.Name}}-state.json
admin: {listen: "{{.G.Admin}}"}
wireguard: {ports: "{{.G.Tunnels.First}}-{{.G.Tunnels.Last}}"}
dns: {upstreams: ["{{.NameServer}}"]}
`

// followFile is for a gateway of iad1, aloneFile for cle1's, which has the control
// plane in the same process.
const (
	followFile = `roles: [gateway]
region_secret_file: region.secret
control: {api: "unix://iad1.sock", token_file: iad1.token}
`
	aloneFile = `roles: [control, gateway]
desired_state: state.yaml
api: {listen: "unix://cle1.sock", token_file: cle1.token}
`
)

// sidecarFile departs from the defaults in how long a gateway that came back is
// watched before it is used again.
const sidecarFile = `api: unix://iad1.sock
token_file: iad1.token
region: iad1
socket: {{.Socket}}
regions:
  cle1: {api: "unix://cle1.sock", token_file: cle1.token}
failover: {hold: {{.Hold}}, hold_jitter: 100ms}
`
