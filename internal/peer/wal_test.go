package peer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/sqlitefile"
)

// A reader that holds a snapshot lets the WAL grow up to the hard limit; there
// the Peer waits for it, and goes on when it ends.
func TestWALLimits(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "delete", 4096)
	var waiting atomic.Bool
	r := newReplica(t, Options{SoftWAL: 64 << 10, HardWAL: 256 << 10, Waiting: &waiting})
	insert := "INSERT INTO t(b) VALUES (randomblob(10000))"
	r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
	r.apply(p.tx(insert))
	c := app.Open(r.path)
	c.MustExec("BEGIN")
	sees := func(want int64) {
		t.Helper()
		if n := c.MustInt("SELECT count(*) FROM t"); n != want {
			t.Fatalf("reader sees %d rows, want %d", n, want)
		}
	}
	sees(1)

	var last txn
	for r.WALSize() < 256<<10 {
		last = p.tx(insert)
		r.apply(last)
	}
	before := p.img
	next := p.tx(insert)
	err := r.Apply(impatient(t), next.Count, next.PageSize, next.pages)
	if !errors.Is(err, ErrReaders) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("apply at the hard limit: %v", err)
	}
	r.check(before)
	sees(1)

	ended := make(chan error)
	go func() { ended <- r.Apply(patient(t), next.Count, next.PageSize, next.pages) }()
	must(t, poll(patient(t), "the wait to be told", func() (bool, error) { return waiting.Load(), nil }))
	c.MustExec("COMMIT")
	must(t, <-ended)
	if waiting.Load() {
		t.Error("a transaction that was applied still waits")
	}
	r.check(p.img)
	if r.WALSize() > 64<<10 {
		t.Errorf("WAL has %d bytes in force after the readers left", r.WALSize())
	}
	fi, err := os.Stat(r.path + "-wal")
	must(t, err)
	if fi.Size() > 128<<10 {
		t.Errorf("-wal has %d bytes, the soft limit is %d", fi.Size(), 64<<10)
	}
	c.Close()
	r.checkFile(p.img)
}

// Without readers the WAL stays about as large as the soft limit.
func TestWALRestarts(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "wal", 1024)
	r := newReplica(t, Options{SoftWAL: 32 << 10})
	r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
	restarts, before := 0, r.WALPos()
	for range 200 {
		r.apply(p.tx("INSERT INTO t(b) VALUES (randomblob(1000))"))
		if pos := r.WALPos(); pos.Salt1 != before.Salt1 {
			restarts++
			before = pos
		}
		if r.WALSize() > 48<<10 {
			t.Fatalf("WAL has %d bytes", r.WALSize())
		}
	}
	if restarts < 5 {
		t.Errorf("%d restarts in 200 transactions", restarts)
	}
	r.checkFile(p.img)
	// What is in force is what SQLite finds by itself.
	s, err := scanWAL(r.wal.f, 1<<30)
	must(t, err)
	if pos := r.WALPos(); pos.Frame != s.frames() && pos.Frame != 0 {
		t.Errorf("%d frames in force, the WAL has %d", pos.Frame, s.frames())
	}
}

// Random changes of random rows through a WAL that spans several blocks of the
// wal-index; readers see exactly the primary's rows after each.
func TestReadersSeeTheModel(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			app := sqlitetest.Start(t)
			p := newPrimary(t, app, []string{"delete", "wal"}[seed%2], 512)
			r := newReplica(t, Options{SoftWAL: int64(1+seed) * 3 << 20, HardWAL: 1 << 30})
			r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
			r.apply(p.tx("INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<300) SELECT i, zeroblob(400) FROM n"))
			fresh, held := app.Open(r.path), app.Open(r.path)
			const look = "SELECT count(*), sum(a), sum(length(b)), sum(a * unicode(hex(b))), group_concat(substr(hex(b),1,6)) FROM t"
			snapshot := ""
			for i := range 160 {
				if snapshot == "" && rnd.IntN(4) == 0 {
					held.MustExec("BEGIN")
					snapshot = fmt.Sprint(held.MustQuery(look))
				}
				from, n := 1+rnd.IntN(300), 1+rnd.IntN(70)
				sql := fmt.Sprintf("UPDATE t SET b = randomblob(%d) WHERE a BETWEEN %d AND %d", 300+rnd.IntN(300), from, from+n)
				switch rnd.IntN(20) {
				case 0:
					sql = fmt.Sprintf("DELETE FROM t WHERE a BETWEEN %d AND %d", from, from+n)
				case 1, 2:
					sql = "INSERT OR IGNORE INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<300) SELECT i, randomblob(400) FROM n"
				case 3:
					sql = "VACUUM"
				}
				r.apply(p.tx(sql))
				want := fmt.Sprint(p.MustQuery(look))
				if got := fmt.Sprint(fresh.MustQuery(look)); got != want {
					t.Fatalf("transaction %d, %s: reader sees\n%s\nwant\n%s", i, sql, got, want)
				}
				if snapshot != "" {
					if got := fmt.Sprint(held.MustQuery(look)); got != snapshot {
						t.Fatalf("transaction %d, %s: snapshot changed", i, sql)
					}
					if rnd.IntN(6) == 0 {
						held.MustExec("COMMIT")
						snapshot = ""
					}
				}
				switch rnd.IntN(15) {
				case 0:
					fresh.MustQuery("PRAGMA wal_checkpoint(PASSIVE)")
				case 1:
					_, err := r.Checkpoint(patient(t))
					must(t, err)
				case 2: // another Peer takes over
					abandon(t, r.Peer)
					r.open()
				}
				if i%10 == 0 {
					r.check(p.img)
				}
			}
			fresh.Close()
			held.Close()
			r.checkFile(p.img)
			sqlitetest.CheckIntegrity(t, r.path)
		})
	}
}

func TestBadTransactionsAreRefused(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "delete", 4096)
	r := newReplica(t, Options{})
	page := make([]byte, 4096)
	first := p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
	bad := func(name string, x txn, want error) {
		t.Helper()
		err := r.Apply(patient(t), x.Count, x.PageSize, x.pages)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	list := func() {
		bad("no page at all", txn{PageSize: 4096}, nil)
		bad("page size", txn{PageSize: 1000, Count: 1}, nil)
		bad("beyond the end", txn{4096, 2, []uint32{3}, [][]byte{page}}, nil)
		bad("page 0", txn{4096, 2, []uint32{0}, [][]byte{page}}, nil)
		bad("descending", txn{4096, 2, []uint32{2, 1}, [][]byte{page, page}}, nil)
		bad("short page", txn{4096, 2, []uint32{1}, [][]byte{page[:512]}}, nil)
	}
	list()
	bad("first without page 1", txn{4096, 2, []uint32{2}, [][]byte{page}}, nil)
	bad("first without a header", txn{4096, 2, []uint32{1}, [][]byte{page}}, sqlitefile.ErrNotDatabase)
	if fi, err := os.Stat(r.path); err != nil || fi.Size() != 0 {
		t.Fatalf("database after refused transactions: %v, %v", fi, err)
	}
	c := app.Open(r.path)
	if rows := c.MustQuery("SELECT * FROM sqlite_master"); len(rows) != 0 {
		t.Fatalf("an empty database has %v", rows)
	}
	r.apply(first)
	list()
	small := newPrimary(t, app, "delete", 512).tx("CREATE TABLE t(a)")
	bad("another page size, not every page", txn{512, 2, small.Pgnos[:1], small.Data[:1]}, ErrPageSize)
	bad("another page size, a gap", txn{512, 3, []uint32{1, 3}, small.Data[:2]}, ErrPageSize)
	bad("another page size, but not in the header", txn{512, 1, []uint32{1}, [][]byte{first.Data[0][:512]}}, ErrPageSize)
	broken := errors.New("broken source")
	if err := r.Apply(patient(t), 2, 4096, func(yield func(uint32, []byte) error) error {
		if err := yield(1, page); err != nil {
			return err
		}
		return broken
	}); !errors.Is(err, broken) {
		t.Errorf("source fails: %v", err)
	}
	r.check(p.img)
	r.apply(p.tx("INSERT INTO t(b) VALUES (1)"))
	r.check(p.img)
	if n := c.MustInt("SELECT count(*) FROM t"); n != 1 {
		t.Fatalf("reads %d rows, want 1", n)
	}
}

// A commit may change the size alone, grow by pages that nobody writes, or do
// nothing.
func TestSizesWithoutPages(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "delete", 512)
	r := newReplica(t, Options{})
	r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
	c := app.Open(r.path)
	r.apply(p.tx("INSERT INTO t(b) VALUES (1)"))
	img := p.img

	before := r.WALPos()
	r.apply(txn{PageSize: 512, Count: img.count()})
	if pos := r.WALPos(); pos != before {
		t.Errorf("a transaction of nothing moved the WAL from %+v to %+v", before, pos)
	}
	// 5000 pages appear at once, far beyond what file and WAL have.
	grown := image{512, append(append([]byte{}, img.b...), make([]byte, 5000*512)...)}
	r.apply(txn{PageSize: 512, Count: grown.count()})
	r.check(grown)
	if n := c.MustInt("SELECT count(*) FROM t"); n != 1 {
		t.Fatalf("reads %d rows, want 1", n)
	}
	c.MustQuery("PRAGMA wal_checkpoint(PASSIVE)") // SQLite checks the size
	r.apply(txn{PageSize: 512, Count: img.count()})
	r.check(img)
	c.Close()
	r.checkFile(img)
}

// The page of the lock bytes is in no WAL and is not written by the first
// transaction either.
func TestLockPage(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "delete", 65536)
	x := p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
	r := newReplica(t, Options{})
	full := make([]byte, 65536)
	for i := range full {
		full[i] = 0xaa
	}
	lock := sqlitefile.LockPgno(65536)
	x.Count = lock + 1
	for _, pgno := range []uint32{lock - 1, lock, lock + 1} {
		x.Pgnos, x.Data = append(x.Pgnos, pgno), append(x.Data, full)
	}
	for range 2 { // to the file, then to the WAL
		r.apply(x)
		_, err := r.Checkpoint(patient(t))
		must(t, err)
		for pgno, want := range map[uint32]byte{lock - 1: 0xaa, lock: 0, lock + 1: 0xaa} {
			buf := make([]byte, 65536)
			must(t, r.ReadPage(pgno, buf))
			if buf[0] != want || buf[65535] != want {
				t.Errorf("page %d holds %#x, want %#x", pgno, buf[0], want)
			}
		}
	}
	if n := r.WALPos().Frame; n != 4 {
		t.Errorf("%d frames, want 4 of 5", n)
	}
}

// Beside an empty file a WAL is of another database, and a file without a
// header one whose first transaction was not finished.
func TestLeftoversOfOthers(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "delete", 4096)
	first := p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
	other := newReplica(t, Options{})
	other.apply(newPrimary(t, app, "wal", 4096).tx("CREATE TABLE other(a)"))
	x := txn{PageSize: 4096, Count: 3}
	other.apply(x)
	wal, err := os.ReadFile(other.path + "-wal")
	must(t, err)

	for name, db := range map[string][]byte{"empty": nil, "unfinished": make([]byte, 3*4096)} {
		r := &replica{t: t, path: filepath.Join(t.TempDir(), "replica.db")}
		r.opt.Path = r.path
		must(t, os.WriteFile(r.path, db, 0o600))
		if db == nil {
			must(t, os.WriteFile(r.path+"-wal", wal, 0o600))
		}
		r.open()
		if n := r.PageCount(); n != 0 {
			t.Errorf("%s: %d pages", name, n)
		}
		r.apply(first)
		r.check(p.img)
		if n := app.Open(r.path).MustInt("SELECT count(*) FROM sqlite_master"); n != 1 {
			t.Errorf("%s: reader sees %d tables", name, n)
		}
		r.close()
	}
}
