// Package policy decides what becomes of a packet that a sandbox sends: it is
// forwarded onto the pair, sent to a peered network as it is, answered by a local
// service, refused with a word, or dropped.
//
// A [Snapshot] holds one network's compiled rules and its attached inner
// addresses. It never changes: With and Without return another that shares
// structure with the first, so that the data path can follow one pointer. It
// keeps no flow state: an established flow is asked about packet by packet.
//
// # Order of decisions
//
//  1. The source must be an attached inner address of this network.
//  2. A fragment is dropped: it must be put together first.
//  3. The destination is looked up among those that no rule can open, the most
//     specific one counting: the network's first address (step 4), the gateway
//     hosts' own addresses and the dedicated ones of other networks, the rest of the
//     network (other sandboxes), 0/8, 127/8, 169.254/16, 224/4 and 240/4, and the private blocks
//     of RFC 1918 and RFC 6598, of which the peered parts go on. In a region whose
//     pool lies in 127/8 it is the other way round: 127/8 and what is peered go on,
//     everything else ends here.
//  4. The first address answers echo requests and probes of everybody, and DNS
//     unless the rules close it (below); anything else there is refused.
//  5. The rules. Of all those that match, one that denies wins over one that
//     allows, and the first that denies over the others. Where none matches the
//     mode decides. What they allow is forwarded, or peered by its destination.
//
// ICMP errors go the way of their outer destination; the translator checks what
// they quote.
//
// # DNS
//
// A name server that forwards is a way out of its own, so that the rules govern
// the local one, too. It is closed under ModeDeny. Under ModeCustom it is open
// only where a rule allows port 53, under ModeAllow unless a rule denies it.
// Rules with CIDRs speak of it only in these cases: by a CIDR inside the network
// that contains the first address; or, to deny, by any that contains it and is
// not about private addresses at large (10.0.0.0/8), which are closed anyway.
// So a policy that allows nothing but CIDRs closes DNS, even 0.0.0.0/0.
package policy

import "github.com/sallyport-net/sallyport/internal/packet"

// Subject says who an inner address is, in the words that rules can use. An
// empty field is matched only by rules that leave the field open.
type Subject struct {
	Project, Environment, Kind, Runtime string
}

// Verdict is what the shell does with a packet.
type Verdict uint8

// The verdicts. The zero value drops.
const (
	Drop    Verdict = iota // silently
	Forward                // translate it onto the pair
	Local                  // hand it to the network's own services
	Reject                 // drop it and tell the sandbox
	Peering                // send it to a peered network, untranslated
)

// String returns the verdict's name.
func (v Verdict) String() string {
	switch v {
	case Drop:
		return "drop"
	case Forward:
		return "forward"
	case Local:
		return "local"
	case Reject:
		return "reject"
	case Peering:
		return "peering"
	}
	return "unknown"
}

// Decision is a verdict and, where it is Drop or Reject, the reason; otherwise
// the Outcome is packet.Pass.
type Decision struct {
	Verdict Verdict
	Outcome packet.Outcome
}

// decision is a Decision in one byte, an index of decisions, so that compiled
// rules stay small. The zero value drops without a reason, which is a bug.
type decision uint8

const (
	undecided decision = iota
	forwarded
	local
	byRules       // not final: the rules have the word
	byRulesPeered // the same for a peered destination
	peered
	rejected
	dropped
	martianDropped
	martianRejected
	ownAddress
	privateAddress
	noService
	fragment
	notParsed
	unattached
	spoofed
	numDecisions
)

// Decision returns what d stands for.
func (d decision) Decision() Decision {
	switch d {
	case forwarded:
		return Decision{Forward, packet.Pass}
	case peered:
		return Decision{Peering, packet.Pass}
	case local:
		return Decision{Local, packet.Pass}
	case rejected:
		return Decision{Reject, packet.PolicyRejected}
	case dropped:
		return Decision{Drop, packet.PolicyDropped}
	case martianDropped:
		return Decision{Drop, packet.Martian}
	case martianRejected:
		return Decision{Reject, packet.Martian}
	case ownAddress:
		return Decision{Reject, packet.OwnAddress}
	case privateAddress:
		return Decision{Reject, packet.PrivateDestination}
	case noService:
		return Decision{Reject, packet.NoLocalService}
	case fragment:
		return Decision{Drop, packet.Fragment}
	case notParsed:
		return Decision{Drop, packet.Malformed}
	case unattached:
		return Decision{Drop, packet.Unattached}
	case spoofed:
		return Decision{Drop, packet.SpoofedSource}
	}
	return Decision{Drop, packet.Unspecified}
}
