package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/gateway"
)

// secrets are the keys from which a gateway's keys derive.
type secrets struct{ host, region []byte }

// readSecrets reads them, and makes the host's at its first start.
func readSecrets(s settings) (out secrets, err error) {
	if out.host, err = secret(s.daemon.SecretFile); err != nil {
		return secrets{}, err
	}
	out.region, err = regionSecret(s.daemon.RegionSecretFile)
	return out, err
}

// follow connects to the control plane that runs elsewhere.
func follow(s settings) (*api.Client, error) {
	token, err := api.ReadTokenFile(s.daemon.Control.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("control.token_file: %w", err)
	}
	client, err := api.NewClient(api.ClientConfig{Address: s.daemon.Control.API, Token: token})
	if err != nil {
		return nil, fmt.Errorf("control.api: %w", err)
	}
	return client, nil
}

// openGateway brings the host's networks up as the source has them.
func openGateway(ctx context.Context, s settings, keys secrets, source gateway.Source, log *slog.Logger) (*gateway.Host, error) {
	return gateway.OpenHost(ctx, gateway.HostConfig{
		Daemon: s.daemon, Secret: keys.host, RegionSecret: keys.region,
		Source: source, Clock: gateway.NewMonotonicClock(), Log: log,
	})
}
