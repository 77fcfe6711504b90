package sidecar

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/sidecar/handover"
)

// maxAnswer is the largest answer that is read, in bytes: that of a worker with ten
// thousand sandboxes, and more.
const maxAnswer = 32 << 20

// localClient calls the local API of the sidecar on this machine.
type localClient struct {
	socket string
	http   *http.Client
}

func newLocalClient(socket string) *localClient {
	dialer := &net.Dialer{}
	return &localClient{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}}
}

// attach asks for a sandbox.
func (c *localClient) attach(ctx context.Context, req sandboxRequest) (Attached, error) {
	var out Attached
	body, err := json.Marshal(req)
	if err != nil {
		return out, fmt.Errorf("encode the request for a sandbox: %w", err)
	}
	return out, c.call(ctx, http.MethodPost, "/v1/sandboxes", body, &out)
}

// detach ends a sandbox. One that is gone already is no error.
func (c *localClient) detach(ctx context.Context, id string) error {
	err := c.end(ctx, id)
	var said *api.Error
	if errors.As(err, &said) && said.Code == api.CodeNotFound {
		return nil
	}
	return err
}

// end ends a sandbox, which must be there.
func (c *localClient) end(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/v1/sandboxes/"+url.PathEscape(id), nil, nil)
}

// call makes one request and decodes the answer into out, if that is not nil.
func (c *localClient) call(ctx context.Context, method, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://sidecar"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make the request %s %s: %w", method, path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return c.refused(resp)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("decode the answer of the sidecar at %s: %w", c.socket, err)
	}
	return nil
}

// refused makes an error of an answer that is one.
func (c *localClient) refused(resp *http.Response) error {
	var e api.ErrorBody
	err := json.NewDecoder(io.LimitReader(resp.Body, maxRequest)).Decode(&e)
	if err != nil || e.Error == nil {
		return fmt.Errorf("HTTP status %d from %s; is that the socket of a Sallyport sidecar?", resp.StatusCode, c.socket)
	}
	e.Error.Status = resp.StatusCode
	return e.Error
}

// unreachable says what to do when no sidecar answers.
func (c *localClient) unreachable(err error) error {
	const start = "start one with `sallyport-sidecar run --config FILE`, or name its socket with --socket or SALLYPORT_SIDECAR_SOCKET"
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no sidecar serves at %s; %s: %w", c.socket, start, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the sidecar's socket %s belongs to another user; run this as that user, or %s: %w", c.socket, start, err)
	}
	return fmt.Errorf("ask the sidecar at %s: %w", c.socket, err)
}

// device opens the connection over which a sandbox's device goes to the sidecar
// and which holds the sandbox.
func (c *localClient) device(ctx context.Context, id string) (*net.UnixConn, error) {
	dialer := &net.Dialer{}
	raw, err := dialer.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, c.unreachable(err)
	}
	conn, ok := raw.(*net.UnixConn)
	if !ok {
		_ = raw.Close()
		return nil, fmt.Errorf("connect to %s: not a Unix socket", c.socket)
	}
	if err := c.upgrade(conn, id); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// upgrade makes an HTTP connection one for the handover. The sidecar says
// nothing after its answer until it was spoken to, so nothing is lost in a buffer.
func (c *localClient) upgrade(conn *net.UnixConn, id string) error {
	_ = conn.SetDeadline(time.Now().Add(deviceTimeout))
	_, err := fmt.Fprintf(conn, "POST /v1/sandboxes/%s/device HTTP/1.1\r\nHost: sidecar\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n", url.PathEscape(id), handover.Protocol)
	if err != nil {
		return c.unreachable(err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return fmt.Errorf("read the answer of the sidecar at %s: %w", c.socket, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return c.refused(resp)
	}
	if r.Buffered() > 0 {
		return fmt.Errorf("the sidecar at %s spoke out of turn; is it of this version?", c.socket)
	}
	return conn.SetDeadline(time.Time{})
}
