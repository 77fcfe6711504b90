package packet

import "iter"

// Outcome is what became of a packet: Pass, or one reason for its drop. The set
// is closed; its names are the values of the metrics' label "reason". The zero
// value is a drop that nobody explained, so that a forgotten assignment fails closed.
type Outcome uint8

// The outcomes.
const (
	Unspecified        Outcome = iota // dropped, and the code does not say why: a bug
	Pass                              // goes on
	Malformed                         // IP header wrong: IHL, lengths, options, header checksum (RFC 1812 5.2.2)
	MalformedL4                       // transport header cut short or nonsense
	NotIPv4                           // IPv6 and everything else that is not IPv4
	BadProtocol                       // a transport that is not translated (RFC 6888 REQ-1)
	SourceRoute                       // LSRR or SSRR (RFC 7126)
	AddressOption                     // an option in which hosts record their addresses (RFC 7126): record route, timestamp
	Fragment                          // a fragment that could not be used
	FragmentOverlap                   // overlapping fragments: the datagram is dropped
	FragmentLimit                     // reassembly memory or time ran out
	TTLExpired                        // arriving TTL <= 1 (RFC 1812 5.3.1)
	ICMPType                          // an ICMP message that is not translated (redirect, source quench, timestamps, ...)
	ICMPChecksum                      // wrong ICMP or embedded header checksum (RFC 5508 REQ-3)
	Martian                           // an address that must never be forwarded
	SpoofedSource                     // inner source that is not the peer's or not an inner address
	Unattached                        // inner source with no attachment
	PolicyRejected                    // a rule rejects it; the sandbox is told
	PolicyDropped                     // a rule drops it silently
	PrivateDestination                // private address that is not peered
	OwnAddress                        // the gateway host's own or another dedicated address
	NoLocalService                    // the network's first address has no such service
	NoMapping                         // from outside: no mapping
	Filtered                          // from outside: mapping, but filtered (RFC 4787 section 5)
	NoSession                         // from inside: mid-flow TCP without a session; the sandbox gets a RST
	PortsExhausted                    // no external port is free (RFC 6888 REQ-11)
	SessionLimit                      // quota of sessions, ports or half-open of a sandbox or table
	RateLimit                         // quota of new flows per second
	TooBig                            // larger than the next hop's MTU with DF
	PortRefused                       // the kernel refused the external port; a retry gets another
	PendingLimit                      // too many pending connects of the network or towards the destination
	SocketLimit                       // no descriptor left for another session
	ICMPUnavailable                   // the kernel allows no ping sockets
	Unreachable                       // the kernel says that the destination is unreachable
	QueueFull                         // a bounded queue was full
	WrongSource                       // last check before the uplink: source outside the pair; never expected
	SiteDown                          // peered destination, but the network's site tunnel is not up here
	Draining                          // the dedicated IP takes no new mappings
	Closed                            // the part that should have taken it is closing
	numOutcomes
)

// NumOutcomes is the size of an array of counters indexed by Outcome.
const NumOutcomes = int(numOutcomes)

// outcomeNames is never written.
var outcomeNames = [numOutcomes]string{
	Unspecified:        "unspecified",
	Pass:               "pass",
	Malformed:          "malformed",
	MalformedL4:        "malformed_l4",
	NotIPv4:            "not_ipv4",
	BadProtocol:        "bad_protocol",
	SourceRoute:        "source_route",
	AddressOption:      "address_option",
	Fragment:           "fragment",
	FragmentOverlap:    "fragment_overlap",
	FragmentLimit:      "fragment_limit",
	TTLExpired:         "ttl_expired",
	ICMPType:           "icmp_type",
	ICMPChecksum:       "icmp_checksum",
	Martian:            "martian",
	SpoofedSource:      "spoofed_source",
	Unattached:         "unattached",
	PolicyRejected:     "policy_rejected",
	PolicyDropped:      "policy_dropped",
	PrivateDestination: "private_destination",
	OwnAddress:         "own_address",
	NoLocalService:     "no_local_service",
	NoMapping:          "no_mapping",
	Filtered:           "filtered",
	NoSession:          "no_session",
	PortsExhausted:     "ports_exhausted",
	SessionLimit:       "session_limit",
	RateLimit:          "rate_limit",
	TooBig:             "too_big",
	PortRefused:        "port_refused",
	PendingLimit:       "pending_limit",
	SocketLimit:        "socket_limit",
	ICMPUnavailable:    "icmp_unavailable",
	Unreachable:        "unreachable",
	QueueFull:          "queue_full",
	WrongSource:        "wrong_source",
	SiteDown:           "site_down",
	Draining:           "draining",
	Closed:             "closed",
}

// String returns the outcome's name as it stands in metrics: lower case, words joined by underscores.
func (o Outcome) String() string {
	if o >= numOutcomes {
		return "unknown"
	}
	return outcomeNames[o]
}

// Outcomes yields every outcome in the order of its number.
func Outcomes() iter.Seq[Outcome] {
	return func(yield func(Outcome) bool) {
		for o := range numOutcomes {
			if !yield(o) {
				return
			}
		}
	}
}
