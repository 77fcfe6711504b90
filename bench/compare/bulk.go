package compare

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"time"
)

// streams is how many connections a transfer has.
const streams = 4

// bulkResult is what iperf3 says, as far as we read it.
type bulkResult struct {
	Error string `json:"error"`
	End   struct {
		Sent struct {
			Retransmits float64 `json:"retransmits"`
		} `json:"sum_sent"`
		Sum struct {
			Packets float64 `json:"packets"`
			Lost    float64 `json:"lost_packets"`
		} `json:"sum"`
		Received struct {
			Bytes float64 `json:"bytes"`
			Bits  float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	} `json:"end"`

	wrong uint64 // connections from elsewhere than the pair
}

// accepted is what iperf3 as a server says of a transfer: from where its connections came. A
// segment from elsewhere belongs to none of them.
type accepted struct {
	Start struct {
		Control struct {
			Host netip.Addr `json:"host"`
		} `json:"accepted_connection"`
		Connected []struct {
			Host netip.Addr `json:"remote_host"`
		} `json:"connected"`
	} `json:"start"`
}

// wrongConnections is how many connections a server had from elsewhere than the pair, by what it
// printed.
func wrongConnections(printed []byte) (n uint64, err error) {
	var a accepted
	if err := json.Unmarshal(printed, &a); err != nil {
		return 0, fmt.Errorf("iperf3 as a server says %q: %w", printed[:min(len(printed), 200)], err)
	}
	if len(a.Start.Connected) == 0 {
		return 0, errors.New("iperf3 as a server does not say who connected")
	}
	from := []netip.Addr{a.Start.Control.Host}
	for _, c := range a.Start.Connected {
		from = append(from, c.Host)
	}
	for _, host := range from {
		if !slices.Contains(pair[:], host) {
			n++
		}
	}
	return n, nil
}

// transfer runs iperf3 from the sandbox to the server, with arguments of how much. A
// run that does not end within patience is given up: on a busy machine iperf3 can
// wait for itself for ever.
func (c *chain) transfer(ctx context.Context, patience time.Duration, args ...string) (r bulkResult, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// A server for each run, as one that waits for a client of before serves no other.
	// Its port is its own, too.
	c.port++
	port := strconv.Itoa(iperfPort + c.port)
	server := exec.CommandContext(ctx, "iperf3", "-s", "-1", "-J", "-B", serverLink.Addr().String(), "-p", port)
	var printed bytes.Buffer
	server.Stdout = &printed
	if err := c.server.Start(server); err != nil {
		return r, err
	}
	served := false
	defer func() {
		if !served {
			cancel()
			_ = server.Wait() // it is killed
		}
	}()
	args = append([]string{"-c", serverLink.Addr().String(), "-p", port, "-J", "-P", strconv.Itoa(streams)}, args...)
	for {
		var out bytes.Buffer
		cmd := exec.CommandContext(ctx, "iperf3", args...)
		cmd.Stdout, cmd.Stderr = &out, &out
		err := c.sandbox.Run(cmd)
		r = bulkResult{}
		if jerr := json.Unmarshal(out.Bytes(), &r); jerr != nil && err == nil {
			err = fmt.Errorf("it says %q: %w", out.String(), jerr)
		}
		if err == nil && r.Error == "" {
			served = true
			if err := server.Wait(); err != nil {
				return r, fmt.Errorf("iperf3 as a server did not end well: %w", err)
			}
			r.wrong, err = wrongConnections(printed.Bytes())
			return r, err
		}
		// The server listens a moment after its start.
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return r, fmt.Errorf("iperf3 did not end well within %v: %s (%w)", patience, r.Error, err)
		}
	}
}

const (
	iperfPort = 5200 // before that of the first run
	attempts  = 3    // at a transfer before a variant has failed, and at a measurement without noise
	grace     = 8 * time.Second
	// maxResent is from how many segments sent again per GB on, about one of 7,000, a
	// transfer counts as one that went wrong.
	maxResent = 100
)

// bulk moves bytes by TCP, from the server if in is set, else to it.
func bulk(ctx context.Context, c *chain, cfg *Config, in bool) (f figures, err error) {
	wrong := 0.0 // of all attempts
	for vain := range attempts {
		f, err = c.bulkOnce(ctx, cfg.Bulk, in)
		wrong += f[figureWrong]
		f[figureVain], f[figureWrong] = float64(vain), wrong
		if err == nil {
			return f, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return f, err
}

func (c *chain) bulkOnce(ctx context.Context, d time.Duration, in bool) (figures, error) {
	var way []string
	if in {
		way = []string{"--reverse"}
	}
	f := figures{} // with an error those that count all the same
	// Keys, routes and caches are warm after the first.
	r, err := c.transfer(ctx, grace, append(way, "--time", "1")...)
	f[figureWrong] = float64(r.wrong)
	if err != nil {
		return f, err
	}
	before, err := c.spent(ctx)
	if err != nil {
		return f, err
	}
	r, err = c.transfer(ctx, d+grace, append(way, "--time", fmt.Sprint(d.Seconds()))...)
	f[figureWrong] += float64(r.wrong)
	if err != nil {
		return f, err
	}
	after, err := c.spent(ctx)
	if err != nil {
		return f, err
	}
	const giga = 1e9
	if r.End.Received.Bytes < giga/1000 {
		return f, fmt.Errorf("no more than %.0f bytes arrived", r.End.Received.Bytes)
	}
	used, gb := after.Since(before), r.End.Received.Bytes/giga
	f[figureThroughput] = r.End.Received.Bits / giga
	f[figureCoreGB] = used.Core.Seconds() / gb
	f[figureResent] = r.End.Sent.Retransmits / gb
	if c.gatewayPID != 0 {
		f[figureProcessGB] = used.Process.Seconds() / gb
	}
	return f, nil
}
