package e2e

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// memory returns the resident memory of a node, in MiB.
func memory(n *node) float64 {
	n.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.proc.PID()))
	if err != nil {
		n.t.Fatal(err)
	}
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		n.t.Fatal("no VmRSS")
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		n.t.Fatal(err)
	}
	return float64(kb) / 1024
}

// TestSoakManyDatabases runs a pair with a thousand databases, and prints what that costs: making them, a
// start, a load that touches all of them again and again, and the memory of both nodes meanwhile.
func TestSoakManyDatabases(t *testing.T) {
	if soakFor(t) == 0 {
		return
	}
	const databases = 1000
	primary := startNode(t)
	follower := startNode(t, follows(primary))
	name := func(i int) string { return fmt.Sprintf("db%04d.db", i) }
	var names []string
	say := func(what string, from time.Time) {
		t.Helper()
		t.Logf("%-40s %8s   primary %6.1f MiB, follower %6.1f MiB", what, time.Since(from).Round(time.Millisecond), memory(primary), memory(follower))
	}
	allThere := func() {
		t.Helper()
		eventually(t, "the follower is where the primary is", func() (bool, string) {
			want, err := primary.positions()
			if err != nil {
				return false, err.Error()
			}
			got, err := follower.positions()
			return err == nil && len(got) == databases && maps.Equal(got, want), fmt.Sprintf("%d and %d databases, %v", len(want), len(got), err)
		})
	}

	from := time.Now()
	app := sqlitetest.Start(t)
	for i := range databases {
		names = append(names, name(i))
		c := openPatient(app, primary.path(name(i)), "journal_mode=wal", "synchronous=normal")
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		c.Close()
	}
	say("1000 databases made", from)
	allThere()
	say("and on the follower", from)

	app.Exit()
	follower.stop()
	primary.stop()
	from = time.Now()
	primary.start()
	follower.start()
	say("both started again", from)
	allThere()
	say("and the follower has everything", from)

	app = sqlitetest.Start(t)
	rows := 0
	for round, begin := 0, time.Now(); time.Since(begin) < soakFor(t)/6; round++ {
		from = time.Now()
		for _, name := range names {
			c := openPatient(app, primary.path(name), "synchronous=normal")
			done, err := c.Repeat([]sqlapp.Step{insert(1000)}, 10, 0)
			if err != nil {
				t.Fatal(err)
			}
			rows += done.Rounds
			c.Close()
		}
		took := time.Since(from)
		allThere()
		say(fmt.Sprintf("round %d: 10 transactions each, %.0f/s", round, 10*databases/took.Seconds()), from)
	}
	app.Exit()
	from = time.Now()
	time.Sleep(10 * time.Second)
	say("after ten idle seconds", from)
	t.Logf("%d transactions on %d processors", rows, runtime.NumCPU())
	sameOnAll(t, []*node{primary, follower}, names...)
}
