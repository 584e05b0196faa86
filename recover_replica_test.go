package litefs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// replicaStages is a replica of a database that a primary goes on writing.
type replicaStages struct {
	primary *node
	conn    *sqlitetest.Conn // of the application on the primary
	none    string           // the record is made, nothing applied
	early   string
	later   string
}

func makeReplicaStages(t *testing.T) replicaStages {
	t.Helper()
	p := openNode(t, filepath.Join(t.TempDir(), "primary"))
	c := sqlitetest.Open(t, p.path("app.db"), "journal_mode=wal", "wal_autocheckpoint=0")
	c.MustExec(createT)
	db := p.adopt("app.db")
	n := openNode(t, filepath.Join(t.TempDir(), "replica"), asReplica)
	if _, err := n.store.ForceCreateDB(db.ID(), "app.db"); err != nil {
		t.Fatal(err)
	}
	s := replicaStages{primary: p, conn: c, none: n.crash()}
	p.rows("app.db", c, 5)
	n.follow(p, "app.db")
	s.early = n.crash()
	p.rows("app.db", c, 7)
	n.follow(p, "app.db")
	s.later = n.crash()
	p.rows("app.db", c, 3) // nobody has these yet
	return s
}

func TestRecoverReplica(t *testing.T) {
	s := makeReplicaStages(t)
	r := newReader(t)
	shmGone := func(dir func(*testing.T) string) func(*testing.T) string {
		return then(dir, func(t *testing.T, dir string) { _ = os.Remove(inFiles(dir, "app.db-shm")) })
	}
	for _, c := range []struct {
		name  string
		dir   func(*testing.T) string
		boot  string
		rows  string // "" when a snapshot is needed first
		txid  uint64
		reads bool // every page was looked at
	}{
		{"killed", same(s.later), boot1, laterRows, laterTXID, false},
		{"entry imported, not applied", mixed(s.later, s.early, files, checksums), boot1, laterRows, laterTXID, true},
		{"frames written, header not published", shmGone(mixed(s.later, s.early, checksums)), boot1, laterRows, laterTXID, true},
		{"published, checksums not set", mixed(s.later, s.early, checksums), boot1, laterRows, laterTXID, true},
		{"power cut, nothing lost", same(s.later), boot2, laterRows, laterTXID, true},
		{"power cut, frames lost", mixed(s.later, s.early, files), boot2, laterRows, laterTXID, true},
		{"power cut, some frames lost", walCut(s.later, 3), boot2, laterRows, laterTXID, true},
		{"power cut, write-ahead log lost", walGone(s.later), boot2, laterRows, laterTXID, true},
		{"power cut, checksums lost", withoutChecksums(s.later), boot2, laterRows, laterTXID, true},
		{"power cut, end of the log lost", mixed(s.later, s.early, ltxDir), boot2, earlyRows, earlyTXID, true},
		{"power cut, end of the log lost, old checksums", mixed(s.later, s.early, ltxDir, checksums), boot2, earlyRows, earlyTXID, true},
		{"power cut, end of the log torn", torn(s.later), boot2, "11", laterTXID - 1, true},
		{"recovery cut off", then(mixed(s.later, s.early, files), func(t *testing.T, dir string) {
			path := filepath.Join(filepath.Dir(mustGlob(t, dir, checksums)[0]), "recovering")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}), boot1, laterRows, laterTXID, true},
		{"first transaction unfinished", then(headerless(s.later), func(t *testing.T, dir string) {
			removeFile(t, inFiles(dir, "app.db-wal"))
		}), boot2, laterRows, laterTXID, false},
		{"frames lost, log retained", retained(mixed(s.later, s.none, files), 6), boot2, "", 0, true},
		{"frames and checksums lost, log retained", retained(mixedDir(withoutChecksums(s.later), s.none, files), 6), boot2, "", 0, true},
		{"record made, nothing applied", then(same(s.none), func(t *testing.T, dir string) {
			if err := os.WriteFile(inFiles(dir, "app.db"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}), boot1, "", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := &reader{t: t, app: r.app}
			dir := c.dir(t)
			if _, err := os.Stat(inFiles(dir, "app.db")); err != nil {
				if err := os.WriteFile(inFiles(dir, "app.db"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n := openNode(t, dir, asReplica, onBoot(c.boot))
			db := n.db("app.db")
			if c.rows == "" {
				if !db.isStale() {
					t.Error("it does not ask for a snapshot")
				}
			} else {
				if got := r.value(n.path("app.db"), "SELECT count(*) FROM t"); got != c.rows {
					t.Errorf("%s rows, want %s", got, c.rows)
				}
				if got := db.TXID(); got != c.txid {
					t.Errorf("TXID %d, want %d", got, c.txid)
				}
				n.mustAgree(r, "app.db")
			}
			if looked := n.store.Stats().PageHashes.Load() > 0; looked != c.reads && c.rows != "" {
				t.Errorf("every page was looked at: %t, want %t", looked, c.reads)
			}
			n.follow(s.primary, "app.db")
			if got := r.value(n.path("app.db"), "SELECT count(*) FROM t"); got != againRows {
				t.Errorf("%s rows after it has caught up, want %s", got, againRows)
			}
			if got, want := db.Pos(), s.primary.db("app.db").Pos(); got != want {
				t.Errorf("position %s, the primary has %s", got, want)
			}
			n.mustAgree(r, "app.db")
		})
	}
}

// TestRecoverReplicaWithoutFile: a record whose database was never written is
// set aside, and the primary's next word makes a new one.
func TestRecoverReplicaWithoutFile(t *testing.T) {
	s := makeReplicaStages(t)
	r := newReader(t)
	n := openNode(t, s.none, asReplica)
	if dbs := n.store.DBs(); len(dbs) != 0 {
		t.Fatalf("%d databases, want none", len(dbs))
	}
	mustGlob(t, n.store.Path(), "aside/*")
	n.follow(s.primary, "app.db")
	n.mustAgree(r, "app.db")
}

// TestRecoverPromoted: the write-ahead log of a replica is not taken for news
// once the node is the primary, not even when a power cut has taken its end.
func TestRecoverPromoted(t *testing.T) {
	s := makeReplicaStages(t)
	r := newReader(t)
	for _, c := range []struct {
		name string
		dir  func(*testing.T) string
		boot string
		rows string
		txid uint64
	}{
		{"killed", same(s.later), boot1, laterRows, laterTXID},
		{"entry imported, not applied", mixed(s.later, s.early, files, checksums), boot1, laterRows, laterTXID},
		{"power cut", mixed(s.later, s.early, files), boot2, laterRows, laterTXID},
		{"log does not have what is missing", retained(mixed(s.later, s.early, files), 9), boot2, earlyRows, laterTXID + 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := &reader{t: t, app: r.app}
			n := openNode(t, c.dir(t), onBoot(c.boot))
			check := func(n *node) {
				t.Helper()
				if got := r.value(n.path("app.db"), "SELECT count(*) FROM t"); got != c.rows {
					t.Errorf("%s rows, want %s", got, c.rows)
				}
				if got := n.db("app.db").TXID(); got != c.txid {
					t.Errorf("TXID %d, want %d", got, c.txid)
				}
				n.mustAgree(r, "app.db")
			}
			check(n)
			check(openNode(t, n.crash(), onBoot("boot after promotion")))
			n.mustGoOn(r, "app.db")
		})
	}
}

// TestRecoverDemoted: a primary that comes back as a replica keeps what it has
// logged and takes the primary's history from where both agree, or whole.
func TestRecoverDemoted(t *testing.T) {
	s := makeReplicaStages(t)
	r := newReader(t)
	for name, local := range map[string]bool{"nothing of its own": false, "transactions of its own": true} {
		t.Run(name, func(t *testing.T) {
			r := &reader{t: t, app: r.app}
			n := openNode(t, mix(t, s.later, s.later))
			if local {
				c := sqlitetest.Open(t, n.path("app.db"))
				c.MustExec("INSERT INTO t(b) VALUES ('diverged')")
				n.capture("app.db")
				n.mustAgree(r, "app.db")
			}
			back := openNode(t, n.crash(), asReplica)
			back.mustAgree(r, "app.db")
			back.follow(s.primary, "app.db")
			back.mustAgree(r, "app.db")
			if got, want := back.db("app.db").Pos(), s.primary.db("app.db").Pos(); got != want {
				t.Errorf("position %s, the primary has %s", got, want)
			}
		})
	}
}
