package capture

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/sqlitefile"
	_ "github.com/mattn/go-sqlite3"
)

var pageSizes = []uint32{512, 1024, 2048, 4096, 8192, 16384, 32768, 65536}

// follower is a copy of a database that is kept up to date by scans alone.
type follower struct {
	t     testing.TB
	path  string
	chain bool // without the wal-index
	pos   WALPos
	image []byte
	count uint64 // commits
	last  Batch
}

// limit reads the wal-index as a peer does: through the file, again while a
// writer is between the two copies.
func (f *follower) limit() Limit {
	f.t.Helper()
	if f.chain {
		return Limit{}
	}
	shm, err := os.Open(f.path + "-shm")
	if err != nil {
		f.t.Fatal(err)
	}
	defer shm.Close()
	for {
		b := make([]byte, sqlitefile.CkptInfoOffset)
		if _, err := shm.ReadAt(b, 0); err != nil {
			f.t.Fatal(err)
		}
		if h, ok := sqlitefile.ParseIndexHeader(b); ok {
			return Published(h)
		}
	}
}

// follow scans and applies what was committed.
func (f *follower) follow() {
	f.t.Helper()
	limit := f.limit()
	wal, err := os.Open(f.path + "-wal")
	if err != nil {
		f.t.Fatal(err)
	}
	defer wal.Close()
	fi, err := wal.Stat()
	if err != nil {
		f.t.Fatal(err)
	}
	b, err := Scan(wal, fi.Size(), f.pos, limit)
	if errors.Is(err, ErrRestarted) {
		f.pos = WALPos{}
		b, err = Scan(wal, fi.Size(), f.pos, limit)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	f.apply(wal, b)
}

func (f *follower) apply(wal *os.File, b Batch) {
	f.t.Helper()
	if b.From != f.pos {
		f.t.Fatalf("batch from %+v, position is %+v", b.From, f.pos)
	}
	if b.Commits == 0 {
		if b.To != b.From || len(b.Pages) != 0 {
			f.t.Fatalf("batch without commits: %+v", b)
		}
		return
	}
	if at, err := At(wal, b.To.Frame); err != nil || at != b.To {
		f.t.Fatalf("position %+v (%v), want %+v", at, err, b.To)
	}
	f.pos, f.last = b.To, b
	f.count += b.Commits
	size := int64(b.PageCount) * int64(b.PageSize)
	f.image = append(f.image, make([]byte, max(0, size-int64(len(f.image))))...)[:size]
	prev := uint32(0)
	for _, p := range b.Pages {
		if p.Pgno <= prev || p.Pgno > b.PageCount || p.Frame <= b.From.Frame || p.Frame > b.To.Frame {
			f.t.Fatalf("page %d in frame %d after page %d, batch %+v to %+v", p.Pgno, p.Frame, prev, b.From, b.To)
		}
		prev = p.Pgno
		if err := ReadPage(wal, p.Frame, b.PageSize, f.image[int64(p.Pgno-1)*int64(b.PageSize):][:b.PageSize]); err != nil {
			f.t.Fatal(err)
		}
	}
}

// wants checks the number of commits and pages since the last call.
func (f *follower) wants(commits uint64) {
	f.t.Helper()
	f.follow()
	if f.count != commits {
		f.t.Errorf("%d commits captured, want %d", f.count, commits)
	}
	f.count = 0
}

// verify compares the copy with the file that SQLite makes of the WAL.
func (f *follower) verify(db *conn) {
	f.t.Helper()
	f.follow()
	db.exec("PRAGMA wal_checkpoint(TRUNCATE)")
	got, err := os.ReadFile(f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	if !bytes.Equal(got, f.image) {
		f.t.Errorf("copy of %d bytes differs from the database of %d bytes", len(f.image), len(got))
	}
}

// conn is one SQLite connection.
type conn struct {
	t  testing.TB
	db *sql.DB
	c  *sql.Conn
}

func (c *conn) close() {
	c.t.Helper()
	if c.db == nil {
		return
	}
	if err := errors.Join(c.c.Close(), c.db.Close()); err != nil {
		c.t.Errorf("close: %v", err)
	}
	c.db = nil
}

func (c *conn) exec(statements ...string) {
	c.t.Helper()
	for _, s := range statements {
		if _, err := c.c.ExecContext(context.Background(), s); err != nil {
			c.t.Fatalf("%s: %v", s, err)
		}
	}
}

func open(t testing.TB, path string, pragmas ...string) *conn {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	cc := &conn{t: t, db: db, c: c}
	t.Cleanup(cc.close)
	cc.exec(pragmas...)
	return cc
}

// start makes a database in WAL mode, without automatic checkpoints, and a
// follower of it.
func start(t testing.TB, pageSize uint32, chain bool, pragmas ...string) (*conn, *follower) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.db")
	db := open(t, path, append([]string{fmt.Sprintf("PRAGMA page_size=%d", pageSize)}, pragmas...)...)
	db.exec("PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=0", "PRAGMA synchronous=OFF")
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	db.exec("SELECT * FROM sqlite_schema") // opens WAL and wal-index
	return db, &follower{t: t, path: path, chain: chain, image: image}
}

const fill = `INSERT INTO t(v) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<%d) SELECT randomblob(%d) FROM n`

// modes runs a test with the wal-index and with the checksum chain alone.
func modes(t *testing.T, fn func(t *testing.T, chain bool)) {
	t.Run("index", func(t *testing.T) { fn(t, false) })
	t.Run("chain", func(t *testing.T) { fn(t, true) })
}

func TestTransactions(t *testing.T) {
	for _, ps := range pageSizes {
		t.Run(fmt.Sprint(ps), func(t *testing.T) {
			modes(t, func(t *testing.T, chain bool) {
				db, f := start(t, ps, chain)
				f.wants(0)
				db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
				f.wants(1)
				for range 5 {
					db.exec(fmt.Sprintf(fill, 20, 400), "UPDATE t SET v=randomblob(10) WHERE id%3=0", "DELETE FROM t WHERE id%5=0")
					f.wants(3)
				}
				f.wants(0)
				db.exec("BEGIN", "UPDATE t SET v=randomblob(300)")
				f.wants(0)
				db.exec("ROLLBACK", "UPDATE t SET v=randomblob(9)")
				f.wants(1)
				f.verify(db)
			})
		})
	}
}

// A cache of few pages writes frames of transactions that have not ended. They
// are overwritten after a rollback, and rewritten in place until the commit.
func TestSpills(t *testing.T) {
	for _, ps := range []uint32{512, 4096, 65536} {
		t.Run(fmt.Sprint(ps), func(t *testing.T) {
			modes(t, func(t *testing.T, chain bool) {
				db, f := start(t, ps, chain)
				db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", fmt.Sprintf(fill, 100, ps/3), "PRAGMA cache_size=5")
				f.wants(2)
				update := fmt.Sprintf("UPDATE t SET v=randomblob(%d)", ps/3)
				walSize := func() int64 {
					fi, err := os.Stat(f.path + "-wal")
					if err != nil {
						t.Fatal(err)
					}
					return fi.Size()
				}
				before := walSize()
				db.exec("BEGIN", update)
				if walSize() == before {
					t.Fatal("nothing was spilled")
				}
				f.wants(0)
				db.exec("ROLLBACK")
				f.wants(0) // the rolled-back frames are still in the file
				db.exec("DELETE FROM t WHERE id=1")
				f.wants(1)

				db.exec("BEGIN", update, "SAVEPOINT a", update+" WHERE id%2", update, "ROLLBACK TO a", update+" WHERE id%3")
				f.wants(0)
				db.exec("SAVEPOINT b", "DELETE FROM t WHERE id%2", "RELEASE b", update)
				f.wants(0)
				db.exec("COMMIT")
				f.wants(1)
				f.verify(db)
			})
		})
	}
}

// A restart overwrites the WAL from its start; frames of its earlier life stay
// behind the new ones.
func TestRestarts(t *testing.T) {
	for _, kind := range []string{"PASSIVE", "FULL", "RESTART", "TRUNCATE"} {
		t.Run(kind, func(t *testing.T) {
			modes(t, func(t *testing.T, chain bool) {
				db, f := start(t, 4096, chain)
				db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
				f.wants(1)
				for i := range 6 {
					db.exec(fmt.Sprintf(fill, 50-8*i, 1000), "DELETE FROM t WHERE id%4=0")
					f.wants(2)
					db.exec("PRAGMA wal_checkpoint(" + kind + ")")
					f.wants(0)
				}
				db.exec("DELETE FROM t WHERE id%4=1")
				f.wants(1)
				f.verify(db)
			})
		})
	}
}

func TestShrink(t *testing.T) {
	for _, ps := range []uint32{512, 4096} {
		for _, vacuum := range []string{"VACUUM", "PRAGMA incremental_vacuum"} {
			t.Run(fmt.Sprint(ps, vacuum), func(t *testing.T) {
				modes(t, func(t *testing.T, chain bool) {
					db, f := start(t, ps, chain, "PRAGMA auto_vacuum=INCREMENTAL")
					db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", fmt.Sprintf(fill, 500, 300))
					f.follow()
					big := len(f.image)
					db.exec("DELETE FROM t WHERE id>20", vacuum)
					f.follow()
					if len(f.image) >= big {
						t.Errorf("%d bytes after %s, %d before", len(f.image), vacuum, big)
					}
					// Shrunk and grown again in one batch.
					db.exec(fmt.Sprintf(fill, 600, 300), "DELETE FROM t WHERE id>10", vacuum, fmt.Sprintf(fill, 300, 200))
					f.follow()
					if f.last.Commits < 4 {
						t.Errorf("%d commits in one batch", f.last.Commits)
					}
					f.verify(db)
				})
			})
		}
	}
}

// Without shared memory there is no wal-index: an exclusive connection keeps it
// in its heap.
func TestExclusive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	db := open(t, path, "PRAGMA journal_mode=WAL")
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{t: t, path: path, chain: true, image: image}
	db.close()
	db = open(t, path+"?_locking_mode=EXCLUSIVE", "PRAGMA wal_autocheckpoint=0", "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	if _, err := os.Stat(path + "-shm"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("-shm: %v, want none", err)
	}
	f.wants(1)
	db.exec("PRAGMA cache_size=5", fmt.Sprintf(fill, 100, 3000), "BEGIN", "UPDATE t SET v=1")
	f.wants(1)
	db.exec("COMMIT")
	f.wants(1)
	f.verify(db)
}

// A padded commit comes as several; the copy is right all the same.
func TestPaddedCommits(t *testing.T) {
	modes(t, func(t *testing.T, chain bool) {
		path := filepath.Join(t.TempDir(), "test.db")
		db := open(t, "file:"+path+"?psow=0", "PRAGMA page_size=512", "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA wal_autocheckpoint=0")
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f := &follower{t: t, path: path, chain: chain, image: image}
		db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", fmt.Sprintf(fill, 10, 10))
		f.follow()
		if f.count <= 2 {
			t.Errorf("%d commit frames: nothing was padded", f.count)
		}
		db.exec("UPDATE t SET v=1")
		f.verify(db)
	})
}

// Writers commit while the follower reads. It sees whole transactions, all of
// them, and none twice.
func TestConcurrentWriters(t *testing.T) {
	modes(t, func(t *testing.T, chain bool) {
		const writers, rounds = 3, 60
		db, f := start(t, 1024, chain)
		db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
		f.wants(1)
		done := make(chan error, writers)
		for range writers {
			w := open(t, f.path, "PRAGMA busy_timeout=60000", "PRAGMA synchronous=OFF", "PRAGMA wal_autocheckpoint=0", "PRAGMA cache_size=10")
			go func() {
				var err error
				for i := 0; i < rounds && err == nil; i++ {
					_, err = w.c.ExecContext(context.Background(), fmt.Sprintf("BEGIN IMMEDIATE; "+fill+"; COMMIT", i, 700))
				}
				done <- err
			}()
		}
		var failed []error
		for left := writers; left > 0; {
			select {
			case err := <-done:
				failed = append(failed, err)
				left--
			default:
				f.follow()
			}
		}
		if err := errors.Join(failed...); err != nil {
			t.Fatal(err)
		}
		f.wants(writers * rounds)
		f.verify(db)
	})
}
