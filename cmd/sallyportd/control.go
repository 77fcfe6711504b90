package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/sallyport-net/sallyport/control"
	"github.com/sallyport-net/sallyport/control/api"
)

// controlPlane is the role of that name: a store, and the API that serves it.
type controlPlane struct {
	store    *control.Store
	server   http.Handler
	listener net.Listener
}

// openControl fills the store and listens for the API.
func openControl(ctx context.Context, s settings, log *slog.Logger) (*controlPlane, error) {
	token, err := api.ReadTokenFile(s.daemon.API.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("api.token_file: %w", err)
	}
	store, err := control.NewStore(control.StoreConfig{State: s.state, Region: s.daemon.Region})
	if err != nil {
		return nil, fmt.Errorf("fill the store from %s: %w", s.daemon.DesiredState, err)
	}
	listener, err := control.Listen(ctx, s.daemon.API.Network, s.daemon.API.Address)
	if err != nil {
		return nil, err
	}
	return &controlPlane{
		store: store, listener: listener,
		server: control.NewServer(store, control.ServerConfig{Token: token, Log: log}),
	}, nil
}

func (c *controlPlane) serve(ctx context.Context) error {
	return serve(ctx, "control API", c.listener, c.server)
}
