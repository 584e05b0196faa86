package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/internal/vfs"
	"github.com/litefs/litefs/sqlitefile"
)

// This file brings a replica's database to the primary's position by the pages
// that differ. What the files hold is hashed, not taken from the record: the
// record may be right and the disk wrong.

// hashRun is how many pages are hashed while nothing else is done to a database.
const hashRun = 256

// filePageSums hashes every page of the replica's files, as readers see them.
// pace, if not nil, is called with the bytes read after each run.
func (db *DB) filePageSums(ctx context.Context, pace func(n int) error) (PageSums, error) {
	var have PageSums
	for pgno := uint32(1); pgno > 0; {
		if err := ctx.Err(); err != nil {
			return PageSums{}, context.Cause(ctx)
		}
		if err := db.takePeer(ctx); err != nil {
			return PageSums{}, err
		}
		db.mu.Lock()
		next, n, err := db.hashPagesFrom(ctx, &have, pgno)
		db.mu.Unlock()
		if err != nil {
			return PageSums{}, err
		}
		if pace != nil {
			if err := pace(n); err != nil {
				return PageSums{}, err
			}
		}
		pgno = next
	}
	return have, nil
}

// hashPagesFrom hashes a run of pages, and returns where to go on, 0 at the end,
// and the bytes read. db.mu is held.
func (db *DB) hashPagesFrom(ctx context.Context, have *PageSums, pgno uint32) (next uint32, n int, err error) {
	if db.closed || db.peer == nil {
		return 0, 0, ErrDatabaseNotFound
	}
	count, pageSize := db.peer.PageCount(), db.peer.PageSize()
	if count == 0 || pageSize == 0 {
		*have = PageSums{}
		return 0, 0, nil
	}
	if pgno == 1 {
		*have = PageSums{PageSize: pageSize, Sums: make([]uint64, count)}
	}
	if pageSize != have.PageSize || int64(count) != int64(len(have.Sums)) {
		return 0, 0, errors.New("the database has changed while it was hashed")
	}
	b := make([]byte, pageSize)
	lock := sqlitefile.LockPgno(pageSize)
	for end := min(count, pgno+hashRun-1); pgno <= end; pgno++ {
		if pgno == lock {
			continue
		}
		if err := db.peer.ReadPage(pgno, b); err != nil {
			return 0, n, err
		}
		have.Sums[pgno-1] = pagesum.Page(pgno, b)
		n += len(b)
	}
	db.store.stats.PageHashes.Add(uint64(n / int(pageSize)))
	if pgno > count {
		return 0, n, nil
	}
	return pgno, n, nil
}

// damagedPages returns the pages whose checksum is not that of the record.
func (db *DB) damagedPages(have PageSums) []uint32 {
	record, _ := db.PageSums()
	if record.PageSize != have.PageSize {
		return nil
	}
	return DifferingPages(have, record)
}

// applyPages takes the files, whose checksums are have, to the position that an
// LTX file of the pages that differ leads to. Readers see it in one step. The
// log begins anew with the file, for what was there before does not lead to it.
//
// A crash at any point leaves files that are whole: those from before, or
// those after. The log then decides, or asks the primary again.
func (db *DB) applyPages(ctx context.Context, r io.Reader, size int64, have PageSums) error {
	db.ingest.Lock()
	defer db.ingest.Unlock()
	e, err := db.txlog.Restart(io.LimitReader(r, size), size)
	if err != nil {
		return err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.stale = true // until it is applied
	if err := db.epochList.note(e, false); err != nil {
		return err
	}
	if e.Pre != have.Checksum() || e.PageSize != have.PageSize {
		return fmt.Errorf("the pages that came are for files of checksum %016x, here it is %016x", e.Pre, have.Checksum())
	}
	if err := db.recordSums(have); err != nil {
		return err
	}
	return db.applyEntries(ctx, []ltxlog.Entry{e})
}

// recordSums makes the record say what the files hold. db.mu is held.
func (db *DB) recordSums(have PageSums) error {
	if err := db.sums.SetPageSize(have.PageSize); err != nil {
		return err
	}
	for i, sum := range have.Sums {
		if pgno := uint32(i + 1); db.sums.Get(pgno) != sum {
			if err := db.sums.Set(pgno, sum); err != nil {
				return err
			}
		}
	}
	if err := db.sums.Resize(uint32(len(have.Sums))); err != nil {
		return err
	}
	return db.sums.Recount()
}

// maxDamaged bounds how many damaged pages are kept.
const maxDamaged = 4096

// keepDamaged copies the given pages, as they are in the files, into a new
// directory in aside/, one file a page, and returns its path.
func (db *DB) keepDamaged(pgnos []uint32) (string, error) {
	suffix, err := randomHex(4)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(db.store.path, "aside", fmt.Sprintf("%s-damaged-%016x-%s", FormatDBID(db.id), db.TXID(), suffix))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.peer == nil {
		return "", ErrDatabaseNotFound
	}
	b := make([]byte, db.peer.PageSize())
	for _, pgno := range pgnos[:min(len(pgnos), maxDamaged)] {
		if pgno > db.peer.PageCount() {
			break
		}
		if err := db.peer.ReadPage(pgno, b); err != nil {
			return dir, err
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("page-%08d", pgno)), b, 0o600); err != nil {
			return dir, err
		}
	}
	return dir, vfs.OS().SyncDir(dir)
}

// setRepairing says what is being repaired; "" ends it.
func (db *DB) setRepairing(what string) {
	if what == "" {
		db.repairing.Store(nil)
		return
	}
	db.repairing.Store(&what)
}
