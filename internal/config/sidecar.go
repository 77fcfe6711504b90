package config

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
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
	// Admin is where metrics are served; its Listen is not valid where they are not.
	Admin Admin
	Log   Log
}

// rawSidecar is the file as it is written.
type rawSidecar struct {
	API       string   `yaml:"api"`
	TokenFile string   `yaml:"token_file"`
	Region    string   `yaml:"region"`
	Socket    string   `yaml:"socket"`
	Admin     rawAdmin `yaml:"admin"`
	Log       rawLog   `yaml:"log"`
}

// ReadSidecar reads the settings of sallyport-sidecar; see [ReadDaemon].
func ReadSidecar(name string, r io.Reader) (Sidecar, error) {
	d, err := readDocument(name, r)
	if err != nil {
		return Sidecar{}, err
	}
	raw := rawSidecar{
		API:    "unix:///run/sallyport/api.sock",
		Socket: "/run/sallyport/sidecar.sock",
		Log:    defaultLog(),
	}
	d.decode(&raw)
	out := Sidecar{
		API:       d.apiAddress("api", raw.API),
		TokenFile: d.file("token_file", raw.TokenFile, "name the file with the API's bearer token"),
		Region:    d.label("region", raw.Region, "write the name of this worker's region, such as iad1"),
		Socket:    d.socket("socket", raw.Socket),
		Admin:     Admin{Listen: d.admin("admin.listen", raw.Admin.Listen)},
		Log:       d.log(raw.Log),
	}
	if err := d.problems.err(); err != nil {
		return Sidecar{}, err
	}
	return out, nil
}

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
