package proxy

import (
	"errors"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// bufferSize is how many bytes move at a time.
const bufferSize = 32 << 10

// relay carries bytes between two connections.
type relay struct {
	a, b   Conn
	idle   time.Duration
	began  time.Time
	moved  atomic.Int64 // when something last moved, since began, in nanoseconds
	watch  *time.Timer
	server *Server
}

// carry carries bytes both ways until both have ended, and ends both connections.
func (s *Server) carry(a, b Conn) {
	r := &relay{a: a, b: b, idle: s.cfg.IdleTimeout, began: time.Now(), server: s}
	r.watch = time.AfterFunc(math.MaxInt64, r.look)
	r.watch.Reset(r.idle) // only now, as look uses the field
	var there sync.WaitGroup
	there.Go(func() { r.oneWay(b, a) })
	r.oneWay(a, b)
	there.Wait()
	r.watch.Stop()
	_ = a.Close()
	_ = b.Close()
}

// look ends connections on which nothing moves.
func (r *relay) look() {
	quiet := time.Since(r.began) - time.Duration(r.moved.Load())
	if quiet >= r.idle {
		r.abort()
		return
	}
	r.watch.Reset(r.idle - quiet)
}

func (r *relay) abort() {
	r.a.Abort()
	r.b.Abort()
}

// oneWay carries bytes until the source has no more, which the destination hears
// as a FIN; or until one of them is reset, which both hear.
func (r *relay) oneWay(dst, src Conn) {
	buf := r.server.buffers.Get().(*[]byte)
	defer r.server.buffers.Put(buf)
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			r.moved.Store(int64(time.Since(r.began)))
			if _, err := dst.Write((*buf)[:n]); err != nil {
				r.abort()
				return
			}
			r.moved.Store(int64(time.Since(r.began)))
		}
		if errors.Is(err, io.EOF) {
			err = dst.CloseWrite()
			if err == nil {
				return
			}
		}
		if err != nil {
			r.abort()
			return
		}
	}
}
