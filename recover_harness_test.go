package litefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/sqlitefile"
)

func TestMain(m *testing.M) { sqlitetest.Main(m) }

// Boots of the machine, as recovery tells them apart.
const (
	boot1 = "first-boot"
	boot2 = "second-boot" // what was not synced in the first may be missing
)

// follower is the leaser of a node that never has the lease.
type follower struct{}

func (follower) Close() error         { return nil }
func (follower) AdvertiseURL() string { return "" }
func (follower) Acquire(context.Context) (Lease, error) {
	return nil, ErrPrimaryExists
}
func (follower) PrimaryURL(context.Context) (string, error) { return "", ErrNoPrimary }

// testLogger writes to the test's log; level lets errors through that a test
// does not expect.
func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// node is a store that is open on a data directory and not mounted. SQLite
// works on the plain files below it; what the mount would have said is said by
// the test, or not, which is how a crash begins.
type node struct {
	t     *testing.T
	store *Store
}

type nodeOption func(*Store)

func onBoot(id string) nodeOption { return func(s *Store) { s.bootID = id } }
func asReplica(s *Store)          { s.Leaser = follower{} }

// openNode opens a store, and closes it with the test.
func openNode(t *testing.T, dir string, opts ...nodeOption) *node {
	t.Helper()
	n, err := tryOpenNode(t, dir, opts...)
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	for name, err := range n.store.Failed() {
		t.Fatalf("database %s was set aside: %v", name, err)
	}
	return n
}

func tryOpenNode(t *testing.T, dir string, opts ...nodeOption) (*node, error) {
	t.Helper()
	s := NewStore(dir)
	s.Logger = testLogger(t)
	s.bootID = boot1
	for _, opt := range opts {
		opt(s)
	}
	if err := s.Open(); err != nil {
		return nil, err
	}
	n := &node{t: t, store: s}
	t.Cleanup(func() { _ = s.Close() })
	return n, nil
}

func (n *node) close() {
	n.t.Helper()
	if err := n.store.Close(); err != nil {
		n.t.Fatalf("close store: %v", err)
	}
}

// path is where SQLite finds a database.
func (n *node) path(name string) string { return filepath.Join(n.store.FilesDir(), name) }

func (n *node) db(name string) *DB {
	n.t.Helper()
	db := n.store.DBByName(name)
	if db == nil {
		n.t.Fatalf("no database %s", name)
	}
	return db
}

// adopt begins to record a database, as the end of its first transaction does.
func (n *node) adopt(name string) *DB {
	n.t.Helper()
	db, err := n.store.adopt(name)
	if err != nil {
		n.t.Fatal(err)
	}
	return db
}

// capture captures what SQLite has committed: what inotify and the end of a
// rollback journal bring about.
func (n *node) capture(name string) {
	n.t.Helper()
	db := n.db(name)
	hdr, err := os.ReadFile(n.path(name))
	if err != nil {
		n.t.Fatal(err)
	}
	if h, err := sqlitefile.ParseHeader(hdr); err == nil && h.IsWAL() {
		db.mu.Lock()
		err = db.captureWAL(false)
		db.mu.Unlock()
		if err != nil {
			n.t.Fatalf("capture %s: %v", name, err)
		}
		return
	}
	db.noteUnseen()
	if err := db.journalEnds(false); err != nil {
		n.t.Fatalf("capture %s: %v", name, err)
	}
}

// checkpoint lets SQLite copy the write-ahead log, as far as mode says, after
// the request that the mount would make of it.
func (n *node) checkpoint(name string, c *sqlitetest.Conn, mode string) {
	n.t.Helper()
	if err := n.store.Truncating(false, name, 0); err != nil {
		n.t.Fatalf("barrier of %s: %v", name, err)
	}
	if rows := c.MustQuery("PRAGMA wal_checkpoint(" + mode + ")"); rows[0][0] != int64(0) {
		n.t.Fatalf("checkpoint of %s: %v", name, rows)
	}
}

// crash returns a copy of the data directory as it is at this moment.
func (n *node) crash() string {
	n.t.Helper()
	dir := filepath.Join(n.t.TempDir(), "data")
	copyTree(n.t, n.store.Path(), dir)
	return dir
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(dst, 0o700)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(dst, b, 0o600)
	})
	if err != nil {
		t.Fatalf("copy %s: %v", from, err)
	}
}

// Parts of a data directory with one database, that a crash can leave at
// different ages.
type part string

const (
	files     part = "files"
	ltxDir    part = "dbs/*/ltx"
	checksums part = "dbs/*/checksums"
)

// mix returns a copy of dir in which some parts are those of another copy.
func mix(t *testing.T, dir, other string, parts ...part) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "data")
	copyTree(t, dir, to)
	for _, p := range parts {
		for _, path := range mustGlob(t, to, p) {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
		for _, path := range mustGlob(t, other, p) {
			rel, err := filepath.Rel(other, path)
			if err != nil {
				t.Fatal(err)
			}
			copyTree(t, path, filepath.Join(to, rel))
		}
	}
	return to
}

func mustGlob(t *testing.T, dir string, p part) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, string(p)))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no %s in %s: %v", p, dir, err)
	}
	return paths
}

// edit changes one file in place.
func edit(t *testing.T, path string, change func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// inFiles is the path of a file of the tree in a copy.
func inFiles(dir, name string) string { return filepath.Join(dir, "files", name) }

// entriesOf lists the log files of the one database in a copy, oldest first.
func entriesOf(t *testing.T, dir string) []string {
	t.Helper()
	return mustGlob(t, dir, "dbs/*/ltx/*.ltx")
}

// reader reads databases with SQLite, on copies.
type reader struct {
	t   *testing.T
	app *sqlitetest.App
}

func newReader(t *testing.T) *reader { return &reader{t: t, app: sqlitetest.Start(t)} }

// image returns the pages of a database as SQLite sees them.
func (r *reader) image(path string) []byte {
	r.t.Helper()
	tmp := filepath.Join(r.t.TempDir(), "image.db")
	for _, sfx := range []string{"", "-wal", "-journal"} {
		b, err := os.ReadFile(path + sfx)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(tmp+sfx, b, 0o600)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	c := r.app.Open(tmp)
	if got := c.MustText("PRAGMA integrity_check"); got != "ok" {
		r.t.Errorf("integrity_check of %s: %s", path, got)
	}
	c.MustQuery("PRAGMA wal_checkpoint(TRUNCATE)")
	c.Close()
	b, err := os.ReadFile(tmp)
	if err != nil {
		r.t.Fatal(err)
	}
	hdr, err := sqlitefile.ParseHeader(b)
	if err != nil {
		r.t.Fatalf("%s: %v", path, err)
	}
	return b[:int64(hdr.Pages(int64(len(b))))*int64(hdr.PageSize)]
}

// value asks one question of a copy of a database.
func (r *reader) value(path, sql string) string {
	r.t.Helper()
	tmp := filepath.Join(r.t.TempDir(), "copy.db")
	if err := os.WriteFile(tmp, r.image(path), 0o600); err != nil {
		r.t.Fatal(err)
	}
	c := r.app.Open(tmp)
	defer c.Close()
	return c.MustText(sql)
}

// sliceWriter is a file in memory that grows.
type sliceWriter struct{ b []byte }

func (w *sliceWriter) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(w.b) {
		w.b = append(w.b, make([]byte, need-len(w.b))...)
	}
	return copy(w.b[off:], p), nil
}

// mustAgree checks everything that must hold of a database between two
// transactions: position, log, checksums and files say the same.
func (n *node) mustAgree(r *reader, name string) {
	n.t.Helper()
	db := n.db(name)
	want := r.image(n.path(name))
	ps := int(db.sums.PageSize())
	head, ok := db.txlog.Head()
	switch {
	case !ok:
		n.t.Fatalf("%s: no log entry", name)
	case db.Pos() != Pos{TXID: head.Max, Chksum: head.Post}:
		n.t.Errorf("%s: position %s, head of the log %016x/%016x", name, db.Pos(), head.Max, head.Post)
	case len(want) != int(head.Commit)*int(head.PageSize):
		n.t.Errorf("%s: %d bytes, head of the log says %d pages of %d", name, len(want), head.Commit, head.PageSize)
		return
	case db.sums.Sum() != head.Post || db.sums.Count() != head.Commit:
		n.t.Errorf("%s: checksums add up to %016x for %d pages, head of the log has %016x for %d", name, db.sums.Sum(), db.sums.Count(), head.Post, head.Commit)
	}
	for i := range len(want) / ps {
		pgno := uint32(i + 1)
		sum := uint64(ltx.ChecksumPage(pgno, want[i*ps:(i+1)*ps]))
		if pgno != sqlitefile.LockPgno(uint32(ps)) && db.sums.Get(pgno) != sum {
			n.t.Errorf("%s: page %d has checksum %016x, on record is %016x", name, pgno, sum, db.sums.Get(pgno))
		}
	}
	if tail, _ := db.txlog.Tail(); tail.IsSnapshot() {
		var w sliceWriter
		if _, _, err := db.txlog.Replay(&w, head.Max); err != nil {
			n.t.Errorf("%s: replay: %v", name, err)
		} else if got := w.b[:min(len(w.b), len(want))]; !bytes.Equal(got, want) {
			n.t.Errorf("%s: replayed log is not the database: %s", name, firstDifference(got, want, ps))
		}
	}
	if got := n.snapshot(db); !bytes.Equal(got, want) {
		n.t.Errorf("%s: snapshot is not the database: %s", name, firstDifference(got, want, ps))
	}
}

func firstDifference(got, want []byte, ps int) string {
	for i := 0; i+ps <= len(want); i += ps {
		if i+ps > len(got) || !bytes.Equal(got[i:i+ps], want[i:i+ps]) {
			return fmt.Sprintf("page %d of %d differs", i/ps+1, len(want)/ps)
		}
	}
	return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
}

// snapshot decodes the snapshot that a new replica would get.
func (n *node) snapshot(db *DB) []byte {
	n.t.Helper()
	rd, err := db.SnapshotLTX(n.t.Context())
	if err != nil {
		n.t.Errorf("%s: snapshot: %v", db.Name(), err)
		return nil
	}
	defer rd.Close() //nolint:errcheck // read only
	dec := ltx.NewDecoder(rd)
	var out bytes.Buffer
	if err := dec.DecodeDatabaseTo(&out); err != nil {
		n.t.Errorf("%s: decode snapshot: %v", db.Name(), err)
	}
	return out.Bytes()
}

// lastClosed tells the database what the mount tells when the last connection to it is closed: a
// checkpoint, and the write-ahead log goes.
func (n *node) lastClosed(name string) {
	n.t.Helper()
	db := n.db(name)
	if err := db.barrier(math.MaxInt64); err != nil {
		n.t.Fatal(err)
	}
	db.walRemoved()
}

// mustGoOn checks that the database is captured from here on, and that a clean
// stop leaves nothing to recover.
func (n *node) mustGoOn(r *reader, name string) {
	n.t.Helper()
	db := n.db(name)
	before := db.TXID()
	c := r.app.Open(n.path(name))
	c.MustExec("CREATE TABLE IF NOT EXISTS after_recovery(x)")
	c.MustExec("INSERT INTO after_recovery VALUES (randomblob(3000))")
	n.capture(name)
	if db.TXID() <= before {
		n.t.Errorf("%s: position stays %s after a write", name, db.Pos())
	}
	n.mustAgree(r, name)
	c.Close()
	n.lastClosed(name)
	n.mustAgree(r, name)
	pos := db.Pos()
	n.close()

	again := openNode(n.t, n.store.Path(), onBoot("next-boot"), withLogKeys(n.store.LogKeys))
	if got := again.db(name).Pos(); got != pos {
		n.t.Errorf("%s: position %s after a clean stop, was %s", name, got, pos)
	}
	if hashed := again.store.Stats().PageHashes.Load(); hashed != 0 {
		n.t.Errorf("%s: %d pages hashed after a clean stop, want 0", name, hashed)
	}
	again.mustAgree(r, name)
	again.close()
}

// follow brings the node to the position of p, as a stream does.
func (n *node) follow(p *node, name string) {
	n.t.Helper()
	if err := n.tryFollow(p, name); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) tryFollow(p *node, name string) error {
	from := p.db(name)
	to := n.store.DB(from.ID())
	if to == nil {
		var err error
		if to, err = n.store.ForceCreateDB(from.ID(), name); err != nil {
			return err
		}
	}
	for {
		pos, err := to.catchUp(n.t.Context())
		if err != nil {
			return err
		}
		rd, err := from.NextLTX(pos)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, ErrSnapshotNeeded) {
			rd, err = from.SnapshotLTX(n.t.Context())
		}
		if err != nil {
			return err
		}
		if err := errors.Join(to.apply(n.t.Context(), rd, rd.Size), rd.Close()); err != nil {
			return fmt.Errorf("apply to %s: %w", name, err)
		}
	}
}

// rows inserts n transactions of one row each, and captures them one by one.
func (n *node) rows(name string, c *sqlitetest.Conn, count int) {
	n.t.Helper()
	for range count {
		c.MustExec("INSERT INTO t(b) VALUES (randomblob(2500))")
		n.capture(name)
	}
}

const createT = "CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB)"
