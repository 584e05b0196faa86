package adopt

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// unpacked is the data directory of a real LiteFS 0.5.14 that was killed (testdata/make.sh).
func unpacked(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-C", dir, "-xzf", "testdata/litefs-0.5.14.tar.gz").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// tree returns the content of all files below dir.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, dir+"/")] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mark(dir string) error { return os.WriteFile(filepath.Join(dir, "FORMAT"), nil, 0o644) }

func TestExamine(t *testing.T) {
	dir := unpacked(t)
	before := tree(t, dir)
	p, err := Examine(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Database{
		"del.db":     {Name: "del.db", Bytes: 1024000, PageSize: 4096, Journal: 9728, TXID: "0000000000000002"},
		"gone.db":    {Name: "gone.db", TXID: "0000000000000002", Dropped: true},
		"persist.db": {Name: "persist.db", Bytes: 8192, PageSize: 4096, Journal: 512, TXID: "0000000000000001"},
		"wal.db":     {Name: "wal.db", Bytes: 16384, PageSize: 4096, WAL: 4152, TXID: "0000000000000004"},
	}
	for _, db := range p.Databases {
		if db != want[db.Name] {
			t.Errorf("got  %+v\nwant %+v", db, want[db.Name])
		}
	}
	if len(p.Databases) != len(want) || p.Resumed {
		t.Errorf("%+v", p)
	}
	if after := tree(t, dir); len(after) != len(before) {
		t.Error("looking changes something")
	}
}

// Every byte that was there is there, whatever call it is cut off at, and a second run ends what the first began.
func TestRun(t *testing.T) {
	before := tree(t, unpacked(t))
	place := func(old string) string {
		parts := strings.Split(old, "/")
		if len(parts) == 3 && parts[1] != "gone.db" {
			switch parts[2] {
			case "database":
				return "files/" + parts[1]
			case "wal", "journal":
				return "files/" + parts[1] + "-" + parts[2]
			}
		}
		return keptDir + "/" + old
	}
	for _, cut := range []string{"", "move", "format"} {
		t.Run(cut, func(t *testing.T) {
			dir := unpacked(t)
			run := func(format func(string) error) error {
				p, err := Examine(dir)
				if err != nil {
					t.Fatal(err)
				}
				return p.Run(format)
			}
			switch cut {
			case "move": // the first database has gone, the second has not
				for _, d := range []string{keptDir, "files"} {
					if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
						t.Fatal(err)
					}
				}
				for from, to := range map[string]string{"dbs": keptDir + "/dbs"} {
					if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
						t.Fatal(err)
					}
				}
				for from, to := range map[string]string{"del.db/database": "del.db", "del.db/journal": "del.db-journal", "wal.db/wal": "wal.db-wal"} {
					if err := os.Rename(filepath.Join(dir, keptDir, "dbs", from), filepath.Join(dir, "files", to)); err != nil {
						t.Fatal(err)
					}
				}
			case "format":
				broken := errors.New("cut off")
				if err := run(func(string) error { return broken }); !errors.Is(err, broken) {
					t.Fatal(err)
				}
			}
			if err := run(mark); err != nil {
				t.Fatal(err)
			}
			after := tree(t, dir)
			for old, content := range before {
				if got, ok := after[place(old)]; !ok || got != content {
					t.Errorf("%s: is not at %s, or not the same", old, place(old))
				}
			}
			if len(after) != len(before)+1 {
				t.Errorf("%d files, were %d", len(after), len(before))
			}
			if _, err := Examine(dir); !errors.Is(err, ErrNothing) {
				t.Errorf("a second adoption: %v", err)
			}
		})
	}
}

func TestRun_InUse(t *testing.T) {
	dir := unpacked(t)
	f, err := os.Open(filepath.Join(dir, "dbs/wal.db/database"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := len(tree(t, dir))
	p, err := Examine(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(mark); err == nil || !strings.Contains(err.Error(), "stop LiteFS first") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, keptDir)); err == nil || len(tree(t, dir)) != before {
		t.Error("something was moved")
	}
}

func TestRefused(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"empty":       {},
		"ours":        {"FORMAT": "litefs 2\n", "dbs/x/database": "x"},
		"no database": {"dbs/a.db/database": "this is no database at all, however long it may be: " + strings.Repeat("x", 200)},
		"torn":        {"dbs/a.db/database": "SQLite format 3\x00"},
	} {
		dir := t.TempDir()
		for path, content := range files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if p, err := Examine(dir); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestClean(t *testing.T) {
	dir := unpacked(t)
	if err := Clean(dir); err == nil {
		t.Error("cleaned before the adoption")
	}
	p, err := Examine(dir)
	if err == nil {
		err = p.Run(mark)
	}
	if err != nil {
		t.Fatal(err)
	}
	if n, err := Kept(dir); err != nil || n == 0 {
		t.Errorf("%d bytes are kept, %v", n, err)
	}
	if err := Clean(dir); err != nil {
		t.Fatal(err)
	}
	if n, err := Kept(dir); err != nil || n != 0 {
		t.Errorf("%d bytes are kept, %v", n, err)
	}
}
