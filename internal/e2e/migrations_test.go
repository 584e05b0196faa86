package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestMigrations: the frameworks' own migrations run on a replica, under the primary's write lock: the first ones of a
// database that is empty, and one more of a database in use. Each is on the primary when it ends, all nodes are equal. Those
// that want the database for themselves fail, and nothing has changed.
func TestMigrations(t *testing.T) {
	list, names := frameworksToRun(t)
	if os.Getenv(frameworksVariable) == "" {
		names = names[:1] // the others differ in how they migrate, not in how they write
	}
	primary := startNode(t)
	replica, other := startNode(t, follows(primary)), startNode(t, follows(primary))
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			f, ok := list[name]
			if !ok {
				t.Fatalf("no framework is called %q", name)
			}
			empty, used := name+"-empty.db", name+"-used.db"
			f.must(t, primary.path(used), "migrate")
			f.must(t, primary.path(used), "work", "first", "20")
			mode := sqlitetest.CLI(t, primary.path(used), "PRAGMA journal_mode")
			// A database that is made on the primary, for a replica makes none, and in the mode that the framework wants.
			sqlitetest.CLI(t, primary.path(empty), "PRAGMA journal_mode="+strings.TrimSpace(mode)+"; PRAGMA application_id=1")
			for _, db := range []string{empty, used} {
				caughtUp(primary, replica, db)
			}
			underLock := func(db, command string) ([]byte, error) {
				cmd := f.command(replica.path(db), command)
				held := replica.withLock(db, cmd.Args...)
				held.Env = append(held.Environ(), cmd.Env...)
				return held.CombinedOutput()
			}
			if f.alone {
				before, err := primary.pos(empty)
				if err != nil {
					t.Fatal(err)
				}
				out, err := underLock(empty, "migrate")
				after, perr := primary.pos(empty)
				if err == nil || perr != nil || after != before {
					t.Errorf("migrate on the replica: %v, the primary was at %s and is at %s (%v)\n%s", err, before, after, perr, out)
				}
				return
			}
			migrate := func(db, command string) {
				t.Helper()
				if out, err := underLock(db, command); err != nil {
					t.Fatalf("%s of %s on the replica: %v\n%s", command, db, err, out)
				}
			}
			migrate(empty, "migrate")
			migrate(empty, "migrate2")
			migrate(used, "migrate2")
			f.must(t, primary.path(used), "work", "zlast", "20")
			f.must(t, primary.path(empty), "work", "only", "5")
			for db, want := range map[string]string{empty: "only 5", used: "first 20\nzlast 20"} {
				schema := sqlitetest.CLI(t, primary.path(db), ".schema")
				caughtUp(primary, replica, db)
				caughtUp(primary, other, db)
				for _, n := range []*node{primary, replica, other} {
					if got := sqlitetest.CLI(t, n.path(db), ".schema"); got != schema {
						t.Errorf("%s: another schema:\n%s\nwant\n%s", n.path(db), got, schema)
					}
					if got := f.must(t, n.path(db), "check"); got != want {
						t.Errorf("%s has\n%s\nwant\n%s", n.path(db), got, want)
					}
					sqlitetest.CheckIntegrity(t, n.path(db))
				}
			}
		})
	}
}
