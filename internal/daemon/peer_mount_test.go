package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/fuse"
	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestMain runs the tests, or a node or an application when this process is a
// child: neither may live in the process that waits for it.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "mount" {
		if err := runNode(os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "node:", err)
		}
		return
	}
	sqlitetest.Main(m)
}

func runNode(path string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg, err := config.Load(path, config.Source{})
	if err != nil {
		return err
	}
	return Run(ctx, Options{Config: cfg, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
}

// patience bounds every wait for something that should be quick.
const patience = 2 * time.Minute

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// childNode is a node in a process of its own. Its directories outlive it.
type childNode struct {
	t    testing.TB
	cfg  childnode.Config
	proc *childnode.Node // nil while it is down
}

func startChild(t testing.TB, passthrough bool, primaryURL string) *childNode {
	t.Helper()
	dir := t.TempDir()
	addr, err := childnode.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	n := &childNode{t: t, cfg: childnode.Config{
		Mount: filepath.Join(dir, "mnt"), Data: filepath.Join(dir, "data"), Addr: addr,
		PrimaryURL: primaryURL, Passthrough: passthrough,
	}}
	if err := n.cfg.WriteFile(filepath.Join(dir, "litefs.yml")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.cleanup)
	n.start()
	return n
}

func (n *childNode) start() {
	n.t.Helper()
	var err error
	config := filepath.Join(filepath.Dir(n.cfg.Mount), "litefs.yml")
	if n.proc, err = childnode.Start(childnode.Options{Config: config, Log: n.t.Output()}); err != nil {
		n.t.Fatal(err)
	}
	if err := n.proc.Ready(timeout(n.t)); err != nil {
		n.t.Fatal(err)
	}
}

// restart ends the process as a crash does and starts another. The mount is
// aborted as well: a process that waits for its own mount cannot die.
func (n *childNode) restart() {
	n.t.Helper()
	old := n.proc
	n.proc = nil
	err := errors.Join(old.Signal(syscall.SIGKILL), fuse.Abort(n.cfg.Mount))
	if err = errors.Join(err, old.Kill()); err != nil {
		n.t.Fatal(err)
	}
	n.start()
}

func (n *childNode) cleanup() {
	if n.proc != nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := n.proc.Stop(ctx); err != nil {
			n.t.Errorf("end of node: %v", err)
		}
	}
	if err := childnode.Detach(n.cfg.Mount); err != nil {
		n.t.Error(err)
	}
}

func (n *childNode) path(name string) string { return filepath.Join(n.cfg.Mount, name) }

// pos is the position of a database, "" while there is none.
func (n *childNode) pos(name string) string {
	n.t.Helper()
	b, err := os.ReadFile(n.path(name + "-pos"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// await waits until ok is true.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited %s until %s", patience, what)
		case <-tick.C:
		}
	}
}

// bank is a database of accounts between which money is transferred, and a log
// of the transfers: in each committed state the accounts sum up to 0 and the
// log has as many rows as the counter says.
type bank struct {
	name    string
	primary *childNode
	replica *childNode
	w       *sqlitetest.Conn
}

const (
	bankSchema = `CREATE TABLE acct(id INTEGER PRIMARY KEY, v INTEGER, pad);
		INSERT INTO acct WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<60) SELECT i, 0, zeroblob(200) FROM n;
		CREATE TABLE log(id INTEGER PRIMARY KEY, pad); CREATE TABLE counter(n); INSERT INTO counter VALUES (0);`
	bankLook = "SELECT (SELECT sum(v) FROM acct), (SELECT count(*) FROM log) - (SELECT n FROM counter), (SELECT n FROM counter)"
)

var bankTransfer = []sqlapp.Step{
	{SQL: "BEGIN IMMEDIATE"},
	{SQL: "UPDATE acct SET v = v + 5 WHERE id = 1 + (SELECT n FROM counter) * 7 % 60"},
	{SQL: "UPDATE acct SET v = v - 5 WHERE id = 1 + (SELECT n FROM counter) * 11 % 60"},
	{SQL: "INSERT INTO log(pad) SELECT randomblob(n % 900) FROM counter"},
	{SQL: "UPDATE counter SET n = n + 1"},
	{SQL: "COMMIT"},
}

func newBank(t *testing.T, app *sqlitetest.App, primary, replica *childNode, mode string) *bank {
	t.Helper()
	b := &bank{name: mode + ".db", primary: primary, replica: replica}
	b.w = app.Open(primary.path(b.name), "page_size=1024", "synchronous=off", "journal_mode="+mode)
	b.w.MustExec(bankSchema)
	b.awaitReplica(t)
	return b
}

func (b *bank) transfer(t *testing.T, rounds int) {
	t.Helper()
	if _, err := b.w.Repeat(bankTransfer, rounds, 0); err != nil {
		t.Fatal(err)
	}
}

// rebuild makes the database anew: with another page size where SQLite can.
func (b *bank) rebuild(pageSize int) {
	b.w.MustExec(fmt.Sprintf("PRAGMA page_size=%d; VACUUM", pageSize))
}

// awaitReplica waits until the replica is where the primary is. A checkpoint
// waits for what is not in the primary's log yet.
func (b *bank) awaitReplica(t *testing.T) {
	t.Helper()
	b.w.MustQuery("PRAGMA wal_checkpoint(PASSIVE)")
	want := b.primary.pos(b.name)
	await(t, b.name+" is at "+want+" on the replica", func() bool { return want != "" && b.replica.pos(b.name) == want })
}

// same compares what the two nodes show.
func (b *bank) same(t *testing.T) {
	t.Helper()
	b.awaitReplica(t)
	// The page size last: before its first read a connection takes it from the
	// file, which may be behind the WAL.
	// The time-out: a replica that has just started takes its locks, and recovers
	// a write-ahead log, as SQLite would.
	const look = ".timeout 60000\nSELECT * FROM acct; SELECT id, hex(pad) FROM log; SELECT * FROM counter; PRAGMA page_count; PRAGMA page_size;"
	if got, want := sqlitetest.CLI(t, b.replica.path(b.name), look), sqlitetest.CLI(t, b.primary.path(b.name), look); got != want {
		t.Fatalf("%s: the replica shows %d bytes, the primary %d, and they differ", b.name, len(got), len(want))
	}
	if got := sqlitetest.CLI(t, b.replica.path(b.name), ".timeout 60000\nPRAGMA integrity_check;"); strings.TrimSpace(got) != "ok" {
		t.Fatalf("%s: integrity_check: %s", b.name, got)
	}
}

// read looks at the database until done is closed; prepare and finish go around
// each look.
func (b *bank) read(c *sqlitetest.Conn, around [2]string, done <-chan struct{}) (reads int, err error) {
	last := int64(0)
	for ; ; reads++ {
		select {
		case <-done:
			return reads, nil
		default:
		}
		var states []string
		for i, sql := range []string{around[0], bankLook, bankLook, around[1]} {
			rows, err := c.Query(sql)
			if err != nil {
				return reads, fmt.Errorf("read %d: %s: %w", reads, sql, err)
			}
			if i != 1 && i != 2 {
				continue
			}
			sum, missing, n := rows[0][0].(int64), rows[0][1].(int64), rows[0][2].(int64)
			if sum != 0 || missing != 0 || n < last {
				return reads, fmt.Errorf("read %d: accounts sum up to %d, %d log rows too many, counter %d after %d", reads, sum, missing, n, last)
			}
			last = n
			states = append(states, fmt.Sprint(rows))
		}
		if around[0] == "BEGIN" && states[0] != states[1] {
			return reads, fmt.Errorf("read %d: snapshot turned from %s into %s", reads, states[0], states[1])
		}
	}
}

// Readers on a replica's mount, each a process of its own and without a busy
// time-out, while the primary's transactions are applied under them, among them
// rebuilds with another page size. None is ever refused or sees a torn state.
// Then the replica is killed in the middle of applying, again and again: each
// time it goes on where it was, whatever of the last transaction was in its
// files.
func TestPeerOnAMount(t *testing.T) {
	for name, passthrough := range map[string]bool{"passthrough": true, "cached": false} {
		t.Run(name, func(t *testing.T) {
			primary := startChild(t, passthrough, "")
			replica := startChild(t, passthrough, "http://"+primary.cfg.Addr)
			app := sqlitetest.Start(t)
			banks := []*bank{newBank(t, app, primary, replica, "delete"), newBank(t, app, primary, replica, "wal")}
			t.Run("readers", func(t *testing.T) { readersOnAMount(t, banks) })
			for round := range 3 {
				for _, b := range banks {
					b.transfer(t, 10)
					b.rebuild(512 << (round % 3))
					b.transfer(t, 10+round)
				}
				replica.restart()
				for _, b := range banks {
					b.same(t)
				}
			}
		})
	}
}

func readersOnAMount(t *testing.T, banks []*bank) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	for _, b := range banks {
		for name, around := range map[string][2]string{
			"holds a snapshot": {"BEGIN", "COMMIT"},
			"checkpoints":      {"PRAGMA wal_checkpoint(PASSIVE)", "PRAGMA wal_checkpoint(TRUNCATE)"},
		} {
			if b.name == "delete.db" && name == "checkpoints" {
				// SQLite refuses a checkpoint of a connection that has not seen yet
				// that the page size is another one.
				around = [2]string{"SELECT count(*) FROM log", "SELECT 1"}
			}
			c := sqlitetest.Open(t, b.replica.path(b.name))
			wg.Go(func() {
				reads, err := b.read(c, around, done)
				if err != nil || reads == 0 {
					t.Errorf("%s: reader that %s: %d reads: %v", b.name, name, reads, err)
				}
				c.Close()
			})
		}
	}
	for i := range 6 {
		for _, b := range banks {
			b.transfer(t, 40)
			b.rebuild(1024 << (i % 4))
		}
	}
	for _, b := range banks {
		b.awaitReplica(t)
	}
	close(done)
	wg.Wait()
	for _, b := range banks {
		b.same(t)
	}
}
