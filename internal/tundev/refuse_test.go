package tundev

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRefuses(t *testing.T) {
	regular, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = regular.Close() }()
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, mtu := range []int{-1, 0, 67, 65536} {
		if _, err := FromTUN(regular, Config{MTU: mtu}); err == nil || !strings.Contains(err.Error(), "MTU") {
			t.Errorf("MTU %d: %v", mtu, err)
		}
		if _, err := FromPacket(regular, Config{MTU: mtu, LocalMAC: mac, PeerMAC: mac}); err == nil || !strings.Contains(err.Error(), "MTU") {
			t.Errorf("MTU %d: %v", mtu, err)
		}
	}
	if _, err := FromTUN(regular, Config{MTU: 1420}); err == nil || !strings.Contains(err.Error(), "not an attached TUN") {
		t.Errorf("a file as TUN: %v", err)
	}
	if _, err := FromPacket(regular, Config{MTU: 1420}); err == nil || !strings.Contains(err.Error(), "PeerMAC") {
		t.Errorf("no MACs: %v", err)
	}
	if _, err := FromPacket(regular, Config{MTU: 1420, LocalMAC: mac, PeerMAC: mac}); err == nil {
		t.Error("a file as packet socket")
	}
	if _, err := regular.WriteString("still open"); err != nil {
		t.Errorf("a refused file was closed: %v", err)
	}
	if _, err := CreateTUN("a-name-that-is-too-long", false); err == nil {
		t.Error("a long name")
	}
	if _, err := OpenPacket("absent0"); err == nil {
		t.Error("an absent interface")
	}
}

func TestCreateTUNTellsRefusalsApart(t *testing.T) {
	for _, c := range []struct {
		err  error
		want error
		text string
	}{
		{unix.ENOENT, fs.ErrNotExist, "load the module tun"},
		{unix.ENODEV, fs.ErrNotExist, "load the module tun"},
		{unix.EACCES, fs.ErrPermission, "allow the user to open"},
		{unix.EPERM, fs.ErrPermission, "CAP_NET_ADMIN"},
		{unix.EBUSY, fs.ErrExist, "there already"},
		{unix.EINVAL, unix.EINVAL, "no TUN"},
	} {
		err := tunError("open "+tunPath, c.err)
		if !errors.Is(err, c.want) || !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v: got %v", c.err, err)
		}
	}
	b := newTUNBench(t)
	again := func(name string) error {
		return b.ns.Do(func() error {
			f, err := CreateTUN(name, false)
			if err == nil {
				_ = f.Close()
			}
			return err
		})
	}
	// One that nobody has, as `ip tuntap add` makes, would stay when we go.
	const stays = "stays"
	err := b.ns.Do(func() error {
		f, err := CreateTUN(stays, false)
		if err == nil {
			err = errors.Join(unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1), f.Close())
		}
		return errors.Join(err, CheckTUN())
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{b.link, stays, "lo"} {
		if err := again(name); !errors.Is(err, fs.ErrExist) || !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "there already") {
			t.Errorf("%s, a name in use: %v", name, err)
		}
	}
}

func TestReadNeedsSizes(t *testing.T) {
	d := pipeDevice(t, nil)
	if n, err := d.Read(nil, nil, 0); n != 0 || err != nil {
		t.Errorf("no buffers: %d, %v", n, err)
	}
	if _, err := d.Read(make([][]byte, 2), make([]int, 1), 0); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("too few sizes: %v", err)
	}
}
