package litefs

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/litefs/litefs/fuse"
	"github.com/litefs/litefs/internal/sqlitetest"
)

func TestParseLevel(t *testing.T) {
	for text, want := range map[string]string{
		"async": "async", "quorum:1": "quorum:1,durable,5s", "quorum:2,memory,10s": "quorum:2,memory,10s", "quorum:1,250ms": "quorum:1,durable,250ms",
		"max-lag:2s": "max-lag:2s", "archive": "archive:15s", "archive:1m": "archive:1m0s",
	} {
		l, err := ParseLevel(text)
		if err != nil || l.String() != want {
			t.Errorf("%s: %v, %v", text, l, err)
		}
		if again, err := ParseLevel(l.String()); err != nil || again != l {
			t.Errorf("%s is read as %v, %v", l, again, err)
		}
	}
	for _, text := range []string{"", "sync", "async:1", "quorum", "quorum:0", "quorum:17", "quorum:x", "quorum:1,disk", "quorum:1,0s", "quorum:1,1h", "max-lag", "max-lag:", "max-lag:1ms", "max-lag:-2s", "max-lag:25h", "archive:1", "archive:0s", "archive:1h", "archive:1,2s"} {
		if l, err := ParseLevel(text); err == nil {
			t.Errorf("%q is read as %v", text, l)
		}
	}
}

// A level that is set comes before the rules, is in force once the write-ahead log was closed, survives a restart, and
// is gone when it is taken back.
func TestSetLevel(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	start := func() (*mounted, *witness) {
		n := mountNodeAs(t, dir, false, func(s *Store) fuse.Backend { return backend{s} })
		w := newWitness(t, n.store)
		return n, w
	}
	n, w := start()
	set := func(text string) {
		t.Helper()
		if err := n.store.SetLevel(t.Context(), "app.db", text); err != nil {
			t.Fatal(err)
		}
	}
	is := func(text string, set, pending bool) {
		t.Helper()
		st := n.db("app.db").Status()
		if st.Level.String() != text || st.LevelSet != set || st.LevelPending != pending {
			t.Fatalf("%v, set %v, pending %v; want %s, %v, %v", st.Level, st.LevelSet, st.LevelPending, text, set, pending)
		}
	}
	if err := n.store.SetLevel(t.Context(), "none.db", "async"); err == nil {
		t.Fatal("a database that is not there has got a level")
	}
	c := sqlitetest.Open(t, n.app("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	is("async", false, false)
	if err := n.store.SetLevel(t.Context(), "app.db", "archive"); !errors.Is(err, ErrNoArchive) {
		t.Fatalf("level archive without an archive: %v", err)
	}

	set("quorum:1,durable,500ms")
	is("quorum:1,durable,500ms", true, true)
	w.silent.Store(true)
	c.MustExec("INSERT INTO t(v) VALUES ('while it is pending')")
	c.Close()
	is("quorum:1,durable,500ms", true, false)
	c = sqlitetest.Open(t, n.app("app.db"))
	if _, err := c.Exec("INSERT INTO t(v) VALUES ('refused')"); err == nil {
		t.Fatal("a commit that nobody has was acknowledged")
	}
	w.silent.Store(false)
	mustCommit(t, c, "INSERT INTO t(v) VALUES ('kept')")
	c.Close()
	n.close()

	n, w = start()
	is("quorum:1,durable,500ms", true, false)
	c = sqlitetest.Open(t, n.app("app.db"))
	mustCommit(t, c, "INSERT INTO t(v) VALUES ('kept')")
	w.silent.Store(true)
	if _, err := c.Exec("INSERT INTO t(v) VALUES ('refused')"); err == nil {
		t.Fatal("a commit that nobody has was acknowledged after the restart")
	}
	set("rule")
	is("async", false, false)
	c.MustExec("INSERT INTO t(v) VALUES ('at async')")

	// Bounded lag, at once.
	set("max-lag:100ms")
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err := c.Exec("INSERT INTO t(v) VALUES ('at max-lag')"); isBusy(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("writers are never held back")
		}
	}
	set("async")
	c.MustQuery("PRAGMA busy_timeout=60000")
	c.MustExec("INSERT INTO t(v) VALUES ('at async')")
	if got := c.MustText("SELECT count(*) FROM t WHERE v = 'refused'"); got != "0" {
		t.Errorf("%s refused commits are there", got)
	}
	c.Close()
	n.mustAgree(newReader(t), "app.db")
	n.close()
	n, _ = start()
	is("async", true, false)
}
