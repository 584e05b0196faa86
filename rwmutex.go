package litefs

import "sync"

// RWMutexState represents the lock state of an RWMutex or RWMutexGuard.
type RWMutexState int

// States of an RWMutex.
const (
	RWMutexStateUnlocked = iota
	RWMutexStateShared
	RWMutexStateExclusive
)

// RWMutex is a reader/writer mutual exclusion lock. It wraps the sync package
// to provide additional capabilities such as lock upgrades & downgrades. It
// only supports TryLock() & TryRLock() as that is what's supported by our
// FUSE file system.
//
// The zero value is unlocked. Nothing here ever waits for a lock.
type RWMutex struct {
	mu sync.Mutex // guards the fields below and the state of every guard of this mutex

	// Either excl is set and shared is 0, or excl is nil.
	shared int           // guards that hold it shared
	excl   *RWMutexGuard // the guard that holds it exclusively
}

// State returns whether the mutex has a exclusive lock, one or more shared
// locks, or if the mutex is unlocked.
func (rw *RWMutex) State() RWMutexState {
	rw.mu.Lock()
	defer rw.mu.Unlock()
	switch {
	case rw.excl != nil:
		return RWMutexStateExclusive
	case rw.shared > 0:
		return RWMutexStateShared
	}
	return RWMutexStateUnlocked
}

// TryLock tries to lock the mutex for writing and returns a guard if it
// succeeds, nil otherwise.
func (rw *RWMutex) TryLock() *RWMutexGuard {
	rw.mu.Lock()
	defer rw.mu.Unlock()
	if !rw.canLock() {
		return nil
	}
	g := &RWMutexGuard{rw: rw, state: RWMutexStateExclusive}
	rw.excl = g
	return g
}

// CanLock returns true if the write lock could be acquired.
func (rw *RWMutex) CanLock() bool {
	rw.mu.Lock()
	defer rw.mu.Unlock()
	return rw.canLock()
}

// TryRLock tries to lock rw for reading and returns a guard if it succeeds,
// nil otherwise.
func (rw *RWMutex) TryRLock() *RWMutexGuard {
	rw.mu.Lock()
	defer rw.mu.Unlock()
	if !rw.canRLock() {
		return nil
	}
	rw.shared++
	return &RWMutexGuard{rw: rw, state: RWMutexStateShared}
}

// CanRLock returns true if the read lock could be acquired.
func (rw *RWMutex) CanRLock() bool {
	rw.mu.Lock()
	defer rw.mu.Unlock()
	return rw.canRLock()
}

func (rw *RWMutex) canLock() bool  { return rw.excl == nil && rw.shared == 0 }
func (rw *RWMutex) canRLock() bool { return rw.excl == nil }

// RWMutexGuard is a reference to a held lock. After Unlock it holds nothing and can gain nothing:
// its methods then report false or do nothing, and leave the mutex to those that hold it.
type RWMutexGuard struct {
	rw    *RWMutex
	state RWMutexState // guarded by rw.mu
}

// TryLock upgrades the lock from a shared lock to an exclusive lock, if no
// other guard holds the mutex, and reports whether the guard is exclusive now.
// This is a no-op if the lock is already an exclusive lock.
func (g *RWMutexGuard) TryLock() bool {
	g.rw.mu.Lock()
	defer g.rw.mu.Unlock()
	if !g.canLock() {
		return false
	}
	g.rw.shared, g.rw.excl = 0, g
	g.state = RWMutexStateExclusive
	return true
}

// CanLock returns true if the guard can become an exclusive lock.
func (g *RWMutexGuard) CanLock() bool {
	g.rw.mu.Lock()
	defer g.rw.mu.Unlock()
	return g.canLock()
}

func (g *RWMutexGuard) canLock() bool {
	switch g.state {
	case RWMutexStateExclusive:
		return true
	case RWMutexStateShared:
		return g.rw.shared == 1 // the one is g
	}
	return false
}

// RLock downgrades the lock from an exclusive lock to a shared lock. This is a
// no-op if the lock is already a shared lock.
func (g *RWMutexGuard) RLock() {
	g.rw.mu.Lock()
	defer g.rw.mu.Unlock()
	if g.state != RWMutexStateExclusive {
		return
	}
	g.rw.shared, g.rw.excl = 1, nil
	g.state = RWMutexStateShared
}

// Unlock unlocks the underlying mutex. Guard must be discarded after Unlock().
func (g *RWMutexGuard) Unlock() {
	g.rw.mu.Lock()
	defer g.rw.mu.Unlock()
	switch g.state {
	case RWMutexStateExclusive:
		g.rw.excl = nil
	case RWMutexStateShared:
		g.rw.shared--
	}
	g.state = RWMutexStateUnlocked
}
