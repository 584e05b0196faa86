package e2e

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/litefs/litefs/internal/sqlapp"
)

// This file is what a random run does through SQLite.

var (
	journalModes  = []string{"delete", "truncate", "persist", "wal", "memory", "off"}
	randomPages   = []int{512, 1024, 4096, 8192, 65536}
	checkpoints   = []string{"passive", "full", "restart", "truncate"}
	synchronouses = []string{"off", "normal", "full", "extra"}
)

// connect opens a connection to db with random settings.
func (r *random) connect(db *database, pragmas ...string) *conn {
	p := pick(r, r.procs...)
	if r.chance(20) {
		pragmas = append(pragmas, "locking_mode=exclusive")
	}
	pragmas = append(pragmas, "synchronous="+pick(r, synchronouses...))
	if r.chance(50) {
		pragmas = append(pragmas, "cache_size=5", "cache_spill=2")
	}
	if r.chance(50) {
		pragmas = append(pragmas, fmt.Sprintf("wal_autocheckpoint=%d", pick(r, 0, 1, 7, 50)))
	}
	if r.chance(20) {
		pragmas = append(pragmas, fmt.Sprintf("mmap_size=%d", pick(r, 0, 100_000, 1<<30)))
	}
	if r.chance(20) {
		pragmas = append(pragmas, fmt.Sprintf("journal_size_limit=%d", pick(r, -1, 0, 3000, 100_000)))
	}
	if r.chance(10) {
		pragmas = append(pragmas, "secure_delete=on")
	}
	r.lastConn++
	c := &conn{id: r.lastConn, proc: p, db: db, mode: "?"}
	r.note("  %d opens %s: %s", c.id, db.name, strings.Join(pragmas, ", "))
	sc, err := p.app.TryOpen(r.primary.path(db.name), pragmas...)
	if err != nil {
		r.note("  %v", err)
		if !r.expected(err) {
			r.fail("open %s: %v", db.name, err)
		}
		return nil
	}
	c.c = sc
	for _, pragma := range pragmas {
		c.exclusive = c.exclusive || pragma == "locking_mode=exclusive"
	}
	p.conns = append(p.conns, c)
	return c
}

// create makes a new database.
func (r *random) create() {
	name := r.freeName()
	if name == "" || len(r.dbs) >= 5 {
		return
	}
	db := &database{name: name}
	c := r.connect(db,
		fmt.Sprintf("page_size=%d", pick(r, randomPages...)),
		"auto_vacuum="+pick(r, "none", "none", "full", "incremental"),
		"journal_mode="+pick(r, journalModes...))
	if c == nil {
		return
	}
	r.dbs = append(r.dbs, db)
	err := r.exec(c, "BEGIN EXCLUSIVE; CREATE TABLE seq(n INTEGER); INSERT INTO seq VALUES(1); CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB, w INTEGER); CREATE INDEX tw ON t(w); COMMIT")
	if err != nil {
		r.fail("new database: %v", err)
	}
	db.low, db.high = 1, 1
}

// open opens a database once more, or closes a connection when there are many.
func (r *random) open() {
	all := r.conns()
	if len(all) >= 6 || len(all) > 0 && r.chance(25) {
		r.close(pick(r, all...))
		return
	}
	if db := r.oneDatabase(); db != nil {
		r.connect(db)
	} else {
		r.create()
	}
}

// use does something with an open connection.
func (r *random) use() {
	all := r.conns()
	if len(all) == 0 {
		r.open()
		return
	}
	c := pick(r, all...)
	if c.tx {
		r.inTransaction(c)
		return
	}
	if !r.refresh(c) {
		return
	}
	switch n := r.rng.IntN(100); {
	case n < 40:
		r.transaction(c)
	case n < 55:
		r.begin(c)
	case n < 75:
		r.switchMode(c)
	case n < 85:
		_, _ = r.query(c, "PRAGMA wal_checkpoint("+pick(r, checkpoints...)+")")
	case n < 93:
		r.vacuum(c)
	case n < 97:
		r.switchLocking(c)
	default:
		_, _ = r.query(c, fmt.Sprintf("PRAGMA integrity_check(%d)", r.rng.IntN(9)+1))
	}
}

// refresh reads through the connection: what it sees must be what was acknowledged. It also makes the
// connection drop its cache if another one has written, without which SQLite itself leaves WAL mode
// with pages of the past.
func (r *random) refresh(c *conn) bool {
	rows, err := r.query(c, "SELECT n FROM seq")
	if err != nil {
		return false
	}
	if len(rows) != 1 {
		r.fail("%s: %d rows in seq", c.db.name, len(rows))
	}
	if n := rows[0][0].(int64); n < c.db.low || n > c.db.high {
		r.fail("%s: a connection sees %d transactions, want %d to %d", c.db.name, n, c.db.low, c.db.high)
	}
	if rows, err = r.query(c, "PRAGMA journal_mode"); err != nil {
		return false
	}
	c.mode = rows[0][0].(string)
	return true
}

// begin begins a transaction and leaves it open.
func (r *random) begin(c *conn) bool {
	kind := pick(r, "BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE")
	if c.mode == "off" {
		kind = "BEGIN EXCLUSIVE" // nothing may fail later, for it could not be rolled back
	}
	if r.exec(c, kind) != nil {
		return false
	}
	c.tx, c.wrote, c.saves = true, 0, nil
	return true
}

// inTransaction goes on with an open transaction.
func (r *random) inTransaction(c *conn) {
	switch n := r.rng.IntN(100); {
	case n < 45:
		r.write(c)
	case n < 55 && c.mode != "off":
		if r.exec(c, fmt.Sprintf("SAVEPOINT s%d", len(c.saves))) == nil {
			c.saves = append(c.saves, c.wrote)
		}
	case n < 65 && len(c.saves) > 0:
		i := r.rng.IntN(len(c.saves))
		if r.exec(c, fmt.Sprintf("ROLLBACK TO s%d", i)) == nil {
			c.wrote, c.saves = c.saves[i], c.saves[:i+1]
		}
	case n < 70 && len(c.saves) > 0:
		i := r.rng.IntN(len(c.saves))
		if r.exec(c, fmt.Sprintf("RELEASE s%d", i)) == nil {
			c.saves = c.saves[:i]
		}
	case n < 80 && c.mode != "off":
		r.rollback(c)
	default:
		r.commit(c)
	}
}

// commit reports whether the transaction has ended.
func (r *random) commit(c *conn) bool {
	before := c.db.high
	if err := r.exec(c, "COMMIT"); err != nil {
		if r.stopped {
			c.db.high = before + c.wrote
		}
		return false
	}
	c.tx = false
	c.db.low += c.wrote
	c.db.high += c.wrote
	return true
}

func (r *random) rollback(c *conn) {
	_, err := c.c.Exec("ROLLBACK")
	r.note("  %d %s (%s): ROLLBACK: %v", c.id, c.db.name, c.mode, err)
	if err != nil && !r.stopped && !strings.Contains(err.Error(), "no transaction is active") {
		r.fail("%s (%s): ROLLBACK: %v", c.db.name, c.mode, err)
	}
	c.tx = false
}

// transaction is a whole transaction.
func (r *random) transaction(c *conn) {
	if !r.begin(c) {
		return
	}
	for range 1 + r.rng.IntN(3) {
		r.write(c)
	}
	if c.mode != "off" && r.chance(15) {
		r.rollback(c)
		return
	}
	r.end(c)
}

// end ends an open transaction: it is committed, or rolled back when readers are in its way.
func (r *random) end(c *conn) {
	if !c.tx || r.commit(c) {
		return
	}
	if c.mode == "off" && !r.stopped {
		r.fail("%s: an exclusive transaction without a journal could not commit", c.db.name)
	}
	r.rollback(c)
}

// write changes something in an open transaction.
func (r *random) write(c *conn) {
	if r.exec(c, r.change(c.db)) != nil {
		return
	}
	if r.exec(c, "UPDATE seq SET n = n + 1") == nil {
		c.wrote++
	}
}

// change returns a statement that changes a database.
func (r *random) change(db *database) string {
	switch n := r.rng.IntN(100); {
	case n < 45:
		rows, size := 1+r.rng.IntN(40), pick(r, 10, 100, 900, 5000)
		return fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO t(v, w) SELECT randomblob(%d), i FROM n", rows, size)
	case n < 60:
		return fmt.Sprintf("UPDATE t SET v = randomblob(%d), w = w + 1 WHERE id %% %d = 0", pick(r, 1, 100, 3000), 2+r.rng.IntN(7))
	case n < 75:
		return fmt.Sprintf("DELETE FROM t WHERE id %% %d < 2", 2+r.rng.IntN(5))
	case n < 78:
		return "DELETE FROM t"
	case n < 84:
		db.tables++
		return fmt.Sprintf("CREATE TABLE IF NOT EXISTS x%d AS SELECT * FROM t LIMIT 20", db.tables%4)
	case n < 88:
		return fmt.Sprintf("DROP TABLE IF EXISTS x%d", r.rng.IntN(4))
	case n < 91:
		return fmt.Sprintf("CREATE INDEX IF NOT EXISTS i%d ON t(w, id)", r.rng.IntN(3))
	case n < 94:
		return fmt.Sprintf("DROP INDEX IF EXISTS i%d", r.rng.IntN(3))
	case n < 96:
		return "REINDEX t"
	case n < 98:
		return fmt.Sprintf("PRAGMA incremental_vacuum(%d)", r.rng.IntN(20))
	default:
		return "ANALYZE"
	}
}

// switchMode switches the journal mode.
func (r *random) switchMode(c *conn) {
	mode := pick(r, journalModes...)
	rows, err := r.query(c, "PRAGMA journal_mode="+mode)
	if err == nil {
		c.mode = rows[0][0].(string)
		r.note("  %d %s is in %s", c.id, c.db.name, c.mode)
	}
}

func (r *random) switchLocking(c *conn) {
	c.exclusive = !c.exclusive
	mode := "normal"
	if c.exclusive {
		mode = "exclusive"
	}
	if _, err := r.query(c, "PRAGMA locking_mode="+mode); err == nil {
		_, _ = r.query(c, "SELECT count(*) FROM t") // locks follow at the next read
	}
}

// vacuum vacuums, perhaps to another page size or another kind of auto_vacuum.
func (r *random) vacuum(c *conn) {
	if r.chance(30) {
		_ = r.exec(c, fmt.Sprintf("PRAGMA page_size=%d", pick(r, randomPages...)))
	}
	if r.chance(30) {
		_ = r.exec(c, "PRAGMA auto_vacuum="+pick(r, "none", "full", "incremental"))
	}
	_ = r.exec(c, "VACUUM")
}

// close ends the connection's transaction and closes it.
func (r *random) close(c *conn) {
	r.end(c)
	r.note("  %d %s closes", c.id, c.db.name)
	c.c.Close()
	for i, other := range c.proc.conns {
		if other == c {
			c.proc.conns = append(c.proc.conns[:i:i], c.proc.conns[i+1:]...)
			return
		}
	}
}

// quiet ends every transaction of db, and closes the connections that keep others out.
func (r *random) quiet(db *database) (left []*conn) {
	for _, c := range r.connsOf(db) {
		if c.exclusive {
			r.close(c)
			continue
		}
		r.end(c)
		left = append(left, c)
	}
	return left
}

// count is a transaction that does no more than count itself.
var count = []sqlapp.Step{
	{SQL: "UPDATE seq SET n = n + 1"},
	{SQL: "INSERT INTO t(v, w) VALUES (randomblob(300), 1)"},
}

// burst writes through several connections at once.
func (r *random) burst() {
	db := r.oneDatabase()
	if db == nil {
		return
	}
	conns := r.quiet(db)
	for len(conns) < 2 {
		c := r.connect(db)
		if c == nil {
			return
		}
		if c.exclusive {
			r.close(c)
			continue
		}
		conns = append(conns, c)
	}
	// Readers first, so that every connection is in the mode of the file. Without a journal a statement
	// that has to wait for a reader cannot be undone.
	for _, c := range conns {
		if !r.refresh(c) {
			return
		}
		if c.mode == "off" {
			r.close(c)
			return
		}
	}
	// One process serves its connections one after another; side by side they need one each.
	used := map[*process]bool{}
	var wg sync.WaitGroup
	var mu sync.Mutex
	rounds, total := 5+r.rng.IntN(20), int64(0)
	for _, c := range conns {
		if used[c.proc] {
			continue
		}
		used[c.proc] = true
		_ = r.exec(c, "PRAGMA busy_timeout=60000")
		wg.Go(func() {
			done, err := c.c.Repeat(count, rounds, 0)
			mu.Lock()
			defer mu.Unlock()
			total += int64(done.Rounds)
			if err != nil {
				r.t.Errorf("%s (%s): burst of %d: %v", db.name, c.mode, c.id, err)
			}
		})
	}
	wg.Wait()
	r.note("  %d transactions by %d connections to %s", total, len(used), db.name)
	db.low += total
	db.high += total
	for _, c := range conns {
		_ = r.exec(c, "PRAGMA busy_timeout=0")
	}
	if r.t.Failed() {
		r.t.FailNow()
	}
}

// attach writes to two databases in one transaction.
func (r *random) attach() {
	a, b := r.oneDatabase(), r.oneDatabase()
	if a == nil || a == b {
		return
	}
	c := r.connect(a)
	if c == nil {
		return
	}
	path := strings.ReplaceAll(r.primary.path(b.name), "'", "''")
	if r.exec(c, "ATTACH '"+path+"' AS other") != nil || r.chance(50) && r.exec(c, "PRAGMA other.journal_mode="+pick(r, journalModes[:5]...)) != nil {
		r.close(c)
		return
	}
	if !r.refresh(c) || r.exec(c, "BEGIN IMMEDIATE") != nil {
		r.close(c)
		return
	}
	c.tx, c.wrote = true, 0
	ok := r.exec(c, r.change(a)) == nil && r.exec(c, "UPDATE seq SET n = n + 1; UPDATE other.seq SET n = n + 1") == nil &&
		r.exec(c, "INSERT INTO other.t(v, w) VALUES (randomblob(5000), 5)") == nil
	switch {
	case !ok || r.chance(15):
		r.rollback(c)
	case r.chance(15):
		r.killProcess(c.proc)
		return
	case r.exec(c, "COMMIT") == nil:
		c.tx = false
		for _, db := range []*database{a, b} {
			db.low++
			db.high++
		}
	default:
		r.rollback(c)
	}
	r.close(c)
}

// killApp kills an application between two statements.
func (r *random) killApp() { r.killProcess(pick(r, r.procs...)) }

// unjournaled reports whether SQLite itself may leave a damaged database when the connection dies in a
// transaction.
func (c *conn) unjournaled() bool { return c.mode == "memory" || c.mode == "off" }

func (r *random) killProcess(p *process) {
	for _, c := range p.conns {
		if c.unjournaled() {
			r.end(c)
		}
	}
	p.app.Kill()
	r.restartProcess(p)
}

// killAppBusy kills an application while it writes.
func (r *random) killAppBusy() {
	all := r.conns()
	if len(all) == 0 {
		return
	}
	c := pick(r, all...)
	for _, other := range r.connsOf(c.db) {
		r.end(other)
	}
	if !r.refresh(c) || c.unjournaled() {
		return
	}
	for _, other := range c.proc.conns {
		if other.unjournaled() {
			r.end(other)
		}
	}
	r.busyUntil(c, func() { c.proc.app.Kill() })
	r.restartProcess(c.proc)
}

// busyUntil writes through c until fn has returned; how many transactions were committed is not known
// before somebody looks.
func (r *random) busyUntil(c *conn, fn func()) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// Killed, or refused by a daemon that is gone: how it ends says nothing.
		_, _ = c.c.Repeat(count, 100_000, 0)
	}()
	time.Sleep(time.Duration(r.rng.IntN(30)) * time.Millisecond)
	fn()
	c.proc.app.Kill()
	<-ended
	c.db.high += 100_000
	r.note("  %s was being written (%s)", c.db.name, c.mode)
}
