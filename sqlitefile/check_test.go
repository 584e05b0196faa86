package sqlitefile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// checkable makes a database with what Check walks: rows that overflow, an
// index, WITHOUT ROWID, free pages, a view.
func checkable(t *testing.T, pageSize int, pragmas ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.db")
	db := openDB(t, path, append([]string{fmt.Sprintf("PRAGMA page_size=%d", pageSize), "PRAGMA journal_mode=delete"}, pragmas...)...)
	for _, sql := range []string{
		"CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
		"CREATE INDEX i ON t(v)",
		"CREATE TABLE w(k PRIMARY KEY, v) WITHOUT ROWID",
		"CREATE VIEW x AS SELECT * FROM t",
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 300) INSERT INTO t SELECT i, randomblob(i*7) FROM n",
		"INSERT INTO w SELECT id, v FROM t",
		"DELETE FROM t WHERE id % 3 = 0",
	} {
		if _, err := db.Exec(sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func check(b []byte) (int, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return 0, err
	}
	size := int(h.PageSize)
	return Check(func(pgno uint32) ([]byte, error) { return b[(int(pgno)-1)*size:][:size], nil }, uint32(len(b)/size))
}

func TestCheck(t *testing.T) {
	for _, pageSize := range []int{512, 4096, 65536} {
		b := checkable(t, pageSize)
		used, err := check(b)
		if err != nil || used != len(b)/pageSize {
			t.Errorf("pages of %d: %d of %d pages are in use, %v", pageSize, used, len(b)/pageSize, err)
		}
	}
	// Pages that map pointers are found by their place, not by pointers.
	b := checkable(t, 512, "PRAGMA auto_vacuum=incremental")
	if _, err := check(b); err != nil {
		t.Error(err)
	}
}

func TestCheckFindsFaults(t *testing.T) {
	good := checkable(t, 512)
	trunk := int(binary.BigEndian.Uint32(good[freelistOffset:]))
	if trunk == 0 {
		t.Fatal("there are no free pages")
	}
	for name, damage := range map[string]func(b []byte){
		"cut off":            func(b []byte) { binary.BigEndian.PutUint32(b[freelistOffset:], uint32(len(b)/512+1)) },
		"free pages":         func(b []byte) { b[freelistOffset+7]++ },
		"a loop of trunks":   func(b []byte) { binary.BigEndian.PutUint32(b[(trunk-1)*512:], uint32(trunk)) },
		"free and in use":    func(b []byte) { binary.BigEndian.PutUint32(b[(trunk-1)*512+8:], 2) },
		"too many leaves":    func(b []byte) { binary.BigEndian.PutUint32(b[(trunk-1)*512+4:], 1<<31) },
		"no b-tree":          func(b []byte) { b[512] = 1 },
		"a schema of zeroes": func(b []byte) { clear(b[100:512]) },
	} {
		b := append([]byte(nil), good...)
		damage(b)
		if _, err := check(b); !errors.Is(err, ErrTree) {
			t.Errorf("%s: %v, want ErrTree", name, err)
		}
	}
}

// No bytes make Check panic, or run for ever.
func FuzzCheck(f *testing.F) {
	f.Add(append([]byte(headerMagic), make([]byte, 496)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 512 {
			return
		}
		b = append([]byte(nil), b...)
		copy(b, headerMagic)
		binary.BigEndian.PutUint16(b[16:], 512)
		copy(b[18:], []byte{1, 1, 0, 64, 32, 32})
		_, _ = check(b)
	})
}
