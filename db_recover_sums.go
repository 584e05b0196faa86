package litefs

import (
	"errors"
	"fmt"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/sqlitefile"
)

// proveSums makes the page checksums those of the log's head, and reports
// whether their sum is the one that the head has.
func (db *DB) proveSums(f found) (bool, error) {
	if !f.logged {
		return false, nil
	}
	ok, err := db.reconcileSums(f)
	if err != nil || ok {
		return ok, err
	}
	return db.rebuildSums(f.head)
}

// reconcileSums brings the page checksums to the head of the log by the log
// alone. They may lag by the entries written just before a crash, and after a
// power cut by any entry still in the log: entries leave the log only after the
// checksums are on disk.
func (db *DB) reconcileSums(f found) (bool, error) {
	ok, replayed, err := db.sumsToHead(f)
	if ok && replayed {
		err = db.sums.Mark(f.head.Max)
	}
	return ok, err
}

// sumsToHead is reconcileSums that leaves the stamp, which says how far the
// files of a replica are, as it is. replayed: entries of the log were read.
func (db *DB) sumsToHead(f found) (ok, replayed bool, err error) {
	stamp := db.sums.Stamp()
	if stamp.TXID == f.head.Max {
		// Room that was made for an entry which did not get into the log.
		if err := db.resizeSums(f.head); err != nil {
			return false, false, err
		}
		if db.sumsMatch(f.head) {
			return true, false, nil
		}
	}
	if !f.lost && !f.cut {
		if err := db.replaySums(stamp.TXID); err != nil {
			return false, false, err
		}
	}
	if !db.sumsMatch(f.head) {
		if err := db.replaySums(0); err != nil {
			return false, false, err
		}
	}
	return db.sumsMatch(f.head), true, nil
}

func (db *DB) resizeSums(head ltxlog.Entry) error {
	if db.sums.PageSize() != head.PageSize {
		return nil
	}
	return db.sums.Resize(head.Commit)
}

func (db *DB) sumsMatch(head ltxlog.Entry) bool {
	return db.sums.PageSize() == head.PageSize && db.sums.Count() == head.Commit && db.sums.Sum() == head.Post
}

// rebuildSums computes the page checksums of the head from the pages that the
// log has and, for those that it does not have any more, from the files.
func (db *DB) rebuildSums(head ltxlog.Entry) (bool, error) {
	if err := db.emptySums(head.PageSize); err != nil {
		return false, err
	}
	if err := db.hashFiles(); err != nil {
		return false, err
	}
	if err := db.replaySums(0); err != nil {
		return false, err
	}
	if !db.sumsMatch(head) {
		return false, nil
	}
	db.log().Warn("page checksums are rebuilt from log and files", "pos", head.Max)
	return true, db.sums.Mark(head.Max)
}

// hashFiles sets the checksum of every page of the files.
func (db *DB) hashFiles() error {
	img, err := db.openImage()
	if errors.Is(err, sqlitefile.ErrNotDatabase) {
		return nil
	}
	if err != nil {
		return err
	}
	defer img.Close() //nolint:errcheck // read only
	if img.pageSize != db.sums.PageSize() {
		return nil
	}
	if err := db.sums.Resize(img.count); err != nil {
		return err
	}
	var failed error
	err = pagesum.Compute(img, img.pageSize, img.count, hashWorkers, func(pgno uint32, sum uint64) {
		if failed == nil {
			failed = db.sums.Set(pgno, sum)
		}
	})
	db.store.stats.PageHashes.Add(uint64(img.count))
	return errors.Join(err, failed)
}

// replaySums sets the checksums of the pages in every entry after txid.
func (db *DB) replaySums(txid uint64) error {
	for _, e := range db.txlog.Entries() {
		if e.Max <= txid {
			continue
		}
		if e.Min == 1 || e.PageSize != db.sums.PageSize() {
			if err := db.emptySums(e.PageSize); err != nil {
				return err
			}
		}
		err := db.txlog.Pages(e, func(pgno uint32, data []byte) error {
			return db.sums.Set(pgno, pagesum.Page(pgno, data))
		})
		if err == nil {
			err = db.sums.Resize(e.Commit)
		}
		if err != nil {
			return fmt.Errorf("read log entry %016x: %w", e.Min, err)
		}
	}
	return nil
}

// emptySums drops every page checksum.
func (db *DB) emptySums(pageSize uint32) error {
	if err := db.sums.SetPageSize(pageSize); err != nil {
		return err
	}
	return db.sums.Resize(0)
}
