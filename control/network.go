package control

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/control/spec"
)

// network is the addresses of one network with someone attached.
type network struct {
	addresses *spec.Allocator
	workers   map[string]*worker // by public key
}

// worker is the address that a worker has of its own, for its probes. It goes
// with the last attachment of the worker's key.
type worker struct {
	address     netip.Addr
	attachments int
}

// network returns a network's addresses, making them at the first attachment.
func (s *Store) network(n spec.Network) (*network, error) {
	if net, ok := s.networks[n.ID]; ok {
		return net, nil
	}
	addresses, err := spec.NewAllocator(n.CIDR)
	if err != nil {
		return nil, err
	}
	net := &network{addresses: addresses, workers: make(map[string]*worker)}
	s.networks[n.ID] = net
	return net, nil
}

// join gives the key of a worker one more attachment. A worker without one gets
// the address that it wants, if that is free, or any.
func (n *network) join(key string, wanted netip.Addr) (netip.Addr, error) {
	w, ok := n.workers[key]
	if !ok {
		address := wanted
		if n.addresses.Take(wanted) != nil {
			var err error
			if address, err = n.addresses.Allocate(); err != nil {
				return netip.Addr{}, err
			}
		}
		w = &worker{address: address}
		n.workers[key] = w
	}
	w.attachments++
	return w.address, nil
}

// leave takes one attachment away from the key of a worker.
func (n *network) leave(key string) {
	w := n.workers[key]
	if w.attachments--; w.attachments == 0 {
		n.addresses.Free(w.address)
		delete(n.workers, key)
	}
}
