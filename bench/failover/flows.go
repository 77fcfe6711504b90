package failover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// maxOpening is how many new connections wait for an answer at most.
	maxOpening = 400
	// openPatience is how long each of them does.
	openPatience = 3 * time.Second
	// askEvery is how often the UDP flow asks.
	askEvery = 10 * time.Millisecond
	// idlePace is how often connections are opened before anyone says otherwise.
	idlePace = 50 * time.Millisecond
	// keptAttempts bounds the memory of what was answered: 20 s of the fastest pace.
	keptAttempts = 4096
	// holdPatience is how long the flows that stay may take to begin.
	holdPatience = 3 * time.Second
)

// attempt is a new connection that was answered.
type attempt struct {
	opened, answered instant
	source           netip.Addr
}

// flows are a function's connections. A lock guards everything that changes; who
// changes something closes changed.
type flows struct {
	ctx   context.Context
	tasks sync.WaitGroup
	paces chan time.Duration

	mu       sync.Mutex
	changed  chan struct{}
	attempts []attempt // the newest, oldest first
	opening  int
	seen     map[netip.Addr]int
	tally    tally
	idle     idleFlow
	udp      udpFlow
}

// idleFlow is the connection on which nothing happens.
type idleFlow struct {
	conn  net.Conn
	ended instant // 0 as long as it lives
	how   string
}

// udpFlow asks again and again from one port.
type udpFlow struct {
	conn    net.Conn
	answers []attempt // the newest, oldest first
}

// newFlows starts to open connections. Cancel ctx, then wait.
func newFlows(ctx context.Context) *flows {
	f := &flows{ctx: ctx, paces: make(chan time.Duration), changed: make(chan struct{}), seen: make(map[netip.Addr]int)}
	f.tasks.Go(f.openAgainAndAgain)
	return f
}

// wait waits for the end of everything, once ctx has ended.
func (f *flows) wait() {
	f.mu.Lock()
	f.dropHeld()
	f.mu.Unlock()
	f.tasks.Wait()
}

// change runs a change and wakes who waits for one.
func (f *flows) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

// until waits until ready, which is called with the lock held, or until a time.
func (f *flows) until(deadline instant, ready func() bool) bool {
	timer := time.NewTimer(deadline.since(now()))
	defer timer.Stop()
	for {
		f.mu.Lock()
		ok, changed := ready(), f.changed
		f.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-f.ctx.Done():
			return false
		}
	}
}

// pace changes how often connections are opened.
func (f *flows) pace(every time.Duration) {
	select {
	case f.paces <- every:
	case <-f.ctx.Done():
	}
}

// openAgainAndAgain opens connections at the pace.
func (f *flows) openAgainAndAgain() {
	ticker := time.NewTicker(idlePace)
	defer ticker.Stop()
	for port := 0; ; port = (port + 1) % answerPorts {
		select {
		case <-ticker.C:
		case every := <-f.paces:
			ticker.Reset(max(every, time.Millisecond))
			continue
		case <-f.ctx.Done():
			return
		}
		f.mu.Lock()
		if f.opening >= maxOpening {
			f.tally.Skipped++
			f.mu.Unlock()
			continue
		}
		f.opening++
		f.mu.Unlock()
		f.tasks.Go(func() { f.open(uint16(firstAnswerPort + port)) })
	}
}

// open opens one connection and waits for its answer.
func (f *flows) open(port uint16) {
	a := attempt{opened: now()}
	source, err := askOnce(f.ctx, port)
	a.answered, a.source = now(), source.Addr()
	f.change(func() {
		f.opening--
		if err != nil {
			f.tally.Failed++
			return
		}
		f.tally.Answered++
		f.tally.Longest = max(f.tally.Longest, a.answered.since(a.opened))
		f.seen[a.source]++
		f.attempts = keep(f.attempts, a)
	})
}

// keep appends within the bound.
func keep(list []attempt, a attempt) []attempt {
	if len(list) >= keptAttempts {
		list = list[1:]
	}
	return append(list, a)
}

// askOnce is told its source by a new connection.
func askOnce(ctx context.Context, port uint16) (netip.AddrPort, error) {
	c, err := dial(ctx, originLink.Addr(), port, openPatience)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := c.SetDeadline(time.Now().Add(openPatience)); err != nil {
		return netip.AddrPort{}, err
	}
	return readSource(c)
}

// readSource reads the line by which the origin tells the source.
func readSource(c net.Conn) (netip.AddrPort, error) {
	line, err := bufio.NewReaderSize(c, 64).ReadString('\n')
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(strings.TrimSuffix(line, "\n"))
}

// hold replaces the flows that stay.
func (f *flows) hold() error {
	f.change(f.dropHeld)
	c, err := dial(f.ctx, originLink.Addr(), holdPort, holdPatience)
	if err != nil {
		return fmt.Errorf("open the idle connection: %w", err)
	}
	err = c.SetDeadline(time.Now().Add(holdPatience))
	if err == nil {
		_, err = readSource(c)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open the idle connection: %w", err), c.Close())
	}
	u, err := (&net.Dialer{}).DialContext(f.ctx, "udp4", at(originLink.Addr(), echoPort))
	if err != nil {
		return errors.Join(fmt.Errorf("open the UDP flow: %w", err), c.Close())
	}
	f.change(func() { f.idle, f.udp = idleFlow{conn: c}, udpFlow{conn: u} })
	f.tasks.Go(func() { f.watchIdle(c) })
	f.tasks.Go(func() { f.ask(u) })
	f.tasks.Go(func() { f.hear(u) })
	if !f.until(now()+instant(holdPatience), func() bool { return len(f.udp.answers) > 0 }) {
		return fmt.Errorf("the UDP flow was not answered within %v", holdPatience)
	}
	return nil
}

// dropHeld closes the flows that stay. The caller holds the lock.
func (f *flows) dropHeld() {
	if f.idle.conn != nil {
		_ = f.idle.conn.Close()
		_ = f.udp.conn.Close()
	}
	f.idle, f.udp = idleFlow{}, udpFlow{}
}

// watchIdle notes when the idle connection ends.
func (f *flows) watchIdle(c net.Conn) {
	_, err := c.Read(make([]byte, 1))
	ended, how := now(), "reset"
	switch {
	case err == nil:
		how = "bytes came that nobody sent"
	case !errors.Is(err, syscall.ECONNRESET):
		how = err.Error()
	}
	f.change(func() {
		if f.idle.conn == c {
			f.idle.ended, f.idle.how = ended, how
		}
	})
}

// ask sends questions, numbered by their time, until the flow is closed.
func (f *flows) ask(c net.Conn) {
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	for {
		if _, err := c.Write(strconv.AppendInt(nil, int64(now()), 10)); errors.Is(err, net.ErrClosed) {
			return // an ICMP error is none of the flow's end
		}
		select {
		case <-ticker.C:
		case <-f.ctx.Done():
			return
		}
	}
}

// hear notes the answers.
func (f *flows) hear(c net.Conn) {
	for b := make([]byte, 512); ; {
		n, err := c.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		heard := now()
		source, asked, ok := parseEcho(string(b[:n]))
		if err != nil || !ok {
			continue
		}
		f.change(func() {
			if f.udp.conn != c {
				return
			}
			f.seen[source]++
			f.udp.answers = keep(f.udp.answers, attempt{asked, heard, source})
		})
	}
}

// parseEcho takes apart what the origin answers to a datagram.
func parseEcho(text string) (source netip.Addr, asked instant, ok bool) {
	where, when, ok := strings.Cut(text, " ")
	from, err := netip.ParseAddrPort(where)
	t, terr := strconv.ParseInt(when, 10, 64)
	return from.Addr(), instant(t), ok && err == nil && terr == nil
}

// measure waits for what follows a cut.
func (f *flows) measure(o order) (m measurement) {
	f.until(o.Cut+instant(o.Limit), func() bool {
		m = f.after(o.Cut, o.Old)
		return m.First > 0 && m.UDP > 0 && m.Reset > 0
	})
	return m
}

// after is what is known of the time after a cut. The caller holds the lock.
func (f *flows) after(cut instant, old netip.Addr) (m measurement) {
	for _, a := range f.attempts {
		switch {
		case a.opened < cut:
		case a.source == old:
			m.Stale++
		case m.First == 0 || a.answered.since(cut) < m.First:
			m.First, m.FirstOpened, m.Source = a.answered.since(cut), a.opened.since(cut), a.source
		}
	}
	for _, a := range f.udp.answers {
		if a.opened >= cut && a.source != old {
			m.UDP, m.UDPSource = a.answered.since(cut), a.source
			break
		}
	}
	if f.idle.ended >= cut {
		m.Reset, m.How = f.idle.ended.since(cut), f.idle.how
	} else if f.idle.ended > 0 {
		m.How = "ended before the cut: " + f.idle.how
	}
	return m
}

// await waits for an answer from a source.
func (f *flows) await(o order) error {
	began := now()
	if f.until(began+instant(o.Limit), func() bool {
		for _, a := range f.attempts {
			if a.opened >= began && a.source == o.Source {
				return true
			}
		}
		return false
	}) {
		return nil
	}
	return fmt.Errorf("no new connection was answered from %v within %v", o.Source, o.Limit)
}

// collect returns what was counted since it was last called.
func (f *flows) collect() (map[netip.Addr]int, tally) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen, t := f.seen, f.tally
	f.seen, f.tally = make(map[netip.Addr]int), tally{}
	return seen, t
}
