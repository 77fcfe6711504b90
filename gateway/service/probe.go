package service

import (
	"github.com/sallyport-net/sallyport/internal/packet"
)

// answerProbes answers every valid request of the network on the probe port and nothing else.
func (s *Services) answerProbes() error {
	// One byte more than a probe has, so that a longer datagram is not taken for one.
	var buf [packet.ProbeSize + 1]byte
	for {
		n, from, err := s.probes.ReadFromUDPAddrPort(buf[:])
		if err != nil {
			return err
		}
		request, ok := packet.ParseProbe(buf[:n])
		if !ok || request.Type != packet.ProbeRequest || !s.answers(from) {
			s.counters.probesRefused.Add(1)
			continue
		}
		n = request.Reply(s.config.Health.Health()).Put(buf[:])
		if _, err := s.probes.WriteToUDPAddrPort(buf[:n], from); err != nil {
			// One reply that cannot be sent is a lost probe to its asker; a
			// closed socket is seen by the next read.
			s.counters.probesFailed.Add(1)
			continue
		}
		s.counters.probes.Add(1)
	}
}
