package e2e

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// Keys of archives.
const (
	archiveKey      = "3b0c1e6b0b5d0f5ad5a1a1b9f6c37a45a6a39f1d3c61d3b7a3c0f4b1f3b1c2d9"
	otherArchiveKey = "00000000000000000000000000000000000000000000000000000000000000ff"
)

// encrypted makes nodes and commands use keys for the archive.
func (a *archiveAt) encrypted(keys string) *archiveAt {
	a.t.Helper()
	file := filepath.Join(a.t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(keys), 0o600); err != nil {
		a.t.Fatal(err)
	}
	a.set = append(a.set, "-set", "backup.key-file="+file)
	a.env = append(a.env, "LITEFS_BACKUP_KEY="+keys)
	return a
}

// withKeys is the place for commands that have other keys; "": none.
func (a *archiveAt) withKeys(keys string) *archiveAt {
	b := *a
	b.env = nil
	for _, s := range a.env {
		if !strings.HasPrefix(s, "LITEFS_BACKUP_KEY=") {
			b.env = append(b.env, s)
		}
	}
	if keys != "" {
		b.env = append(b.env, "LITEFS_BACKUP_KEY="+keys)
	}
	return &b
}

// TestArchiveEncrypted: of an encrypted archive nothing of the databases can be read without the key, in a
// directory and in a bucket; with it every moment is restored, and a node that takes over goes on with the same
// history. Keys are rotated while nodes run. When a database's key is destroyed, nothing of it is restored, the
// other database is, and what is written from then on is a new history.
func TestArchiveEncrypted(t *testing.T) {
	t.Parallel()
	for name, place := range map[string]func(*testing.T) *archiveAt{"directory": archiveDir, "bucket": archiveBucket} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			archiveEncrypted(t, place(t))
		})
	}
}

const secretText = "a text that stands in the database alone"

func archiveEncrypted(t *testing.T, place *archiveAt) {
	place.encrypted(archiveKey)
	c := newCluster(t, proofTTL)
	a, b := newNode(t, c.lease), newNode(t, c.lease)
	start := func(n *node) {
		n.args = append(place.set, "-set", "backup.interval=20ms", "-set", "backup.max-requests=10000", "-set", "backup.snapshot-interval=1s")
		n.start()
	}
	start(a)
	becomesPrimary(a)
	start(b)
	var marks []mark
	write := func(n *node, database, sql string) {
		t.Helper()
		app := sqlitetest.Start(t)
		defer app.Exit()
		conn := openPatient(app, n.path(database), "journal_mode=WAL")
		conn.MustExec(sql)
		settle(conn)
		m := place.archived(n, database)
		if database == "app.db" {
			marks = append(marks, m)
		}
	}
	write(a, "app.db", "CREATE TABLE t(v)")
	write(a, "app.db", "INSERT INTO t WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM s WHERE x < 200) SELECT '"+secretText+"' || randomblob(600) FROM s")
	write(a, "other.db", "CREATE TABLE t(v)")
	samePosition(a, b, "app.db")
	a.killAll()
	becomesPrimary(b)
	write(b, "app.db", "INSERT INTO t VALUES ('"+secretText+"')")
	restoredAll := func(p *archiveAt) {
		t.Helper()
		for _, m := range marks {
			txid, _, _ := strings.Cut(m.pos, "/")
			p.restored(m, "app.db", "-txid", txid)
		}
	}
	restoredAll(place)
	if all, err := place.histories("app.db"); err != nil || len(all) != 1 {
		t.Errorf("histories: %+v, %v", all, err)
	}

	// Whoever has no key reads nothing, and is told why.
	for keys, want := range map[string]string{"": "the archive is encrypted: give its key", otherArchiveKey: "its key is not among those that were given"} {
		file := filepath.Join(t.TempDir(), "restored.db")
		out, err := place.withKeys(keys).run(binary(t), append(append([]string{"restore", "-name", "app.db"}, place.from...), file)...)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("restore with key %.4q: %v: %s", keys, err, out)
		}
	}
	if dir := place.from[1]; filepath.IsAbs(dir) {
		noPlainText(t, dir)
	}

	// The operator's key is another one from now on.
	both := place.withKeys(otherArchiveKey + "\n" + archiveKey)
	if out, err := both.run(binary(t), append([]string{"keys", "-rotate"}, place.from...)...); err != nil || strings.Count(out, ", now") != 2 {
		t.Fatalf("keys -rotate: %v: %s", err, out)
	}
	place.env = place.withKeys(otherArchiveKey).env
	restoredAll(place)
	write(b, "app.db", "INSERT INTO t VALUES (1)")
	restoredAll(place)
	b.stop()

	// Of one database the key is destroyed.
	if out, err := place.run(binary(t), append([]string{"keys", "-destroy", "-name", "app.db"}, place.from...)...); err != nil {
		t.Fatalf("keys -destroy: %v: %s", err, out)
	}
	file := filepath.Join(t.TempDir(), "restored.db")
	out, err := place.run(binary(t), append(append([]string{"restore", "-name", "app.db"}, place.from...), file)...)
	if err == nil || !strings.Contains(out, "destroyed") {
		t.Errorf("restore without the database's key: %v: %s", err, out)
	}
	if err := os.WriteFile(strings.TrimPrefix(place.set[len(place.set)-1], "backup.key-file="), []byte(otherArchiveKey), 0o600); err != nil {
		t.Fatal(err)
	}
	start(b)
	becomesPrimary(b)
	write(b, "other.db", "INSERT INTO t VALUES (1)")
	app := sqlitetest.Start(t)
	conn := openPatient(app, b.path("app.db"))
	conn.MustExec("INSERT INTO t VALUES (2)")
	settle(conn)
	eventually(t, "app.db is archived anew", func() (bool, string) {
		out, err := place.run(binary(t), append([]string{"restore", "-dry-run", "-name", "app.db", "-history", "2"}, place.from...)...)
		return err == nil, out
	})
	app.Exit()
	b.stop()
}

// noPlainText looks for text of the database in all files of an archive.
func noPlainText(t *testing.T, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		for _, text := range []string{secretText, secretText[:12], "LTX1", "SQLite format"} {
			if bytes.Contains(b, []byte(text)) {
				t.Errorf("%s holds %q", name, text)
			}
		}
		files++
		return err
	})
	if err != nil || files < 5 {
		t.Errorf("%d files looked at: %v", files, err)
	}
}
