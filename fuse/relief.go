package fuse

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reliefTick is how often somebody looks whether the reader is held up: a request waits for three of them at most
	// behind one that waits. More often would wake a thread more often than it helps.
	reliefTick = time.Millisecond
	// reliefIdle is how many ticks without a request end the looking.
	reliefIdle = 20
	// waryRequests is how many requests that wait are handed over at once after one has held up another.
	waryRequests = 64
)

// relief has another goroutine read when the reader is held up by the request that it answers.
//
// To make sure before each request that another one is reading is the obvious way, and costs more than most requests do:
// the kernel wakes waiting readers in turn, so that each request wakes a cold thread, and each start and end of a
// goroutine is a wake-up too. An application waits for its request, so that while there is only one, nobody is kept
// waiting. Where several meet, those requests that wait for the disk or the Backend are handed over at once.
type relief struct {
	turns  atomic.Uint64 // requests taken while nobody else read
	parked atomic.Bool   // nobody looks: the next such request wakes the looking
	wary   atomic.Int32  // so many requests that wait are handed over at once

	resting atomic.Int32  // goroutines of serve that wait for rested
	rested  chan struct{} // one of them is to read

	wake chan struct{}
	over chan struct{} // closed at the end of the connection
	end  sync.Once

	hiring    sync.Mutex
	dismissed bool // the connection has ended
}

func newRelief() *relief {
	return &relief{rested: make(chan struct{}), wake: make(chan struct{}, 1), over: make(chan struct{})}
}

// taken is called by the reader when it goes on to answer a request while nobody reads.
func (r *relief) taken() {
	r.turns.Add(1)
	if r.parked.Load() && r.parked.CompareAndSwap(true, false) {
		r.wake <- struct{}{} // never waits: whoever parks has emptied it
	}
}

// isWary reports whether a request that waits is handed over at once, because one has held up another lately.
func (r *relief) isWary() bool {
	return r.wary.Load() > 0 && r.wary.Add(-1) >= 0
}

// stop ends the looking.
func (r *relief) stop() { r.end.Do(func() { close(r.over) }) }

// dismiss is called by a worker when the connection has ended: no other comes.
func (r *relief) dismiss() {
	r.hiring.Lock()
	defer r.hiring.Unlock()
	r.dismissed = true
}

// relieve looks for a reader that is held up, until the connection ends.
func (s *Session) relieve() {
	defer s.workers.Done()
	r := s.relief
	tick := time.NewTicker(reliefTick)
	defer tick.Stop()
	seen, idle, waiting := r.turns.Load(), 0, false
	for {
		select {
		case <-r.over:
			return
		case <-tick.C:
		}
		turns := r.turns.Load()
		switch {
		case turns != seen:
			seen, idle, waiting = turns, 0, false
		case s.reading.Load() > 0:
			if idle++; idle >= reliefIdle && !s.park(tick, seen) {
				return
			}
		case !s.requestPending(): // still the request of the last tick, and nobody is held up
			waiting = false
		case !waiting:
			waiting = true
		default:
			waiting = false
			r.wary.Store(waryRequests)
			s.readOn()
		}
	}
}

// park waits for the next request. It returns false at the end of the connection.
func (s *Session) park(tick *time.Ticker, seen uint64) bool {
	r := s.relief
	r.parked.Store(true)
	// A request taken before parked was set has woken nobody.
	if r.turns.Load() != seen && r.parked.CompareAndSwap(true, false) {
		return true
	}
	tick.Stop()
	defer tick.Reset(reliefTick)
	select {
	case <-r.wake:
		return true
	case <-r.over:
		return false
	}
}

// requestPending reports whether the kernel has a request that nobody has read, or has ended the connection.
func (s *Session) requestPending() bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.dev.fd), Events: unix.POLLIN}}, 0)
	return n > 0 || err != nil
}

// Relieve has another goroutine read, if none does. A Backend calls it, in a request, before it waits for something that
// takes much longer than the disk: the relief would notice, but only after some ticks, and hold up everybody meanwhile.
func (s *Session) Relieve() {
	if s.reading.Load() > 0 {
		return
	}
	s.relief.hiring.Lock()
	defer s.relief.hiring.Unlock()
	// The caller may be in a request of a session beside this one. Whoever dismisses is a worker, which waits for the lock.
	if !s.relief.dismissed {
		s.readOn()
	}
}

// maxResting is how many goroutines of serve are kept for the next time, each with its stack.
const maxResting = 32

// readOn has another goroutine serve: one that rests, whose stack has grown already, or a new one. One of s.workers cannot
// end meanwhile, so that nobody has ended the waiting for them.
func (s *Session) readOn() {
	select {
	case s.relief.rested <- struct{}{}:
	default:
		s.workers.Add(1)
		go s.serve()
	}
}

// rest waits until another reader is wanted, and makes the caller one. It returns false at the end of the connection, and
// when enough others rest.
func (s *Session) rest() bool {
	r := s.relief
	defer r.resting.Add(-1)
	if r.resting.Add(1) > maxResting {
		return false
	}
	for {
		select {
		case <-r.rested:
			if s.joinReading() {
				return true
			}
		case <-r.over:
			return false
		}
	}
}
