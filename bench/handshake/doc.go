// Package handshake makes very many short TCP connections: connect, one request, the
// answer, close. It is pure: segments in, segments out, a clock's reading with each call.
//
// # A connection
//
// A [Client] has slots: each is a sandbox's address with a local port, and holds one
// connection at a time. Slots that are free stand in a row and are used from its front, so
// that each rests as long as it can; the destinations take turns connection by connection.
//
//	SYN ->  <- SYN/ACK  ACK ->  request ->  <- answer  FIN ->  <- FIN  ACK ->
//
// What is not acknowledged is sent again, after [Config.Resend], twice that, four times and so
// on, [Config.Tries] times in all. A connection ends by one outcome of a closed set, which
// counts once. It ended well when the answer was the right one, byte by byte, and both
// sides' FINs are acknowledged. A slot that rests answers FINs that come again, as TIME-WAIT
// does (RFC 9293, section 3.10.7.4), until it is used again.
//
// # Cost
//
// Memory is 64 bytes per slot, made at the start; a connection allocates nothing. There is
// no timer per connection: those that wait for the same number of tries wait equally long, so
// a list for each number is sorted by itself.
package handshake
