package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// guarded has a parent process hold the mount.
func guarded(c *childnode.Config) { c.Guardian = true }

// daemonPID is the process that serves the mount of a node with a guardian; 0 while there is none.
func (n *node) daemonPID() int {
	n.t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		n.t.Fatal(err)
	}
	parent := fmt.Sprintf("\nPPid:\t%d\n", n.proc.PID())
	for _, path := range procs {
		status, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(status), parent) {
			continue // it has ended, or is another's child
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			n.t.Fatal(err)
		}
		return pid
	}
	return 0
}

// killDaemon kills the daemon below the guardian, if it runs.
func (n *node) killDaemon() {
	n.t.Helper()
	if pid := n.daemonPID(); pid != 0 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			n.t.Fatal(err)
		}
	}
}

// killBelow kills a daemon at a moment of its own while the next steps are done: nobody notices.
func (r *random) killBelow() {
	n := r.primary
	if r.chance(30) {
		n = r.follower
	}
	r.note("kill the daemon of %s below its guardian", n.cfg.Mount)
	n.killDaemon()
}

// stallWriter inserts rows one after the other and keeps how long each call took.
type stallWriter struct {
	name  string
	rows  int64
	calls []time.Duration
	err   error
	done  chan struct{}
}

// write inserts rows until ctx ends.
func (w *stallWriter) write(ctx context.Context, conn *sqlitetest.Conn, reopen func() *sqlitetest.Conn, rng *rand.Rand) {
	defer close(w.done)
	for ctx.Err() == nil {
		begin := time.Now()
		_, err := conn.Exec("INSERT INTO t(id, v) VALUES (?, randomblob(?))", w.rows+1, 100+rng.IntN(9000))
		w.calls = append(w.calls, time.Since(begin))
		if err != nil {
			w.err = err
			return
		}
		w.rows++
		if reopen != nil && w.rows%20 == 0 {
			conn.Close()
			conn = reopen()
		}
	}
}

// upgradeDaemon replaces the daemon below the guardian by another one.
func (n *node) upgradeDaemon() {
	n.t.Helper()
	out, err := exec.Command(binary(n.t), "upgrade", "-data", n.cfg.Data).CombinedOutput()
	if err != nil {
		n.t.Errorf("upgrade: %v\n%s", err, out)
	}
}

// daemonStrikes has writers in every journal mode at work while the daemon is killed, or replaced, again and again.
func daemonStrikes(t *testing.T, strike func(*node), kills int, d time.Duration, options ...option) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	n := startNode(t, append(options, guarded)...)
	app := map[string]*sqlitetest.App{}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var writers []*stallWriter
	for i, mode := range []struct {
		name    string
		pragmas []string
		reopen  bool
	}{
		{"wal-normal", []string{"journal_mode=wal", "synchronous=normal", "wal_autocheckpoint=20"}, false},
		{"wal-full", []string{"journal_mode=wal", "synchronous=full"}, false},
		{"wal-reopen", []string{"journal_mode=wal", "synchronous=normal"}, true},
		{"delete", []string{"journal_mode=delete"}, false},
		{"truncate", []string{"journal_mode=truncate", "synchronous=normal"}, false},
		{"persist", []string{"journal_mode=persist", "synchronous=normal"}, false},
		{"delete-reopen", []string{"journal_mode=delete", "synchronous=normal"}, true},
	} {
		name := mode.name + ".db"
		a := sqlitetest.Start(t)
		app[name] = a
		open := func() *sqlitetest.Conn { return openPatient(a, n.path(name), mode.pragmas...) }
		conn := open()
		conn.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		// Opened anew, so that its files are what an application has after any restart.
		conn.Close()
		conn = open()
		var reopen func() *sqlitetest.Conn
		if mode.reopen {
			reopen = open
		}
		w := &stallWriter{name: name, done: make(chan struct{})}
		writers = append(writers, w)
		go w.write(ctx, conn, reopen, rand.New(rand.NewPCG(seed, uint64(i+1))))
	}
	begin := time.Now()
	killed := 0
	for ; killed < kills || time.Since(begin) < d; killed++ {
		time.Sleep(time.Duration(50+rng.IntN(400)) * time.Millisecond)
		strike(n)
	}
	eventually(t, "a daemon serves", func() (bool, string) {
		_, err := n.pos("delete.db")
		return err == nil, fmt.Sprint(err)
	})
	cancel()
	var calls []time.Duration
	for _, w := range writers {
		select {
		case <-w.done:
		case <-time.After(patience):
			t.Fatalf("%s: a call does not return", w.name)
		}
		if w.err != nil {
			t.Errorf("%s, after %d rows: %v", w.name, w.rows, w.err)
		}
		calls = append(calls, w.calls...)
		app[w.name].Exit()
	}
	slices.Sort(calls)
	t.Logf("%d daemons ended, %d calls: p50 %v, p99 %v, max %v", killed, len(calls), calls[len(calls)/2], calls[len(calls)*99/100], calls[len(calls)-1])
	for _, w := range writers {
		c := sqlitetest.Open(t, n.path(w.name))
		if got := c.MustInt("SELECT count(*) FROM t"); got != w.rows {
			t.Errorf("%s: %d rows, %d were acknowledged", w.name, got, w.rows)
		}
		c.Close()
	}
	n.stop()
	dbs := n.verified()
	for _, w := range writers {
		if db := dbs[w.name]; db == nil || db.Max < 1 {
			t.Errorf("%s has no log", w.name)
		}
	}
}

func TestApplicationsWaitWhileTheDaemonIsAway(t *testing.T) {
	t.Run("passthrough", func(t *testing.T) { daemonStrikes(t, (*node).killDaemon, 6, 0) })
	t.Run("cached", func(t *testing.T) { daemonStrikes(t, (*node).killDaemon, 6, 0, cached) })
}

func TestAnUpgradeFailsNoCall(t *testing.T) {
	daemonStrikes(t, (*node).upgradeDaemon, 4, 0)
}

func TestSoakDaemonKills(t *testing.T) {
	t.Run("passthrough", func(t *testing.T) { daemonStrikes(t, (*node).killDaemon, 1, soakFor(t)/6) })
	t.Run("cached", func(t *testing.T) { daemonStrikes(t, (*node).killDaemon, 1, soakFor(t)/6, cached) })
	t.Run("upgrades", func(t *testing.T) { daemonStrikes(t, (*node).upgradeDaemon, 1, soakFor(t)/6) })
}

// replicaKills kills the daemon of a follower again and again while the primary writes. On the follower connections that
// are open read whole transactions throughout, and never write.
func replicaKills(t *testing.T, kills int, d time.Duration, options ...option) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	primary := startNode(t)
	follower := startNode(t, append(options, guarded, follows(primary))...)
	names := []string{"wal.db", "delete.db"}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var ended []<-chan error
	var conns []*sqlitetest.Conn
	for _, name := range names {
		w := sqlitetest.Open(t, primary.path(name), "journal_mode="+strings.TrimSuffix(name, ".db"), "synchronous=normal")
		w.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		settle(w)
		caughtUp(primary, follower, name)
		ended = append(ended, repeatUntil(ctx, func() error {
			_, err := w.Repeat([]sqlapp.Step{{SQL: "BEGIN"}, {SQL: insert(300).SQL, Times: 2}, {SQL: "COMMIT"}}, 10, 0)
			return err
		}))
		app := sqlitetest.Start(t)
		// A daemon that is killed while it changes the header of the wal-index leaves it to the next one to recover, as any
		// writer of SQLite would: who reads meanwhile is told SQLITE_BUSY_RECOVERY, and waits within its busy time-out.
		reader := openPatient(app, follower.path(name))
		writer := sqlitetest.Open(t, follower.path(name), "busy_timeout=0")
		conns = append(conns, w, reader, writer)
		last := int64(0)
		ended = append(ended, repeatUntil(ctx, func() error {
			rows, err := reader.Query("SELECT count(*) FROM t")
			if err != nil {
				return fmt.Errorf("read on the follower: %w", err)
			}
			n, ok := rows[0][0].(int64)
			if !ok || n%2 != 0 || n < last {
				return fmt.Errorf("the follower shows %v rows after %d", rows[0][0], last)
			}
			last = n
			return nil
		}), repeatUntil(ctx, func() error {
			_, err := writer.Exec("INSERT INTO t(v) VALUES ('of the follower')")
			if !sqlapp.IsCode(err, sqlapp.CodeBusy) {
				return fmt.Errorf("a write on the follower: %v, want SQLITE_BUSY", err)
			}
			time.Sleep(time.Millisecond)
			return nil
		}))
	}
	begin := time.Now()
	for i := 0; i < kills || time.Since(begin) < d; i++ {
		time.Sleep(time.Duration(100+rng.IntN(500)) * time.Millisecond)
		follower.killDaemon()
	}
	cancel()
	for _, e := range ended {
		if err := <-e; err != nil {
			t.Error(err)
		}
	}
	for _, name := range names {
		caughtUp(primary, follower, name)
	}
	for _, c := range conns {
		c.Close()
	}
	sameEverywhere(t, primary, follower, names...)
}

// repeatUntil calls f until ctx ends or f fails.
func repeatUntil(ctx context.Context, f func() error) <-chan error {
	end := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := f(); err != nil {
				end <- err
				return
			}
		}
		end <- nil
	}()
	return end
}

func TestAFollowersLocksOutliveItsDaemon(t *testing.T) {
	t.Run("passthrough", func(t *testing.T) { replicaKills(t, 5, soakFor(t)/6) })
	t.Run("cached", func(t *testing.T) { replicaKills(t, 5, soakFor(t)/6, cached) })
}
