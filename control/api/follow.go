package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

const (
	// maxUpdate bounds what is read of one update, in bytes: 131,072 attachments
	// and 10,000 networks take about 70 MiB.
	maxUpdate = 256 << 20
	// lateness is by how much an answer may begin later than it was asked for.
	lateness = time.Second
	// updateTime bounds how long the rest of an update may take to come.
	updateTime = 10 * time.Second
	// tellTime bounds a report or an acknowledgement.
	tellTime = 10 * time.Second
)

// Next waits until the control plane has something newer than after, and returns
// it. After the zero cursor, one of another store, or where the control plane no
// longer knows what came since, the update is full.
//
// A deadline of ctx bounds the wait, not the answer: one that has begun by then is
// read to its end, or the largest update would never come through. Next may
// therefore return some time after the deadline; when ctx is cancelled, it
// returns at once. The error is that of ctx, or says why no answer came.
func (c *Client) Next(ctx context.Context, after spec.Cursor) (spec.Update, error) {
	for {
		if ctx.Err() != nil {
			return spec.Update{}, fmt.Errorf("wait for a change after revision %d: %w", after.Revision, context.Cause(ctx))
		}
		u, found, err := c.poll(ctx, after)
		if err != nil || found {
			return u, err
		}
	}
}

// poll asks once. Not found: there was nothing new for as long as the call was held.
func (c *Client) poll(ctx context.Context, after spec.Cursor) (u spec.Update, found bool, err error) {
	wait := MaxWait
	if end, ok := ctx.Deadline(); ok {
		wait = max(min(wait, time.Until(end)), 0)
	}
	// Of ctx only a cancellation ends the request. The server ends the wait, and its
	// answer leaves the connection open for the next poll.
	request, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.Canceled) {
			cancel()
		}
	})()
	late := time.AfterFunc(wait+lateness, cancel)
	defer late.Stop()

	u, found, err = c.update(request, late, after, wait)
	switch {
	case err == nil || request.Err() == nil:
		return u, found, err
	case ctx.Err() != nil:
		return u, false, fmt.Errorf("wait for a change after revision %d: %w", after.Revision, context.Cause(ctx))
	}
	return u, false, fmt.Errorf("%s did not answer in time, or stopped in the middle of an update; does sallyportd hang?", c)
}

// update makes the request of a poll, and gives the answer time of its own once it begins.
func (c *Client) update(ctx context.Context, late *time.Timer, after spec.Cursor, wait time.Duration) (u spec.Update, found bool, err error) {
	path := "/v1/gateway/updates?" + url.Values{
		"store": {after.Store},
		"after": {strconv.FormatUint(after.Revision, 10)},
		// Rounded up, so that what remains of a wait is not asked for over and over.
		"wait": {strconv.FormatInt((wait + time.Millisecond - 1).Milliseconds(), 10)},
	}.Encode()
	asked := time.Now()
	resp, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return u, false, err
	}
	defer resp.Body.Close()
	late.Reset(updateTime)
	if resp.StatusCode == http.StatusNoContent {
		if held := time.Since(asked); held < wait/2 {
			return u, false, c.garbled(resp, fmt.Errorf("nothing new after %v, but the call was to be held for %v", held, wait))
		}
		return u, false, nil
	}
	b, err := c.read(resp, maxUpdate)
	if err != nil {
		return u, false, err
	}
	if err := json.Unmarshal(b, &u); err != nil {
		return u, false, c.garbled(resp, err)
	}
	if u.Store == "" || u.Revision == 0 {
		return u, false, c.garbled(resp, errors.New("the update names no store or no revision"))
	}
	if u.Full && u.State == nil {
		return u, false, c.garbled(resp, errors.New("the update is full and has no desired state"))
	}
	return u, true, nil
}

// Acknowledge says that a gateway host has applied everything up to a cursor.
func (c *Client) Acknowledge(ctx context.Context, host string, at spec.Cursor) error {
	return c.tell(ctx, "/v1/gateway/acknowledgements", Acknowledgement{Host: host, Cursor: at})
}

// Report tells what a gateway host has to say of itself.
func (c *Client) Report(ctx context.Context, report spec.HostReport) error {
	return c.tell(ctx, "/v1/gateway/reports", report)
}

// tell makes a call that is answered at once, or not at all by a control plane
// that hangs.
func (c *Client) tell(ctx context.Context, path string, what any) error {
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	return c.call(ctx, http.MethodPost, path, what, nil)
}
