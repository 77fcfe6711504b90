package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

const (
	// connectTime bounds the wait for a connection to this machine.
	connectTime = 5 * time.Second
	// readTime bounds the wait for a read-out, which takes a second of a host with millions of
	// sessions.
	readTime = 10 * time.Second
	// maxRefusal is how many bytes of a refusal are shown.
	maxRefusal = 1 << 10
	// maxReadout is more than a read-out has, in bytes: some lists of 1024 rows, twice.
	maxReadout = 16 << 20
)

// adminListener is the admin listener of the sallyportd on this machine. It is reached
// from this machine's loopback address, whatever its own: so nothing that is sent there,
// a token least of all, leaves the machine.
type adminListener struct {
	address string
	// pauses are those after answers that the daemon is busy; nil: those of busyPauses.
	pauses []time.Duration
}

// busyPauses sum up to more than a read-out of some million sessions takes.
var busyPauses = []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond}

func (a *adminListener) flag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.address, "admin", "127.0.0.1:9469", "`ADDRESS` and port of the daemon's admin listener")
}

// adminRequest is what is asked for; without a token none is sent.
type adminRequest struct {
	path  string
	query url.Values
	token string
}

// adminRefusal is an answer that is not 200.
type adminRefusal struct {
	at     string
	status int
	text   string
}

// Error says what the operator can do, where the daemon's own words leave that open.
func (r *adminRefusal) Error() string {
	said := fmt.Sprintf("sallyportd at %s: %s", r.at, r.text)
	switch {
	case r.status == http.StatusNotFound && r.text == "404 page not found": // by net/http: there is no such path
		return fmt.Sprintf("sallyportd at %s has no read-outs: it is no gateway (roles of its configuration; ask on a gateway host), or older than this command", r.at)
	case r.status == http.StatusNotFound:
		return said + " (`sallyport status` names the hosts of each network; ask there)"
	case r.status == http.StatusForbidden:
		return said + " (run this command on the gateway host)"
	}
	return said
}

// get asks for something and returns it as it comes. The error is an [*adminRefusal]
// where the daemon gives nothing.
func (a *adminListener) get(ctx context.Context, q adminRequest) (io.ReadCloser, error) {
	if to, err := netip.ParseAddrPort(a.address); err != nil || to.Port() == 0 {
		return nil, fmt.Errorf("--admin: %q is not an IP address and a port; write that of admin.listen of the daemon's configuration, such as 127.0.0.1:9469", a.address)
	}
	u := url.URL{Scheme: "http", Host: a.address, Path: q.path, RawQuery: q.query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("--admin %s: %w", a.address, err)
	}
	if q.token != "" {
		req.Header.Set("Authorization", "Bearer "+q.token)
	}
	transport := &http.Transport{DialContext: dialHere, DisableKeepAlives: true} // and no proxy
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // it never does
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, a.unreachable(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal)) // what came of it is shown
	return nil, &adminRefusal{at: a.address, status: resp.StatusCode, text: cmp.Or(strings.TrimSpace(string(text)), resp.Status)}
}

// dialHere connects to an address of this machine, and of no other.
func dialHere(ctx context.Context, network, address string) (net.Conn, error) {
	from := net.IPv4(127, 0, 0, 1)
	if to, err := netip.ParseAddrPort(address); err == nil && to.Addr().Unmap().Is6() {
		from = net.IPv6loopback
	}
	d := net.Dialer{Timeout: connectTime, LocalAddr: &net.TCPAddr{IP: from}}
	return d.DialContext(ctx, network, address)
}

// unreachable says what to look at when no answer came.
func (a *adminListener) unreachable(err error) error {
	remedy := "check that sallyportd runs on this host and that this is admin.listen of its configuration (--admin)"
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer of sallyportd's admin listener at %s in time; does sallyportd hang, or was it stopped?: %w", a.address, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		remedy = "nobody listens there; is sallyportd running on this host, and is this admin.listen of its configuration (--admin)?"
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EADDRNOTAVAIL): // from a loopback address no other machine is reached
		remedy = "that is no address of this machine, and it answers its own alone: run this command on the gateway host"
	}
	return fmt.Errorf("cannot reach sallyportd's admin listener at %s: %s: %w", a.address, remedy, err)
}

// read asks for a read-out, again for a while where another one is under way, and
// decodes it into out.
func (a *adminListener) read(ctx context.Context, q adminRequest, out any) error {
	pauses := a.pauses
	if pauses == nil {
		pauses = busyPauses
	}
	for tries := 1; ; tries++ {
		err := a.readOnce(ctx, q, out)
		refusal := (*adminRefusal)(nil)
		if !errors.As(err, &refusal) || refusal.status != http.StatusServiceUnavailable {
			return err
		}
		if tries > len(pauses) {
			return fmt.Errorf("%w (asked %d times)", err, tries)
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(pauses[tries-1]):
		}
	}
}

func (a *adminListener) readOnce(ctx context.Context, q adminRequest, out any) error {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	body, err := a.get(ctx, q)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxReadout)).Decode(out); err != nil {
		return fmt.Errorf("decode the answer of %s to %s: %w; is it sallyportd's admin listener?", a.address, q.path, err)
	}
	return nil
}
