package litefs

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// toldPages keeps what an Invalidator was told.
type toldPages struct{ ranges []string }

func (p *toldPages) InvalidateDB(db *DB, offset, size int64) error {
	p.ranges = append(p.ranges, fmt.Sprintf("%s %d+%d", db.Name(), offset, size))
	return nil
}

// TestInvalidatorIsToldOfAppliedPages: one call for each run of pages that an
// entry changed.
func TestInvalidatorIsToldOfAppliedPages(t *testing.T) {
	p := openNode(t, filepath.Join(t.TempDir(), "primary"))
	c := sqlitetest.Open(t, p.path("app.db"), "page_size=4096", "journal_mode=wal", "wal_autocheckpoint=0")
	c.MustExec(createT)
	p.adopt("app.db")
	p.capture("app.db")
	told := &toldPages{}
	n := openNode(t, filepath.Join(t.TempDir(), "replica"), asReplica, func(s *Store) { s.Invalidator = told })
	n.follow(p, "app.db")
	if !slices.Contains(told.ranges, "app.db 0+8192") {
		t.Errorf("a transaction of 2 pages: told of %q", told.ranges)
	}
	for range 20 {
		c.MustExec("INSERT INTO t(b) VALUES (randomblob(3000))")
	}
	p.capture("app.db")
	n.follow(p, "app.db")
	told.ranges = nil
	c.MustExec("UPDATE t SET b = randomblob(3000) WHERE id IN (3, 15)")
	p.capture("app.db")
	n.follow(p, "app.db")
	if len(told.ranges) < 2 || slices.Contains(told.ranges, "app.db 0+8192") {
		t.Errorf("two rows far from each other: told of %q, want a range for each", told.ranges)
	}
}
