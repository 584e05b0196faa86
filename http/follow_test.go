package http_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/http"
	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/lease/static"
)

func TestMain(m *testing.M) { sqlitetest.Main(m) }

// patience is how long a test waits for what should be quick.
const patience = 60 * time.Second

// startPrimary opens a store, and serves it. SQLite works on the plain files below it.
func startPrimary(t *testing.T, dir string) (*litefs.Store, *http.Server) {
	t.Helper()
	store := litefs.NewStore(dir)
	store.Logger = testLogger(t)
	if err := store.Open(); err != nil {
		t.Fatal(err)
	}
	srv := http.NewServer(store, http.Options{Addr: "127.0.0.1:0", Candidate: true, Logger: store.Logger})
	if err := srv.Listen(); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := srv.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store, srv
}

// startReplica follows the node at url.
func startReplica(t *testing.T, dir, url string, change ...func(*litefs.Store)) *litefs.Store {
	t.Helper()
	store := litefs.NewStore(dir)
	store.Logger = testLogger(t)
	store.ReconnectDelay = 10 * time.Millisecond
	leaser, err := static.NewFollower("", url)
	if err != nil {
		t.Fatal(err)
	}
	store.Leaser = leaser
	store.Client = http.NewClient(store, "")
	for _, f := range change {
		f(store)
	}
	if err := store.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Unmounting(); err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := store.Mounted(store.FilesDir(), false); err != nil {
		t.Fatal(err)
	}
	return store
}

func testLogger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// create makes a database on the primary and tells its store, as the mount would.
func create(t *testing.T, store *litefs.Store, app *sqlitetest.App, name string) *sqlitetest.Conn {
	t.Helper()
	path := filepath.Join(store.FilesDir(), name)
	c := app.Open(path)
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB)")
	c.MustExec("CREATE TABLE twin(id INTEGER PRIMARY KEY)")
	c.Close()
	store.Released(name, true, true)
	if store.DBByName(name) == nil {
		t.Fatalf("%s was not recorded", name)
	}
	c = app.Open(path, "journal_mode=wal", "synchronous=off")
	c.MustExec("CREATE TABLE last(id)") // makes the write-ahead log
	store.Opened(name+"-wal", false, true)
	store.Opened(name+"-shm", false, true)
	return c
}

// write commits n transactions, which readers must see whole: each adds a row to two tables.
func write(t *testing.T, c *sqlitetest.Conn, n, size int) {
	t.Helper()
	for range n {
		c.MustExec("BEGIN")
		c.MustExec(fmt.Sprintf("INSERT INTO t(b) VALUES (randomblob(%d))", size))
		c.MustExec("INSERT INTO twin DEFAULT VALUES")
		c.MustExec("COMMIT")
	}
}

// eventually waits until ok, looking again at intervals.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// hasRows reports whether the replica shows so many transactions, and fails if it shows half of one.
func hasRows(t *testing.T, app *sqlitetest.App, replica *litefs.Store, name string, want int64) bool {
	t.Helper()
	db := replica.DBByName(name)
	if db == nil || db.Pos().IsZero() {
		return false
	}
	c, err := app.TryOpen(filepath.Join(replica.FilesDir(), name), "busy_timeout=20000")
	if err != nil {
		return false // it is being renamed
	}
	defer c.Close()
	rows, err := c.Query("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM twin)")
	if err != nil {
		return false // as above: SQLite has made an empty file of that name
	}
	row := rows[0]
	if row[0] != row[1] {
		t.Fatalf("%s: half a transaction is visible: %v", name, row)
	}
	return row[0] == want
}

// fault is what a proxy does to the bytes of one connection, from the primary to the replica.
type fault struct {
	after int64 // bytes that pass untouched
	do    func(b []byte) (out []byte, end bool)
}

func cut(b []byte) ([]byte, bool)       { return b[:len(b)/2], true }
func duplicate(b []byte) ([]byte, bool) { return append(b[:len(b):len(b)], b...), false }
func corrupt(b []byte) ([]byte, bool)   { b[len(b)/2] ^= 0x55; return b, false }

// startProxy passes connections on to addr. The nth of them suffers the nth fault, those after the last
// fault none. It returns its URL.
func startProxy(t *testing.T, addr string, faults ...fault) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for n := 0; ; n++ {
			down, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", addr)
			if err != nil {
				_ = down.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, up, down)
			mu.Unlock()
			f := fault{after: 1 << 62}
			if n < len(faults) {
				f = faults[n]
			}
			wg.Go(func() { _, _ = io.Copy(up, down); _ = up.Close() })
			wg.Go(func() { f.pass(down, up); _ = down.Close(); _ = up.Close() })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return "http://" + ln.Addr().String()
}

func (f fault) pass(dst io.Writer, src io.Reader) {
	if _, err := io.CopyN(dst, src, f.after); err != nil {
		return // the connection has ended
	}
	b := make([]byte, 4<<10)
	n, err := src.Read(b)
	if err != nil {
		return
	}
	out, end := f.do(b[:n])
	if _, err := dst.Write(out); err != nil || end {
		return
	}
	_, _ = io.CopyN(dst, src, 50_000+2*f.after) // and then the connection is cut
}

// Whatever happens to the connection, a replica shows whole transactions only, and in the end all.
func TestFollow_FaultyConnections(t *testing.T) {
	app := sqlitetest.Start(t)
	primary, srv := startPrimary(t, t.TempDir())
	names := []string{"a.db", "sub-b.db"}
	var conns []*sqlitetest.Conn
	for _, name := range names {
		conns = append(conns, create(t, primary, app, name))
	}
	var faults []fault
	for i, do := range []func([]byte) ([]byte, bool){cut, corrupt, duplicate, cut, corrupt, duplicate, corrupt, cut} {
		faults = append(faults, fault{after: []int64{300, 2000, 30_000, 200_000, 700_000}[i%5], do: do})
	}
	url := startProxy(t, srv.URL()[len("http://"):], faults...)
	replica := startReplica(t, t.TempDir(), url)
	rows := int64(0)
	for range 6 {
		for i, c := range conns {
			write(t, c, 3, 1000)
			write(t, c, 1, 300_000) // in chunks
			hasRows(t, app, replica, names[i], 0)
		}
		rows += 4
	}
	for _, name := range names {
		eventually(t, name+" is complete on the replica", func() bool { return hasRows(t, app, replica, name, rows) })
		eventually(t, name+" is at the primary's position", func() bool {
			return replica.DBByName(name).Pos() == primary.DBByName(name).Pos()
		})
	}
	app.Exit()
}

// A replica of which one database cannot be applied to follows with the others, says why, and takes the
// one up again when it can.
func TestFollow_OneDatabaseHeldUp(t *testing.T) {
	app := sqlitetest.Start(t)
	primary, srv := startPrimary(t, t.TempDir())
	a, b := create(t, primary, app, "a.db"), create(t, primary, app, "b.db")
	replica := startReplica(t, t.TempDir(), srv.URL())
	for _, name := range []string{"a.db", "b.db"} {
		eventually(t, name+" is on the replica", func() bool { return hasRows(t, app, replica, name, 0) })
	}
	log := replica.DBByName("a.db").LTXDir()
	if err := os.Rename(log, log+"-away"); err != nil {
		t.Fatal(err)
	}
	write(t, a, 2, 100)
	write(t, a, 1, 6<<20) // more than the window
	write(t, b, 5, 100)
	eventually(t, "b.db goes on", func() bool { return hasRows(t, app, replica, "b.db", 5) })
	if err := os.Rename(log+"-away", log); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a.db is taken up again", func() bool { return hasRows(t, app, replica, "a.db", 3) })

	eventually(t, "the primary knows where its replica is", func() bool {
		list := primary.Replicas()
		if len(list) != 1 || list[0].NodeID != replica.NodeID() || !list[0].Connected {
			return false
		}
		for _, db := range primary.DBs() {
			ack := list[0].Databases[db.ID()]
			if ack.Applied != db.Pos() || ack.Durable != db.Pos() || ack.Received != db.Pos() {
				return false
			}
		}
		return true
	})
	app.Exit()
}

// Names that change hands, databases that are dropped and made again: the replica ends with the same.
func TestFollow_NamesAndDrops(t *testing.T) {
	app := sqlitetest.Start(t)
	primary, srv := startPrimary(t, t.TempDir())
	for i, name := range []string{"x.db", "y.db", "z.db"} {
		c := create(t, primary, app, name)
		write(t, c, i+1, 100)
		c.MustExec("PRAGMA journal_mode=delete") // no log beside it when it is renamed
		c.Close()
		primary.Released(name, true, true)
	}
	replica := startReplica(t, t.TempDir(), srv.URL())
	for i, name := range []string{"x.db", "y.db", "z.db"} {
		eventually(t, name+" is on the replica", func() bool { return hasRows(t, app, replica, name, int64(i+1)) })
	}
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(filepath.Join(primary.FilesDir(), from), filepath.Join(primary.FilesDir(), to)); err != nil {
			t.Fatal(err)
		}
		primary.Renamed(from, to, nil)
	}
	drop := func(name string) {
		t.Helper()
		if err := os.Remove(filepath.Join(primary.FilesDir(), name)); err != nil {
			t.Fatal(err)
		}
		primary.Unlinked(name, nil)
	}
	rename("x.db", "t.db")
	rename("y.db", "x.db")
	rename("t.db", "y.db")
	eventually(t, "x.db and y.db have changed places", func() bool {
		return hasRows(t, app, replica, "x.db", 2) && hasRows(t, app, replica, "y.db", 1)
	})
	dropped := primary.DBByName("z.db").ID()
	drop("z.db")
	rename("y.db", "z.db")
	eventually(t, "z.db is what y.db was", func() bool {
		return hasRows(t, app, replica, "z.db", 1) && replica.DBByName("y.db") == nil
	})
	drop("x.db")
	write(t, create(t, primary, app, "x.db"), 5, 100)
	eventually(t, "x.db is another database", func() bool { return hasRows(t, app, replica, "x.db", 5) })
	if got, want := len(replica.DBs()), len(primary.DBs()); got != want {
		t.Errorf("%d databases on the replica, %d on the primary", got, want)
	}
	// For its own followers, should it become the primary.
	if b, err := os.ReadFile(filepath.Join(replica.Path(), "dropped")); err != nil || !strings.Contains(string(b), litefs.FormatDBID(dropped)) {
		t.Errorf("the replica does not remember that %s was dropped: %q, %v", litefs.FormatDBID(dropped), b, err)
	}
	app.Exit()
}
