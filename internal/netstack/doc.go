// Package netstack is a TCP/IP stack in userspace behind a batching tun.Device:
// packets go in and come out in batches on one side, connections and listeners
// stand on the other. It is the only package that imports gVisor.
//
// # The life of a packet
//
// In: Device.Write copies a batch into the stack's buffers; consecutive
// segments of one TCP flow become one large segment on the way (coalesce.go),
// their checksums verified first. A segment is queued at its endpoint and
// worked on by one of the stack's processor goroutines.
//
// Out: the stack hands large TCP segments to the link (link.go), which queues a
// reference to them (queue.go). Device.Read takes them in batches, cuts them to
// the MTU and completes their checksums while it copies them into the
// caller's buffers (segment.go), so that a payload is copied once.
//
// # Blocking
//
// A full queue blocks who sends: the goroutine that writes to a connection, or
// a processor goroutine. It never drops their data. Packets that the stack
// answers with inside Device.Write (resets for unknown segments, ICMP) may use a
// reserve beyond the queue's limit and are dropped and counted when that is
// full too, because Write must not wait for Read: the caller of Write may hold what
// the caller of Read waits for. One thing inside Write does wait: an ICMP
// "fragmentation needed" for one of the stack's own connections may resend data
// of that connection. So the goroutine that calls Read must never wait for
// one that is inside Write.
//
// # Loss
//
// Losses are mended with SACK and without RACK (see configureTCP). Once an end sent
// its FIN, gVisor tells the other one no longer what arrived (no SACK blocks): what is
// lost on the way to a half-closed end waits for a timeout, 200 ms or more.
//
// # Cost
//
// An idle stack keeps GOMAXPROCS goroutines, the processors of TCP, and about
// 45 KiB; an idle connection about 9 KiB and no goroutine.
package netstack
