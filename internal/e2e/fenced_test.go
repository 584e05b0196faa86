package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// A primary that cannot renew its lease any more ceases to be one before another node can be it: a read that asks for
// the write lock is refused from then on. Others go on with the old copy, for replica.max-staleness from the fence, and
// are refused on the open connection as well. When there is a primary again, wherever, both kinds are answered.
func TestFencedPrimary(t *testing.T) {
	c := newCluster(t, 2*time.Second)
	stale := func(c *childnode.Config) { c.Replica = []string{"max-staleness: 2s", "then: refuse"} }
	a := c.start(quorum(1, "3s"), stale)
	becomesPrimary(a)
	b := c.start(quorum(1, "3s"), stale)
	conn := openPatient(sqlitetest.Start(t), a.path("app.db"), "journal_mode=wal")
	mustCommit(t, conn, "CREATE TABLE t(id INTEGER PRIMARY KEY)")
	mustCommit(t, conn, "INSERT INTO t DEFAULT VALUES")
	samePosition(a, b, "app.db")
	conn.MustQuery("PRAGMA busy_timeout=0")
	busy := func(err error) bool { return sqlapp.IsCode(err, sqlapp.CodeBusy) }
	readAsPrimary := func() error {
		if _, err := conn.Exec("BEGIN IMMEDIATE"); err != nil {
			return err
		}
		_, err := conn.Query("SELECT count(*) FROM t")
		if _, end := conn.Exec("ROLLBACK"); end != nil {
			t.Fatal(end)
		}
		return err
	}
	if err := readAsPrimary(); err != nil {
		t.Fatal(err)
	}
	if err := c.server.Pause(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a read as the primary is refused", func() (bool, string) {
		err := readAsPrimary()
		return busy(err), fmt.Sprint(err)
	})
	eventually(t, "a read of the old copy is refused", func() (bool, string) {
		_, err := conn.Query("SELECT count(*) FROM t")
		return busy(err), fmt.Sprint(err)
	})
	if err := c.server.Resume(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "reads are answered again", func() (bool, string) {
		_, err := conn.Query("SELECT count(*) FROM t")
		return err == nil, fmt.Sprint(err)
	})
	conn.MustQuery("PRAGMA busy_timeout=60000")
	writer := conn
	eventually(t, "a node is the primary", func() (bool, string) {
		for _, n := range []*node{a, b} {
			if info, ok := n.info(); ok && info.IsPrimary {
				writer = openPatient(sqlitetest.Start(t), n.path("app.db"))
				return true, ""
			}
		}
		return false, "none"
	})
	mustCommit(t, writer, "INSERT INTO t DEFAULT VALUES")
	eventually(t, "the open connection sees it", func() (bool, string) {
		rows, err := conn.Query("SELECT count(*) FROM t")
		return err == nil && rows[0][0] == int64(2), fmt.Sprint(rows, err)
	})
}
