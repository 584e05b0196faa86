package e2e

import (
	"fmt"
	"testing"

	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// A case is something applications do to one database. Whatever it is, afterwards the log replayed into
// an empty file must be the database, byte for byte.
type scenario struct {
	name string
	run  func(t *testing.T, app *sqlitetest.App, path string, pageSize int)
}

var pageSizes = []int{512, 1024, 4096, 16384, 65536}

// create opens a new database in WAL mode with a table t(id, v).
func create(app *sqlitetest.App, path string, pageSize int, pragmas ...string) *sqlitetest.Conn {
	c := app.Open(path, append([]string{
		fmt.Sprintf("page_size=%d", pageSize), "journal_mode=wal", "synchronous=normal",
	}, pragmas...)...)
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	return c
}

// fill writes rows in one transaction.
func fill(c *sqlitetest.Conn, rows, size int) {
	c.MustExec(fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO t(v) SELECT randomblob(%d) FROM n", rows, size))
}

var scenarios = []scenario{
	{"inserts", func(t *testing.T, app *sqlitetest.App, path string, pageSize int) {
		c := create(app, path, pageSize)
		if _, err := c.Repeat([]sqlapp.Step{insert(100)}, 50, 0); err != nil {
			t.Error(err)
		}
		c.Close()
	}},
	{"left open by a crash", func(t *testing.T, _ *sqlitetest.App, path string, pageSize int) {
		app := sqlitetest.Start(t)
		c := create(app, path, pageSize, "wal_autocheckpoint=0")
		fill(c, 20, 3000)
		c.MustExec("DELETE FROM t WHERE id % 2")
		c.MustExec("BEGIN IMMEDIATE")
		fill(c, 10, 300)
		app.Kill()
	}},
	{"checkpoints of all kinds", func(t *testing.T, app *sqlitetest.App, path string, pageSize int) {
		c := create(app, path, pageSize, "wal_autocheckpoint=7")
		for _, kind := range []string{"PASSIVE", "FULL", "RESTART", "TRUNCATE"} {
			fill(c, 5, 2000)
			rows := c.MustQuery("PRAGMA wal_checkpoint(" + kind + ")")
			if rows[0][0] != int64(0) {
				t.Errorf("%s checkpoint was busy: %v", kind, rows)
			}
			if _, err := c.Repeat([]sqlapp.Step{insert(100)}, 10, 0); err != nil {
				t.Error(err)
			}
		}
		c.Close()
	}},
	{"checkpoint under a reader", func(t *testing.T, app *sqlitetest.App, path string, pageSize int) {
		w := create(app, path, pageSize)
		r := app.Open(path)
		r.MustExec("BEGIN")
		r.MustInt("SELECT count(*) FROM t")
		fill(w, 30, 1000)
		w.MustExec("PRAGMA wal_checkpoint(PASSIVE)")
		fill(w, 3, 1000)
		if n := r.MustInt("SELECT count(*) FROM t"); n != 0 {
			t.Errorf("the snapshot shows %d rows", n)
		}
		r.MustExec("COMMIT")
		w.MustExec("PRAGMA wal_checkpoint(TRUNCATE)")
		fill(w, 3, 1000)
		r.Close()
		w.Close()
	}},
	{"exclusive locking", func(_ *testing.T, app *sqlitetest.App, path string, pageSize int) {
		c := app.Open(path, fmt.Sprintf("page_size=%d", pageSize), "locking_mode=exclusive", "journal_mode=wal", "wal_autocheckpoint=5")
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		fill(c, 20, 1000)
		fill(c, 20, 1000)
		c.MustExec("PRAGMA wal_checkpoint(RESTART)")
		fill(c, 20, 1000)
		c.Close()
	}},
	{"exclusive and back", func(_ *testing.T, app *sqlitetest.App, path string, pageSize int) {
		c := create(app, path, pageSize)
		c.MustExec("PRAGMA locking_mode=exclusive")
		fill(c, 20, 1000)
		c.MustExec("PRAGMA locking_mode=normal")
		c.MustInt("SELECT count(*) FROM t")
		fill(c, 20, 1000)
		c.Close()
	}},
	{"spills and rolled-back frames", func(_ *testing.T, app *sqlitetest.App, path string, pageSize int) {
		c := create(app, path, pageSize, "cache_size=4", "cache_spill=2")
		c.MustExec("BEGIN")
		fill(c, 40, 2*pageSize)
		c.MustExec("ROLLBACK")
		fill(c, 2, 100)
		c.MustExec("BEGIN")
		fill(c, 40, pageSize)
		c.MustExec("COMMIT")
		c.MustExec("BEGIN")
		c.MustExec("UPDATE t SET v = randomblob(100)")
		c.MustExec("ROLLBACK")
		c.Close()
	}},
	{"savepoints", func(_ *testing.T, app *sqlitetest.App, path string, pageSize int) {
		c := create(app, path, pageSize, "cache_size=4", "cache_spill=2")
		c.MustExec("BEGIN")
		fill(c, 20, 1000)
		c.MustExec("SAVEPOINT a")
		fill(c, 30, 3000)
		c.MustExec("SAVEPOINT b")
		c.MustExec("DELETE FROM t")
		c.MustExec("ROLLBACK TO b")
		c.MustExec("UPDATE t SET v = zeroblob(50) WHERE id % 3 = 0")
		c.MustExec("ROLLBACK TO a")
		fill(c, 3, 300)
		c.MustExec("RELEASE a")
		c.MustExec("COMMIT")
		c.Close()
	}},
	{"vacuum", func(_ *testing.T, app *sqlitetest.App, path string, pageSize int) {
		c := create(app, path, pageSize)
		fill(c, 40, 3000)
		c.MustExec("DELETE FROM t WHERE id > 5")
		c.MustExec("VACUUM")
		fill(c, 5, 300)
		c.Close()
	}},
	{"auto_vacuum", func(_ *testing.T, app *sqlitetest.App, path string, pageSize int) {
		c := app.Open(path, fmt.Sprintf("page_size=%d", pageSize), "auto_vacuum=full", "journal_mode=wal")
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		fill(c, 40, 3000)
		c.MustExec("DELETE FROM t WHERE id > 5")
		fill(c, 5, 300)
		c.Close()
	}},
	{"incremental_vacuum", func(_ *testing.T, app *sqlitetest.App, path string, pageSize int) {
		c := app.Open(path, fmt.Sprintf("page_size=%d", pageSize), "auto_vacuum=incremental", "journal_mode=wal")
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		fill(c, 40, 3000)
		c.MustExec("DELETE FROM t WHERE id > 5")
		c.MustQuery("PRAGMA incremental_vacuum(7)")
		fill(c, 1, 300)
		c.MustQuery("PRAGMA incremental_vacuum")
		c.MustExec("PRAGMA wal_checkpoint(TRUNCATE)")
		fill(c, 5, 300)
		c.Close()
	}},
	{"journal_size_limit", func(_ *testing.T, app *sqlitetest.App, path string, pageSize int) {
		c := create(app, path, pageSize, "journal_size_limit=0", "wal_autocheckpoint=10")
		for range 6 {
			fill(c, 15, 1500)
		}
		c.Close()
	}},
	{"persist_wal", func(_ *testing.T, app *sqlitetest.App, path string, pageSize int) {
		c := create(app, path, pageSize)
		c.PersistWAL(true)
		fill(c, 10, 1000)
		c.Close()
		c = app.Open(path)
		c.PersistWAL(true)
		fill(c, 10, 1000)
		c.MustExec("PRAGMA wal_checkpoint(TRUNCATE)")
		c.Close()
	}},
	{"opened and closed again and again", func(_ *testing.T, app *sqlitetest.App, path string, pageSize int) {
		create(app, path, pageSize).Close()
		for range 5 {
			c := app.Open(path)
			fill(c, 3, 500)
			c.Close()
		}
	}},
	{"the command line", func(t *testing.T, _ *sqlitetest.App, path string, pageSize int) {
		sqlitetest.CLI(t, path, fmt.Sprintf("PRAGMA page_size=%d; PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);", pageSize))
		sqlitetest.CLI(t, path, "INSERT INTO t(v) VALUES (randomblob(5000)); INSERT INTO t(v) VALUES ('x');")
		sqlitetest.CheckIntegrity(t, path)
	}},
	{"unwritten free pages", func(_ *testing.T, app *sqlitetest.App, path string, pageSize int) {
		c := create(app, path, pageSize)
		c.MustExec("BEGIN")
		fill(c, 30, 2000)
		c.MustExec("DELETE FROM t")
		c.MustExec("COMMIT")
		fill(c, 1, 100)
		c.Close()
	}},
}

func TestReplayIsTheDatabase(t *testing.T) {
	modes := []struct {
		name    string
		options []option
	}{
		{"passthrough", nil},
		{"cached", []option{cached}},
	}
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			n := startNode(t, mode.options...)
			app := sqlitetest.Start(t)
			var names []string
			for _, pageSize := range pageSizes {
				for i, sc := range scenarios {
					name := fmt.Sprintf("%d-%02d.db", pageSize, i)
					names = append(names, name)
					ok := t.Run(fmt.Sprintf("%s/%d", sc.name, pageSize), func(t *testing.T) {
						// The children of the scenario end with it; its messages carry its name.
						sc.run(t, app, n.path(name), pageSize)
					})
					if !ok {
						t.Fatalf("%s is %s with pages of %d bytes", name, sc.name, pageSize)
					}
				}
			}
			app.Exit()
			n.stop()
			found := n.verified()
			for _, name := range names {
				db, ok := found[name]
				if !ok || db.Max == 0 {
					t.Errorf("%s has no log", name)
					continue
				}
				if !db.Replayed {
					t.Errorf("%s was not replayed from its first transaction", name)
				}
			}
			// What was captured once is found again, and not captured twice.
			n.start()
			n.stop()
			for name, db := range n.verified() {
				if before := found[name]; before.Max != db.Max || before.Checksum != db.Checksum {
					t.Errorf("%s was at %016x/%016x and is at %016x/%016x after a clean restart", name, before.Max, before.Checksum, db.Max, db.Checksum)
				}
			}
		})
	}
}
