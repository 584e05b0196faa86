package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
	stops []stopSpan // of each node's daemon
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
func newFaulty(t *testing.T, seed uint64, nodes int, nw *netns.Network, journal string) *faulty {
	t.Helper()
	f := &faulty{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), nw: nw, stops: make([]stopSpan, nodes),
		start: time.Now(), done: make(map[string]int),
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
		n := newNode(t, func(c *childnode.Config) {
			if nw != nil {
				c.Addr = nw.Addr(i) + ":20202"
			}
			c.Lease = []string{
				"type: etcd", "candidate: true", "reconnect-delay: 250ms", "demote-delay: 1s",
				fmt.Sprintf("etcd:\n    url: %s\n    ttl: %s", f.etcd.URL, faultTTL),
			}
		})
		if nw != nil {
			n.inside = func(args ...string) []string { return nw.Command(i, args...) }
		}
		n.start()
		f.nodes = append(f.nodes, n)
		if i > 0 {
			continue
		}
		becomesPrimary(n)
		c := sqlitetest.Open(t, n.path("app.db"), "busy_timeout=10000", "journal_mode="+journal)
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, client INTEGER, n INTEGER, v)")
		c.Close()
	}
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

// any is one of all faults that can be, of random parts.
func (f *faulty) any() fault {
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
	return all[f.rng.IntN(len(all))]
}

// stop stops a daemon where it is.
func (f *faulty) stop(i int) error {
	f.stops[i].now.Store(true)
	return f.nodes[i].proc.Signal(syscall.SIGSTOP)
}

func (f *faulty) goOn(i int) error {
	err := f.nodes[i].proc.Signal(syscall.SIGCONT)
	f.stops[i].until.Store(int64(f.now() + afterStop))
	f.stops[i].now.Store(false)
	return err
}

// unwatched reports whether the daemon of a node was stopped after begin.
func (f *faulty) unwatched(i int, begin time.Duration) bool {
	return f.stops[i].now.Load() || time.Duration(f.stops[i].until.Load()) > begin
}

// run lets parts fail at random for d: one after the other, now and then two at a time.
func (f *faulty) run(d time.Duration) {
	f.t.Helper()
	for until := time.Now().Add(d); time.Now().Before(until); {
		one := f.any()
		f.begin(one)
		if two := f.any(); f.rng.IntN(3) == 0 && !clash(one.name, two.name) {
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
func (f *faulty) each() {
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
		for _, k := range []string{"paused", "down", "stopped"} {
			if strings.Contains(s, k) {
				return strings.Fields(s)[0]
			}
		}
		return "network"
	}
	return kind(a) == kind(b)
}

// clients write on all nodes, whichever is the primary, each on one of them over one connection.
type clients struct {
	f    *faulty
	end  context.CancelFunc
	wg   sync.WaitGroup
	mu   sync.Mutex
	all  []attempt
	said map[string]int // errors other than that the database is locked
	apps []*sqlitetest.App
}

func (f *faulty) startClients(each int) *clients {
	f.t.Helper()
	ctx, end := context.WithCancel(context.Background())
	c := &clients{f: f, end: end, said: make(map[string]int)}
	for i := range f.nodes {
		for k := range each {
			app := sqlitetest.Start(f.t)
			c.apps = append(c.apps, app)
			conn := app.Open(f.nodes[i].path("app.db"), "busy_timeout=10000", "synchronous=normal", "busy_timeout=100")
			c.wg.Go(func() { c.write(ctx, conn, i, i*each+k) })
		}
	}
	return c
}

func (c *clients) write(ctx context.Context, conn *sqlitetest.Conn, i, client int) {
	for n := int64(1); ctx.Err() == nil; n++ {
		a := attempt{rowKey: rowKey{client, n}, begin: c.f.now()}
		rows, err := conn.Query("INSERT INTO t(client, n, v) VALUES (?, ?, randomblob(200)) RETURNING id", client, n)
		a.end, a.unwatched = c.f.now(), c.f.unwatched(i, a.begin)
		pause := 5 * time.Millisecond
		switch {
		case err == nil && len(rows) == 1:
			a.id, _ = rows[0][0].(int64)
		case sqlapp.IsCode(err, sqlapp.CodeBusy):
			a.outcome, pause = refused, 20*time.Millisecond
		default:
			a.outcome, pause = unknown, 20*time.Millisecond
		}
		c.mu.Lock()
		c.all = append(c.all, a)
		if a.outcome == unknown {
			c.said[fmt.Sprint(err)]++
		}
		c.mu.Unlock()
		time.Sleep(pause)
	}
}

// stop ends the clients and returns what they did.
func (c *clients) stop() []attempt {
	c.end()
	c.wg.Wait()
	for _, app := range c.apps {
		app.Exit()
	}
	return c.all
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
			if err := kept.Export(path); err != nil {
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
func faults(t *testing.T, f *faulty, slack time.Duration, do func()) {
	t.Helper()
	c := f.startClients(2)
	do()
	time.Sleep(2 * faultTTL) // whoever is the primary now is written to
	history := c.stop()
	order := f.settle()
	for i, n := range f.nodes {
		if n == order[0] {
			t.Logf("node %d is the primary", i)
		}
	}
	reader := sqlitetest.Open(t, order[0].path("app.db"), "busy_timeout=10000")
	reader.MustExec("INSERT INTO t(client, n) VALUES (-1, 1)")
	final := rowsOf(reader.MustQuery(allRows))
	reader.Close()
	order = f.settle()
	v := judge(history, final, f.tails(), slack)
	t.Logf("faults: %v", f.done)
	t.Logf("%d writes tried, %d acknowledged and in the cluster, %d in lost+found (%d written below a stopped daemon after its lease); overlap %v; errors %v",
		len(history), v.kept, v.lost, v.unwatched, v.overlap, c.said)
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
	f := newFaulty(t, 1, 2, nil, "wal")
	faults(t, f, 10*time.Second, f.each)
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
			t.Logf("LITEFS_SEED=%d, journal mode %s", seed+round, journal)
			f := newFaulty(t, seed+round, nodes, nw, journal)
			faults(t, f, 2*time.Second, func() { f.run(min(d, each)) })
		})
		d -= each
	}
}
