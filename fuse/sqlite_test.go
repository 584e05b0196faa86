package fuse

import (
	"fmt"
	"testing"
)

func TestSQLite(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		for _, journal := range []string{"WAL", "DELETE", "TRUNCATE", "PERSIST"} {
			t.Run(journal, func(t *testing.T) {
				m := newMount(t, mode)
				a := startApp(t, 0)
				a.do(appRequest{Op: "sqlite", Path: m.Path("app.db")})
				a.query("PRAGMA journal_mode=" + journal)
				a.exec("CREATE TABLE t (x)")
				a.do(appRequest{Op: "execn", SQL: "INSERT INTO t VALUES (randomblob(2000))", Len: 50})
				b := startApp(t, 0)
				b.do(appRequest{Op: "sqlite", Path: m.Path("app.db")})
				if got := b.query("SELECT count(*) FROM t"); got != "50" {
					t.Errorf("count %s", got)
				}
				b.exec("DELETE FROM t WHERE rowid % 2")
				if got := a.query("PRAGMA integrity_check"); got != "ok" {
					t.Errorf("integrity: %s", got)
				}
				if got := a.query("SELECT count(*) FROM t"); got != "25" {
					t.Errorf("count %s", got)
				}
				a.exec("VACUUM")
				if got := b.query("PRAGMA integrity_check"); got != "ok" {
					t.Errorf("integrity after VACUUM: %s", got)
				}
				a.stop()
				b.stop()
			})
		}
	})
}

// newDatabase makes a database of the journal mode and closes it again, so that the next open finds it as it is.
func newDatabase(t *testing.T, m *mount, journal string) {
	t.Helper()
	a := startApp(t, 0)
	a.do(appRequest{Op: "sqlite", Path: m.Path("app.db")})
	a.query("PRAGMA journal_mode=" + journal)
	a.exec("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
	a.do(appRequest{Op: "execn", SQL: "INSERT INTO t (x) VALUES (randomblob(500))", Len: 20})
	a.do(appRequest{Op: "sqliteclose"})
	a.stop()
	m.back.await(t, "Released app.db true true")
	m.back.take()
}

// TestRequestsPerTransaction holds the numbers that the design rests on.
func TestRequestsPerTransaction(t *testing.T) {
	const n = 50
	const write = "UPDATE t SET x = randomblob(500) WHERE id = 3"
	const read = "SELECT * FROM t"
	tests := []struct {
		mode           Mode
		journal, setup string
		warm           string // run before the count
		sql            string
		want           map[string]uint64
	}{
		{Passthrough, "WAL", "cache_size=0", write, read, nil},
		{Passthrough, "WAL", "synchronous=NORMAL", write, write, nil},
		{Passthrough, "WAL", "synchronous=FULL", write, write, map[string]uint64{"FSYNC": n}},
		// While the WAL has no frame, SQLite asks for the size of the database, and a passthrough read has made the
		// access time stale.
		{Passthrough, "WAL", "cache_size=0", read, read, map[string]uint64{"GETATTR": n}},
		{Passthrough, "DELETE", "cache_size=0", read, read, map[string]uint64{"GETATTR": n}},
		{Cached, "WAL", "cache_size=0", read, read, nil},
		{Cached, "WAL", "synchronous=NORMAL", write, write, map[string]uint64{"WRITE": 3 * n}},
		{Cached, "DELETE", "cache_size=0", read, read, nil},
		{Cached, "TRUNCATE", "journal_mode=truncate", write, read, nil},
		// Each transaction looks at the first byte of a journal that is kept. SQLite that runs as root gives the journal
		// its owner at every open (SETATTR), for which the kernel asks for the mode (GETATTR).
		{Cached, "PERSIST", "journal_mode=persist", write, read, map[string]uint64{"OPEN": n, "SETATTR": n, "GETATTR": n}},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s/%s/%s/%.6s", tt.mode, tt.journal, tt.setup, tt.sql), func(t *testing.T) {
			m := newMount(t, tt.mode)
			newDatabase(t, m, tt.journal)
			a := startApp(t, 0)
			a.do(appRequest{Op: "sqlite", Path: m.Path("app.db")})
			a.exec("PRAGMA " + tt.setup)
			a.exec(tt.warm)
			a.exec(tt.sql)
			got := m.requests(func() { a.do(appRequest{Op: "execn", SQL: tt.sql, Len: n}) })
			delete(got, "RELEASE") // one for each OPEN, but a moment after the answer
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("requests of %d transactions: %v, want %v", n, got, tt.want)
			}
			a.stop()
		})
	}
}
