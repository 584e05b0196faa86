package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// haltable lets write locks be borrowed while programs have databases open.
func haltable(c *childnode.Config) {
	c.Replica = append(c.Replica, `halt-databases: ["*"]`)
}

// holder is a litefs run that has the write lock of a database and does nothing.
type holder struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.Closer
}

func (n *node) hold(db string) *holder {
	n.t.Helper()
	h := &holder{t: n.t, cmd: n.withLock(db, "sh", "-c", "echo held; cat")}
	in, err := h.cmd.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	h.in = in
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(h.kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		n.t.Fatalf("the command says %q: %v", line, err)
	}
	return h
}

// release ends the command as it ends by itself.
func (h *holder) release() {
	h.t.Helper()
	if err := errors.Join(h.in.Close(), h.cmd.Wait()); err != nil {
		h.t.Fatal(err)
	}
	h.cmd = nil
}

// kill ends litefs run by force.
func (h *holder) kill() {
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Kill()
	_ = h.in.Close()
	_ = h.cmd.Wait() // it was killed
	h.cmd = nil
}

// lent is a primary and a replica with a table t, on which the lock can be borrowed.
func lent(t testing.TB, options ...option) (primary, replica *node, c *sqlitetest.Conn) {
	t.Helper()
	primary = startNode(t, append([]option{haltable}, options...)...)
	c = openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	replica = startNode(t, append([]option{haltable, follows(primary)}, options...)...)
	caughtUp(primary, replica, "app.db")
	return primary, replica, c
}

// writesAgain waits until the primary's own writers get in.
func writesAgain(c *sqlitetest.Conn) {
	c.MustExec("INSERT INTO t(v) VALUES ('primary')")
}

// same checks that two nodes have the same, and that the primary has want rows.
func same(primary, replica *node, c *sqlitetest.Conn, want int64) {
	primary.t.Helper()
	caughtUp(primary, replica, "app.db")
	if n := c.MustInt("SELECT count(*) FROM t"); n != want {
		primary.t.Fatalf("the primary has %d rows, want %d", n, want)
	}
	r := openPatient(sqlitetest.Start(primary.t), replica.path("app.db"))
	if n := r.MustInt("SELECT count(*) FROM t"); n != want {
		primary.t.Fatalf("the replica has %d rows, want %d", n, want)
	}
	r.Close()
	for _, n := range []*node{primary, replica} {
		sqlitetest.CheckIntegrity(primary.t, n.path("app.db"))
	}
}

// Whoever has the lock dies, in each way: the primary's own writers get in again, and what was not committed is nowhere.
func TestHaltHolderDies(t *testing.T) {
	t.Run("the program", func(t *testing.T) {
		t.Parallel()
		primary, replica, c := lent(t)
		h := replica.hold("app.db")
		for n, want := range map[*node]string{primary: "lent: a replica has its write lock", replica: "programs here write under the primary's lock"} {
			out, err := exec.Command(binary(t), "status", "-config", n.configPath()).CombinedOutput()
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("status: %v, %s, want %q", err, out, want)
			}
		}
		dying := sqlitetest.Start(t)
		d := openPatient(dying, replica.path("app.db"), "cache_size=1")
		d.MustExec("INSERT INTO t(v) VALUES ('before')")
		d.MustExec("BEGIN IMMEDIATE")
		for range 30 {
			d.MustExec("INSERT INTO t(v) VALUES (randomblob(4000))")
		}
		dying.Kill()
		other := openPatient(sqlitetest.Start(t), replica.path("app.db"))
		other.MustExec("INSERT INTO t(v) VALUES ('after')")
		h.release()
		writesAgain(c)
		same(primary, replica, c, 3)
	})
	t.Run("litefs run", func(t *testing.T) {
		t.Parallel()
		primary, replica, c := lent(t)
		h := replica.hold("app.db")
		d := openPatient(sqlitetest.Start(t), replica.path("app.db"))
		d.MustExec("BEGIN IMMEDIATE")
		d.MustExec("INSERT INTO t(v) VALUES ('never')")
		h.kill()
		eventually(t, "the node has heard of it", func() (bool, string) {
			return strings.Contains(replica.log.text(), "programs are to end"), ""
		})
		if _, err := d.Exec("COMMIT"); err == nil {
			t.Fatal("a transaction was committed whose lock was gone")
		}
		writesAgain(c)
		same(primary, replica, c, 1)
		d.MustExec("PRAGMA busy_timeout=0")
		if _, err := d.Exec("INSERT INTO t(v) VALUES ('never')"); err == nil {
			t.Fatal("a replica takes a write without the lock")
		}
	})
	t.Run("the daemon", func(t *testing.T) {
		t.Parallel()
		primary, replica, c := lent(t)
		replica.hold("app.db")
		inTransaction(replica)
		replica.killAll()
		writesAgain(c)
		replica.start()
		same(primary, replica, c, 2)
	})
	t.Run("frozen", func(t *testing.T) {
		t.Parallel()
		primary, replica, c := lent(t)
		replica.hold("app.db")
		d := inTransaction(replica)
		outlivesItsLock(replica, c, d)
		same(primary, replica, c, 2)
	})
}

// inTransaction commits a row on a replica that may write, and is in the middle of a transaction then.
func inTransaction(replica *node) *sqlitetest.Conn {
	replica.t.Helper()
	d := openPatient(sqlitetest.Start(replica.t), replica.path("app.db"))
	d.MustExec("INSERT INTO t(v) VALUES ('kept')")
	d.MustExec("BEGIN IMMEDIATE")
	d.MustExec("INSERT INTO t(v) VALUES ('never')")
	return d
}

// outlivesItsLock stops a replica's daemon until its hold has expired and the primary, c, writes again: then the
// transaction of d is not committed.
func outlivesItsLock(replica *node, c, d *sqlitetest.Conn) {
	replica.t.Helper()
	if err := replica.proc.Signal(syscall.SIGSTOP); err != nil {
		replica.t.Fatal(err)
	}
	writesAgain(c)
	if err := replica.proc.Signal(syscall.SIGCONT); err != nil {
		replica.t.Fatal(err)
	}
	if _, err := d.Exec("COMMIT"); err == nil {
		replica.t.Fatal("a transaction was committed whose lock had expired")
	}
}

// The lock passes from node to node, and the primary writes between.
func TestHaltHandOver(t *testing.T) {
	cl := newCluster(t, 5*time.Second)
	a := cl.start(haltable)
	becomesPrimary(a)
	c := openPatient(sqlitetest.Start(t), a.path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	b := cl.start(haltable)
	samePosition(a, b, "app.db")
	b.hold("app.db")
	d := openPatient(sqlitetest.Start(t), b.path("app.db"))
	d.MustExec("INSERT INTO t(v) VALUES ('kept')")
	// The holder itself becomes the primary: what it has written under the lock is there, and it goes on.
	if err := b.move("/promote"); err != nil {
		t.Fatal(err)
	}
	becomesPrimary(b)
	d.MustExec("INSERT INTO t(v) VALUES ('primary')")
	settle(d)
	samePosition(a, b, "app.db")
	if n := c.MustInt("SELECT count(*) FROM t"); n != 2 {
		t.Fatalf("%d rows on the former primary, want 2", n)
	}
	a.mustSQLOver("app.db", "INSERT INTO t(v) VALUES ('former primary')")
	samePosition(a, b, "app.db")
	if n := d.MustInt("SELECT count(*) FROM t"); n != 3 {
		t.Fatalf("%d rows, want 3", n)
	}
	for _, n := range []*node{a, b} {
		sqlitetest.CheckIntegrity(t, n.path("app.db"))
	}
}

// mustSQLOver is mustSQL that tries again.
func (n *node) mustSQLOver(db, statements string) {
	n.t.Helper()
	eventually(n.t, statements, func() (bool, string) {
		_, err := n.sql(db, statements)
		return err == nil, fmt.Sprint(err)
	})
}

// counting is nodes that increment a counter under the lock, and what they were told.
type counting struct {
	t       testing.TB
	command func(n *node, args ...string) *exec.Cmd
	pause   time.Duration // between two programs of a kind, in which others get in

	mu   sync.Mutex
	oks  map[string]bool
	errs int
}

// program makes the command line of a program that increments the counter so many times, and prints "ok ID" for each.
type program func(k *counting, n *node, name string, times int) []string

func inPython(k *counting, n *node, name string, times int) []string {
	script, err := filepath.Abs("testdata/counter.py")
	if err != nil {
		k.t.Error(err)
	}
	return []string{"python3", script, n.path("app.db"), name, fmt.Sprint(times)}
}

func inShell(_ *counting, n *node, name string, times int) []string {
	var b strings.Builder
	for i := range times {
		fmt.Fprintf(&b, "BEGIN IMMEDIATE; UPDATE counter SET v = (SELECT v FROM counter) + 1; INSERT INTO ledger VALUES ('%s.%d', randomblob(200)); COMMIT; SELECT 'ok %s.%d';\n", name, i, name, i)
	}
	return []string{"sqlite3", "-bail", "-cmd", ".timeout 30000", n.path("app.db"), b.String()}
}

// count runs the program again and again until ctx ends.
func (k *counting) count(ctx context.Context, n *node, name string, times int, program program) {
	for i := 0; ctx.Err() == nil; i++ {
		if i > 0 {
			time.Sleep(k.pause)
		}
		cmd := k.command(n, program(k, n, fmt.Sprintf("%s.%d", name, i), times)...)
		out, err := cmd.Output()
		k.mu.Lock()
		for line := range strings.Lines(string(out)) {
			if key, ok := strings.CutPrefix(strings.TrimSpace(line), "ok "); ok {
				k.oks[key] = true
			}
		}
		if err != nil {
			k.failed(fmt.Sprintf("%v: %s", err, out[max(0, len(out)-300):]))
		}
		k.mu.Unlock()
	}
}

// failed notes a program that failed. k.mu is held.
func (k *counting) failed(why string) {
	if k.errs++; k.errs <= 3 {
		k.t.Logf("a program failed: %s", why)
	}
}

// check compares the database with what was told.
func (k *counting) check(c *sqlitetest.Conn) {
	k.t.Helper()
	rows := c.MustQuery("SELECT id FROM ledger")
	there := make(map[string]bool)
	for _, row := range rows {
		there[fmt.Sprint(row[0])] = true
	}
	for key := range k.oks {
		if !there[key] {
			k.t.Errorf("%s was acknowledged and is not there", key)
		}
	}
	if v := c.MustInt("SELECT v FROM counter"); v != int64(len(rows)) || len(there) != len(rows) {
		k.t.Errorf("the counter is %d after %d increments, %d of them different", v, len(rows), len(there))
	}
	if extra := len(there) - len(k.oks); extra > k.errs {
		k.t.Errorf("%d increments were not acknowledged and are there, with %d errors", extra, k.errs)
	}
	k.t.Logf("%d increments acknowledged, %d there, %d programs failed", len(k.oks), len(there), k.errs)
	if len(k.oks) == 0 {
		k.t.Error("nothing was incremented")
	}
}

// settled checks the counter on the primary and on the replicas, once these have all of it.
func (k *counting) settled(primary *node, replicas ...*node) {
	k.t.Helper()
	for _, n := range append([]*node{primary}, replicas...) {
		c := openPatient(sqlitetest.Start(k.t), n.path("app.db"))
		if n != primary {
			caughtUp(primary, n, "app.db")
		}
		k.check(c)
		c.Close()
		sqlitetest.CheckIntegrity(k.t, n.path("app.db"))
	}
}

func newCounting(t testing.TB, c *sqlitetest.Conn) *counting {
	c.MustExec("CREATE TABLE counter(v INTEGER)")
	c.MustExec("INSERT INTO counter VALUES (0)")
	c.MustExec("CREATE TABLE ledger(id TEXT PRIMARY KEY, b)")
	locked := func(n *node, args ...string) *exec.Cmd { return n.withLock("app.db", args...) }
	return &counting{t: t, command: locked, oks: make(map[string]bool)}
}

// during runs fns until d is over, and waits for them.
func during(t testing.TB, d time.Duration, fns ...func(ctx context.Context)) {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var wg sync.WaitGroup
	for _, fn := range fns {
		wg.Go(func() { fn(ctx) })
	}
	wg.Wait()
}

// The primary is killed under forwarded transactions and started anew: none that was acknowledged is lost, none counts
// twice, and what became of those under way is found out. The program has a short time-out: with its lock the way in is gone.
func TestHaltPrimaryDies(t *testing.T) {
	primary, replica, c := lent(t)
	k := newCounting(t, c)
	caughtUp(primary, replica, "app.db")
	d := max(3*time.Second, soakFor(t)/6)
	during(t, d,
		func(ctx context.Context) { k.count(ctx, replica, "r", 10, inC) },
		func(ctx context.Context) {
			for ctx.Err() == nil {
				select {
				case <-ctx.Done():
				case <-time.After(700 * time.Millisecond):
				}
				primary.killAll()
				primary.start()
			}
		})
	k.settled(primary, replica)
}

// The network between a holder and the primary loses, cuts and doubles what is said.
func TestHaltLostAnswers(t *testing.T) {
	primary := startNode(t, haltable)
	c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode=wal")
	k := newCounting(t, c)
	seed := uint64(time.Now().UnixNano())
	proxy := startProxy(t, primary, seed)
	t.Logf("seed %d", seed)
	replica := startNode(t, haltable, func(c *childnode.Config) { c.PrimaryURL = "http://" + proxy.Addr() })
	caughtUp(primary, replica, "app.db")
	rng := rand.New(rand.NewPCG(seed, 2))
	d := max(3*time.Second, soakFor(t)/6)
	during(t, d,
		func(ctx context.Context) { k.count(ctx, replica, "r", 10, inPython) },
		func(ctx context.Context) { proxy.Storm(ctx, rng, 150*time.Millisecond, nil) })
	k.settled(primary, replica)
}

// Three nodes increment one counter at once, each under the lock in turn, the primary with its own writers: no
// increment is lost, and everybody gets in.
func TestHaltCounters(t *testing.T) {
	primary, replica, c := lent(t)
	other := startNode(t, haltable, follows(primary))
	k := newCounting(t, c)
	caughtUp(primary, replica, "app.db")
	caughtUp(primary, other, "app.db")
	during(t, max(3*time.Second, soakFor(t)/6),
		func(ctx context.Context) { k.count(ctx, replica, "r", 3, inPython) },
		func(ctx context.Context) { k.count(ctx, other, "o", 3, inShell) },
		func(ctx context.Context) { k.count(ctx, primary, "p", 3, inPython) })
	if k.errs > 0 {
		t.Errorf("%d programs failed", k.errs)
	}
	for _, name := range []string{"r", "o", "p"} {
		if c.MustInt("SELECT count(*) FROM ledger WHERE id LIKE '"+name+".%'") == 0 {
			t.Errorf("%s never got in", name)
		}
	}
	k.settled(primary, replica, other)
}

// Several programs write at once under one lock: SQLite's own locks decide between them.
func TestHaltWriters(t *testing.T) {
	primary, replica, c := lent(t)
	h := replica.hold("app.db")
	var wg sync.WaitGroup
	for i := range 4 {
		conn := openPatient(sqlitetest.Start(t), replica.path("app.db"))
		wg.Go(func() {
			for n := range 30 { // each makes the database grow
				conn.MustExec("INSERT INTO t(v) VALUES (?)", fmt.Sprintf("%d.%d %05000d", i, n, n))
			}
		})
	}
	wg.Wait()
	for _, n := range []*node{replica, primary} {
		r := openPatient(sqlitetest.Start(t), n.path("app.db"))
		if got := r.MustText("PRAGMA integrity_check"); got != "ok" {
			t.Errorf("%s: %s", n.cfg.Mount, got)
		}
		if got := r.MustInt("SELECT count(DISTINCT v) FROM t"); got != 120 {
			t.Errorf("%s: %d rows, want 120", n.cfg.Mount, got)
		}
		r.Close()
	}
	if got := c.MustText("PRAGMA integrity_check"); got != "ok" {
		t.Errorf("open connection of the primary: %s", got)
	}
	h.release()
	same(primary, replica, c, 120)
}
