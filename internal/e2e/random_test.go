package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// A random run does to a primary, step by step, whatever SQLite and the users of a directory do, and
// proves again and again that its log replayed is the database, that the follower has the same
// databases byte for byte, and that no transaction that SQLite acknowledged is missing. Everything is
// drawn from one seed; only what is killed in mid-statement is killed at a moment of its own.
//
// LITEFS_SEED=n runs that seed alone, LITEFS_STEPS=n so many steps of it. With LITEFS_GUARDIAN=1 daemons are killed below
// their guardians while applications go on.

// database is what the run knows of one file of the mount. Each transaction adds one to its only row of
// the table seq.
type database struct {
	name      string
	low, high int64 // transactions that are in it: more than one number after a kill in mid-commit
	tables    int   // ever created, for names
}

// process is one application with its connections.
type process struct {
	app   *sqlitetest.App
	conns []*conn
}

// conn is one connection.
type conn struct {
	c         *sqlitetest.Conn
	id        int
	proc      *process
	db        *database
	mode      string // its journal mode, as of the last look
	exclusive bool   // locking_mode
	tx        bool
	wrote     int64   // transactions counted in seq by the open transaction
	saves     []int64 // wrote at each open savepoint
}

type random struct {
	t         *testing.T
	rng       *rand.Rand
	primary   *node
	follower  *node
	procs     []*process
	dbs       []*database
	lastConn  int
	lastFile  int
	step      int
	violent   bool // kills come often
	guarded   bool // daemons are killed below a guardian, and applications go on
	trace     []string
	stopped   bool // the primary's daemon is dead: errors are expected
	reader    *sqlitetest.Conn
	readerApp *sqlitetest.App
	snapshot  string
	dying     []*childnode.Node // killed, and perhaps not gone
	seen      map[*node]int     // bytes of the log that were looked at
}

// seeds are the runs of every test of this package: fixed, so that what failed once is run again.
var seeds = []uint64{2, 3, 4, 9}

func TestRandomOperations(t *testing.T) {
	run := seeds
	if v := os.Getenv("LITEFS_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("LITEFS_SEED: %v", err)
		}
		run = []uint64{n}
	}
	steps := 80
	if v := os.Getenv("LITEFS_STEPS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("LITEFS_STEPS: %v", err)
		}
		steps = n
	}
	for _, seed := range run {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomRun(t, seed, steps) })
	}
}

func TestSoakRandomOperations(t *testing.T) {
	if soakFor(t) == 0 {
		return
	}
	seed := uint64(time.Now().UnixNano()) % 1e9
	for start := time.Now(); time.Since(start) < soakFor(t)/3; seed++ {
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { randomRun(t, seed, 400) }) {
			return
		}
	}
}

// randomRun is the run of one seed, which also chooses I/O modes, retention, and how often something is
// killed. Odd ones have passthrough on the primary.
func randomRun(t *testing.T, seed uint64, steps int) {
	var options []option
	if seed%2 == 0 {
		options = append(options, cached)
	}
	if seed%3 == 0 {
		options = append(options, func(c *childnode.Config) {
			c.DataKeys = []string{"retention: 1s", "retention-monitor-interval: 300ms"}
		})
	}
	r := &random{t: t, rng: rand.New(rand.NewPCG(seed, 0)), seen: map[*node]int{}, violent: seed%5 == 4}
	if r.guarded = os.Getenv("LITEFS_GUARDIAN") != ""; r.guarded {
		options = append(options, guarded)
	}
	r.primary = startNode(t, options...)
	if seed%4 >= 2 {
		options = []option{cached}
	} else {
		options = nil
	}
	if r.guarded {
		options = append(options, guarded)
	}
	r.follower = startNode(t, append(options, follows(r.primary))...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d, step %d:\n%s", seed, r.step, strings.Join(r.trace, "\n"))
		}
	})
	for range 2 {
		r.procs = append(r.procs, &process{app: sqlitetest.Start(t)})
	}
	for r.step = range steps {
		r.operate()
		r.noErrors()
		if r.step%60 == 59 {
			r.check()
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	r.check()
	r.checkStopped()
}

// operation is one kind of step, and how often it comes.
type operation struct {
	weight int
	name   string
	run    func(r *random)
}

var operations = []operation{
	{30, "use a connection", (*random).use},
	{12, "open", (*random).open},
	{4, "create", (*random).create},
	{5, "burst", (*random).burst},
	{4, "attach", (*random).attach},
	{3, "kill application", (*random).killApp},
	{2, "kill application in mid-statement", (*random).killAppBusy},
	{2, "copy in", (*random).copyIn},
	{2, "copy within", (*random).copyWithin},
	{2, "backup", (*random).backup},
	{2, "vacuum into", (*random).vacuumInto},
	{2, "replace", (*random).replace},
	{2, "rename", (*random).rename},
	{1, "rename directory", (*random).renameDir},
	{2, "remove", (*random).remove},
	{1, "remove under its connections", (*random).removeOpen},
	{1, "kill daemon", (*random).killDaemon},
	{10, daemonBelow, (*random).killBelow},
	{1, "restart daemon", (*random).restartDaemon},
	{1, "restart follower", (*random).restartFollower},
	{3, "read on the follower", (*random).readFollower},
}

// daemonBelow is the kind of step that only a run with guardians has; such a run has no other kill of a daemon.
const daemonBelow = "kill the daemon below the guardian"

// weightOf is how often a kind of step comes in this run.
func (r *random) weightOf(op operation) int {
	if op.name == daemonBelow && !r.guarded || op.name == "kill daemon" && r.guarded {
		return 0
	}
	if r.violent && strings.HasPrefix(op.name, "kill") {
		return 5 * op.weight
	}
	return op.weight
}

// operate does one step.
func (r *random) operate() {
	total := 0
	for _, op := range operations {
		total += r.weightOf(op)
	}
	n := r.rng.IntN(total)
	for _, op := range operations {
		if n -= r.weightOf(op); n < 0 {
			r.note("%s", op.name)
			op.run(r)
			return
		}
	}
}

// note adds a line to the trace of the run.
func (r *random) note(format string, args ...any) {
	line := fmt.Sprintf("%4d ", r.step) + fmt.Sprintf(format, args...)
	r.trace = append(r.trace, line)
	if os.Getenv("LITEFS_TRACE") != "" {
		r.t.Log(time.Now().Format("05.000"), line)
	}
}

// fail ends the run.
func (r *random) fail(format string, args ...any) {
	r.t.Helper()
	r.t.Fatalf(format, args...)
}

// pick returns a random element.
func pick[T any](r *random, from ...T) T { return from[r.rng.IntN(len(from))] }

// chance is true n times in a hundred.
func (r *random) chance(n int) bool { return r.rng.IntN(100) < n }

// expected reports whether an error is one that SQLite gives without anything being wrong.
func (r *random) expected(err error) bool {
	if r.stopped {
		return !sqlapp.IsCode(err, 11, 26) // corrupt, or no database: never
	}
	return sqlapp.IsCode(err, sqlapp.CodeBusy, sqlapp.CodeLocked)
}

// exec runs statements; an error is returned if it may happen, and ends the run if it may not.
func (r *random) exec(c *conn, sql string) error {
	r.t.Helper()
	_, err := c.c.Exec(sql)
	return r.judge(c, sql, err)
}

func (r *random) query(c *conn, sql string) ([][]any, error) {
	r.t.Helper()
	rows, err := c.c.Query(sql)
	return rows, r.judge(c, sql, err)
}

func (r *random) judge(c *conn, sql string, err error) error {
	r.t.Helper()
	if err == nil {
		r.note("  %d %s (%s): %s", c.id, c.db.name, c.mode, sql)
		return nil
	}
	r.note("  %d %s (%s): %s: %v", c.id, c.db.name, c.mode, sql, err)
	if !r.expected(err) {
		r.fail("%s (%s): %s: %v", c.db.name, c.mode, sql, err)
	}
	return err
}

// conns returns every connection.
func (r *random) conns() (out []*conn) {
	for _, p := range r.procs {
		out = append(out, p.conns...)
	}
	return out
}

// connsOf returns the connections that have db open.
func (r *random) connsOf(db *database) (out []*conn) {
	for _, c := range r.conns() {
		if c.db == db {
			out = append(out, c)
		}
	}
	return out
}

// names are what a database may be called.
var names = []string{"a.db", "b.sqlite", "c", "dir/a.db", "dir/sub/d.db", "other/e.db", "with space & percent%20.db", "dir.db/f-1.db"}

// freeName returns a name that no database has, or "".
func (r *random) freeName() string {
	taken := map[string]bool{}
	for _, db := range r.dbs {
		taken[db.name] = true
	}
	var free []string
	for _, name := range names {
		if !taken[name] {
			free = append(free, name)
		}
	}
	if len(free) == 0 {
		return ""
	}
	name := pick(r, free...)
	if err := os.MkdirAll(path.Dir(r.primary.path(name)), 0o755); err != nil {
		r.fail("%v", err)
	}
	return name
}

// oneDatabase returns a random database, or nil.
func (r *random) oneDatabase() *database {
	if len(r.dbs) == 0 {
		return nil
	}
	return pick(r, r.dbs...)
}

// forget takes a database off the list.
func (r *random) forget(db *database) {
	for i, other := range r.dbs {
		if other == db {
			r.dbs = append(r.dbs[:i:i], r.dbs[i+1:]...)
			return
		}
	}
}
