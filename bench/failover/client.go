package failover

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/bench/daemon"
)

// sidecarClient asks the sidecar's local API.
type sidecarClient struct{ http *http.Client }

func newSidecarClient(socket string) *sidecarClient {
	client := daemon.Socket(socket).Client()
	client.Timeout = 2 * time.Second
	return &sidecarClient{client}
}

// sandboxList is what we read of /v1/sandboxes.
type sandboxList struct {
	Sandboxes []struct {
		Inner netip.Addr `json:"inner"`
	} `json:"sandboxes"`
}

func (c *sidecarClient) sandboxes(ctx context.Context) (l sandboxList, err error) {
	return l, c.get(ctx, "/v1/sandboxes", &l)
}

func (c *sidecarClient) status(ctx context.Context) (s sidecarStatus, err error) {
	return s, c.get(ctx, "/v1/status", &s)
}

func (c *sidecarClient) get(ctx context.Context, path string, into any) error {
	b, err := daemon.Get(ctx, c.http, "http://sidecar"+path)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return fmt.Errorf("ask the sidecar for %s: %w", path, err)
	}
	return nil
}
