package litefs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// twoDatabases is a data directory with a.db and b.db, one row each.
func twoDatabases(t *testing.T) string {
	t.Helper()
	n := openNode(t, filepath.Join(t.TempDir(), "data"))
	for _, name := range []string{"a.db", "b.db"} {
		c := sqlitetest.Open(t, n.path(name), "journal_mode=delete")
		c.MustExec(createT)
		n.adopt(name)
		n.rows(name, c, 1)
	}
	return n.crash()
}

func aside(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "aside", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestRecoverFileRemoved(t *testing.T) {
	dir := twoDatabases(t)
	removeFile(t, inFiles(dir, "a.db"))
	n := openNode(t, dir)
	if n.store.DBByName("a.db") != nil {
		t.Error("a database without its file is still there")
	}
	n.db("b.db")
	if got := aside(t, dir); len(got) != 1 {
		t.Errorf("set aside: %v, want one record", got)
	}
	if got := mustGlob(t, dir, "aside/*/ltx/*.ltx"); len(got) != 2 {
		t.Errorf("its log has %d entries, want 2", len(got))
	}
}

// TestRecoverFileWithoutRecord: it becomes a database when it is next written.
func TestRecoverFileWithoutRecord(t *testing.T) {
	r := newReader(t)
	dir := twoDatabases(t)
	if err := os.RemoveAll(recordsOf(t, dir, "a.db")); err != nil {
		t.Fatal(err)
	}
	n := openNode(t, dir)
	if n.store.DBByName("a.db") != nil {
		t.Error("a file without a record is a database at once")
	}
	n.store.Opened("a.db", false, true)
	n.store.Released("a.db", true, true)
	n.mustAgree(r, "a.db")
	n.mustGoOn(r, "a.db")
}

func TestRecoverTwoRecordsOfOneName(t *testing.T) {
	r := newReader(t)
	dir := twoDatabases(t)
	rec := recordsOf(t, dir, "b.db")
	edit(t, filepath.Join(rec, "name"), func([]byte) []byte { return []byte("a.db") })
	n := openNode(t, dir)
	if got := aside(t, dir); len(got) != 1 {
		t.Errorf("set aside: %v, want one record", got)
	}
	// Which one stays is not known; what it says is what the file is.
	n.mustAgree(r, "a.db")
	n.mustGoOn(r, "a.db")
}

func TestRecoverUnfinishedRecord(t *testing.T) {
	dir := twoDatabases(t)
	if err := os.Mkdir(filepath.Join(dir, "dbs", FormatDBID(7)), 0o700); err != nil {
		t.Fatal(err)
	}
	n := openNode(t, dir)
	if got := len(n.store.DBs()); got != 2 {
		t.Errorf("%d databases, want 2", got)
	}
}

// TestRecoverUnreadable: one database that cannot be recovered does not keep
// the others from opening, and nobody reads or writes it meanwhile.
func TestRecoverUnreadable(t *testing.T) {
	dir := twoDatabases(t)
	entries := mustGlob(t, recordsOf(t, dir, "a.db"), "ltx/*.ltx")
	removeFile(t, entries[len(entries)-1])
	n, err := tryOpenNode(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.store.Failed()["a.db"]; !errors.Is(err, ltxlog.ErrBroken) {
		t.Errorf("a.db: %v, want a broken log", err)
	}
	for _, path := range []string{"a.db", "a.db-wal", "a.db-journal", "a.db-shm"} {
		if _, err := n.store.Opening(false, path, false, true); !errors.Is(err, syscall.EIO) {
			t.Errorf("open of %s: %v, want EIO", path, err)
		}
	}
	if _, err := n.store.Opening(false, "b.db", false, true); err != nil {
		t.Errorf("open of b.db: %v", err)
	}
	n.db("b.db")
}

// TestRecoverFails: an error of the disk in a recovery changes nothing, and the
// next start knows that the recovery was not finished.
func TestRecoverFails(t *testing.T) {
	s := makeReplicaStages(t)
	r := newReader(t)
	dir := mix(t, s.later, s.early, files, checksums)
	wal := inFiles(dir, "app.db-wal")
	if err := os.Rename(wal, wal+".kept"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(wal, 0o700); err != nil {
		t.Fatal(err)
	}
	n, err := tryOpenNode(t, dir, asReplica)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.store.Failed()["app.db"]; err == nil || !strings.Contains(err.Error(), "write-ahead log") {
		t.Fatalf("failed: %v, want an error of the write-ahead log", err)
	}
	n.close()
	if err := errors.Join(os.Remove(wal), os.Rename(wal+".kept", wal)); err != nil {
		t.Fatal(err)
	}
	n = openNode(t, dir, asReplica)
	if got := r.value(n.path("app.db"), "SELECT count(*) FROM t"); got != laterRows {
		t.Errorf("%s rows, want %s", got, laterRows)
	}
	n.mustAgree(r, "app.db")
}

// TestStartCutOff: a first start that was cut off anywhere is no reason to
// refuse the directory.
func TestStartCutOff(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"LOCK", "FORMAT.tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("li"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	openNode(t, dir).close()
	for _, name := range []string{"node-id", "cluster-id", "epoch", "role"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	openNode(t, dir).close()
}

// TestRecoverTouched: a clean stop vouches for nothing that somebody has done to
// the files since, however little of it shows.
func TestRecoverTouched(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		for _, boot := range []string{boot1, boot2} {
			t.Run(mode+", "+boot, func(t *testing.T) {
				t.Parallel()
				r := newReader(t)
				n := openNode(t, filepath.Join(t.TempDir(), "data"))
				c := r.app.Open(n.path("app.db"), "journal_mode="+mode)
				c.MustExec(createT)
				n.adopt("app.db")
				n.rows("app.db", c, 3)
				c.Close()
				n.lastClosed("app.db")
				n.close()
				c = r.app.Open(n.path("app.db"))
				c.MustExec("UPDATE t SET b = zeroblob(2500) WHERE id = 2")
				c.Close()
				n = openNode(t, n.store.Path(), onBoot(boot))
				if got := r.value(n.path("app.db"), "SELECT count(*) FROM t WHERE b = zeroblob(2500)"); got != "1" {
					t.Errorf("%s rows are changed, want 1", got)
				}
				n.mustAgree(r, "app.db")
				n.mustGoOn(r, "app.db")
			})
		}
	}
}

// TestRecoverStaysStale: a replica that needs a snapshot needs it after any
// number of stops and kills.
func TestRecoverStaysStale(t *testing.T) {
	s := makeReplicaStages(t)
	r := newReader(t)
	dir := retained(mixed(s.later, s.none, files), 6)(t)
	if err := os.WriteFile(inFiles(dir, "app.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n := openNode(t, dir, asReplica, onBoot(boot2))
	for range 2 {
		if !n.db("app.db").isStale() {
			t.Fatal("it does not ask for a snapshot")
		}
		dir := n.crash()
		n.close()
		n = openNode(t, n.store.Path(), asReplica, onBoot(boot2))
		if !n.db("app.db").isStale() {
			t.Fatal("it does not ask for a snapshot after a stop")
		}
		n = openNode(t, dir, asReplica, onBoot(boot2))
	}
	n.follow(s.primary, "app.db")
	n.mustAgree(r, "app.db")
	n = openNode(t, n.crash(), asReplica, onBoot(boot2))
	if n.db("app.db").isStale() {
		t.Error("it asks for a snapshot again")
	}
	n.mustAgree(r, "app.db")
}

// TestRecoverOtherHistory: a snapshot of another history that was imported and
// not applied, with the transaction ids of the old one.
func TestRecoverOtherHistory(t *testing.T) {
	s := makeReplicaStages(t)
	r := newReader(t)
	// A primary that diverged after the early stage, at the same id as later.
	p := openNode(t, mix(t, s.early, s.early))
	c := sqlitetest.Open(t, p.path("app.db"))
	for p.db("app.db").TXID() < laterTXID {
		c.MustExec("INSERT INTO t(b) VALUES ('of the other history')")
		p.capture("app.db")
	}
	n := openNode(t, mix(t, s.later, s.later), asReplica)
	db := n.db("app.db")
	rd, err := p.db("app.db").SnapshotLTX(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.txlog.Import(rd, rd.Size, true); err != nil {
		t.Fatal(err)
	}
	if err := rd.Close(); err != nil {
		t.Error(err)
	}
	n = openNode(t, n.crash(), asReplica)
	if got, want := n.db("app.db").Pos(), p.db("app.db").Pos(); got != want {
		t.Errorf("position %s, want %s", got, want)
	}
	n.mustAgree(r, "app.db")
}
