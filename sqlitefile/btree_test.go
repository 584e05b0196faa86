package sqlitefile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// makeTrees makes a database with b-trees of every kind, and pages that belong to none.
func makeTrees(t testing.TB, pageSize uint32) (path string, rows map[string]int64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "trees.db")
	db := openDB(t, path, fmt.Sprintf("PRAGMA page_size=%d", pageSize), "PRAGMA journal_mode=delete", "PRAGMA synchronous=off")
	const count = "WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c WHERE i<%d) "
	exec(t, db,
		"CREATE TABLE empty(x)",
		"CREATE TABLE small(id INTEGER PRIMARY KEY, v)",
		fmt.Sprintf(count+"INSERT INTO small SELECT i, hex(randomblob(20)) FROM c", 3000),
		"CREATE INDEX small_v ON small(v)",
		"CREATE TABLE big(v BLOB)",
		fmt.Sprintf(count+"INSERT INTO big SELECT randomblob(i * 997) FROM c", 60),
		"CREATE INDEX big_v ON big(v)",
		"CREATE TABLE keyed(k TEXT PRIMARY KEY, v) WITHOUT ROWID",
		fmt.Sprintf(count+"INSERT INTO keyed SELECT hex(randomblob(30)), i FROM c", 2000),
		"CREATE TABLE gone(v BLOB)",
		fmt.Sprintf(count+"INSERT INTO gone SELECT randomblob(500) FROM c", 200),
		"DROP TABLE gone",
		"CREATE VIEW all_small AS SELECT * FROM small",
	)
	// Rows of the schema that do not fit on a page.
	for i := range 5 {
		ddl := fmt.Sprintf("CREATE TABLE wide%d(", i)
		for c := range 40 {
			ddl += fmt.Sprintf("a_rather_long_name_of_a_column_%d, ", c)
		}
		exec(t, db, ddl+"z)")
	}
	rows = map[string]int64{}
	for _, name := range []string{"empty", "small", "big", "keyed", "wide3"} {
		var n int64
		if err := db.QueryRow("SELECT count(*) FROM " + name).Scan(&n); err != nil {
			t.Fatal(err)
		}
		rows[name] = n
	}
	var free int64
	if err := db.QueryRow("PRAGMA freelist_count").Scan(&free); err != nil {
		t.Fatal(err)
	}
	rows[" free"] = free
	return path, rows
}

func pagesOf(b []byte, pageSize uint32) Pages {
	return func(pgno uint32) ([]byte, error) {
		from := int64(pgno-1) * int64(pageSize)
		if pgno == 0 || from+int64(pageSize) > int64(len(b)) {
			return nil, io.ErrUnexpectedEOF
		}
		return b[from:][:pageSize], nil
	}
}

func TestTree(t *testing.T) {
	for _, pageSize := range pageSizes {
		path, want := makeTrees(t, pageSize)
		b := readFile(t, path)
		tree, err := NewTree(pagesOf(b, pageSize))
		if err != nil {
			t.Fatal(err)
		}
		objects, err := tree.Schema()
		if err != nil {
			t.Fatalf("pages of %d bytes: schema: %v", pageSize, err)
		}
		pages := want[" free"]
		counted := map[string]int64{}
		for _, o := range objects {
			if o.Root == 0 {
				continue
			}
			rows, err := tree.Walk(o.Root, func(uint32) { pages++ })
			if err != nil {
				t.Fatalf("pages of %d bytes: %s %s: %v", pageSize, o.Type, o.Name, err)
			}
			counted[o.Name] = rows
		}
		delete(want, " free")
		for name, n := range want {
			if counted[name] != n {
				t.Errorf("pages of %d bytes: %s has %d rows, want %d", pageSize, name, counted[name], n)
			}
		}
		if counted["small_v"] != want["small"] || counted["big_v"] != want["big"] {
			t.Errorf("pages of %d bytes: indexes have %v", pageSize, counted)
		}
		if all := int64(len(b)) / int64(pageSize); pages != all {
			t.Errorf("pages of %d bytes: %d in trees and free, the file has %d", pageSize, pages, all)
		}
	}
}

// walkAll walks everything that the schema names.
func walkAll(ctx context.Context, b []byte) error {
	hdr, err := ParseHeader(b)
	if err != nil {
		return err
	}
	tree, err := NewTree(pagesOf(b, hdr.PageSize))
	if err != nil {
		return err
	}
	objects, err := tree.Schema()
	if err != nil {
		return err
	}
	for _, o := range objects {
		if ctx.Err() != nil {
			return nil
		}
		if o.Root == 0 {
			continue
		}
		if _, werr := tree.Walk(o.Root, nil); werr != nil {
			err = werr
		}
	}
	return err
}

// Whatever is damaged, a walk ends, and says so or not.
func TestTreeOfDamagedPages(t *testing.T) {
	path, _ := makeTrees(t, 512)
	good := readFile(t, path)
	rnd := rand.New(rand.NewPCG(1, 2))
	found := 0
	for range 300 {
		b := append([]byte(nil), good...)
		for range 1 + rnd.IntN(20) {
			// The first bytes of a page, where its structure is.
			page := rnd.IntN(len(b) / 512)
			b[page*512+rnd.IntN(40)] = byte(rnd.Uint32())
		}
		err := walkAll(t.Context(), b)
		if errors.Is(err, ErrTree) {
			found++
		}
	}
	if found == 0 {
		t.Error("no damage was found in 300 databases")
	}
}

func FuzzTree(f *testing.F) {
	path, _ := makeTrees(f, 512)
	f.Add(readFile(f, path)[:64<<10])
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = walkAll(t.Context(), b) // it ends, and does not panic
	})
}
