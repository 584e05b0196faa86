package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// worker brings one database of a replica forward over one connection. It owns
// the database: nobody else imports into its log, applies to its files, or
// changes its name while the connection lasts.
type worker struct {
	f  *upstream
	id uint32

	// op is held while the worker is at its database, but not while it waits
	// for the network, so that another worker may take the name away.
	op semaphore

	// Of run alone.
	due   time.Time // when what is decided is shown; zero: nothing is postponed
	shown time.Time // when that was done last
	paced int64     // the last span of pace that counted the database

	unshown int // entries in the log that others are to be shown with

	hurry atomic.Bool   // what is decided next is not postponed, nor is what is postponed now
	wake  chan struct{} // capacity 1: hurry or something below has changed

	mu   sync.Mutex // guards everything below
	name string     // as the primary told it last; "": none, the worker waits
	lost bool       // its database gave way to another one: the primary must be asked
	gone bool       // dropped by the primary
	off  bool       // the primary's log does not lead on from where the database is

	// repair is what somebody wants to have mended, until the worker takes it up.
	repair *repairRequest

	// pieces wait for the worker. While discard is set, what comes is thrown
	// away: it belongs to the time before the primary has resumed.
	pieces  []piece
	queued  int64  // bytes in pieces
	given   uint64 // pieces since the stream began
	discard bool

	fresh   *freshness // waits until freshAt of the given pieces are done; nil: none does
	freshAt uint64

	taken  int64  // bytes taken from the queue or thrown away since the stream began
	asked  int64  // of taken, what the primary was told
	ask    uint32 // number of the last Resume
	resume *Pos   // to be asked for; nil when nothing is
	page   uint32 // with resume: the page from which the base that began there is to go on; 0: no base is

	// busy: a file is being imported or applied, what the last connection left may have to be, or the database has failed.
	busy bool
	sent AckStreamFrame
}

// piece is a part of a file, or the whole of a small one, or of a base.
type piece struct {
	size, offset int64
	data         []byte // empty, of a file: it is given up

	start *BaseStreamFrame    // the beginning of a base
	pages *PagesStreamFrame   // data is pages of a base
	end   *BaseEndStreamFrame // the end of a base

	decided *DecidedStreamFrame // what came before it may be applied up to there
	due     bool                // the worker's own: what is decided was postponed until now
	level   *LevelStreamFrame   // what comes after it may be committed under it
}

// ofBase reports whether the piece is of a base.
func (p piece) ofBase() bool { return p.start != nil || p.pages != nil || p.end != nil }

// ofFile reports whether the piece is of a file.
func (p piece) ofFile() bool { return !p.ofBase() && p.decided == nil && p.level == nil && !p.due }

// whole reports whether the piece is all of a file.
func (p piece) whole() bool {
	return p.ofFile() && p.offset == 0 && len(p.data) > 0 && p.size == int64(len(p.data))
}

var (
	errGivenUp     = errors.New("the primary gave the file up")
	errInterrupted = errors.New("interrupted")
	errRenamed     = errors.New("renamed")
)

// Pauses before a database that has failed is tried again; the first time
// there is none.
const (
	minRetry = 250 * time.Millisecond
	maxRetry = 30 * time.Second
)

// applyTimeout bounds one apply: it waits for readers when the write-ahead log
// has reached its hard limit.
const applyTimeout = 30 * time.Second

func newWorker(f *upstream, id uint32) *worker {
	return &worker{f: f, id: id, op: newSemaphore(), wake: make(chan struct{}, 1), busy: true}
}

// maxPieces bounds what waits also when it has no bytes. No window holds as many
// files.
const maxPieces = 1 << 16

// push takes a piece from the connection. An error ends the connection: the
// primary sends more than it may.
func (w *worker) push(p piece) error {
	w.mu.Lock()
	n := int64(len(p.data))
	if w.discard {
		w.taken += n
		w.mu.Unlock()
		w.f.note(w, false)
		return nil
	}
	if len(w.pieces) == maxPieces {
		w.mu.Unlock()
		return fmt.Errorf("database %s: %d pieces are not taken yet", FormatDBID(w.id), maxPieces)
	}
	if w.queued+n > StreamWindow+MaxStreamChunkSize {
		w.mu.Unlock()
		return fmt.Errorf("database %s: more than %d bytes that were not asked for", FormatDBID(w.id), StreamWindow)
	}
	w.pieces = append(w.pieces, p)
	w.given++
	w.queued += n
	w.mu.Unlock()
	signal(w.wake)
	return nil
}

// rename tells the worker the name that its database has on the primary.
func (w *worker) rename(name string) {
	w.mu.Lock()
	w.name, w.gone = name, false
	w.mu.Unlock()
	signal(w.wake)
}

// drop tells the worker that the primary has dropped its database.
func (w *worker) drop() {
	w.mu.Lock()
	w.gone = true
	w.flush()
	w.mu.Unlock()
	signal(w.wake)
	w.f.note(w, false)
}

// flush throws away what waits. w.mu is held.
func (w *worker) flush() {
	w.taken += w.queued
	w.pieces, w.queued = nil, 0
	w.loseFresh()
}

// resumed ends the throwing away, if the answer is to the last question.
func (w *worker) resumed(ask uint32) {
	w.mu.Lock()
	if ask == w.ask {
		w.discard = false
	}
	w.mu.Unlock()
}

// idle reports whether all that has come was applied.
func (w *worker) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.busy && !w.discard && !w.off && len(w.pieces) == 0
}

// run works until the connection ends.
func (w *worker) run() {
	ctx := w.f.ctx
	defer w.showLast()
	var delay time.Duration
	// ask: the primary does not know where we are. The positions that a
	// connection begins with do not tell of half a base.
	ask := w.loading()
	for {
		err := w.await(ctx)
		if err == nil {
			err = w.settle(ctx)
		}
		if err == nil {
			err = w.prepare(ctx, ask)
		}
		if err == nil {
			ask = false
			err = w.drain(ctx, &delay)
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errRenamed) {
			continue // nothing was taken or lost
		}
		if errors.Is(err, errInterrupted) {
			ask = true
			continue
		}
		w.fail(err, delay)
		ask = true
		if delay > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(delay):
			}
		}
		delay = min(max(2*delay, minRetry), maxRetry)
	}
}

// await returns when the worker has a database to work on. It drops the one
// that is gone.
func (w *worker) await(ctx context.Context) error {
	for {
		w.mu.Lock()
		name, gone := w.name, w.gone
		if gone {
			w.name, w.gone = "", false
		}
		var m *freshness
		if w.busy = gone || name != ""; !w.busy {
			m = w.reached()
		}
		w.mu.Unlock()
		if m != nil {
			w.f.there(m)
		}
		switch {
		case gone:
			if err := w.dropHere(ctx); err != nil {
				w.mu.Lock()
				w.gone = true // tried again
				w.mu.Unlock()
				return err
			}
			w.dropped()
			continue
		case name != "":
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.wake:
		}
	}
}

// dropped is called when the database is no more: there is nothing that it lacks. What the primary was asked of it has no
// answer.
func (w *worker) dropped() {
	w.due, w.unshown = time.Time{}, 0
	w.mu.Lock()
	w.discard, w.off = false, false
	w.mu.Unlock()
}

// dropHere removes the database.
func (w *worker) dropHere(ctx context.Context) error {
	if err := w.f.structure.acquire(ctx); err != nil {
		return err
	}
	defer w.f.structure.release()
	s := w.f.store
	if s.DB(w.id) != nil {
		s.rememberDropped(w.id) // this node may be the primary one day
	}
	return s.dropReplica(ctx, w.id)
}

// settle makes the database, or gives it the name that it has on the primary. A
// database that has the name here does not have it there any more. When the
// primary has spoken of that one on this connection it will tell its new name,
// or its end: until then it is kept under a name of its own.
func (w *worker) settle(ctx context.Context) error {
	s := w.f.store
	if err := w.f.structure.acquire(ctx); err != nil {
		return err
	}
	defer w.f.structure.release()
	// A rename may wait for readers, and every other change of the tree for it.
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	w.mu.Lock()
	name := w.name
	w.mu.Unlock()
	if name == "" {
		return errInterrupted
	}
	if db := s.DB(w.id); db != nil && db.Name() == name {
		return nil
	}
	if old := s.DBByName(name); old != nil && old.ID() != w.id {
		if other := w.f.worker(old.ID()); other != nil {
			if err := other.takeAway(ctx, name); err != nil {
				return err
			}
			defer other.op.release()
			if err := s.renameReplica(ctx, old, movedName(old.ID())); err != nil {
				return err
			}
		}
	}
	_, err := s.introduce(ctx, w.id, name)
	return err
}

// movedName is what a replica calls a database whose name another one has got.
func movedName(id uint32) string { return "moved-" + FormatDBID(id) }

// takeAway stops the worker, whose database is about to give way to another one
// that gets the name it has here, until the primary speaks of it again, and returns
// with op held. A name that the worker was told since and has not given to its
// database yet is kept: it will not be told twice.
func (w *worker) takeAway(ctx context.Context, name string) error {
	w.mu.Lock()
	if w.name == name {
		w.name = ""
	}
	w.flush()
	w.discard, w.lost = true, true
	w.mu.Unlock()
	signal(w.wake)
	return w.op.acquire(ctx)
}

// prepare applies what the log has and the files do not, and asks the primary
// to go on from there when it does not know.
func (w *worker) prepare(ctx context.Context, ask bool) error {
	if err := w.op.acquire(ctx); err != nil {
		return err
	}
	defer w.op.release()
	db := w.f.store.DB(w.id)
	if db == nil {
		return errInterrupted
	}
	applyCtx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	pos, err := w.apply(applyCtx, db)
	if err != nil {
		return err
	}
	repair := w.takeRepair()
	if !ask && repair == nil {
		return nil
	}
	if pos, err = w.rejoinIfNeeded(ctx, db, pos, repair); err != nil {
		return err
	}
	w.mu.Lock()
	w.flush()
	w.discard, w.off = true, false
	w.ask++
	w.resume, w.page = &pos, 0
	if start, next, ok := db.toContinue(); ok {
		w.resume, w.page = &start, next
	}
	w.mu.Unlock()
	w.f.note(w, true)
	return nil
}

// loading reports whether half a base is there.
func (w *worker) loading() bool {
	db := w.f.store.DB(w.id)
	return db != nil && db.loading() != nil
}

// drain applies files as they come. It returns at the first that cannot be.
func (w *worker) drain(ctx context.Context, delay *time.Duration) error {
	for {
		first, err := w.next(ctx, true)
		if err != nil {
			return err
		}
		if err := w.take(ctx, first); err != nil {
			return err
		}
		*delay = 0
	}
}

// take imports and applies the file that begins with first.
func (w *worker) take(ctx context.Context, first piece) error {
	if err := w.op.acquire(ctx); err != nil {
		return err
	}
	defer w.op.release()
	db := w.f.store.DB(w.id)
	if db == nil {
		return errInterrupted
	}
	if first.decided != nil {
		db.hold.Store(first.decided.TXID)
		w.postpone(db)
		return w.show(ctx, db)
	}
	if first.due {
		return w.show(ctx, db)
	}
	if first.level != nil {
		applyCtx, cancel := context.WithTimeout(ctx, applyTimeout)
		defer cancel()
		return db.takeLevel(applyCtx, first.level.Level)
	}
	if first.ofBase() {
		if err := w.takeBase(ctx, db, first); err != nil {
			return err
		}
		db.setTrouble(nil, 0)
		w.f.note(w, first.end != nil)
		return nil
	}
	if first.offset != 0 || len(first.data) == 0 {
		return errGivenUp
	}
	// A large file takes the time that the network takes: what came before it does not wait for that.
	large := !first.whole()
	if large && w.waitsToBeShown() {
		if err := w.showNow(ctx, db); err != nil {
			return err
		}
	}
	r := &fileReader{ctx: ctx, w: w, size: first.size, rest: first.data, read: int64(len(first.data))}
	if err := db.receive(r, first.size); err != nil {
		return err
	}
	db.ours.Store(false)                      // it joined what was here
	w.f.note(w, db.hold.Load() != AllDecided) // a commit may be waiting
	var err error
	switch {
	case large:
		err = w.catchUp(ctx, db)
	case !db.leadsOn():
		err = w.showNow(ctx, db)
	case w.goesOn():
		w.unshown++
		return nil
	default:
		err = w.show(ctx, db)
	}
	if err == nil {
		db.setTrouble(nil, 0)
	}
	return err
}

// takeBase takes a piece of a base.
func (w *worker) takeBase(ctx context.Context, db *DB, p piece) error {
	switch {
	case p.start != nil:
		ctx, cancel := context.WithTimeout(ctx, applyTimeout)
		defer cancel()
		return db.beginLoad(ctx, *p.start)
	case p.pages != nil:
		defer w.f.buffers.put(p.data)
		return db.loadPages(p.pages.Pgno, p.data)
	default:
		return db.endLoad(ctx, p.end.TXID)
	}
}

// next returns the next piece. The first of a file may be long in coming.
func (w *worker) next(ctx context.Context, first bool) (piece, error) {
	for {
		w.mu.Lock()
		if first {
			if m := w.reached(); m != nil {
				w.mu.Unlock()
				w.f.there(m)
				continue
			}
		}
		switch {
		case w.gone || w.name == "" || w.lost || w.off || first && w.repair != nil:
			w.lost = false
			w.mu.Unlock()
			return piece{}, errInterrupted
		case first && w.misnamed():
			w.mu.Unlock()
			return piece{}, errRenamed
		case len(w.pieces) > 0:
			p := w.pieces[0]
			w.pieces = w.pieces[1:]
			n := int64(len(p.data))
			w.queued -= n
			w.taken += n
			w.busy = true
			urgent := w.taken-w.asked >= StreamWindow/4
			w.mu.Unlock()
			w.f.note(w, urgent)
			return p, nil
		}
		postponed := first && !w.due.IsZero()
		if first {
			w.busy = postponed
		}
		w.mu.Unlock()
		var due <-chan time.Time
		if postponed {
			if w.hurry.Swap(false) {
				w.due = time.Time{}
				return piece{due: true}, nil
			}
			due = time.After(time.Until(w.due))
		}
		select {
		case <-ctx.Done():
			return piece{}, context.Cause(ctx)
		case <-w.wake:
		case <-due:
			return piece{due: true}, nil
		}
	}
}

// misnamed reports whether the database's name is not the primary's. w.mu is
// held.
func (w *worker) misnamed() bool {
	db := w.f.store.DB(w.id)
	return db == nil || db.Name() != w.name
}

// fail marks the database with why it does not go on, and throws away what
// comes for it until the primary has resumed.
func (w *worker) fail(err error, retry time.Duration) {
	w.mu.Lock()
	w.flush()
	w.discard, w.busy = true, true
	name := w.name
	w.mu.Unlock()
	w.f.note(w, true)
	if db := w.f.store.DB(w.id); db != nil {
		name = db.Name()
		db.setTrouble(err, retry)
	}
	if errors.Is(err, errBrokenOff) {
		w.f.store.Logger.Warn("database waits for the primary; tried again", "db", name, "retry", retry, "reason", err)
		return
	}
	w.f.store.stats.ApplyErrors.Add(1)
	w.f.store.Logger.Error("database does not follow the primary; tried again", "db", name, "retry", retry, "error", err)
}

// report is what the primary is to know of the database now.
func (w *worker) report() []StreamFrame {
	ack := AckStreamFrame{DBID: w.id}
	if db := w.f.store.DB(w.id); db != nil {
		ack.Received, ack.Durable, ack.Applied = db.reached()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var frames []StreamFrame
	ack.Taken = w.taken
	if ack != w.sent {
		w.sent, w.asked = ack, w.taken
		frames = append(frames, &ack)
	}
	switch {
	case w.resume == nil:
	case w.page > 0:
		frames = append(frames, &ResumeBaseStreamFrame{DBID: w.id, Ask: w.ask, Pos: *w.resume, Next: w.page})
	default:
		frames = append(frames, &ResumeStreamFrame{DBID: w.id, Ask: w.ask, Pos: *w.resume})
	}
	w.resume = nil
	return frames
}

// fileReader reads one file, which comes in pieces.
type fileReader struct {
	ctx  context.Context
	w    *worker
	size int64
	rest []byte // of the piece at hand
	read int64  // bytes of the file up to the end of rest
}

func (r *fileReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.read == r.size {
			return 0, io.EOF
		}
		p, err := r.w.next(r.ctx, false)
		switch {
		case err != nil:
			return 0, err
		case !p.ofFile() || p.size != r.size || p.offset != r.read || len(p.data) == 0:
			return 0, errGivenUp
		}
		r.rest = p.data
		r.read += int64(len(p.data))
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
