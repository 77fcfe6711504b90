package packet

// ProbePort is the UDP port on a network's first address where the gateway
// answers probes (the "echo" of RFC 862's port, with a message of our own).
const ProbePort = 7
