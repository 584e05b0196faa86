package http_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// heard is a logger that remembers what was said.
type heard struct {
	slog.Handler
	mu       sync.Mutex
	messages []string
}

func (h *heard) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	h.messages = append(h.messages, r.Message)
	h.mu.Unlock()
	return h.Handler.Handle(ctx, r)
}

func (h *heard) count(part string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.messages {
		if strings.Contains(m, part) {
			n++
		}
	}
	return n
}

func (h *heard) WithAttrs(attrs []slog.Attr) slog.Handler { return h }

func hear(store *litefs.Store) *heard {
	h := &heard{Handler: store.Logger.Handler()}
	store.Logger = slog.New(h)
	return h
}

// largeRows is how many rows of 1 MB large has. A part of it that is larger than what may be on its way
// (litefs.StreamWindow) has come in part when it is cut.
const largeRows = 24

// large makes a database whose log is as large as its file: a replica without it gets a base.
func large(t *testing.T, primary *litefs.Store, app *sqlitetest.App, name string) *sqlitetest.Conn {
	t.Helper()
	c := create(t, primary, app, name)
	fill(t, primary, c, name, largeRows)
	c.MustQuery("PRAGMA wal_checkpoint(PASSIVE)")
	return c
}

// fill writes rows of 1 MB and leaves them in the write-ahead log. No mount holds a checkpoint back here
// until all is captured, so none comes by itself.
func fill(t *testing.T, primary *litefs.Store, c *sqlitetest.Conn, name string, rows int) {
	t.Helper()
	c.MustQuery("PRAGMA wal_autocheckpoint=0")
	write(t, c, rows, 1<<20)
	if err := primary.DBByName(name).Settle(); err != nil {
		t.Fatal(err)
	}
}

// fromBase reports whether a replica's log begins later than the database did.
func fromBase(t *testing.T, replica *litefs.Store, name string) bool {
	t.Helper()
	files, err := os.ReadDir(replica.DBByName(name).LTXDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), "0000000000000001-") {
			return false
		}
	}
	return true
}

// A replica that has nothing gets the pages while transactions go on, wherever they are at that time, and
// shows nothing before it is whole.
func TestBase_BesideTransactions(t *testing.T) {
	for _, inWAL := range []bool{false, true} {
		app := sqlitetest.Start(t)
		primary, srv := startPrimary(t, t.TempDir())
		c := create(t, primary, app, "a.db")
		fill(t, primary, c, "a.db", 8)
		if !inWAL {
			c.MustQuery("PRAGMA wal_checkpoint(PASSIVE)")
		}
		replica := startReplica(t, t.TempDir(), srv.URL())
		rows := int64(8)
		for n := 0; n < 300 && !hasRows(t, app, replica, "a.db", rows); n++ {
			write(t, c, 1, 5000)
			if n%10 == 9 {
				c.MustExec("BEGIN")
				c.MustExec("DELETE FROM t WHERE id = (SELECT max(id) FROM t)")
				c.MustExec("DELETE FROM twin WHERE id NOT IN (SELECT id FROM t)")
				c.MustExec("COMMIT")
			}
			rows = c.MustInt("SELECT count(*) FROM t")
		}
		eventually(t, "the replica has everything", func() bool {
			return hasRows(t, app, replica, "a.db", rows) && replica.DBByName("a.db").Pos() == primary.DBByName("a.db").Pos()
		})
		if !fromBase(t, replica, "a.db") {
			t.Error("the log was sent, not a base")
		}
		sqlitetest.CheckIntegrity(t, filepath.Join(replica.FilesDir(), "a.db"))
		app.Exit()
	}
}

// A base that is cut goes on where it was, in the same file.
func TestBase_CutAndContinued(t *testing.T) {
	app := sqlitetest.Start(t)
	primary, srv := startPrimary(t, t.TempDir())
	c := large(t, primary, app, "a.db")
	url := startProxy(t, srv.URL()[len("http://"):], fault{9_000_000, cut}, fault{9_000_000, cut})
	var said *heard
	replica := startReplica(t, t.TempDir(), url, func(s *litefs.Store) { said = hear(s) })
	write(t, c, 3, 1000)
	eventually(t, "the replica has everything", func() bool { return hasRows(t, app, replica, "a.db", largeRows+3) })
	if n := said.count("goes on"); n < 2 {
		t.Errorf("continued %d times, want 2 at least", n)
	}
	if n := said.count("begins anew"); n > 0 {
		t.Errorf("began anew %d times", n)
	}
	sqlitetest.CheckIntegrity(t, filepath.Join(replica.FilesDir(), "a.db"))
	app.Exit()
}

// A base whose bytes were damaged on the way is not shown: another one is fetched.
func TestBase_Corrupted(t *testing.T) {
	app := sqlitetest.Start(t)
	primary, srv := startPrimary(t, t.TempDir())
	large(t, primary, app, "a.db")
	url := startProxy(t, srv.URL()[len("http://"):], fault{9_000_000, corrupt}, fault{2_000_000, duplicate}, fault{1_000_000, corrupt})
	replica := startReplica(t, t.TempDir(), url)
	eventually(t, "the replica has everything", func() bool { return hasRows(t, app, replica, "a.db", largeRows) })
	sqlitetest.CheckIntegrity(t, filepath.Join(replica.FilesDir(), "a.db"))
	app.Exit()
}

// A replica that ends within a base begins it anew at its next start.
func TestBase_ReplicaStarts(t *testing.T) {
	app := sqlitetest.Start(t)
	primary, srv := startPrimary(t, t.TempDir())
	large(t, primary, app, "a.db")
	dir := t.TempDir()
	t.Run("cut", func(t *testing.T) {
		replica := startReplica(t, dir, startProxy(t, srv.URL()[len("http://"):], fault{9_000_000, cut}), func(s *litefs.Store) {
			s.ReconnectDelay = patience // the base stays half
		})
		eventually(t, "a part has come", func() bool {
			db := replica.DBByName("a.db")
			return db != nil && db.Status().LoadBytes > 0
		})
		if _, err := app.TryOpen(filepath.Join(replica.FilesDir(), "a.db"), "query_only=1", "user_version"); err == nil {
			t.Error("half a database can be read")
		} else if !strings.Contains(err.Error(), "locked") {
			t.Errorf("reading half a database: %v, want that it is locked", err)
		}
	})
	replica := startReplica(t, dir, srv.URL())
	eventually(t, "the replica has everything", func() bool { return hasRows(t, app, replica, "a.db", largeRows) })
	sqlitetest.CheckIntegrity(t, filepath.Join(replica.FilesDir(), "a.db"))
	app.Exit()
}
