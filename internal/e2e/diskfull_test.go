package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	nodehttp "github.com/litefs/litefs/http"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// trouble asks the node why a database does not follow; "" if it does.
func (n *node) trouble(name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	info, err := nodehttp.NewClient(nil, "").Info(ctx, "http://"+n.cfg.Addr)
	if err != nil {
		return "", err
	}
	for _, db := range info.Databases {
		if db.Name == name {
			return db.Error, nil
		}
	}
	return "", fmt.Errorf("no database %s", name)
}

// fillDisk writes a file until the disk is full, and returns its path.
func fillDisk(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := 64 << 10; size >= 512; size /= 2 { // to the last byte
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// A replica whose disk is full says so in its status, shows whole transactions meanwhile, and follows again
// by itself when there is room.
func TestReplicaOnAFullDisk(t *testing.T) {
	primary := startNode(t)
	follower := newNode(t, follows(primary))
	if err := os.MkdirAll(follower.cfg.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", follower.cfg.Data, "tmpfs", 0, "size=32m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The node is ended by the cleanup of newNode, which comes later.
		if err := unix.Unmount(follower.cfg.Data, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	follower.start()
	app := sqlitetest.Start(t)
	w := app.Open(primary.path("app.db"), "journal_mode=wal", "synchronous=normal")
	w.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	pair := func(size int) {
		w.MustExec("BEGIN")
		for range 2 {
			w.MustExec(fmt.Sprintf("INSERT INTO t(v) VALUES (randomblob(%d))", size))
		}
		w.MustExec("COMMIT")
	}
	for range 5 {
		pair(1000)
	}
	settle(w)
	caughtUp(primary, follower, "app.db")
	reader := app.Open(follower.path("app.db"))
	if n := reader.MustInt("SELECT count(*) FROM t"); n != 10 {
		t.Fatalf("%d rows on the follower, want 10", n)
	}

	filler := fillDisk(t, follower.cfg.Data)
	for range 20 {
		pair(100_000)
	}
	settle(w)
	eventually(t, "the follower says that its disk is full", func() (bool, string) {
		why, err := follower.trouble("app.db")
		return err == nil && strings.Contains(why, "no space left on device"), fmt.Sprintf("%q, %v", why, err)
	})
	if out, code := follower.cli("status", "-config", follower.configPath()); code != 1 || !strings.Contains(out, "no space left on device") {
		t.Errorf("litefs status, exit code %d:\n%s", code, out)
	}
	if n := reader.MustInt("SELECT count(*) FROM t"); n%2 != 0 || n < 10 || n >= 50 {
		t.Errorf("%d rows on the follower while its disk is full", n)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	caughtUp(primary, follower, "app.db")
	eventually(t, "the follower is well again", func() (bool, string) {
		why, err := follower.trouble("app.db")
		return err == nil && why == "", fmt.Sprintf("%q, %v", why, err)
	})
	if n := reader.MustInt("SELECT count(*) FROM t"); n != 50 {
		t.Errorf("%d rows on the follower, want 50", n)
	}
	app.Exit()
	sameEverywhere(t, primary, follower, "app.db")
}
