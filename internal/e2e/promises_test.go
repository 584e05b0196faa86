package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// quorum makes commits of all databases wait for so many replicas.
func quorum(n int, timeout string) option {
	return func(c *childnode.Config) {
		c.Durability = []string{fmt.Sprintf(`{match: "*", level: quorum, n: %d, timeout: %s}`, n, timeout)}
	}
}

// modes are the journal modes in which a commit can wait.
var modes = []string{"wal", "delete", "truncate", "persist"}

// A commit returns when a replica has it, in every journal mode. Without one it fails, the transaction is not there,
// and the next one that can be kept is.
func TestQuorum(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			primary := startNode(t, quorum(1, "20s"))
			replica := startNode(t, quorum(1, "20s"), follows(primary))
			app := sqlitetest.Start(t)
			c := openPatient(app, primary.path("app.db"), "journal_mode="+mode)
			c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
			for i := range 20 {
				c.MustExec(fmt.Sprintf("INSERT INTO t(v) VALUES ('%d')", i))
			}
			caughtUp(primary, replica, "app.db")
			showsRows(t, app.Open(replica.path("app.db")), "t", 20)
		})
	}
}

// Without a replica that answers, COMMIT fails and the transaction is not there: for this connection, for others, and
// after the node was killed and started anew. When the replica answers again the next commit is kept.
func TestQuorumRefused(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			primary := startNode(t, quorum(1, "2s"))
			replica := startNode(t, quorum(1, "2s"), follows(primary))
			c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode="+mode)
			mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
			mustCommit(t, c, "INSERT INTO t(v) VALUES ('kept')")

			if err := replica.proc.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := c.Exec("INSERT INTO t(v) VALUES ('refused')"); err == nil {
					t.Fatal("a commit that no replica has was acknowledged")
				}
				if n := c.MustInt("SELECT count(*) FROM t"); n != 1 {
					t.Fatalf("%d rows after the refusal, want 1", n)
				}
			}
			other := openPatient(sqlitetest.Start(t), primary.path("app.db"))
			if n := other.MustInt("SELECT count(*) FROM t"); n != 1 {
				t.Fatalf("another connection sees %d rows, want 1", n)
			}
			primary.killAll()
			primary.start()
			again := openPatient(sqlitetest.Start(t), primary.path("app.db"))
			if n := again.MustInt("SELECT count(*) FROM t"); n != 1 {
				t.Fatalf("%d rows after the node was killed, want 1", n)
			}
			if err := replica.proc.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			mustCommit(t, again, "INSERT INTO t(v) VALUES ('kept')")
			caughtUp(primary, replica, "app.db")
			got := openPatient(sqlitetest.Start(t), replica.path("app.db")).MustText("SELECT group_concat(v) FROM t")
			if got != "kept,kept" {
				t.Fatalf("the replica has %q", got)
			}
			sqlitetest.CheckIntegrity(t, replica.path("app.db"))
		})
	}
}

// mustCommit tries until enough replicas are in sync.
func mustCommit(t testing.TB, c *sqlitetest.Conn, sql string) {
	t.Helper()
	eventually(t, sql, func() (bool, string) {
		_, err := c.Exec(sql)
		return err == nil, fmt.Sprint(err)
	})
}

// answered is what a writer was told.
type answered struct {
	mu   sync.Mutex
	rows []int64
}

// write inserts numbers from n on until it is refused, by SQLite or because its node is gone.
func (a *answered) write(c *sqlitetest.Conn, n int64) {
	for {
		if _, err := c.Exec("INSERT INTO t(id) VALUES (?)", n); err != nil {
			return
		}
		a.mu.Lock()
		a.rows = append(a.rows, n)
		a.mu.Unlock()
		n++
	}
}

func (a *answered) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.rows)
}

// The primary is killed with all its processes under writers, again and again; another node takes over. Every
// transaction whose COMMIT has returned is there. With LITEFS_SOAK it goes on as long as that says.
func TestQuorumFailover(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3*time.Second)
	var nodes []*node
	for range 3 {
		nodes = append(nodes, c.start(quorum(1, "5s")))
	}
	databases := map[string]string{"wal.db": "wal", "delete.db": "delete"}
	told := map[string]*answered{"wal.db": {}, "delete.db": {}}
	primaryOf := func() *node { return primaryAmong(t, nodes) }
	for name, mode := range databases {
		conn := openPatient(sqlitetest.Start(t), primaryOf().path(name), "journal_mode="+mode)
		mustCommit(t, conn, "CREATE TABLE t(id INTEGER PRIMARY KEY)")
		conn.Close()
	}
	started, soak := time.Now(), soakFor(t)
	for round := 0; round < 2 || time.Since(started) < soak; round++ {
		p := primaryOf()
		var wg sync.WaitGroup
		before := told["wal.db"].count() + told["delete.db"].count()
		for name := range databases {
			conn := openPatient(sqlitetest.Start(t), p.path(name))
			mustCommit(t, conn, fmt.Sprintf("INSERT INTO t(id) VALUES (%d)", -round-1))
			wg.Go(func() { told[name].write(conn, int64(round+1)*1_000_000) })
		}
		eventually(t, "writers get on", func() (bool, string) {
			n := told["wal.db"].count() + told["delete.db"].count() - before
			return n > 40, fmt.Sprintf("%d commits", n)
		})
		p.killAll()
		wg.Wait()
		next := primaryOf()
		if next == p {
			t.Fatal("the node that was killed is the primary")
		}
		lost := 0
		for name := range databases {
			have := make(map[int64]bool)
			for _, row := range openPatient(sqlitetest.Start(t), next.path(name)).MustQuery("SELECT id FROM t") {
				have[row[0].(int64)] = true
			}
			for _, id := range told[name].rows {
				if !have[id] {
					lost++
					t.Errorf("round %d: %s: %d was acknowledged and is lost", round, name, id)
				}
			}
			sqlitetest.CheckIntegrity(t, next.path(name))
		}
		if lost > 0 {
			t.Fatalf("round %d: %d acknowledged transactions are lost", round, lost)
		}
		p.start()
	}
	t.Logf("%d commits acknowledged", told["wal.db"].count()+told["delete.db"].count())
}

// The command shows and sets levels of a running node; they are there after a restart; each change is in its log.
func TestDurabilityCommand(t *testing.T) {
	primary := startNode(t, func(c *childnode.Config) {
		c.Durability = []string{`{match: "bounded*", level: max-lag, lag: 1h}`}
	})
	c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
	says := func(want string, args ...string) {
		t.Helper()
		out, code := primary.cli(append([]string{"durability", "-config", primary.configPath()}, args...)...)
		if code != 0 || !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			t.Fatalf("litefs durability %v: exit code %d\n%swant %s", args, code, out, want)
		}
	}
	says(`"app.db" async rule in force`)
	says(`"app.db" quorum:1,durable,2s set pending: until the last connection`, "set", "app.db", "quorum:1,2s")
	says(`"level": "quorum:1,durable,2s", "set": true, "pending": true`, "-json")
	if out, code := primary.cli("status", "-config", primary.configPath()); code != 0 || !strings.Contains(out, "quorum:1,durable,2s (pending)") {
		t.Errorf("litefs status: exit code %d\n%s", code, out)
	}
	if log := primary.log.text(); !strings.Contains(log, "POST /durability") || !strings.Contains(log, "level=quorum:1,2s") {
		t.Errorf("the log has no line about it:\n%s", log)
	}
	for _, bad := range [][]string{{"set", "app.db", "quorum:0"}, {"set", "none.db", "async"}, {"set", "app.db", "sync"}} {
		if out, code := primary.cli(append([]string{"durability", "-config", primary.configPath()}, bad...)...); code != 1 || strings.Count(out, "\n") != 1 {
			t.Errorf("litefs durability %v: exit code %d\n%s", bad, code, out)
		}
	}
	c.Close()
	primary.stop()
	primary.start()
	says(`"app.db" quorum:1,durable,2s set in force`)
	c = openPatient(sqlitetest.Start(t), primary.path("app.db"))
	if _, err := c.Exec("INSERT INTO t(v) VALUES ('refused')"); err == nil {
		t.Fatal("a commit that no replica has was acknowledged")
	}
	replica := startNode(t, follows(primary))
	mustCommit(t, c, "INSERT INTO t(v) VALUES ('kept')")
	caughtUp(primary, replica, "app.db")
	says("commits at levels quorum and archive wait for: " + nodeID(replica))
	says(`"app.db" async rule in force`, "set", "app.db", "rule")
	c.MustExec("INSERT INTO t(v) VALUES ('at async')")
	d := openPatient(sqlitetest.Start(t), primary.path("bounded.db"))
	d.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY)")
	says(`"bounded.db" max-lag:1h0m0s rule in force`)
}

// What is set on the primary, by a command that runs anywhere, is kept by the replicas: when all its processes are killed
// the next primary promises the same, also after a restart of its own. The one that comes back takes the level that was
// set meanwhile, not the one that it had.
func TestLevelFollows(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3*time.Second)
	first := c.start()
	becomesPrimary(first)
	nodes := []*node{first, c.start(), c.start()}
	conn := openPatient(sqlitetest.Start(t), first.path("app.db"), "journal_mode=wal")
	conn.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY)")
	conn.Close()
	for _, n := range nodes[1:] {
		samePosition(first, n, "app.db")
	}
	shows := func(n *node, want string) {
		t.Helper()
		eventually(t, "the level is "+want, func() (bool, string) {
			out, _ := n.cli("durability", "-config", n.configPath())
			return strings.Contains(strings.Join(strings.Fields(out), " "), `"app.db" `+want), out
		})
	}
	set := func(n *node, level string) {
		t.Helper()
		if out, code := n.cli("durability", "-config", n.configPath(), "set", "app.db", level); code != 0 {
			t.Fatalf("set %s: exit code %d\n%s", level, code, out)
		}
	}
	set(nodes[1], "quorum:1,3s")
	for _, n := range nodes {
		shows(n, "quorum:1,durable,3s set in force")
	}
	conn = openPatient(sqlitetest.Start(t), first.path("app.db"))
	mustCommit(t, conn, "INSERT INTO t DEFAULT VALUES")
	first.killAll()

	var next, other *node
	eventually(t, "another node is the primary", func() (bool, string) {
		for i, n := range nodes[1:] {
			if info, ok := n.info(); ok && info.IsPrimary {
				next, other = n, nodes[2-i]
			}
		}
		return next != nil, "none"
	})
	shows(next, "quorum:1,durable,3s set in force")
	promises := func() {
		t.Helper()
		conn := openPatient(sqlitetest.Start(t), next.path("app.db"))
		mustCommit(t, conn, "INSERT INTO t DEFAULT VALUES")
		if err := other.proc.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec("INSERT INTO t DEFAULT VALUES"); err == nil {
			t.Error("a commit that no replica has was acknowledged")
		}
		if err := other.proc.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		mustCommit(t, conn, "INSERT INTO t DEFAULT VALUES")
	}
	promises()
	set(next, "quorum:1,4s")
	first.start()
	shows(first, "quorum:1,durable,4s set in force")
	set(first, "rule")
	for _, n := range nodes {
		shows(n, "async rule in force")
	}
}

func nodeID(n *node) string {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.cfg.Data, "node-id"))
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// A replica that does not hear of its primary refuses reads when its copy is older than it may be, on open connections
// and on new ones; it reads again, on the same connections, when it has caught up. With then: serve it serves.
func TestMaxStaleness(t *testing.T) {
	stale := func(then string) option {
		return func(c *childnode.Config) { c.Replica = []string{"max-staleness: 2s", "then: " + then} }
	}
	primary := startNode(t)
	refuses := startNode(t, stale("refuse"), follows(primary))
	serves := startNode(t, stale("serve"), follows(primary))
	app := sqlitetest.Start(t)
	w := openPatient(app, primary.path("app.db"), "journal_mode=wal")
	w.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY)")
	w.MustExec("INSERT INTO t VALUES (1)")
	caughtUp(primary, refuses, "app.db")
	caughtUp(primary, serves, "app.db")
	c := openPatient(app, refuses.path("app.db"))
	s := openPatient(app, serves.path("app.db"))
	if n := c.MustInt("SELECT count(*) FROM t") + s.MustInt("SELECT count(*) FROM t"); n != 2 {
		t.Fatalf("%d rows in two copies, want 1 in each", n)
	}
	c.MustQuery("PRAGMA busy_timeout=0")
	reads := func(n *node, want bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("reads are possible: %v", want), func() (bool, string) {
			_, open := c.Query("SELECT count(*) FROM t")
			fresh, anew := app.TryOpen(n.path("app.db")) // it reads the schema
			if anew == nil {
				fresh.Close()
			}
			busy := func(err error) bool { return sqlapp.IsCode(err, sqlapp.CodeBusy) }
			if want {
				return open == nil && anew == nil, fmt.Sprint(open, anew)
			}
			return busy(open) && busy(anew), fmt.Sprint(open, anew)
		})
	}
	w.Close()
	primary.stop()
	reads(refuses, false)
	if out, _ := refuses.cli("status", "-config", refuses.configPath()); !strings.Contains(out, "more than replica.max-staleness") {
		t.Errorf("litefs status says nothing of it:\n%s", out)
	}
	if log := refuses.log.text(); !strings.Contains(log, "the copy is too old") {
		t.Errorf("the log says nothing of it:\n%s", log)
	}
	eventually(t, "the other replica says so", func() (bool, string) {
		log := serves.log.text()
		return strings.Contains(log, "the copy is too old"), log
	})
	if n := s.MustInt("SELECT count(*) FROM t"); n != 1 {
		t.Errorf("reads %d rows, want 1", n)
	}
	primary.start()
	reads(refuses, true)
	// A replica that starts and meets no primary has a copy of unknown age.
	c.Close()
	primary.stop()
	refuses.stop()
	refuses.start()
	if _, err := app.TryOpen(refuses.path("app.db")); !sqlapp.IsCode(err, sqlapp.CodeBusy) {
		t.Fatalf("a copy of unknown age: %v, want busy", err)
	}
	primary.start()
	c = openPatient(app, refuses.path("app.db"))
	reads(refuses, true)
	w = openPatient(app, primary.path("app.db"))
	w.MustExec("INSERT INTO t VALUES (2)")
	showsRows(t, c, "t", 2) // the primary captures a moment after it has acknowledged
	sqlitetest.CheckIntegrity(t, refuses.path("app.db"))
}

// showsRows waits until a replica shows the rows that its primary has acknowledged: it has them, and shows the last one a
// moment later, when it has heard that it is decided.
func showsRows(t *testing.T, c *sqlitetest.Conn, table string, want int64) {
	t.Helper()
	eventually(t, "the replica shows what was acknowledged", func() (bool, string) {
		n := c.MustInt("SELECT count(*) FROM " + table)
		return n == want, fmt.Sprintf("%d rows, want %d", n, want)
	})
}

// An import into a database at quorum returns when a replica has it, also where it changes the size of pages under open
// connections, which go on to commit. Without a replica it says that it is on this node alone.
func TestQuorumImport(t *testing.T) {
	t.Parallel()
	primary := startNode(t, quorum(1, "3s"))
	replica := startNode(t, quorum(1, "3s"), follows(primary))
	app := sqlitetest.Start(t)
	url := "http://" + primary.cfg.Addr
	for _, mode := range []string{"wal", "delete"} {
		name := mode + ".db"
		c := openPatient(app, primary.path(name), "journal_mode="+mode)
		mustCommit(t, c, "CREATE TABLE t(v)")
		for _, pageSize := range []int{1024, 4096} {
			image := imported(t, pageSize, mode)
			if out, err := litefs(t, "import", "-url", url, "-name", name, image); err != nil {
				t.Fatalf("%s: import: %s, %v", name, out, err)
			}
			// No wait: the replica has what was acknowledged, and shows it when it has heard that it is decided.
			caughtUp(primary, replica, name)
			mustCommit(t, c, "INSERT INTO other VALUES ('after', 1)")
			showsRows(t, openPatient(app, replica.path(name)), "other", 41)
		}
		sqlitetest.CheckIntegrity(t, replica.path(name))
	}
	if out, err := litefs(t, "import", "-url", url, "-name", "new.db", imported(t, 4096, "wal")); err != nil {
		t.Fatalf("import of a new database: %s, %v", out, err)
	}
	if err := replica.proc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"wal.db", "alone.db"} {
		if out, err := litefs(t, "import", "-url", url, "-name", name, imported(t, 4096, "wal")); err == nil || !strings.Contains(out, "on this node alone so far") {
			t.Fatalf("import of %s that no replica has: %s, %v", name, out, err)
		}
	}
	if err := replica.proc.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"wal.db", "alone.db"} {
		c := openPatient(app, primary.path(name))
		mustCommit(t, c, "INSERT INTO other VALUES ('after', 1)")
		caughtUp(primary, replica, name)
	}
}

// With ack: memory a commit returns when a replica has it in its log, and is there when the replica's applications look.
func TestQuorumMemory(t *testing.T) {
	memory := func(c *childnode.Config) {
		c.Durability = []string{`{match: "*", level: quorum, n: 1, ack: memory, timeout: 3s}`}
	}
	primary := startNode(t, memory)
	replica := startNode(t, memory, follows(primary))
	app := sqlitetest.Start(t)
	for _, mode := range []string{"wal", "delete"} {
		name := mode + ".db"
		c := openPatient(app, primary.path(name), "journal_mode="+mode)
		mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY)")
		for range 50 {
			c.MustExec("INSERT INTO t DEFAULT VALUES")
		}
		caughtUp(primary, replica, name)
		showsRows(t, openPatient(app, replica.path(name)), "t", 50)
		if err := replica.proc.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Exec("INSERT INTO t DEFAULT VALUES"); err == nil {
			t.Fatal("a commit that no replica has was acknowledged")
		}
		if err := replica.proc.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		mustCommit(t, c, "INSERT INTO t DEFAULT VALUES")
	}
}
