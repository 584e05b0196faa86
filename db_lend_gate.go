package litefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/peer"
	"github.com/litefs/litefs/sqlitefile"
)

// errTakenBack says that a holder's transaction was refused, and that its TXID is gone.
var errTakenBack = errors.New("the transaction was taken back")

// commitLentGated is commitLent at a level at which others must have a transaction before anybody sees it: what the gate
// does with a local one (docs/promises.md), with the peer in the place of SQLite. On disk the two are alike at every
// moment, so recovery knows of no difference. errTakenBack: the log has the transaction, and what takes it back.
func (db *DB) commitLentGated(ctx context.Context, p *peer.Peer, in *incoming, level Level) error {
	until := time.Now().Add(level.Timeout)
	if err := db.archivedSoFar(level, until); err != nil {
		return err
	}
	e := in.entry
	staged, err := p.Stage(ctx, e.Commit, e.PageSize, in.pages(&db.store.logBuffers))
	if err != nil {
		return err
	}
	u, err := db.promiseLent(p, in, staged, level, until)
	if err != nil {
		staged.Drop()
		return err
	}
	err = staged.Publish(ctx)
	db.mu.Lock()
	defer db.mu.Unlock()
	switch {
	case db.undecided != u || db.peer != p:
		return errors.Join(err, ErrHaltLost) // the node is stopping. Its log has it, and counts
	case err != nil && walPosOf(p) == capturePos(staged.Before): // nobody has seen anything
		if err := db.died(u, staged.After.Frame); err != nil {
			return err
		}
		return fmt.Errorf("%w: %w", errTakenBack, errors.Join(err, db.takeBack()))
	case err != nil:
		db.log().Error("a forwarded transaction is not wholly published yet: it will be with the next one", "error", err)
	}
	db.at = walPosOf(p)
	db.decide()
	db.store.stats.Forwarded.Add(1)
	return nil
}

// promiseLent makes a staged transaction an entry that is not decided, and waits for those who must have it.
func (db *DB) promiseLent(p *peer.Peer, in *incoming, staged *peer.Staged, level Level, until time.Time) (*undecided, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer != p {
		return nil, ErrHaltLost
	}
	if before := capturePos(staged.Before); db.at.Salt1 != before.Salt1 || db.at.Salt2 != before.Salt2 {
		db.at = before // the write-ahead log begins anew
	}
	e, after := in.entry, capturePos(staged.After)
	u, err := db.promise(change{
		commits: 1, pageSize: e.PageSize, count: e.Commit, pgnos: in.pgnos, sums: in.sums,
		pages: ltxlog.Pages(in.pages(&db.store.logBuffers)), durable: true, wal: after, walFrom: db.at,
	}, after, level, until)
	switch {
	case u == nil && err == nil:
		return nil, fmt.Errorf("log transaction %016x: it is not there", e.Max)
	case u == nil:
		return nil, fmt.Errorf("log transaction %016x: %w", e.Max, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errTakenBack, errors.Join(err, db.takeBack()))
	}
	u.refused = false // from here on nobody but the caller ends it
	return u, nil
}

// died notes that a transaction was not published. Its last frame may be in the file all the same. db.mu is held.
func (db *DB) died(u *undecided, frame uint32) error {
	u.refused = true
	f, err := os.Open(db.WALPath())
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if _, err := f.ReadAt(u.frame[:], sqlitefile.FrameOffset(frame, db.sums.PageSize())); err == nil {
		u.letIn, u.at.Frame = true, frame
	}
	return nil
}

// outcomeWait is how long one question for the outcome waits at such a level. It is asked again.
const outcomeWait = 2 * time.Second

// promiseKept waits until what is in the log is where the level wants it. A primary that was killed while it waited counts
// the transaction, for its log has it; its holder is not to take it for acknowledged before.
func (db *DB) promiseKept() error {
	level := db.Level()
	if !level.Gated() {
		return nil
	}
	until := time.Now().Add(min(level.Timeout, outcomeWait))
	if err := db.archivedSoFar(level, until); err != nil {
		return err
	}
	others := Level{Kind: LevelQuorum, N: level.N, Memory: level.Memory, Timeout: level.Timeout}
	return db.store.awaitPromise(db, db.Pos(), others, until)
}
