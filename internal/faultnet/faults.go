package faultnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"
)

// Faults are what happens to connections.
type Faults struct {
	Refuse bool // new connections are reset

	Up   Direction // from the client to the target
	Down Direction // from the target to the client
}

// Direction is what happens to the bytes of one direction. The zero value passes them as they are.
type Direction struct {
	Stall bool          // nothing passes and nothing is lost; with one direction alone, half-open
	Delay time.Duration // each byte comes so much later
	Rate  int           // bytes a second; 0: no bound

	// One piece in so many, on average: a connection is cut in the middle of it, a bit of it is another,
	// it comes twice. 0: never. A piece is what one read gives, pieceSize bytes at most.
	Cut, Corrupt, Duplicate int
}

func (d Direction) String() string {
	var s []string
	for _, part := range []struct {
		on   bool
		text string
	}{
		{d.Stall, "stall"},
		{d.Delay > 0, "delay " + d.Delay.String()},
		{d.Rate > 0, fmt.Sprintf("%d bytes/s", d.Rate)},
		{d.Cut > 0, fmt.Sprintf("cut 1/%d", d.Cut)},
		{d.Corrupt > 0, fmt.Sprintf("corrupt 1/%d", d.Corrupt)},
		{d.Duplicate > 0, fmt.Sprintf("duplicate 1/%d", d.Duplicate)},
	} {
		if part.on {
			s = append(s, part.text)
		}
	}
	if len(s) == 0 {
		return "good"
	}
	return strings.Join(s, ", ")
}

func (f Faults) String() string {
	if f.Refuse {
		return "refuse"
	}
	return fmt.Sprintf("up %s; down %s", f.Up, f.Down)
}

// way is one of the two directions of a link.
type way int

const (
	up way = iota
	down
)

func (f Faults) of(w way) Direction {
	if w == up {
		return f.Up
	}
	return f.Down
}

func (l *link) ends(w way) (src, dst net.Conn) {
	if w == up {
		return l.client, l.server
	}
	return l.server, l.client
}

const (
	pieceSize = 16 << 10
	// onTheWay is how many pieces are read and not written yet: what a delay needs to be no throttle.
	onTheWay = 64
)

// piece is what was read at once.
type piece struct {
	data []byte
	at   time.Time
}

// pass carries one direction of a link until its source has said everything, which its target is told, or until
// something is wrong: then the link ends.
func (p *Proxy) pass(l *link, w way, rng *rand.Rand) {
	src, dst := l.ends(w)
	pieces := make(chan piece, onTheWay)
	whole := false // read when pieces is closed
	p.wg.Go(func() {
		defer close(pieces)
		for {
			b := make([]byte, pieceSize)
			n, err := src.Read(b)
			if n > 0 {
				select {
				case pieces <- piece{b[:n], time.Now()}:
				case <-l.ctx.Done():
					return
				}
			}
			if err != nil {
				whole = errors.Is(err, io.EOF)
				return
			}
		}
	})
	for pc := range pieces {
		if !p.deliver(l, dst, w, pc, rng) {
			l.cut()
			return
		}
	}
	// A reset would throw away what the target has not read yet.
	if tcp, ok := dst.(*net.TCPConn); !whole || !ok || tcp.CloseWrite() != nil {
		l.cut()
	}
}

// deliver writes one piece, when its time has come and as the faults say. It returns false when the link
// has ended.
func (p *Proxy) deliver(l *link, dst net.Conn, w way, pc piece, rng *rand.Rand) bool {
	var d Direction
	for {
		f, changed := p.current()
		d = f.of(w)
		wait := time.Duration(-1)
		if !d.Stall {
			wait = time.Until(pc.at.Add(d.Delay))
			if wait <= 0 {
				break
			}
		}
		if !wakeUp(l.ctx, wait, changed) {
			return false
		}
	}
	if d.Rate > 0 && !wakeUp(l.ctx, time.Duration(len(pc.data))*time.Second/time.Duration(d.Rate), nil) {
		return false
	}
	data, times := pc.data, 1
	if oneIn(rng, d.Cut) {
		_, _ = dst.Write(data[:rng.IntN(len(data)+1)]) // the link ends here in any case
		p.count(func(c *Counts) { c.Cut++ })
		return false
	}
	if oneIn(rng, d.Corrupt) {
		data[rng.IntN(len(data))] ^= 1 << rng.IntN(8)
		p.count(func(c *Counts) { c.Corrupted++ })
	}
	if oneIn(rng, d.Duplicate) {
		times = 2
		p.count(func(c *Counts) { c.Duplicated++ })
	}
	for range times {
		if _, err := dst.Write(data); err != nil {
			return false
		}
	}
	p.count(func(c *Counts) { c.Bytes += int64(len(data)) })
	return true
}

func oneIn(rng *rand.Rand, n int) bool { return n > 0 && rng.IntN(n) == 0 }

// wakeUp waits for d (negative: for ever) or for a change, and returns false when ctx has ended.
func wakeUp(ctx context.Context, d time.Duration, changed <-chan struct{}) bool {
	var timer <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-timer:
	case <-changed:
	}
	return ctx.Err() == nil
}
