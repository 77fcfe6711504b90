package uplink

import (
	"errors"
	"fmt"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/tundev"
)

// CheckWire says all that keeps [OpenWire] from setting a wire up, or the wire from
// passing packets, as far as can be seen without one. It changes nothing.
func CheckWire(c WireConfig) error {
	k, err := hostnet.Here()
	if err != nil {
		return err
	}
	defer k.Close()
	w := &Wire{cfg: c, kernel: k}
	errs := []error{tundev.CheckTUN(), k.Permitted("")}
	link, err := w.look()
	if errs = append(errs, err); link.MTU == 0 {
		return errors.Join(errs...) // it is not there
	}
	if !link.Up {
		errs = append(errs, fmt.Errorf("interface %s is down: bring it up, %s", c.Interface, instead))
	}
	forwarding := "net/ipv4/conf/" + c.Interface + "/forwarding"
	value, err := k.Sysctl(forwarding)
	if errs = append(errs, err); value == "0" {
		errs = append(errs, fmt.Errorf("the kernel passes on nothing that comes in by %s: run `sysctl -w %s=1` and keep it in /etc/sysctl.d, %s", c.Interface, forwarding, instead))
	}
	return errors.Join(errs...)
}
