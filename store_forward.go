package litefs

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/litefs/litefs/sqlitefile"
)

// This file borrows the primary's write lock for programs that do not know of it, on a mount that asks for each lock:
// docs/write-forwarding.md. Who asks for SQLite's WRITE lock on a replica waits, within bounds, until this node has it.

// Bounds in time of what is done for programs that do not ask for the lock by name.
const (
	// forwardPatience is how long a request for WRITE waits, from the moment at which the primary is asked; those that
	// come later do not wait at all. SQLite's busy handler does not count the time that a request takes: were each to wait
	// as long, a busy time-out would be many times as long as it says.
	forwardPatience = time.Second
	// forwardInterest is how long the primary is asked when no program asks any more. SQLite asks each 100 ms at least.
	forwardInterest = 2 * time.Second
	// forwardWarm is how long the lock is kept that no program uses. A program whose snapshot was older than what the
	// lock brought begins again, within 100 ms.
	forwardWarm = 200 * time.Millisecond
	// forwardSlice is how long one transaction may follow another. The primary's own writers cannot say that they wait.
	forwardSlice = time.Second
	// forwardRefused is how long nobody asks again after the primary has refused.
	forwardRefused = time.Second
	// forwardLookAgain is how soon it is looked again whether a program on the first of two mounts has ended its
	// transaction, of which nothing tells.
	forwardLookAgain = 20 * time.Millisecond
)

// LockKind is what a lock request asks for.
type LockKind int

// Kinds of a lock request.
const (
	LockNone LockKind = iota
	LockShared
	LockExclusive
)

// LockRequest is a change of the locks that an owner, a process or an open file, has on the bytes from Start to End of a
// file of the mount, both included.
type LockRequest struct {
	Path         string
	Owner        uint64
	Kind         LockKind
	Start, End   uint64
	Wait         bool
	Cancel, Over <-chan struct{} // closed when who asks is interrupted, and when the mount ends
}

func (l *LockRequest) covers(b uint64) bool { return l.Start <= b && b <= l.End }

// forwarding is what is known of the locks of programs on the wal-index of one database, and whether the primary's write
// lock is here for them.
type forwarding struct {
	mu sync.Mutex
	// reading has those that hold a READ slot: who asks for WRITE without one is no transaction, but a checkpoint, or a
	// reader that found the wal-index in mid-change. Or it is SQLite built with SQLITE_ENABLE_SETLK_TIMEOUT, which takes
	// WRITE first, and asks for nothing else until its time-out: see insists.
	reading map[uint64]byte // owner: its slots, a bit each
	bare    map[uint64]int  // owner without one: how often it has asked for WRITE and for nothing else
	ckpt    uint64          // owner that has CKPT, while copying
	copying bool
	writer  uint64 // owner that has WRITE, while writing
	writing bool
	ended   time.Time // the last time that WRITE was let go

	ask     *asking   // nil: the primary is not asked, and its lock not held for these programs
	asked   time.Time // the last time that a program wanted it
	refused time.Time // until then nobody asks again
	refusal error     // why the lock was not to be had when a program wanted it last; nil: it was
	changed chan struct{}

	wanted time.Time // the last time that a program of the primary found WRITE lent
}

// asking is one request for the primary's lock, and what comes of it.
type asking struct {
	until time.Time     // programs wait until then
	done  chan struct{} // closed when the lock is here, or will not come
}

func newForwarding() *forwarding {
	return &forwarding{reading: make(map[uint64]byte), bare: make(map[uint64]int), changed: make(chan struct{}, 1)}
}

// Lock is called for each request for a lock on the mount, and carries it out by take: nil, or EAGAIN when somebody else
// has it.
func (s *Store) Lock(l LockRequest, take func() error) error {
	if name, ok := s.HaltFile(l.Path); ok {
		if db := s.DBByName(name); db != nil {
			return s.lockHalt(db, l)
		}
	}
	name, typ := fileOf(l.Path)
	if typ != FileTypeSHM {
		return take()
	}
	db := s.DBByName(name)
	if db == nil {
		return take()
	}
	f := db.forwarding
	if l.Kind == LockExclusive && l.covers(sqlitefile.WALWriteLock) {
		if s.Role() == RoleReplica && (f.isReading(l.Owner) || f.insists(l.Owner)) {
			return s.lockWrite(db, l, take)
		}
		err := f.noted(l, take)
		if errors.Is(err, syscall.EAGAIN) && db.onLoan.Load() {
			f.wantedHere()
		}
		return err
	}
	err := take()
	if err == nil {
		f.note(l)
	} else {
		f.asksOther(l.Owner)
	}
	return err
}

// LocksDropped is called after an owner has let go of everything on a file.
func (s *Store) LocksDropped(path string, owner uint64) {
	whole := LockRequest{Owner: owner, End: math.MaxUint64}
	if path == "" { // its name is gone
		for _, db := range s.DBs() {
			db.forwarding.note(whole)
		}
		return
	}
	if name, ok := strings.CutSuffix(path, lockSuffix); ok {
		if db := s.DBByName(name); db != nil {
			s.unlockHalt(db, owner)
		}
	}
	if name, typ := fileOf(path); typ == FileTypeSHM {
		if db := s.DBByName(name); db != nil {
			db.forwarding.note(whole)
		}
	}
}

func (f *forwarding) isReading(owner uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reading[owner] != 0
}

// noted takes WRITE where it is free: for a transaction under a lock that is here already, it may be.
func (f *forwarding) noted(l LockRequest, take func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := take()
	if err == nil {
		f.writing, f.writer = true, l.Owner
	}
	return err
}

// insisting is how often in a row who holds no READ slot asks for WRITE until it is taken for a transaction. SQLite's
// readers ask once, and then for something else.
const insisting = 3

// insists reports whether an owner without a slot, which asks for WRITE again, means to write: a checkpoint has CKPT.
func (f *forwarding) insists(owner uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.copying && f.ckpt == owner {
		return false
	}
	f.bare[owner]++
	return f.bare[owner] >= insisting
}

func (f *forwarding) asksOther(owner uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.bare, owner)
}

func (f *forwarding) wantedHere() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wanted = time.Now()
}

// refusedWith is why programs of this replica cannot write, if one wanted to.
func (f *forwarding) refusedWith() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refusal == nil {
		return ""
	}
	return f.refusal.Error()
}

// isWanted reports whether a program of this node has found WRITE lent a moment ago.
func (f *forwarding) isWanted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.wanted.IsZero() && time.Since(f.wanted) < forwardWarm
}

// note keeps what a lock that was taken, or let go, says of its owner.
func (f *forwarding) note(l LockRequest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.bare, l.Owner)
	slots := f.reading[l.Owner]
	for i := range sqlitefile.WALReadLock4 - sqlitefile.WALReadLock0 + 1 {
		if !l.covers(uint64(sqlitefile.WALReadLock0 + i)) {
			continue
		}
		slots &^= 1 << i
		if l.Kind == LockShared {
			slots |= 1 << i
		}
	}
	switch {
	case !l.covers(sqlitefile.WALCkptLock):
	case l.Kind == LockExclusive:
		f.copying, f.ckpt = true, l.Owner
	case f.ckpt == l.Owner:
		f.copying = false
	}
	if slots == 0 {
		delete(f.reading, l.Owner)
	} else {
		f.reading[l.Owner] = slots
	}
	if l.Kind == LockNone && l.covers(sqlitefile.WALWriteLock) && f.writing && f.writer == l.Owner {
		f.writing, f.ended = false, time.Now()
		f.wake()
	}
}

func (f *forwarding) wake() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// lockWrite takes SQLite's WRITE lock of a replica's database for a program, under the primary's.
func (s *Store) lockWrite(db *DB, l LockRequest, take func() error) error {
	f := db.forwarding
	for s.Role() == RoleReplica {
		a, err := f.take(s, db, l, take)
		if a == nil {
			return err
		}
		wait := time.Until(a.until)
		if wait <= 0 {
			return syscall.EAGAIN
		}
		s.relieve()
		timer := time.NewTimer(wait)
		select {
		case <-a.done:
		case <-timer.C:
			err = syscall.EAGAIN
		case <-l.Cancel:
			err = syscall.EINTR
		case <-l.Over:
			err = syscall.EINTR
		}
		timer.Stop()
		if err != nil {
			return err
		}
	}
	return take()
}

// take takes the lock if the primary's is here. Otherwise it returns what has to be waited for, or why there is nothing.
func (f *forwarding) take(s *Store, db *DB, l LockRequest, take func() error) (*asking, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := db.borrowed.Load(); b != nil && b.usable() == nil {
		err := take()
		if err == nil {
			f.writing, f.writer = true, l.Owner
			delete(f.bare, l.Owner)
		}
		return nil, err
	}
	now := time.Now()
	if now.Before(f.refused) {
		return nil, syscall.EAGAIN
	}
	f.asked = now
	if f.ask == nil {
		if s.ctx.Err() != nil {
			return nil, syscall.EAGAIN // the node is stopping
		}
		a := &asking{until: now.Add(forwardPatience), done: make(chan struct{})}
		f.ask = a
		s.goRun(func() { s.forward(db, a) })
	}
	return f.ask, nil
}

// forward borrows the primary's lock, and keeps it while programs use it.
func (s *Store) forward(db *DB, a *asking) {
	f := db.forwarding
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	stop := f.whileAsked(func() { cancel(errNobodyAsks) })
	h, err := s.halt(ctx, db.Name(), true)
	stop()
	f.mu.Lock()
	f.ended = time.Now() // of the time without a transaction
	f.refusal = err
	if err != nil {
		f.ask = nil
		if !errors.Is(err, errNobodyAsks) {
			f.refused = f.ended.Add(forwardRefused)
		}
	}
	f.mu.Unlock()
	close(a.done)
	if err != nil {
		if s.ctx.Err() == nil {
			db.log().Warn("a program here wants to write, and gets SQLITE_BUSY: the primary's write lock is not to be had", "error", err)
		}
		return
	}
	if h.b != nil { // else this node has become the primary
		f.keep(h.b)
	}
	f.mu.Lock()
	f.ask = nil
	f.mu.Unlock()
}

var errNobodyAsks = errors.New("no program asks for the lock any more")

// whileAsked calls fn when no program has asked for a while, unless it is stopped.
func (f *forwarding) whileAsked(fn func()) (stop func()) {
	var timer *time.Timer
	timer = time.AfterFunc(time.Hour, func() {
		f.mu.Lock()
		rest := time.Until(f.asked.Add(forwardInterest))
		f.mu.Unlock()
		if rest > 0 {
			timer.Reset(rest)
			return
		}
		fn()
	})
	timer.Reset(forwardInterest)
	return func() { timer.Stop() }
}

// keep gives the lock back when another wants it, or no program here has used it for a while. Who is in a transaction
// ends it first.
func (f *forwarding) keep(b *borrowed) {
	began := time.Now()
	for {
		rest := f.rest(b, began)
		if rest <= 0 {
			return
		}
		timer := time.NewTimer(rest)
		select {
		case <-timer.C:
		case <-f.changed:
		case <-b.news:
		case <-b.over:
		case <-b.s.ctx.Done():
		}
		timer.Stop()
	}
}

// rest is how long the lock is kept unless something changes. Not positive: it is given back, or is lost.
func (f *forwarding) rest(b *borrowed, began time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	switch {
	case b.usable() != nil:
	case f.writing:
		return time.Hour // until something changes
	case b.commits.Load() > 0 && (b.wanted.Load() || now.Sub(began) > forwardSlice):
	default:
		if rest := f.ended.Add(forwardWarm).Sub(now); rest > 0 {
			return rest
		}
	}
	// Under f.mu: no program takes WRITE any more, but one on a mount whose locks the kernel keeps, which may have it.
	if b.usable() == nil && !b.db.shutWriters() {
		return forwardLookAgain
	}
	b.lose(errReleased)
	return 0
}
