package e2e

import (
	"fmt"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/sqlitefile"
)

// TestSoakLockPage: a database grows over the page that SQLite leaves out for its locks, 1 GiB into the file, and
// shrinks below it again. It takes a minute and some gigabytes.
func TestSoakLockPage(t *testing.T) {
	if soakFor(t) == 0 {
		return
	}
	for _, s := range []setting{{"wal", 65536, "normal", "normal"}, {"delete", 4096, "normal", "full"}} {
		t.Run(s.String(), func(t *testing.T) {
			primary := startNode(t)
			follower := startNode(t, follows(primary))
			c := sqlitetest.Open(t, primary.path("big.db"), fmt.Sprintf("page_size=%d", s.pageSize), "journal_mode="+s.mode, "synchronous="+s.sync)
			c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
			for range 16 {
				fill(c, 3, 1000)
				c.MustExec("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 17) INSERT INTO t(v) SELECT zeroblob(4 << 20) FROM n")
			}
			lock := int64(sqlitefile.LockPgno(uint32(s.pageSize)))
			if n := c.MustInt("PRAGMA page_count"); n <= lock {
				t.Fatalf("%d pages: the lock page is %d", n, lock)
			}
			c.MustExec("UPDATE t SET v = randomblob(5000) WHERE id % 20 = 0") // on both sides of it
			eventually(t, "both nodes hold the same", func() (bool, string) {
				err := agree(t, primary, follower, []string{"big.db"})
				return err == nil, fmt.Sprint(err)
			})
			c.MustExec("DELETE FROM t WHERE length(v) > 5000")
			c.MustExec("VACUUM")
			if n := c.MustInt("PRAGMA page_count"); n >= lock {
				t.Fatalf("%d pages after VACUUM", n)
			}
			c.Close()
			settled(t, primary, follower, "big.db")
		})
	}
}
