package deploy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/internal/config"
)

// settings are those of a unit or drop-in, each key with its values in order.
func settings(t *testing.T, path string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?m)^(\w+)=(.*)$`).FindAllStringSubmatch(read(t, path), -1) {
		all[m[1]] = append(all[m[1]], strings.Fields(m[2])...)
	}
	return all
}

// A drop-in gives what its program asks for by name, and takes back what would void it.
func TestDropinsGivePrivileges(t *testing.T) {
	for name, want := range map[string]struct{ capabilities, voided []string }{
		"sallyportd.service.d/tun.conf":           {[]string{"CAP_NET_ADMIN", "CAP_NET_RAW"}, []string{"PrivateUsers", "PrivateDevices"}},
		"sallyport-sidecar.service.d/attach.conf": {[]string{"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE"}, []string{"PrivateDevices"}},
	} {
		s := settings(t, filepath.Join("systemd", name))
		for _, key := range []string{"AmbientCapabilities", "CapabilityBoundingSet"} {
			if !slices.Equal(s[key], want.capabilities) {
				t.Errorf("%s: %s is %v, want %v", name, key, s[key], want.capabilities)
			}
		}
		unit := settings(t, filepath.Join("systemd", strings.TrimSuffix(filepath.Dir(name), ".d")))
		for _, key := range want.voided {
			if slices.Equal(unit[key], []string{"yes"}) && !slices.Equal(s[key], []string{"no"}) {
				t.Errorf("%s: %s is %v, which voids what the drop-in gives", name, key, s[key])
			}
		}
		if got := s["DeviceAllow"]; !slices.Equal(got, []string{"/dev/net/tun", "rw"}) || s["DevicePolicy"][0] != "closed" {
			t.Errorf("%s: devices %v", name, got)
		}
	}
}

// Each line of the sysctls names a parameter and a value, and forwarding is among them.
func TestSysctls(t *testing.T) {
	line := regexp.MustCompile(`^(net\.(?:ipv4|core)\.[a-z0-9_.]+) = (\d+)$`)
	found := map[string]string{}
	for text := range strings.Lines(read(t, filepath.Join("sysctl.d", "60-sallyport.conf"))) {
		if text = strings.TrimSpace(text); text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		m := line.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("%q is no setting", text)
		}
		found[m[1]] = m[2]
	}
	if found["net.ipv4.ip_forward"] != "1" {
		t.Errorf("the sysctls are %v", found)
	}
}

// Who follows the README has every address on the host that the reference's gateway needs.
func TestReadmeHasAddresses(t *testing.T) {
	f, err := os.Open("desired-state.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	state, err := config.ReadState(f.Name(), f)
	if err != nil {
		t.Fatal(err)
	}
	readme := read(t, filepath.Join(root, "README.md"))
	loop := regexp.MustCompile(`(?m)^# for a in (.*); do ip address add`).FindStringSubmatch(readme)
	if loop == nil {
		t.Fatal("the README adds no addresses")
	}
	have := strings.Fields(loop[1])
	for _, n := range state.Networks {
		for i, host := range state.HostsOf(n) {
			if a := n.Pair[i].String(); host == "gw-a" && !slices.Contains(have, a) {
				t.Errorf("the README does not add %s of %s", a, n.ID)
			}
		}
	}
	if want := fmt.Sprintf("region iad1, %d networks in the desired state", len(state.Networks)); !strings.Contains(readme, want) {
		t.Errorf("the README does not say %q", want)
	}
}
