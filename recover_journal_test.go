package litefs

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/sqlitefile"
)

// journalStages is a database with a rollback journal around one transaction,
// which rewrites every row in place. A copy has what the name says in the
// files; base and done are captured, in mid and full nothing of the
// transaction is.
type journalStages struct {
	base string // before
	mid  string // some pages are in the file, the journal is hot
	full string // all pages are in the file, the journal is not removed yet
	done string // after, the journal removed, the entry in the log
}

const journalTXID = 9 // of base: the adoption and eight rows

func makeJournalStages(t *testing.T) journalStages {
	t.Helper()
	n := openNode(t, filepath.Join(t.TempDir(), "data"))
	path := n.path("app.db")
	c := sqlitetest.Open(t, path, "journal_mode=delete", "cache_size=3")
	c.MustExec(createT)
	n.adopt("app.db")
	n.rows("app.db", c, 8)
	var s journalStages
	s.base = n.crash()
	c.MustExec("BEGIN")
	c.MustExec("UPDATE t SET b = zeroblob(2500)")
	s.mid = n.crash()
	// The second name keeps the journal that the commit removes.
	kept := filepath.Join(t.TempDir(), "journal")
	if err := os.Link(path+"-journal", kept); err != nil {
		t.Fatal(err)
	}
	c.MustExec("COMMIT")
	s.full = n.crash()
	b, err := os.ReadFile(kept)
	if err == nil {
		err = os.WriteFile(inFiles(s.full, "app.db-journal"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.capture("app.db")
	s.done = n.crash()
	return s
}

func TestRecoverPrimaryJournal(t *testing.T) {
	s := makeJournalStages(t)
	r := newReader(t)
	mustBeHot(t, s.mid)
	mustBeHot(t, s.full)
	const before, after = "8", "0" // rows whose blob is not all zeros
	for _, c := range []recoverCase{
		{"pages written, journal hot, nothing logged", same(s.mid), boot1, before, journalTXID, 0},
		{"pages written, journal hot, nothing logged, power cut", same(s.mid), boot2, before, journalTXID, 0},
		{"all pages written, journal hot, nothing logged", same(s.full), boot1, before, journalTXID, 0},
		{"entry durable, journal not yet removed", mixed(s.full, s.done, ltxDir, checksums), boot1, after, journalTXID + 1, 0},
		{"entry durable, journal not yet removed, checksums not set", mixed(s.full, s.done, ltxDir), boot1, after, journalTXID + 1, 0},
		{"entry durable, journal not yet removed, power cut", mixed(s.full, s.done, ltxDir), boot2, after, journalTXID + 1, 0},
		{"entry durable, journal not yet removed, pages lost", mixed(s.mid, s.done, ltxDir, checksums), boot2, before, journalTXID + 2, 0},
		{"entry torn, journal not yet removed", mixedDir(torn(s.done), s.full, files), boot2, before, journalTXID, 0},
		{"journal removed, answer lost", same(s.done), boot1, after, journalTXID + 1, 0},
		{"journal removed, answer lost, power cut", same(s.done), boot2, after, journalTXID + 1, 0},
		{"journal removed, pages lost", mixed(s.done, s.base, files), boot2, after, journalTXID + 1, 0},
		{"journal removed, some pages lost", withoutJournal(mixed(s.done, s.mid, files)), boot2, after, journalTXID + 1, 0},
		{"journal header zeroed", zeroedJournal(mixed(s.done, s.full, files)), boot1, after, journalTXID + 1, 0},
		{"journal cut to nothing", truncatedJournal(mixed(s.done, s.full, files)), boot1, after, journalTXID + 1, 0},
		{"checksums lost with a hot journal, log retained", retained(mixedDir(withoutChecksums(s.base), s.mid, files), 2), boot2, before, journalTXID, 0},
		{"record made, its first entry lost, journal hot, power cut", withoutEntries(withoutChecksums(s.mid)), boot2, before, 1, 0},
		{"committed without a journal, not captured", withoutJournal(same(s.full)), boot1, after, journalTXID + 1, 0},
		{"committed without a journal, not captured, power cut", withoutJournal(same(s.full)), boot2, after, journalTXID + 1, 0},
		{"cut off without a journal, power cut", withoutJournal(same(s.mid)), boot2, before, journalTXID, 0},
	} {
		c.run(t, r, "SELECT count(*) FROM t WHERE b <> zeroblob(2500)")
	}
	t.Run("cut off without a journal", func(t *testing.T) {
		r := &reader{t: t, app: r.app}
		dir := withoutJournal(same(s.mid))(t)
		want := r.value(inFiles(dir, "app.db"), "SELECT count(*) FROM t WHERE b <> zeroblob(2500)")
		if want == before || want == after {
			t.Fatalf("%s rows are as they were: the transaction is not half written", want)
		}
		recoverCase{"logged as it is", same(dir), boot1, want, journalTXID + 1, 0}.run(t, r, "SELECT count(*) FROM t WHERE b <> zeroblob(2500)")
	})
}

func mustBeHot(t *testing.T, dir string) {
	t.Helper()
	if !journalHot(inFiles(dir, "app.db-journal")) {
		t.Fatal("there is no hot journal")
	}
}

func withoutJournal(dir func(*testing.T) string) func(*testing.T) string {
	return then(dir, func(t *testing.T, dir string) { removeFile(t, inFiles(dir, "app.db-journal")) })
}

func withoutEntries(dir func(*testing.T) string) func(*testing.T) string {
	return then(dir, func(t *testing.T, dir string) {
		for _, path := range mustGlob(t, dir, "dbs/*/ltx/*") {
			removeFile(t, path)
		}
	})
}

func zeroedJournal(dir func(*testing.T) string) func(*testing.T) string {
	return then(dir, func(t *testing.T, dir string) {
		edit(t, inFiles(dir, "app.db-journal"), func(b []byte) []byte {
			clear(b[:sqlitefile.JournalHeaderSize])
			return b
		})
	})
}

func truncatedJournal(dir func(*testing.T) string) func(*testing.T) string {
	return then(dir, func(t *testing.T, dir string) {
		edit(t, inFiles(dir, "app.db-journal"), func(b []byte) []byte { return nil })
	})
}

// journalOf makes the rollback journal of a transaction that has changed every
// page of a database, as SQLite writes it; super is the super-journal's path.
func journalOf(t *testing.T, before []byte, super string) []byte {
	t.Helper()
	hdr, err := sqlitefile.ParseHeader(before)
	if err != nil {
		t.Fatal(err)
	}
	ps := int(hdr.PageSize)
	n := len(before) / ps
	jh := sqlitefile.JournalHeader{Records: uint32(n), Nonce: 0x5eed, InitialPages: uint32(n), SectorSize: 512, PageSize: hdr.PageSize}
	b := append([]byte(nil), sqlitefile.JournalMagic...)
	for _, v := range []uint32{jh.Records, jh.Nonce, jh.InitialPages, jh.SectorSize, jh.PageSize} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	b = append(b, make([]byte, int(jh.SectorSize)-len(b))...)
	for i := range n {
		page := before[i*ps : (i+1)*ps]
		b = binary.BigEndian.AppendUint32(b, uint32(i+1))
		b = append(b, page...)
		b = binary.BigEndian.AppendUint32(b, jh.RecordCksum(page))
	}
	if super == "" {
		return b
	}
	var sum uint32
	for _, c := range []byte(super) {
		sum += uint32(c)
	}
	b = binary.BigEndian.AppendUint32(b, sqlitefile.LockPgno(hdr.PageSize))
	b = append(b, super...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(super)))
	b = binary.BigEndian.AppendUint32(b, sum)
	return append(b, sqlitefile.JournalMagic...)
}

// TestRecoverVacuum: the transaction leaves another size or page size behind.
func TestRecoverVacuum(t *testing.T) {
	r := newReader(t)
	for _, pageSize := range []string{"4096", "1024", "65536"} {
		t.Run(pageSize, func(t *testing.T) {
			r := &reader{t: t, app: r.app}
			n := openNode(t, filepath.Join(t.TempDir(), "data"))
			c := sqlitetest.Open(t, n.path("app.db"), "journal_mode=delete")
			c.MustExec(createT)
			n.adopt("app.db")
			n.rows("app.db", c, 8)
			c.MustExec("DELETE FROM t WHERE id > 3")
			n.capture("app.db")
			base := n.crash()
			before, err := os.ReadFile(n.path("app.db"))
			if err != nil {
				t.Fatal(err)
			}
			c.MustExec("PRAGMA page_size=" + pageSize)
			c.MustExec("VACUUM")
			full := n.crash()
			if err := os.WriteFile(inFiles(full, "app.db-journal"), journalOf(t, before, ""), 0o600); err != nil {
				t.Fatal(err)
			}
			n.capture("app.db")
			done := n.crash()
			const txid = journalTXID + 1 // of base
			for _, c := range []recoverCase{
				{"nothing logged", same(full), boot1, "3", txid, 0},
				{"entry durable, journal not yet removed", mixed(full, done, ltxDir, checksums), boot1, "3", txid + 1, 0},
				{"entry durable, checksums not set", mixed(full, done, ltxDir), boot1, "3", txid + 1, 0},
				{"files lost", mixed(done, base, files), boot2, "3", txid + 1, 0},
				{"files lost, checksums lost", mixedDir(withoutChecksums(done), base, files), boot2, "3", txid + 1, 0},
				{"not captured, power cut", mixed(base, done, files), boot2, "3", txid + 1, 0},
				{"not captured", mixed(base, done, files), boot1, "3", txid + 1, 0},
				{"header lost", headerless(done), boot2, "3", txid + 1, 0},
			} {
				c.run(t, r, "SELECT count(*) FROM t")
			}
		})
	}
}

// headerless is dir with the file as a first write that a power cut has cut off
// leaves it: as long as it was, and empty.
func headerless(dir string) func(*testing.T) string {
	return edited(dir, func(t *testing.T, dir string) {
		edit(t, inFiles(dir, "app.db"), func(b []byte) []byte {
			clear(b)
			return b
		})
	})
}

// TestRecoverEmptyFile: a file without a header is no reason to keep the
// database closed. It is captured when it has one again.
func TestRecoverEmptyFile(t *testing.T) {
	s := makeJournalStages(t)
	r := newReader(t)
	empty := edited(s.base, func(t *testing.T, dir string) {
		edit(t, inFiles(dir, "app.db"), func([]byte) []byte { return nil })
	})
	noSums := then(empty, func(t *testing.T, dir string) { removeFile(t, mustGlob(t, dir, checksums)[0]) })
	for _, c := range []struct {
		name string
		dir  func(*testing.T) string
		boot string
	}{
		{"with a log", empty, boot1},
		{"with a log, checksums lost", noSums, boot1},
		{"no log entry yet", then(empty, emptyLog), boot1},
		{"no log entry yet, power cut", then(empty, emptyLog), boot2},
		{"no log entry yet, with a file", then(same(s.base), emptyLog), boot1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := &reader{t: t, app: r.app}
			n := openNode(t, c.dir(t), onBoot(c.boot))
			conn := r.app.Open(n.path("app.db"), "page_size=1024")
			defer conn.Close()
			conn.MustExec("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, b BLOB)")
			n.rows("app.db", conn, 2)
			n.mustAgree(r, "app.db")
			n.mustGoOn(r, "app.db")
		})
	}
}

func emptyLog(t *testing.T, dir string) {
	for _, e := range entriesOf(t, dir) {
		removeFile(t, e)
	}
	_ = os.Remove(filepath.Join(mustGlob(t, dir, ltxDir)[0], "durable"))
	removeFile(t, mustGlob(t, dir, checksums)[0])
}
