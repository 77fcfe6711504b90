// Package gateway is the shell of an egress host: for each network one
// [Forwarder] between the network's WireGuard device and its uplink, one
// nat.Table with a lock of its own for each dedicated IP, the tasks that expire
// state and carry events, and the metrics.
//
// # The life of a packet
//
// On the way out (egress), in the order of the code in egress.go:
//
//  1. wireguard-go hands one peer's decrypted batch to [Forwarder.Write]; the
//     clock is read once.
//  2. Each packet is parsed in place; fragments wait in the network's bounded
//     reassembler until their datagram is whole.
//  3. The policy snapshot decides: forward, a peered network, a local service,
//     reject, drop.
//  4. The inner address names one dedicated IP of the pair; under that table's
//     lock the packet is translated, for the whole batch at once. Where the policy
//     has changed since step 3 it is asked again there, so that an address
//     that is revoked meanwhile gets no new state.
//  5. A last check compares each source with the table's dedicated IP, and the
//     survivors go to the uplink in one Write; those for an IP of the pair that is
//     held here turn (hairpin.go) to its table and wait for Read.
//
// An IP that drains shares its packets with the other before step 4 (drain.go).
//
// Where the uplink carries trains (uplink.Trains), the segments of a flow are joined before
// step 4 and pass it as one (egress_trains.go); on the way back a train is translated as one
// and then cut into the buffers of Read (ingress_trains.go).
//
// On the way back (ingress.go): the uplink's batch is parsed, the dedicated IP
// names the table, the table restores the inner destination or drops, and
// [Forwarder.Read] returns the same buffers to wireguard-go, which encrypts. Senders
// hear of packets of live sessions that go no further (remote.go).
//
// Packets to peered networks go by a table that tracks and does not translate, and by a
// site tunnel instead of the uplink (peered.go, peered_egress.go, peered_ingress.go).
// The tunnel is on one of the network's hosts; the other relays to it.
//
// What the gateway says itself (ICMP errors, resets, answers of its services)
// waits in a bounded queue; Read takes from it and from the uplink alike.
//
// # Who owns what
//
// The Forwarder owns its tables, the reply queue and the counters. The uplink,
// the services and the tunnel are owned by the network's tasks (network.go),
// which start and end them in order; the site tunnel comes, changes and goes with the
// desired state while the network is open (site.go); a [Host] owns the networks, follows the
// desired state (follow.go), and opens again what failed. Networks share nothing
// but the host's descriptors, and fail alone.
package gateway
