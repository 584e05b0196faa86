package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/seal"
)

// logKeys gives a node keys for its log, from its next start on.
func (n *node) logKeys(keys ...string) {
	n.t.Helper()
	file := filepath.Join(n.dir, "log-keys")
	line := "log-key-file: " + file
	if !slices.Contains(n.cfg.DataKeys, line) {
		n.cfg.DataKeys = append(n.cfg.DataKeys, line)
	}
	operator, err := seal.ParseKeys(strings.Join(keys, "\n"))
	if err != nil {
		n.t.Fatal(err)
	}
	n.keys = &logkey.Keys{Operator: operator}
	if err := errors.Join(os.WriteFile(file, []byte(strings.Join(keys, "\n")), 0o600), n.cfg.WriteFile(n.configPath())); err != nil {
		n.t.Fatal(err)
	}
}

// randomHex is a text that is not compressed.
func randomHex() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// holds reports whether a file of the data directory has a text, but for the databases themselves.
func (n *node) holds(text string) bool {
	n.t.Helper()
	found, files := false, 0
	err := filepath.WalkDir(n.cfg.Data, func(path string, e fs.DirEntry, err error) error {
		if path == filepath.Join(n.cfg.Data, "files") {
			return filepath.SkipDir
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		found, files = found || bytes.Contains(b, []byte(text)), files+1
		return err
	})
	if err != nil || files < 5 {
		n.t.Fatalf("%d files looked at: %v", files, err)
	}
	return found
}

// litefs runs a command.
func (n *node) litefs(args ...string) (string, error) {
	n.t.Helper()
	return outputOf(exec.CommandContext(timeout(n.t), binary(n.t), args...))
}

// TestLogEncrypted: of what was written and deleted on nodes whose logs are encrypted, each with a key of its own, nothing lies
// in their data directories, over takeovers and kills; before there was a key it did. The nodes follow each other, commands read
// the logs with the key and say what is missing without, keys are rotated, a database that is dropped takes its key along, and
// when a key is destroyed nothing of the log can be read: the node gets the database again, with a new one.
func TestLogEncrypted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3*time.Second)
	a, b := newNode(t, c.lease), newNode(t, c.lease)
	b.logKeys(randomHex())
	a.start()
	becomesPrimary(a)
	b.start()
	sql := func(n *node, db, statements string) string {
		t.Helper()
		out, err := outputOf(exec.CommandContext(timeout(t), "sqlite3", "-bail", "-cmd", ".timeout 60000", n.path(db), statements))
		must(t, err)
		return strings.TrimSpace(out)
	}
	secret := func(n *node) string {
		t.Helper()
		text := randomHex()
		sql(n, "app.db", "PRAGMA secure_delete=1; INSERT INTO t VALUES ('"+text+"')")
		sql(n, "app.db", "PRAGMA secure_delete=1; DELETE FROM t WHERE v = '"+text+"'; INSERT INTO t VALUES (1)")
		samePosition(a, b, "app.db")
		return text
	}
	sql(a, "app.db", "PRAGMA journal_mode=WAL; CREATE TABLE t(v)")
	before := secret(a)
	if !a.holds(before) || b.holds(before) {
		t.Fatalf("of what was deleted the log in the clear has %v, the encrypted one %v", a.holds(before), b.holds(before))
	}
	a.stop()
	becomesPrimary(b)
	keyOfA := randomHex()
	a.logKeys(keyOfA)
	a.start()
	secrets := []string{secret(b)}
	b.killAll()
	becomesPrimary(a)
	b.start()
	secrets = append(secrets, secret(a))
	for _, n := range []*node{a, b} {
		for i, text := range secrets {
			if n.holds(text) {
				t.Errorf("%s has what was deleted, the secret %d", n.cfg.Data, i)
			}
		}
		out, err := n.litefs("status", "-config", n.configPath())
		if err != nil || !strings.Contains(out, "encrypted") {
			t.Errorf("status: %v: %s", err, out)
		}
	}

	// A database that is dropped.
	sql(a, "other.db", "CREATE TABLE t(v); INSERT INTO t VALUES (1)")
	samePosition(a, b, "other.db")
	keys := func(n *node) int {
		found, err := filepath.Glob(filepath.Join(n.cfg.Data, "dbs", "*", "log-key"))
		must(t, err)
		return len(found)
	}
	if keys(a) != 2 || keys(b) != 2 {
		t.Errorf("two databases have %d and %d keys", keys(a), keys(b))
	}
	must(t, os.Remove(a.path("other.db")))
	eventually(t, "the key of a dropped database is gone", func() (bool, string) {
		return keys(a) == 1 && keys(b) == 1, fmt.Sprint(keys(a), keys(b))
	})

	// Commands, and another key.
	b.stop()
	a.stop()
	if out, err := a.litefs("verify", "-config", a.configPath()); err != nil {
		t.Errorf("verify: %v: %s", err, out)
	}
	for _, command := range [][]string{{"ltx", "-data", a.cfg.Data, "list"}, {"verify", "-data", a.cfg.Data}} {
		out, err := a.litefs(command...)
		if err == nil || !strings.Contains(err.Error(), "the log is encrypted and its key was not given") {
			t.Errorf("%s without a key: %v: %s", command[0], err, out)
		}
	}
	other := randomHex()
	a.logKeys(other)
	if out, err := a.litefs("mount", "-config", a.configPath()); err == nil || !strings.Contains(err.Error(), "its key was not given") {
		t.Errorf("a start with another key: %v: %s", err, out)
	}
	a.logKeys(other, keyOfA)
	if out, err := a.litefs("keys", "-log", "-rotate", "-config", a.configPath()); err != nil || !strings.Contains(out, ", now") {
		t.Errorf("keys -rotate: %v: %s", err, out)
	}
	a.logKeys(other)
	a.start()
	becomesPrimary(a)
	sql(a, "app.db", "INSERT INTO t VALUES (2)")
	a.stop()

	// The key is destroyed, and the files of the log are there all the same.
	logs, err := filepath.Glob(filepath.Join(a.cfg.Data, "dbs", "*", "ltx"))
	must(t, err)
	saved := filepath.Join(t.TempDir(), "ltx")
	must(t, os.CopyFS(saved, os.DirFS(logs[0])))
	name, err := os.ReadFile(filepath.Join(filepath.Dir(logs[0]), "name"))
	must(t, err)
	if out, err := a.litefs("keys", "-log", "-destroy", "-name", "app.db", "-config", a.configPath()); err != nil || !strings.Contains(out, "destroyed") {
		t.Fatalf("keys -destroy: %v: %s", err, out)
	}
	must(t, os.CopyFS(logs[0], os.DirFS(saved)))
	must(t, os.WriteFile(filepath.Join(filepath.Dir(logs[0]), "name"), name, 0o600))
	if out, err := a.litefs("ltx", "-config", a.configPath(), "list"); err == nil || !strings.Contains(err.Error(), "its key has been destroyed") {
		t.Errorf("a log whose key is destroyed: %v: %s", err, out)
	}
	must(t, os.Remove(filepath.Join(filepath.Dir(logs[0]), "name")))
	b.start()
	becomesPrimary(b)
	a.start()
	samePosition(a, b, "app.db")
	if got := sql(a, "app.db", "SELECT count(*) FROM t"); got == "0" {
		t.Error("the database came back empty")
	}
	b.stop()
	becomesPrimary(a)
	sql(a, "app.db", "INSERT INTO t VALUES (3)")
	a.stop()
	if out, err := a.litefs("verify", "-config", a.configPath()); err != nil {
		t.Errorf("verify: %v: %s", err, out)
	}
}
