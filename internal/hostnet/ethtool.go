package hostnet

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct{ cmd, data uint32 }

// ethtoolRequest is struct ifreq with the member ifr_data.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

// disableTxOffload makes the kernel compute checksums and cut segments before a
// packet leaves by the link. Segmentation goes first, as it depends on checksums.
func (k *Kernel) disableTxOffload(name string) error {
	for _, offload := range [...]struct {
		name string
		cmd  uint32
	}{
		{"TCP segmentation", unix.ETHTOOL_STSO},
		{"generic segmentation", unix.ETHTOOL_SGSO},
		{"transmit checksum", unix.ETHTOOL_STXCSUM},
	} {
		if err := k.ethtool(name, offload.cmd, 0); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("switch %s offload off: %w", offload.name, err)
		}
	}
	return nil
}

func (k *Kernel) ethtool(name string, cmd, data uint32) error {
	value := ethtoolValue{cmd, data}
	req := ethtoolRequest{data: unsafe.Pointer(&value)}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(k.ioctls), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(&value)
	if errno != 0 {
		return errno
	}
	return nil
}
