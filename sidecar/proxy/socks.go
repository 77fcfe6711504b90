package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
)

// The numbers of RFC 1928 and RFC 1929.
const (
	socksVersion    = 5
	passwordVersion = 1

	methodPassword = 0x02
	methodNone     = 0xff // none of those that were offered

	commandConnect   = 1
	commandAssociate = 3

	familyIPv4 = 1
	familyName = 3
	familyIPv6 = 4
)

// socksReply is the field REP (RFC 1928 section 6).
type socksReply uint8

const (
	replySucceeded  socksReply = 0
	replyFailure    socksReply = 1
	replyNotAllowed socksReply = 2
	replyNetwork    socksReply = 3
	replyHost       socksReply = 4
	replyRefused    socksReply = 5
	replyCommand    socksReply = 7
	replyFamily     socksReply = 8
)

// replyTo is what a client is told of a failed dial. For a name without an address, and
// for silence, host unreachable is the nearest that there is.
func replyTo(err error) socksReply {
	switch causeOf(err) {
	case causeNowhere:
		return replyNotAllowed
	case causeFamily:
		return replyFamily
	case causeNetwork:
		return replyNetwork
	case causeHost, causeName, causeTimeout:
		return replyHost
	case causeRefused:
		return replyRefused
	}
	return replyFailure
}

// What is wrong with what a client says.
var (
	errMalformed = errors.New("malformed")
	errFamilyOf  = errors.New("an address type that RFC 1928 does not have")
	errStranger  = errors.New("a wrong name or password")
	errMethod    = errors.New("no name and password are offered")
)

// serveSOCKS serves a client whose first byte, the version, was read. Each message is
// read to its last byte and no further, so that what follows is the connection's.
func (s *Server) serveSOCKS(c *client) {
	command, t, err := s.shakeHands(c)
	if err != nil {
		if errors.Is(err, errStranger) || errors.Is(err, errMethod) {
			s.noteStranger()
		}
		_ = c.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	switch command {
	case commandConnect:
		s.socksConnect(c, t)
	case commandAssociate:
		s.socksAssociate(c, t)
	default:
		s.refuseSOCKS(c, replyCommand) // BIND: the network lets nobody in
	}
}

// shakeHands reads what a client wants, and answers all but that.
func (s *Server) shakeHands(c io.ReadWriter) (command byte, t target, err error) {
	if err := readMethods(c); err != nil {
		if errors.Is(err, errMethod) {
			_, _ = c.Write([]byte{socksVersion, methodNone})
		}
		return 0, target{}, err
	}
	if _, err := c.Write([]byte{socksVersion, methodPassword}); err != nil {
		return 0, target{}, err
	}
	user, password, err := readPassword(c)
	if err != nil {
		return 0, target{}, err
	}
	if !s.credentials.match(user, password) {
		_, _ = c.Write([]byte{passwordVersion, 1})
		return 0, target{}, errStranger
	}
	if _, err := c.Write([]byte{passwordVersion, 0}); err != nil {
		return 0, target{}, err
	}
	command, t, err = readRequest(c)
	if errors.Is(err, errFamilyOf) {
		_, _ = c.Write(appendReply(nil, replyFamily, netip.AddrPort{}))
	}
	return command, t, err
}

// readMethods reads the methods behind the version and looks for the password.
func readMethods(r io.Reader) error {
	methods, err := readCounted(r)
	if err != nil {
		return err
	}
	for _, m := range methods {
		if m == methodPassword {
			return nil
		}
	}
	return errMethod
}

// readCounted reads a byte, and as many as it says.
func readCounted(r io.Reader) ([]byte, error) {
	var b [256]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return nil, err
	}
	n := 1 + int(b[0])
	_, err := io.ReadFull(r, b[1:n])
	return b[1:n], err
}

// readPassword reads the message of RFC 1929 section 2.
func readPassword(r io.Reader) (user, password []byte, err error) {
	var version [1]byte
	if _, err := io.ReadFull(r, version[:]); err != nil {
		return nil, nil, err
	}
	if version[0] != passwordVersion {
		return nil, nil, fmt.Errorf("a password of version %d: %w", version[0], errMalformed)
	}
	if user, err = readCounted(r); err != nil {
		return nil, nil, err
	}
	password, err = readCounted(r)
	return user, password, err
}

// readRequest reads the message of RFC 1928 section 4.
func readRequest(r io.Reader) (command byte, t target, err error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, target{}, err
	}
	if head[0] != socksVersion || head[2] != 0 {
		return 0, target{}, fmt.Errorf("a request that begins with %x: %w", head, errMalformed)
	}
	t, err = readTarget(r)
	return head[1], t, err
}

// readTarget reads address type, address and port.
func readTarget(r io.Reader) (target, error) {
	var b [16]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return target{}, err
	}
	var t target
	switch b[0] {
	case familyIPv4, familyIPv6:
		size := 4
		if b[0] == familyIPv6 {
			size = 16
		}
		if _, err := io.ReadFull(r, b[:size]); err != nil {
			return target{}, err
		}
		a, _ := netip.AddrFromSlice(b[:size])
		t = target{addr: a.Unmap()}
	case familyName:
		name, err := readCounted(r)
		if err != nil {
			return target{}, err
		}
		if len(name) == 0 {
			return target{}, fmt.Errorf("an empty name: %w", errMalformed)
		}
		t = newTarget(string(name), 0)
	default:
		return target{}, errFamilyOf
	}
	if _, err := io.ReadFull(r, b[:2]); err != nil {
		return target{}, err
	}
	t.port = binary.BigEndian.Uint16(b[:2])
	return t, nil
}

// appendReply appends a message of RFC 1928 section 6. The zero bound stands for none.
func appendReply(b []byte, r socksReply, bound netip.AddrPort) []byte {
	return appendAddress(append(b, socksVersion, byte(r), 0), bound)
}

// appendAddress appends address type, IPv4 address and port.
func appendAddress(b []byte, a netip.AddrPort) []byte {
	var four [4]byte
	if a.Addr().Is4() {
		four = a.Addr().As4()
	}
	b = append(b, familyIPv4)
	b = append(b, four[:]...)
	return binary.BigEndian.AppendUint16(b, a.Port())
}

// answerDeadline is how long a client may take to take an answer in.
const answerDeadline = 10 * time.Second

// refuseSOCKS ends a request that fails.
func (s *Server) refuseSOCKS(c *client, r socksReply) {
	_ = c.SetWriteDeadline(time.Now().Add(answerDeadline))
	_, _ = c.Write(appendReply(nil, r, netip.AddrPort{}))
	_ = c.Close()
}

// socksConnect serves CONNECT.
func (s *Server) socksConnect(c *client, t target) {
	remote, err := s.dial(s.ctx, t)
	if err != nil {
		s.refuseSOCKS(c, replyTo(err))
		return
	}
	if _, err := c.Write(appendReply(nil, replySucceeded, boundTo(remote))); err != nil {
		remote.Abort()
		c.Abort()
		return
	}
	s.carry(c, remote)
}

// boundTo is the near end of a connection, which is the sandbox's own.
func boundTo(c Conn) netip.AddrPort {
	a, _ := netip.ParseAddrPort(c.LocalAddr().String())
	return a
}
