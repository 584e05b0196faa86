package litefs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/sqlitefile"
)

// walStages is a database in WAL mode at moments of its life. Each is a copy of
// the data directory with everything captured.
type walStages struct {
	early string // a few transactions
	later string // some more, in the same write-ahead log
	ckpt  string // all of it in the file, the write-ahead log not restarted
	again string // the write-ahead log restarted, some transactions in it
}

// Rows in table t and position at each stage.
const (
	earlyRows, earlyTXID = "5", 7
	laterRows, laterTXID = "12", 14
	againRows, againTXID = "15", 17
)

func makeWALStages(t *testing.T) walStages {
	t.Helper()
	n := openNode(t, filepath.Join(t.TempDir(), "data"))
	c := sqlitetest.Open(t, n.path("app.db"), "journal_mode=wal", "wal_autocheckpoint=0")
	c.MustExec(createT)
	n.adopt("app.db")
	// The entry of the adoption covers the file, the next one the table. After
	// that there is one entry for each row.
	n.capture("app.db")
	var s walStages
	n.rows("app.db", c, 5)
	s.early = n.crash()
	n.rows("app.db", c, 7)
	s.later = n.crash()
	n.checkpoint("app.db", c, "PASSIVE")
	s.ckpt = n.crash()
	n.rows("app.db", c, 3)
	s.again = n.crash()
	return s
}

// recoverCase is one row of the crash table: a data directory, the boot it is
// opened in, and what must be in the database afterwards.
type recoverCase struct {
	name string
	dir  func(t *testing.T) string
	boot string
	rows string
	txid uint64
	gaps uint64
}

// run recovers; query is what rows answers.
func (c recoverCase) run(t *testing.T, r *reader, query string) {
	t.Run(c.name, func(t *testing.T) {
		t.Parallel()
		r := &reader{t: t, app: r.app}
		dir := c.dir(t)
		n := openNode(t, dir, onBoot(c.boot))
		if got := r.value(n.path("app.db"), query); got != c.rows {
			t.Errorf("%s rows, want %s", got, c.rows)
		}
		if got := n.db("app.db").TXID(); got != c.txid {
			t.Errorf("TXID %d, want %d", got, c.txid)
		}
		if got := n.store.Stats().NetGaps.Load(); got != c.gaps {
			t.Errorf("%d gaps, want %d", got, c.gaps)
		}
		if _, err := os.Stat(n.db("app.db").recoveringPath()); err == nil {
			t.Error("the mark of an unfinished recovery is left")
		}
		n.mustAgree(r, "app.db")
		n.mustGoOn(r, "app.db")
	})
}

func TestRecoverPrimaryWAL(t *testing.T) {
	s := makeWALStages(t)
	r := newReader(t)
	for _, c := range []recoverCase{
		{"everything captured, killed", same(s.later), boot1, laterRows, laterTXID, 0},
		{"frames written, not captured", mixed(s.later, s.early, ltxDir, checksums), boot1, laterRows, laterTXID, 0},
		{"frames written, not captured, power cut", mixed(s.later, s.early, ltxDir, checksums), boot2, laterRows, laterTXID, 0},
		{"restarted since head", mixed(s.again, s.ckpt, ltxDir, checksums), boot1, againRows, againTXID, 0},
		{"restarted since head, power cut", mixed(s.again, s.ckpt, ltxDir, checksums), boot2, againRows, againTXID, 0},
		{"entry appended, checksums not set", mixed(s.later, s.early, checksums), boot1, laterRows, laterTXID, 0},
		{"entry appended, checksums not set, power cut", mixed(s.later, s.early, checksums), boot2, laterRows, laterTXID, 0},
		{"entry torn", torn(s.later), boot2, laterRows, laterTXID, 0},
		{"entry torn, killed", torn(s.later), boot1, laterRows, laterTXID, 0},
		{"entry lost", lastEntryGone(s.later, s.early), boot2, laterRows, laterTXID, 0},
		{"entry on disk, its frames not", mixed(s.later, s.early, files), boot2, laterRows, laterTXID, 0},
		{"entry on disk, write-ahead log cut inside a transaction", walCut(s.later, 3), boot2, laterRows, laterTXID, 0},
		{"entry on disk, write-ahead log empty", walCut(s.later, 1<<20), boot2, laterRows, laterTXID, 0},
		{"entry on disk, write-ahead log gone", walGone(s.later), boot2, laterRows, laterTXID, 0},
		{"entry on disk, generation before", mixed(s.again, s.later, files), boot2, againRows, againTXID, 0},
		{"entry on disk, generation before, not checkpointed", mixed(s.again, s.early, files), boot2, againRows, againTXID, 0},
		{"checkpoint half done", halfCheckpointed(s.later, s.ckpt), boot1, laterRows, laterTXID, 0},
		{"checkpoint half done, power cut", halfCheckpointed(s.later, s.ckpt), boot2, laterRows, laterTXID, 0},
		{"checkpoint half done, not captured", mixedDir(halfCheckpointed(s.later, s.ckpt), s.early, ltxDir, checksums), boot1, laterRows, laterTXID, 0},
		{"barrier done, not restarted", same(s.ckpt), boot1, laterRows, laterTXID, 0},
		{"barrier done, not restarted, power cut", same(s.ckpt), boot2, laterRows, laterTXID, 0},
		{"checksum file lost", withoutChecksums(s.later), boot2, laterRows, laterTXID, 0},
		{"checksum file empty", checksumsCut(s.later, 0), boot2, laterRows, laterTXID, 0},
		{"checksum file cut", checksumsCut(s.later, 1000), boot2, laterRows, laterTXID, 0},
		{"checksum file without sums", checksumsZeroed(s.later), boot2, laterRows, laterTXID, 0},
		{"checksum file lost, log retained", retained(withoutChecksums(s.later), 6), boot2, laterRows, laterTXID, 0},
		{"checksum file from before, log retained", retained(mixed(s.later, s.early, checksums), 9), boot2, laterRows, laterTXID, 0},
		{"checksums ahead of a lost entry, log retained", retained(lastEntryGone(s.later, s.early), 4), boot2, laterRows, laterTXID, 0},
		{"checksums and frames lost, log retained", retained(mixedDir(withoutChecksums(s.later), s.early, files), 6), boot2, laterRows, laterTXID, 0},
	} {
		c.run(t, r, "SELECT count(*) FROM t")
	}
}

func same(dir string) func(*testing.T) string {
	return func(t *testing.T) string { return mix(t, dir, dir) }
}

func mixed(dir, other string, parts ...part) func(*testing.T) string {
	return mixedDir(same(dir), other, parts...)
}

func mixedDir(dir func(*testing.T) string, other string, parts ...part) func(*testing.T) string {
	return func(t *testing.T) string { return mix(t, dir(t), other, parts...) }
}

// edited is dir with a change made to it.
func edited(dir string, change func(t *testing.T, dir string)) func(*testing.T) string {
	return then(same(dir), change)
}

func then(dir func(*testing.T) string, change func(t *testing.T, dir string)) func(*testing.T) string {
	return func(t *testing.T) string {
		to := dir(t)
		change(t, to)
		return to
	}
}

func torn(dir string) func(*testing.T) string {
	return edited(dir, func(t *testing.T, dir string) {
		e := entriesOf(t, dir)
		edit(t, e[len(e)-1], func(b []byte) []byte { return b[:len(b)/2] })
		dropCopies(t, dir)
	})
}

// dropCopies removes what the log keeps to mend its newest entries with.
func dropCopies(t *testing.T, dir string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, "recent")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, path := range mustGlob(t, dir, "dbs/*/ltx/*") {
		if name := filepath.Base(path); name != "durable" && filepath.Ext(name) != ".ltx" {
			removeFile(t, path)
		}
	}
}

// lastEntryGone takes the newest entry, and the mark of what is durable is
// older.
func lastEntryGone(dir, older string) func(*testing.T) string {
	return edited(dir, func(t *testing.T, dir string) {
		e := entriesOf(t, dir)
		removeFile(t, e[len(e)-1])
		dropCopies(t, dir)
		old := mustGlob(t, older, "dbs/*/ltx")[0]
		b, err := os.ReadFile(filepath.Join(old, "durable"))
		mark := filepath.Join(filepath.Dir(e[0]), "durable")
		if err != nil {
			_ = os.Remove(mark) // nothing was durable then
			return
		}
		edit(t, mark, func([]byte) []byte { return b })
	})
}

func walCut(dir string, bytes int) func(*testing.T) string {
	return edited(dir, func(t *testing.T, dir string) {
		edit(t, inFiles(dir, "app.db-wal"), func(b []byte) []byte { return b[:max(0, len(b)-bytes)] })
	})
}

func walGone(dir string) func(*testing.T) string {
	return edited(dir, func(t *testing.T, dir string) { removeFile(t, inFiles(dir, "app.db-wal")) })
}

func removeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// halfCheckpointed is dir with every other page of the file as it is after a
// checkpoint.
func halfCheckpointed(dir, ckpt string) func(*testing.T) string {
	return edited(dir, func(t *testing.T, dir string) {
		after, err := os.ReadFile(inFiles(ckpt, "app.db"))
		if err != nil {
			t.Fatal(err)
		}
		hdr, err := sqlitefile.ParseHeader(after)
		if err != nil {
			t.Fatal(err)
		}
		edit(t, inFiles(dir, "app.db"), func(before []byte) []byte {
			b := append([]byte(nil), after...)
			for i := 0; i < len(before); i += 2 * int(hdr.PageSize) {
				copy(b[i:i+int(hdr.PageSize)], before[i:])
			}
			return b
		})
	})
}

func withoutChecksums(dir string) func(*testing.T) string {
	return edited(dir, func(t *testing.T, dir string) { removeFile(t, mustGlob(t, dir, checksums)[0]) })
}

func checksumsCut(dir string, size int) func(*testing.T) string {
	return edited(dir, func(t *testing.T, dir string) {
		edit(t, mustGlob(t, dir, checksums)[0], func(b []byte) []byte { return b[:size] })
	})
}

// checksumsZeroed keeps the header and loses the sums, as when only the first
// page of the file reached the disk.
func checksumsZeroed(dir string) func(*testing.T) string {
	return edited(dir, func(t *testing.T, dir string) {
		edit(t, mustGlob(t, dir, checksums)[0], func(b []byte) []byte {
			clear(b[4096:])
			return b
		})
	})
}

// retained is dir without the oldest n entries.
func retained(dir func(*testing.T) string, n int) func(*testing.T) string {
	return then(dir, func(t *testing.T, dir string) {
		for _, e := range entriesOf(t, dir)[:n] {
			removeFile(t, e)
		}
	})
}
