package litefs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/ltxlog"
)

// What an archive (docs/archive.md) needs of a database: its log, in order and durable, whether a
// position of the archive is on its history, and all of its pages where the log does not reach.

// LogPart is an entry of the log of a database.
type LogPart struct {
	Min, Max         uint64 // first and last transaction
	Post             uint64 // rolling checksum after it
	Epoch            uint64
	Commit, PageSize uint32 // pages of the database after it (0: it was dropped); bytes
	Size             int64  // bytes in the log, compressed
	Time             time.Time
	TakesBack        bool // all that it does is to bring back what was before the entry before it, whose commit was refused

	entry ltxlog.Entry
}

// LogAfter returns the entries of the log that hold transactions after txid, oldest first, as far as
// they are durable and decided, or wait for archives to have them. The first may begin before that.
// ErrSnapshotNeeded: the log does not reach back so far.
func (db *DB) LogAfter(txid uint64) ([]LogPart, error) {
	if db.ended.Load() {
		return nil, ErrDatabaseNotFound
	}
	visible := max(db.Pos().TXID, db.offeredTXID())
	if visible <= txid {
		return nil, nil
	}
	if db.txlog.Durable() < visible {
		db.syncLog() // what it cannot make durable is not below; a commit that waits for us is, and has db.mu
	}
	until := min(visible, db.txlog.Durable())
	var parts []LogPart
	var before ltxlog.Entry
	for _, e := range db.txlog.Entries() {
		takesBack := e.TakesBack(before)
		before = e
		if e.Max <= txid || e.Max > until {
			continue
		}
		if len(parts) == 0 && e.Min > txid+1 {
			return nil, ErrSnapshotNeeded
		}
		parts = append(parts, LogPart{
			Min: e.Min, Max: e.Max, Post: e.Post, Epoch: e.Epoch, Commit: e.Commit, PageSize: e.PageSize,
			Size: e.Size, Time: e.Timestamp, TakesBack: takesBack, entry: e,
		})
	}
	return parts, nil
}

// offeredTXID is the transaction that archives may have before it is decided, if it is in the log; 0: none.
func (db *DB) offeredTXID() uint64 {
	pos := db.offered.Load()
	if pos == nil {
		return 0
	}
	if e, ok := db.txlog.Find(pos.TXID); !ok || e.Max != pos.TXID || e.Post != pos.Chksum {
		return 0
	}
	return pos.TXID
}

// ErrLogChanged: an entry of the log was merged with others, or removed, since it was listed.
var ErrLogChanged = errors.New("the log has changed")

// LogPages calls fn with each page of an entry, ascending. data is valid until fn returns. ErrLogChanged:
// list the log again.
func (db *DB) LogPages(p LogPart, fn func(pgno uint32, data []byte) error) error {
	if db.ended.Load() {
		return ErrDatabaseNotFound
	}
	err := db.txlog.Pages(p.entry, fn)
	if errors.Is(err, ltxlog.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrLogChanged, err)
	}
	return err
}

// Descends reports whether a position that was written under an epoch is on this database's history, at
// its head or before it; at a transaction that waits for archives too, for one may have it. When that cannot be told it is not.
func (db *DB) Descends(pos Pos, epoch uint64) bool {
	if db.ended.Load() || pos.TXID > max(db.Pos().TXID, db.offeredTXID()) {
		return false
	}
	if e, ok := db.txlog.Find(pos.TXID); ok && e.Max == pos.TXID {
		return e.Post == pos.Chksum
	}
	// While a place takes nothing the entry that ends there grows old, and leaves the log; the one behind it stays.
	if e, ok := db.txlog.Find(pos.TXID + 1); ok && e.Min == pos.TXID+1 {
		return e.Pre == pos.Chksum
	}
	// The list of epochs vouches for those that are over. In the present one somebody with a copy of this
	// node's data may write as well; what this node has archived ends an entry (Compaction.Cuts).
	if epoch >= db.store.Epoch() {
		return false
	}
	rel, _ := db.epochList.get().locate([]LogPos{{Pos: pos, Epoch: epoch}}, db.txlog.Entries())
	return rel == RelationSame
}

// DecidedSnapshot is SnapshotLTX, returned once every transaction in it is decided and durable. It has
// the epoch and the time of the last of them in its header. ErrLogChanged: the commit of the last one was refused.
func (db *DB) DecidedSnapshot(ctx context.Context) (*LTXReader, error) {
	r, err := db.SnapshotLTX(ctx)
	if err != nil {
		return nil, err
	}
	db.syncLog()
	for deadline := time.Now().Add(closeTimeout); ; {
		switch {
		case db.ended.Load():
			return nil, errors.Join(ErrDatabaseNotFound, r.Close())
		case min(db.Pos().TXID, db.txlog.Durable()) >= r.MaxTXID:
			if db.isTakenBack(r.MaxTXID) {
				return nil, errors.Join(fmt.Errorf("snapshot of %s: %w: transaction %016x was refused meanwhile", db.Name(), ErrLogChanged, r.MaxTXID), r.Close())
			}
			return r, nil
		case time.Now().After(deadline):
			return nil, errors.Join(fmt.Errorf("snapshot of %s: transaction %016x is not decided", db.Name(), r.MaxTXID), r.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), r.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// isTakenBack reports whether the commit of a transaction was refused, and the one behind it takes it back.
func (db *DB) isTakenBack(txid uint64) bool {
	e, ok := db.txlog.Find(txid)
	if !ok || e.Max != txid {
		return false
	}
	next, ok := db.txlog.Find(txid + 1)
	return ok && next.TakesBack(e)
}

// Archive is what keeps archives. Its methods do not wait.
type Archive interface {
	// Needs returns, for each place, the first transaction of a database's log that it does not have
	// yet; 1 while that is not known. After a put whose outcome is not known also the first one behind that.
	Needs(dbID uint32) []uint64

	// Want asks for everything of a database up to a transaction at once, before whatever waits for its turn. done is
	// closed when every place has it, on a primary that stays one. stop ends the asking.
	Want(dbID uint32, txid uint64) (done <-chan struct{}, stop func())

	// Full is a place that lacks more than the log is to keep for it, so that nobody may commit; "": there is none.
	Full() (place string)

	Status() []ArchiveStatus
}

// ArchiveStatus is how far one place is.
type ArchiveStatus struct {
	Place     string
	Databases int           // that have transactions which the place lacks
	Lag       time.Duration // since when the one that waits longest does
	Puts      uint64        // objects written since the start
	Bytes     uint64        // in them
	Requests  uint64        // of all kinds
	Err       string        // of the last attempt; "": there was none
	Over      string        // what happens because it lacks more than the log is to keep for it; "": it does not

	// Held are the bytes of this node's logs that some place lacks; the same for all places.
	Held int64
}

// archiveNeeds are the transactions with which the entries begin that archives are to get next, or may be; none on
// a replica.
func (s *Store) archiveNeeds(db *DB) []uint64 {
	if s.Archive == nil || s.Role() != RolePrimary {
		return nil
	}
	return s.Archive.Needs(db.ID())
}

// offer lets archives have a transaction that is not decided yet, and asks for it at once.
func (s *Store) offer(db *DB, pos Pos) (done <-chan struct{}, stop func()) {
	db.offered.Store(&pos)
	return s.Archive.Want(db.id, pos.TXID)
}

// archivedSoFar waits, at level archive, until the archives have what is in the log. A transaction is not made an entry
// before: the one before it may have been refused without anybody knowing whether an archive has it. db.mu is not held.
func (db *DB) archivedSoFar(level Level, until time.Time) error {
	s := db.store
	head, ok := db.txlog.Head()
	if level.Kind != LevelArchive || !ok {
		return nil
	}
	done, stop := s.Archive.Want(db.id, head.Max)
	defer stop()
	deadline := time.NewTimer(time.Until(until))
	defer deadline.Stop()
	for {
		changed := s.replicas.changedFor(db.id) // the role is told there as well
		if s.Role() != RolePrimary {
			return errors.New("this node is not the primary any more")
		}
		select {
		case <-done:
			return nil
		case <-changed:
		case <-deadline.C:
			return s.notArchived(head.Max, level)
		case <-s.ctx.Done():
			return errors.New("this node is stopping")
		}
	}
}

// errNotArchived says that a commit was refused because an archive did not have it.
var errNotArchived = errors.New("not every archive has it in time")

func (s *Store) notArchived(txid uint64, level Level) error {
	var why []string
	for _, a := range s.Archive.Status() {
		if a.Err != "" {
			why = append(why, a.Place+": "+a.Err)
		}
	}
	return fmt.Errorf("%w: transaction %016x, within %v; %s", errNotArchived, txid, level.Timeout, cmp.Or(strings.Join(why, "; "), "no error is known"))
}

// archiveFull says why nobody may commit; "": everybody may.
func (s *Store) archiveFull() string {
	if s.Archive == nil {
		return ""
	}
	if place := s.Archive.Full(); place != "" {
		return "the archive " + place + " lacks more than backup.hold"
	}
	return ""
}

func (s *Store) archiveStatus() []ArchiveStatus {
	if s.Archive == nil || s.Role() != RolePrimary {
		return nil
	}
	places := s.Archive.Status()
	var held int64
	for _, db := range s.DBs() {
		held += db.LogBytes(slices.Min(append(s.archiveNeeds(db), math.MaxUint64)))
	}
	for i := range places {
		places[i].Held = held
	}
	return places
}

// LogBytes are the bytes of the log from a transaction on.
func (db *DB) LogBytes(txid uint64) (bytes int64) {
	if db.ended.Load() || txid > db.Pos().TXID {
		return 0
	}
	for _, e := range db.txlog.Entries() {
		if e.Max >= txid {
			bytes += e.Size
		}
	}
	return bytes
}
