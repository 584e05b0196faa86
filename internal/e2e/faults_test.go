package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/internal/lostfound"
	"github.com/litefs/litefs/internal/netns"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// faultTTL is that of the lease: the shortest that etcd has, so that much happens in little time.
const faultTTL = 2 * time.Second

// faulty is a cluster whose parts fail: nodes and the etcd that has their lease, each in a network of its own
// where there is one.
type faulty struct {
	t     *testing.T
	rng   *rand.Rand
	nw    *netns.Network // nil: all on this machine, and the network does not fail
	etcd  *leaseserver.Server
	nodes []*node
	stops []stopSpan    // of each node's daemon
	down  []atomic.Bool // nodes that are killed: nobody may open anything below their mount points
	level string        // of durability; "": async
	pids  []int         // of the daemons that were stopped
	start time.Time
	done  map[string]int // faults, by name
}

// stopSpan says whether a daemon is stopped, and until when it counts as if it were.
type stopSpan struct {
	now   atomic.Bool
	until atomic.Int64 // since faulty.start, in nanoseconds
}

// afterStop is how long a daemon that goes on may take until it has fenced.
const afterStop = 2 * time.Second

// newFaulty starts a cluster with the table of the writers; the first node is its primary.
func newFaulty(t *testing.T, seed uint64, nodes int, nw *netns.Network, journal, level string, options ...option) *faulty {
	t.Helper()
	return newFaultyOn(t, seed, nodes, nw, journal, level, func(int) []option { return options })
}

// newFaultyOn is newFaulty with options of each node.
func newFaultyOn(t *testing.T, seed uint64, nodes int, nw *netns.Network, journal, level string, options func(i int) []option) *faulty {
	t.Helper()
	f := &faulty{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), nw: nw, stops: make([]stopSpan, nodes), down: make([]atomic.Bool, nodes),
		pids: make([]int, nodes), start: time.Now(), done: make(map[string]int), level: level,
	}
	o := leaseserver.Options{Dir: t.TempDir(), Log: t.Output()}
	if nw != nil {
		o.Addr = nw.Addr(nodes)
		o.Inside = func(args ...string) []string { return nw.Command(nodes, args...) }
	}
	var err error
	if f.etcd, err = leaseserver.Etcd(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.etcd.Kill(); err != nil {
			t.Error(err)
		}
	})
	for i := range nodes {
		n := newNode(t, append(options(i), func(c *childnode.Config) {
			if nw != nil {
				c.Addr = nw.Addr(i) + ":20202"
			}
			if level != "" {
				c.Durability = []string{`{match: "*", ` + level + `}`}
			}
			c.Lease = []string{
				"type: etcd", "candidate: true", "reconnect-delay: 250ms", "demote-delay: 1s",
				fmt.Sprintf("etcd:\n    url: %s\n    ttl: %s", f.etcd.URL, faultTTL),
			}
		})...)
		if nw != nil {
			n.inside = func(args ...string) []string { return nw.Command(i, args...) }
		}
		if i == 1 {
			n.logKeys(randomHex()) // the others' logs lie in the clear
		}
		n.start()
		f.nodes = append(f.nodes, n)
		if i == 0 {
			becomesPrimary(n)
		}
	}
	c := sqlitetest.Open(t, f.nodes[0].path("app.db"), "busy_timeout=10000", "journal_mode="+journal)
	mustCommit(t, c, "CREATE TABLE t(id INTEGER PRIMARY KEY, client INTEGER, n INTEGER, v)")
	c.Close()
	for _, n := range f.nodes[1:] {
		samePosition(f.nodes[0], n, "app.db")
	}
	return f
}

func (f *faulty) now() time.Duration { return time.Since(f.start) }

// fault is something that fails, and works again.
type fault struct {
	name       string
	begin, end func() error
}

// Faults of processes.
func (f *faulty) serverPaused() fault {
	return fault{"lease server paused", f.etcd.Pause, f.etcd.Resume}
}

func (f *faulty) serverDown() fault {
	return fault{"lease server down", f.etcd.Kill, func() error { return f.etcd.Start(f.t.Context()) }}
}

func (f *faulty) daemonStopped(i int) fault {
	return fault{"daemon stopped", func() error { return f.stop(i) }, func() error { return f.goOn(i) }}
}

// nodeKilled ends a daemon and all that is below it, and starts the node again.
func (f *faulty) nodeKilled(i int, c *clients) fault {
	return fault{"node killed", func() error {
		f.down[i].Store(true)
		c.killOn(i)
		f.nodes[i].killAll()
		return nil
	}, func() error {
		f.nodes[i].start()
		f.down[i].Store(false)
		return nil
	}}
}

// primary is the index of the node that is the primary now.
func (f *faulty) primary() (i int) {
	f.t.Helper()
	eventually(f.t, "a node is the primary", func() (bool, string) {
		for k, n := range f.nodes {
			if info, ok := n.info(); ok && info.IsPrimary {
				i = k
				return true, ""
			}
		}
		return false, "none"
	})
	return i
}

// any is one of all faults that can be, of random parts.
func (f *faulty) any(c *clients) fault {
	i := f.rng.IntN(len(f.nodes))
	j := (i + 1 + f.rng.IntN(len(f.nodes)-1)) % len(f.nodes)
	server := len(f.nodes)
	cut := func(name string, pairs ...[2]int) fault {
		return fault{name, func() error {
			var errs []error
			for _, p := range pairs {
				errs = append(errs, f.nw.Cut(p[0], p[1]))
			}
			return errors.Join(errs...)
		}, f.nw.Heal}
	}
	all := []fault{
		f.serverPaused(), f.serverDown(), f.daemonStopped(i), f.daemonStopped(i),
		cut("node cut from node", [2]int{i, j}, [2]int{j, i}),
		cut("node does not reach node", [2]int{i, j}),
		cut("node cut from the lease server", [2]int{i, server}, [2]int{server, i}),
		cut("node does not reach the lease server", [2]int{i, server}),
		cut("lease server does not reach node", [2]int{server, i}),
		{"node cut from all", func() error { return f.nw.Part(i) }, f.nw.Heal},
	}
	if f.nodes[i].cfg.Guardian { // its applications go on
		all = append(all, f.daemonKilled(i), f.daemonKilled(j))
	} else {
		all = append(all, f.nodeKilled(i, c))
	}
	return all[f.rng.IntN(len(all))]
}

// stop stops a daemon where it is.
func (f *faulty) stop(i int) error {
	f.stops[i].now.Store(true)
	f.pids[i] = f.daemon(i)
	return f.signal(i, syscall.SIGSTOP)
}

// daemon is the process that serves a node's mount, once there is one.
func (f *faulty) daemon(i int) (pid int) {
	f.t.Helper()
	n := f.nodes[i]
	if !n.cfg.Guardian {
		return n.proc.PID()
	}
	eventually(f.t, "there is a daemon", func() (bool, string) {
		pid = n.daemonPID()
		return pid != 0, "none"
	})
	return pid
}

// signal signals the daemon that f.pids has; its guardian may have killed it.
func (f *faulty) signal(i int, sig syscall.Signal) error {
	err := syscall.Kill(f.pids[i], sig)
	if f.nodes[i].cfg.Guardian && errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

func (f *faulty) daemonKilled(i int) fault {
	return fault{"daemon killed", func() error {
		f.pids[i] = f.daemon(i)
		return f.signal(i, syscall.SIGKILL)
	}, func() error { return nil }}
}

func (f *faulty) goOn(i int) error {
	err := f.signal(i, syscall.SIGCONT)
	f.stops[i].until.Store(int64(f.now() + afterStop))
	f.stops[i].now.Store(false)
	return err
}

// unwatched reports whether the daemon of a node was stopped after begin.
func (f *faulty) unwatched(i int, begin time.Duration) bool {
	return f.stops[i].now.Load() || time.Duration(f.stops[i].until.Load()) > begin
}

// run lets parts fail at random for d: one after the other, now and then two at a time.
func (f *faulty) run(c *clients, d time.Duration) {
	f.t.Helper()
	for until := time.Now().Add(d); time.Now().Before(until); {
		one := f.any(c)
		f.begin(one)
		if two := f.any(c); f.rng.IntN(3) == 0 && !clash(one.name, two.name) {
			f.wait(0, 1)
			f.begin(two)
			f.wait(0.2, 1.5)
			f.end(two)
		}
		f.wait(0.2, 2.5)
		f.end(one)
		f.wait(0, 2)
	}
}

// each lets processes fail, each kind of it for longer than a lease.
func (f *faulty) each(*clients) {
	f.t.Helper()
	for _, one := range []fault{f.daemonStopped(0), f.serverPaused(), f.serverDown(), f.daemonStopped(1)} {
		f.begin(one)
		f.wait(1.8, 2)
		f.end(one)
		f.wait(0.3, 0.6)
	}
}

// wait waits for a random number of TTLs.
func (f *faulty) wait(least, most float64) {
	time.Sleep(time.Duration((least + f.rng.Float64()*(most-least)) * float64(faultTTL)))
}

func (f *faulty) begin(one fault) {
	f.t.Helper()
	f.t.Logf("%6.1f s: %s", f.now().Seconds(), one.name)
	f.done[one.name]++
	if err := one.begin(); err != nil {
		f.t.Fatal(err)
	}
}

func (f *faulty) end(one fault) {
	f.t.Helper()
	if err := one.end(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Logf("%6.1f s: %s: over", f.now().Seconds(), one.name)
}

// clash reports whether two faults concern one process, or are both of the network, which heals as a whole.
func clash(a, b string) bool {
	kind := func(s string) string {
		for _, k := range []string{"paused", "down"} {
			if strings.Contains(s, k) {
				return "server"
			}
		}
		for _, k := range []string{"stopped", "killed"} {
			if strings.Contains(s, k) {
				return "node"
			}
		}
		return "network"
	}
	return kind(a) == kind(b)
}

// clients write and read on all nodes, whichever is the primary, each on one of them over one connection.
type clients struct {
	f    *faulty
	end  context.CancelFunc
	wg   sync.WaitGroup
	mu   sync.Mutex // guards everything below
	all  []attempt
	seen []sight
	said map[string]int // errors other than that the database is locked
	apps []*sqlitetest.App
}

// client is one of them, for its goroutine.
type client struct {
	*clients
	node, number int
	conn         *sqlitetest.Conn // nil: none
	life         int              // of its connections
	rng          *rand.Rand
}

func (f *faulty) startClients(each int) *clients {
	f.t.Helper()
	ctx, end := context.WithCancel(context.Background())
	c := &clients{f: f, end: end, said: make(map[string]int), apps: make([]*sqlitetest.App, each*len(f.nodes))}
	for i := range f.nodes {
		for k := range each {
			one := &client{clients: c, node: i, number: i*each + k, rng: rand.New(rand.NewPCG(f.rng.Uint64(), uint64(k)))}
			if err := one.open(); err != nil {
				f.t.Fatal(err)
			}
			c.wg.Go(func() { one.run(ctx) })
		}
	}
	return c
}

// open starts an application with a connection, in the place of the one before.
func (c *client) open() error {
	app := sqlitetest.Start(c.f.t)
	c.mu.Lock()
	c.apps[c.number] = app
	c.mu.Unlock()
	conn, err := app.TryOpen(c.f.nodes[c.node].path("app.db"), "busy_timeout=10000", "synchronous=normal", "busy_timeout=100")
	if err == nil {
		c.conn = conn
		c.life++
	}
	return err
}

// killOn kills the applications below a node.
func (c *clients) killOn(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	each := len(c.apps) / len(c.f.nodes)
	for _, app := range c.apps[i*each : (i+1)*each] {
		app.Kill()
	}
}

func (c *client) run(ctx context.Context) {
	for n := int64(1); ctx.Err() == nil; n++ {
		pause := 5 * time.Millisecond
		switch {
		case c.f.down[c.node].Load():
			c.conn = nil
		case c.conn == nil:
			if err := c.open(); err != nil {
				c.note(fmt.Errorf("open: %w", err))
				c.killOwn()
				pause = 100 * time.Millisecond
			}
		case c.rng.IntN(3) == 0:
			c.read()
		default:
			pause = c.write(n)
		}
		time.Sleep(pause)
	}
}

func (c *client) killOwn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apps[c.number].Kill()
}

func (c *clients) note(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.said[fmt.Sprint(err)]++
}

// write inserts a row with the next token.
func (c *client) write(n int64) (pause time.Duration) {
	a := attempt{rowKey: rowKey{c.number, n}, begin: c.f.now()}
	rows, err := c.conn.Query("INSERT INTO t(client, n, v) VALUES (?, ?, randomblob(200)) RETURNING id", c.number, n)
	a.end, a.unwatched = c.f.now(), c.f.unwatched(c.node, a.begin)
	pause = 5 * time.Millisecond
	switch {
	case err == nil && len(rows) == 1:
		a.id, _ = rows[0][0].(int64)
	case sqlapp.IsCode(err, sqlapp.CodeBusy):
		a.outcome, pause = refused, 20*time.Millisecond
	default:
		a.outcome, pause = unknown, 20*time.Millisecond
		c.note(err)
	}
	c.mu.Lock()
	c.all = append(c.all, a)
	c.mu.Unlock()
	return pause
}

// read looks at the greatest token, as the primary where it can.
func (c *client) read() {
	s := sight{client: c.number, life: c.life, begin: c.f.now()}
	_, err := c.conn.Exec("BEGIN IMMEDIATE") // no replica lets it
	s.primary = err == nil
	if err != nil && !sqlapp.IsCode(err, sqlapp.CodeBusy) {
		c.note(err)
		return
	}
	rows, err := c.conn.Query("SELECT coalesce(max(id), 0) FROM t")
	s.end = c.f.now()
	if s.primary {
		if _, err := c.conn.Exec("ROLLBACK"); err != nil {
			c.note(err)
		}
	}
	if err != nil || len(rows) != 1 {
		c.note(err)
		return
	}
	s.id, _ = rows[0][0].(int64)
	s.unwatched = c.f.unwatched(c.node, s.begin)
	c.mu.Lock()
	c.seen = append(c.seen, s)
	c.mu.Unlock()
}

// stop ends the clients.
func (c *clients) stop() {
	c.end()
	c.wg.Wait()
	for _, app := range c.apps {
		app.Exit()
	}
}

// settle waits until the cluster is one again and returns its nodes, the primary first.
func (f *faulty) settle() []*node {
	f.t.Helper()
	var order []*node
	eventually(f.t, "one node is the primary and all are at one position", func() (bool, string) {
		order = nil
		var said []string
		positions := make(map[string]bool)
		for _, n := range f.nodes {
			info, ok := n.info()
			said = append(said, fmt.Sprintf("%v %+v", ok, info))
			if info.IsPrimary {
				order = append([]*node{n}, order...)
			} else {
				order = append(order, n)
			}
			for _, db := range info.Databases {
				positions[db.TXID+"/"+db.Checksum] = true
			}
		}
		info, _ := order[0].info()
		return info.IsPrimary && len(positions) == 1, strings.Join(said, "\n")
	})
	return order
}

// rowsOf are the rows of a database.
func rowsOf(rows [][]any) map[rowKey]int64 {
	m := make(map[rowKey]int64, len(rows))
	for _, row := range rows {
		client, _ := row[0].(int64)
		n, _ := row[1].(int64)
		id, _ := row[2].(int64)
		m[rowKey{int(client), n}] = id
	}
	return m
}

const allRows = "SELECT client, n, id FROM t"

// tails are the rows of all that is in lost+found on any node: the database as it was there.
func (f *faulty) tails() (tails []map[rowKey]int64) {
	f.t.Helper()
	app := sqlitetest.Start(f.t)
	defer app.Exit()
	for i, n := range f.nodes {
		list, err := lostfound.List(filepath.Join(n.cfg.Data, "lost+found"))
		if err != nil {
			f.t.Fatal(err)
		}
		for _, kept := range list {
			f.t.Logf("node %d has kept %d transactions: %s", i, kept.Last-kept.First+1, kept.Reason)
			path := filepath.Join(f.t.TempDir(), "lost.db")
			if err := kept.Export(path, n.keys); err != nil {
				f.t.Fatal(err)
			}
			c := app.Open(path)
			tails = append(tails, rowsOf(c.MustQuery(allRows)))
			c.Close()
		}
	}
	return tails
}

// faults runs clients on a cluster while do lets parts of it fail, and judges what they saw.
func faults(t *testing.T, f *faulty, slack time.Duration, do func(*clients)) {
	t.Helper()
	c := f.startClients(2)
	do(c)
	time.Sleep(2 * faultTTL) // whoever is the primary now is written to
	c.stop()
	history := c.all
	order := f.settle()
	for i, n := range f.nodes {
		if n == order[0] {
			t.Logf("node %d is the primary", i)
		}
	}
	reader := sqlitetest.Open(t, order[0].path("app.db"), "busy_timeout=10000")
	mustCommit(t, reader, "INSERT INTO t(client, n) VALUES (-1, 1)")
	final := rowsOf(reader.MustQuery(allRows))
	reader.Close()
	order = f.settle()
	tails := f.tails()
	v := judge(history, final, tails, slack)
	t.Logf("faults: %v", f.done)
	t.Logf("%d writes tried, %d acknowledged and in the cluster, %d in lost+found (%d written below a stopped daemon after its lease); overlap %v; errors %v",
		len(history), v.kept, v.lost, v.unwatched, v.overlap, c.said)
	if f.level == maxLagLevel {
		v.lag(history, final, tails, maxLag+maxLag/8+slack)
		t.Logf("level %s: what was lost of one reign was acknowledged within %v", f.level, v.lostSpan)
	}
	if f.level == quorumLevel {
		q := judgeQuorum(history, c.seen, final, slack)
		if v.lost > 0 {
			q.fault("%d acknowledged writes are in lost+found", v.lost)
		}
		t.Logf("level %s: %d writes and %d reads of the primary in one order, %d reads of replicas; %d reads of one that was the primary no more, at most %v late (%d below a daemon that was stopped)",
			f.level, q.writes, q.reads, q.replicaReads, q.late, q.overlap, q.unwatched)
		v.faults = append(v.faults, q.faults...)
	}
	for _, fault := range v.faults {
		t.Error(fault)
	}
	if v.kept == 0 {
		t.Error("nothing was written")
	}
	sameOnAll(t, order, "app.db")
}

// The lease server is paused and restarted, and daemons are stopped past their leases and woken, while
// clients write on both nodes. The network is cut by TestSoakFaults. A machine that runs other things
// fences late: the overlap that is forgiven here is longer than any of it.
func TestFaults(t *testing.T) {
	f := newFaulty(t, 1, 2, nil, "wal", "")
	faults(t, f, 10*time.Second, f.each)
}

// Levels of clusters. At quorum the history must be one order; at max-lag what is lost must not span more than maxLag.
const (
	quorumLevel = "level: quorum, n: 1, timeout: 3s"
	maxLagLevel = "level: max-lag, lag: 1s"
	maxLag      = time.Second
)

// At level quorum the daemon of the primary is stopped past its lease, and the next primary is killed with all below it,
// while clients write and read on all nodes. No acknowledged write is lost, and writes and reads of the primary are in
// one order.
func TestFaultsQuorum(t *testing.T) {
	f := newFaulty(t, 1, 3, nil, "wal", quorumLevel)
	faults(t, f, 10*time.Second, func(c *clients) {
		for _, one := range []func(i int) fault{f.daemonStopped, func(i int) fault { return f.nodeKilled(i, c) }} {
			time.Sleep(faultTTL / 2)
			fault := one(f.primary())
			f.begin(fault)
			f.wait(1.5, 1.6)
			f.end(fault)
		}
	})
}

// Everything fails at random, each seed for two minutes, for LITEFS_SOAK in all.
func TestSoakFaults(t *testing.T) {
	d := soakFor(t)
	if d == 0 {
		return
	}
	seed := soakSeed(t)
	for round := uint64(0); d > 0; round++ {
		const each = 2 * time.Minute
		t.Run(fmt.Sprint(seed+round), func(t *testing.T) {
			const nodes = 3
			nw, err := netns.New(nodes + 1)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := nw.Close(); err != nil {
					t.Error(err)
				}
			})
			journal := []string{"wal", "delete"}[(seed+round)%2]
			levels := map[string]string{"async": "", "quorum": quorumLevel, "max-lag": maxLagLevel}
			name := cmp.Or(os.Getenv("LITEFS_LEVEL"), []string{"async", "quorum", "max-lag"}[(seed+round)/2%3])
			level, known := levels[name]
			if !known {
				t.Fatalf("LITEFS_LEVEL=%s: want async, quorum or max-lag", name)
			}
			t.Logf("LITEFS_SEED=%d, journal mode %s, level %q", seed+round, journal, level)
			var options []option
			if level == "" && (seed+round)/4%2 == 0 {
				options = append(options, guarded)
				t.Log("each daemon has a guardian")
			}
			f := newFaulty(t, seed+round, nodes, nw, journal, level, options...)
			faults(t, f, 2*time.Second, func(c *clients) { f.run(c, min(d, each)) })
		})
		d -= each
	}
}
