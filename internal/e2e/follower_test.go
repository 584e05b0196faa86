package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// image returns the bytes of a database of a node that is down, with its write-ahead log checkpointed:
// on a copy, for the files are evidence.
func (n *node) image(name string) []byte {
	n.t.Helper()
	dir := n.t.TempDir()
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(filepath.Join(n.cfg.Data, "files", name+suffix))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			n.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "copy.db"+suffix), b, 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "copy.db")
	sqlitetest.CLI(n.t, path, "PRAGMA wal_checkpoint(TRUNCATE);")
	b, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	return b
}

// sameEverywhere stops both nodes and proves that they hold the same databases, byte for byte.
func sameEverywhere(t *testing.T, primary, follower *node, names ...string) {
	t.Helper()
	sameOnAll(t, []*node{primary, follower}, names...)
}

// sameOnAll stops the nodes, of which the first is the primary, and proves that they hold the same
// databases, byte for byte, and that integrity_check finds nothing in them.
func sameOnAll(t *testing.T, nodes []*node, names ...string) {
	t.Helper()
	for i := len(nodes) - 1; i >= 0; i-- {
		nodes[i].stop()
	}
	primary := nodes[0]
	want := primary.verified()
	for _, follower := range nodes[1:] {
		got := follower.verified()
		for _, name := range names {
			p, f := want[name], got[name]
			if p == nil || f == nil {
				t.Errorf("%s: primary %+v, follower %+v", name, p, f)
				continue
			}
			if p.Max != f.Max || p.Checksum != f.Checksum {
				t.Errorf("%s: primary at %016x/%016x, follower at %016x/%016x", name, p.Max, p.Checksum, f.Max, f.Checksum)
			}
			if a, b := primary.image(name), follower.image(name); !bytes.Equal(a, b) {
				t.Errorf("%s: %d bytes on the primary and %d on the follower differ", name, len(a), len(b))
			}
		}
	}
}

func TestFollowerIsThePrimaryByteForByte(t *testing.T) {
	for _, mode := range []struct {
		name              string
		primary, follower []option
	}{
		{"passthrough", nil, nil},
		{"cached", []option{cached}, []option{cached}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			primary := startNode(t, mode.primary...)
			follower := startNode(t, append(mode.follower, follows(primary))...)
			app := sqlitetest.Start(t)
			var names []string
			for _, pageSize := range []int{512, 4096, 65536} {
				for i, sc := range scenarios {
					name := fmt.Sprintf("%d-%02d.db", pageSize, i)
					names = append(names, name)
					if !t.Run(fmt.Sprintf("%s/%d", sc.name, pageSize), func(t *testing.T) { sc.run(t, app, primary.path(name), pageSize) }) {
						t.FailNow()
					}
				}
			}
			app.Exit()
			for _, name := range names {
				caughtUp(primary, follower, name)
			}
			sameEverywhere(t, primary, follower, names...)
		})
	}
}

// A reader on the follower sees whole transactions in place, keeps its snapshot while the follower
// applies, and cannot write.
func TestFollowerServesReadersInPlace(t *testing.T) {
	primary := startNode(t)
	follower := startNode(t, follows(primary))
	w := sqlitetest.Open(t, primary.path("app.db"), "journal_mode=wal", "synchronous=normal")
	w.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	settle(w)
	caughtUp(primary, follower, "app.db")

	app := sqlitetest.Start(t)
	holder, r := app.Open(follower.path("app.db")), app.Open(follower.path("app.db"))
	holder.MustExec("BEGIN")
	if n := holder.MustInt("SELECT count(*) FROM t"); n != 0 {
		t.Errorf("%d rows before the first", n)
	}
	done := make(chan error, 1)
	go func() {
		_, err := w.Repeat([]sqlapp.Step{{SQL: "BEGIN"}, {SQL: insert(300).SQL, Times: 2}, {SQL: "COMMIT"}}, 500, 0)
		done <- err
	}()
	for last, end := int64(0), false; !end; {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			end = true
		default:
		}
		n := r.MustInt("SELECT count(*) FROM t")
		if n%2 != 0 || n < last {
			t.Errorf("a reader saw %d rows after %d", n, last)
		}
		last = n
		if n := holder.MustInt("SELECT count(*) FROM t"); n != 0 {
			t.Errorf("the snapshot changed to %d rows", n)
		}
	}
	eventually(t, "all rows are readable on the follower", func() (bool, string) {
		n := r.MustInt("SELECT count(*) FROM t")
		return n == 1000, fmt.Sprintf("%d of 1000", n)
	})
	holder.MustExec("COMMIT")
	if _, err := r.Exec("INSERT INTO t(v) VALUES (1)"); !sqlapp.IsCode(err, sqlapp.CodeBusy, sqlapp.CodeReadOnly) {
		t.Errorf("a write on the follower: %v, want busy or read-only", err)
	}
	for _, mode := range []string{"delete", "truncate"} {
		if got, err := r.Query("PRAGMA journal_mode=" + mode); err == nil && got[0][0] != "wal" {
			t.Errorf("journal_mode=%s on the follower gave %v", mode, got)
		}
	}
	app.Exit()
	settle(w)
	w.Close()
	caughtUp(primary, follower, "app.db")
	sameEverywhere(t, primary, follower, "app.db")
}

// Whichever node goes away, the follower is complete again after both are back.
func TestFollowerCatchesUpAfterRestarts(t *testing.T) {
	primary := startNode(t)
	follower := startNode(t, follows(primary))
	write := func() {
		t.Helper()
		c := sqlitetest.Open(t, primary.path("app.db"), "journal_mode=wal", "synchronous=full")
		c.MustExec("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v BLOB)")
		if _, err := c.Repeat([]sqlapp.Step{insert(3000)}, 30, 0); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	write()
	caughtUp(primary, follower, "app.db")

	follower.stop()
	write()
	follower.start()
	caughtUp(primary, follower, "app.db")

	follower.kill()
	write()
	follower.start()
	caughtUp(primary, follower, "app.db")

	primary.stop()
	if n := strings.TrimSpace(sqlitetest.CLI(t, follower.path("app.db"), "SELECT count(*) FROM t;")); n != "90" {
		t.Errorf("%s rows on the follower without its primary, want 90", n)
	}
	primary.start()
	write()
	caughtUp(primary, follower, "app.db")

	primary.kill()
	primary.start()
	write()
	caughtUp(primary, follower, "app.db")
	sameEverywhere(t, primary, follower, "app.db")
}

// A follower that comes when the log no longer has what it needs begins with a snapshot.
func TestFollowerThatComesLateBeginsWithASnapshot(t *testing.T) {
	primary := startNode(t, func(c *childnode.Config) {
		c.DataKeys = []string{"retention: 1ms", "retention-monitor-interval: 20ms"}
	})
	c := sqlitetest.Open(t, primary.path("app.db"), "journal_mode=wal", "synchronous=normal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	if _, err := c.Repeat([]sqlapp.Step{insert(3000)}, 50, 0); err != nil {
		t.Fatal(err)
	}
	settle(c)
	time.Sleep(200 * time.Millisecond) // several rounds of retention; what it left is not asserted
	follower := startNode(t, follows(primary))
	if _, err := c.Repeat([]sqlapp.Step{insert(3000)}, 50, 0); err != nil {
		t.Fatal(err)
	}
	settle(c)
	c.Close()
	caughtUp(primary, follower, "app.db")
	sameEverywhere(t, primary, follower, "app.db")
}

// A database that the application removes goes from the follower, and one that comes again under its
// name is a new one.
func TestFollowerDropsAndRecreates(t *testing.T) {
	primary := startNode(t)
	follower := startNode(t, follows(primary))
	for round := range 2 {
		c := sqlitetest.Open(t, primary.path("app.db"), "journal_mode=wal")
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		fill(c, 10*(round+1), 500)
		c.Close()
		want := fmt.Sprint(10 * (round + 1))
		eventually(t, "the rows are on the follower", func() (bool, string) {
			out, err := sqlitetest.TryCLI(follower.path("app.db"), "SELECT count(*) FROM t;")
			return err == nil && strings.TrimSpace(out) == want, fmt.Sprintf("%q, %v", out, err)
		})
		if round == 1 {
			break
		}
		if err := os.Remove(primary.path("app.db")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the database is gone on the follower", func() (bool, string) {
			_, err := os.Stat(follower.path("app.db"))
			return os.IsNotExist(err), fmt.Sprint(err)
		})
	}
	sameEverywhere(t, primary, follower, "app.db")
}

// The position is a file beside the database on every node.
func TestPositionIsAFile(t *testing.T) {
	primary := startNode(t)
	follower := startNode(t, follows(primary))
	c := sqlitetest.Open(t, primary.path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	settle(c)
	c.Close()
	caughtUp(primary, follower, "app.db")
	for _, n := range []*node{primary, follower} {
		want, err := n.pos("app.db")
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(n.path("app.db-pos"))
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			t.Errorf("app.db-pos says %q (%v), want %q", got, err, want)
		}
	}
}
