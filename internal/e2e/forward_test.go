package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/faultnet"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
	"golang.org/x/sys/unix"
)

// daemonLocks has the mount ask for each lock.
func daemonLocks(c *childnode.Config) { c.DaemonLocks = true }

// shell runs statements with the real sqlite3, which knows nothing of locks that are borrowed.
func (n *node) shell(db, statements string) (string, error) {
	n.t.Helper()
	return outputOf(exec.CommandContext(timeout(n.t), "sqlite3", "-bail", "-cmd", ".timeout 20000", n.path(db), statements))
}

func (n *node) mustShell(db, statements string) string {
	n.t.Helper()
	out, err := n.shell(db, statements)
	if err != nil {
		n.t.Fatalf("%s on %s: %v", statements, n.cfg.Mount, err)
	}
	return out
}

// sameBytes stops the nodes, replicas first, and compares all that they have of a database.
func sameBytes(db string, nodes ...*node) {
	nodes[0].t.Helper()
	var content []string
	for _, n := range nodes {
		n.stop()
		d := n.verified()[db]
		content = append(content, fmt.Sprintf("%x %x", d.Max, d.Checksum))
	}
	for _, c := range content[1:] {
		if c != content[0] {
			nodes[0].t.Fatalf("nodes differ: %q", content)
		}
	}
}

// A program on a replica writes as it would on one machine, in every journal mode, and knows nothing of it: its
// transactions are on the primary when COMMIT returns, and on all nodes afterwards.
func TestForward(t *testing.T) {
	for _, mode := range []string{"wal", "delete", "truncate", "persist", "cached"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			io := func(*childnode.Config) {}
			if mode == "cached" {
				mode, io = "wal", cached
			}
			primary := startNode(t, io)
			c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode="+mode)
			c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
			replica, other := startNode(t, follows(primary), daemonLocks, io), startNode(t, follows(primary), io)
			caughtUp(primary, replica, "app.db")
			caughtUp(primary, other, "app.db")
			r := openPatient(sqlitetest.Start(t), replica.path("app.db"))
			for i := range 3 {
				r.MustExec("BEGIN IMMEDIATE")
				r.MustExec("INSERT INTO t(v) VALUES ('replica')")
				r.MustExec("COMMIT")
				if n := c.MustInt("SELECT count(*) FROM t WHERE v = 'replica'"); n != int64(1+i) {
					t.Fatalf("round %d: the primary has %d rows", i, n)
				}
				replica.mustShell("app.db", "INSERT INTO t(v) SELECT randomblob(5000) FROM t; DELETE FROM t WHERE length(v) > 100")
				c.MustExec("INSERT INTO t(v) VALUES ('primary')")
			}
			replica.mustShell("app.db", "CREATE TABLE u AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 3000) SELECT i, randomblob(300) AS b FROM n; VACUUM; PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t(v) VALUES ('after')")
			if n := c.MustInt("SELECT count(*) FROM u"); n != 3000 {
				t.Fatalf("the primary has %d rows, want 3000", n)
			}
			caughtUp(primary, other, "app.db")
			caughtUp(primary, replica, "app.db")
			for _, n := range []*node{primary, replica, other} {
				sqlitetest.CheckIntegrity(t, n.path("app.db"))
			}
			c.Close()
			r.Close()
			sameBytes("app.db", other, replica, primary)
		})
	}
}

// unlocked are programs that know of no lock.
func unlocked(n *node, args ...string) *exec.Cmd {
	return exec.CommandContext(timeout(n.t), args[0], args[1:]...)
}

func inC(k *counting, n *node, name string, times int) []string {
	return []string{filepath.Join(buildPrograms(k.t), "counter"), n.path("app.db"), name, fmt.Sprint(times), "5000"}
}

// allIn reports whether an increment of each has been acknowledged.
func (k *counting) allIn(names []string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range names {
		in := false
		for key := range k.oks {
			in = in || strings.HasPrefix(key, name+".")
		}
		if !in {
			return false
		}
	}
	return true
}

// countInGo increments the counter on one connection.
func (k *counting) countInGo(ctx context.Context, n *node, name string) {
	c := sqlitetest.Start(k.t).Open(n.path("app.db"), "busy_timeout=5000")
	defer c.Close()
	for i := 0; ctx.Err() == nil; i++ {
		key := fmt.Sprintf("%s.%d", name, i)
		err := func() error {
			if _, err := c.Exec("BEGIN IMMEDIATE"); err != nil {
				return err
			}
			v := c.MustInt("SELECT v FROM counter")
			if _, err := c.Exec("UPDATE counter SET v = ?", v+1); err != nil {
				return err
			}
			if _, err := c.Exec("INSERT INTO ledger VALUES (?, randomblob(200))", key); err != nil {
				return err
			}
			_, err := c.Exec("COMMIT")
			return err
		}()
		k.mu.Lock()
		if err == nil {
			k.oks[key] = true
		} else {
			k.failed(err.Error())
		}
		k.mu.Unlock()
		if err != nil {
			_, _ = c.Exec("ROLLBACK") // there may be nothing to roll back
		}
	}
}

// Three nodes increment one counter at once, in four languages, almost without pause and with a busy time-out of 5 s: no
// increment is lost, and everybody gets in.
func TestForwardCounters(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			primary := startNode(t)
			c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode="+mode)
			k := newCounting(t, c)
			k.command, k.pause = unlocked, 100*time.Millisecond
			replica, other := startNode(t, follows(primary), daemonLocks), startNode(t, follows(primary), daemonLocks)
			caughtUp(primary, replica, "app.db")
			caughtUp(primary, other, "app.db")
			names := []string{"r", "g", "o", "p"}
			least := time.After(max(4*time.Second, soakFor(t)/6))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			until := func(fn func(ctx context.Context)) func(context.Context) {
				return func(context.Context) { fn(ctx) }
			}
			during(t, patience,
				until(func(ctx context.Context) { k.count(ctx, replica, "r", 20, inC) }),
				until(func(ctx context.Context) { k.countInGo(ctx, replica, "g") }),
				until(func(ctx context.Context) { k.count(ctx, other, "o", 5, inShell) }),
				until(func(ctx context.Context) { k.count(ctx, primary, "p", 5, inPython) }),
				func(bound context.Context) { // a loaded machine takes longer
					defer cancel()
					<-least
					for bound.Err() == nil && !k.allIn(names) {
						time.Sleep(10 * time.Millisecond)
					}
				})
			for _, name := range names {
				n := c.MustInt("SELECT count(*) FROM ledger WHERE id LIKE '" + name + ".%'")
				if n == 0 {
					t.Errorf("%s never got in", name)
				}
				t.Logf("%s: %d increments", name, n)
			}
			k.settled(primary, replica, other)
			c.Close()
			sameBytes("app.db", other, replica, primary)
		})
	}
}

// forwarding is a primary and a replica whose programs write, with a table t.
func forwarding(t testing.TB, options ...option) (primary, replica *node, c *sqlitetest.Conn) {
	t.Helper()
	primary = startNode(t, options...)
	c = openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	replica = startNode(t, append([]option{follows(primary), daemonLocks}, options...)...)
	caughtUp(primary, replica, "app.db")
	return primary, replica, c
}

// behindProxy is a replica whose network to the primary a test has in its hands.
func behindProxy(t testing.TB, primary *node, options ...option) (*node, *faultnet.Proxy) {
	t.Helper()
	proxy := startProxy(t, primary, uint64(time.Now().UnixNano()))
	replica := startNode(t, append([]option{daemonLocks, func(c *childnode.Config) { c.PrimaryURL = "http://" + proxy.Addr() }}, options...)...)
	caughtUp(primary, replica, "app.db")
	return replica, proxy
}

// lockCalls are the requests that a node has made about write locks.
func (n *node) lockCalls() map[string]int {
	n.t.Helper()
	calls := make(map[string]int)
	for line := range strings.Lines(n.text("/metrics")) {
		if rest, ok := strings.CutPrefix(line, `litefs_write_lock_requests_total{call="`); ok {
			call, value, _ := strings.Cut(rest, `"} `)
			i, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				n.t.Fatal(err)
			}
			calls[call] = i
		}
	}
	return calls
}

// givenBack waits until the node has given back every lock that it took.
func (n *node) givenBack() (calls map[string]int) {
	n.t.Helper()
	eventually(n.t, "the lock is given back", func() (bool, string) {
		calls = n.lockCalls()
		return calls["release"] == calls["acquire"], fmt.Sprint(calls)
	})
	return calls
}

// One request takes the lock, one is a commit, none is needed while the lock is warm, and one gives it back; the second
// hold goes over the connection of the first.
func TestForwardRoundTrips(t *testing.T) {
	t.Parallel()
	primary := startNode(t)
	c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	replica, proxy := behindProxy(t, primary)
	r := openPatient(sqlitetest.Start(t), replica.path("app.db"))
	began := time.Now()
	r.MustExec("INSERT INTO t(v) VALUES ('one')")
	calls := replica.givenBack()
	if time.Since(began) < time.Second { // else it was renewed
		if want := map[string]int{"acquire": 1, "renew": 0, "commit": 1, "outcome": 0, "release": 1}; fmt.Sprint(calls) != fmt.Sprint(want) {
			t.Errorf("requests of one transaction: %v, want %v", calls, want)
		}
	}
	connections := proxy.Counts().Connections
	const many = 40
	if _, err := r.Repeat([]sqlapp.Step{{SQL: "BEGIN IMMEDIATE"}, insert(100), {SQL: "COMMIT"}}, many, 0); err != nil {
		t.Fatal(err)
	}
	calls = replica.givenBack()
	if calls["commit"] != 1+many || calls["outcome"] != 0 {
		t.Errorf("requests after %d transactions: %v", 1+many, calls)
	}
	if calls["acquire"] > 1+many/2 {
		t.Errorf("the lock was taken %d times for %d transactions: it does not stay warm", calls["acquire"], 1+many)
	}
	if n := proxy.Counts().Connections; n != connections {
		t.Errorf("%d connections were made for holds after the first", n-connections)
	}
	same(primary, replica, c, 1+many)
}

// isStale tells SQLITE_BUSY_SNAPSHOT.
func isStale(err error) bool {
	var e *sqlapp.Error
	return errors.As(err, &e) && e.Extended == 517
}

// A program without a busy time-out gets in at once; one whose snapshot is older than what the lock has brought is told
// SQLite's own SQLITE_BUSY_SNAPSHOT, and one that gets no lock SQLITE_BUSY after its time-out, not after a multiple.
func TestForwardBusy(t *testing.T) {
	t.Parallel()
	primary, replica, c := forwarding(t)
	impatient := sqlitetest.Open(t, replica.path("app.db"), "busy_timeout=0")
	impatient.MustExec("INSERT INTO t(v) VALUES ('at once')")

	stale := openPatient(sqlitetest.Start(t), replica.path("app.db"))
	stale.MustExec("BEGIN")
	stale.MustInt("SELECT count(*) FROM t")
	c.MustExec("INSERT INTO t(v) VALUES ('meanwhile')")
	if _, err := stale.Exec("INSERT INTO t(v) VALUES ('never')"); !isStale(err) {
		t.Errorf("a stale snapshot: %v, want SQLITE_BUSY_SNAPSHOT", err)
	}
	stale.MustExec("ROLLBACK")
	stale.MustExec("BEGIN IMMEDIATE")
	if n := stale.MustInt("SELECT count(*) FROM t"); n != 2 {
		t.Errorf("under the lock %d rows, want 2", n)
	}
	stale.MustExec("ROLLBACK")

	// Readers neither borrow nor wait.
	calls := replica.givenBack()["acquire"]
	for range 20 {
		stale.MustInt("SELECT count(*) FROM t")
	}
	// A checkpoint to the end asks for WRITE without a slot, for as long as its busy time-out is.
	if _, err := impatient.Query("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil && !sqlapp.IsCode(err, sqlapp.CodeBusy) {
		t.Errorf("checkpoint: %v", err)
	}
	if n := replica.lockCalls()["acquire"]; n != calls {
		t.Errorf("reads and a checkpoint borrowed the lock %d times", n-calls)
	}

	// Another program of the primary is in a transaction, for longer than anybody waits.
	c.MustExec("BEGIN IMMEDIATE")
	waits := sqlitetest.Open(t, replica.path("app.db"), "busy_timeout=1500")
	for range 2 {
		began := time.Now()
		if _, err := waits.Exec("INSERT INTO t(v) VALUES ('never')"); !sqlapp.IsCode(err, sqlapp.CodeBusy) {
			t.Errorf("%v, want SQLITE_BUSY", err)
		}
		if took := time.Since(began); took < 1400*time.Millisecond || took > 15*time.Second {
			t.Errorf("it took %v, want 1.5 s", took)
		}
	}
	c.MustExec("COMMIT")
	waits.Close()
	later := openPatient(sqlitetest.Start(t), replica.path("app.db"))
	later.MustExec("INSERT INTO t(v) VALUES ('later')")

	same(primary, replica, c, 3)
}

// Without a primary a program is told SQLITE_BUSY, and the log says why; reads go on. When it is back, so are writes.
func TestForwardWithoutPrimary(t *testing.T) {
	t.Parallel()
	primary, replica, _ := forwarding(t)
	r := openPatient(sqlitetest.Start(t), replica.path("app.db"))
	r.MustExec("INSERT INTO t(v) VALUES ('before')")
	replica.givenBack()
	primary.killAll()
	short := sqlitetest.Open(t, replica.path("app.db"), "busy_timeout=300")
	if _, err := short.Exec("INSERT INTO t(v) VALUES ('never')"); !sqlapp.IsCode(err, sqlapp.CodeBusy) {
		t.Errorf("%v, want SQLITE_BUSY", err)
	}
	if n := short.MustInt("SELECT count(*) FROM t"); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	eventually(t, "the log says why", func() (bool, string) {
		return strings.Contains(replica.log.text(), "a program here wants to write, and gets SQLITE_BUSY"), ""
	})
	if out, err := exec.Command(binary(t), "status", "-config", replica.configPath()).CombinedOutput(); err != nil || !strings.Contains(string(out), "a program here wanted to write and could not") {
		t.Errorf("status: %v, %s", err, out)
	}
	primary.start()
	r.MustExec("INSERT INTO t(v) VALUES ('after')")
	short.Close()
	same(primary, replica, openPatient(sqlitetest.Start(t), primary.path("app.db")), 2)
}

// NAME-lock is LiteFS 0.5's: who has byte 72 of it locked has the primary's write lock, until it is let go, or the file is
// closed, or its holder killed.
func TestForwardLockFile(t *testing.T) {
	t.Parallel()
	primary, replica, c := forwarding(t)
	c.MustExec("PRAGMA busy_timeout=0")
	busy := func() bool {
		_, err := c.Exec("BEGIN IMMEDIATE; ROLLBACK")
		return err != nil
	}
	free := func(why string) {
		t.Helper()
		eventually(t, "the primary writes again: "+why, func() (bool, string) { return !busy(), "" })
	}
	path := replica.path("app.db-lock")
	if names, err := os.ReadDir(replica.cfg.Mount); err != nil || slices.ContainsFunc(names, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), "-lock") }) {
		t.Errorf("it is listed: %v, %v", names, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lock := func(kind int16, at int64) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: kind, Start: at, Len: 1})
	}
	if err := lock(unix.F_WRLCK, 71); !errors.Is(err, unix.EINVAL) {
		t.Errorf("byte 71: %v, want EINVAL", err)
	}
	if err := lock(unix.F_WRLCK, 72); err != nil {
		t.Fatal(err)
	}
	r := openPatient(sqlitetest.Start(t), replica.path("app.db"))
	for range 3 {
		r.MustExec("INSERT INTO t(v) VALUES ('held')")
		time.Sleep(300 * time.Millisecond) // longer than a lock that nobody has asked for by name is kept
		if !busy() {
			t.Fatal("the primary's writers get in while the lock is held")
		}
	}
	if calls := replica.lockCalls(); calls["acquire"] != 1 {
		t.Errorf("the lock was taken %d times", calls["acquire"])
	}
	if err := lock(unix.F_UNLCK, 72); err != nil {
		t.Fatal(err)
	}
	free("it was let go")
	if err := lock(unix.F_WRLCK, 72); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	free("the file was closed")

	script := "import fcntl, struct, sys; f = open(sys.argv[1], 'r+b', 0); fcntl.fcntl(f, 38, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 72, 1, 0)); print('held', flush=True); sys.stdin.read()"
	cmd := unlocked(replica, "python3", "-c", script, path)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if !busy() {
		t.Error("the primary's writers get in while a program has the lock")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	free("its holder was killed")
	c.MustExec("PRAGMA busy_timeout=60000")
	same(primary, replica, c, 3)
	if _, err := os.Stat(primary.path("app.db-lock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is on a mount whose locks the kernel keeps: %v", err)
	}
}

// At level quorum a transaction of a replica is acknowledged when another node has it as well; one that nobody else gets is
// refused, and nowhere.
func TestForwardQuorum(t *testing.T) {
	t.Parallel()
	level := func(c *childnode.Config) {
		c.Durability = []string{"{match: app.db, level: quorum, n: 2, timeout: 2s}"}
	}
	primary := startNode(t, level)
	replica, other := startNode(t, follows(primary), daemonLocks, level), startNode(t, follows(primary), level)
	c := openPatient(sqlitetest.Start(t), primary.path("app.db"))
	eventually(t, "two replicas are in sync", func() (bool, string) {
		_, err := c.Exec("PRAGMA journal_mode=wal; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
		return err == nil, fmt.Sprint(err)
	})
	caughtUp(primary, replica, "app.db")
	r := openPatient(sqlitetest.Start(t), replica.path("app.db"))
	for range 3 {
		r.MustExec("INSERT INTO t(v) VALUES ('replica')")
		r.MustExec("INSERT INTO t(v) VALUES (randomblob(30000))")
	}
	replica.mustShell("app.db", "DELETE FROM t WHERE length(v) > 100; VACUUM")
	c.MustExec("INSERT INTO t(v) VALUES ('primary')")
	other.stop()
	for range 2 {
		if _, err := r.Exec("INSERT INTO t(v) VALUES ('never')"); !sqlapp.IsCode(err, 10) {
			t.Errorf("a commit that one node alone would get: %v, want an I/O error", err)
		}
		for name, conn := range map[string]*sqlitetest.Conn{"the primary": c, "the replica": r} {
			if n := conn.MustInt("SELECT count(*) FROM t"); n != 4 {
				t.Errorf("%s has %d rows, want 4", name, n)
			}
		}
	}
	other.start()
	eventually(t, "the replica writes again", func() (bool, string) {
		_, err := r.Exec("INSERT INTO t(v) VALUES ('after')")
		return err == nil, fmt.Sprint(err)
	})
	c.MustExec("INSERT INTO t(v) VALUES ('primary')")
	for _, n := range []*node{replica, other} {
		caughtUp(primary, n, "app.db")
	}
	if got := r.MustText("SELECT group_concat(v) FROM t"); got != "replica,replica,replica,primary,after,primary" {
		t.Errorf("rows %s", got)
	}
	r.Close()
	c.Close()
	sameBytes("app.db", other, replica, primary)
}
