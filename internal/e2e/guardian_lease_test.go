package e2e

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// The daemon of a primary is killed below its guardian while an application writes. The next one goes on with the lease:
// the same epoch, no call that fails, nothing lost, and the other node never becomes the primary.
func TestGuardian_KilledPrimaryGoesOn(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 10*time.Second)
			a := c.start(guarded)
			becomesPrimary(a)
			b := c.start(guarded)
			w := openPatient(sqlitetest.Start(t), a.path("app.db"), "journal_mode="+mode)
			w.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
			samePosition(a, b, "app.db")
			before, _ := a.info()

			ctx, cancel := context.WithCancel(t.Context())
			rows := int64(0)
			ended := repeatUntil(ctx, func() error {
				_, err := w.Exec("INSERT INTO t(v) VALUES (randomblob(400))")
				rows++
				return err
			})
			for range 3 {
				time.Sleep(300 * time.Millisecond)
				a.killDaemon()
				becomesPrimary(a)
			}
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("after %d rows: %v", rows, err)
			}
			if after, _ := a.info(); after.Epoch != before.Epoch {
				t.Errorf("epoch %d, want %d as before the kills", after.Epoch, before.Epoch)
			}
			if got := w.MustInt("SELECT count(*) FROM t"); got != rows {
				t.Errorf("%d rows, want %d", got, rows)
			}
			w.Close()
			samePosition(a, b, "app.db")
			if strings.Contains(b.log.text(), "this node is the primary") {
				t.Error("the other node has become the primary")
			}
			sameEverywhere(t, a, b, "app.db")
		})
	}
}

// The daemon of a primary is stopped. Its guardian ends it when it lets its lease run out, and the next one goes on: an
// application has waited, if it needed the daemon, and nothing else.
func TestGuardian_StoppedPrimaryGoesOn(t *testing.T) {
	c := newCluster(t, 5*time.Second)
	a := c.start(guarded)
	becomesPrimary(a)
	b := c.start(guarded)
	w := sqlitetest.Open(t, a.path("app.db"), "busy_timeout=0", "synchronous=normal", "journal_mode=delete")
	w.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	samePosition(a, b, "app.db")

	rows := int64(0)
	stopped := a.stopDaemon()
	for a.daemonPID() == stopped || !a.answers() {
		w.MustExec("INSERT INTO t(v) VALUES ('x')")
		rows++
		time.Sleep(10 * time.Millisecond)
	}
	w.MustExec("INSERT INTO t(v) VALUES ('afterwards')")
	if got := w.MustInt("SELECT count(*) FROM t"); got != rows+1 {
		t.Errorf("%d rows, want %d", got, rows+1)
	}
	w.Close()
	samePosition(a, b, "app.db")
	sameEverywhere(t, a, b, "app.db")
}

// The daemon of a primary is stopped, and the next one cannot ask for the lease. It shuts the writers out: what they are
// told is SQLITE_BUSY, on the connection that they have. Once the lease service answers there is a primary again, with all
// that was written.
func TestGuardian_StoppedPrimaryIsFenced(t *testing.T) {
	for _, mode := range []string{"wal", "persist"} {
		t.Run(mode, func(t *testing.T) {
			const ttl = 5 * time.Second
			c := newCluster(t, ttl)
			a := c.start(guarded)
			becomesPrimary(a)
			b := c.start(guarded)
			w := sqlitetest.Open(t, a.path("app.db"), "busy_timeout=0", "synchronous=normal", "journal_mode="+mode)
			w.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
			samePosition(a, b, "app.db")

			if err := c.server.Pause(); err != nil {
				t.Fatal(err)
			}
			a.stopDaemon()
			begin, rows, out := time.Now(), int64(0), false
			for !out {
				_, err := w.Exec("INSERT INTO t(v) VALUES ('x')")
				switch {
				case err == nil:
					rows++
				case sqlapp.IsCode(err, sqlapp.CodeBusy):
					out = true
				case mode == "wal" || !sqlapp.IsCode(err, sqlapp.CodeIOErr) && !sqlapp.IsCode(err, sqlapp.CodeReadOnly):
					// in a rollback-journal mode a transaction may be refused before there is a lock to wait for
					t.Fatal(err)
				}
				if time.Since(begin) > 4*ttl {
					t.Fatal("writers are let in though the daemon is stopped and the lease is over")
				}
				time.Sleep(5 * time.Millisecond)
			}
			t.Logf("writers are out %v after the stop, the lease has %v", time.Since(begin), ttl)
			w.MustExec("PRAGMA busy_timeout=10000") // the locks are there, and perhaps not yet what readers use beside them
			if got := w.MustInt("SELECT count(*) FROM t"); got != rows {
				t.Errorf("the connection that wrote reads %d rows, want %d", got, rows)
			}
			w.MustExec("PRAGMA busy_timeout=0")
			other := sqlitetest.Open(t, b.path("app.db"))
			if err := c.server.Resume(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the connection that wrote before writes again, or the other node does", func() (bool, string) {
				_, err := w.Exec("INSERT INTO t(v) VALUES ('afterwards')")
				if info, _ := b.info(); err != nil && info.IsPrimary {
					_, err = other.Exec("INSERT INTO t(v) VALUES ('afterwards')")
				}
				return err == nil, fmt.Sprint(err)
			})
			// What a replica has made a write-ahead log of is captured a moment after the commit.
			for _, n := range []*node{a, b} {
				reader := sqlitetest.Open(t, n.path("app.db"))
				eventually(t, "every node has what was acknowledged", func() (bool, string) {
					got := reader.MustInt("SELECT count(*) FROM t")
					return got == rows+1, fmt.Sprintf("%d rows, want %d", got, rows+1)
				})
				reader.Close()
			}
			w.Close()
			other.Close()
			samePosition(a, b, "app.db")
			sameEverywhere(t, a, b, "app.db")
		})
	}
}

// stopDaemon stops the daemon below the guardian, as a debugger or a paused machine does.
func (n *node) stopDaemon() (pid int) {
	n.t.Helper()
	pid = n.daemonPID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		n.t.Fatal(err)
	}
	return pid
}

// answers reports whether the node is the primary and says so.
func (n *node) answers() bool {
	info, ok := n.info()
	return ok && info.IsPrimary
}
