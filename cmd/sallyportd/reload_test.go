package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
)

// lines delivers what is logged, a line at a time.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

// await reads until a line holds the text.
func (l lines) await(t *testing.T, ctx context.Context, text string) string {
	t.Helper()
	for {
		select {
		case line := <-l:
			if strings.Contains(line, text) {
				return line
			}
		case <-ctx.Done():
			t.Fatalf("never logged: %q", text)
		}
	}
}

// SIGHUP puts the desired state in force anew, and one that is wrong not.
func TestReload(t *testing.T) {
	dir := files(t, "host: gw-a", "roles: [control]", "secret_file: secret\n", "", "wireguard:\n  ports: 22810-22819\n", "", "dns:\n  upstreams: [127.0.0.1:5353]\n", "")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := load(filepath.Join(dir, "d.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	log, ended := make(lines, 64), make(chan error, 1)
	running, stop := context.WithCancel(ctx)
	go func() { ended <- run(running, s, log) }()
	log.await(t, ctx, "msg=serving")

	client, err := api.NewClient(api.ClientConfig{Address: "unix://" + filepath.Join(dir, "api.sock"), Token: testToken})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, step := range []struct {
		state, says string
		networks    int
	}{
		{strings.Replace(stateYAML, "10.20.0.0/16", "10.20.0.0/8", 1), "desired state not changed", 2},
		{strings.Replace(stateYAML, "name: iad1", "name: fra1", 1), "desired state not changed", 2},
		{stateYAML + "# again\n", "desired state read anew", 2},
		{strings.Replace(stateYAML, "projects:", "  - {id: net_c, team: acme, region: iad1, cidr: 10.9.0.0/16, pair: [127.77.0.5, 127.77.0.6]}\nprojects:", 1), "desired state read anew", 3},
	} {
		if err := os.WriteFile(filepath.Join(dir, "state.yaml"), []byte(step.state), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		line := log.await(t, ctx, "desired state")
		if !strings.Contains(line, step.says) {
			t.Errorf("logged %q, want %q", line, step.says)
		}
		if st, err := client.Status(ctx); err != nil || len(st.Networks) != step.networks {
			t.Errorf("%d networks after %q, %v; want %d", len(st.Networks), step.says, err, step.networks)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
