package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/litefs/litefs/internal/halt"
)

// This file is the primary's side of a write lock that a replica borrows; db_lend.go is what that means for the files.

// lending is the write lock of one database of the primary.
type lending struct {
	// work is held while the database is given to a holder, while one of its transactions is committed, and while it is
	// taken back. Before DB.peering, DB.ingest and DB.mu.
	work semaphore
	over bool // under work: the hold of the holder has ended, and its end is not done yet

	mu      sync.Mutex // guards everything below, for moments
	lock    halt.Lock
	changed chan struct{} // closed at the next change of lock
}

func newLending() *lending {
	return &lending{work: newSemaphore(), lock: halt.Lock{Config: haltBounds}, changed: make(chan struct{})}
}

// do runs fn on the lock, and wakes those who wait if it says so.
func (l *lending) do(fn func(lock *halt.Lock) (changed bool)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if fn(&l.lock) {
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

// holder returns the hold, if there is one.
func (l *lending) holder() (h halt.Hold, held bool) {
	l.do(func(lock *halt.Lock) bool { h, held = lock.Holder(); return false })
	return h, held
}

// Bounds in time of what the primary does for a holder.
const (
	lendPatience  = 10 * time.Second // for local writers to end their transactions
	lendEndFor    = 10 * time.Second // to let them in again
	lendRetry     = time.Second      // after an end that failed
	handOverGrace = time.Second      // for a holder, before a hand-over ends its hold
)

// HasPeer reports whether this process itself writes to the file at path, through the mount.
func (s *Store) HasPeer(path string) bool {
	if s.Role() == RoleReplica {
		return true
	}
	if s.lentOut.Load() == 0 {
		return false
	}
	name, _ := fileOf(path)
	db := s.DBByName(name)
	return db != nil && db.onLoan.Load()
}

// mayLend says why the write lock of a database cannot be had now.
func (s *Store) mayLend(db *DB) error {
	switch {
	case s.ctx == nil || s.ctx.Err() != nil || s.withheld.Load():
		return errors.New("this node is stopping, or hands over: ask again")
	case s.Role() != RolePrimary:
		return ErrReadOnlyReplica
	case s.Guarded:
		return fmt.Errorf("%w: fuse.guardian is on at the primary, and the two do not go together yet", ErrNotLent)
	case db.ended.Load() || s.DB(db.id) != db:
		return ErrDatabaseNotFound
	case db.Pos().IsZero():
		return fmt.Errorf("%w: %s has no content yet: make it on the primary", ErrNotLent, db.Name())
	}
	return nil
}

// Lend gives the write lock of a database to who names token, when it is its turn. It waits until ctx ends. Errors:
// ErrNotLent, ErrReadOnlyReplica, ErrDatabaseNotFound, the context's.
func (s *Store) Lend(ctx context.Context, id uint32, token string) (g HaltGrant, err error) {
	db := s.DB(id)
	if db == nil {
		return g, ErrDatabaseNotFound
	}
	if token == "" {
		return g, fmt.Errorf("%w: no token", ErrNotLent)
	}
	l := db.lending
	l.do(func(lock *halt.Lock) bool { lock.Enter(token); return false })
	defer func() {
		if err != nil {
			l.do(func(lock *halt.Lock) bool { lock.Leave(token); return true })
		}
	}()
	for {
		if err := s.mayLend(db); err != nil {
			return g, err
		}
		var ok, fresh bool
		var wait halt.Time
		var changed chan struct{}
		l.do(func(lock *halt.Lock) bool {
			changed = l.changed
			h, held := lock.Holder()
			ok, wait = lock.Grant(haltNow(), token, s.reign.Load())
			fresh = ok && !(held && h.Token == token)
			return false
		})
		if fresh {
			s.goRun(func() { s.watchHold(db, token) })
		}
		if ok {
			return s.lend(ctx, db, token)
		}
		timer := time.NewTimer(min(max(time.Duration(wait), time.Millisecond), time.Second))
		select {
		case <-changed:
		case <-timer.C:
		case <-s.ctx.Done():
		case <-ctx.Done():
			timer.Stop()
			return g, fmt.Errorf("wait for the write lock of %s: %w", db.Name(), context.Cause(ctx))
		}
		timer.Stop()
	}
}

// lend brings local writers to their end, for a token that has the lock.
func (s *Store) lend(ctx context.Context, db *DB, token string) (g HaltGrant, err error) {
	l := db.lending
	if err := l.work.acquire(ctx); err != nil {
		return g, err
	}
	defer l.work.release()
	h, held := l.holder()
	if !held || h.Token != token || l.over {
		return g, ErrHaltLost // it was over before it began
	}
	if !db.onLoan.Load() {
		err := s.mayLend(db)
		if err == nil {
			err = db.lendOut(ctx, h.Epoch)
		}
		if err != nil {
			l.do(func(lock *halt.Lock) bool { return lock.End(haltNow(), token) })
			return g, fmt.Errorf("lend %s: %w", db.Name(), err)
		}
		l.do(func(lock *halt.Lock) bool { lock.Start(haltNow(), token); return false })
		db.log().Debug("the write lock is lent", "token", token[:min(8, len(token))])
	}
	head, _ := db.txlog.Head()
	return HaltGrant{
		Epoch: h.Epoch, Pos: Pos{TXID: head.Max, Chksum: head.Post},
		TTL: time.Duration(haltBounds.TTL), First: time.Duration(haltBounds.First),
	}, nil
}

// watchHold ends a hold that is not renewed, or whose end has failed.
func (s *Store) watchHold(db *DB, token string) {
	l := db.lending
	for {
		h, held := l.holder()
		if !held || h.Token != token {
			return
		}
		wait := time.Duration(h.Until - haltNow())
		if wait <= 0 {
			ctx, cancel := context.WithTimeout(s.ctx, lendEndFor)
			err := s.endHold(ctx, db, token, false, func(lock *halt.Lock) bool { return lock.Expired(haltNow()) })
			cancel()
			if err != nil && s.ctx.Err() == nil {
				db.log().Error("the write lock of a holder that is gone cannot be taken back yet; tried again", "error", err)
			}
			wait = lendRetry
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			timer.Stop()
			return
		}
	}
}

// RenewHold prolongs the hold of token. ErrHaltLost: it is over.
func (s *Store) RenewHold(id uint32, token string) (HaltNews, error) {
	db := s.DB(id)
	if db == nil || s.Role() != RolePrimary {
		return HaltNews{}, ErrHaltLost
	}
	return db.renewHeld(token)
}

func (db *DB) renewHeld(token string) (news HaltNews, err error) {
	db.lending.do(func(lock *halt.Lock) bool {
		err = lock.Renew(haltNow(), token)
		news.Wanted = lock.Waiting() > 0
		return false
	})
	if err != nil {
		return news, ErrHaltLost
	}
	news.Wanted = news.Wanted || db.forwarding.isWanted()
	return news, nil
}

// ReleaseHold ends the hold of token, whose holder has nothing under way. One that is over stays so.
func (s *Store) ReleaseHold(ctx context.Context, id uint32, token string) error {
	db := s.DB(id)
	if db == nil {
		return nil
	}
	db.lending.do(func(lock *halt.Lock) bool { lock.Leave(token); return true })
	return s.endHold(ctx, db, token, true, func(*halt.Lock) bool { return true })
}

// endHold takes the database back from token, if it has it and still says so when nothing is under way. clean: the
// holder has let go of it itself. On an error the holder has lost it, and nobody else has it yet.
func (s *Store) endHold(ctx context.Context, db *DB, token string, clean bool, still func(lock *halt.Lock) bool) error {
	l := db.lending
	if err := l.work.acquire(ctx); err != nil {
		return err
	}
	defer l.work.release()
	return s.endHoldLocked(db, token, clean, still)
}

// endHoldLocked is endHold with lending.work held.
func (s *Store) endHoldLocked(db *DB, token string, clean bool, still func(lock *halt.Lock) bool) error {
	l := db.lending
	mine := false
	l.do(func(lock *halt.Lock) bool {
		h, held := lock.Holder()
		mine = held && h.Token == token && (l.over || still(lock))
		return false
	})
	if !mine {
		return nil
	}
	l.over = true
	l.do(func(lock *halt.Lock) bool { lock.Cut(haltNow(), token); return false })
	if db.onLoan.Load() {
		ctx, cancel := context.WithTimeout(context.Background(), lendEndFor) // also while the store closes
		defer cancel()
		if err := db.takeBackLent(ctx, clean); err != nil {
			return fmt.Errorf("take %s back: %w", db.Name(), err)
		}
		level := slog.LevelDebug
		if !clean {
			level = slog.LevelInfo
		}
		db.log().Log(context.Background(), level, "the write lock is back", "released", clean)
	}
	l.over = false
	l.do(func(lock *halt.Lock) bool { return lock.End(haltNow(), token) })
	return nil
}

// endHolds takes all databases back, before this node's role changes. Holders get a grace to release them.
func (s *Store) endHolds(ctx context.Context, grace time.Duration) error {
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	return s.each(func(db *DB) error {
		l := db.lending
		for waiting := grace > 0; waiting; {
			var changed chan struct{}
			held := false
			l.do(func(lock *halt.Lock) bool { _, held = lock.Holder(); changed = l.changed; return false })
			if !held {
				return nil
			}
			timer := time.NewTimer(grace)
			select {
			case <-changed:
			case <-timer.C:
				waiting = false
			case <-ctx.Done():
				waiting = false
			}
			timer.Stop()
		}
		h, held := l.holder()
		if !held {
			return nil
		}
		return s.endHold(ctx, db, h.Token, false, func(*halt.Lock) bool { return true })
	})
}

// CommitHeld makes a transaction of the holder of token one of the database: an LTX file of size bytes. Errors:
// ErrHaltLost, ErrNotJoined; after any other it may have been committed.
func (s *Store) CommitHeld(ctx context.Context, id uint32, token string, tx HaltTx, ltx io.Reader, size int64) (HaltNews, error) {
	db := s.DB(id)
	if db == nil || s.Role() != RolePrimary {
		return HaltNews{}, ErrHaltLost
	}
	if err := s.commitHeld(ctx, db, token, tx, ltx, size); err != nil {
		return HaltNews{}, err
	}
	// It is committed, whether the hold is over by now or not.
	news, err := db.renewHeld(token)
	if err != nil {
		db.log().Debug("a hold has ended behind its transaction", "error", err)
	}
	return news, nil
}

func (s *Store) commitHeld(ctx context.Context, db *DB, token string, tx HaltTx, ltx io.Reader, size int64) error {
	if err := db.checkHeld(token, tx); err != nil {
		return err // before anything is read
	}
	in, err := db.receiveHeld(tx, ltx, size)
	if err != nil {
		return err
	}
	defer in.close()
	l := db.lending
	if err := l.work.acquire(ctx); err != nil {
		return err
	}
	defer l.work.release()
	if l.over || !db.onLoan.Load() || s.Role() != RolePrimary {
		return ErrHaltLost
	}
	if err := db.checkHeld(token, tx); err != nil {
		return err
	}
	unlogged, err := db.commitLent(in)
	if unlogged {
		// Readers see it: it is captured like any commit, and is no more the holder's than anybody's.
		return errors.Join(err, s.endHoldLocked(db, token, true, func(*halt.Lock) bool { return true }))
	}
	if errors.Is(err, errTakenBack) {
		// What the holder goes on from is not the end of the log any more. Its TXID is taken: there is nothing to fence.
		return errors.Join(err, s.endHoldLocked(db, token, true, func(*halt.Lock) bool { return true }))
	}
	if err != nil {
		return err
	}
	if s.Role() != RolePrimary {
		return errors.New("this node is not the primary any more")
	}
	return nil
}

// checkHeld is halt.Lock.Check at the database's head.
func (db *DB) checkHeld(token string, tx HaltTx) (err error) {
	head, _ := db.txlog.Head()
	db.lending.do(func(lock *halt.Lock) bool {
		err = lock.Check(haltNow(), token, db.store.reign.Load(), halt.Pos{TXID: head.Max, Sum: head.Post}, tx.pure())
		return false
	})
	switch {
	case errors.Is(err, halt.ErrLost):
		return fmt.Errorf("%w: %w", ErrHaltLost, err)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrNotJoined, err)
	}
	return nil
}

// HeldOutcome says what became of a transaction of token. If it is not committed it never will be: a hold of token ends
// with the answer.
func (s *Store) HeldOutcome(ctx context.Context, id uint32, token string, tx HaltTx) (HaltOutcome, error) {
	db := s.DB(id)
	if db == nil {
		return HaltUnknown, ErrDatabaseNotFound
	}
	l := db.lending
	if err := l.work.acquire(ctx); err != nil {
		return HaltUnknown, err
	}
	defer l.work.release()
	out, err := db.outcome(tx)
	if err == nil && out != HaltCommitted {
		err = s.endHoldLocked(db, token, false, func(*halt.Lock) bool { return true })
		if err == nil {
			out, err = db.outcome(tx)
		}
	}
	if err == nil && out == HaltCommitted {
		err = db.promiseKept()
	}
	if err == nil && s.Role() != RolePrimary {
		err = ErrReadOnlyReplica
	}
	if err != nil {
		return HaltUnknown, fmt.Errorf("outcome of transaction %016x of %s: %w", tx.Post.TXID, db.Name(), err)
	}
	return out, nil
}

// outcome reads it from the log.
func (db *DB) outcome(tx HaltTx) (HaltOutcome, error) {
	if err := db.Settle(); err != nil { // what a hold that broke has left in the write-ahead log
		return HaltUnknown, err
	}
	db.mu.Lock()
	u := db.undecided
	db.mu.Unlock()
	if u != nil && !u.journal && u.pos.TXID <= tx.Post.TXID {
		return HaltUnknown, fmt.Errorf("transaction %016x is not decided yet", u.pos.TXID)
	}
	return db.resolve(tx), nil
}

// resolve is halt.Resolve with the log here.
func (db *DB) resolve(tx HaltTx) HaltOutcome {
	head, _ := db.txlog.Head()
	e, found := db.txlog.Find(tx.Post.TXID)
	next, ok := db.txlog.Find(tx.Post.TXID + 1)
	return HaltOutcome(halt.Resolve(tx.pure(), halt.Pos{TXID: head.Max, Sum: head.Post}, halt.Entry{
		Min: e.Min, Max: e.Max, Post: e.Post, Epoch: e.Epoch, TakenBack: found && ok && next.TakesBack(e),
	}, found))
}
