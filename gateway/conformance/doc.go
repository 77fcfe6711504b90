// Package conformance holds the translator's behaviour against the programs of
// others, in real network namespaces. It has no code of its own, only tests.
//
// The real Forwarder, with its tables and policy, runs between TUN devices. What a
// sandbox's kernel sends is read from a TUN in the sandbox's namespace and written
// to the Forwarder, if its source is the sandbox's own, as WireGuard's allowed IPs
// would have it. What the Forwarder sends leaves by a plain uplink: a TUN in the
// gateway's namespace, to which the kernel routes the dedicated IPs and for which
// it is a router like any other. The machines:
//
//	a1, a2 (network A) ─┐                  ┌─ server (two addresses)
//	b1     (network B) ─┴─ gateway ── wan ─┼─ router ── far
//	                                       └─ spoofer (sends what it likes)
//
// a1 and b1 have the same inner address. The second subject is the kernel's own
// NAT in the Forwarder's place: where it conforms, it shows that a test asks for
// what others do as well.
//
// A capture of all that leaves the Forwarder runs beside every test. It fails the
// test for any packet whose source is not dedicated, whose quotation tells of an
// inner address, or which should not be on a wire at all.
//
// The flag -long makes the tests run their long form (make conformance), and with them
// those that take long by nature. A program that is missing is said to be.
package conformance
