package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/leaseserver"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// litestreamDir and litestreamBucket are places that a real Litestream archives to: the place, and the
// replica in Litestream's configuration.
func litestreamDir(t *testing.T) (*archiveAt, string) {
	dir := filepath.Join(t.TempDir(), "replica")
	return &archiveAt{t: t, from: []string{"-from", dir}}, "type: file\n      path: " + dir
}

func litestreamBucket(t *testing.T) (*archiveAt, string) {
	server, err := leaseserver.S3(t.Context(), leaseserver.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
	})
	return &archiveAt{
			t: t, from: []string{"-from", "s3://" + leaseserver.S3Bucket + "/of/litestream", "-endpoint", server.URL},
			env: []string{"AWS_ACCESS_KEY_ID=" + leaseserver.S3AccessKey, "AWS_SECRET_ACCESS_KEY=" + leaseserver.S3SecretKey},
		}, fmt.Sprintf("type: s3\n      bucket: %s\n      path: of/litestream\n      endpoint: %s\n      region: us-east-1\n      force-path-style: true",
			leaseserver.S3Bucket, server.URL)
}

// TestArchiveOfLitestream: what a real Litestream archived to a directory and to a bucket is listed by litefs
// history and restored by litefs restore: the newest state, and by time and by TXID those after growth, after
// a VACUUM that shrinks the database and after further growth, from single syncs, what Litestream has put
// together of them and its snapshots. Litestream itself restores the same bytes.
func TestArchiveOfLitestream(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		place  func(*testing.T) (*archiveAt, string)
		pragma string
	}{
		{"directory", litestreamDir, "page_size=1024"},
		{"bucket", litestreamBucket, "page_size=65536"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a, replica := tt.place(t)
			archiveOfLitestream(t, a, replica, tt.pragma)
		})
	}
}

// contentOf asks for the rows.
const contentOf = "SELECT group_concat(hex(v)) FROM t"

// litestreamMark is a state that Litestream has archived.
type litestreamMark struct {
	txid string
	at   time.Time
	dump string
}

func archiveOfLitestream(t *testing.T, a *archiveAt, replica, pragma string) {
	dir := t.TempDir()
	database, config := filepath.Join(dir, "app.db"), filepath.Join(dir, "litestream.yml")
	c := sqlitetest.Open(t, database, pragma, "journal_mode=WAL")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	text := fmt.Sprintf("levels:\n  - interval: 1s\nsnapshot:\n  interval: 2s\n  retention: 1h\ndbs:\n  - path: %s\n    replica:\n      %s\n      sync-interval: 50ms\n", database, replica)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	version := litestreamVersion()
	cmd := exec.Command(litestream(t, version), "replicate", "-config", config)
	cmd.Env = a.environ()
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // interrupted
	}()
	var marks []litestreamMark
	rows := "INSERT INTO t(v) WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM s WHERE x < %d) SELECT randomblob(900) FROM s"
	for _, sql := range []string{
		fmt.Sprintf(rows, 10),
		fmt.Sprintf(rows, 400),
		"DELETE FROM t WHERE id > 20",
		"VACUUM", // and a row, to see when it is archived
		fmt.Sprintf(rows, 200),
	} {
		c.MustExec(sql)
		c.MustExec("INSERT INTO t(v) VALUES (randomblob(16))")
		marks = append(marks, a.archivedByLitestream(c.MustText(contentOf)))
	}
	eventually(t, "Litestream has made a snapshot and put syncs together", func() (bool, string) {
		h, err := a.historyOfLitestream()
		return err == nil && h.Snapshot != "" && h.Objects >= h.Moments+2, fmt.Sprintf("%+v, %v", h, err)
	})
	sizes := make([]int, len(marks))
	for i, m := range marks {
		at := m.at.UTC().Format(time.RFC3339Nano)
		file := a.restoredOfLitestream(m, "-txid", m.txid)
		a.restoredOfLitestream(m, "-timestamp", at)
		sizes[i] = len(readFile(t, file))
		theirs := filepath.Join(t.TempDir(), "litestream.db")
		if out, err := a.run(litestream(t, version), "restore", "-config", config, "-o", theirs, "-txid", m.txid, database); err != nil {
			t.Fatalf("litestream restores its own state %d: %v: %s", i, err, out)
		}
		if string(readFile(t, file)) != string(readFile(t, theirs)) {
			t.Errorf("state %d (%s): not the bytes that Litestream restores", i, m.txid)
		}
	}
	if sizes[3] >= sizes[2] || sizes[4] <= sizes[3] {
		t.Errorf("bytes of the states: %v, want the fourth to be shrunk", sizes)
	}
	a.restoredOfLitestream(marks[len(marks)-1])
	h, err := a.historyOfLitestream()
	if err != nil {
		t.Fatal(err)
	}
	if h.Database != "" || h.History != 0 || h.Moments < len(marks) || h.Last.TXID < marks[len(marks)-1].txid || h.Last.Checksum != "" {
		t.Errorf("history: %+v", h)
	}
	if out, err := a.run(binary(t), append([]string{"history"}, a.from...)...); err != nil || !strings.Contains(out, "(Litestream's)") {
		t.Errorf("history: %v: %s", err, out)
	}
}

func (a *archiveAt) historyOfLitestream() (h history, err error) {
	out, err := a.run(binary(a.t), append([]string{"history", "-json"}, a.from...)...)
	if err != nil {
		return h, fmt.Errorf("%w: %s", err, out)
	}
	return h, json.Unmarshal([]byte(out), &h)
}

// archivedByLitestream waits until Litestream has archived a content.
func (a *archiveAt) archivedByLitestream(want string) litestreamMark {
	a.t.Helper()
	m := litestreamMark{dump: want}
	eventually(a.t, "Litestream has archived", func() (bool, string) {
		file := filepath.Join(a.t.TempDir(), "restored.db")
		out, err := a.run(binary(a.t), append(append([]string{"restore", "-json"}, a.from...), file)...)
		if err != nil {
			return false, out
		}
		var got struct{ TXID string }
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			return false, err.Error()
		}
		m.txid = got.TXID
		content, err := sqlitetest.TryCLI(file, contentOf+";")
		return strings.TrimSpace(content) == want, fmt.Sprintf("%s: %v, %d bytes of %d", m.txid, err, len(content), len(want))
	})
	// Litestream's times are whole milliseconds, and it takes what is strictly before one.
	time.Sleep(5 * time.Millisecond)
	m.at = time.Now()
	time.Sleep(5 * time.Millisecond)
	return m
}

// restoredOfLitestream restores a state and compares its content.
func (a *archiveAt) restoredOfLitestream(m litestreamMark, flags ...string) string {
	a.t.Helper()
	file := filepath.Join(a.t.TempDir(), "restored.db")
	args := append(append([]string{"restore", "-integrity-check", "full"}, a.from...), flags...)
	if out, err := a.run(binary(a.t), append(args, file)...); err != nil {
		a.t.Fatalf("restore %q: %v: %s", flags, err, out)
	}
	if got := sqlitetest.CLI(a.t, file, contentOf+";"); strings.TrimSpace(got) != m.dump {
		a.t.Errorf("restore %q: %d bytes of content, want the %d of %s", flags, len(got), len(m.dump), m.txid)
	}
	return file
}
