package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/litefs/litefs/sqlitefile"
	"golang.org/x/sys/unix"
)

// lock kinds, as in struct flock.
const (
	shared    = unix.F_RDLCK
	exclusive = unix.F_WRLCK
	unlocked  = unix.F_UNLCK
)

// setLock changes the open-file-description lock on n bytes from start, and
// says whether it could. It never waits. From shared to exclusive and back the
// change is one step: a failure leaves the lock that was held.
func setLock(f *file, kind int16, start, n int64) (bool, error) {
	lk := unix.Flock_t{Type: kind, Start: start, Len: n}
	for {
		err := unix.FcntlFlock(f.locks().Fd(), unix.F_OFD_SETLK, &lk)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
			return false, nil
		default:
			return false, fmt.Errorf("lock bytes %d+%d of %s: %w", start, n, f.Name(), err)
		}
	}
}

// unlock lets go of a lock that is held.
func unlock(f *file, start, n int64) error {
	_, err := setLock(f, unlocked, start, n)
	return err
}

// onlyBaseLocks lets go of the locks that a Peer takes for moments.
func onlyBaseLocks(f *file) error {
	if f.suffix == "" {
		err := unlock(f, sqlitefile.PendingByte, 1)
		_, serr := setLock(f, shared, sqlitefile.SharedFirst, sqlitefile.SharedSize)
		return errors.Join(err, serr)
	}
	return unlock(f, sqlitefile.WALCkptLock, sqlitefile.WALDMSLock-sqlitefile.WALCkptLock)
}

// lockHeld says whether somebody else holds a lock on the byte.
func lockHeld(f *file, at int64) (bool, error) {
	lk := unix.Flock_t{Type: exclusive, Start: at, Len: 1}
	if err := unix.FcntlFlock(f.locks().Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return false, fmt.Errorf("ask for lock on byte %d of %s: %w", at, f.Name(), err)
	}
	return lk.Type != unlocked, nil
}

// Bounds of the pause between two attempts to get a lock.
const (
	minPause = 100 * time.Microsecond
	maxPause = 20 * time.Millisecond

	eagerPause = time.Millisecond // instead of maxPause: see Options.Eager
)

// poll calls try until it says yes, fails, or ctx ends.
func poll(ctx context.Context, what string, try func() (bool, error)) error {
	return pollEvery(ctx, maxPause, what, try)
}

// pollEvery is poll with the longest pause between two calls.
func pollEvery(ctx context.Context, most time.Duration, what string, try func() (bool, error)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pause := minPause; ; pause = min(2*pause, most) {
		if ok, err := try(); ok || err != nil {
			return err
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-timer.C:
		}
	}
}

// trySharedDB takes SHARED as unixLock does: PENDING keeps new readers out
// while a writer waits for the old ones.
func (p *Peer) trySharedDB() (bool, error) {
	if ok, err := setLock(p.db, shared, sqlitefile.PendingByte, 1); !ok || err != nil {
		return false, err
	}
	ok, err := setLock(p.db, shared, sqlitefile.SharedFirst, sqlitefile.SharedSize)
	return ok, errors.Join(err, unlock(p.db, sqlitefile.PendingByte, 1))
}

// tryExclusive turns SHARED into EXCLUSIVE: no connection of another process is
// reading, or has the WAL open.
func (p *Peer) tryExclusive() (bool, error) {
	return setLock(p.db, exclusive, sqlitefile.SharedFirst, sqlitefile.SharedSize)
}

// toShared turns EXCLUSIVE back into SHARED.
func (p *Peer) toShared() error {
	_, err := setLock(p.db, shared, sqlitefile.SharedFirst, sqlitefile.SharedSize)
	return err
}

// pendingAfter is how long lockExclusive hopes for a moment without readers
// before it keeps new ones out.
const pendingAfter = 500 * time.Millisecond

// lockExclusive turns SHARED into EXCLUSIVE when the readers have gone. Readers
// that overlap without end would never let it: after a while it takes PENDING,
// as every writer in a rollback mode does.
func (p *Peer) lockExclusive(ctx context.Context) error {
	pendingAt := time.Now().Add(pendingAfter)
	pending := false
	err := poll(ctx, "readers in rollback mode to end", func() (ok bool, err error) {
		if !pending && time.Now().After(pendingAt) {
			if pending, err = setLock(p.db, exclusive, sqlitefile.PendingByte, 1); err != nil {
				return false, err
			}
		}
		return p.tryExclusive()
	})
	if pending {
		err = errors.Join(err, unlock(p.db, sqlitefile.PendingByte, 1))
	}
	return err
}

// lockDatabase takes SHARED and RESERVED. SHARED is let go between attempts:
// a writer that has RESERVED needs it gone to commit.
//
// A journal is looked for before RESERVED is taken, because readers ignore it
// then, and after, because its writer may have died in between.
func (p *Peer) lockDatabase(ctx context.Context) error {
	return pollEvery(ctx, p.opt.pause, "local writers to end", func() (bool, error) {
		if ok, err := p.trySharedDB(); !ok || err != nil {
			return false, err
		}
		ok, err := p.tryReserved()
		if !ok || err != nil {
			err = errors.Join(err, unlock(p.db, sqlitefile.SharedFirst, sqlitefile.SharedSize))
		}
		return ok, err
	})
}

func (p *Peer) tryReserved() (bool, error) {
	hot, err := p.journalWithContent()
	if err != nil {
		return false, err
	}
	if hot {
		held, err := lockHeld(p.db, sqlitefile.ReservedByte)
		if err == nil && !held {
			err = ErrHotJournal
		}
		return false, err
	}
	if ok, err := setLock(p.db, exclusive, sqlitefile.ReservedByte, 1); !ok || err != nil {
		return false, err
	}
	if hot, err = p.journalWithContent(); err == nil && hot {
		err = ErrHotJournal
	}
	if err != nil {
		return false, errors.Join(err, unlock(p.db, sqlitefile.ReservedByte, 1))
	}
	return true, nil
}

// journalWithContent says whether a rollback journal would be played back if
// its writer were dead (pager.c, hasHotJournal): it exists, does not start with
// a zero byte, and the database is not empty.
func (p *Peer) journalWithContent() (bool, error) {
	fi, err := p.db.Stat()
	if err != nil || fi.Size() == 0 {
		return false, err
	}
	f, err := os.Open(p.opt.realPath() + "-journal")
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	var first [1]byte
	n, err := readAtMost(f, first[:], 0)
	return n == 1 && first[0] != 0, err
}
