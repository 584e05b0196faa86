package litefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/sqlitefile"
)

// ScrubOptions say how a database is scrubbed.
type ScrubOptions struct {
	// Rate bounds the reading, in bytes a second; 0: no bound.
	Rate int64

	// Progress, if not nil, is called now and then with the bytes that were read
	// and that are to be read.
	Progress func(done, total int64)
}

// ScrubReport is what a scrub found.
type ScrubReport struct {
	Name    string
	Pos     Pos
	Pages   int
	Entries int // of the log
	Bytes   int64

	Damaged []uint32 // pages of the files that are not what the record says
	Writing int      // pages that a transaction was changing whenever they were looked at
	Faults  []string // everything that is wrong, one line each
	Primary string   // what the comparison with the primary said; "" on a primary
}

// Scrub reads all of a database: the pages in its files must have the checksums
// on record, the record must be what the log's head says, each entry of the log
// must be whole, and on a replica the primary must have the same. What the
// kernel has in memory is not read from the disk.
//
// The database is in use meanwhile. Pages are read with no lock; one that is not
// what the record says is looked at again with captures held back for a moment,
// as often as a transaction may be under way. ErrBusy: another scrub is at work.
func (s *Store) Scrub(ctx context.Context, name string, o ScrubOptions) (ScrubReport, error) {
	db := s.DBByName(name)
	if db == nil {
		return ScrubReport{}, fmt.Errorf("scrub %s: %w", name, ErrDatabaseNotFound)
	}
	if !s.scrubbing.TryLock() {
		return ScrubReport{}, fmt.Errorf("scrub %s: another scrub is at work: %w", name, ErrBusy)
	}
	defer s.scrubbing.Unlock()
	sc := &scrub{db: db, o: o, began: time.Now(), report: ScrubReport{Name: name}}
	if err := sc.run(ctx); err != nil {
		return sc.report, fmt.Errorf("scrub %s: %w", name, err)
	}
	sc.tell()
	return sc.report, nil
}

// tell counts a scrub that has ended, and logs what it found.
func (s *scrub) tell() {
	stats := &s.db.store.stats
	stats.Scrubs.Add(1)
	stats.ScrubFaults.Add(uint64(len(s.report.Faults)))
	for _, fault := range s.report.Faults {
		s.db.log().Error("scrub: " + fault)
	}
}

// scrub is one scrub at work.
type scrub struct {
	db     *DB
	o      ScrubOptions
	report ScrubReport
	began  time.Time
	told   time.Time // when Progress was called last
	total  int64
}

func (s *scrub) fault(format string, args ...any) {
	s.report.Faults = append(s.report.Faults, fmt.Sprintf(format, args...))
}

func (s *scrub) run(ctx context.Context) error {
	record, pos := s.db.PageSums()
	entries := s.db.txlog.Entries()
	s.report.Pos, s.report.Pages, s.report.Entries = pos, len(record.Sums), len(entries)
	s.total = int64(len(record.Sums)) * int64(record.PageSize)
	for _, e := range entries {
		s.total += e.Size
	}
	if err := s.comparePages(ctx, record); err != nil {
		return err
	}
	if err := s.readLog(ctx, entries); err != nil {
		return err
	}
	s.askPrimary(ctx)
	return nil
}

// comparePages compares the files with the record, and the record with the log's head.
func (s *scrub) comparePages(ctx context.Context, record PageSums) error {
	suspects, err := s.readPages(ctx, record)
	if err != nil {
		return err
	}
	if err := s.lookAgain(ctx, suspects); err != nil {
		return err
	}
	if n := len(s.report.Damaged); n > 0 {
		s.fault("%d pages of the files are not what the record says, the first is page %d", n, s.report.Damaged[0])
	}
	s.compareRecord()
	return nil
}

// readPages reads the database file, and returns the pages that do not have
// the checksum on record: damaged ones, and those of which a newer version is in
// the write-ahead log or on its way.
func (s *scrub) readPages(ctx context.Context, record PageSums) (suspects []uint32, err error) {
	if record.PageSize == 0 {
		return nil, nil
	}
	f, err := os.Open(s.db.DatabasePath())
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	const run = 64
	b := make([]byte, record.PageSize)
	lock := sqlitefile.LockPgno(record.PageSize)
	for pgno := uint32(1); int64(pgno) <= int64(len(record.Sums)); pgno++ {
		if pgno == lock {
			continue
		}
		if err := readFilePage(f, pgno, b); err != nil {
			suspects = append(suspects, pgno)
		} else if sum := pagesum.Page(pgno, b); sum != s.db.sums.Get(pgno) {
			suspects = append(suspects, pgno)
		}
		if pgno%run == 0 {
			if err := s.pace(ctx, run*int(record.PageSize)); err != nil {
				return nil, err
			}
		}
	}
	s.db.store.stats.PageHashes.Add(uint64(len(record.Sums)))
	return suspects, s.pace(ctx, len(record.Sums)%run*int(record.PageSize))
}

// pace counts bytes, and waits until so many may have been read.
func (s *scrub) pace(ctx context.Context, n int) error {
	s.report.Bytes += int64(n)
	now := time.Now()
	if s.o.Progress != nil && now.Sub(s.told) >= time.Second/2 {
		s.told = now
		s.o.Progress(s.report.Bytes, s.total)
	}
	var wait time.Duration
	if s.o.Rate > 0 {
		due := time.Duration(float64(s.report.Bytes) / float64(s.o.Rate) * float64(time.Second))
		wait = due - now.Sub(s.began)
	}
	if wait <= 0 {
		return context.Cause(ctx)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(wait):
		return nil
	}
}

// scrubTries is how often suspects are looked at, scrubPause apart: a
// transaction that is under way, and a capture, must have time to end.
const (
	scrubTries = 100
	scrubPause = 20 * time.Millisecond
	scrubRun   = 64
)

// lookAgain sorts damaged pages from those that are only in use.
func (s *scrub) lookAgain(ctx context.Context, suspects []uint32) error {
	for try := 0; len(suspects) > 0 && try < scrubTries; try++ {
		if try > 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(scrubPause):
			}
		}
		var left []uint32
		for from := 0; from < len(suspects); from += scrubRun {
			wrong, err := s.wrongNow(suspects[from:min(from+scrubRun, len(suspects))])
			if err != nil {
				return err
			}
			left = append(left, wrong...)
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
		}
		suspects = left
	}
	db := s.db
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, pgno := range suspects {
		if _, noted := db.dirty[pgno]; noted || db.allDirty {
			s.report.Writing++
		} else {
			s.report.Damaged = append(s.report.Damaged, pgno)
		}
	}
	return nil
}

// wrongNow returns those of the pages that, as an application sees them, do not
// have the checksum on record.
func (s *scrub) wrongNow(pgnos []uint32) (wrong []uint32, err error) {
	db := s.db
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return nil, ErrDatabaseNotFound
	}
	if db.peer == nil && db.store.Role() != RoleReplica {
		if err := db.captureWAL(false); err != nil {
			return nil, err
		}
	}
	img, err := db.openAppliedImage()
	if errors.Is(err, sqlitefile.ErrNotDatabase) {
		return pgnos, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	b := make([]byte, db.sums.PageSize())
	for _, pgno := range pgnos {
		if pgno > db.sums.Count() {
			continue // the database has become smaller
		}
		if rerr := img.readPage(pgno, b); rerr != nil || pagesum.Page(pgno, b) != db.sums.Get(pgno) {
			wrong = append(wrong, pgno)
		}
	}
	return wrong, nil
}

// compareRecord compares the record with the log's head.
func (s *scrub) compareRecord() {
	db := s.db
	db.mu.Lock()
	defer db.mu.Unlock()
	pos := db.Pos()
	if sum := db.sums.Sum(); !pos.IsZero() && sum != pos.Chksum {
		s.fault("the checksums on record add up to %016x, the position %s has another", sum, pos)
	}
	head, ok := db.txlog.Head()
	if ok && head.Max == pos.TXID && (head.Post != pos.Chksum || head.Commit != db.sums.Count()) {
		s.fault("the log ends at %016x/%016x with %d pages, the record is at %s with %d", head.Max, head.Post, head.Commit, pos, db.sums.Count())
	}
	s.report.Pos = pos
}

// readLog reads every entry of the log that is still there.
func (s *scrub) readLog(ctx context.Context, entries []ltxlog.Entry) error {
	for _, e := range entries {
		err := s.db.txlog.Verify(e)
		switch {
		case errors.Is(err, ltxlog.ErrNotFound):
			continue // retired or merged meanwhile
		case errors.Is(err, ltxlog.ErrCorrupt):
			s.fault("log entry %016x-%016x: %v", e.Min, e.Max, err)
		case err != nil:
			return err
		}
		if err := s.pace(ctx, int(e.Size)); err != nil {
			return err
		}
	}
	return nil
}

// askPrimary compares a replica's record with the primary. Where both are at one
// position every page must be the same; else the position must be on the
// primary's log, whose checksum there is that of all pages.
func (s *scrub) askPrimary(ctx context.Context) {
	st := s.db.store
	if st.Role() != RoleReplica {
		return
	}
	client, ok := st.Client.(PageClient)
	up := st.upstream.Load()
	if !ok || up == nil {
		s.report.Primary = "not compared: no primary is connected"
		return
	}
	have, pos := s.db.PageSums()
	a, err := client.Pages(ctx, up.url, PagesQuery{Mode: PagesList, DBID: s.db.id, Log: s.db.logPositions(), Have: have})
	switch {
	case err != nil:
		s.report.Primary = fmt.Sprintf("not compared: %v", err)
	case a.Relation != RelationSame:
		s.fault("the primary has another history: %s after transaction %016x", a.Relation, a.Common)
	case a.Pos == pos && have.Checksum() == pos.Chksum && len(a.Pgnos) > 0:
		s.fault("%d pages are not the primary's at %s, the first is page %d", len(a.Pgnos), pos, a.Pgnos[0])
	case a.Pos == pos:
		s.report.Primary = "every page is the same, at " + pos.String()
	default:
		s.report.Primary = fmt.Sprintf("at %s, of the primary's history", pos)
	}
}
