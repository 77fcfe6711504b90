package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/sallyport-net/sallyport/control/spec"
)

// maxResponse bounds what a client reads of one answer: a full page of
// attachments takes about half a MiB, the status of 10,000 networks about 10.
const maxResponse = 64 << 20

// ClientConfig says where the API is and who calls.
type ClientConfig struct {
	// Address is unix:///path/of/socket, or http://host:port on the loopback interface.
	Address string
	// Token is the bearer token.
	Token string
}

// Client calls the control API. It is safe for concurrent use. The calls of
// gateway hosts (Next, Acknowledge, Report) give up on a control plane that hangs;
// all others have no deadline but that of their context.
type Client struct {
	config ClientConfig
	base   string // scheme and host of each request
	http   *http.Client
}

// NewClient checks the address and the token; it does not connect.
func NewClient(cfg ClientConfig) (*Client, error) {
	if err := checkToken("API", cfg.Token); err != nil {
		return nil, err
	}
	network, target, err := parseAddress(cfg.Address)
	if err != nil {
		return nil, err
	}
	base := "http://" + target
	if network == "unix" {
		base = "http://sallyport" // a name is needed; the dialer does not look at it
	}
	dialer := &net.Dialer{}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, target)
		},
		MaxIdleConnsPerHost: 16,
		DisableCompression:  true,
	}
	return &Client{
		config: cfg,
		base:   base,
		http: &http.Client{
			Transport: transport,
			// The API never redirects, and the token is not for others.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// parseAddress splits the address of a control API into what net.Dial takes:
// "unix" and a path, or "tcp" and an address on the loopback interface. The token
// goes over the wire as it is, so that no other address is accepted.
func parseAddress(s string) (network, target string, err error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", "", fmt.Errorf("API address %q does not parse; write unix:///path or http://127.0.0.1:port: %w", s, err)
	}
	switch u.Scheme {
	case "unix":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
			return "", "", fmt.Errorf("API address %q has no absolute path; write unix:///path, with three slashes", s)
		}
		return "unix", u.Path, nil
	case "http":
		a, err := netip.ParseAddrPort(u.Host)
		if err != nil || a.Port() == 0 || !a.Addr().IsLoopback() || u.Path != "" && u.Path != "/" {
			return "", "", fmt.Errorf("API address %q is not http://127.0.0.1:port; the token would cross a network in the clear, so that only loopback addresses are called", s)
		}
		return "tcp", u.Host, nil
	}
	return "", "", fmt.Errorf("API address %q has neither scheme that is known; write unix:///path or http://127.0.0.1:port", s)
}

// Close closes idle connections. The client can still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// String says where the client calls.
func (c *Client) String() string { return "control API at " + c.config.Address }

// Attach attaches a sandbox and returns when its gateway is ready, or when the
// control plane gave up. An error of the API is an [*Error].
func (c *Client) Attach(ctx context.Context, req AttachRequest) (AttachResponse, error) {
	var out AttachResponse
	err := c.call(ctx, http.MethodPost, "/v1/attachments", req, &out)
	return out, err
}

// Detach ends an attachment. One that is not known is an [*Error] with [CodeNotFound].
func (c *Client) Detach(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/v1/attachments/"+url.PathEscape(id), nil, nil)
}

// List returns one page of attachments: those after an ID (all: ""), at most
// limit of them (0: [MaxPage]).
func (c *Client) List(ctx context.Context, after string, limit int) (AttachmentList, error) {
	q := make(url.Values)
	if after != "" {
		q.Set("after", after)
	}
	if limit != 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	path := "/v1/attachments"
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	var out AttachmentList
	err := c.call(ctx, http.MethodGet, path, nil, &out)
	return out, err
}

// Attachments returns all attachments, page by page. What is attached or
// detached meanwhile may or may not be among them.
func (c *Client) Attachments(ctx context.Context) ([]spec.Attachment, error) {
	var all []spec.Attachment
	after := ""
	for {
		page, err := c.List(ctx, after, 0)
		if err != nil {
			return nil, err
		}
		all = append(all, page.Attachments...)
		if page.Next == "" {
			return all, nil
		}
		if page.Next <= after {
			return nil, fmt.Errorf("list attachments at %s: the page after %q leads back to %q; is it a control plane of this version?", c.config.Address, after, page.Next)
		}
		after = page.Next
	}
}

// Status returns what the control plane knows.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var out Status
	err := c.call(ctx, http.MethodGet, "/v1/status", nil, &out)
	return out, err
}

// Peerings returns the peering connections of the region's networks.
func (c *Client) Peerings(ctx context.Context) (PeeringList, error) {
	var out PeeringList
	err := c.call(ctx, http.MethodGet, "/v1/peerings", nil, &out)
	return out, err
}

// Peering returns one peering connection. One that is not known is an [*Error]
// with [CodeNotFound].
func (c *Client) Peering(ctx context.Context, id string) (PeeringStatus, error) {
	var out PeeringStatus
	err := c.call(ctx, http.MethodGet, "/v1/peerings/"+url.PathEscape(id), nil, &out)
	return out, err
}

// call makes one request. The answer is decoded into out, if that is not nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := c.read(resp, maxResponse)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return c.garbled(resp, err)
	}
	return nil
}

// send makes one request and returns when the answer begins.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request for %s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("make the request %s %s: %w", method, path, err)
	}
	req.Header.Set("Authorization", "Bearer "+c.config.Token)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(method, path, err)
	}
	return resp, nil
}

// read reads an answer, of at most limit bytes; one that is an error becomes one.
func (c *Client) read(resp *http.Response, limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s to %s: %w", c, asked(resp), err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("the answer of %s to %s has more than %d MiB; is it a Sallyport control plane?", c, asked(resp), limit>>20)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, c.refused(resp, b)
	}
	return b, nil
}

// asked is what an answer is the answer to.
func asked(resp *http.Response) string {
	return resp.Request.Method + " " + resp.Request.URL.RequestURI()
}

func (c *Client) garbled(resp *http.Response, err error) error {
	return fmt.Errorf("decode the answer of %s to %s: %w", c, asked(resp), err)
}

// refused makes an error of an answer that is one.
func (c *Client) refused(resp *http.Response, body []byte) error {
	var e ErrorBody
	if err := json.Unmarshal(body, &e); err != nil || e.Error == nil || e.Error.Code == "" {
		return fmt.Errorf("%s answered %s with HTTP status %d and not in the words of this API; is it a Sallyport control plane?", c, asked(resp), resp.StatusCode)
	}
	e.Error.Status = resp.StatusCode
	return e.Error
}

// unreachable says what to look at when no answer came.
func (c *Client) unreachable(method, path string, err error) error {
	var remedy string
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no answer of %s to %s %s in time: %w", c, method, path, err)
	case errors.Is(err, fs.ErrNotExist):
		remedy = "there is no such socket; is sallyportd running here, and is this the address of its api.listen?"
	case errors.Is(err, fs.ErrPermission):
		remedy = "the socket belongs to another user; run this as the user of sallyportd"
	case errors.Is(err, syscall.ECONNREFUSED):
		remedy = "nobody listens there; is sallyportd running?"
	default:
		remedy = "check that sallyportd runs and that this is the address of its api.listen"
	}
	return fmt.Errorf("cannot reach the %s: %s: %w", c, remedy, err)
}
