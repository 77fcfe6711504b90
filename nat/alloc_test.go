package nat

import (
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Nothing is allocated for a packet of a known flow, and for new flows only a
// chunk now and then.
func TestNoAllocations(t *testing.T) {
	p := populate(t, 1000)
	at := must2(p.udpOut(box, web))(p.lab, packet.Pass)
	id := must2(p.echoOut(box, web.Addr()))(p.lab, packet.Pass)
	c := p.conn(box, web).open()
	quote := p.build(c.external, web, seg{flags: packet.ACK, seq: c.out})
	errIn := append([]byte{}, p.buf[:p.errorAbout(3, 1, 0, router, external, append([]byte{}, p.buf[:quote]...))]...)
	i := 0
	for name, f := range map[string]func(){
		"TCP out":  func() { p.view(packet.ACK, box, web); p.Egress(&p.p, p.now) },
		"TCP in":   func() { p.view(packet.ACK, web, c.external); p.Ingress(&p.p, p.now) },
		"UDP out":  func() { p.egress(packet.BuildUDP(p.buf[:], box, web, nil, 64, 0)) },
		"UDP in":   func() { p.ingress(packet.BuildUDP(p.buf[:], web, at, nil, 64, 0)) },
		"filtered": func() { p.ingress(packet.BuildUDP(p.buf[:], other, at, nil, 64, 0)) },
		"echo out": func() {
			p.egress(packet.BuildICMPEcho(p.buf[:], packet.Echo{Src: box.Addr(), Dst: web.Addr(), Ident: box.Port()}, nil))
		},
		"echo in": func() {
			p.ingress(packet.BuildICMPEcho(p.buf[:], packet.Echo{Src: web.Addr(), Dst: external, Reply: true, Ident: id}, nil))
		},
		"error in": func() { p.ingress(copy(p.buf[:], errIn)) },
		"new TCP": func() {
			i++
			p.view(packet.SYN, inside(i), remote(20_000+i))
			p.Egress(&p.p, p.now)
		},
		"batch out": func() {
			for k := range batchMax {
				p.load(k, box, web)
			}
			p.datagram(3, box, web)
			p.parse()
			p.EgressBatch(p.ps[:], p.out[:], p.now)
		},
		"batch in": func() {
			for k := range batchMax {
				p.load(k, web, c.external)
			}
			p.parse()
			p.IngressBatch(p.ps[:], p.out[:], p.now)
		},
		"expire": func() { p.wait(1e9); p.Expire(p.now, 1000) },
	} {
		if n := testing.AllocsPerRun(2000, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
