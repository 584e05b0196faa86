package litefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/peer"
	"github.com/litefs/litefs/internal/role"
	"github.com/litefs/litefs/sqlitefile"
)

// This file goes on where a daemon that died has left a mount which lives: applications have files open, may be in the
// middle of a transaction, and wait for an answer. Nothing that was written is lost then, for the kernel has gone on, and
// no file may be touched: a journal that looks hot has an owner, or SQLite plays it back at its next read. So recovery
// only brings the record up to date, and notes what has to be compared.

// OpenFile is a file of the tree that applications have open.
type OpenFile struct {
	Path              string // relative to the mount
	Handles, Writable int
	Passthrough       bool
	Sized             bool // its size was set since it was first opened
}

// TakeOver tells the store, before Open, that its tree is in use already: it is visible at dir, and files are open. ours
// is the lock of the data directory, which the process before has kept from being free; nil: it is to be taken.
func (s *Store) TakeOver(dir string, passthrough bool, files []OpenFile, ours *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live, s.mountDir, s.passthrough, s.lockFile = true, dir, passthrough, ours
	for _, f := range files {
		s.opens[f.Path] = &openFile{handles: f.Handles, writers: f.Writable, begun: f.Sized}
		s.unseen[f.Path] = f.Passthrough
	}
}

// LockFile is the open lock of the data directory: whoever holds a copy of its descriptor holds the directory.
func (s *Store) LockFile() *os.File { return s.lockFile }

// takenOver looks at every database once the mount answers again: what applications committed meanwhile is captured.
func (s *Store) takenOver() {
	for _, db := range s.DBs() {
		db.poke()
	}
}

// How long applications wait for the lease service when a primary's daemon is followed by another one. After it they may
// read. Writers are in meanwhile, whose lease runs out where the daemon before was to have shut them out: then there is
// time for a question or two.
const (
	resumeTimeout = 2 * time.Second
	resumeAtLeast = 200 * time.Millisecond
)

func (s *Store) resumePatience() time.Duration {
	if s.Watchdog != nil {
		if left, ok := s.Watchdog.DeadlineBefore(); ok {
			return min(max(left-time.Duration(watchGrace), resumeAtLeast), resumeTimeout)
		}
	}
	return resumeTimeout
}

// settleLive settles the role on a mount that is in use. A primary whose daemon has died goes on with its lease, under its
// epoch, before applications get an answer: for them nothing has happened. Whoever cannot has no lease, and its writers are
// shut out once the mount answers.
func (s *Store) settleLive(ctx context.Context, reg Registry) error {
	s.roles = newRoleLoop(s, reg)
	if s.lastRole != RolePrimary {
		return s.becomeReplica()
	}
	ctx, cancel := context.WithTimeout(ctx, s.resumePatience())
	defer cancel()
	if err := s.roles.resume(ctx); err != nil {
		s.Logger.Warn("this node does not go on as the primary", "reason", err)
		s.roles.release()
		return s.becomeReplica()
	}
	if err := s.becomePrimary(nil); err != nil {
		return err
	}
	s.syncOnce.Do(func() { close(s.synced) })
	return nil
}

// resume takes the lease of the process before. An error: somebody else has reigned, or may have, or the service does not
// answer.
func (l *roleLoop) resume(ctx context.Context) error {
	const pause = 50 * time.Millisecond
	lease, err := l.s.Leaser.Acquire(ctx)
	for err != nil {
		if errors.Is(err, ErrPrimaryExists) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
		lease, err = l.s.Leaser.Acquire(ctx)
	}
	fenced, ok := lease.(FencedLease)
	if !ok {
		return errors.Join(fmt.Errorf("%v: its lease has no fencing token", l.s.Leaser), lease.Close())
	}
	l.mu.Lock()
	l.lease = fenced
	l.mu.Unlock()
	epoch, err := l.s.readEpoch()
	if err != nil {
		return err
	}
	r, err := l.reg.Record(ctx)
	if err != nil {
		return err
	}
	if r.NodeID != l.s.nodeID || r.Epoch != epoch || r.Successor != "" {
		return fmt.Errorf("the last reign was epoch %d of node %s with successor %q, want %d of %s", r.Epoch, r.NodeID, r.Successor, epoch, l.s.nodeID)
	}
	fenceAt := heldFrom(fenced) + role.Time(fenced.TTL()) - role.Margin(role.Time(fenced.TTL()))
	l.s.fenceAt.Store(int64(fenceAt))
	l.watchUntil(fenceAt + watchGrace)
	return nil
}

// errUnfinishedRecord is a record that has no entry yet: its database is recorded anew when it is written next.
var errUnfinishedRecord = fmt.Errorf("its first entry was never written: %w", errFileGone)

// recoverLive brings the record of a database that may be in use to the log's head. db.mu is held.
func (db *DB) recoverLive() error {
	if _, err := os.Stat(db.DatabasePath()); errors.Is(err, fs.ErrNotExist) {
		return errFileGone
	} else if err != nil {
		return err
	}
	f, err := db.look()
	if err != nil {
		return err
	}
	f.clean, f.lost = false, false
	for _, d := range db.txlog.Dropped() {
		db.log().Warn("a log entry at the end was cut off and is dropped", "txid", d.Min, "durable", d.Durable, "error", d.Err)
	}
	if db.store.lastRole == RoleReplica {
		return db.recoverLiveReplica(f)
	}
	if !f.logged {
		return errUnfinishedRecord
	}
	ok, err := db.reconcileSums(f)
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("page checksums do not match the log: they are rebuilt when no application has the database open")
	}
	return db.findPlace()
}

// findPlace finds where captures go on.
func (db *DB) findPlace() error {
	if err := db.openWALNow(); err != nil {
		return err
	}
	if !db.locateLive() {
		db.at, db.allDirty = capture.WALPos{}, true
	}
	journaled, err := db.mayBeJournaled()
	if err != nil {
		return err
	}
	if journaled {
		// The pages noted since the last transaction died with the daemon.
		db.allDirty = true
		db.unjournaled.Store(db.store.isOpen(db.Name()))
	}
	if journalHot(db.JournalPath()) {
		// The sync of the database that its end is to wait for may have died with the daemon.
		if err := db.beginSync(); err != nil {
			return err
		}
	}
	db.leftWAL = db.wal == nil && db.store.writesUnseen(db.Name())
	return nil
}

// locateLive is locate for a write-ahead log that may be written meanwhile. false: where the log's head ends is not known.
func (db *DB) locateLive() bool {
	for range 20 {
		state, err := db.locate()
		// A log that restarts while it is read looks shorter than it was.
		if err == nil && state != walBehind {
			return true
		}
		<-time.After(time.Millisecond) // writers have no wake-up for us
	}
	return false
}

// mayBeJournaled reports whether pages may have been written other than to a write-ahead log.
func (db *DB) mayBeJournaled() (bool, error) {
	if journalHot(db.JournalPath()) {
		return true, nil
	}
	file, err := os.Open(db.DatabasePath())
	if err != nil {
		return false, err
	}
	defer file.Close() //nolint:errcheck // read only
	hdr, _, err := readHeader(file)
	if errors.Is(err, sqlitefile.ErrNotDatabase) {
		return true, nil
	}
	return !hdr.IsWAL(), err
}

// recoverLiveReplica notes the entries that the files may lack: the peer, which writes as SQLite does, applies them again.
func (db *DB) recoverLiveReplica(f found) error {
	if !f.logged {
		db.stale = true
		return nil
	}
	applied := db.sums.Stamp().TXID // it moves only when the files have
	ok, _, err := db.sumsToHead(f)
	if err != nil {
		return err
	}
	interrupted, err := db.recovering()
	if err != nil {
		return err
	}
	if !ok || interrupted {
		db.stale = true
		db.log().Warn("page checksums do not match the log: a snapshot is fetched from the primary")
		return nil
	}
	for _, e := range db.txlog.Entries() {
		if e.Max <= applied {
			continue
		}
		db.redo = append(db.redo, e)
		db.stale = db.stale || e.PageSize != db.sums.PageSize()
	}
	if len(db.redo) > 0 && db.redo[0].Min > applied+1 {
		db.stale = true
	}
	if db.stale {
		db.redo = nil
	}
	return nil
}

// applyAgain writes the pages of the entries that the daemon before was cut off from applying. Several are shown together,
// so readers may be at the end of any of those already: one by one they would bring back pages of the past beside pages of
// the present. What that daemon may have shown at once becomes visible at once. Their checksums are on record. db.mu is held.
func (db *DB) applyAgain(ctx context.Context) error {
	for len(db.redo) > 0 {
		n := together(db.redo, AllDecided, AllDecided)
		if err := db.showAgain(ctx, db.redo[:n]); err != nil {
			return fmt.Errorf("apply entry %016x again: %w", db.redo[0].Min, err)
		}
		db.redo = db.redo[n:]
	}
	return nil
}

// showAgain is applyAgain for entries that are shown together.
func (db *DB) showAgain(ctx context.Context, run []ltxlog.Entry) error {
	last := run[len(run)-1]
	pages, err := db.pagesOf(run)
	if err != nil {
		return err
	}
	if err := db.peer.Apply(ctx, last.Commit, last.PageSize, pages); err != nil {
		return err
	}
	if err := db.sums.Mark(last.Max); err != nil {
		return err
	}
	db.publishAt(last)
	db.store.MarkDirty(db.id)
	return nil
}

// pagesOf gives, of each page that the entries have, the last. None is kept in memory.
func (db *DB) pagesOf(run []ltxlog.Entry) (peer.Pages, error) {
	last := run[len(run)-1]
	if len(run) == 1 {
		return func(yield func(pgno uint32, data []byte) error) error { return db.txlog.Stream(last, yield) }, nil
	}
	in := make(map[uint32]ltxlog.Entry)
	for _, e := range run {
		err := db.txlog.Stream(e, func(pgno uint32, _ []byte) error {
			if pgno <= last.Commit {
				in[pgno] = e
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return func(yield func(pgno uint32, data []byte) error) error {
		for _, pgno := range slices.Sorted(maps.Keys(in)) {
			data, ok, err := db.txlog.Page(in[pgno], pgno)
			if err == nil && !ok {
				err = fmt.Errorf("page %d is not in entry %016x any more", pgno, in[pgno].Max)
			}
			if err == nil {
				err = yield(pgno, data)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}, nil
}
