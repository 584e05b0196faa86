package litefs

import (
	"context"
	"sync"
	"time"

	"github.com/litefs/litefs/internal/role"
)

// This file says when a replica shows what it has in its log: docs/promises.md, "Several at once".

// Bounds of the time for which what is decided of a database may wait for company before readers see it.
const (
	paceEach = 2 * time.Millisecond // for each other database that is written to at the same time
	paceMax  = 20 * time.Millisecond
)

// pace spaces what a replica shows of databases whose commits wait for it. To show a transaction takes a good part of what
// it takes to have it on disk, and nobody waits for that, while commits wait for the processor. So the more databases are
// written to, the longer each waits for its next transactions, and all of them are shown at once. One that is written to
// alone, or was not written to lately, waits for nothing, nor does one that somebody waits for (worker.hurried).
type pace struct {
	mu     sync.Mutex // guards everything below
	span   int64      // number of the span of paceMax at hand
	now    int        // databases of which something was decided in it
	before int        // and in the span before it
}

// pause returns how long after the last time a database is shown again. counted is the span that counted it last.
func (p *pace) pause(counted *int64, at role.Time) time.Duration {
	span := int64(at)/int64(paceMax) + 1
	p.mu.Lock()
	defer p.mu.Unlock()
	if span != p.span {
		before := 0
		if span == p.span+1 {
			before = p.now
		}
		p.span, p.now, p.before = span, 0, before
	}
	if *counted != span {
		*counted = span
		p.now++
	}
	return min(time.Duration(max(p.now, p.before)-1)*paceEach, paceMax)
}

// maxUnshown bounds how many entries are in the log before the first of them is shown: a queue that is never empty is no
// reason to show nothing.
const maxUnshown = 16

// goesOn reports whether another entry has come already, so that both are shown together.
func (w *worker) goesOn() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unshown < maxUnshown && len(w.pieces) > 0 && w.pieces[0].whole()
}

// postpone lets what was just decided wait for what is decided next, if other databases are written to as well.
func (w *worker) postpone(db *DB) {
	pause := w.f.pace.pause(&w.paced, bootNow())
	switch {
	case db.hold.Load() == AllDecided, w.hurry.Swap(false):
		w.due = time.Time{}
	case w.due.IsZero():
		w.due = w.shown.Add(pause)
	}
}

// hurried is called by somebody who waits for the database: nothing is postponed, once.
func (w *worker) hurried() {
	w.hurry.Store(true)
	signal(w.wake)
}

// show makes what is decided visible, unless that is postponed.
func (w *worker) show(ctx context.Context, db *DB) error {
	if time.Now().Before(w.due) {
		return nil
	}
	return w.showNow(ctx, db)
}

// showNow makes everything visible that is decided, in the time for one apply.
func (w *worker) showNow(ctx context.Context, db *DB) error {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	return w.catchUp(ctx, db)
}

// catchUp makes everything visible that is decided.
func (w *worker) catchUp(ctx context.Context, db *DB) error {
	pos, err := w.apply(ctx, db)
	if err != nil {
		return err
	}
	if !pos.IsZero() && pos.Chksum == 0 {
		return errInterrupted // the files are on no history: the primary is asked
	}
	w.f.note(w, false)
	return nil
}

// apply applies what the log has, and after that nothing waits to be shown.
func (w *worker) apply(ctx context.Context, db *DB) (Pos, error) {
	w.shown = time.Now()
	pos, err := db.catchUp(ctx)
	if err == nil {
		w.due, w.unshown = time.Time{}, 0
	}
	return pos, err
}

// waitsToBeShown reports whether something that is in the log and decided is not visible yet.
func (w *worker) waitsToBeShown() bool { return w.unshown > 0 || !w.due.IsZero() }

// showLast makes visible what waits when the connection ends: the next one may be long in coming.
func (w *worker) showLast() {
	if !w.waitsToBeShown() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.f.ctx), closeTimeout)
	defer cancel()
	if err := w.op.acquire(ctx); err != nil {
		w.f.store.Logger.Warn("what was postponed is not shown yet", "database", FormatDBID(w.id), "reason", err)
		return
	}
	defer w.op.release()
	db := w.f.store.DB(w.id)
	if db == nil {
		return
	}
	if err := w.catchUp(ctx, db); err != nil {
		db.log().Warn("what was postponed is not shown yet", "reason", err)
	}
}
