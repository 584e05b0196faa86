package peer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// While writers are held, nobody writes in any journal mode, old and new connections read, and no file changes but that
// a database in WAL mode has its log; afterwards the same connections write.
func TestHoldWriters(t *testing.T) {
	for _, mode := range []string{"wal", "delete", "truncate", "persist", "memory", "off"} {
		t.Run(mode, func(t *testing.T) {
			app := sqlitetest.Start(t)
			path := filepath.Join(t.TempDir(), "app.db")
			first := app.Open(path, "journal_mode="+mode)
			first.MustExec("CREATE TABLE t(a); INSERT INTO t VALUES (1)")
			first.Close()
			for _, open := range []bool{false, true} {
				c := app.Open(path, "journal_mode="+mode)
				if open {
					c.MustInt("SELECT count(*) FROM t")
				} else {
					c.Close()
				}
				before, err := os.ReadFile(path)
				must(t, err)
				h, err := HoldWriters(patient(t), Options{Path: path})
				must(t, err)
				if !open {
					c = app.Open(path, "journal_mode="+mode)
				}
				for _, c := range []*sqlitetest.Conn{c, app.Open(path)} {
					if n := c.MustInt("SELECT count(*) FROM t"); n < 1 {
						t.Fatalf("reads %d rows", n)
					}
					if _, err := c.Exec("INSERT INTO t VALUES (2)"); !busy(err) {
						t.Fatalf("a write: %v, want busy", err)
					}
				}
				after, err := os.ReadFile(path)
				must(t, err)
				if string(after) != string(before) {
					t.Fatal("the database file has changed")
				}
				if _, err := os.Stat(path + "-wal"); (err == nil) != (mode == "wal") {
					t.Fatalf("-wal: %v", err)
				}
				must(t, h.Release())
				c.MustExec("INSERT INTO t VALUES (3)")
				c.Close()
			}
			sqlitetest.CheckIntegrity(t, path)
		})
	}
}

// A transaction under way ends first, and an attempt that is given up leaves nothing behind.
func TestHoldWaitsForTheTransaction(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		app := sqlitetest.Start(t)
		path := filepath.Join(t.TempDir(), "app.db")
		c := app.Open(path, "journal_mode="+mode)
		c.MustExec("CREATE TABLE t(a); BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
		if _, err := HoldWriters(impatient(t), Options{Path: path}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%s: %v", mode, err)
		}
		c.MustExec("COMMIT; INSERT INTO t VALUES (2)")
	}
}
