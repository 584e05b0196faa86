package litefs

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"time"
)

// This file is the file NAME-lock beside a database, on a mount that asks for each lock: who has a lock on its byte 72
// has the primary's write lock, as with LiteFS 0.5. docs/write-forwarding.md.

const (
	lockSuffix = "-lock"
	haltByte   = 72

	haltFileTry     = time.Second     // that a request which is not to wait waits all the same: the primary is asked
	haltFileRelease = 5 * time.Second // for a local program that is in a transaction
)

// haltFile is who has the lock by the file.
type haltFile struct {
	mu    sync.Mutex
	owner uint64
	halt  *Halt // nil: nobody
	busy  bool  // it is asked for, or given back
}

// HaltFile reports whether path is such a file, and names the database, whose owner and mode it has.
func (s *Store) HaltFile(path string) (name string, ok bool) {
	name, ok = strings.CutSuffix(path, lockSuffix)
	return name, ok && s.ForwardedLocks && s.DBByName(name) != nil
}

// lockHalt carries out a request for a lock on the file of db.
func (s *Store) lockHalt(db *DB, l LockRequest) error {
	f := &db.haltFile
	switch {
	case l.Kind == LockNone:
		if l.covers(haltByte) {
			s.unlockHalt(db, l.Owner)
		}
		return nil
	case l.Start != haltByte || l.End != haltByte || l.Kind != LockExclusive:
		return syscall.EINVAL
	}
	f.mu.Lock()
	mine := f.halt != nil && f.owner == l.Owner
	free := f.halt == nil && !f.busy
	if free {
		f.busy = true
	}
	f.mu.Unlock()
	switch {
	case mine:
		return nil
	case !free:
		return syscall.EAGAIN
	}
	s.relieve()
	h, err := s.haltFor(db, l)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy = false
	if err == nil {
		f.owner, f.halt = l.Owner, h
	}
	return err
}

// haltFor borrows the lock, for as long as l says.
func (s *Store) haltFor(db *DB, l LockRequest) (*Halt, error) {
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	var timeout <-chan time.Time
	if !l.Wait {
		timer := time.NewTimer(haltFileTry)
		defer timer.Stop()
		timeout = timer.C
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-l.Cancel:
			cancel(syscall.EINTR)
		case <-l.Over:
			cancel(syscall.EINTR)
		case <-timeout:
			cancel(syscall.EAGAIN)
		case <-done:
		}
	})
	h, err := s.halt(ctx, db.Name(), false)
	close(done)
	wg.Wait()
	var errno syscall.Errno
	if err != nil && errors.As(context.Cause(ctx), &errno) {
		return nil, errno
	}
	return h, err
}

// unlockHalt gives the lock back, if it is of owner.
func (s *Store) unlockHalt(db *DB, owner uint64) {
	f := &db.haltFile
	f.mu.Lock()
	h := f.halt
	if h == nil || f.owner != owner {
		f.mu.Unlock()
		return
	}
	f.halt, f.busy = nil, true
	f.mu.Unlock()
	s.relieve()
	ctx, cancel := context.WithTimeout(context.Background(), haltFileRelease)
	defer cancel()
	if err := h.Release(ctx); err != nil { // it goes on without us
		db.log().Warn("the lock file is let go while a program here is in a transaction", "error", err)
	}
	f.mu.Lock()
	f.busy = false
	f.mu.Unlock()
}
