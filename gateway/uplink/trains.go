package uplink

import "github.com/sallyport-net/sallyport/internal/packet"

// Trains is an [Uplink] that carries trains of segments as one packet each.
//
// WriteTrains is Write of trains: each leaves in the segments that it is made of, or
// joined as it is, as the next hop likes. Heads may be changed and are the caller's
// again on return.
//
// ReadTrains is Read of trains, at most as many as trains has room for: 0 after Wake. All
// bytes of a train stand in its Head, which is the uplink's and valid until the next
// call; the caller may change it. No header has been checked but that it is IPv4.
type Trains interface {
	Uplink
	WriteTrains(trains []packet.Train) (int, error)
	ReadTrains(trains []packet.Train) (int, error)
}
