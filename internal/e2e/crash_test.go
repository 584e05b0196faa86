package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// victim is what a round kills.
type victim int

const (
	killDaemon victim = iota
	killApp
	killBoth
	victims
)

func (v victim) String() string { return [...]string{"daemon", "application", "both"}[v] }

// crasher writes at synchronous=FULL and is killed, round after round. acked is the last row that
// SQLite said was committed.
type crasher struct {
	t     *testing.T
	n     *node
	acked int64
	rng   *rand.Rand
}

// round starts the node, writes for a random time, kills, and returns with everything ended.
func (c *crasher) round(v victim, options ...string) {
	c.n.start()
	app := sqlitetest.Start(c.t)
	conn := app.Open(c.n.path("app.db"), append([]string{"journal_mode=wal", "synchronous=full"}, options...)...)
	conn.MustExec("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v BLOB)")
	if got := conn.MustInt("SELECT coalesce(max(id), 0) FROM t"); got < c.acked {
		c.t.Fatalf("row %d was acknowledged, the database ends at %d", c.acked, got)
	}
	c.acked = conn.MustInt("SELECT coalesce(max(id), 0) FROM t")
	if n := conn.MustInt("SELECT count(*) FROM t"); n != c.acked {
		c.t.Fatalf("%d rows, want every one up to %d", n, c.acked)
	}

	written := make(chan int64)
	go func() {
		last := c.acked
		for {
			next := last + 1
			if _, err := conn.Exec("INSERT INTO t VALUES (?, randomblob(?))", next, 100+int(next%7)*900); err != nil {
				written <- last
				return
			}
			last = next
		}
	}()
	time.Sleep(time.Duration(c.rng.IntN(60)) * time.Millisecond)
	if v == killDaemon || v == killBoth {
		if err := c.n.proc.Signal(os.Kill); err != nil {
			c.t.Fatal(err)
		}
	}
	if v == killDaemon {
		// What the application writes through descriptors that outlive the daemon counts as well.
		time.Sleep(time.Duration(c.rng.IntN(30)) * time.Millisecond)
	}
	app.Kill()
	c.acked = <-written
	if v == killApp {
		c.n.stop()
	} else {
		c.n.kill()
	}
}

// crashRounds kills daemon, application and both at random points, and proves after each round that
// nothing acknowledged at synchronous=FULL is lost, and at the end that the log is the database.
func crashRounds(t *testing.T, rounds int, d time.Duration, options ...option) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := &crasher{t: t, n: newNode(t, options...), rng: rand.New(rand.NewPCG(seed, 0))}
	start := time.Now()
	for i := 0; i < rounds || time.Since(start) < d; i++ {
		var pragmas []string
		if i%4 == 3 {
			pragmas = []string{"wal_autocheckpoint=10"}
		}
		c.round(victim(i%int(victims)), pragmas...)
		if t.Failed() {
			t.Fatalf("round %d", i)
		}
	}
	c.n.start()
	conn := sqlitetest.Open(t, c.n.path("app.db"))
	if got := conn.MustInt("SELECT max(id) FROM t"); got < c.acked {
		t.Errorf("row %d was acknowledged, the database ends at %d", c.acked, got)
	}
	conn.Close()
	c.n.stop()
	if db := c.n.verified()["app.db"]; db == nil || db.Max == 0 {
		t.Error("app.db has no log")
	}
	t.Logf("%d rows", c.acked)
}

func TestNothingAcknowledgedIsLostByCrashes(t *testing.T) {
	crashRounds(t, 6, 0)
}

// What an application commits through open descriptors while the daemon is away is captured when the
// daemon returns.
func TestWritesWithoutADaemonAreCapturedAtItsReturn(t *testing.T) {
	n := startNode(t)
	app := sqlitetest.Start(t)
	c := app.Open(n.path("app.db"), "journal_mode=wal", "synchronous=normal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	// Opened anew, so that its files are what an application has after any restart.
	c.Close()
	c = app.Open(n.path("app.db"), "synchronous=normal")
	c.MustExec("INSERT INTO t(v) VALUES ('before')")
	n.kill()
	written := int64(1)
	for range 20 {
		if _, err := c.Exec("INSERT INTO t(v) VALUES ('while it was away')"); err != nil {
			t.Logf("without a daemon: %v", err) // as on a mount without passthrough
			break
		}
		written++
	}
	app.Kill()
	n.start()
	c = sqlitetest.Open(t, n.path("app.db"))
	if got := c.MustInt("SELECT count(*) FROM t"); got != written {
		t.Errorf("%d rows, want %d", got, written)
	}
	c.Close()
	n.stop()
	n.verified()
}

// A second mount beside a dead one whose files are still open would be a second lock table over the
// same files: the node names the processes and stops.
func TestStartRefusesWhileADeadMountIsInUse(t *testing.T) {
	n := startNode(t)
	app := sqlitetest.Start(t)
	c := app.Open(n.path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	n.kill()

	proc := n.launch()
	code, err := proc.Wait(timeout(t))
	if err != nil {
		t.Error(proc.Kill())
		t.Fatal(err)
	}
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if pid := fmt.Sprint(app.PID()); !strings.Contains(proc.Tail(), pid) {
		t.Errorf("the message does not name process %s:\n%s", pid, proc.Tail())
	}
	app.Kill()
	n.start()
	if got := sqlitetest.CLI(t, n.path("app.db"), "SELECT count(*) FROM t;"); strings.TrimSpace(got) != "0" {
		t.Errorf("count %q", got)
	}
	n.stop()
	n.verified()
}

// stopAndGo stops and continues the daemon at random until ctx ends, and leaves it running.
func stopAndGo(ctx context.Context, proc *childnode.Node, rng *rand.Rand) error {
	for ctx.Err() == nil {
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
		if err := proc.Signal(sigStop); err != nil {
			return err
		}
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
		if err := proc.Signal(sigCont); err != nil {
			return err
		}
	}
	return nil
}

// A daemon that sleeps at random under load misses nothing, and no call is busy because of it.
func stopped(t *testing.T, d time.Duration, options ...option) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	n := startNode(t, options...)
	c := sqlitetest.Open(t, n.path("app.db"), "journal_mode=wal", "synchronous=normal", "wal_autocheckpoint=50")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- stopAndGo(ctx, n.proc, rand.New(rand.NewPCG(seed, 1))) }()
	steps := []sqlapp.Step{{SQL: insert(300).SQL, Times: 100}, {SQL: "PRAGMA wal_checkpoint(TRUNCATE)"}, insert(20000)}
	done, err := c.Repeat(steps, 0, d)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Errorf("after %d rounds: %v", done.Rounds, err)
	}
	want := int64(101 * done.Rounds)
	if got := c.MustInt("SELECT count(*) FROM t"); got != want {
		t.Errorf("%d rows, want %d", got, want)
	}
	c.Close()
	n.stop()
	db := n.verified()["app.db"]
	if db == nil || int64(db.Max) < want {
		t.Errorf("%+v, want at least %d transactions", db, want)
	}
	t.Logf("%d transactions", want)
}

func TestDaemonThatSleepsMissesNothing(t *testing.T) {
	t.Run("passthrough", func(t *testing.T) { stopped(t, 2*time.Second) })
	t.Run("cached", func(t *testing.T) { stopped(t, 2*time.Second, cached) })
}
