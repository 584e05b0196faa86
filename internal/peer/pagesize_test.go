package peer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// resize changes the page size as an application can: in a rollback journal mode
// alone.
func (p *primary) resize(pageSize int) txn {
	p.t.Helper()
	if p.wal {
		p.MustQuery("PRAGMA journal_mode=delete")
	}
	p.MustExec(fmt.Sprintf("PRAGMA page_size=%d; VACUUM", pageSize))
	if p.wal {
		p.MustQuery("PRAGMA journal_mode=wal")
	}
	return p.changed()
}

const codeCorrupt = 11 // SQLITE_CORRUPT

const bigInsert = "INSERT INTO t(b) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<40) SELECT randomblob(700) FROM n"

// The page size changes up and down under a connection that reads, one that
// does not, and one with a mapped database file; all see the new content at
// their next look.
func TestPageSizeChanges(t *testing.T) {
	app := sqlitetest.Start(t)
	for _, mode := range []string{"delete", "wal"} {
		t.Run(mode, func(t *testing.T) {
			p := newPrimary(t, app, mode, 4096)
			r := newReplica(t, Options{SoftWAL: 64 << 10})
			r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
			r.apply(p.tx(bigInsert))
			readers := map[string]*sqlitetest.Conn{
				"reader": app.Open(r.path),
				"mapped": app.Open(r.path, "mmap_size=100000000"),
				"idle":   app.Open(r.path),
			}
			look := func(names ...string) {
				t.Helper()
				r.check(p.img)
				want := fmt.Sprint(p.MustQuery(lookSQL))
				for _, name := range names {
					if got := fmt.Sprint(readers[name].MustQuery(lookSQL)); got != want {
						t.Fatalf("%s sees %s, want %s", name, got, want)
					}
				}
				if got := fmt.Sprint(app.Open(r.path).MustQuery(lookSQL)); got != want {
					t.Fatalf("new connection sees %s, want %s", got, want)
				}
			}
			look("reader", "mapped", "idle")
			for _, size := range []int{512, 65536, 1024, 8192, 4096} {
				r.apply(p.resize(size))
				look("reader", "mapped")
				r.apply(p.tx(bigInsert))
				look("reader", "mapped")
				r.apply(p.tx("DELETE FROM t WHERE a % 3 = 0; UPDATE t SET b = randomblob(600) WHERE a % 5 = 0"))
				if size > 1024 {
					look("idle") // over two changes, the second time
				}
			}
			for name, c := range readers {
				if ok := c.MustText("PRAGMA integrity_check"); ok != "ok" {
					t.Errorf("%s: %s", name, ok)
				}
				c.Close()
			}
			r.checkFile(p.img)
			r.close()
			sqlitetest.CheckIntegrity(t, r.path)
		})
	}
}

// A change of the page size waits for readers in the WAL and for no others.
// None sees anything but its snapshot.
func TestPageSizeChangeAndSnapshots(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "delete", 4096)
	r := newReplica(t, Options{})
	r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
	_, err := r.Checkpoint(patient(t))
	must(t, err)
	inFile, inWAL := app.Open(r.path), app.Open(r.path)
	sees := func(c *sqlitetest.Conn, want int64) {
		t.Helper()
		if n := c.MustInt("SELECT count(b) FROM t"); n != want {
			t.Fatalf("reader sees %d rows, want %d", n, want)
		}
	}
	inFile.MustExec("BEGIN")
	sees(inFile, 0)
	r.apply(p.tx(bigInsert))
	inWAL.MustExec("BEGIN")
	sees(inWAL, 40)

	before := p.img
	small := p.resize(512)
	err = r.Apply(impatient(t), small.Count, small.PageSize, small.pages)
	if !errors.Is(err, ErrReaders) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("apply beside a reader in the WAL: %v", err)
	}
	r.check(before)
	sees(inWAL, 40)
	ended := make(chan error)
	go func() { ended <- r.Apply(patient(t), small.Count, small.PageSize, small.pages) }()
	// The reader of the file keeps the WAL from being copied to it, so it must go too.
	inWAL.MustExec("COMMIT")
	inFile.MustExec("COMMIT")
	must(t, <-ended)
	r.check(p.img)

	// Nothing is in the WAL: a reader of the file alone is in nobody's way.
	_, err = r.Checkpoint(patient(t))
	must(t, err)
	inFile.MustExec("BEGIN")
	sees(inFile, 40)
	r.apply(p.resize(32768))
	r.apply(p.tx(bigInsert))
	sees(inFile, 40)
	sees(inWAL, 80)
	inFile.MustExec("COMMIT")
	sees(inFile, 80)
	r.check(p.img)

	// The first thing that a connection does after the change may be a
	// checkpoint. SQLite then finds that its cache and the WAL differ in page
	// size: it refuses, and has touched nothing.
	p2 := p.resize(1024)
	r.apply(p2)
	r.apply(p.tx(bigInsert))
	if _, err := inFile.Query("PRAGMA wal_checkpoint(PASSIVE)"); err != nil && !sqlapp.IsCode(err, codeCorrupt) {
		t.Fatalf("checkpoint: %v", err)
	}
	sees(inFile, 120)
	inFile.MustQuery("PRAGMA wal_checkpoint(PASSIVE)")
	inFile.Close()
	inWAL.Close()
	r.checkFile(p.img)
	sqlitetest.CheckIntegrity(t, r.path)
}

// After a cut the database has the old page size or the new one.
func TestPageSizeChangeCutOff(t *testing.T) {
	app := sqlitetest.Start(t)
	for _, with := range []string{noReader, idleReader} {
		t.Run("reader="+with, func(t *testing.T) {
			p := newPrimary(t, app, "delete", 4096)
			h := &history{}
			for _, x := range []func() txn{
				func() txn { return p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)") },
				func() txn { return p.tx(bigInsert) },
				func() txn { return p.resize(512) },
				func() txn { return p.tx("INSERT INTO t(b) VALUES (randomblob(700))") },
				func() txn { return p.resize(16384) },
				func() txn { return p.tx("UPDATE t SET b = randomblob(800)") },
			} {
				h.txns = append(h.txns, x())
				h.images = append(h.images, p.img)
				h.seen = append(h.seen, fmt.Sprint(p.MustQuery(lookSQL)))
			}
			n, step := 1, 1
			if with == noReader {
				step = 2
			}
			for cutOffAt(t, app, h, n, with) {
				n += step
			}
			if n < 40 {
				t.Errorf("%d changes in all, want more: the history is too simple", n)
			}
		})
	}
}

// A change that fails leaves a database of the old page size to which the
// transaction, or another one of the old size, can be applied.
func TestPageSizeChangeFails(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "delete", 4096)
	first, second := p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"), p.tx(bigInsert)
	before := p.img
	touched := image{pageSize: 4096, b: append([]byte(nil), before.b...)}
	touched.b[len(touched.b)-1] ^= 1
	touch := diff(before, touched)
	resized := p.resize(512)
	for n := 1; ; n++ {
		c := -1
		failed := false
		opt := Options{Path: filepath.Join(t.TempDir(), "replica.db")}
		opt.before = func(change) error {
			if c--; c == 0 {
				failed = true
				return errOnce
			}
			return nil
		}
		r := &replica{t: t, path: opt.Path, opt: opt}
		r.open()
		r.apply(first)
		r.apply(second)
		reader := app.Open(r.path)
		reader.MustInt("SELECT count(*) FROM t")
		c = n
		err := r.Apply(patient(t), resized.Count, resized.PageSize, resized.pages)
		c = -1
		if err != nil && !errors.Is(err, errOnce) {
			t.Fatalf("change %d: %v", n, err)
		}
		if got := reader.MustInt("SELECT count(*) FROM t"); got != 40 {
			t.Fatalf("change %d: reader sees %d rows", n, got)
		}
		if err != nil && r.PageSize() == 4096 {
			r.check(before)
			r.apply(touch)
			r.check(touched)
		}
		r.apply(resized)
		r.check(p.img)
		if got := reader.MustInt("SELECT count(*) FROM t"); got != 40 {
			t.Fatalf("change %d: reader sees %d rows afterwards", n, got)
		}
		reader.Close()
		r.checkFile(p.img)
		r.close()
		if !failed {
			if n < 10 {
				t.Errorf("%d changes in all, want more", n-1)
			}
			return
		}
	}
}
