package litefs

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/litefs/litefs/internal/lostfound"
)

// LostFoundDir is where transactions go that this node has and its cluster does
// not.
func (s *Store) LostFoundDir() string { return filepath.Join(s.path, "lost+found") }

// KeepTail puts what the database has after transaction common, the last one
// that it shares with the primary, into lost+found, and a copy of the whole
// database with it. It comes before the database gives any of it up: what was
// acknowledged here is never dropped in silence. db.mu is not held.
func (db *DB) KeepTail(ctx context.Context, common uint64, reason string) (lostfound.Kept, error) {
	kept, err := lostfound.Keep(ctx, db.store.LostFoundDir(), lostfound.Tail{
		Name: db.Name(), ID: db.id, NodeID: db.store.nodeID, Common: common, Reason: reason, Log: db.txlog,
		Record: db.dir, Keys: db.store.LogKeys,
		Copy: func(ctx context.Context) (io.ReadCloser, int64, error) {
			head, _ := db.txlog.Head()
			if pos := db.Pos(); pos.TXID != head.Max || pos.Chksum != head.Post || db.isStale() {
				return nil, 0, fmt.Errorf("the files are at %s, the log at %016x/%016x", pos, head.Max, head.Post)
			}
			r, err := db.SnapshotLTX(ctx)
			if err != nil {
				return nil, 0, err
			}
			return r, r.Size, nil
		},
	})
	if err != nil {
		return kept, err
	}
	db.store.stats.TailsKept.Add(1)
	db.log().Warn("transactions that the primary does not have are kept in lost+found: `litefs lost` lists and exports them",
		"path", kept.Path, "first", kept.First, "last", kept.Last, "reason", reason, "copy", kept.NoCopy == "")
	return kept, nil
}
