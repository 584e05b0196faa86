package litefs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// superStages is a transaction over two attached databases, at moments around
// its commit. The mount of that run was at mountedAt.
type superStages struct {
	base string // before
	one  string // the first member is in the log, the second is not
	both string // both are, nothing else has happened
}

const (
	mountedAt = "/srv/somewhere/mnt"
	superName = "main.db-mj0123456789"
	member2   = "sub/other.db"
)

func makeSuperStages(t *testing.T) superStages {
	t.Helper()
	n := openNode(t, filepath.Join(t.TempDir(), "data"))
	if err := os.Mkdir(n.path("sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := sqlitetest.Open(t, n.path("main.db"), "journal_mode=delete")
	c.MustExec(createT)
	c.MustExec("INSERT INTO t(b) VALUES ('before')")
	c.MustExec("ATTACH '" + n.path(member2) + "' AS other")
	c.MustExec("CREATE TABLE other.t(id INTEGER PRIMARY KEY, b BLOB)")
	c.MustExec("INSERT INTO other.t(b) VALUES ('before')")
	n.adopt("main.db")
	n.adopt(member2)
	var s superStages
	s.base = n.crash()
	before := map[string][]byte{}
	for _, name := range []string{"main.db", member2} {
		b, err := os.ReadFile(n.path(name))
		if err != nil {
			t.Fatal(err)
		}
		before[name] = b
	}
	c.MustExec("BEGIN")
	c.MustExec("UPDATE t SET b = 'after'")
	c.MustExec("UPDATE other.t SET b = 'after'")
	c.MustExec("COMMIT")
	// SQLite has removed the journals by now: put them back.
	super := filepath.Join(mountedAt, superName)
	for name, b := range before {
		if err := os.WriteFile(n.path(name)+"-journal", journalOf(t, b, super), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	members := filepath.Join(mountedAt, "main.db-journal") + "\x00" + filepath.Join(mountedAt, member2+"-journal") + "\x00"
	if err := os.WriteFile(n.path(superName), []byte(members), 0o600); err != nil {
		t.Fatal(err)
	}
	n.capture("main.db")
	s.one = n.crash()
	n.capture(member2)
	s.both = n.crash()
	for name := range before {
		removeFile(t, n.path(name)+"-journal")
	}
	return s
}

// recordsOf returns the parts of the record of one database in a copy.
func recordsOf(t *testing.T, dir, name string) string {
	t.Helper()
	for _, path := range mustGlob(t, dir, "dbs/*/name") {
		b, err := os.ReadFile(path)
		if err == nil && string(b) == name {
			return filepath.Dir(path)
		}
	}
	t.Fatalf("no record of %s in %s", name, dir)
	return ""
}

func TestRecoverSuperJournal(t *testing.T) {
	s := makeSuperStages(t)
	r := newReader(t)
	nothing := mixed(s.both, s.base, ltxDir, checksums)
	without := func(dir func(*testing.T) string, names ...string) func(*testing.T) string {
		return then(dir, func(t *testing.T, dir string) {
			for _, name := range names {
				removeFile(t, inFiles(dir, name))
			}
		})
	}
	for _, c := range []struct {
		name       string
		dir        func(*testing.T) string
		want       string
		txid1, tx2 uint64
	}{
		{"super-journal there, nothing logged", nothing, "before", 1, 1},
		{"super-journal there, one member logged", same(s.one), "before", 3, 1},
		{"super-journal there, both members logged", same(s.both), "before", 3, 3},
		{"super-journal gone", without(same(s.both), superName), "after", 2, 2},
		{"super-journal gone, one journal removed", without(same(s.both), superName, "main.db-journal"), "after", 2, 2},
		{"super-journal gone, checksums not set", mixedDir(without(same(s.both), superName), s.base, checksums), "after", 2, 2},
	} {
		for _, boot := range []string{boot1, boot2} {
			t.Run(c.name+", "+boot, func(t *testing.T) {
				t.Parallel()
				r := &reader{t: t, app: r.app}
				n := openNode(t, c.dir(t), onBoot(boot))
				for name, txid := range map[string]uint64{"main.db": c.txid1, member2: c.tx2} {
					if got := r.value(n.path(name), "SELECT b FROM t"); got != c.want {
						t.Errorf("%s has %q, want %q", name, got, c.want)
					}
					if got := n.db(name).TXID(); got != txid {
						t.Errorf("%s: TXID %d, want %d", name, got, txid)
					}
					if journalHot(n.path(name) + "-journal") {
						t.Errorf("%s: the journal is still there", name)
					}
					n.mustAgree(r, name)
				}
			})
		}
	}
}

// TestSuperMembers: the members of a super-journal are found wherever the mount
// was when the application wrote their paths.
func TestSuperMembers(t *testing.T) {
	s := makeSuperStages(t)
	n := openNode(t, filepath.Join(t.TempDir(), "data"))
	copyTree(t, filepath.Join(s.both, "files"), n.store.FilesDir())
	got, err := n.store.superMembers(superName)
	if err != nil {
		t.Fatal(err)
	}
	if want := "main.db " + member2; strings.Join(got, " ") != want {
		t.Errorf("members %v, want %s", got, want)
	}
	for _, outside := range []string{"/../" + superName, "/x/../../main.db", ""} {
		if got := n.store.inTree(outside); strings.Contains(got, "..") || outside == "" && got != "" {
			t.Errorf("path %q is taken for %q", outside, got)
		}
	}
}
