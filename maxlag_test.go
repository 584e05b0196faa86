package litefs

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/litefs/litefs/fuse"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// The age that looks tell is never less than the true one, and greater by at most the time between two looks.
func TestLagMarks(t *testing.T) {
	type look struct {
		now        time.Duration
		head, best uint64
		want       time.Duration
		known      bool
	}
	for name, looks := range map[string][]look{
		"a replica that has everything":     {{10, 1, 1, 0, true}, {20, 5, 5, 0, true}, {30, 5, 5, 0, true}},
		"one that stands still":             {{10, 1, 1, 0, true}, {20, 1, 1, 0, true}, {30, 3, 1, 10, true}, {40, 4, 1, 20, true}, {50, 4, 3, 20, true}, {60, 4, 4, 0, true}},
		"nothing is known of what is there": {{10, 7, 0, 0, false}, {20, 8, 0, 0, false}, {30, 8, 8, 0, true}, {40, 9, 8, 10, true}},
		"nothing was committed":             {{10, 0, 0, 0, true}, {90, 0, 0, 0, true}, {100, 1, 0, 10, true}},
	} {
		var m lagMarks
		for i, l := range looks {
			if got, known := m.look(l.now, l.head, l.best); got != l.want || known != l.known {
				t.Errorf("%s: look %d: %v %v, want %v %v", name, i, got, known, l.want, l.known)
			}
		}
	}
	var m lagMarks
	for i := range 10 * maxLagMarks {
		lag, known := m.look(time.Duration(i), uint64(i), 0)
		if !known || lag != time.Duration(i) || len(m.marks) > maxLagMarks {
			t.Fatalf("look %d: %v %v, %d marks", i, lag, known, len(m.marks))
		}
	}
}

// lagNode is a primary at level max-lag with a witness.
func lagNode(t *testing.T, bound time.Duration) (*mounted, *witness) {
	t.Helper()
	n := mountNodeAs(t, filepath.Join(t.TempDir(), "data"), false, func(s *Store) fuse.Backend { return backend{s} }, func(s *Store) {
		s.Levels = []LevelRule{{Match: "*", Level: Level{Kind: LevelMaxLag, MaxLag: bound}}}
	})
	return n, newWitness(t, n.store)
}

func isBusy(err error) bool { return sqlapp.IsCode(err, sqlapp.CodeBusy) }

// When no replica answers, writers find the database locked before the oldest transaction that none has is much older
// than the bound; readers go on; and when a replica has everything, the same connections write.
func TestMaxLag(t *testing.T) {
	const bound = 500 * time.Millisecond
	for _, mode := range []string{"wal", "delete", "persist", "memory"} {
		t.Run(mode, func(t *testing.T) {
			n, w := lagNode(t, bound)
			r := newReader(t)
			c := sqlitetest.Open(t, n.app("app.db"), "journal_mode="+mode, "synchronous=normal")
			c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
			for range 20 {
				c.MustExec("INSERT INTO t(v) VALUES (1)")
			}
			w.silent.Store(true)
			silent := time.Now()
			var last time.Time // of the last one that was let in
			var longest time.Duration
			for {
				began := time.Now()
				_, err := c.Exec("INSERT INTO t(v) VALUES (2)")
				if isBusy(err) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				last = time.Now()
				longest = max(longest, last.Sub(began))
				if last.Sub(silent) > time.Minute {
					db := n.db("app.db")
					db.mu.Lock()
					t.Logf("at %v, %d pages noted, all %t, unjournaled %t, behind %t, acknowledged %v", db.Pos(), len(db.dirty), db.allDirty, db.unjournaled.Load(), db.behind.Load(), n.store.replicas.acksOf(db.id))
					db.mu.Unlock()
					t.Fatal("writers are never held back")
				}
			}
			// The machine may be busy with other things for as long as that. Who writes without a pause may also be ahead
			// of the brake at the lock a few times in a row.
			const slack = 10 * time.Second
			if over := last.Sub(silent) - bound; over > bound/8+longest+slack {
				t.Errorf("%v over the bound; a look comes each %v, and the longest transaction took %v", over, bound/8, longest)
			} else {
				t.Logf("%v over the bound; a look comes each %v, and the longest transaction took %v", over, bound/8, longest)
			}
			if st := n.db("app.db").Status(); !st.Held || st.Level.String() != "max-lag:500ms" {
				t.Errorf("status %v %v", st.Held, st.Level)
			}
			rows := c.MustInt("SELECT count(*) FROM t")
			other := sqlitetest.Open(t, n.app("app.db"))
			if got := other.MustInt("SELECT count(*) FROM t"); got != rows {
				t.Errorf("another connection reads %d rows, want %d", got, rows)
			}
			if _, err := other.Exec("INSERT INTO t(v) VALUES (3)"); !isBusy(err) {
				t.Errorf("another connection: %v, want busy", err)
			}
			w.silent.Store(false)
			c.MustQuery("PRAGMA busy_timeout=60000")
			c.MustExec("INSERT INTO t(v) VALUES (4)")
			if got := other.MustInt("SELECT count(*) FROM t"); got != rows+1 {
				t.Errorf("%d rows, want %d", got, rows+1)
			}
			other.Close()
			c.Close()
			n.awaitLastClose(t, "app.db")
			n.mustAgree(r, "app.db")
		})
	}
}

// awaitLastClose waits until what was written without a journal is captured: the kernel tells of the last close after
// it has returned.
func (m *mounted) awaitLastClose(t *testing.T, name string) {
	t.Helper()
	db := m.db(name)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		db.mu.Lock()
		changed, err := db.firstPageChanged()
		db.mu.Unlock()
		if err == nil && !changed {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the last transaction is not captured: %v", err)
		}
	}
}

// Looks come less and less often, but not so seldom that all of them may fall into transactions of one who writes without a
// journal and without a pause.
func TestLookAgain(t *testing.T) {
	for unjournaled, most := range map[bool]time.Duration{false: lookAgainMax, true: lookBetween} {
		delay := time.Duration(0)
		for range 40 {
			next := lookAgain(delay, unjournaled)
			if next < delay || next > most {
				t.Fatalf("unjournaled %t: %v after %v, want no more than %v", unjournaled, next, delay, most)
			}
			delay = next
		}
		if delay != most {
			t.Errorf("unjournaled %t: %v in the end, want %v", unjournaled, delay, most)
		}
	}
}

// What was written in a run before counts as of any age: after a start writers wait until a replica has it.
func TestMaxLagAfterStart(t *testing.T) {
	level := func(s *Store) {
		s.Levels = []LevelRule{{Match: "*", Level: Level{Kind: LevelMaxLag, MaxLag: time.Hour}}}
	}
	as := func(s *Store) fuse.Backend { return backend{s} }
	dir := filepath.Join(t.TempDir(), "data")
	n := mountNodeAs(t, dir, false, as)
	c := sqlitetest.Open(t, n.app("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	c.Close()
	n.close()
	n = mountNodeAs(t, dir, false, as, level)
	c = sqlitetest.Open(t, n.app("app.db"))
	for !n.db("app.db").brake.on() {
		time.Sleep(time.Millisecond)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err := c.Exec("INSERT INTO t(v) VALUES (1)"); isBusy(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a node of which no replica is known lets writers in")
		}
	}
	newWitness(t, n.store)
	c.MustQuery("PRAGMA busy_timeout=60000")
	c.MustExec("INSERT INTO t(v) VALUES (2)")
}

// A change of the role does not wait for a replica: who takes the locks gets them, and when they are let go the writers
// are held again.
func TestMaxLagHandOver(t *testing.T) {
	n, w := lagNode(t, 200*time.Millisecond)
	c := sqlitetest.Open(t, n.app("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	w.silent.Store(true)
	held := func() {
		t.Helper()
		let := 0
		for deadline := time.Now().Add(time.Minute); ; {
			_, err := c.Exec("INSERT INTO t(v) VALUES (1)")
			if isBusy(err) {
				return
			}
			let++
			if time.Now().After(deadline) {
				t.Fatalf("%d writes were let in", let)
			}
		}
	}
	held()
	db := n.db("app.db")
	if err := db.takePeer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := db.readyToWrite(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := db.admit(t.Context()); err != nil {
		t.Fatal(err)
	}
	held()
	w.silent.Store(false)
	c.MustQuery("PRAGMA busy_timeout=60000")
	c.MustExec("INSERT INTO t(v) VALUES (2)")
	n.mustAgree(newReader(t), "app.db")
}
