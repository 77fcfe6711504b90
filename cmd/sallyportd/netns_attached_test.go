package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/sidecar"
)

// attached is a sandbox in a network namespace that the test made, as a runtime does.
type attached struct {
	sidecar.Attached
	ns *hostnet.Namespace
}

// path is that of a namespace for other processes, as long as the test holds it.
func path(n *hostnet.Namespace) string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.File().Fd())
}

// attach attaches a namespace; an Ethernet of "" asks for a TUN. It may fail.
func (g *ground) attach(ctx context.Context, who subject, n *hostnet.Namespace, ethernet string) (*attached, error) {
	box, err := sidecar.Attach(ctx, sidecar.AttachConfig{
		Socket: g.socket, Project: who.project, Environment: who.environment, Kind: who.kind, Runtime: who.runtime,
		Namespace: sidecar.NamespaceRequest{Path: path(n), Ethernet: ethernet},
	})
	return &attached{box, n}, err
}

// newNamespace makes a namespace that ends with the test.
func newNamespace(t *testing.T) *hostnet.Namespace {
	t.Helper()
	n, err := hostnet.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// linksIn lists a namespace's links but loopback.
func linksIn(t *testing.T, n *hostnet.Namespace) []string {
	t.Helper()
	k, err := n.Host()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	all, err := k.Links()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(name string) bool { return name == "lo" })
}

// get makes an HTTP request inside, on a connection of its own, and returns the answer.
func (a *attached) get(ctx context.Context, url string) (string, error) {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, address string) (c net.Conn, err error) {
		err = a.ns.Do(func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, "tcp4", address)
			return err
		})
		return c, err
	}}
	defer tr.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return string(b), err
}

// whence sends a datagram to the origin and returns who the origin says sent it.
func (a *attached) whence(ctx context.Context) (from []netip.AddrPort, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = a.ns.Do(func() error {
		from, err = datagram(ctx, at(originAddr, portUDP), 0)
		return err
	})
	return from, err
}

// openTAP opens a TAP in a namespace by its name, as the monitor of a virtual machine does.
func openTAP(ns *hostnet.Namespace, name string) (f *os.File, err error) {
	err = ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	})
	return f, err
}
