package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// ErrBusy is returned by a node that has too much to do at the moment.
var ErrBusy = errors.New("busy")

// RepairReport is what a repair found and did.
type RepairReport struct {
	Name    string
	DryRun  bool
	Pages   int      // of the files
	Damaged []uint32 // pages that are not what the record says
	Differ  int      // pages that are not the primary's
	Pos     Pos      // of the primary, when it was asked
	Kept    string   // directory with the damaged pages, as they were
	Bytes   int64    // moved over the network

	// Snapshot is why a whole snapshot is fetched instead; nil when none is.
	Snapshot error
}

// repairRequest is a repair that somebody waits for.
type repairRequest struct {
	dry  bool
	done chan repairResult // capacity 1
}

type repairResult struct {
	report RepairReport
	err    error
}

// Repair compares a replica's files, page by page, with the primary's database
// and fetches the pages that differ; with dry it only compares. The database
// takes no transactions meanwhile, its readers and the other databases go on.
// ErrNoPrimary: no primary is connected.
func (s *Store) Repair(ctx context.Context, name string, dry bool) (RepairReport, error) {
	db := s.DBByName(name)
	if db == nil {
		return RepairReport{}, fmt.Errorf("repair %s: %w", name, ErrDatabaseNotFound)
	}
	if s.Role() != RoleReplica {
		return RepairReport{}, fmt.Errorf("repair %s: a primary has nobody to repair it from", name)
	}
	f := s.upstream.Load()
	if f == nil {
		return RepairReport{}, fmt.Errorf("repair %s: not connected: %w", name, ErrNoPrimary)
	}
	w := f.worker(db.id)
	if w == nil {
		return RepairReport{}, fmt.Errorf("repair %s: the primary does not have it: %w", name, ErrDatabaseNotFound)
	}
	r := &repairRequest{dry: dry, done: make(chan repairResult, 1)}
	w.mu.Lock()
	busy := w.repair != nil
	if !busy {
		w.repair = r
	}
	w.mu.Unlock()
	if busy {
		return RepairReport{}, fmt.Errorf("repair %s: another repair waits already: %w", name, ErrBusy)
	}
	signal(w.wake)
	select {
	case res := <-r.done:
		return res.report, res.err
	case <-f.ctx.Done():
		return RepairReport{}, fmt.Errorf("repair %s: %w", name, context.Cause(f.ctx))
	case <-ctx.Done():
		return RepairReport{}, context.Cause(ctx)
	}
}

// offLog tells the worker that the primary's log does not lead on from where
// its database is.
func (w *worker) offLog() {
	w.mu.Lock()
	w.flush()
	w.discard, w.off = true, true
	w.mu.Unlock()
	signal(w.wake)
	w.f.note(w, false)
}

func (w *worker) takeRepair() *repairRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.repair
	w.repair = nil
	return r
}

// rejoinIfNeeded brings the database back to the primary's history if it is not
// on it, or if somebody asked for it, and returns where to go on.
func (w *worker) rejoinIfNeeded(ctx context.Context, db *DB, pos Pos, r *repairRequest) (Pos, error) {
	w.mu.Lock()
	needed := r != nil || w.off || pos.Chksum == 0 && !pos.IsZero()
	w.busy = w.busy || needed
	w.mu.Unlock()
	if !needed {
		return pos, nil
	}
	if db.loading() != nil {
		return w.loadAnew(db, pos, r)
	}
	report := RepairReport{Name: db.Name(), DryRun: r != nil && r.dry}
	next, err := w.rejoin(ctx, db, pos, &report)
	if r != nil {
		r.done <- repairResult{report, err}
		if report.DryRun {
			return pos, nil // only whoever asked wants to know
		}
	}
	return next, err
}

// loadAnew is rejoinIfNeeded for a database whose first copy is on its way: there
// is nothing yet that could be mended. When the primary's log does not lead on,
// another copy is asked for.
func (w *worker) loadAnew(db *DB, pos Pos, r *repairRequest) (Pos, error) {
	if r != nil {
		r.done <- repairResult{err: fmt.Errorf("its first copy is on the way: %w", ErrBusy)}
	}
	w.mu.Lock()
	off := w.off
	w.mu.Unlock()
	if !off {
		return pos, nil
	}
	return Pos{}, db.giveUpLoad()
}

// rejoin is rejoinIfNeeded for a database that needs it. Whatever this node has
// and the primary does not goes to lost+found first. A snapshot is what is left
// when pages cannot be compared: that is said and counted, and is no error.
func (w *worker) rejoin(ctx context.Context, db *DB, pos Pos, report *RepairReport) (Pos, error) {
	client, ok := w.f.store.Client.(PageClient)
	if !ok {
		return w.needSnapshot(db, report, errNoPageClient), nil
	}
	if err := w.f.rejoining.acquire(ctx); err != nil {
		return Pos{}, err
	}
	defer w.f.rejoining.release()
	if err := w.keepWhatForked(ctx, db, client, report.DryRun); err != nil {
		return Pos{}, err
	}
	err := w.fetchPages(ctx, db, client, report)
	switch {
	case err == nil && report.DryRun:
		return pos, nil
	case err == nil:
		return db.wantedPos(), nil
	case ctx.Err() != nil || errors.Is(err, ErrBusy) || errors.Is(err, errBrokenOff) || report.DryRun:
		return Pos{}, err
	}
	return w.needSnapshot(db, report, err), nil
}

// needSnapshot says why a whole snapshot is fetched.
func (w *worker) needSnapshot(db *DB, report *RepairReport, why error) Pos {
	report.Snapshot = why
	db.store.stats.RejoinSnapshots.Add(1)
	db.log().Warn("pages cannot be compared with the primary: a whole snapshot is fetched", "reason", why)
	return db.noPos()
}

// errBrokenOff is an answer of the primary that did not come to its end. It says nothing of the database: the primary is
// asked again.
var errBrokenOff = errors.New("the connection to the primary broke off")

// brokenOff marks an error of an exchange that its connection did not outlive.
func brokenOff(err error) error {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EPIPE} {
		if errors.Is(err, end) {
			return fmt.Errorf("%w: %w", errBrokenOff, err)
		}
	}
	return err
}

// keepWhatForked asks the primary how the histories relate.
func (w *worker) keepWhatForked(ctx context.Context, db *DB, client PageClient, dry bool) error {
	log := db.logPositions()
	if len(log) == 0 {
		return nil
	}
	a, err := client.Pages(ctx, w.f.url, PagesQuery{Mode: PagesLocate, DBID: db.id, Log: log})
	if err != nil {
		return fmt.Errorf("ask the primary where the histories part: %w", brokenOff(err))
	}
	var why string
	switch {
	case dry || a.Relation == RelationSame:
		return nil
	case a.Relation == RelationForked:
		why = fmt.Sprintf("the primary has other transactions after %016x: this node was at %s, the primary at %s", a.Common, log[0].Pos, a.Pos)
	default:
		why = fmt.Sprintf("the primary, at %s, cannot tell whether it ever had %s", a.Pos, log[0].Pos)
	}
	_, err = db.KeepTail(ctx, a.Common, why)
	return err
}

// fetchPages compares the files with the primary's pages, and unless it is to
// compare only, takes over those that differ.
func (w *worker) fetchPages(ctx context.Context, db *DB, client PageClient, report *RepairReport) error {
	db.setRepairing("comparing pages with the primary")
	defer db.setRepairing("")
	have, err := db.filePageSums(ctx, nil)
	if err != nil {
		return fmt.Errorf("hash the files: %w", err)
	}
	if have.PageSize == 0 {
		return fmt.Errorf("there are no pages here: %w", ErrSnapshotNeeded)
	}
	report.Pages = len(have.Sums)
	if damaged := db.damagedPages(have); len(damaged) > 0 {
		// The record may be what is damaged: a page that the primary has too is right.
		a, err := client.Pages(ctx, w.f.url, PagesQuery{Mode: PagesList, DBID: db.id, Log: db.logPositions(), Have: have})
		if err != nil {
			return brokenOff(err)
		}
		report.Bytes += a.Wire
		report.Damaged = common(damaged, a.Pgnos)
	}
	if len(report.Damaged) > 0 && !report.DryRun {
		if report.Kept, err = db.keepDamaged(report.Damaged); err != nil {
			return fmt.Errorf("keep the damaged pages: %w", err)
		}
		db.log().Error("pages of the files are not what the record says: they are kept and fetched again", "pages", len(report.Damaged), "first", report.Damaged[0], "kept", report.Kept)
	}
	mode := PagesFetch
	if report.DryRun {
		mode = PagesList
	}
	a, err := client.Pages(ctx, w.f.url, PagesQuery{Mode: mode, DBID: db.id, Log: db.logPositions(), Have: have})
	if err != nil {
		return brokenOff(err)
	}
	report.Pos, report.Differ = a.Pos, len(a.Pgnos)
	report.Bytes += a.Wire
	if a.LTX == nil {
		return nil
	}
	db.setRepairing(fmt.Sprintf("fetching pages that differ, %d bytes", a.LTX.Size))
	report.Bytes += a.LTX.Size
	before := db.Pos()
	err = db.applyPages(ctx, io.LimitReader(a.LTX, a.LTX.Size), a.LTX.Size, have)
	if err = errors.Join(err, a.LTX.Close()); err != nil {
		return brokenOff(err)
	}
	record, pos := db.PageSums()
	report.Pos, report.Differ = pos, len(DifferingPages(have, record))
	st := &db.store.stats
	st.Rejoins.Add(1)
	st.RejoinPages.Add(uint64(report.Differ))
	st.RejoinBytes.Add(uint64(report.Bytes))
	db.log().Warn("the database was brought to the primary's history by the pages that differ", "pages", report.Differ, "of", report.Pages, "bytes", report.Bytes, "was", before.String(), "is", pos.String())
	return nil
}

// common returns what is in both lists, which ascend.
func common(a, b []uint32) (both []uint32) {
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0] < b[0]:
			a = a[1:]
		case a[0] > b[0]:
			b = b[1:]
		default:
			both = append(both, a[0])
			a, b = a[1:], b[1:]
		}
	}
	return both
}

// keepIfOurs keeps a database that is about to be dropped with the primary's, if
// this node was the primary before and has not met this one's history since: it
// may have transactions that nobody else has.
func (db *DB) keepIfOurs(ctx context.Context) error {
	if _, logged := db.txlog.Head(); !logged || !db.ours.Load() {
		return nil
	}
	_, err := db.KeepTail(ctx, 0, "the primary has dropped this database, or has another one of its name; this node was the primary before")
	return err
}
