package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// This file is what a random run does to files, and to processes.

// restartProcess replaces an application that is gone.
func (r *random) restartProcess(p *process) {
	p.conns = nil
	p.app = sqlitetest.Start(r.t)
}

// closeAll closes every connection of db and lets SQLite recover what killed ones have left.
func (r *random) closeAll(db *database) {
	for _, c := range r.connsOf(db) {
		r.close(c)
	}
	r.look(db)
}

// look reads the database with the command line, as the only connection: SQLite recovers, and what a
// kill has left open is decided.
func (r *random) look(db *database) {
	out := strings.Fields(sqlitetest.CLI(r.t, r.primary.path(db.name), "PRAGMA busy_timeout=10000; PRAGMA integrity_check; SELECT n FROM seq;"))
	if len(out) != 3 || out[1] != "ok" {
		r.fail("%s: integrity_check: %v", db.name, out)
	}
	var n int64
	if _, err := fmt.Sscan(out[2], &n); err != nil {
		r.fail("%s: %v", db.name, err)
	}
	if n < db.low || n > db.high {
		r.fail("%s: %d transactions are in it, want %d to %d", db.name, n, db.low, db.high)
	}
	db.low, db.high = n, n
}

// outside makes a database that is not in the mount, and returns its path.
func (r *random) outside() (string, *database) {
	r.lastFile++
	path := filepath.Join(r.t.TempDir(), fmt.Sprintf("out%d.db", r.lastFile))
	n := int64(r.lastFile) * 1_000_000
	sqlitetest.CLI(r.t, path, fmt.Sprintf(`PRAGMA page_size=%d; PRAGMA auto_vacuum=%s; PRAGMA journal_mode=%s;
CREATE TABLE seq(n INTEGER); INSERT INTO seq VALUES(%d); CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB, w INTEGER); CREATE INDEX tw ON t(w);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO t(v, w) SELECT randomblob(700), i FROM n;`,
		pick(r, randomPages...), pick(r, "none", "full"), pick(r, "delete", "wal"), n, 1+r.rng.IntN(100)))
	return path, &database{low: n, high: n}
}

// cp copies a file as the command does: an existing one is truncated and written.
func (r *random) cp(from, to string) {
	r.note("  cp %s %s", from, to)
	if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		r.fail("cp: %v: %s", err, out)
	}
}

// copyIn copies a database of elsewhere to a new name, or over a database.
func (r *random) copyIn() {
	from, db := r.outside()
	if old := r.oneDatabase(); old != nil && (r.chance(50) || len(r.dbs) >= 5) {
		r.closeAll(old)
		r.cp(from, r.primary.path(old.name))
		old.low, old.high = db.low, db.high
		return
	}
	if db.name = r.freeName(); db.name == "" {
		return
	}
	r.cp(from, r.primary.path(db.name))
	r.dbs = append(r.dbs, db)
}

// copyWithin copies one database of the mount to a new name or over another one.
func (r *random) copyWithin() {
	from := r.oneDatabase()
	if from == nil {
		return
	}
	r.closeAll(from)
	to := r.oneDatabase()
	if to == from || r.chance(30) {
		if len(r.dbs) >= 5 {
			return
		}
		to = &database{name: r.freeName()}
		if to.name == "" {
			return
		}
		r.dbs = append(r.dbs, to)
	} else {
		r.closeAll(to)
	}
	r.cp(r.primary.path(from.name), r.primary.path(to.name))
	to.low, to.high = from.low, from.high
}

// backup copies a database of elsewhere over one of the mount, by SQLite's means: one transaction.
func (r *random) backup() {
	db := r.oneDatabase()
	if db == nil {
		return
	}
	r.quiet(db)
	from, made := r.outside()
	out, err := sqlitetest.TryCLI(from, ".timeout 0\n.backup '"+strings.ReplaceAll(r.primary.path(db.name), "'", "''")+"'")
	r.note("  backup to %s: %v %s", db.name, err, out)
	if err != nil {
		return // the database is in use, or in WAL mode and has other pages
	}
	db.low, db.high = made.low, made.high
}

// vacuumInto has SQLite write a copy of a database, without a journal.
func (r *random) vacuumInto() {
	all := r.conns()
	if len(all) == 0 || len(r.dbs) >= 5 {
		return
	}
	c := pick(r, all...)
	if c.tx || !r.refresh(c) {
		return
	}
	to := &database{name: r.freeName(), low: c.db.low, high: c.db.high}
	if to.name == "" || r.exec(c, "VACUUM INTO '"+strings.ReplaceAll(r.primary.path(to.name), "'", "''")+"'") != nil {
		return
	}
	r.dbs = append(r.dbs, to)
}

// replace renames a new file over a database.
func (r *random) replace() {
	db := r.oneDatabase()
	if db == nil {
		return
	}
	r.closeAll(db)
	from, made := r.outside()
	temp := r.primary.path(db.name) + ".tmp"
	r.cp(from, temp)
	if err := os.Rename(temp, r.primary.path(db.name)); err != nil {
		r.fail("%v", err)
	}
	db.low, db.high = made.low, made.high
}

// rename gives a database another name, which may be that of another database.
func (r *random) rename() {
	db := r.oneDatabase()
	if db == nil {
		return
	}
	r.closeAll(db)
	name := r.freeName()
	if other := r.oneDatabase(); other != db && r.chance(30) {
		r.closeAll(other)
		r.forget(other)
		name = other.name
	}
	if name == "" {
		return
	}
	r.note("  rename %s to %s", db.name, name)
	if err := os.Rename(r.primary.path(db.name), r.primary.path(name)); err != nil {
		r.fail("%v", err)
	}
	db.name = name
}

// renameDir renames a directory with databases to another name and perhaps back.
func (r *random) renameDir() {
	dir := pick(r, "dir", "dir/sub", "other")
	if _, err := os.Stat(r.primary.path(dir)); err != nil {
		return
	}
	moved := func(from, to string) {
		r.note("  rename directory %s to %s", from, to)
		if err := os.Rename(r.primary.path(from), r.primary.path(to)); err != nil {
			r.fail("%v", err)
		}
		for _, db := range r.dbs {
			if rest, ok := strings.CutPrefix(db.name, from+"/"); ok {
				db.name = to + "/" + rest
			}
		}
	}
	for _, db := range r.dbs {
		if strings.HasPrefix(db.name, dir+"/") {
			r.closeAll(db)
		}
	}
	there := dir + "-moved"
	moved(dir, there)
	if r.chance(50) {
		for _, db := range r.dbs {
			if strings.HasPrefix(db.name, there+"/") && r.chance(50) {
				r.look(db)
			}
		}
	}
	moved(there, dir)
}

// remove removes a database.
func (r *random) remove() {
	db := r.oneDatabase()
	if db == nil {
		return
	}
	r.closeAll(db)
	r.removeFile(db)
}

func (r *random) removeFile(db *database) {
	r.note("  remove %s", db.name)
	if err := os.Remove(r.primary.path(db.name)); err != nil {
		r.fail("%v", err)
	}
	r.forget(db)
	if r.chance(50) && len(r.dbs) < 5 {
		r.create()
	}
}

// removeOpen removes a database that applications have open; they are killed, for SQLite promises
// nothing to them, and their -wal and journal are removed with it.
func (r *random) removeOpen() {
	db := r.oneDatabase()
	if db == nil || len(r.connsOf(db)) == 0 {
		return
	}
	r.note("  remove %s, which is open", db.name)
	if err := os.Remove(r.primary.path(db.name)); err != nil {
		r.fail("%v", err)
	}
	for _, c := range r.connsOf(db) {
		if len(c.proc.conns) > 0 {
			r.killProcess(c.proc)
		}
	}
	for _, suffix := range []string{"-wal", "-shm", "-journal"} {
		if err := os.Remove(r.primary.path(db.name) + suffix); err != nil && !os.IsNotExist(err) {
			r.fail("%v", err)
		}
	}
	r.forget(db)
}

// killDaemon kills the primary's daemon, perhaps in mid-statement, lets applications go on for a
// moment, ends them and starts the daemon again.
func (r *random) killDaemon() {
	for _, c := range r.conns() {
		if c.unjournaled() {
			r.end(c)
		}
	}
	var busy *conn
	if all := r.conns(); len(all) > 0 && r.chance(60) {
		busy = pick(r, all...)
		for _, other := range r.connsOf(busy.db) {
			r.end(other)
		}
		if !r.refresh(busy) || busy.unjournaled() {
			busy = nil
		}
	}
	r.endReader()
	kill := func() {
		r.kill(r.primary)
		r.stopped = true
	}
	if busy != nil {
		r.busyUntil(busy, kill)
		busy.proc.conns = nil
	} else {
		kill()
		for range r.rng.IntN(4) {
			// Through a descriptor of passthrough the kernel goes on.
			if all := r.conns(); len(all) > 0 {
				if c := pick(r, all...); c.mode == "wal" {
					before := c.db.high
					r.transactionOf(c)
					c.db.high = max(c.db.high, before+10)
				}
			}
		}
	}
	for _, p := range r.procs {
		p.app.Kill()
	}
	r.stopped = false
	r.start(r.primary)
	for _, p := range r.procs {
		r.restartProcess(p)
	}
	for _, db := range r.dbs {
		r.look(db)
	}
}

// transactionOf writes one transaction, or goes on with the open one.
func (r *random) transactionOf(c *conn) {
	if c.tx {
		r.inTransaction(c)
		return
	}
	r.transaction(c)
}

// exitAll ends every application gently.
func (r *random) exitAll() {
	for _, c := range r.conns() {
		r.close(c)
	}
	for _, db := range r.dbs {
		r.look(db)
	}
}

// restartDaemon stops the primary's daemon and starts it again.
func (r *random) restartDaemon() {
	r.exitAll()
	for _, p := range r.procs {
		p.app.Exit()
	}
	r.endReader()
	r.primary.stop()
	r.primary.start()
	for _, p := range r.procs {
		r.restartProcess(p)
	}
}

// restartFollower stops or kills the follower, does something else, and starts it again.
func (r *random) restartFollower() {
	r.endReader()
	if r.chance(50) || r.guarded {
		r.follower.stop()
	} else {
		r.kill(r.follower)
	}
	for range r.rng.IntN(6) {
		op := pick(r, (*random).use, (*random).open, (*random).create, (*random).copyIn, (*random).rename, (*random).remove, (*random).replace, (*random).restartDaemon)
		op(r)
	}
	r.start(r.follower)
}

// kill kills a daemon. One of whose threads waits for its own mount does not end by that, for the
// kernel lets the wait go on; the next start sets it free.
func (r *random) kill(n *node) {
	proc := n.proc
	n.proc = nil
	if err := proc.Signal(os.Kill); err != nil {
		r.fail("%v", err)
	}
	select {
	case <-proc.Exited():
	case <-time.After(time.Second):
		r.note("  the daemon waits for its own mount")
	}
	r.dying = append(r.dying, proc)
}

// start starts a daemon again, after which those that were killed must have ended.
func (r *random) start(n *node) {
	n.start()
	for _, proc := range r.dying {
		if err := proc.Kill(); err != nil {
			r.fail("%v", err)
		}
	}
	r.dying = nil
}

// readFollower begins to read a database on the follower, or looks whether an open snapshot stays what
// it was.
func (r *random) readFollower() {
	if r.reader != nil {
		rows, err := r.reader.Query("SELECT n FROM seq")
		if err != nil || fmt.Sprint(rows) != r.snapshot {
			r.fail("a snapshot on the follower was %s and is %v: %v", r.snapshot, rows, err)
		}
		if r.chance(50) {
			r.endReader()
		}
		return
	}
	db := r.oneDatabase()
	if db == nil {
		return
	}
	if _, err := os.Stat(r.follower.path(db.name)); err != nil {
		return // not there yet
	}
	r.readerApp = sqlitetest.Start(r.t)
	var c *sqlitetest.Conn
	var rows [][]any
	var err error
	eventually(r.t, "the follower lets "+db.name+" be read", func() (bool, string) {
		// Only the first transaction of a database keeps readers out, for as long as it is written.
		c, rows, err = r.snapshotOf(db)
		return !sqlapp.IsCode(err, sqlapp.CodeBusy), fmt.Sprint(err)
	})
	r.note("  the follower's %s: %v %v", db.name, rows, err)
	switch {
	case err == nil:
		r.reader, r.snapshot = c, fmt.Sprint(rows)
	case sqlapp.IsCode(err, 1, sqlapp.CodeCantOpen), sqlapp.IsCode(err, sqlapp.CodeIOErr) && strings.Contains(err.Error(), "no such file"):
		// It has no table yet, or has just been dropped (SQLite looks at the database by its name when
		// it opens a -wal).
		r.endReader()
	default:
		r.fail("read %s on the follower: %v", db.name, err)
	}
}

// snapshotOf opens db on the follower and begins to read it.
func (r *random) snapshotOf(db *database) (*sqlitetest.Conn, [][]any, error) {
	c, err := r.readerApp.TryOpen(r.follower.path(db.name))
	if err != nil {
		return nil, nil, err
	}
	if _, err = c.Exec("BEGIN"); err == nil {
		var rows [][]any
		if rows, err = c.Query("SELECT n FROM seq"); err == nil {
			return c, rows, nil
		}
	}
	c.Close()
	return nil, nil, err
}

func (r *random) endReader() {
	if r.readerApp != nil {
		r.readerApp.Kill()
		r.reader, r.readerApp = nil, nil
	}
}

// relative names of the regular files below a directory.
func tree(dir string) (out []string, err error) {
	err = filepath.WalkDir(dir, func(p string, ent os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ent.Type().IsRegular() {
			rel, err := filepath.Rel(dir, p)
			if err != nil {
				return err
			}
			out = append(out, path.Clean(rel))
		}
		return nil
	})
	return out, err
}
