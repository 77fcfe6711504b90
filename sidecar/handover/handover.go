// Package handover carries the descriptor of a sandbox's interface from the
// process that made the interface to the sidecar, over a Unix stream socket.
//
// The socket begins as an HTTP connection that was upgraded to "sallyport-device".
// Then the client sends one [Message], a line of JSON, together with the
// descriptor (SCM_RIGHTS) in one sendmsg, and the sidecar answers with one
// [Reply], a line of JSON, when packets flow or when they never will. The
// connection stays open as long as the sandbox lives; its end detaches the sandbox.
package handover

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Protocol is the name in the HTTP header Upgrade.
const Protocol = "sallyport-device"

// Kind says what a descriptor is.
type Kind string

// The kinds.
const (
	// TUN is the descriptor of a TUN interface without packet information.
	TUN Kind = "tun"
	// Packet is a packet socket bound to one end of a veth pair.
	Packet Kind = "packet"
	// None comes without a descriptor: a sandbox that bypasses.
	None Kind = "none"
)

// Message says what is handed over.
type Message struct {
	Type Kind `json:"type"`
	// LocalMAC is the Ethernet address of the end that is handed over and PeerMAC
	// that of the sandbox's end. Packet only.
	LocalMAC MAC `json:"localMAC,omitempty"`
	PeerMAC  MAC `json:"peerMAC,omitempty"`
}

// MAC is an Ethernet address; its JSON is the usual text.
type MAC net.HardwareAddr

// MarshalText writes the address as 02:00:5e:10:00:01.
func (m MAC) MarshalText() ([]byte, error) { return []byte(net.HardwareAddr(m).String()), nil }

// UnmarshalText reads it.
func (m *MAC) UnmarshalText(text []byte) error {
	a, err := net.ParseMAC(string(text))
	*m = MAC(a)
	return err
}

// Reply is the sidecar's answer.
type Reply struct {
	Ready bool `json:"ready,omitempty"`
	// Error says why not; empty if ready.
	Error string `json:"error,omitempty"`
}

// maxLine is the longest message or reply, in bytes.
const maxLine = 4096

// Send hands f over; f is nil for [None]. The caller still owns f and should
// close it. The connection stays the caller's.
func Send(conn *net.UnixConn, m Message, f *os.File) error {
	line, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode the message to the sidecar: %w", err)
	}
	var rights []byte
	if f != nil {
		raw, err := f.SyscallConn()
		if err != nil {
			return fmt.Errorf("hand %s over: %w", f.Name(), err)
		}
		// The descriptor is in the message before Control returns, and stays open
		// as long as f does.
		if err := raw.Control(func(fd uintptr) { rights = unix.UnixRights(int(fd)) }); err != nil {
			return fmt.Errorf("hand %s over: %w", f.Name(), err)
		}
	}
	if _, _, err := conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return fmt.Errorf("send the sandbox's interface to the sidecar: %w", err)
	}
	return nil
}

// Receive takes what Send sent. The file is nil exactly for [None]; the caller
// owns it. The caller sets a deadline on the connection.
func Receive(conn *net.UnixConn) (Message, *os.File, error) {
	line := make([]byte, maxLine)
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(line, oob)
	if err != nil {
		return Message{}, nil, fmt.Errorf("receive a sandbox's interface: %w", err)
	}
	if n == 0 {
		return Message{}, nil, fmt.Errorf("receive a sandbox's interface: %w", io.ErrUnexpectedEOF)
	}
	files, err := descriptors(oob[:oobn])
	m, f, err := judge(line[:n], files, err)
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("more descriptors than one")
	}
	if err != nil {
		for _, f := range files {
			_ = f.Close()
		}
		return Message{}, nil, fmt.Errorf("receive a sandbox's interface: %w", err)
	}
	return m, f, nil
}

// descriptors takes all descriptors out of control messages. What it returns
// beside an error is open and must be closed.
func descriptors(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("read the control message: %w", err)
	}
	var files []*os.File
	var failed error // not at once: whatever came must be closed
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			failed = fmt.Errorf("read the descriptors: %w", err)
		}
		for _, fd := range fds {
			// Both a TUN and a packet socket are waited on by the poller, which
			// os.NewFile arranges only for descriptors that do not block.
			if err := unix.SetNonblock(fd, true); err != nil {
				failed = fmt.Errorf("make the descriptor non-blocking: %w", err)
			}
			files = append(files, os.NewFile(uintptr(fd), "interface of a sandbox"))
		}
	}
	return files, failed
}

// judge checks that message and descriptors fit together.
func judge(line []byte, files []*os.File, err error) (Message, *os.File, error) {
	if err != nil {
		return Message{}, nil, err
	}
	text, rest, whole := bytes.Cut(line, []byte("\n"))
	if !whole || len(rest) > 0 {
		return Message{}, nil, errors.New("the message is not one line")
	}
	var m Message
	if err := json.Unmarshal(text, &m); err != nil {
		return Message{}, nil, fmt.Errorf("decode the message: %w", err)
	}
	switch m.Type {
	case TUN, Packet:
		if len(files) != 1 {
			return Message{}, nil, fmt.Errorf("a %s interface with %d descriptors; send exactly one", m.Type, len(files))
		}
		return m, files[0], nil
	case None:
		if len(files) != 0 {
			return Message{}, nil, errors.New("a descriptor that is not expected")
		}
		return m, nil, nil
	}
	return Message{}, nil, fmt.Errorf("an interface of type %q; known are %s, %s and %s", m.Type, TUN, Packet, None)
}

// Answer sends the reply.
func Answer(conn net.Conn, r Reply) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	if len(line) >= maxLine {
		line, err = json.Marshal(Reply{Error: "the sidecar's reason is too long to be told; see its log"})
		if err != nil {
			return fmt.Errorf("encode the answer: %w", err)
		}
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("answer a sandbox: %w", err)
	}
	return nil
}

// Await waits for the reply. A reply that is an error is returned as one.
func Await(conn net.Conn) error {
	line := make([]byte, 0, maxLine)
	for {
		if len(line) == maxLine {
			return errors.New("the sidecar's answer is too long; is it of this version?")
		}
		// A byte at a time, so that nothing behind the line is consumed.
		n, err := conn.Read(line[len(line) : len(line)+1])
		line = line[:len(line)+n]
		if n == 1 && line[len(line)-1] == '\n' {
			break
		}
		if err != nil {
			return fmt.Errorf("wait for the sidecar's answer: %w", err)
		}
	}
	var r Reply
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("decode the sidecar's answer: %w", err)
	}
	if !r.Ready {
		return fmt.Errorf("the sidecar refused: %s", r.Error)
	}
	return nil
}
