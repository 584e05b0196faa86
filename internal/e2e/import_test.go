package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// imported makes a database file that has 40 rows in a table called by the test.
func imported(t *testing.T, pageSize int, mode string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.db")
	sqlitetest.CLI(t, path, fmt.Sprintf(`PRAGMA page_size=%d; PRAGMA journal_mode=%s;
		CREATE TABLE other(x TEXT, y); CREATE INDEX i ON other(y);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 40) INSERT INTO other SELECT 'row ' || i, randomblob(3000) FROM n;`, pageSize, mode))
	return path
}

// TestImport: connections and a follower go from one content to the other between two transactions,
// whatever the journal modes and page sizes are.
func TestImport(t *testing.T) {
	primary := startNode(t)
	follower := startNode(t, follows(primary))
	url, followerURL := "http://"+primary.cfg.Addr, "http://"+follower.cfg.Addr
	app := sqlitetest.Start(t)
	for _, tt := range []struct{ live, image string }{{"wal", "delete"}, {"wal", "wal"}, {"delete", "delete"}, {"delete", "wal"}, {"persist", "delete"}} {
		for _, pageSize := range []int{4096, 1024} {
			name := fmt.Sprintf("%s-%s-%d.db", tt.live, tt.image, pageSize)
			c := openPatient(app, primary.path(name), "page_size=4096", "journal_mode="+tt.live)
			// One schema change, as the image has after it: cookie and counter are the same.
			c.MustExec("CREATE TABLE t(v)")
			c.MustExec("INSERT INTO t VALUES (randomblob(9000))")
			reader := openPatient(app, primary.path(name))
			reader.MustQuery("SELECT * FROM t")
			caughtUp(primary, follower, name)
			far := openPatient(app, follower.path(name))
			far.MustQuery("SELECT * FROM t")

			image := imported(t, pageSize, tt.image)
			at := url
			if pageSize == 1024 {
				at = followerURL // which says who the primary is
			}
			if out, err := litefs(t, "import", "-url", at, "-name", name, image); err != nil || !strings.Contains(out, "is the content of "+name) {
				t.Fatalf("%s: import: %s, %v", name, out, err)
			}
			want := strings.TrimSpace(sqlitetest.CLI(t, image, "SELECT group_concat(x || hex(y)) FROM other;"))
			for who, conn := range map[string]*sqlitetest.Conn{"the writer": c, "a reader": reader} {
				if got := conn.MustText("SELECT group_concat(x || hex(y)) FROM other"); got != want {
					t.Errorf("%s: %s does not see the import", name, who)
				}
				if got := conn.MustInt("PRAGMA page_size"); got != int64(pageSize) {
					t.Errorf("%s: %s has pages of %d bytes, want %d", name, who, got, pageSize)
				}
			}
			c.MustExec("INSERT INTO other VALUES ('after', 1)")
			caughtUp(primary, follower, name)
			if got := far.MustText("SELECT group_concat(x || hex(y)) FROM (SELECT * FROM other WHERE x != 'after')"); got != want {
				t.Errorf("%s: a reader on the follower does not see the import", name)
			}
			for _, conn := range []*sqlitetest.Conn{c, reader, far} {
				conn.Close()
			}
			mode := strings.Replace(tt.live, "persist", "delete", 1) // which a connection chooses for itself
			if got := strings.TrimSpace(sqlitetest.CLI(t, primary.path(name), "PRAGMA journal_mode;")); got != mode {
				t.Errorf("%s: journal mode %s, want %s", name, got, mode)
			}
			sqlitetest.CheckIntegrity(t, primary.path(name))
		}
	}
	app.Exit()
	for _, n := range []*node{primary, follower} {
		if out, err := litefs(t, "verify", "-config", n.configPath()); err != nil {
			t.Errorf("verify: %s, %v", out, err)
		}
	}
}

// TestImportNew: a database that does not exist is made, in a directory that does not, of the owner of the
// tree; a writer's transaction is waited for.
func TestImportNew(t *testing.T) {
	primary := startNode(t)
	follower := startNode(t, follows(primary))
	image := imported(t, 4096, "wal")
	url := "http://" + primary.cfg.Addr
	if out, err := litefs(t, "import", "-json", "-url", url, "-name", "dir/new.db", image); err != nil || !strings.Contains(out, `"created":true`) {
		t.Fatalf("import: %s, %v", out, err)
	}
	caughtUp(primary, follower, "dir/new.db")
	for _, n := range []*node{primary, follower} {
		if got := strings.TrimSpace(sqlitetest.CLI(t, n.path("dir/new.db"), "SELECT count(*) FROM other;")); got != "40" {
			t.Errorf("%s rows, want 40", got)
		}
	}

	app := sqlitetest.Start(t)
	c := openPatient(app, primary.path("dir/new.db"))
	c.MustExec("BEGIN IMMEDIATE")
	c.MustExec("DELETE FROM other WHERE x = 'row 1'")
	done := make(chan error, 1)
	go func() {
		out, err := litefs(t, "import", "-url", url, "-name", "dir/new.db", image)
		if err != nil {
			err = fmt.Errorf("%s: %w", out, err)
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("the import did not wait for the writer: %v", err)
	case <-follower.proc.Exited():
		t.Fatal("the follower has ended")
	default:
	}
	c.MustExec("COMMIT")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := c.MustInt("SELECT count(*) FROM other"); got != 40 {
		t.Errorf("%d rows, want 40", got)
	}
	app.Exit()
	sameEverywhere(t, primary, follower, "dir/new.db")
}

// TestImportRefused: what cannot be a database, or does not come whole, changes nothing.
func TestImportRefused(t *testing.T) {
	primary := startNode(t)
	app := sqlitetest.Start(t)
	c := openPatient(app, primary.path("app.db"), "journal_mode=WAL")
	c.MustExec("CREATE TABLE t(v)")
	if err := os.WriteFile(primary.path("plain.txt"), []byte("no database"), 0o600); err != nil {
		t.Fatal(err)
	}
	url := "http://" + primary.cfg.Addr
	before, err := litefs(t, "wait", "-url", url, "app.db", "0000000000000001")
	if err != nil {
		t.Fatal(before)
	}
	good, err := os.ReadFile(imported(t, 4096, "delete"))
	if err != nil {
		t.Fatal(err)
	}
	damaged := append([]byte(nil), good...)
	damaged[4096] = 1 // no b-tree page
	for name, tt := range map[string]struct {
		bytes []byte
		db    string
		want  string
	}{
		"no database":     {[]byte(strings.Repeat("text ", 100)), "app.db", "not a whole SQLite database"},
		"empty":           {nil, "app.db", "not a whole SQLite database"},
		"cut off":         {good[:len(good)-4096], "app.db", "it was cut off"},
		"a damaged page":  {damaged, "app.db", "page 2 is of type 1"},
		"a reserved name": {good, "app.db-wal", "the ending -wal is reserved"},
		"outside":         {good, "../app.db", "path component"},
		"another file":    {good, "plain.txt", "no database: move it away first"},
	} {
		path := filepath.Join(t.TempDir(), "image.db")
		if err := os.WriteFile(path, tt.bytes, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := litefs(t, "import", "-url", url, "-name", tt.db, path)
		if err == nil || !strings.Contains(out, tt.want) || strings.Contains(out, "\n") {
			t.Errorf("%s: %s, %v; want one line with %q", name, out, err, tt.want)
		}
	}

	// Half a body, and then nobody.
	conn, err := net.Dial("tcp", primary.cfg.Addr)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /import?name=app.db HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(good), good[:5000])
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	// A page that a browser shows.
	req, err := http.NewRequest(http.MethodPost, url+"/import?name=app.db", strings.NewReader(string(good)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "https://elsewhere.example")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a web page's request: %s", resp.Status)
	}

	after, err := litefs(t, "wait", "-url", url, "app.db", "0000000000000001")
	if err != nil || after != before {
		t.Errorf("at %s (%v), want %s", after, err, before)
	}
	eventually(t, "nothing is left behind", func() (bool, string) {
		left, err := filepath.Glob(filepath.Join(primary.cfg.Mount, ".litefs*"))
		return err == nil && len(left) == 0, fmt.Sprint(left, err)
	})
	c.MustExec("INSERT INTO t VALUES (1)")
	app.Exit()
}

// TestImportKilled: a daemon that is killed while a file comes has changed nothing, and the next import removes
// what it left.
func TestImportKilled(t *testing.T) {
	n := startNode(t)
	sqlitetest.CLI(t, n.path("app.db"), "PRAGMA journal_mode=wal; CREATE TABLE t(v); INSERT INTO t VALUES (1);")
	image := imported(t, 4096, "delete")
	conn, err := net.Dial("tcp", n.cfg.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /import?name=app.db HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000\r\n\r\n%s", n.cfg.Addr, strings.Repeat("x", 5000))
	hidden := filepath.Join(n.cfg.Data, "files", ".litefs-import-*")
	eventually(t, "the file comes", func() (bool, string) {
		found, err := filepath.Glob(hidden)
		return err == nil && len(found) == 1, fmt.Sprint(found, err)
	})
	n.kill()
	n.start()
	if got := strings.TrimSpace(sqlitetest.CLI(t, n.path("app.db"), "SELECT * FROM t;")); got != "1" {
		t.Errorf("the database has %q, want its row", got)
	}
	if out, err := litefs(t, "import", "-url", "http://"+n.cfg.Addr, "-name", "app.db", image); err != nil {
		t.Errorf("import: %s, %v", out, err)
	}
	if found, err := filepath.Glob(hidden); err != nil || len(found) > 0 {
		t.Errorf("left behind: %v, %v", found, err)
	}
	if got := strings.TrimSpace(sqlitetest.CLI(t, n.path("app.db"), "SELECT count(*) FROM other;")); got != "40" {
		t.Errorf("%s rows, want 40", got)
	}
}
