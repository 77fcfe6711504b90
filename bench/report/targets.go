package report

// The parts, by their names.
const (
	partTCP         = "tcp"
	partUDP64       = "udp64"
	partLatency     = "latency"
	partConnections = "connections"
	partTranslator  = "translator"
	partSandboxes   = "sandboxes"
	partSessions    = "sessions"
	partAttach      = "attach"
	partScale       = "scale"
)

// twofold and sevenQuarters are how much better small packets are to be.
const (
	sevenQuarters = 1.75
	twofold       = 2
)

// targets are all that the gateway is held to, but for failover.
func targets() (list []target) {
	for _, more := range [][]target{bulkTargets(), smallTargets(), connectionTargets(), latencyTargets(), translatorTargets(), scaleTargets()} {
		list = append(list, more...)
	}
	return list
}

func bulkTargets() []target {
	const processGB = "/processPerGB"
	one := func(what, want, scenario, variant string, limit float64) target {
		return target{what: what, want: want, part: partTCP, figure: scenario + processGB, variant: variant, by: byRatio, limit: limit}
	}
	again := func(what, scenario, variant string) target {
		return target{what: what, want: "0", part: partTCP, figure: scenario + "/resentPerGB", variant: variant, limit: 0.5}
	}
	return []target{
		one("CPU per GB of TCP, `tun`, egress", "<= 0.70x", "tcp-out", "tun", 0.70),
		one("CPU per GB of TCP, `tun`, ingress", "<= 0.78x", "tcp-in", "tun", 0.78),
		one("CPU per GB of TCP, `sockets`, egress", "<= 1.2x", "tcp-out", "sockets", 1.2),
		one("CPU per GB of TCP, `sockets`, ingress", "<= 1.2x", "tcp-in", "sockets", 1.2),
		again("segments sent again, `sockets`, egress", "tcp-out", "sockets"),
		again("segments sent again, `sockets`, ingress", "tcp-in", "sockets"),
	}
}

func smallTargets() []target {
	one := func(what, want, scenario, figure string, limit float64, least bool) target {
		return target{what: what, want: want, part: partUDP64, figure: scenario + figure, variant: "tun", by: byRatio, limit: limit, least: least}
	}
	const process, peak, then = "/processPerPacket", "/peak", "/corePerPacketAtPeak"
	return []target{
		one("CPU of the process per 64-byte packet at 50,000/s, `tun`, egress", "<= 1/1.75 = 0.57x", "udp-out", process, 1/sevenQuarters, false),
		one("CPU of the core per 64-byte packet at the highest rate, `tun`, egress", "<= 0.57x", "udp-out", then, 1/sevenQuarters, false),
		one("64-byte packets/s at 0.1 % loss, `tun`, egress", ">= 1.75x", "udp-out", peak, sevenQuarters, true),
		one("CPU of the process per 64-byte packet at 50,000/s, `tun`, ingress", "<= 1/2 = 0.50x", "udp-in", process, 1.0/twofold, false),
		one("CPU of the core per 64-byte packet at the highest rate, `tun`, ingress", "<= 0.50x", "udp-in", then, 1.0/twofold, false),
		one("64-byte packets/s at 0.1 % loss, `tun`, ingress", ">= 2x", "udp-in", peak, twofold, true),
	}
}

func connectionTargets() []target {
	return []target{
		{what: "new TCP connections/s to 1,000 destinations, `tun`", want: ">= 1.5x", part: partConnections, figure: "connections/connectionPeak", variant: "tun", by: byRatio, limit: 1.5, least: true},
		{what: "the same, failures", want: "0", part: partConnections, figure: "connections/failed", variant: "tun"},
		{what: "new TCP connections/s to one destination, `tun`", part: partConnections, figure: "connections-one/connectionPeak", variant: "tun", by: byRatio, open: true},
	}
}

func latencyTargets() (list []target) {
	for _, load := range []struct{ scenario, name string }{{"latency-idle", "idle"}, {"latency-half", "at half load"}} {
		for _, variant := range []string{"tun", "sockets"} {
			list = append(list,
				target{what: "added latency, " + load.name + ", `" + variant + "`, p50", want: "<= 60 us more", part: partLatency, figure: load.scenario + "/p50", variant: variant, by: byMore, limit: 60},
				target{what: "added latency, " + load.name + ", `" + variant + "`, p99", want: "<= 1000 us more", part: partLatency, figure: load.scenario + "/p99", variant: variant, by: byMore, limit: 1000})
		}
	}
	return list
}

func translatorTargets() []target {
	at := func(what, want, figure string, limit float64, least bool) target {
		return target{what: what, want: want, part: partTranslator, figure: figure, limit: limit, least: least}
	}
	flat := func(what, figure, first string) target {
		return target{what: what, want: "<= 2x of 1 k", part: partTranslator, figure: figure, by: byFirst, first: first, limit: 2}
	}
	return []target{
		at("translator: established packet out", "<= 100 ns", "EgressEstablished/1k ns/packet", 100, false),
		at("translator: established packet in", "<= 100 ns", "IngressEstablished/1k ns/packet", 100, false),
		flat("translator: packet out, 1 M sessions", "EgressEstablished/1M ns/packet", "EgressEstablished/1k ns/packet"),
		flat("translator: packet in, 1 M sessions", "IngressEstablished/1M ns/packet", "IngressEstablished/1k ns/packet"),
		at("translator: new sessions/s, on top of 1 k", ">= 1 M/s", "NewSessions/1k M/s", 1, true),
		at("translator: new sessions/s, on top of 1 M", ">= 1 M/s", "NewSessions/1M M/s", 1, true),
		at("translator: memory of a TCP session", "<= 128 B", "BytesPerSession/TCP B/session", 128, false),
		at("translator: memory of a UDP session", "<= 128 B", "BytesPerSession/UDP16 B/session", 128, false),
	}
}

func scaleTargets() []target {
	const process = "/processMicros"
	return []target{
		{what: "CPU per packet, 10,000 sandboxes to 1", want: "<= 2x", part: partSandboxes, figure: "sandboxes" + process, variant: "10,000 sandboxes", by: byFirst, firstVariant: "1 sandbox", limit: 2},
		{what: "CPU per packet of 100 sandboxes, 10,000 attached to 100", want: "<= 1.1x", part: partSandboxes, figure: "sandboxes" + process, variant: "100 sandboxes of 10,000 attached", by: byFirst, firstVariant: "100 sandboxes", limit: 1.1},
		{what: "CPU per packet, 1 M sessions to 1 k", want: "<= 2x", part: partSessions, figure: "sessions" + process, variant: "1,000,000 sessions", by: byFirst, firstVariant: "1,000 sessions", limit: 2},
		{what: "attach by the control API to the first answered byte at 100/s, p99", want: "<= 50 ms", part: partAttach, figure: "attach/firstByteMillisP99", variant: anyVariant, limit: 50},
		{what: "live heap of an idle sandbox on the gateway", want: "<= 2048 B", part: partScale, figure: "sandboxes/live heap", limit: 2048},
		{what: "resident memory of an idle network on the gateway", part: partScale, figure: "networks/resident memory", open: true},
		{what: "goroutines of an idle network", part: partScale, figure: "networks/goroutines", open: true},
		{what: "resident memory of the sidecar for each warm path", want: "<= 2 MiB", part: partScale, figure: "paths/resident memory", limit: 2},
		{what: "resident memory of a sidecar with 200 networks, three paths each", want: "<= 1536 MiB", part: partScale, figure: "sidecar/resident memory", limit: 1536},
	}
}
