package peer

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// While the database is lent local programs write to it, in whatever mode its header names; then they are refused
// again, and the Peer goes on from what they have published.
func TestLend(t *testing.T) {
	app := sqlitetest.Start(t)
	for _, mode := range []string{"delete", "wal"} {
		t.Run(mode, func(t *testing.T) {
			p := newPrimary(t, app, mode, 4096)
			r := newReplica(t, Options{})
			r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
			c, d := app.Open(r.path), app.Open(r.path)
			rows := int64(0)
			for i := range 4 {
				if _, err := c.Exec("INSERT INTO t(b) VALUES (1)"); !busy(err) {
					t.Fatalf("before it is lent: %v, want busy", err)
				}
				must(t, r.LeaveWAL())
				must(t, r.EnterWAL())
				must(t, r.Lend())
				if err := r.Lend(); !errors.Is(err, ErrLent) {
					t.Fatalf("lent twice: %v", err)
				}
				if err := r.Sync(); !errors.Is(err, ErrLent) {
					t.Fatalf("sync of a lent database: %v", err)
				}
				for range 3 {
					c.MustExec("INSERT INTO t(b) VALUES (randomblob(5000))")
					rows++
				}
				if i == 2 {
					c.MustQuery("PRAGMA wal_checkpoint(RESTART)")
					c.MustExec("INSERT INTO t(b) VALUES (randomblob(5000))")
					rows++
				}
				if _, err := c.Query("PRAGMA journal_mode=truncate"); err == nil && c.MustText("PRAGMA journal_mode") != "wal" {
					t.Fatal("the journal mode was changed")
				}
				c.MustExec("BEGIN IMMEDIATE")
				if err := r.Reclaim(impatient(t)); err == nil {
					t.Fatal("reclaimed from a writer in mid-transaction")
				}
				c.MustExec("ROLLBACK")
				must(t, r.Reclaim(patient(t)))
				must(t, r.Reclaim(patient(t)))
				if n := d.MustInt("SELECT count(*) FROM t"); n != rows {
					t.Fatalf("%d rows, want %d", n, rows)
				}
				if int64(r.PageCount()) != d.MustInt("PRAGMA page_count") {
					t.Fatalf("the peer sees %d pages", r.PageCount())
				}
			}
			got := image{pageSize: 4096, b: make([]byte, r.PageCount()*4096)}
			for pgno := uint32(1); pgno <= r.PageCount(); pgno++ {
				must(t, r.ReadPage(pgno, got.page(pgno)))
			}
			r.checkFile(got)
			// What is applied now joins what local programs have written.
			page := bytes.Clone(got.page(1))
			r.apply(txn{PageSize: 4096, Count: r.PageCount(), Pgnos: []uint32{1}, Data: [][]byte{page}})
			if n := d.MustInt("SELECT count(*) FROM t"); n != rows {
				t.Fatalf("%d rows after a transaction, want %d", n, rows)
			}
			c.Close()
			d.Close()
			r.close()
			sqlitetest.CheckIntegrity(t, r.path)
			if _, err := os.Stat(r.path); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A writer that dies in mid-transaction leaves frames that count for nothing.
func TestLendDeadWriter(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "wal", 4096)
	r := newReplica(t, Options{})
	r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
	must(t, r.Lend())
	dying := sqlitetest.Start(t)
	c := dying.Open(r.path, "cache_size=1")
	c.MustExec("INSERT INTO t(b) VALUES (randomblob(100))")
	c.MustExec("BEGIN IMMEDIATE")
	for range 50 {
		c.MustExec("INSERT INTO t(b) VALUES (randomblob(5000))")
	}
	dying.Kill()
	must(t, r.Reclaim(patient(t)))
	d := app.Open(r.path)
	if n := d.MustInt("SELECT count(*) FROM t"); n != 1 {
		t.Fatalf("%d rows, want 1", n)
	}
}
