// Package leaseterm is the life of a lease on the node that holds it, whatever service keeps it: since when
// it counts, how long it still lasts, and whether it has ended; and which lease a node has, and had last.
//
// A lease counts from the moment before its last successful renewal was sent, which the service cannot
// count from earlier, and by a clock that nobody sets. docs/lease.md says why.
package leaseterm

import (
	"sync"
	"time"
)

// Clock is the time since an arbitrary moment. It goes on while the machine sleeps.
type Clock func() time.Duration

// Mark is a moment, to be taken before a request is sent.
type Mark struct {
	sent time.Duration // by the term's clock
	at   time.Time     // the same moment
}

// Term is how long a lease lasts. It is safe for concurrent use.
type Term struct {
	ttl time.Duration
	now Clock

	mu    sync.Mutex // guards what is below
	from  Mark       // of the last renewal that succeeded
	ended bool       // given back, or known to be lost
}

// Begin begins a term, before the first request from which the service could count ttl.
func Begin(ttl time.Duration, now Clock) *Term {
	t := &Term{ttl: ttl, now: now}
	t.from = t.Mark()
	return t
}

// TTL is how long the lease lasts after a renewal.
func (t *Term) TTL() time.Duration { return t.ttl }

// Mark is this moment.
func (t *Term) Mark() Mark { return Mark{t.now(), time.Now()} }

// Renewed notes that a renewal succeeded that was sent after m.
func (t *Term) Renewed(m Mark) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.from = m
}

// RenewedAt is the moment before the last renewal that succeeded was sent.
func (t *Term) RenewedAt() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.from.at
}

// Remaining is how much longer no other node can have the lease; 0 or less once it has ended.
func (t *Term) Remaining() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return 0
	}
	return t.from.sent + t.ttl - t.now()
}

// Ended reports whether End was called.
func (t *Term) Ended() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended
}

// End ends the term and reports whether it had not ended before.
func (t *Term) End() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := !t.ended
	t.ended = true
	return first
}

// Slot holds the one lease that a node may have, and remembers by what name the service knows the one
// that it had before: nobody believes in that any more, so that it need not be waited for if it could not
// be given back. L is a lease, N the service's name for one; the zero name stands for none. It is safe for
// concurrent use.
type Slot[L any, N comparable] struct {
	mu     sync.Mutex
	lease  *L
	former N
}

// Had notes the name of a lease from before.
func (s *Slot[L, N]) Had(name N) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.former = name
}

// Lease returns the lease that is held, nil if there is none.
func (s *Slot[L, N]) Lease() *L {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lease
}

// Adopt makes lease the one that is held, unless there is one.
func (s *Slot[L, N]) Adopt(lease *L) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease != nil {
		return false
	}
	s.lease = lease
	return true
}

// Leave notes that lease, which has that name, has ended.
func (s *Slot[L, N]) Leave(lease *L, name N) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease == lease {
		s.lease, s.former = nil, name
	}
}

// IsFormer reports whether name is that of a lease of this node that has ended.
func (s *Slot[L, N]) IsFormer(name N) bool {
	var none N
	s.mu.Lock()
	defer s.mu.Unlock()
	return name != none && name == s.former
}
