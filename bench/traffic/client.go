package traffic

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Client sends and takes raw IPv4 packets as sandboxes of one end. Its methods are called
// by the end's own goroutines, Deliver by one and Fill by another, beside each other;
// neither may wait.
type Client interface {
	// Deliver takes packets that came, whole and with right checksums. They are the
	// caller's again when it returns.
	Deliver(packets [][]byte)
	// Fill writes packets that are to leave into bufs, from offset on, and their lengths
	// into sizes; a packet of length 0 is passed over. It returns how many, and in what time
	// it is to be asked again if neither Wake nor other packets make it sooner; 0: not by
	// itself.
	Fill(bufs [][]byte, sizes []int, offset int) (n int, again time.Duration)
}

// Attachment is a client's hold on its sandboxes.
type Attachment struct {
	end    *end
	client Client
	inners []uint32 // under the end's lock

	delivering, filling sync.Mutex // held during calls of the client
	closed              bool       // written under both
}

// Attach gives addresses of an end, by its number in Config.Ends, to a client: all that
// arrives for them, but what belongs to a load, is its own. They need not be among those
// that the end began with; then they take part in no load. Without addresses the client
// gets all that the end began with. An address has one client at a time. An end asks all
// its clients for packets in turn, so one client of many sandboxes is better than many of
// one.
func (s *Source) Attach(number int, c Client, inners ...netip.Addr) (*Attachment, error) {
	if number < 0 || number >= len(s.ends) {
		return nil, fmt.Errorf("attach a client to end %d: there are %d", number, len(s.ends))
	}
	a := &Attachment{end: s.ends[number], client: c}
	if len(inners) == 0 {
		inners = a.end.inners
	}
	if err := a.Add(inners...); err != nil {
		return nil, err
	}
	a.end.join(a)
	return a, nil
}

// Add gives the client further addresses.
func (a *Attachment) Add(inners ...netip.Addr) error {
	e := a.end
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, inner := range inners {
		if !inner.Is4() {
			return fmt.Errorf("attach a client to %v: it is no IPv4 address", inner)
		}
		if e.owners[addressNumber(inner)].client != nil {
			return fmt.Errorf("attach a client to %v: it has one", inner)
		}
	}
	for _, inner := range inners {
		n := addressNumber(inner)
		e.owners[n] = owner{client: a, began: e.owners[n].began}
		a.inners = append(a.inners, n)
	}
	return nil
}

// Wake has the client's Fill be called soon. It may be called by the client's methods.
func (a *Attachment) Wake() { a.end.alarm.wake() }

// Close detaches the client, no method of which is called after that. The client's
// methods must not call it, nor hold what it waits for.
func (a *Attachment) Close() {
	a.end.detach(a)
	a.shut()
}

// shut waits for calls of the client that are under way, and lets no other happen.
func (a *Attachment) shut() {
	a.delivering.Lock()
	defer a.delivering.Unlock()
	a.filling.Lock()
	defer a.filling.Unlock()
	a.closed = true
}

func (a *Attachment) deliver(packets [][]byte) {
	a.delivering.Lock()
	defer a.delivering.Unlock()
	if !a.closed {
		a.client.Deliver(packets)
	}
}

func (a *Attachment) fill(bufs [][]byte, sizes []int, offset int) (int, time.Duration) {
	a.filling.Lock()
	defer a.filling.Unlock()
	if a.closed {
		return 0, 0
	}
	return a.client.Fill(bufs, sizes, offset)
}

// join has a client asked for packets.
func (e *end) join(a *Attachment) {
	e.mu.Lock()
	defer e.mu.Unlock()
	clients := append(slices.Clone(*e.clients.Load()), a)
	e.clients.Store(&clients)
	e.alarm.wake()
}

// detach takes a client out. What the end did not begin with is no sandbox of it any more.
func (e *end) detach(a *Attachment) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, inner := range a.inners {
		if e.owners[inner].client != a {
			continue
		}
		if e.owners[inner].began {
			e.owners[inner] = owner{began: true}
		} else {
			delete(e.owners, inner)
		}
	}
	a.inners = nil
	clients := slices.DeleteFunc(slices.Clone(*e.clients.Load()), func(o *Attachment) bool { return o == a })
	e.clients.Store(&clients)
}
