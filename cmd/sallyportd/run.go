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
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/gateway"
	"github.com/sallyport-net/sallyport/internal/allowance"
	"github.com/sallyport-net/sallyport/internal/config"
)

// shutdownTime bounds how long open API calls may take once the daemon ends.
const shutdownTime = 3 * time.Second

// memoryVariable is how an operator limits the memory of a Go program.
const memoryVariable = "GOMEMLIMIT"

// run brings everything of the daemon's roles up, or nothing, and serves until
// ctx ends and the gateway has drained.
func run(ctx context.Context, s settings, stderr io.Writer) error {
	log := logger(s.daemon.Log, stderr)
	var keys secrets
	if s.daemon.Roles.Gateway {
		var err error
		if keys, err = readSecrets(s); err != nil {
			return err
		}
	}
	var source gateway.Source
	var plane *controlPlane
	if s.daemon.Roles.Control {
		var err error
		if plane, err = openControl(ctx, s, log); err != nil {
			return err
		}
		defer plane.listener.Close()
		source = plane.store
	} else {
		client, err := follow(s)
		if err != nil {
			return err
		}
		defer client.Close()
		source = client
	}
	profileToken, err := adminToken(s.daemon)
	if err != nil {
		return err
	}
	adminListener, err := listenAdmin(s.daemon.Admin.Listen)
	if err != nil {
		return err
	}
	defer adminListener.Close()

	log.Info("starting", "version", version, "roles", s.daemon.Roles.String(), "host", s.daemon.Host, "region", s.daemon.Region)
	here, operator := allowance.Here(), os.Getenv(memoryVariable)
	defer here.LimitMemory(operator)()
	here.Tell(log, operator)
	var host *gateway.Host
	if s.daemon.Roles.Gateway {
		if host, err = openGateway(ctx, s, keys, source, log); err != nil {
			return err
		}
	}
	signals, stop := hangups()
	defer stop()
	if plane != nil {
		ended := make(chan struct{})
		reloading, end := context.WithCancel(ctx)
		defer func() { end(); <-ended }()
		go func() {
			defer close(ended)
			plane.reload(reloading, signals, s, log)
		}()
	}
	log.Info("serving", "what", s.String(), "admin", adminListener.Addr().String())
	err = serveAll(ctx, plane, host, adminSide{adminListener, admin(host, profileToken)})
	log.Info("ended")
	return err
}

// serveAll serves until ctx ends. The API and the admin's listener outlive the
// gateway, which drains first and tells the control plane so.
func serveAll(ctx context.Context, plane *controlPlane, host *gateway.Host, a adminSide) error {
	g, ctx := errgroup.WithContext(ctx)
	last, end := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error {
		defer end()
		if host == nil {
			<-ctx.Done()
			return nil
		}
		return host.Run(ctx)
	})
	if plane != nil {
		g.Go(func() error { return plane.serve(last) })
	}
	g.Go(func() error { return serve(last, "admin", a.listener, a.handler) })
	return g.Wait()
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
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute,
		// What waits for something to happen is told at once that it never will.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
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
