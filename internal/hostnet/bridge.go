package hostnet

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Bridge makes a bridge, unless there is one of that name, and makes links its
// ports. They may come in later calls, too; each must exist. The bridge is down and has no
// addresses. It learns those of others, forwards at once (it speaks no spanning tree) and
// sends multicast to all ports. A Plan brings it up, Delete takes it away and leaves its ports.
func (k *Kernel) Bridge(name string, ports ...string) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("hostnet: make a bridge: %w", err)
	}
	off := false
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, MulticastSnooping: &off}
	err := k.handle.LinkAdd(bridge)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = fmt.Errorf("this kernel has no bridges; load the module bridge: %w", err)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return failed("make bridge "+name, err)
	}
	master, err := k.handle.LinkByName(name)
	if err == nil && master.Type() != "bridge" {
		err = fmt.Errorf("it exists and is of type %s: %w", master.Type(), os.ErrExist)
	}
	if err != nil {
		return failed("make bridge "+name, err)
	}
	for _, port := range ports {
		link, err := k.handle.LinkByName(port)
		if err == nil && link.Attrs().MasterIndex != master.Attrs().Index {
			err = k.handle.LinkSetMaster(link, master)
		}
		if err != nil {
			return failed(fmt.Sprintf("make %s a port of bridge %s", port, name), err)
		}
	}
	return nil
}
