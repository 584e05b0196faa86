package litefs

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/internal/vfs"
)

// faultCase is how the disk of the log fails.
type faultCase struct {
	name  string
	lasts bool
	err   error
}

var faultCases = []faultCase{
	{"one write fails", false, syscall.EIO},
	{"the disk is full", true, syscall.ENOSPC},
}

// eachFault runs work with the first operation of the log failing, then with
// the second, until it runs without a failure, and check after each.
func eachFault(t *testing.T, m *mounted, c faultCase, work func(), check func(n int)) {
	t.Helper()
	for n := 0; ; n++ {
		m.disk.fail(n, c.lasts, c.err)
		work()
		failed := m.disk.mend()
		check(n)
		if t.Failed() {
			t.Fatalf("with operation %d of the log failing", n)
		}
		if failed == 0 {
			t.Logf("%d operations of the log failed in turn", n)
			if n < 5 {
				t.Errorf("only %d operations: the workload does not reach the log", n)
			}
			return
		}
	}
}

// mustRecover checks that a crash at this moment loses nothing that was
// committed.
func (m *mounted) mustRecover(r *reader, name, rows string) {
	m.t.Helper()
	again := openNode(m.t, m.crash(), onBoot(boot2))
	if got := r.value(again.path(name), "SELECT count(*) FROM t"); got != rows {
		m.t.Errorf("%s after a crash: %s rows, want %s", name, got, rows)
	}
	again.mustAgree(r, name)
	again.close()
}

// TestFaultsWAL: a commit in WAL mode does not depend on the log's disk. What
// does, checkpoints, fails, and everything is captured once the disk is back.
func TestFaultsWAL(t *testing.T) {
	for _, c := range faultCases {
		for _, noPassthrough := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, passthrough %t", c.name, !noPassthrough), func(t *testing.T) {
				t.Parallel()
				m := mountNode(t, filepath.Join(t.TempDir(), "data"), noPassthrough)
				r := newReader(t)
				conn := sqlitetest.Open(t, m.app("app.db"), "journal_mode=wal", "wal_autocheckpoint=0")
				conn.MustExec(createT)
				want := 0
				eachFault(t, m, c, func() {
					for _, mode := range []string{"PASSIVE", "TRUNCATE"} {
						conn.MustExec("INSERT INTO t(b) VALUES (randomblob(2500))")
						want++
						// An error is the checkpoint's and nobody else's.
						_, _ = conn.Query("PRAGMA wal_checkpoint(" + mode + ")")
					}
					m.db("app.db").retain(Retention{Age: time.Hour, Bytes: 1, Interval: time.Hour})
				}, func(n int) {
					m.capture("app.db")
					m.mustAgree(r, "app.db")
					if n%8 == 0 {
						m.mustRecover(r, "app.db", fmt.Sprint(want))
					}
				})
				if got := conn.MustInt("SELECT count(*) FROM t"); got != int64(want) {
					t.Errorf("%d rows, want %d", got, want)
				}
				if gaps := m.store.Stats().NetGaps.Load(); gaps != 0 {
					t.Errorf("%d gaps, want none", gaps)
				}
				if rows := conn.MustQuery("PRAGMA wal_checkpoint(TRUNCATE)"); rows[0][0] != int64(0) {
					t.Errorf("checkpoint once the disk is back: %v", rows)
				}
				m.mustStopClean(r, conn, "app.db")
			})
		}
	}
}

// mustStopClean ends the application and the node, and checks that the next
// start has nothing to do.
func (m *mounted) mustStopClean(r *reader, conn *sqlitetest.Conn, names ...string) {
	m.t.Helper()
	conn.Close()
	pos := map[string]Pos{}
	m.close()
	for _, name := range names {
		pos[name] = m.db(name).Pos()
	}
	again := openNode(m.t, m.store.Path(), onBoot(boot2))
	for _, name := range names {
		if got := again.db(name).Pos(); got != pos[name] {
			m.t.Errorf("%s: position %s after a clean stop, was %s", name, got, pos[name])
		}
		again.mustAgree(r, name)
	}
	if hashed := again.store.Stats().PageHashes.Load(); hashed != 0 {
		m.t.Errorf("%d pages hashed after a clean stop, want 0", hashed)
	}
}

// TestFaultsJournal: a commit with a rollback journal that cannot be logged is
// refused, and what is refused is rolled back.
func TestFaultsJournal(t *testing.T) {
	for _, c := range faultCases {
		for _, mode := range []string{"delete", "truncate", "persist"} {
			t.Run(c.name+", "+mode, func(t *testing.T) {
				t.Parallel()
				m := mountNode(t, filepath.Join(t.TempDir(), "data"), false)
				r := newReader(t)
				conn := sqlitetest.Open(t, m.app("app.db"), "journal_mode="+mode)
				conn.MustExec(createT)
				want, refused := 0, 0
				eachFault(t, m, c, func() {
					for range 2 {
						if _, err := conn.Exec("INSERT INTO t(b) VALUES (randomblob(2500))"); err != nil {
							refused++
						} else {
							want++
						}
					}
					m.db("app.db").retain(Retention{Age: time.Hour, Bytes: 1, Interval: time.Hour})
				}, func(n int) {
					if got := conn.MustInt("SELECT count(*) FROM t"); got != int64(want) {
						t.Errorf("%d rows, want %d", got, want)
					}
					m.mustAgree(r, "app.db")
					if n%8 == 0 {
						m.mustRecover(r, "app.db", fmt.Sprint(want))
					}
				})
				if refused == 0 {
					t.Error("no commit was refused")
				}
				m.mustStopClean(r, conn, "app.db")
			})
		}
	}
}

// TestFaultsSuperJournal: of a transaction over two databases both are
// committed or none, whichever of them cannot be logged.
func TestFaultsSuperJournal(t *testing.T) {
	for _, c := range faultCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := mountNode(t, filepath.Join(t.TempDir(), "data"), false)
			r := newReader(t)
			conn := sqlitetest.Open(t, m.app("a.db"), "journal_mode=delete")
			conn.MustExec(createT)
			conn.MustExec("ATTACH '" + m.app("b.db") + "' AS other")
			conn.MustExec("CREATE TABLE other.t(id INTEGER PRIMARY KEY, b BLOB)")
			want := 0
			eachFault(t, m, c, func() {
				conn.MustExec("BEGIN")
				conn.MustExec("INSERT INTO main.t(b) VALUES (randomblob(2500))")
				conn.MustExec("INSERT INTO other.t(b) VALUES (randomblob(2500))")
				if _, err := conn.Exec("COMMIT"); err == nil {
					want++
				} else {
					_, _ = conn.Exec("ROLLBACK") // most often SQLite has done it
				}
			}, func(n int) {
				for _, name := range []string{"main", "other"} {
					if got := conn.MustInt("SELECT count(*) FROM " + name + ".t"); got != int64(want) {
						t.Errorf("%s: %d rows, want %d", name, got, want)
					}
				}
				m.mustAgree(r, "a.db")
				m.mustAgree(r, "b.db")
			})
			conn.MustExec("DETACH other")
			m.mustStopClean(r, conn, "a.db", "b.db")
		})
	}
}

// TestFaultsNewDatabase: a database whose first transaction cannot be logged is
// none, and its application can try again.
func TestFaultsNewDatabase(t *testing.T) {
	m := mountNode(t, filepath.Join(t.TempDir(), "data"), false)
	r := newReader(t)
	app := sqlitetest.Start(t)
	for n := range 40 {
		name := fmt.Sprintf("new%d.db", n)
		m.disk.fail(n, false, syscall.ENOSPC)
		conn := app.Open(m.app(name))
		_, err := conn.Exec(createT)
		failed := m.disk.mend()
		if err != nil {
			conn.MustExec(createT)
		}
		conn.MustExec("INSERT INTO t(b) VALUES (1)")
		m.mustAgree(r, name)
		conn.Close()
		if failed == 0 {
			return
		}
	}
	t.Error("the workload does not end")
}

// TestFaultsReplica: an entry that a replica cannot log is not applied, and
// comes again.
func TestFaultsReplica(t *testing.T) {
	for _, c := range faultCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := makeReplicaStages(t)
			r := newReader(t)
			d := &disk{}
			n := openNode(t, mix(t, s.later, s.later), asReplica, func(s *Store) { s.logFS = vfs.NewFaulty(vfs.OS(), d.op) })
			m := &mounted{node: n, disk: d}
			want := 15
			eachFault(t, m, c, func() {
				s.primary.rows("app.db", s.conn, 1)
				want++
				before := n.db("app.db").Pos()
				if err := n.tryFollow(s.primary, "app.db"); err != nil && n.db("app.db").Pos() != before {
					t.Errorf("position %s after an entry that was refused, was %s", n.db("app.db").Pos(), before)
				}
				n.db("app.db").syncLog()
			}, func(k int) {
				if k%8 == 0 {
					again := openNode(t, n.crash(), asReplica, onBoot(boot2))
					again.mustAgree(r, "app.db")
					again.close()
				}
				if err := n.tryFollow(s.primary, "app.db"); err != nil {
					t.Error(err)
				}
				n.mustAgree(r, "app.db")
				if got := r.value(n.path("app.db"), "SELECT count(*) FROM t"); got != fmt.Sprint(want) {
					t.Errorf("%s rows, want %d", got, want)
				}
			})
		})
	}
}

// TestFaultsUnseen: that pages changed nobody knows where is not forgotten by a
// capture that fails.
func TestFaultsUnseen(t *testing.T) {
	r := newReader(t)
	d := &disk{}
	n := openNode(t, filepath.Join(t.TempDir(), "data"), func(s *Store) { s.logFS = vfs.NewFaulty(vfs.OS(), d.op) })
	c := sqlitetest.Open(t, n.path("app.db"), "journal_mode=delete")
	c.MustExec(createT)
	n.adopt("app.db")
	db := n.db("app.db")
	for _, pageSize := range []string{"4096", "1024"} {
		c.MustExec("PRAGMA page_size=" + pageSize)
		c.MustExec("INSERT INTO t(b) VALUES (randomblob(2500))")
		c.MustExec("VACUUM")
		db.noteUnseen()
		d.fail(0, true, syscall.ENOSPC)
		if err := db.journalEnds(false); err == nil {
			t.Error("a commit that is not in the log is not refused")
		}
		d.mend()
		if err := db.journalEnds(false); err != nil {
			t.Error(err)
		}
		n.mustAgree(r, "app.db")
		hashed := n.store.Stats().PageHashes.Load()
		if err := db.journalEnds(false); err != nil {
			t.Error(err)
		}
		if got := n.store.Stats().PageHashes.Load() - hashed; got != 0 {
			t.Errorf("%d pages are hashed again, want 0", got)
		}
	}
}
