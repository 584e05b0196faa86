package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// The invariant: table t holds nine rows on several pages, and each transaction raises the version of all
// of them and of the table total by one. Whoever sees two versions has seen half a transaction.

// readerSQL reads what the invariant is about; the readers in C and Python have the same.
const readerSQL = "SELECT count(*), min(ver), max(ver), (SELECT n FROM total) FROM t WHERE length(pad) = 1200"

// versionUp is one transaction.
var versionUp = []sqlapp.Step{
	{SQL: "BEGIN IMMEDIATE"},
	{SQL: "UPDATE t SET ver = ver + 1, pad = randomblob(1200)"},
	{SQL: "UPDATE total SET n = n + 1"},
	{SQL: "COMMIT"},
}

// createVersions makes a database of version 0. Its connections are opened anew: how the kernel serves a
// file is settled when it is opened.
func createVersions(app *sqlitetest.App, path, mode string) {
	c := openPatient(app, path, "journal_mode="+mode, "synchronous=normal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, ver INTEGER, pad BLOB); CREATE TABLE total(n INTEGER)")
	c.MustExec("BEGIN")
	c.MustExec("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 9) INSERT INTO t SELECT i, 0, randomblob(1200) FROM n")
	c.MustExec("INSERT INTO total VALUES (0)")
	c.MustExec("COMMIT")
	c.Close()
}

// programs are those in C, built once.
var programs = struct {
	once sync.Once
	dir  string
	err  error
}{}

func buildPrograms(t testing.TB) string {
	t.Helper()
	programs.once.Do(func() {
		if programs.dir, programs.err = os.MkdirTemp("", "litefs-programs-"); programs.err != nil {
			return
		}
		for _, name := range []string{"reader", "counter"} {
			out, err := exec.Command("gcc", "-O1", "-Wall", "-Werror", "-o", filepath.Join(programs.dir, name),
				filepath.Join("testdata", name+".c"), "-l:libsqlite3.so.0").CombinedOutput()
			if err != nil {
				programs.err = fmt.Errorf("build the %s in C: %w\n%s", name, err, out)
			}
		}
	})
	if programs.err != nil {
		t.Fatal(programs.err)
	}
	return programs.dir
}

// readers are applications on one node that read one database without a pause and check the invariant.
type readers struct {
	t       testing.TB
	where   string
	outside []*outsideReader
	inside  *sqlitetest.App
	stop    chan struct{}
	done    chan struct{} // the Go reader has ended
	reads   int64         // of the Go reader; read it after done
	goErr   error         // likewise
	version int64         // likewise
	over    bool
}

// outsideReader is a reader in another language.
type outsideReader struct {
	language string
	cmd      *exec.Cmd
	in       io.WriteCloser
	out      bytes.Buffer
}

// startReaders starts one in C, one in Python and one in Go. The database must be there.
func startReaders(t testing.TB, n *node, name string) *readers {
	t.Helper()
	dir := buildPrograms(t)
	r := &readers{t: t, where: n.path(name), stop: make(chan struct{}), done: make(chan struct{})}
	t.Cleanup(r.kill)
	for _, p := range []struct {
		language string
		args     []string
	}{{"C", []string{filepath.Join(dir, "reader")}}, {"Python", []string{"python3", filepath.Join("testdata", "reader.py")}}} {
		o := &outsideReader{language: p.language, cmd: exec.Command(p.args[0], append(p.args[1:], r.where)...)}
		o.cmd.Stdout, o.cmd.Stderr = &o.out, &o.out
		var err error
		if o.in, err = o.cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := o.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r.outside = append(r.outside, o)
	}
	r.inside = sqlitetest.Start(t)
	c, err := r.inside.TryOpen(r.where, "busy_timeout=60000")
	go func() {
		defer close(r.done)
		if r.goErr = err; err == nil {
			r.goErr = r.read(c)
		}
	}()
	return r
}

// read is the reader in Go.
func (r *readers) read(c *sqlitetest.Conn) error {
	for {
		select {
		case <-r.stop:
			return nil
		case <-time.After(time.Millisecond): // readers without a pause would leave a writer no time
		}
		rows, err := c.Query(readerSQL)
		if err != nil {
			return err
		}
		row := rows[0]
		total, ok := row[3].(int64)
		if !ok || row[0] != int64(9) || row[1] != row[2] || row[2] != row[3] || total < r.version {
			return fmt.Errorf("%w: after version %d: %v", errHalf, r.version, row)
		}
		r.version = total
		r.reads++
	}
}

var errHalf = errors.New("half a transaction")

// end lets all readers end, and fails the test if one saw what it must not see or ended early. It returns
// the number of reads.
func (r *readers) end() int64 { return r.finish(false) }

// crash ends the readers after their node was killed: an error of SQLite is no fault then, half a
// transaction is.
func (r *readers) crash() int64 { return r.finish(true) }

func (r *readers) finish(crashed bool) (reads int64) {
	r.t.Helper()
	r.over = true
	close(r.stop)
	for _, o := range r.outside {
		_ = o.in.Close() // it may have ended
		timer := time.AfterFunc(patience, func() { _ = o.cmd.Process.Kill() })
		err := o.cmd.Wait()
		timer.Stop()
		var n, version int64
		if _, serr := fmt.Sscanf(o.out.String(), "reads %d version %d", &n, &version); err == nil && serr == nil {
			reads += n
			continue
		}
		if code := o.cmd.ProcessState.ExitCode(); !crashed || code != 4 {
			r.t.Errorf("the reader of %s in %s ended with %v: %s", r.where, o.language, err, o.out.String())
		}
	}
	<-r.done
	if r.goErr != nil && (!crashed || errors.Is(r.goErr, errHalf)) {
		r.t.Errorf("the reader of %s in Go: %v", r.where, r.goErr)
	}
	reads += r.reads
	r.inside.Kill()
	return reads
}

// kill is the end of a test that did not end its readers.
func (r *readers) kill() {
	if r.over {
		return
	}
	for _, o := range r.outside {
		_ = o.cmd.Process.Kill()
		_ = o.cmd.Wait()
	}
	close(r.stop)
	r.inside.Kill()
	<-r.done
}

// allModes are SQLite's journal modes.
var allModes = []string{"wal", "delete", "truncate", "persist", "memory", "off"}

// versionsRun writes to a database in each journal mode, so many transactions (0: any number) and for so
// long (0: as it takes), while readers read on a primary and two replicas, and compares the nodes.
func versionsRun(t *testing.T, rounds int, d time.Duration, options ...option) {
	primary := startNode(t, options...)
	nodes := []*node{primary}
	for range 2 {
		nodes = append(nodes, startNode(t, append(options, follows(primary))...))
	}
	var names []string
	var written, reads int64
	for _, mode := range allModes {
		app := sqlitetest.Start(t)
		name := mode + ".db"
		names = append(names, name)
		createVersions(app, primary.path(name), mode)
		var all []*readers
		for _, n := range nodes {
			caughtUp(primary, n, name)
			all = append(all, startReaders(t, n, name))
		}
		c := openPatient(app, primary.path(name), "journal_mode="+mode, "synchronous=normal")
		from := time.Now()
		done, err := c.Repeat(versionUp, rounds, d)
		if err != nil {
			t.Fatalf("%s, after %d transactions: %v", mode, done.Rounds, err)
		}
		c.Close()
		took := time.Since(from)
		written += int64(done.Rounds)
		for _, n := range nodes[1:] {
			last := sqlitetest.Start(t)
			reader := openPatient(last, n.path(name))
			// What has no journal is captured a moment after it is committed.
			eventually(t, "the replica has the last version of "+name, func() (bool, string) {
				got := reader.MustInt("SELECT n FROM total")
				return got == int64(done.Rounds), fmt.Sprintf("%d of %d", got, done.Rounds)
			})
			last.Exit()
		}
		here := int64(0)
		for _, r := range all {
			here += r.end()
		}
		reads += here
		t.Logf("%s: %d transactions in %s, %d reads", mode, done.Rounds, took.Round(time.Millisecond), here)
		app.Exit()
	}
	t.Logf("%d transactions, %d reads on 3 nodes in C, Python and Go", written, reads)
	sameOnAll(t, nodes, names...)
}

func TestReadersInThreeLanguages(t *testing.T) {
	t.Run("passthrough", func(t *testing.T) { versionsRun(t, 80, 0) })
	t.Run("cached", func(t *testing.T) { versionsRun(t, 80, 0, cached) })
}
