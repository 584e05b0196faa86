// Package sqlitetest gives tests real SQLite applications: child processes that open databases, run
// SQL, stay alive as long as the test wants and may be killed, and the sqlite3 command line.
//
// A test binary that uses it calls [Main] from TestMain, because the child is the test binary itself:
//
//	func TestMain(m *testing.M) { sqlitetest.Main(m) }
//
// An [App] is one process, a [Conn] one connection in it. Methods that begin with Must end the test on
// an error; the others return it. Children are ended, and their connections closed, by t.Cleanup.
package sqlitetest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlapp"
)

// childEnv marks a process as a child that serves SQL instead of running tests.
const childEnv = "LITEFS_SQLITETEST_CHILD"

// Patience bounds every request to a child. It is long on purpose: a loaded machine is not a failure,
// and a test that hangs must end with a message that says where.
const Patience = 2 * time.Minute

// Main runs the tests, or serves SQL when this process is a child.
func Main(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		m.Run()
		return
	}
	if err := sqlapp.Serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "SQLite child:", err)
	}
}

// App is an application process.
type App struct {
	t testing.TB
	p *sqlapp.Process
}

// Start starts an application.
func Start(t testing.TB) *App {
	t.Helper()
	p, err := sqlapp.Start(context.Background(), sqlapp.Command{Env: []string{childEnv + "=1"}})
	if err != nil {
		t.Fatal(err)
	}
	app := &App{t: t, p: p}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Errorf("end of application: %v", err)
		}
	})
	return app
}

// PID is the process id.
func (a *App) PID() int { return a.p.PID() }

// Kill ends the process as a crash does.
func (a *App) Kill() {
	a.t.Helper()
	if err := a.p.Kill(); err != nil {
		a.t.Errorf("kill application: %v", err)
	}
}

// Exit lets the process close its connections and end.
func (a *App) Exit() {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := a.p.Close(ctx); err != nil {
		a.t.Errorf("end of application: %v", err)
	}
}

// Signal sends sig to the process.
func (a *App) Signal(sig os.Signal) {
	a.t.Helper()
	if err := a.p.Signal(sig); err != nil {
		a.t.Fatalf("signal %v to application: %v", sig, err)
	}
}

// Conn is a connection of an application.
type Conn struct {
	t testing.TB
	c *sqlapp.Conn
}

// TryOpen opens path without a busy time-out, so that a lock held by anybody shows at once, and runs
// the pragmas ("journal_mode=wal").
func (a *App) TryOpen(path string, pragmas ...string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	options := sqlapp.Options{Pragmas: pragmas}
	for _, p := range pragmas {
		// The driver reads the database before it runs a pragma of ours.
		if ms, ok := strings.CutPrefix(p, "busy_timeout="); ok {
			n, err := strconv.Atoi(ms)
			if err != nil {
				return nil, fmt.Errorf("pragma %s: %w", p, err)
			}
			options.BusyTimeout = time.Duration(n) * time.Millisecond
		}
	}
	c, err := a.p.Open(ctx, path, options)
	if err != nil {
		return nil, err
	}
	return &Conn{t: a.t, c: c}, nil
}

// Open is TryOpen that must succeed.
func (a *App) Open(path string, pragmas ...string) *Conn {
	a.t.Helper()
	c, err := a.TryOpen(path, pragmas...)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// Open opens path in an application of its own.
func Open(t testing.TB, path string, pragmas ...string) *Conn {
	t.Helper()
	return Start(t).Open(path, pragmas...)
}

// Exec runs statements and returns how many rows the last one changed.
func (c *Conn) Exec(sql string, args ...any) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return c.c.Exec(ctx, sql, args...)
}

// MustExec runs statements.
func (c *Conn) MustExec(sql string, args ...any) {
	c.t.Helper()
	if _, err := c.Exec(sql, args...); err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
}

// Query returns all rows of one statement; values as sqlapp's Conn.Query gives them.
func (c *Conn) Query(sql string, args ...any) ([][]any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return c.c.Query(ctx, sql, args...)
}

// MustQuery returns all rows of one statement.
func (c *Conn) MustQuery(sql string, args ...any) [][]any {
	c.t.Helper()
	rows, err := c.Query(sql, args...)
	if err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
	return rows
}

// MustInt returns the first column of the first row, an integer.
func (c *Conn) MustInt(sql string, args ...any) int64 {
	c.t.Helper()
	rows := c.MustQuery(sql, args...)
	if len(rows) == 0 || len(rows[0]) == 0 {
		c.t.Fatalf("%s: no rows", sql)
	}
	n, ok := rows[0][0].(int64)
	if !ok {
		c.t.Fatalf("%s: got %v (%T), want an integer", sql, rows[0][0], rows[0][0])
	}
	return n
}

// MustText returns the first column of the first row as text.
func (c *Conn) MustText(sql string, args ...any) string {
	c.t.Helper()
	rows := c.MustQuery(sql, args...)
	if len(rows) == 0 || len(rows[0]) == 0 {
		c.t.Fatalf("%s: no rows", sql)
	}
	return fmt.Sprint(rows[0][0])
}

// Repeat runs the steps in the child until rounds are done or d has passed (0: no such bound).
func (c *Conn) Repeat(steps []sqlapp.Step, rounds int, d time.Duration) (sqlapp.Repeated, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d+Patience)
	defer cancel()
	return c.c.Repeat(ctx, steps, rounds, d)
}

// PersistWAL sets whether the -wal stays after the last close.
func (c *Conn) PersistWAL(on bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := c.c.PersistWAL(ctx, on); err != nil {
		c.t.Fatalf("persist_wal: %v", err)
	}
}

// Close closes the connection as an application does.
func (c *Conn) Close() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := c.c.Close(ctx); err != nil {
		c.t.Fatalf("close connection: %v", err)
	}
}

// CLI runs a script in the sqlite3 command line on path and returns what it printed.
func CLI(t testing.TB, path, script string) string {
	t.Helper()
	out, err := TryCLI(path, script)
	if err != nil {
		t.Fatalf("sqlite3 %s: %v", path, err)
	}
	return out
}

// TryCLI is CLI that returns the error, with what the command said.
func TryCLI(path, script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "sqlite3", "-batch", "-bail", path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(script), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// CheckIntegrity fails the test when PRAGMA integrity_check of the database at path finds anything.
func CheckIntegrity(t testing.TB, path string) {
	t.Helper()
	if got := strings.TrimSpace(CLI(t, path, "PRAGMA integrity_check;")); got != "ok" {
		t.Errorf("integrity_check of %s: %s", path, got)
	}
}
