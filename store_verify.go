package litefs

import (
	"errors"
	"os"
	"time"
)

// verifyLoop compares the pages of each database that has changed with their
// checksums, as a scrub does, and as soon as it can. Transactions do not wait for
// it: several that come meanwhile are compared at once. What is wrong is logged
// and counted like what a scrub finds; nothing is mended by itself.
func (s *Store) verifyLoop() {
	sub := s.Subscribe()
	defer sub.Close() //nolint:errcheck // never fails
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-sub.NotifyCh():
		}
		for id := range sub.DirtySet() {
			if db := s.DB(id); db != nil {
				s.verifyPages(db)
			}
		}
	}
}

func (s *Store) verifyPages(db *DB) {
	record, _ := db.PageSums()
	sc := &scrub{db: db, began: time.Now()}
	err := sc.comparePages(s.ctx, record)
	switch {
	case s.ctx.Err() != nil, errors.Is(err, ErrDatabaseNotFound), errors.Is(err, os.ErrNotExist): // dropped meanwhile
	case err != nil:
		db.log().Error("cannot be verified after a transaction; tried again after the next one", "error", err)
	default:
		sc.tell()
	}
}
