package compare

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
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
	server := exec.CommandContext(ctx, "iperf3", "-s", "-1", "-B", serverLink.Addr().String(), "-p", port)
	if err := c.server.Start(server); err != nil {
		return r, err
	}
	defer func() {
		cancel()
		_ = server.Wait() // it has served, or is killed
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
			return r, nil
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
	for vain := range attempts {
		if f, err = c.bulkOnce(ctx, cfg.Bulk, in); err == nil {
			f[figureVain] = float64(vain)
			return f, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

func (c *chain) bulkOnce(ctx context.Context, d time.Duration, in bool) (figures, error) {
	var way []string
	if in {
		way = []string{"--reverse"}
	}
	// Keys, routes and caches are warm after this.
	if _, err := c.transfer(ctx, grace, append(way, "--time", "1")...); err != nil {
		return nil, err
	}
	before, err := readUsage(c)
	if err != nil {
		return nil, err
	}
	r, err := c.transfer(ctx, d+grace, append(way, "--time", fmt.Sprint(d.Seconds()))...)
	if err != nil {
		return nil, err
	}
	after, err := readUsage(c)
	if err != nil {
		return nil, err
	}
	const giga = 1e9
	if r.End.Received.Bytes < giga/1000 {
		return nil, fmt.Errorf("no more than %.0f bytes arrived", r.End.Received.Bytes)
	}
	used, gb := after.since(before), r.End.Received.Bytes/giga
	f := figures{
		figureThroughput: r.End.Received.Bits / giga,
		figureCoreGB:     used.core.Seconds() / gb,
		figureResent:     r.End.Sent.Retransmits / gb,
	}
	if c.gatewayPID != 0 {
		f[figureProcessGB] = used.process.Seconds() / gb
	}
	return f, nil
}
