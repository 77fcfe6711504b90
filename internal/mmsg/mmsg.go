// Package mmsg moves many datagrams by one system call (recvmmsg(2), sendmmsg(2)), and reads
// and writes what goes beside each of them (cmsg(3)): the local address, and the size of
// those that the kernel joined or is to cut.
//
// Nothing here allocates. Buffers, names and control messages are the caller's.
package mmsg

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Message is one element of what both calls take, as the kernel lays it out.
type Message struct {
	Header unix.Msghdr
	Size   uint32 // bytes received or sent
}

// Receive and Send hand messages, of which there is at least one, to the kernel and return
// how many it dealt with, which says nothing if the error is not 0. The descriptor must not
// block: the scheduler is not told, as that would cost as much as many a call takes. What
// the headers point to must stay where it is meanwhile.
func Receive(fd uintptr, msgs []Message) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), 0, 0, 0)
	return int(n), err
}

// Send is the other way; see [Receive].
func Send(fd uintptr, msgs []Message) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), 0, 0, 0)
	return int(n), err
}

// Dropped is how many datagrams came to a socket and were dropped, as nobody fetched those
// before in time or they were damaged, since it was made (SO_MEMINFO of socket(7)). What the
// kernel had joined before counts once. False: the kernel does not say.
func Dropped(fd uintptr) (n uint32, ok bool) {
	var info [unix.SK_MEMINFO_VARS]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return info[unix.SK_MEMINFO_DROPS], errno == 0 && size > unix.SK_MEMINFO_DROPS*4
}
