package nat

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// What lies in a Memory holds no pointers: the garbage collector does not look there,
// and what it pointed to would be gone.
func TestRecordsHoldNoPointers(t *testing.T) {
	for _, v := range []any{session{}, mapping{}, host{}, held{}, record{}, crowd{}, uint64(0), uint32(0)} {
		if p := pointerIn(reflect.TypeOf(v)); p != "" {
			t.Errorf("%T holds a pointer: %s", v, p)
		}
	}
	if pointerIn(reflect.TypeFor[space]()) == "" {
		t.Error("a space holds pointers, and the test does not see them")
	}
}

// pointerIn names the first part of a type that the garbage collector would follow.
func pointerIn(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Struct:
		for f := range t.NumField() {
			if p := pointerIn(t.Field(f).Type); p != "" {
				return t.Field(f).Name + " " + p
			}
		}
		return ""
	case reflect.Array:
		return pointerIn(t.Elem())
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return ""
	}
	return t.String()
}

// scarce is a Memory that gives so many times and then no more.
type scarce struct {
	left     int
	short    bool // it was asked for more
	live     map[*byte]int
	problems []string
}

func (m *scarce) Alloc(n int) []byte {
	if m.left == 0 {
		m.short = true
		return nil
	}
	m.left--
	b := make([]byte, n)
	m.live[&b[0]] = n
	return b
}

func (m *scarce) Free(b []byte) {
	if n, ok := m.live[&b[0]]; !ok || n != len(b) {
		m.problems = append(m.problems, fmt.Sprintf("%d bytes were given back, %d given out", len(b), n))
	}
	delete(m.live, &b[0])
}

// drive takes packets of all kinds through a table, and says how many passed.
func (w *twins) drive(tb testing.TB, packets int) (passed int) {
	l := w.single
	for range packets / 30 {
		out := w.dice.IntN(3) > 0
		w.fill(30, out)
		for i := range w.views[1] {
			p := &w.views[1][i]
			was := slices.Clone(p.B)
			var o packet.Outcome
			if out {
				o = l.Egress(p, l.now)
			} else {
				o = l.Ingress(p, l.now)
			}
			if o != packet.Pass && !bytes.Equal(was, p.B) {
				tb.Fatalf("%v, and the packet was changed", o)
			}
			if o != packet.Pass {
				continue
			}
			if passed++; out && p.Kind != packet.KindICMPError {
				k := seenPort{p.SrcPort, netip.AddrPortFrom(p.Dst, p.DstPort)}
				w.seen[spaceOf(p.Proto)] = append(w.seen[spaceOf(p.Proto)], k)
			}
		}
		switch w.dice.IntN(4) {
		case 0:
			l.wait(time.Duration(w.dice.IntN(300)) * time.Second)
			l.Expire(l.now, 100)
		case 1:
			l.Revoke(w.inner().Addr(), l.now)
		case 2:
			l.events()
		}
	}
	return passed
}

// Where memory gives out, at whatever allocation, new flows are refused and nothing
// breaks; when there is some again, the table goes on.
func TestMemoryGivesOut(t *testing.T) {
	for _, mode := range []Mapping{AddressAndPortDependent, EndpointIndependent, identity} {
		refused := uint64(0)
		for k := 0; ; k++ {
			m := &scarce{left: k, live: map[*byte]int{}}
			w := newTwins(t, uint64(mode), func(c *Config) {
				if c.Memory = m; mode == identity {
					c.Identity, c.External = true, netip.Addr{}
				} else {
					c.Ports, c.TCPMapping = PortRange{2000, 2005}, mode
				}
			})
			w.peers = 40
			w.drive(t, 900)
			audit(t, w.single.Table)
			refused += w.single.Stats().Refused.Of(ReasonTableFull)
			short := m.short
			m.left = -1
			w.single.wait(time.Hour)
			w.single.settle()
			if n := w.drive(t, 150); n == 0 {
				t.Fatalf("mode %d: nothing passes after memory had given out after %d", mode, k)
			}
			audit(t, w.single.Table)
			if len(m.problems) > 0 {
				t.Fatal(m.problems)
			}
			if !short {
				t.Logf("mode %d: %d allocations", mode, k)
				break // it had enough
			}
		}
		if refused == 0 {
			t.Errorf("mode %d: nothing was refused", mode)
		}
	}
}

// An import that finds no memory is refused whole.
func TestImportWithoutMemory(t *testing.T) {
	w := newTwins(t, 7, nil)
	w.drive(t, 900)
	w.single.wait(time.Second)
	b, c := w.single.AppendExport(nil, ExportCursor{}, 1<<30, w.single.now)
	if !c.Done() {
		t.Fatal("the export is not complete")
	}
	rich := newLab(t, nil)
	if err := rich.Import(b, rich.now); err != nil || rich.tuples.len() == 0 {
		t.Fatalf("%v, with %d tuples on hold", err, rich.tuples.len())
	}
	for k := 0; ; k++ {
		m := &scarce{left: k, live: map[*byte]int{}}
		l := newLab(t, func(c *Config) { c.Memory = m })
		err := l.Import(b, l.now)
		audit(t, l.Table)
		if err == nil {
			if l.tuples.len() != rich.tuples.len() || l.heldPorts.len() != rich.heldPorts.len() {
				t.Errorf("%d and %d holds came in, want %d and %d", l.tuples.len(), l.heldPorts.len(), rich.tuples.len(), rich.heldPorts.len())
			}
			break
		}
		if len(l.Table.events.chunks) > 0 {
			t.Fatal("a refused import left memory with the events")
		}
		if !errors.Is(err, errNoMemory) {
			t.Fatal(err)
		}
		if l.sessions.live+l.mappings.live+l.tuples.len()+l.heldPorts.len() > 0 {
			t.Fatalf("%v, but the table is not empty", err)
		}
	}
}
