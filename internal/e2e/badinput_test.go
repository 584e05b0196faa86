package e2e

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// listing returns the names, sizes and contents below a directory.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, ent fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		b.WriteString(path + "\n")
		if ent.Type().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b.Write(content)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// runCommand runs the command to its end.
func runCommand(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, binary(t), args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatalf("litefs %v did not end:\n%s", args, errs.String())
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// Bad input gets one line that says what is wrong, the exit code for its kind, and changes nothing.
func TestBadInput(t *testing.T) {
	const usage, fault = 2, 1
	cases := []struct {
		name  string
		setup func(t *testing.T, dir string) []string // returns the arguments
		code  int
		want  []string // words of the message
	}{
		{"no command", func(*testing.T, string) []string { return nil }, usage, []string{"no command"}},
		{"unknown command", func(*testing.T, string) []string { return []string{"mout"} }, usage, []string{"mout"}},
		{"unknown flag", func(*testing.T, string) []string { return []string{"mount", "-nonsense"} }, usage, []string{"nonsense"}},
		{"no configuration file", func(_ *testing.T, dir string) []string {
			return []string{"mount", "-config", filepath.Join(dir, "none.yml")}
		}, usage, []string{"none.yml"}},
		{"unknown key", func(t *testing.T, dir string) []string {
			return []string{"mount", "-config", config(t, dir, "fuse:\n  dri: "+dir+"\n")}
		}, usage, []string{"dri", "line 2", "fuse.dir"}},
		{"key of a feature that is not there", func(t *testing.T, dir string) []string {
			return []string{"mount", "-config", config(t, dir, "fuse:\n  dir: "+dir+"/mnt\nproxy:\n  addr: \":1\"\n")}
		}, usage, []string{"proxy"}},
		{"no YAML", func(t *testing.T, dir string) []string {
			return []string{"mount", "-config", config(t, dir, "fuse: [\n")}
		}, usage, []string{"litefs.yml"}},
		{"missing mount point", func(t *testing.T, dir string) []string {
			return []string{"mount", filepath.Join(dir, "none")}
		}, usage, []string{"none", "does not exist"}},
		{"mount point is a file", func(t *testing.T, dir string) []string {
			path := filepath.Join(dir, "file")
			write(t, path, "")
			return []string{"mount", path}
		}, usage, []string{"file", "not a directory"}},
		{"mount point is a mount", func(*testing.T, string) []string {
			return []string{"mount", "-config", "/dev/null", "-set", "fuse.dir=/proc", "-set", "data.dir=/nonexistent/data"}
		}, usage, []string{"/proc"}},
		{"old data directory", func(t *testing.T, dir string) []string {
			data := filepath.Join(dir, "data")
			mkdir(t, filepath.Join(data, "dbs"))
			write(t, filepath.Join(data, "clusterid"), "LFSC1234567890\n")
			mkdir(t, filepath.Join(dir, "mnt"))
			return []string{"mount", "-config", config(t, dir, "fuse:\n  dir: "+dir+"/mnt\ndata:\n  dir: "+data+"\n")}
		}, -1, []string{"LiteFS", "litefs adopt"}},
		{"data directory of something else", func(t *testing.T, dir string) []string {
			data := filepath.Join(dir, "data")
			mkdir(t, data)
			write(t, filepath.Join(data, "photo.jpg"), "x")
			mkdir(t, filepath.Join(dir, "mnt"))
			return []string{"mount", "-config", config(t, dir, "fuse:\n  dir: "+dir+"/mnt\ndata:\n  dir: "+data+"\n")}
		}, -1, []string{"photo.jpg"}},
		{"open to the network without a credential", func(t *testing.T, dir string) []string {
			mkdir(t, filepath.Join(dir, "mnt"))
			return []string{"mount", "-config", config(t, dir, "fuse:\n  dir: "+dir+"/mnt\nhttp:\n  addr: 0.0.0.0:0\n")}
		}, usage, []string{"http.addr", "token"}},
		{"verify what is no data directory", func(t *testing.T, dir string) []string {
			mkdir(t, filepath.Join(dir, "mnt"))
			mkdir(t, filepath.Join(dir, "data"))
			return []string{"verify", "-config", config(t, dir, "fuse:\n  dir: "+dir+"/mnt\ndata:\n  dir: "+dir+"/data\n")}
		}, fault, []string{"data", "FORMAT"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			args := c.setup(t, dir)
			before := listing(t, dir)
			code, stdout, stderr := runCommand(t, args...)
			if code != c.code && (c.code >= 0 || code <= 0) {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			message := ""
			for line := range strings.Lines(stderr) {
				if strings.HasPrefix(line, "litefs: ") {
					if message != "" {
						t.Errorf("a second message: %s", line)
					}
					message = line
				}
			}
			for _, word := range c.want {
				if !strings.Contains(message, word) {
					t.Errorf("the message does not say %q:\n%s%s", word, stderr, stdout)
				}
			}
			if after := listing(t, dir); after != before {
				t.Errorf("it changed the directory:\n%s\nwas\n%s", after, before)
			}
		})
	}
}

// A file that is no database is served as it is and never becomes a database.
func TestFileThatIsNoDatabase(t *testing.T) {
	n := startNode(t)
	content := bytes.Repeat([]byte("not a database. "), 1000)
	if err := os.WriteFile(n.path("notes.db"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(n.path("notes.db"))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("read back %d bytes: %v", len(got), err)
	}
	n.stop()
	if db, ok := n.verified()["notes.db"]; ok && db.Max > 0 {
		t.Errorf("it has a log: %+v", db)
	}
}

// A second node on the same data directory, or on the same mount point, stops and leaves the first
// alone.
func TestSecondNodeStaysOut(t *testing.T) {
	n := startNode(t)
	other := t.TempDir()
	mkdir(t, filepath.Join(other, "mnt"))
	for _, c := range []struct{ what, mount, data string }{
		{"same data directory", filepath.Join(other, "mnt"), n.cfg.Data},
		{"same mount point", n.cfg.Mount, filepath.Join(other, "data")},
	} {
		path := config(t, other, "fuse:\n  dir: "+c.mount+"\ndata:\n  dir: "+c.data+"\nhttp:\n  addr: 127.0.0.1:0\n")
		code, _, stderr := runCommand(t, "mount", "-config", path)
		if code == 0 || !strings.Contains(stderr, "litefs: ") {
			t.Errorf("%s: exit code %d:\n%s", c.what, code, stderr)
		}
	}
	c := openPatient(sqlitetest.Start(t), n.path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(a)")
	c.Close()
	n.stop()
	n.verified()
}

// One database that cannot be recovered is set aside with an error; the others go on.
func TestOneBadDatabaseDoesNotStopTheOthers(t *testing.T) {
	n := startNode(t)
	for _, name := range []string{"bad.db", "good.db"} {
		c := sqlitetest.Start(t).Open(n.path(name), "journal_mode=wal")
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		for range 3 {
			fill(c, 3, 3000)
			settle(c)
		}
		c.Close()
	}
	n.stop()
	id := n.verified()["bad.db"].ID
	damageRecord(t, n, id)
	n.start()
	c := sqlitetest.Start(t).Open(n.path("good.db"))
	if got := c.MustInt("SELECT count(*) FROM t"); got != 9 {
		t.Errorf("%d rows in the good one, want 9", got)
	}
	fill(c, 1, 100)
	c.Close()
	if !strings.Contains(n.log.text(), "bad.db") {
		t.Error("the log does not name bad.db")
	}
	n.stop()
}

func config(t *testing.T, dir, text string) string {
	t.Helper()
	path := filepath.Join(dir, "litefs.yml")
	write(t, path, text)
	return path
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
}
