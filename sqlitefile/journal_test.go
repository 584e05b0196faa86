package sqlitefile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// rollback applies a journal to the bytes of a database, as SQLite would.
func rollback(t *testing.T, db, journal []byte) []byte {
	t.Helper()
	jr, err := NewJournalReader(bytes.NewReader(journal), int64(len(journal)))
	if err != nil {
		t.Fatal(err)
	}
	h := jr.Header()
	out := make([]byte, int64(h.InitialPages)*int64(h.PageSize))
	copy(out, db)
	done := map[uint32]bool{}
	for {
		rec, err := jr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if !done[rec.Pgno] {
			copy(out[int64(rec.Pgno-1)*int64(h.PageSize):], rec.Page)
			done[rec.Pgno] = true
		}
	}
}

// Spills make a journal of several segments: each sync starts a new one.
func TestRealJournal(t *testing.T) {
	for _, ps := range pageSizes {
		for _, sync := range []string{"OFF", "FULL"} {
			t.Run(fmt.Sprint(ps, sync), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "test.db")
				db := openDB(t, path, fmt.Sprintf("PRAGMA page_size=%d", ps), "PRAGMA synchronous=OFF", "CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
					fmt.Sprintf(`INSERT INTO t(v) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<40)
					SELECT randomblob(%d) FROM n`, ps/2),
					"PRAGMA synchronous="+sync, "PRAGMA cache_size=5")
				before := readFile(t, path)
				exec(t, db, "BEGIN", fmt.Sprintf("UPDATE t SET v=randomblob(%d)", ps/2), "INSERT INTO t(v) SELECT v FROM t")
				dirty, journal := readFile(t, path), readFile(t, path+"-journal")
				if bytes.Equal(dirty, before) {
					t.Fatal("nothing was spilled")
				}
				if got := rollback(t, dirty, journal); !bytes.Equal(got, before) {
					t.Error("the journal does not restore the database")
				}
				if IsZeroed(journal) {
					t.Error("a hot journal is reported as zeroed")
				}
				if name, err := SuperJournalName(bytes.NewReader(journal), int64(len(journal))); name != "" || err != nil {
					t.Errorf("super-journal %q, %v", name, err)
				}
				exec(t, db, "ROLLBACK")
			})
		}
	}
}

func TestJournalSegments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	db := openDB(t, path, "PRAGMA synchronous=FULL", "CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
		`INSERT INTO t(v) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<100) SELECT randomblob(3000) FROM n`,
		"PRAGMA cache_size=5", "BEGIN", "UPDATE t SET v=randomblob(3000)")
	journal := readFile(t, path+"-journal")
	if n := bytes.Count(journal, []byte(JournalMagic)); n < 2 {
		t.Fatalf("%d segments, want several", n)
	}
	// A segment that was begun and not synced has no header yet: it ends the
	// journal. So does a torn record.
	jr, err := NewJournalReader(bytes.NewReader(journal), int64(len(journal)))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for {
		if _, err := jr.Next(); err != nil {
			break
		}
		count++
	}
	first := int(jr.Header().Records)
	if count <= first {
		t.Errorf("%d records, the first segment alone has %d", count, first)
	}
	torn := bytes.Clone(journal)
	h := jr.Header()
	last := int64(h.SectorSize) + int64(first-1)*h.RecordSize()
	torn[last+h.RecordSize()-1] ^= 1
	jr, err = NewJournalReader(bytes.NewReader(torn), int64(len(torn)))
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		if _, err := jr.Next(); err != nil {
			if n != first-1 {
				t.Errorf("%d records before the torn one, want %d", n, first-1)
			}
			break
		}
	}
	exec(t, db, "ROLLBACK")
}

func TestPersistentJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	openDB(t, path, "PRAGMA journal_mode=PERSIST", "CREATE TABLE t(v)", "INSERT INTO t VALUES(1)")
	journal := readFile(t, path+"-journal")
	if !IsZeroed(journal) {
		t.Errorf("journal of an ended transaction starts with %x", journal[:8])
	}
	if _, err := NewJournalReader(bytes.NewReader(journal), int64(len(journal))); !errors.Is(err, ErrNoJournal) {
		t.Errorf("got %v, want ErrNoJournal", err)
	}
	if !IsZeroed(nil) {
		t.Error("an empty journal is not reported as zeroed")
	}
}

// A transaction over two files writes the super-journal's name into both
// journals and then removes them; hard links keep the bytes.
func TestSuperJournalName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "é.db")
	db := openDB(t, path, "CREATE TABLE t(v)", "ATTACH '"+path+"2' AS two", "CREATE TABLE two.t(v)")
	exec(t, db, "BEGIN", "INSERT INTO t VALUES(1)", "INSERT INTO two.t VALUES(1)")
	for _, p := range []string{path, path + "2"} {
		if err := os.Link(p+"-journal", p+"-kept"); err != nil {
			t.Fatal(err)
		}
	}
	exec(t, db, "COMMIT")
	for _, p := range []string{path, path + "2"} {
		journal := readFile(t, p+"-kept")
		name, err := SuperJournalName(bytes.NewReader(journal), int64(len(journal)))
		if want := path + "-mj"; err != nil || !strings.HasPrefix(name, want) {
			t.Errorf("%s: super-journal %q (%v), want %s...", filepath.Base(p), name, err, want)
		}
		journal[len(journal)-superTrailer-1] ^= 1
		if name, err := SuperJournalName(bytes.NewReader(journal), int64(len(journal))); name != "" || err != nil {
			t.Errorf("damaged name accepted: %q, %v", name, err)
		}
		// The records before the name are all there is to roll back.
		journal[len(journal)-superTrailer-1] ^= 1
		rollback(t, readFile(t, p), journal)
	}
}
