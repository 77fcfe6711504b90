package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/control/api"
)

const (
	defaultAPI = "unix:///run/sallyport/api.sock"
	// callTimeout bounds a command; the control plane waits 5 s for a gateway.
	callTimeout = 30 * time.Second
)

// globals are the flags of all commands.
type globals struct {
	api, tokenFile, output string
}

func (g *globals) flags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&g.api, "api", "", "`ADDRESS` of the control API: unix:///path or http://127.0.0.1:port (default SALLYPORT_API, or "+defaultAPI+")")
	f.StringVar(&g.tokenFile, "token-file", "", "`FILE` with the API's bearer token (default SALLYPORT_TOKEN_FILE)")
	f.StringVar(&g.output, "output", "table", "`FORMAT` of what is printed: table or json")
}

// call runs a command with a client of the API.
func (g *globals) call(cmd *cobra.Command, run func(context.Context, *api.Client) error) error {
	if err := g.checkOutput(); err != nil {
		return err
	}
	token, err := g.token()
	if err != nil {
		return err
	}
	c, err := api.NewClient(api.ClientConfig{Address: cmp.Or(g.api, os.Getenv("SALLYPORT_API"), defaultAPI), Token: token})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
	defer cancel()
	return run(ctx, c)
}

func (g *globals) checkOutput() error {
	if g.output != "table" && g.output != "json" {
		return fmt.Errorf("--output: there is no format %q; use table or json", g.output)
	}
	return nil
}

func (g *globals) token() (string, error) {
	name := cmp.Or(g.tokenFile, os.Getenv("SALLYPORT_TOKEN_FILE"))
	if name == "" {
		return "", errors.New("no token for the control API; name the file that holds it with --token-file or SALLYPORT_TOKEN_FILE (sallyportd's configuration names it in api.token_file)")
	}
	token, err := api.ReadTokenFile(name)
	if err != nil {
		return "", fmt.Errorf("--token-file or SALLYPORT_TOKEN_FILE: %w", err)
	}
	return token, nil
}
