package handover

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a connected pair of Unix stream sockets.
func pair(t *testing.T) (client, server *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, c := range []*net.UnixConn{client, server} {
		_ = c.SetDeadline(deadline)
		t.Cleanup(func() { _ = c.Close() })
	}
	return client, server
}

func TestDescriptorCrosses(t *testing.T) {
	client, server := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	mac := MAC{2, 0, 0, 0, 0, 1}
	if err := Send(client, Message{Type: Packet, LocalMAC: mac, PeerMAC: MAC{2, 0, 0, 0, 0, 2}}, w); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	m, f, err := Receive(server)
	if err != nil {
		t.Fatal(err)
	}
	if m.Type != Packet || !bytes.Equal(m.LocalMAC, mac) || len(m.PeerMAC) != 6 {
		t.Errorf("message %+v", m)
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the descriptor would be inherited: flags %x, %v", flags, err)
	}
	if _, err := f.WriteString("x"); err != nil {
		t.Error(err)
	}
	_ = f.Close()
	b := make([]byte, 2)
	if n, _ := r.Read(b); n != 1 || b[0] != 'x' {
		t.Errorf("read %q through the descriptor", b[:n])
	}
}

func TestBypassHasNoDescriptor(t *testing.T) {
	client, server := pair(t)
	if err := Send(client, Message{Type: None}, nil); err != nil {
		t.Fatal(err)
	}
	m, f, err := Receive(server)
	if err != nil || f != nil || m.Type != None {
		t.Errorf("Receive = %+v, %v, %v", m, f, err)
	}
}

// Whatever is wrong, no descriptor is left open.
func TestRefusedMessages(t *testing.T) {
	for name, c := range map[string]struct {
		line  string
		files int
	}{
		"no JSON":          {"hello\n", 1},
		"no line":          {`{"type":"tun"}`, 1},
		"two lines":        {"{\"type\":\"tun\"}\n{}\n", 1},
		"unknown type":     {"{\"type\":\"tap\"}\n", 1},
		"no descriptor":    {"{\"type\":\"tun\"}\n", 0},
		"two descriptors":  {"{\"type\":\"tun\"}\n", 2},
		"many descriptors": {"{\"type\":\"tun\"}\n", 9},
		"one too many":     {"{\"type\":\"none\"}\n", 1},
		"bad address":      {"{\"type\":\"packet\",\"peerMAC\":\"x\"}\n", 1},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := pair(t)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var fds []int
			for range c.files {
				fds = append(fds, int(w.Fd()))
			}
			var rights []byte
			if len(fds) > 0 {
				rights = unix.UnixRights(fds...)
			}
			if _, _, err := client.WriteMsgUnix([]byte(c.line), rights, nil); err != nil {
				t.Fatal(err)
			}
			_ = w.Close()
			if m, f, err := Receive(server); err == nil {
				t.Errorf("Receive = %+v, %v; want an error", m, f)
			}
			// The pipe ends when the last writer is closed.
			_ = r.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := r.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
				t.Errorf("a descriptor is still open: %v", err)
			}
		})
	}
}

func TestReceiveFromOneWhoLeaves(t *testing.T) {
	client, server := pair(t)
	_ = client.Close()
	if _, _, err := Receive(server); err == nil {
		t.Error("no error")
	}
}

func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		reply Reply
		want  string // part of the error; empty: none
	}{
		"ready":  {Reply{Ready: true}, ""},
		"error":  {Reply{Error: "no answer within 5s"}, "no answer within 5s"},
		"long":   {Reply{Error: strings.Repeat("x", 2*maxLine)}, "too long"},
		"silent": {Reply{}, "refused"},
	} {
		client, server := pair(t)
		if err := Answer(server, c.reply); err != nil {
			t.Fatal(err)
		}
		if _, err := server.Write([]byte("next")); err != nil {
			t.Fatal(err)
		}
		err := Await(client)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Await = %v, want %q", name, err, c.want)
		}
		b := make([]byte, 8)
		if n, _ := client.Read(b); string(b[:n]) != "next" {
			t.Errorf("%s: what follows the reply is %q", name, b[:n])
		}
	}
}

func TestAwaitGarbage(t *testing.T) {
	for _, text := range []string{"", "{", "x\n", strings.Repeat("x", 2*maxLine)} {
		client, server := pair(t)
		_, _ = server.Write([]byte(text))
		_ = server.CloseWrite()
		if err := Await(client); err == nil {
			t.Errorf("Await after %.10q: no error", text)
		}
	}
}
