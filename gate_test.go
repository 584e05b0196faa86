package litefs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/fuse"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// quorumOf1 is the level of the databases in these tests.
func quorumOf1(timeout time.Duration) nodeOption {
	return func(s *Store) {
		s.Levels = []LevelRule{{Match: "*", Level: Level{Kind: LevelQuorum, N: 1, Timeout: timeout}}}
	}
}

// witness is a replica that has everything at once, as long as it answers.
type witness struct {
	conn   *ReplicaConn
	silent atomic.Bool
	stop   chan struct{}
	done   sync.WaitGroup
}

func newWitness(t *testing.T, s *Store) *witness {
	w := &witness{conn: s.ReplicaRegistry().Connect("witness", "127.0.0.1:1"), stop: make(chan struct{})}
	sub := s.Subscribe()
	w.done.Go(func() {
		for {
			select {
			case <-w.stop:
				return
			case <-sub.NotifyCh():
			case <-time.After(10 * time.Millisecond):
			}
			if w.silent.Load() {
				continue
			}
			for _, db := range s.DBs() {
				if head, ok := db.txlog.Head(); ok {
					pos := Pos{TXID: head.Max, Chksum: head.Post}
					w.conn.Acked(AckStreamFrame{DBID: db.ID(), Received: pos, Durable: pos, Applied: db.Pos()})
				}
			}
		}
	})
	t.Cleanup(func() {
		close(w.stop)
		w.done.Wait()
		if err := sub.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// hooked is a backend that a test looks into.
type hooked struct {
	backend
	mu     sync.Mutex
	before func(path string, off int64, data []byte) error // nil: nothing
	after  func(path string, err error)
	failed func()      // a commit was refused, and nobody knows yet
	syncs  []fuse.Sync // of write-ahead logs
}

func (h *hooked) Syncing(c fuse.Caller, path string) fuse.Sync {
	how := h.backend.Syncing(c, path)
	if strings.HasSuffix(path, "-wal") {
		h.mu.Lock()
		h.syncs = append(h.syncs, how)
		h.mu.Unlock()
	}
	return how
}

// synced returns how write-ahead logs were synced since the last call.
func (h *hooked) synced() []fuse.Sync {
	h.mu.Lock()
	defer h.mu.Unlock()
	syncs := h.syncs
	h.syncs = nil
	return syncs
}

func (h *hooked) refused(err error) error {
	h.mu.Lock()
	failed := h.failed
	h.mu.Unlock()
	if err != nil && !errors.Is(err, fuse.ErrTaken) && failed != nil {
		failed()
	}
	return err
}

func (h *hooked) Unlinking(c fuse.Caller, path string) error {
	return h.refused(h.backend.Unlinking(c, path))
}

func (h *hooked) Truncating(c fuse.Caller, path string, size int64) error {
	return h.refused(h.backend.Truncating(c, path, size))
}

func (h *hooked) set(before func(string, int64, []byte) error, after func(string, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before, h.after = before, after
}

func (h *hooked) Writing(c fuse.Caller, path string, off int64, data []byte) error {
	h.mu.Lock()
	before, after := h.before, h.after
	h.mu.Unlock()
	if before != nil {
		if err := before(path, off, data); err != nil {
			return err
		}
	}
	err := h.backend.Writing(c, path, off, data)
	if after != nil {
		after(path, err)
	}
	return h.refused(err)
}

// gateNode is a primary at level quorum with a witness.
type gateNode struct {
	*mounted
	hook    *hooked
	witness *witness
}

func newGateNode(t *testing.T, timeout time.Duration) *gateNode {
	t.Helper()
	g := &gateNode{hook: &hooked{}}
	g.mounted = mountNodeAs(t, filepath.Join(t.TempDir(), "data"), false, func(s *Store) fuse.Backend {
		g.hook.backend = backend{s}
		return g.hook
	}, quorumOf1(timeout))
	g.witness = newWitness(t, g.store)
	return g
}

const gateSum = "SELECT count(*) || ' ' || coalesce(sum(length(v)), 0) FROM t"

// crashes keeps copies of the data directory as a kill would leave it.
type crashes struct {
	n      *node
	dirs   []string
	writes int
}

func (c *crashes) take() { c.dirs = append(c.dirs, c.n.crash()) }

// maybe takes each write's copy while they are few, and then every fifth.
func (c *crashes) maybe() {
	if c.writes++; c.writes <= 4 || c.writes%11 == 0 {
		c.take()
	}
}

// recovered checks that a copy recovers to a state that is allowed, and that SQLite alone finds the same in it
// before.
func (c *crashes) recovered(t *testing.T, r *reader, what string, allowed ...string) {
	t.Helper()
	for i, dir := range c.dirs {
		n := openNode(t, dir)
		n.mustAgree(r, "app.db")
		got := r.value(n.path("app.db"), gateSum)
		n.close()
		ok := false
		for _, want := range allowed {
			ok = ok || got == want
		}
		if !ok {
			t.Errorf("%s, copy %d: recovered to %q, want one of %q", what, i, got, allowed)
		}
	}
}

// transactions of one, and of many frames; the last spills its cache, so that frames are written over and their
// checksums anew.
var gateTransactions = map[string][]string{
	"one page":  {"UPDATE t SET v = 'x' WHERE id = 1"},
	"two pages": {"INSERT INTO t(v) VALUES (randomblob(100))"},
	"spill": {
		"PRAGMA cache_size=1", "BEGIN", "INSERT INTO t(v) SELECT randomblob(3000) FROM t LIMIT 12",
		"UPDATE t SET v = randomblob(2900) WHERE id % 2", "UPDATE t SET v = randomblob(2800) WHERE id % 3", "COMMIT", "PRAGMA cache_size=100",
	},
}

func run(c *sqlitetest.Conn, stmts []string) error {
	for _, s := range stmts {
		if strings.HasPrefix(s, "PRAGMA") {
			c.MustQuery(s)
			continue
		}
		if _, err := c.Exec(s); err != nil {
			if _, rerr := c.Exec("ROLLBACK"); rerr != nil && !strings.Contains(rerr.Error(), "no transaction") {
				return errors.Join(err, rerr)
			}
			return err
		}
	}
	return nil
}

// A node that is killed at any write of a commit recovers to before or after it; after a refusal to before it, also by
// SQLite's own recovery of the write-ahead log.
func TestGateCrashAtEachWrite(t *testing.T) {
	for _, sync := range []string{"NORMAL", "FULL"} {
		for name, stmts := range gateTransactions {
			if sync == "FULL" && name != "one page" {
				continue
			}
			t.Run(sync+"/"+strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
				g := newGateNode(t, 300*time.Millisecond)
				r := newReader(t)
				c := sqlitetest.Open(t, g.app("app.db"), "busy_timeout=20000", "journal_mode=wal", "synchronous="+sync)
				mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
				mustCommit(t, c, "INSERT INTO t(v) VALUES (randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500))")
				before := c.MustText(gateSum)

				// Refused.
				var cr = &crashes{n: g.node}
				g.hook.set(func(path string, _ int64, _ []byte) error {
					if path == "app.db-wal" {
						cr.maybe()
					}
					return nil
				}, nil)
				g.witness.silent.Store(true)
				if err := run(c, stmts); err == nil {
					t.Fatal("a commit that nobody has was acknowledged")
				}
				g.hook.set(nil, nil)
				writes := cr.writes
				if got := c.MustText(gateSum); got != before {
					t.Fatalf("after the refusal %q, want %q", got, before)
				}
				if got := sqlitetest.Open(t, g.app("app.db")).MustText(gateSum); got != before {
					t.Fatalf("another connection sees %q after the refusal, want %q", got, before)
				}
				after := &crashes{n: g.node}
				after.take()
				if got := r.value(inFiles(after.dirs[0], "app.db"), gateSum); got != before {
					t.Errorf("SQLite's recovery brings back a refused commit: %q, want %q", got, before)
				}
				after.recovered(t, r, "after the refusal", before)
				cr.recovered(t, r, "while it was refused", before)

				// Acknowledged.
				g.witness.silent.Store(false)
				cr = &crashes{n: g.node}
				g.hook.set(func(path string, _ int64, _ []byte) error {
					if path == "app.db-wal" {
						cr.maybe()
					}
					return nil
				}, nil)
				if err := run(c, stmts); err != nil {
					t.Fatalf("a commit that the replica has: %v", err)
				}
				g.hook.set(nil, nil)
				done := c.MustText(gateSum)
				cr.recovered(t, r, "while it was acknowledged", before, done)
				after = &crashes{n: g.node}
				after.take()
				after.recovered(t, r, "after the acknowledgement", done)
				t.Logf("%d writes refused, %d acknowledged", writes, cr.writes)
				g.settles(t)
				g.mustAgree(r, "app.db")
			})
		}
	}
}

// settles waits until nothing is undecided.
func (g *gateNode) settles(t *testing.T) {
	t.Helper()
	db := g.db("app.db")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		head, _ := db.txlog.Head()
		if db.Pos().TXID == head.Max {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("at %s, with %016x in the log", db.Pos(), head.Max)
		}
	}
}

// mustCommit tries until the witness is in sync.
func mustCommit(t *testing.T, c *sqlitetest.Conn, sql string) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if _, err = c.Exec(sql); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", sql, err)
}

// An error at each write of a commit refuses it and nothing else, and the next commit is kept.
func TestGateErrorAtEachWrite(t *testing.T) {
	for name, stmts := range gateTransactions {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			g := newGateNode(t, 20*time.Second)
			r := newReader(t)
			c := sqlitetest.Open(t, g.app("app.db"), "journal_mode=wal")
			mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
			mustCommit(t, c, "INSERT INTO t(v) VALUES (randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500)),(randomblob(500))")
			var writes atomic.Int64
			g.hook.set(func(path string, _ int64, _ []byte) error {
				if path == "app.db-wal" {
					writes.Add(1)
				}
				return nil
			}, nil)
			if err := run(c, stmts); err != nil {
				t.Fatal(err)
			}
			// The last ones are the commit frame, and the checksums written anew.
			count := int(writes.Load())
			step := max(1, count/16)
			for k := count % step; k < count; k += step {
				before := c.MustText(gateSum)
				var left atomic.Int64
				var failed atomic.Bool
				left.Store(int64(k))
				g.hook.set(func(path string, _ int64, _ []byte) error {
					if path != "app.db-wal" || failed.Load() {
						return nil
					}
					if left.Add(-1) < 0 {
						failed.Store(true)
						return syscall.EIO
					}
					return nil
				}, nil)
				err := run(c, stmts)
				g.hook.set(nil, nil)
				if err != nil != failed.Load() {
					t.Fatalf("write %d failed: %v, and the commit: %v", k, failed.Load(), err)
				}
				if failed.Load() && c.MustText(gateSum) != before {
					t.Fatalf("write %d failed: %q, want %q", k, c.MustText(gateSum), before)
				}
				c.MustExec("INSERT INTO t(v) VALUES ('kept')")
				g.settles(t)
			}
			g.mustAgree(r, "app.db")
			t.Logf("%d writes, every %dth failed", count, step)
		})
	}
}

// An application that is killed once its commit was let in, and before it published it, leaves a transaction in doubt.
// The next writer starts with the same frames, and is refused: neither comes back, whoever recovers the log then.
func TestGateDiesBeforePublishing(t *testing.T) {
	g := newGateNode(t, 500*time.Millisecond)
	r := newReader(t)
	c := sqlitetest.Open(t, g.app("app.db"), "busy_timeout=20000", "journal_mode=wal")
	mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	mustCommit(t, c, "INSERT INTO t(v) VALUES ('a'), (randomblob(3000)), (randomblob(3000)), (randomblob(3000))")
	before := c.MustText(gateSum)
	const same = "UPDATE t SET v = zeroblob(2900) WHERE id IN (2, 3, 4)"

	app := sqlitetest.Start(t)
	dying := app.Open(g.app("app.db"))
	dying.MustText(gateSum)
	let := make(chan struct{})
	g.hook.set(nil, func(path string, err error) {
		if path == "app.db-wal" && errors.Is(err, fuse.ErrTaken) && g.db("app.db").inDoubt() {
			g.hook.set(nil, nil)
			if err := syscall.Kill(app.PID(), syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			close(let)
		}
	})
	if _, err := dying.Exec(same); err == nil {
		t.Fatal("the application has survived")
	}
	<-let
	app.Kill()
	db := g.db("app.db")
	if !db.inDoubt() {
		t.Fatal("nothing is in doubt")
	}
	if got := c.MustText(gateSum); got != before {
		t.Fatalf("another connection sees %q, want %q", got, before)
	}
	inDoubt := &crashes{n: g.node}
	inDoubt.take()

	// The same frames again; those who are asked do not answer.
	g.witness.silent.Store(true)
	if _, err := c.Exec(same); err == nil {
		t.Fatal("a commit that nobody has was acknowledged")
	}
	if got := c.MustText(gateSum); got != before {
		t.Fatalf("after the refusal %q, want %q", got, before)
	}
	refused := &crashes{n: g.node}
	refused.take()
	if got := r.value(inFiles(refused.dirs[0], "app.db"), gateSum); got != before {
		t.Errorf("SQLite's recovery brings back a transaction that is void: %q, want %q", got, before)
	}
	refused.recovered(t, r, "after the refusal", before)
	inDoubt.recovered(t, r, "in doubt", before, c.MustText("SELECT count(*) || ' ' || (1 + 3*2900) FROM t"))

	g.witness.silent.Store(false)
	mustCommit(t, c, "INSERT INTO t(v) VALUES ('kept')")
	g.settles(t)
	g.mustAgree(r, "app.db")
}

// A refused commit of a rollback journal is not there afterwards, nor after a kill at the moment of the refusal, when its
// pages are in the file and its entry is in the log.
func TestGateJournalRefused(t *testing.T) {
	for _, mode := range []string{"delete", "truncate", "persist"} {
		t.Run(mode, func(t *testing.T) {
			g := newGateNode(t, 300*time.Millisecond)
			r := newReader(t)
			c := sqlitetest.Open(t, g.app("app.db"), "journal_mode="+mode)
			mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
			mustCommit(t, c, "INSERT INTO t(v) VALUES ('a'), (randomblob(3000)), (randomblob(3000))")
			before := c.MustText(gateSum)
			cr := &crashes{n: g.node}
			g.hook.mu.Lock()
			g.hook.failed = cr.take
			g.hook.mu.Unlock()
			g.witness.silent.Store(true)
			if _, err := c.Exec("UPDATE t SET v = zeroblob(2900)"); err == nil {
				t.Fatal("a commit that nobody has was acknowledged")
			}
			g.hook.mu.Lock()
			g.hook.failed = nil
			g.hook.mu.Unlock()
			if got := c.MustText(gateSum); got != before {
				t.Fatalf("after the refusal %q, want %q", got, before)
			}
			if len(cr.dirs) == 0 {
				t.Fatal("nothing was refused")
			}
			cr.take()
			cr.recovered(t, r, "refused", before)
			if pos, head := g.db("app.db").Pos(), must(g.db("app.db").txlog.Head()); pos.TXID != head.Max {
				t.Errorf("the rollback is not decided: at %s, the log at %016x", pos, head.Max)
			}
			g.witness.silent.Store(false)
			mustCommit(t, c, "INSERT INTO t(v) VALUES ('kept')")
			g.settles(t)
			g.mustAgree(r, "app.db")
		})
	}
}

// All databases of one transaction are decided together: when one part is refused, none counts.
func TestGateSuperJournalRefused(t *testing.T) {
	g := newGateNode(t, 300*time.Millisecond)
	r := newReader(t)
	c := sqlitetest.Open(t, g.app("app.db"), "journal_mode=delete")
	mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	c.MustExec("ATTACH '" + g.app("two.db") + "' AS two")
	mustCommit(t, c, "CREATE TABLE two.t(id INTEGER PRIMARY KEY, v)")
	both := []string{"BEGIN", "INSERT INTO main.t(v) VALUES ('x')", "INSERT INTO two.t(v) VALUES ('x')", "COMMIT"}
	g.witness.silent.Store(true)
	if err := run(c, both); err == nil {
		t.Fatal("a commit that nobody has was acknowledged")
	}
	g.witness.silent.Store(false)
	if got := c.MustText("SELECT (SELECT count(*) FROM main.t) || ' ' || (SELECT count(*) FROM two.t)"); got != "0 0" {
		t.Fatalf("after the refusal %q rows", got)
	}
	for err := error(syscall.EIO); err != nil; {
		err = run(c, both)
	}
	if got := c.MustText("SELECT (SELECT count(*) FROM main.t) || ' ' || (SELECT count(*) FROM two.t)"); got != "1 1" {
		t.Fatalf("after the commit %q rows", got)
	}
	g.mustAgree(r, "app.db")
	g.mustAgree(r, "two.db")
}

func must[T any](v T, _ bool) T { return v }

// inDoubt reports whether a transaction was let in and nobody knows what became of it.
func (db *DB) inDoubt() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.undecided != nil && db.undecided.letIn
}

// The log has a commit on disk before its last frame is in the write-ahead log: what SQLite syncs for it at
// synchronous=FULL is not synced again, and a power cut that takes the frames takes nothing. The sync of a checkpoint is one.
func TestGateSyncsOnce(t *testing.T) {
	g := newGateNode(t, time.Minute)
	c := sqlitetest.Open(t, g.app("app.db"), "journal_mode=wal", "synchronous=full", "wal_autocheckpoint=0")
	mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	c.MustExec("INSERT INTO t(v) VALUES ('first')")
	c.MustQuery("PRAGMA wal_checkpoint(TRUNCATE)")
	g.hook.synced()
	// Who looks at the database in that moment has the sync made.
	behind := 0
	for i := range 20 {
		c.MustExec("INSERT INTO t(v) VALUES (randomblob(100))")
		syncs := g.hook.synced()
		if i == 0 {
			syncs = syncs[1:] // of the header of the write-ahead log
		}
		if len(syncs) != 1 {
			t.Fatalf("a commit syncs the write-ahead log %v", syncs)
		}
		if syncs[0] == fuse.SyncBehind {
			behind++
		}
	}
	if behind < 10 {
		t.Errorf("%d of 20 commits were not synced twice", behind)
	}
	want := c.MustText(gateSum)
	after := g.crash()
	wal := filepath.Join(after, "files", "app.db-wal")
	if err := os.Truncate(wal, 32+5*(24+4096)); err != nil {
		t.Fatal(err)
	}
	n := openNode(t, after, onBoot(boot2))
	r := newReader(t)
	n.mustAgree(r, "app.db")
	if got := r.value(n.path("app.db"), gateSum); got != want {
		t.Errorf("after a power cut: %s, want %s", got, want)
	}

	c.MustQuery("PRAGMA wal_checkpoint(PASSIVE)")
	if syncs := g.hook.synced(); len(syncs) != 1 || syncs[0] != fuse.SyncData {
		t.Errorf("a checkpoint syncs the write-ahead log %v", syncs)
	}
	// At NORMAL the checkpoint that follows a commit is the first to sync it.
	c.MustQuery("PRAGMA synchronous=normal")
	c.MustQuery("PRAGMA wal_autocheckpoint=1")
	c.MustExec("INSERT INTO t(v) VALUES (randomblob(100))")
	syncs := g.hook.synced()
	if len(syncs) == 0 || slices.Contains(syncs, fuse.SyncBehind) {
		t.Errorf("the checkpoint of a commit syncs the write-ahead log %v", syncs)
	}
}
