package sqlapp_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlapp"
)

const childEnv = "SQLAPP_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := sqlapp.Serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return
	}
	m.Run()
}

func start(t *testing.T) (*sqlapp.Process, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	p, err := sqlapp.Start(ctx, sqlapp.Command{Env: []string{childEnv + "=1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	return p, ctx
}

func TestQueryReturnsWhatWasWritten(t *testing.T) {
	p, ctx := start(t)
	path := filepath.Join(t.TempDir(), "with space & percent%.db")
	c, err := p.Open(ctx, path, sqlapp.Options{Pragmas: []string{"journal_mode=wal"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(ctx, "CREATE TABLE t(a, b, c, d); INSERT INTO t VALUES (1, 2.5, 'x', NULL)"); err != nil {
		t.Fatal(err)
	}
	changed, err := c.Exec(ctx, "INSERT INTO t VALUES (?, ?, ?, x'0aff')", int64(1)<<62, 0.25, "y")
	if err != nil || changed != 1 {
		t.Fatalf("insert changed %d rows: %v", changed, err)
	}
	rows, err := c.Query(ctx, "SELECT * FROM t ORDER BY a")
	if err != nil {
		t.Fatal(err)
	}
	got, want := fmt.Sprint(rows), "[[1 2.5 x <nil>] [4611686018427387904 0.25 y 0AFF]]"
	if got != want {
		t.Errorf("rows %s, want %s", got, want)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path + "-wal"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the last close left the -wal: %v", err)
	}
}

func TestErrorsCarrySQLiteCodes(t *testing.T) {
	p, ctx := start(t)
	path := filepath.Join(t.TempDir(), "a.db")
	one, err := p.Open(ctx, path, sqlapp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	two, err := p.Open(ctx, path, sqlapp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := one.Exec(ctx, "CREATE TABLE t(a); BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	if _, err := two.Exec(ctx, "INSERT INTO t VALUES (1)"); !sqlapp.IsCode(err, sqlapp.CodeBusy) {
		t.Errorf("second writer: %v, want code %d", err, sqlapp.CodeBusy)
	}
	if _, err := one.Exec(ctx, "nonsense"); !sqlapp.IsCode(err, 1) {
		t.Errorf("syntax error: %v, want code 1", err)
	}
}

func TestRepeatStopsAtItsBounds(t *testing.T) {
	p, ctx := start(t)
	c, err := p.Open(ctx, filepath.Join(t.TempDir(), "a.db"), sqlapp.Options{Pragmas: []string{"journal_mode=wal", "synchronous=off"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(ctx, "CREATE TABLE t(a)"); err != nil {
		t.Fatal(err)
	}
	steps := []sqlapp.Step{{SQL: "BEGIN"}, {SQL: "INSERT INTO t VALUES (random())", Times: 5}, {SQL: "COMMIT"}, {SQL: "SELECT * FROM t"}}
	done, err := c.Repeat(ctx, steps, 3, 0)
	if err != nil || done.Rounds != 3 || done.Nanos <= 0 {
		t.Errorf("repeat: %+v, %v", done, err)
	}
	rows, err := c.Query(ctx, "SELECT count(*) FROM t")
	if err != nil || rows[0][0] != int64(15) {
		t.Errorf("rows %v, %v, want 15", rows, err)
	}
	if done, err = c.Repeat(ctx, steps, 0, time.Millisecond); err != nil || done.Rounds == 0 {
		t.Errorf("timed repeat: %+v, %v", done, err)
	}
	if _, err := c.Repeat(ctx, steps, 0, 0); err == nil {
		t.Error("repeat without a bound was accepted")
	}
}

func TestKilledChildIsGone(t *testing.T) {
	p, ctx := start(t)
	c, err := p.Open(ctx, filepath.Join(t.TempDir(), "a.db"), sqlapp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(ctx, "SELECT 1"); !errors.Is(err, sqlapp.ErrGone) {
		t.Errorf("request to a dead child: %v, want ErrGone", err)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	p, ctx := start(t)
	c, err := p.Open(ctx, filepath.Join(t.TempDir(), "a.db"), sqlapp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	endless := "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n"
	if _, err := c.Query(short, endless); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("endless query: %v, want the deadline", err)
	}
	if _, err := c.Query(ctx, "SELECT 1"); err == nil {
		t.Error("a pipe that is out of step answered")
	}
}

// A pragma that gives a row must not keep later statements from committing.
func TestRepeatCommitsEachStatement(t *testing.T) {
	p, ctx := start(t)
	path := filepath.Join(t.TempDir(), "a.db")
	c, err := p.Open(ctx, path, sqlapp.Options{Pragmas: []string{"journal_mode=wal"}})
	if err != nil {
		t.Fatal(err)
	}
	other, err := p.Open(ctx, path, sqlapp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(ctx, "CREATE TABLE t(a)"); err != nil {
		t.Fatal(err)
	}
	steps := []sqlapp.Step{{SQL: "PRAGMA wal_checkpoint(PASSIVE)"}, {SQL: "INSERT INTO t VALUES (1)"}}
	if _, err := c.Repeat(ctx, steps, 2, 0); err != nil {
		t.Fatal(err)
	}
	if rows, err := other.Query(ctx, "SELECT count(*) FROM t"); err != nil || rows[0][0] != int64(2) {
		t.Errorf("another connection sees %v (%v), want 2", rows, err)
	}
}

// What one child commits at a steady pace, another sees: each value after its commit.
func TestWatchSeesWhatPaceCommits(t *testing.T) {
	writer, ctx := start(t)
	reader, _ := start(t)
	path := filepath.Join(t.TempDir(), "a.db")
	w, err := writer.Open(ctx, path, sqlapp.Options{Pragmas: []string{"journal_mode=wal"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Exec(ctx, "CREATE TABLE t(id INTEGER PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
	r, err := reader.Open(ctx, path, sqlapp.Options{BusyTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	const rounds, every = 20, 2 * time.Millisecond
	type watched struct {
		seen []sqlapp.Seen
		err  error
	}
	result := make(chan watched, 1)
	go func() {
		seen, err := r.Watch(ctx, "SELECT max(id) FROM t", rounds, 100*time.Microsecond, 30*time.Second)
		result <- watched{seen, err}
	}()
	done, err := w.Pace(ctx, []sqlapp.Step{{SQL: "INSERT INTO t DEFAULT VALUES"}}, rounds, 0, every)
	if err != nil || done.Rounds != rounds || len(done.Ends) != rounds {
		t.Fatalf("%d rounds, %d ends (%v), want %d", done.Rounds, len(done.Ends), err, rounds)
	}
	if least := (rounds - 1) * every; time.Duration(done.Nanos) < least {
		t.Errorf("%d rounds took %s, want %s at least", rounds, time.Duration(done.Nanos), least)
	}
	got := <-result
	if got.err != nil {
		t.Fatal(got.err)
	}
	last := sqlapp.Seen{}
	for _, s := range got.seen {
		if s.Value < last.Value || s.Nanos < last.Nanos || s.Value == last.Value && s.Value != 0 {
			t.Errorf("%+v after %+v", s, last)
		}
		last = s
	}
	if last.Value != rounds {
		t.Errorf("the last value is %d, want %d", last.Value, rounds)
	}
}
