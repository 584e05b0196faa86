package peer

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/sqlitefile"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	sqlitetest.Main(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patient is a context that ends only when something hangs.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// contextOf is a context with a deadline, for code without a test.
func contextOf(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// impatient is a context for waits that are to fail.
func impatient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// image is the content of a database.
type image struct {
	pageSize uint32
	b        []byte
}

func (m image) count() uint32 {
	if m.pageSize == 0 {
		return 0
	}
	return uint32(len(m.b)) / m.pageSize
}

func (m image) page(pgno uint32) []byte {
	return m.b[int(pgno-1)*int(m.pageSize):][:m.pageSize]
}

// txn is what a transaction made of a database.
type txn struct {
	PageSize, Count uint32
	Pgnos           []uint32
	Data            [][]byte
}

func (x txn) pages(yield func(uint32, []byte) error) error {
	for i, pgno := range x.Pgnos {
		if err := yield(pgno, x.Data[i]); err != nil {
			return err
		}
	}
	return nil
}

// diff returns the transaction that makes after of before.
func diff(before, after image) txn {
	x := txn{PageSize: after.pageSize, Count: after.count()}
	lock := sqlitefile.LockPgno(after.pageSize)
	for pgno := uint32(1); pgno <= after.count(); pgno++ {
		if pgno == lock || pgno <= before.count() && bytes.Equal(before.page(pgno), after.page(pgno)) {
			continue
		}
		x.Pgnos = append(x.Pgnos, pgno)
		x.Data = append(x.Data, after.page(pgno))
	}
	return x
}

// primary is a database that SQLite writes, and a source of transactions.
type primary struct {
	t    testing.TB
	path string
	wal  bool
	*sqlitetest.Conn
	img image
}

// newPrimary makes a database whose header names the journal mode, "wal" or
// "delete".
func newPrimary(t testing.TB, app *sqlitetest.App, mode string, pageSize int) *primary {
	t.Helper()
	path := filepath.Join(t.TempDir(), "primary.db")
	c := app.Open(path, fmt.Sprintf("page_size=%d", pageSize), "synchronous=off", "wal_autocheckpoint=0")
	c.MustQuery("PRAGMA journal_mode=" + mode)
	return &primary{t: t, path: path, wal: mode == "wal", Conn: c}
}

// tx runs statements and returns what they changed.
func (p *primary) tx(sql string, args ...any) txn {
	p.t.Helper()
	p.MustExec(sql, args...)
	return p.changed()
}

func (p *primary) changed() txn {
	p.t.Helper()
	if p.wal {
		p.MustQuery("PRAGMA wal_checkpoint(TRUNCATE)")
	}
	b, err := os.ReadFile(p.path)
	must(p.t, err)
	h, err := sqlitefile.ParseHeader(b)
	must(p.t, err)
	old := p.img
	p.img = image{pageSize: h.PageSize, b: b}
	if old.pageSize != h.PageSize {
		old = image{}
	}
	return diff(old, p.img)
}

// replica is a Peer on a database of its own.
type replica struct {
	*Peer
	t    testing.TB
	path string
	opt  Options
}

func newReplica(t testing.TB, opt Options) *replica {
	t.Helper()
	opt.Path = filepath.Join(t.TempDir(), "replica.db")
	opt.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	r := &replica{t: t, path: opt.Path, opt: opt}
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *replica) open() {
	r.t.Helper()
	var err error
	r.Peer, err = Open(patient(r.t), r.opt)
	must(r.t, err)
}

func (r *replica) close() {
	r.t.Helper()
	must(r.t, r.Peer.Close(patient(r.t)))
}

func (r *replica) apply(x txn) {
	r.t.Helper()
	must(r.t, r.Apply(patient(r.t), x.Count, x.PageSize, x.pages))
}

// check compares each page that the Peer reads.
func (r *replica) check(want image) {
	r.t.Helper()
	must(r.t, r.compare(want))
}

func (r *replica) compare(want image) error {
	if r.PageCount() != want.count() || r.PageSize() != want.pageSize {
		return fmt.Errorf("%d pages of %d bytes, want %d of %d", r.PageCount(), r.PageSize(), want.count(), want.pageSize)
	}
	buf := make([]byte, want.pageSize)
	for pgno := uint32(1); pgno <= want.count(); pgno++ {
		if pgno == sqlitefile.LockPgno(want.pageSize) {
			continue
		}
		if err := r.ReadPage(pgno, buf); err != nil {
			return err
		}
		if !bytes.Equal(buf, want.page(pgno)) {
			return fmt.Errorf("page %d differs", pgno)
		}
	}
	return nil
}

// checkFile copies everything to the database file and compares it.
func (r *replica) checkFile(want image) {
	r.t.Helper()
	complete, err := r.Checkpoint(patient(r.t))
	must(r.t, err)
	if !complete {
		r.t.Fatal("checkpoint is not complete")
	}
	b, err := os.ReadFile(r.path)
	must(r.t, err)
	if !bytes.Equal(b, want.b) {
		r.t.Fatalf("database file differs: %d bytes, want %d", len(b), len(want.b))
	}
}
