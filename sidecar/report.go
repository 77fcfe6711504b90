package sidecar

import (
	"context"
	"net/http"
)

// Report is what the sidecar that runs on this machine says of itself: the answers
// to GET /v1/status and GET /v1/sandboxes, as one document.
type Report struct {
	Status
	Listing
}

// Ask asks the sidecar that serves at a socket. What has changed between the two
// questions makes no error. If no sidecar answers, the error says how to start one.
func Ask(ctx context.Context, socket string) (Report, error) {
	c := newLocalClient(socket)
	var r Report
	if err := c.call(ctx, http.MethodGet, "/v1/status", nil, &r.Status); err != nil {
		return Report{}, err
	}
	if err := c.call(ctx, http.MethodGet, "/v1/sandboxes", nil, &r.Listing); err != nil {
		return Report{}, err
	}
	return r, nil
}
