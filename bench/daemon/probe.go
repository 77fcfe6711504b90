package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 1 << 20

// Probe asks whether a daemon serves.
type Probe interface {
	// Ready returns an error if it does not.
	Ready(ctx context.Context) error
}

// HTTP is a daemon that serves once a URL answers with 200.
type HTTP struct {
	Client *http.Client
	URL    string
}

// Ready implements [Probe].
func (h HTTP) Ready(ctx context.Context) error {
	_, err := Get(ctx, h.Client, h.URL)
	return err
}

// Socket is the path of a unix socket. Its daemon serves once it accepts there.
type Socket string

// Ready implements [Probe].
func (s Socket) Ready(ctx context.Context) error {
	c, err := s.dial(ctx, "", "")
	if err != nil {
		return err
	}
	return c.Close()
}

// Client makes requests of any host through the socket.
func (s Socket) Client() *http.Client { return NewClient(s.dial) }

// dial connects, whatever the address.
func (s Socket) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", string(s))
}

// NewClient makes requests by connections of dial. They are not kept: the daemon
// may be another one next time.
func NewClient(dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

// Get reads what a URL answers with. Any other status than 200 is an error.
func Get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", url, resp.Status, bytes.TrimSpace(b))
	}
	return b, err
}
