package hostnet

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Rate is how much a link sends. The zero value is as much as it can.
type Rate struct {
	Bits  uint64 // per second, link-layer headers included
	Burst uint32 // bytes that may leave at once; 0 for 32 KiB. No packet is longer.
	// Wait bounds how long a packet waits for its turn, which bounds the queue: what
	// comes on top is dropped. 0 for 50 ms.
	Wait time.Duration
}

// Limit makes a link send no faster than r, by a token bucket in place of its
// queue; the zero Rate takes it away. What the link receives is not limited.
func (k *Kernel) Limit(link string, r Rate) error {
	tried := fmt.Sprintf("limit link %s to %d bit/s", link, r.Bits)
	l, err := k.handle.LinkByName(link)
	if err != nil {
		return failed(tried, err)
	}
	if r.Burst == 0 {
		r.Burst = 32 << 10
	}
	if r.Wait == 0 {
		r.Wait = 50 * time.Millisecond
	}
	bucket := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       r.Bits / 8,
	}
	if r == (Rate{Burst: r.Burst, Wait: r.Wait}) {
		if err := k.handle.QdiscDel(bucket); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return failed(tried, err)
		}
		return nil // both mean that there is none
	}
	if bucket.Rate == 0 || r.Wait < 0 {
		return fmt.Errorf("hostnet: %s: less than a byte per second, or a wait of %v", tried, r.Wait)
	}
	bucket.Buffer = netlink.Xmittime(bucket.Rate, r.Burst)
	bucket.Limit = uint32(min(float64(bucket.Rate)*r.Wait.Seconds()+float64(r.Burst), 1<<30))
	if err := k.handle.QdiscReplace(bucket); err != nil {
		return failed(tried+" (the kernel needs the token bucket filter, sch_tbf)", err)
	}
	return nil
}
