package hostnet

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The priorities of rules. The kernel's first one, of priority 0, finds what is
// addressed to the host itself; it makes way once a drop shall come before it.
const (
	firstPriority     = 0
	localDropPriority = 1
	localPriority     = 2
	dropPriority      = 3
)

func (k *Kernel) applyDrop(d Drop) error {
	if d.Local {
		if err := k.lowerLocal(); err != nil {
			return err
		}
	}
	if err := k.handle.RuleAdd(d.netlink()); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// lowerLocal moves the rule that finds what is addressed to the host, so that
// drops can be before it. It stays there, which makes no other difference.
func (k *Kernel) lowerLocal() error {
	rule := netlink.NewRule()
	rule.Family, rule.Table, rule.Priority = netlink.FAMILY_V4, unix.RT_TABLE_LOCAL, localPriority
	if err := k.handle.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	rule.Priority = firstPriority
	if err := k.handle.RuleDel(rule); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func (d Drop) netlink() *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Type, rule.IifName = netlink.FAMILY_V4, dropPriority, unix.RTN_BLACKHOLE, d.From
	if d.Local {
		rule.Priority = localDropPriority
	}
	if d.To.IsValid() {
		rule.Dst = toIPNet(d.To)
	}
	return rule
}
