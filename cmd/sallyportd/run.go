package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/control"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/gateway"
	"github.com/sallyport-net/sallyport/internal/config"
)

// shutdownTime bounds how long open API calls may take once the daemon ends.
const shutdownTime = 3 * time.Second

// run brings everything up, or nothing, and serves until ctx ends.
func run(ctx context.Context, s settings, stderr io.Writer) error {
	log := logger(s.daemon.Log, stderr)
	key, err := secret(s.daemon.SecretFile)
	if err != nil {
		return err
	}
	token, err := api.ReadTokenFile(s.daemon.API.TokenFile)
	if err != nil {
		return fmt.Errorf("api.token_file: %w", err)
	}
	store, err := control.NewStore(control.StoreConfig{State: s.state, Region: s.daemon.Region})
	if err != nil {
		return fmt.Errorf("fill the store from %s: %w", s.daemon.DesiredState, err)
	}
	server := control.NewServer(store, control.ServerConfig{Token: token, Log: log})
	apiListener, err := control.Listen(ctx, s.daemon.API.Network, s.daemon.API.Address)
	if err != nil {
		return err
	}
	defer apiListener.Close()
	adminListener, err := net.Listen("tcp", s.daemon.Admin.Listen.String())
	if err != nil {
		return fmt.Errorf("listen on admin.listen %s: %w: free the port or choose another", s.daemon.Admin.Listen, err)
	}
	defer adminListener.Close()

	log.Info("starting", "version", version, "host", s.daemon.Host, "region", s.daemon.Region,
		"networks", len(s.state.Networks), "gomaxprocs", runtime.GOMAXPROCS(0), "go", runtime.Version())
	host, err := gateway.OpenHost(ctx, gateway.HostConfig{
		Daemon: s.daemon, Secret: key, Source: store, Clock: gateway.NewMonotonicClock(), Log: log,
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return host.Run(ctx) })
	g.Go(func() error { return serve(ctx, "control API", apiListener, server) })
	g.Go(func() error { return serve(ctx, "admin", adminListener, admin(host)) })
	log.Info("serving", "api", apiListener.Addr().String(), "admin", adminListener.Addr().String())
	err = g.Wait()
	log.Info("ended")
	return err
}

func logger(c config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // the configuration has checked it
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// serve answers HTTP on l until ctx ends.
func serve(ctx context.Context, what string, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		if srv.Shutdown(end) != nil {
			srv.Close()
		}
	}()
	err := srv.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		<-done
		return nil
	}
	return fmt.Errorf("serve the %s on %s: %w", what, l.Addr(), err)
}

// admin is what the operator's machines ask: metrics and health.
func admin(host *gateway.Host) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(host, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{PidFn: func() (int, error) { return os.Getpid(), nil }}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !host.Ready() {
			http.Error(w, "not ready: networks are coming up or going down", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return mux
}
