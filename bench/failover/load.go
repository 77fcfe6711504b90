package failover

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// loadPatience is how long the connections of the load may take to open.
const loadPatience = 10 * time.Second

// load moves bytes both ways, as fast as they go, for as long as the order says. A connection that ends before is an error.
func load(ctx context.Context, o order) (sent, received uint64, err error) {
	var up, down atomic.Uint64
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for i := range 2 * o.Streams {
		port, count, move := uint16(sinkPort), &up, net.Conn.Write
		if i%2 == 1 {
			port, count, move = fountainPort, &down, net.Conn.Read
		}
		c, err := dial(ctx, originLink.Addr(), port, loadPatience)
		if err != nil {
			return 0, 0, fmt.Errorf("open a connection of the load: %w", err)
		}
		conns = append(conns, c)
		if err := c.SetDeadline(time.Now().Add(o.Limit)); err != nil {
			return 0, 0, fmt.Errorf("limit a connection of the load: %w", err)
		}
		group.Go(func() error { return pump(c, move, count) })
	}
	err = group.Wait()
	return up.Load(), down.Load(), err
}

// pump moves bytes until the connection's deadline.
func pump(c net.Conn, move func(net.Conn, []byte) (int, error), count *atomic.Uint64) error {
	for b := make([]byte, bulk); ; {
		n, err := move(c, b)
		count.Add(uint64(n))
		if e, ok := err.(net.Error); ok && e.Timeout() {
			return nil
		}
		if err != nil {
			return fmt.Errorf("a connection of the load ended early: %w", err)
		}
	}
}
