package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// Whoever writes on a replica, without knowing it, dies in mid-transaction, in each way: the primary's own writers get in
// again, and what was not committed is nowhere.
func TestForwardWriterDies(t *testing.T) {
	t.Run("the program", func(t *testing.T) {
		t.Parallel()
		primary, replica, c := forwarding(t)
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
		writesAgain(c)
		same(primary, replica, c, 3)
	})
	t.Run("the daemon", func(t *testing.T) {
		t.Parallel()
		primary, replica, c := forwarding(t)
		d := inTransaction(replica)
		replica.killAll()
		writesAgain(c)
		if _, err := d.Exec("COMMIT"); err == nil {
			t.Error("a transaction was committed on a mount that is gone")
		}
		replica.start()
		same(primary, replica, c, 2)
	})
	t.Run("frozen", func(t *testing.T) {
		t.Parallel()
		primary, replica, c := forwarding(t)
		d := inTransaction(replica)
		outlivesItsLock(replica, c, d)
		d.Close()
		e := openPatient(sqlitetest.Start(t), replica.path("app.db"))
		e.MustExec("INSERT INTO t(v) VALUES ('again')")
		same(primary, replica, c, 3)
	})
}

// quorumCounting is forwardCounting at level quorum, with a replica.
func quorumCounting(t testing.TB) (primary, replica *node, k *counting) {
	primary = startNode(t, quorum(1, "5s"))
	replica = startNode(t, quorum(1, "5s"), follows(primary), daemonLocks)
	c := openPatient(sqlitetest.Start(t), primary.path("app.db"))
	mustCommit(t, c, "PRAGMA journal_mode=wal")
	mustCommit(t, c, "CREATE TABLE made(v)")
	k = newCounting(t, c)
	k.command = unlocked
	c.Close()
	return primary, replica, k
}

// forwardCounting is a primary and a replica whose programs increment a counter without asking for a lock.
func forwardCounting(t testing.TB) (*node, *counting) {
	primary := startNode(t)
	c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode=wal")
	k := newCounting(t, c)
	k.command = unlocked
	c.Close()
	return primary, k
}

// killsAndStarts kills a node and starts it anew until ctx ends.
func killsAndStarts(n *node) func(ctx context.Context) {
	return func(ctx context.Context) {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(700 * time.Millisecond):
			}
			n.killAll()
			n.start()
		}
	}
}

// The primary, or the replica's daemon, is killed under transactions and started anew: none that was acknowledged is
// lost, none counts twice.
func TestForwardKills(t *testing.T) {
	for _, who := range []string{"primary", "replica", "primary at quorum", "replica at quorum"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			var primary, replica *node
			var k *counting
			if strings.HasSuffix(who, "quorum") {
				primary, replica, k = quorumCounting(t)
			} else {
				primary, k = forwardCounting(t)
				replica = startNode(t, follows(primary), daemonLocks)
			}
			caughtUp(primary, replica, "app.db")
			victim := replica
			if strings.HasPrefix(who, "primary") {
				victim = primary
			}
			during(t, max(3*time.Second, soakFor(t)/6),
				func(ctx context.Context) { k.count(ctx, replica, "r", 10, inC) }, // it does not make a file where no mount is
				killsAndStarts(victim))
			k.settled(primary, replica)
		})
	}
}

// The network between a replica and the primary loses, cuts and doubles what is said.
func TestForwardLostAnswers(t *testing.T) {
	t.Parallel()
	primary, k := forwardCounting(t)
	replica, proxy := behindProxy(t, primary)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	during(t, max(3*time.Second, soakFor(t)/6),
		func(ctx context.Context) { k.count(ctx, replica, "r", 10, inPython) },
		func(ctx context.Context) { proxy.Storm(ctx, rng, 150*time.Millisecond, nil) })
	k.settled(primary, replica)
}

// The roles move while programs write on both nodes, each on its own mount: they see nothing of it but time.
func TestForwardHandOver(t *testing.T) {
	t.Parallel()
	cl := newCluster(t, 5*time.Second)
	a := cl.start(daemonLocks)
	becomesPrimary(a)
	c := openPatient(sqlitetest.Start(t), a.path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	b := cl.start(daemonLocks)
	samePosition(a, b, "app.db")
	d := openPatient(sqlitetest.Start(t), b.path("app.db"))
	d.MustExec("INSERT INTO t(v) VALUES ('replica')")
	if err := b.move("/promote"); err != nil {
		t.Fatal(err)
	}
	becomesPrimary(b)
	d.MustExec("INSERT INTO t(v) VALUES ('primary')")
	c.MustExec("INSERT INTO t(v) VALUES ('former primary')")
	d.MustExec("INSERT INTO t(v) VALUES ('primary again')")
	settle(d)
	samePosition(a, b, "app.db")
	for _, conn := range []*sqlitetest.Conn{c, d} {
		if got := conn.MustText("SELECT group_concat(v) FROM t"); got != "replica,primary,former primary,primary again" {
			t.Errorf("rows %q", got)
		}
	}
	for _, n := range []*node{a, b} {
		sqlitetest.CheckIntegrity(t, n.path("app.db"))
	}
}

// The primary is killed while it waits for others, with the first transaction of a write-ahead log that has begun anew, or
// with a later one: what the holder is told is what is there.
func TestForwardQuorumInDoubt(t *testing.T) {
	for _, anew := range []bool{true, false} {
		t.Run(fmt.Sprint("anew ", anew), func(t *testing.T) {
			t.Parallel()
			level := quorum(2, "30s")
			primary := startNode(t, level)
			replica, other := startNode(t, level, follows(primary), daemonLocks), startNode(t, level, follows(primary))
			c := openPatient(sqlitetest.Start(t), primary.path("app.db"))
			mustCommit(t, c, "PRAGMA journal_mode=wal; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
			caughtUp(primary, replica, "app.db")
			r := openPatient(sqlitetest.Start(t), replica.path("app.db"))
			mustCommit(t, r, "INSERT INTO t(v) VALUES ('one')")
			replica.givenBack()
			if anew {
				settle(c)
			}
			c.Close()
			other.stop()
			done := make(chan error, 1)
			go func() {
				_, err := r.Exec("INSERT INTO t(v) VALUES ('two')")
				done <- err
			}()
			eventually(t, "it is on its way", func() (bool, string) {
				calls := replica.lockCalls()
				return calls["commit"] == 2, fmt.Sprint(calls)
			})
			time.Sleep(300 * time.Millisecond) // and in the primary's log, in all likelihood
			primary.killAll()
			primary.start()
			select {
			case err := <-done:
				if err == nil {
					t.Error("it was acknowledged, and one replica of two has it")
				}
				done <- err
			case <-time.After(2 * time.Second):
			}
			other.start()
			want := "one,two"
			if err := <-done; err != nil {
				t.Logf("it was refused: %v", err)
				want = "one"
			}
			for _, n := range []*node{primary, replica, other} {
				if n != primary {
					caughtUp(primary, n, "app.db")
				}
				if got := openPatient(sqlitetest.Start(t), n.path("app.db")).MustText("SELECT group_concat(v) FROM t"); got != want {
					t.Errorf("%s on %s, want %s", got, n.cfg.Mount, want)
				}
			}
		})
	}
}

// At level quorum programs on all nodes increment a counter, and the primary is killed for good: what was acknowledged
// anywhere is on the one that takes over, where the programs go on, and on the former one when it is back.
func TestForwardQuorumFailover(t *testing.T) {
	t.Parallel()
	cl := newCluster(t, 3*time.Second)
	var nodes []*node
	for range 3 {
		nodes = append(nodes, cl.start(quorum(1, "5s"), daemonLocks))
	}
	first := primaryAmong(t, nodes)
	c := openPatient(sqlitetest.Start(t), first.path("app.db"))
	mustCommit(t, c, "PRAGMA journal_mode=wal")
	mustCommit(t, c, "CREATE TABLE made(v)")
	k := newCounting(t, c)
	k.command = unlocked
	c.Close()
	var names, left []string
	var programs []func(context.Context)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i, n := range nodes {
		name := fmt.Sprint("before", i)
		names = append(names, name)
		if n != first {
			samePosition(first, n, "app.db")
			left = append(left, fmt.Sprint("after", i))
		}
		programs = append(programs, func(context.Context) {
			k.count(until(ctx, func() bool { return k.allIn(names) }), n, name, 5, inC)
		})
	}
	during(t, patience, programs...)
	programs = nil
	for i, n := range nodes {
		if n != first {
			programs = append(programs, func(context.Context) {
				k.count(until(ctx, func() bool { return k.allIn(left) }), n, fmt.Sprint("after", i), 5, inC)
			})
		}
	}
	programs = append(programs, func(context.Context) {
		time.Sleep(200 * time.Millisecond) // while they write
		first.killAll()
	})
	during(t, patience, programs...)
	next := primaryAmong(t, nodes)
	if next == first {
		t.Fatal("the node that was killed is the primary")
	}
	first.start()
	for _, n := range nodes {
		if n != next {
			samePosition(next, n, "app.db")
		}
		k.check(openPatient(sqlitetest.Start(t), n.path("app.db")))
		sqlitetest.CheckIntegrity(t, n.path("app.db"))
	}
}

// until returns a context that ends when done says so, or with ctx.
func until(ctx context.Context, done func() bool) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		for ctx.Err() == nil && !done() {
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return ctx
}

// Programs on three nodes read a counter and write the next one, or read it alone, each under the write lock, while the
// network loses and doubles what is said and the primary is killed. What they were told has one order, in which each
// sees what was acknowledged before it began.
func TestForwardHistory(t *testing.T) {
	t.Parallel()
	primary, k := forwardCounting(t)
	replica, proxy := behindProxy(t, primary)
	other := startNode(t, follows(primary), daemonLocks)
	caughtUp(primary, other, "app.db")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	h := &increments{counting: k, began: time.Now()}
	during(t, max(4*time.Second, soakFor(t)/6),
		func(ctx context.Context) { h.run(ctx, replica, 0) },
		func(ctx context.Context) { h.run(ctx, replica, 1) },
		func(ctx context.Context) { h.run(ctx, other, 2) },
		func(ctx context.Context) { proxy.Storm(ctx, rng, 150*time.Millisecond, nil) },
		func(ctx context.Context) {
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
			}
			primary.killAll()
			primary.start()
		})
	k.settled(primary, replica, other)
	h.check(openPatient(sqlitetest.Start(t), primary.path("app.db")))
}

// increments is a history of reads and increments of the counter.
type increments struct {
	*counting
	began time.Time
	tries []increment
}

type increment struct {
	client     int
	key        string // "": a read
	value      int64  // that it read, or made
	begin, end time.Duration
	err        error
}

// run increments and reads until ctx ends, on a connection of its own.
func (h *increments) run(ctx context.Context, n *node, client int) {
	c := sqlitetest.Start(h.t).Open(n.path("app.db"), "busy_timeout=5000")
	defer c.Close()
	for i := 0; ctx.Err() == nil; i++ {
		try := increment{client: client, begin: time.Since(h.began)}
		_, try.err = c.Exec("BEGIN IMMEDIATE")
		if try.err == nil {
			try.value = c.MustInt("SELECT v FROM counter")
			if i%4 > 0 {
				try.key = fmt.Sprintf("%d.%d", client, i)
				try.value++
				if _, try.err = c.Exec("UPDATE counter SET v = ?", try.value); try.err == nil {
					_, try.err = c.Exec("INSERT INTO ledger VALUES (?, ?)", try.key, try.value)
				}
			}
			if try.err == nil {
				_, try.err = c.Exec("COMMIT")
			}
		}
		try.end = time.Since(h.began)
		h.mu.Lock()
		h.tries = append(h.tries, try)
		switch {
		case try.err != nil:
			h.failed(try.err.Error())
		case try.key != "":
			h.oks[try.key] = true
		}
		h.mu.Unlock()
		if try.err != nil {
			_, _ = c.Exec("ROLLBACK") // there may be nothing to roll back
		}
	}
}

// check finds the order. An increment of unknown outcome counts where the ledger has it.
func (h *increments) check(c *sqlitetest.Conn) {
	h.t.Helper()
	there := make(map[string]int64)
	for _, row := range c.MustQuery("SELECT id, b FROM ledger") {
		var value int64
		if _, err := fmt.Sscan(fmt.Sprint(row[1]), &value); err != nil {
			h.t.Fatal(err)
		}
		there[fmt.Sprint(row[0])] = value
	}
	const never = int64(1) << 60
	var ops []porcupine.Operation
	reads := 0
	for _, try := range h.tries {
		end := int64(try.end)
		_, in := there[try.key]
		switch {
		case try.err != nil && !in:
			continue
		case try.err != nil:
			end = never
		case try.key == "":
			reads++
		}
		ops = append(ops, porcupine.Operation{ClientId: try.client, Input: token{try.key != "", try.value}, Call: int64(try.begin), Return: end})
	}
	h.t.Logf("%d increments and %d reads", len(ops)-reads, reads)
	if got := porcupine.CheckOperationsTimeout(tokens, ops, time.Minute); got != porcupine.Ok {
		h.t.Errorf("%d increments and %d reads have no order: %v", len(ops)-reads, reads, got)
	}
}
