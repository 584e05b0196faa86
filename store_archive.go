package litefs

import (
	"context"
	"errors"
	"fmt"
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

	entry ltxlog.Entry
}

// LogAfter returns the entries of the log that hold transactions after txid, oldest first, as far as
// they are durable and decided. The first may begin before that. ErrSnapshotNeeded: the log does not
// reach back so far.
func (db *DB) LogAfter(txid uint64) ([]LogPart, error) {
	if db.ended.Load() {
		return nil, ErrDatabaseNotFound
	}
	visible := db.Pos().TXID
	if visible <= txid {
		return nil, nil
	}
	db.syncLog() // what it cannot make durable is not below
	until := min(visible, db.txlog.Durable())
	var parts []LogPart
	for _, e := range db.txlog.Entries() {
		if e.Max <= txid || e.Max > until {
			continue
		}
		if len(parts) == 0 && e.Min > txid+1 {
			return nil, ErrSnapshotNeeded
		}
		parts = append(parts, LogPart{
			Min: e.Min, Max: e.Max, Post: e.Post, Epoch: e.Epoch, Commit: e.Commit, PageSize: e.PageSize,
			Size: e.Size, Time: e.Timestamp, entry: e,
		})
	}
	return parts, nil
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
// its head or before it. When that cannot be told it is not.
func (db *DB) Descends(pos Pos, epoch uint64) bool {
	if db.ended.Load() || pos.TXID > db.Pos().TXID {
		return false
	}
	if e, ok := db.txlog.Find(pos.TXID); ok && e.Max == pos.TXID {
		return e.Post == pos.Chksum
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
// the epoch and the time of the last of them in its header.
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

// Archive is what keeps archives. Its methods do not wait.
type Archive interface {
	// Needs returns, for each place, the first transaction of a database's log that it does not have
	// yet; 1 while that is not known.
	Needs(dbID uint32) []uint64

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
}

// archiveNeeds are the transactions with which the entries begin that archives are to get next; none on
// a replica.
func (s *Store) archiveNeeds(db *DB) []uint64 {
	if s.Archive == nil || s.Role() != RolePrimary {
		return nil
	}
	return s.Archive.Needs(db.ID())
}

func (s *Store) archiveStatus() []ArchiveStatus {
	if s.Archive == nil || s.Role() != RolePrimary {
		return nil
	}
	return s.Archive.Status()
}
